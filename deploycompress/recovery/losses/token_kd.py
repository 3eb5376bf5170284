"""Soft labels for every token that is one: padding has no say."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from deploycompress.contracts import Batch, Outputs
from deploycompress.errors import ConfigError
from deploycompress.recovery.losses.divergence import checked_temperature, soft_divergence
from deploycompress.recovery.losses.matching import class_logits

if TYPE_CHECKING:
    from torch import Tensor


class TokenSoftLabels:
    """``sum_i m_i T^2 KL(p_T,i || p_S,i) / sum_i m_i`` over the tokens of a batch: logits [batch, tokens, classes].

    ``m_i`` is 1 for a token that counts: where the batch's input ``mask`` [batch, tokens] is not zero, and where the
    labels, if they are [batch, tokens], are not ``ignore_index``. The mean is over tokens, so that a long sample
    weighs more than a short one and padding nothing. Soft labels as in Hinton et al. (2015); for each token Sanh et
    al., "DistilBERT" (2019), section 3. ``mask: null`` says that there is no padding.
    """

    class_axis: ClassVar[int] = 2

    def __init__(
        self, temperature: float | None = None, mask: str | None = "attention_mask", ignore_index: int = -100
    ) -> None:
        self.temperature, self.mask, self.ignore_index = checked_temperature(temperature), mask, ignore_index

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        s, t = class_logits("token_kd", student, teacher, "[batch, tokens, classes]", least=3, axis=-1)
        counts = self._counts(batch, s)
        divergence = soft_divergence(s, t, self.temperature)
        # Not divergence * counts: what a network says of padding may be infinite, and 0 * inf is NaN.
        return divergence.masked_fill(~counts, 0.0).sum() / counts.sum().clamp(min=1)

    def _counts(self, batch: Batch, logits: Tensor) -> Tensor:
        """[batch, tokens], true where a token counts. Raises ConfigError where nothing tells padding."""
        import torch

        tokens = logits.shape[:-1]
        counts = torch.ones(tokens, dtype=torch.bool, device=logits.device)
        labels = batch.targets
        labelled = isinstance(labels, torch.Tensor) and labels.shape == tokens
        if labelled:
            counts &= labels != self.ignore_index
        if self.mask is None:
            return counts
        given = batch.inputs.get(self.mask)
        if given is None and not labelled:
            raise ConfigError(
                f"loss token_kd: which tokens are padding is not known: the batch has the inputs "
                f"{', '.join(batch.inputs)} and no labels {list(tokens)}; name the input that is 1 for tokens and 0 "
                "for padding in `mask`, or say that there is no padding with `mask: null`"
            )
        if given is not None and given.shape != tokens:
            raise ConfigError(
                f"loss token_kd: the input {self.mask} is {list(given.shape)}; expected {list(tokens)}, as the logits "
                f"are {list(logits.shape)}: [batch, tokens, classes]"
            )
        return counts if given is None else counts & (given != 0)
