"""How names, sizes and figures of an inspection are spelt in the cells of its tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploycompress.report.figures import clean

if TYPE_CHECKING:
    from deploycompress.commands.inspection import GroupShare, Layer

NAME = 24  # characters of a path, or of several
NOTHING = "–"


@dataclass(frozen=True)
class Unit:
    """What figures are shown in: ``size`` ones of it, with ``digits`` behind the point."""

    name: str
    size: float
    digits: int

    @classmethod
    def of(cls, total: float) -> Unit:
        """The largest one of which the total is at least a hundred."""
        for name, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
            if total >= 100 * size:
                return cls(name, size, 1)
        return cls("", 1.0, 0)

    def __call__(self, value: float | None) -> str:
        return NOTHING if value is None else _number(value / self.size, self.digits)


def share(value: float | None, total: float | None) -> str:
    """Percent of the total, without its sign."""
    return NOTHING if value is None or not total else _number(100 * value / total, 1)


def _number(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}".replace("-", "−")
    return text if text.strip("−0.") else text.strip("−")  # a zero has no sign


def width(channels: int | None) -> str:
    return NOTHING if channels is None else str(channels)


def name(path: str, most: int = NAME) -> str:
    """A module path of which the end is seen: that tells layers apart."""
    path = clean(path) or "the model"
    return path if len(path) <= most else f"…{path[1 - most :]}"


def names(paths: Sequence[str]) -> str:
    """The first paths that have room, and how many more there are."""
    for count in range(len(paths), 1, -1):
        more = f", +{len(paths) - count}" if count < len(paths) else ""
        listed = ", ".join(map(clean, paths[:count])) + more
        if len(listed) <= NAME:
            return listed
    more = f", +{len(paths) - 1}" if len(paths) > 1 else ""
    return name(paths[0], NAME - len(more)) + more


def kind(layer: Layer) -> str:
    """``3x3/2 dw``: kernel, stride, depthwise; ``linear``, or the class of what is neither."""
    if not layer.calls:
        words = layer.kind[:12]
    elif not layer.kernel:
        words = "linear"
    else:
        stride = f"/{'x'.join(map(str, dict.fromkeys(layer.stride)))}" if set(layer.stride) != {1} else ""
        runs = "" if layer.runs == 1 else " dw" if layer.runs == layer.c_in else f" g{layer.runs}"
        words = f"{'x'.join(map(str, layer.kernel))}{stride}{runs}"
    return words + (f" ×{layer.calls}" if layer.calls > 1 else "")


def grid(group: GroupShare) -> str:
    """``8–64 by 8``; of heads how many can stay: ``1–12 heads``."""
    if len(group.grid) < 2:
        return "as it is"
    if group.heads is not None:
        return f"{group.grid[0] * group.heads // group.width}–{group.heads} heads"
    return f"{group.grid[0]}–{group.grid[-1]} by {group.grid[1] - group.grid[0]}"
