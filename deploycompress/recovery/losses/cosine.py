"""Direction: the student's embeddings point where the teacher's do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploycompress.contracts import Batch, Outputs
from deploycompress.recovery.losses.matching import alike

if TYPE_CHECKING:
    from torch import Tensor


class Cosine:
    """``mean(1 - <s, t> / (|s| |t|))`` over embeddings in the last dimension: [batch, ..., width].

    As for hidden states in Sanh et al., "DistilBERT, a distilled version of BERT" (2019), section 3.
    """

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        import torch.nn.functional as F

        s, t = alike("cosine", student, teacher, "[batch, ..., width]", least=2)
        return (1 - F.cosine_similarity(s, t, dim=-1)).mean()
