"""Attention transfer: the student looks where the teacher looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from deploycompress.contracts import Batch, Outputs
from deploycompress.recovery.losses.features import checked_layers

if TYPE_CHECKING:
    from torch import Tensor

    from deploycompress.recovery.layers import Layers, Pair


class AttentionTransfer:
    """``mean over pairs, samples and positions of (Q_s / |Q_s| - Q_t / |Q_t|)^2``.

    ``Q = mean_c f_c^2`` is a layer's attention map, its squared features averaged over the width ``c``, as a vector
    over the positions: no adapter is needed where widths differ. Zagoruyko, Komodakis, "Paying More Attention to
    Attention" (ICLR 2017), equation 2 with p = 2, in the form of the authors' code, whose beta is 1000. ``layers``:
    as for features; the layers need positions: [batch, channels, rows, columns] or [batch, tokens, width].
    """

    weight: ClassVar[float] = 1000.0

    def __init__(self, layers: Mapping[str, str] | None = None) -> None:
        self.layers = checked_layers(layers)
        self._places: dict[str, tuple[int, str]] = {}  # student path -> the width's dimension, teacher path

    def attach(self, student: Layers, teacher: Layers) -> Sequence[Pair]:
        from deploycompress.recovery.pairing import named_pairs, pairs_by_path

        pairs = (
            pairs_by_path(student, teacher, positions=True)
            if self.layers is None
            else named_pairs(self.layers, student, teacher)
        )
        self._places = {pair.student: (student[pair.student].axis, pair.teacher) for pair in pairs}
        return pairs

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        distances = [
            (_map(student.features[path], axis) - _map(teacher.features[other], axis)).square().mean()
            for path, (axis, other) in self._places.items()
        ]
        return sum(distances[1:], start=distances[0]) / len(distances)


def _map(features: Tensor, axis: int) -> Tensor:
    """[batch, positions], each row of length 1."""
    import torch.nn.functional as F

    return F.normalize(features.square().mean(dim=axis).flatten(1), dim=1)
