"""Features: the student's layers learn to give out what the teacher's do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from deploycompress.contracts import Batch, Outputs

if TYPE_CHECKING:
    from torch import Tensor, nn

    from deploycompress.recovery.layers import Layers, Pair


class Features:
    """``mean over pairs of mean((r(f_s) - f_t)^2)`` of the features of paired layers.

    ``r`` is a learned linear map from the student's width to the teacher's at every position (a 1x1 convolution)
    where the two differ, and nothing where they agree. Romero et al., "FitNets: Hints for Thin Deep Nets" (ICLR
    2015), equation 3, on several layers at once and beside the other losses. ``layers``: student path -> teacher
    path; found by themselves otherwise, as the ends of stages that have one path in both networks.
    """

    weight: ClassVar[float] = 100.0

    def __init__(self, layers: Mapping[str, str] | None = None) -> None:
        self.layers = checked_layers(layers)
        self.trainable: nn.Module | None = None
        self._adapters: dict[str, nn.Module] = {}
        self._places: dict[str, tuple[int, str]] = {}  # student path -> the width's dimension, teacher path

    def attach(self, student: Layers, teacher: Layers) -> Sequence[Pair]:
        from torch import nn

        from deploycompress.recovery.pairing import named_pairs, pairs_by_path

        pairs = (
            pairs_by_path(student, teacher)
            if self.layers is None
            else named_pairs(self.layers, student, teacher)
        )
        self._places = {pair.student: (student[pair.student].axis, pair.teacher) for pair in pairs}
        self._adapters = {
            pair.student: nn.Linear(student[pair.student].width, teacher[pair.teacher].width)
            for pair in pairs
            if student[pair.student].width != teacher[pair.teacher].width
        }
        self.trainable = nn.ModuleList(self._adapters.values()) if self._adapters else None
        return pairs

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        distances = []
        for path, (axis, other) in self._places.items():
            s, t = student.features[path], teacher.features[other]
            if path in self._adapters:
                s = self._adapters[path](s.movedim(axis, -1)).movedim(-1, axis)
            distances.append((s - t).square().mean())
        return sum(distances[1:], start=distances[0]) / len(distances)


def checked_layers(layers: Mapping[str, str] | None) -> dict[str, str] | None:
    """Raises ValueError unless it maps paths to paths."""
    if layers is None:
        return None
    paths = [*layers, *layers.values()] if isinstance(layers, Mapping) else []
    if not paths or not all(isinstance(path, str) and path for path in paths):
        raise ValueError("layers: expected {student layer: teacher layer}, paths such as layer2.1")
    return dict(layers)
