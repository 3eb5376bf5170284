"""What a stage left whole, told once for each reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from deploycompress.contracts import Note

if TYPE_CHECKING:
    from deploycompress.pruning.groups import Unpruned


def left_whole(unpruned: Sequence[Unpruned]) -> Iterator[Note]:
    """One note for each reason, on its first layer: a model may have a hundred layers of the same kind."""
    for reason, count in Counter(u.reason for u in unpruned).items():
        others = f" (and {count - 1} more such layers)" if count > 1 else ""
        yield Note("left_whole", f"{reason}{others}", next(u.layer for u in unpruned if u.reason == reason))
