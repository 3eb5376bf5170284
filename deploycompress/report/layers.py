"""What each layer takes before and after: of the baseline and of the best artefact, as the profiler has them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from deploycompress.report.document import Operator, Report
from deploycompress.report.figures import figure, plural, significant

MOST_LAYERS = 16  # those that take longest on either side; the others are one row
FUSED = re.compile(r"(_nchwc|_token_\d+)+$")  # what ONNX Runtime hangs on a node's name
REFORMATS, BETWEEN = "layouts and types", "between the layers"


@dataclass(frozen=True)
class LayerBar:
    """``before`` and ``after`` in per cent of the longest bar."""

    label: str
    text: str
    tone: str  # better, worse
    before: float
    after: float


@dataclass(frozen=True)
class Layers:
    before: str  # artefact ids
    after: str
    bars: tuple[LayerBar, ...]
    summary: str


def layers(report: Report) -> Layers | None:
    """The layers in the order of the network, then what is none; None where they cannot be matched."""
    before, after = report.placement.get(report.baseline or ""), report.placement.get(report.best_id or "")
    if not before or not after or report.baseline == report.best_id:
        return None
    old, new = _by_layer(before), _by_layer(after)
    if 2 * len(old.keys() & new.keys()) < min(len(old), len(new)):
        return None  # two runtimes that name what they run each in their own way
    names = dict.fromkeys((*old, *new))
    rest = [name for name in (REFORMATS, BETWEEN) if name in names]
    named = [name for name in names if name not in rest]
    both = {name: (old.get(name, 0.0), new.get(name, 0.0)) for name in names}
    kept = sorted(named, key=lambda name: -max(both[name]))[:MOST_LAYERS]
    rows = {name: both[name] for name in named if name in kept}
    others = [both[name] for name in named if name not in kept]
    if others:
        rows[plural(len(others), "shorter layer")] = (sum(a for a, _ in others), sum(b for _, b in others))
    rows |= {name: both[name] for name in rest}
    longest = max(max(pair) for pair in rows.values()) or 1.0
    bars = [
        LayerBar(
            name,
            _change(a, b),
            "worse" if b > a else "better",
            100 * a / longest,
            100 * b / longest,
        )
        for name, (a, b) in rows.items()
    ]
    whole = [sum(of.ms for of in side) for side in (before, after)]
    summary = f"{figure(whole[0], 'ms')} → {figure(whole[1], 'ms')} in all under the profiler, which itself takes time"
    return Layers(str(report.baseline), str(report.best_id), tuple(bars), summary)


def _change(before_ms: float, after_ms: float) -> str:
    """Two digits: the profiler of ONNX Runtime counts whole microseconds."""
    if not after_ms:
        return f"{significant(before_ms, 2)} ms → gone"
    return f"{significant(before_ms, 2) if before_ms else 'new'} → {significant(after_ms, 2)} ms"


def _by_layer(operators: Sequence[Operator]) -> dict[str, float]:
    """Milliseconds by layer; operators of no layer by what they are, where any layer is known, else by their names."""
    known = any(of.layer for of in operators)
    found: dict[str, float] = {}
    for of in operators:
        outside = REFORMATS if of.role == "reformat" else BETWEEN
        name = of.layer or (outside if known or of.role == "reformat" else FUSED.sub("", of.node))
        found[name] = found.get(name, 0.0) + of.ms
    return found
