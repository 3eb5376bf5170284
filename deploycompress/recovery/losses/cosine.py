"""Direction: the student's embeddings, or hidden states, point where the teacher's do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from deploycompress.contracts import Batch, Outputs
from deploycompress.errors import ConfigError
from deploycompress.recovery.losses.features import checked_layers
from deploycompress.recovery.losses.matching import alike

if TYPE_CHECKING:
    from torch import Tensor

    from deploycompress.recovery.layers import Layers, Pair


class Cosine:
    """``mean(1 - <s, t> / (|s| |t|))`` over embeddings in the last dimension: [batch, ..., width].

    Of the first output; or, with ``layers`` (student path -> teacher path), of the hidden states of these layers at
    every position, averaged over the pairs. ``mask`` names the input [batch, tokens] that is 0 where a position is
    padding, which then has no say. As for hidden states in Sanh et al., "DistilBERT, a distilled version of BERT"
    (2019), section 3.
    """

    class_axis: ClassVar[None] = None

    def __init__(self, layers: Mapping[str, str] | None = None, mask: str | None = None) -> None:
        if mask is not None and layers is None:
            raise ValueError(f"mask is {mask!r}, which is of hidden states; expected layers beside it")
        self.layers, self.mask = checked_layers(layers), mask
        self._places: dict[str, tuple[int, str]] = {}  # student path -> the width's dimension, teacher path

    @property
    def reads_features(self) -> bool:
        return self.layers is not None

    def attach(self, student: Layers, teacher: Layers) -> Sequence[Pair]:
        from deploycompress.recovery.pairing import named_pairs

        pairs = named_pairs(self.layers or {}, student, teacher)
        for pair in pairs:
            own, other = student[pair.student], teacher[pair.teacher]
            if own.width != other.width:
                raise ConfigError(
                    f"loss cosine: {pair.student} of the student is {own.width} wide and {pair.teacher} of the teacher "
                    f"{other.width}; expected one width: choose other layers, or loss: features, which learns a map"
                )
        self._places = {pair.student: (student[pair.student].axis, pair.teacher) for pair in pairs}
        return pairs

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        if self.layers is None:
            return _apart(*alike("cosine", student, teacher, "[batch, ..., width]", least=2), -1).mean()
        distances = [
            self._mean(_apart(student.features[path], teacher.features[other], axis), batch)
            for path, (axis, other) in self._places.items()
        ]
        return sum(distances[1:], start=distances[0]) / len(distances)

    def _mean(self, apart: Tensor, batch: Batch) -> Tensor:
        """[batch, positions ...] -> the mean of those that count. Raises ConfigError for a mask of another shape."""
        if self.mask is None:
            return apart.mean()
        mask = batch.inputs.get(self.mask)
        if mask is None or mask.shape != apart.shape:
            received = f"the inputs {', '.join(batch.inputs)}" if mask is None else str(list(mask.shape))
            raise ConfigError(
                f"loss cosine: mask {self.mask!r}: received {received}; expected an input {list(apart.shape)}, as the "
                "layers have positions"
            )
        counts = mask != 0
        return apart.masked_fill(~counts, 0.0).sum() / counts.sum().clamp(min=1)


def _apart(s: Tensor, t: Tensor, axis: int) -> Tensor:
    """1 minus the cosine along ``axis``."""
    import torch.nn.functional as F

    return 1 - F.cosine_similarity(s, t, dim=axis)
