"""Where the names of a plot's points go, so that they cover little."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

CHARACTER = 7.2  # width of a label's letter, about, in the SVG's units

Anchor = Literal["start", "end"]
Box = tuple[float, float, float, float]  # left, top, right, bottom


def place_label(
    x: float, y: float, radius: float, label: str, frame: Box, taken: list[Box], lines: Sequence[Box]
) -> tuple[float, float, Anchor]:
    """Where beside its point a label covers least: other labels and points first, then whiskers."""
    width = CHARACTER * len(label) + 2
    places: list[tuple[float, float, float, Anchor, Box]] = []
    for order, (side, shift) in enumerate((s, d) for d in (4, -9, 18, -24, 33, -39) for s in (1, -1)):
        label_x, label_y = x + (radius + 6) * side, y + shift
        begin = label_x if side > 0 else label_x - width
        box = (begin, label_y - 12, begin + width, label_y + 4)
        outside = begin < frame[0] or begin + width > frame[2] or box[1] < frame[1] - 10 or box[3] > frame[3]
        cost = 100.0 * outside + 10 * sum(covers(box, other) for other in taken)
        cost += sum(covers(box, line) for line in lines) + 0.3 * order
        places.append((cost, label_x, label_y, "start" if side > 0 else "end", box))
    _, label_x, label_y, anchor, box = min(places)
    taken.append(box)
    return label_x, label_y, anchor


def covers(one: Box, other: Box) -> bool:
    """Whether they share more than an edge."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
