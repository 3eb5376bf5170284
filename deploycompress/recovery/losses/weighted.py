"""A weighted sum of losses, each by its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deploycompress.contracts import Batch, Loss, Outputs

if TYPE_CHECKING:
    from torch import Tensor, nn

    from deploycompress.recovery.layers import Layers, Pair


@dataclass(frozen=True)
class Weighted:
    """One loss and what it counts."""

    loss: Loss
    weight: float


@dataclass
class WeightedSum:
    """``sum_k w_k L_k``; its terms are ``w_k L_k`` by name.

    To the others it is one loss: it attaches those that read features, and passes on what the training tells. With
    ``final_temperature`` every temperature goes there in equal steps, as in Jafari et al., "Annealing Knowledge
    Distillation" (EACL 2021), section 3.
    """

    parts: Mapping[str, Weighted]
    final_temperature: float | None = None
    trainable: nn.Module | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        own = {name: getattr(part.loss, "temperature", None) for name, part in self.parts.items()}
        self._temperatures = {name: value for name, value in own.items() if value is not None}

    def attach(self, student: Layers, teacher: Layers) -> Sequence[Pair]:
        from torch import nn

        pairs: list[Pair] = []
        for loss in self._losses():
            if reads_features(loss):
                pairs += loss.attach(student, teacher)
        learned = [part for loss in self._losses() if (part := getattr(loss, "trainable", None)) is not None]
        self.trainable = nn.ModuleList(learned) if learned else None
        return list(dict.fromkeys(pairs))

    @property
    def reads_features(self) -> bool:
        return any(map(reads_features, self._losses()))

    def progress(self, done: float) -> None:
        for name, part in self.parts.items():
            loss: Any = part.loss
            if self.final_temperature is not None and name in self._temperatures:
                start = self._temperatures[name]
                loss.temperature = start + (self.final_temperature - start) * done
            if hasattr(loss, "progress"):
                loss.progress(done)

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        terms = list(self.terms(student, teacher, batch).values())
        return sum(terms[1:], start=terms[0])

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> Mapping[str, Tensor]:
        return {name: part.weight * part.loss(student, teacher, batch) for name, part in self.parts.items()}

    def _losses(self) -> list[Any]:
        return [part.loss for part in self.parts.values()]


def reads_features(loss: Any) -> bool:
    """Whether a loss wants to be told the layers of both networks."""
    return bool(getattr(loss, "reads_features", hasattr(loss, "attach")))
