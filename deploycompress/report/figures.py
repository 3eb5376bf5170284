"""How figures, limits and foreign names are spelt in every form of the report."""

from __future__ import annotations

import re
import unicodedata

UNITS = ("share", "points", "ms", "mJ", "x", "ratio", "bytes", "/s", "")
NOTHING = "–"

BOUNDS = {
    "min": "≥ {limit}",
    "max": "≤ {limit}",
    "max_drop": "drop ≤ {limit}",
    "max_rise": "rise ≤ {limit}",
    "min_speedup": "speed-up ≥ {limit}",
    "max_ratio": "≤ {limit} of the baseline",
    "allow": "allowed ones only",
}

_TRAILING_ZEROS = re.compile(r"\.0+(?=\D|$)|(\.\d*?[1-9])0+(?=\D|$)")
_KILO = ("B", "KB", "MB", "GB", "TB")


def figure(value: float | None, unit: str) -> str:
    """A value in its base unit, for a reader: 0.0123 of "points" is ``1.23 pp``."""
    if value is None:
        return NOTHING
    if value < 0:
        text = figure(-value, unit)
        return text if text == figure(0.0, unit) else f"−{text}"
    value = abs(value)  # a zero has no sign
    match unit:
        case "share":
            return f"{100 * value:.2f} %"
        case "points":
            return f"{100 * value:.2f} pp"
        case "ratio":
            return f"{significant(100 * value)} %"
        case "ms" | "mJ":
            return f"{significant(value)} {unit}"
        case "x":
            return f"{significant(value)}×"
        case "bytes":
            return size(value)
        case "/s":
            return f"{significant(value)} /s"
        case _:
            return significant(value)


def signed(value: float | None, unit: str) -> str:
    """A change, with its sign; the sign of zero is ±."""
    if value is None:
        return NOTHING
    text = figure(abs(value), unit)
    if text == figure(0.0, unit):
        return f"±{text}"
    return f"{'+' if value > 0 else '−'}{text}"


def limit(bound: str, value: float | None, unit: str) -> str:
    """A limit as it would be written by hand: ``drop ≤ 1 pp``, ``speed-up ≥ 3×``."""
    plain = _TRAILING_ZEROS.sub(r"\1", figure(value, unit))
    return BOUNDS[bound].format(limit=plain) if bound in BOUNDS else f"{bound} {plain}".strip()


def bare(text: str) -> str:
    """The number of a figure, without its unit."""
    return text.split(" ")[0].rstrip("×")


def size(count: float) -> str:
    """Bytes in powers of 1000, three digits."""
    value, unit = float(count), _KILO[0]
    for unit in _KILO:
        if abs(value) < 999.5 or unit == _KILO[-1]:
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"


def significant(value: float, digits: int = 3) -> str:
    """Three digits that mean something, never fewer than the whole part has; tiny values as powers of ten."""
    if value != 0 and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:#.{digits}g}".rstrip(".")


def duration(seconds: float) -> str:
    if seconds < 0.095:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def plural(count: int, word: str) -> str:
    return f"{count} {word}" + ("" if count == 1 else "s")


def clean(text: str) -> str:
    """A foreign text as one that every format can hold: no control, surrogate or direction characters.

    Line breaks and tabs become spaces; the others U+FFFD, so that they are seen.
    """
    if text.isprintable():  # none of those is
        return text
    return "".join(
        " " if c in "\t\n\r\u2028\u2029" else "\ufffd" if unicodedata.category(c) in _UNSAFE else c
        for c in text
    )


def clean_lines(text: str) -> str:
    """The same of a text that may have several lines."""
    return "\n".join(map(clean, text.splitlines()))


_UNSAFE = frozenset(("Cc", "Cf", "Cs", "Co", "Cn"))


def shortened(text: str, most: int = 120) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
