"""Autoencoders: the input itself is what is to be given back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import numpy as np

from deploycompress.contracts import Batch, MetricInfo, Outputs
from deploycompress.data.tasks.base import OutputTask
from deploycompress.data.tasks.checks import form, table
from deploycompress.data.tasks.counts import known
from deploycompress.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["mse", "bce"]


@dataclass(frozen=True)
class Autoencoder(OutputTask):
    """Reconstruction of an input, and for a variational one the divergence of its code; labels are not needed.

    ``(reconstruction + beta * KL) / numbers of a sample``: the negative evidence lower bound of Kingma, Welling,
    "Auto-Encoding Variational Bayes" (2014), equation 10 with their appendix B, weighted as in Higgins et al.,
    "beta-VAE" (2017), a number, so that it does not grow with the input's size. ``minimise``: the squared error, or
    binary cross-entropy for probabilities of inputs from 0 to 1. ``output``, ``mean`` and ``log_variance`` name the
    model's outputs (None: the first; a model without the latter two has no divergence), ``input`` names what is
    given back (None: the first).
    """

    minimise: Kind = "mse"
    beta: float = 1.0
    input: str | None = None
    mean: str = "mean"
    log_variance: str = "log_variance"
    metric: str = "reconstruction"

    name: ClassVar[str] = "autoencoder"
    targets_are_classes: ClassVar[bool] = False
    figures: ClassVar[dict[str, MetricInfo]] = table(
        *(
            MetricInfo(name, higher_is_better=False, unit="")
            for name in ("reconstruction", "kl", "negative_elbo")
        )
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.minimise not in get_args(Kind):
            raise ValueError(f"minimise is {self.minimise!r}; expected {', '.join(get_args(Kind))}")

    def check(self, outputs: Outputs, batch: Batch) -> None:
        """The reconstruction has the input's shape, and both fit the loss. Raises ConfigError."""
        answer, wanted = self.answer(outputs), self.wanted(batch)
        if answer.shape != wanted.shape or not wanted.is_floating_point():
            raise ConfigError(
                f"{self.name}: the model's output is {form(answer)} for the input {form(wanted)}; expected a reconstruction "
                "of the input, of its shape: name the right output and input in task.args"
            )
        if self.minimise == "bce":
            for what, values in (("the input", wanted), ("the model's output", answer)):
                if not bool(((values >= 0) & (values <= 1)).all()):
                    raise ConfigError(
                        f"{self.name}: {what} has values from {values.min().item():.3g} to {values.max().item():.3g}; "
                        "expected 0 to 1 for minimise: bce; scale the data, end the model in a sigmoid, or minimise mse"
                    )
        parts = [name in outputs.tensors for name in (self.mean, self.log_variance)]
        if (self.metric == "kl" and not all(parts)) or parts[0] != parts[1]:
            raise ConfigError(
                f"{self.name}: the model's outputs are {', '.join(outputs.tensors)}; expected both {self.mean!r} and "
                f"{self.log_variance!r} for the divergence, or neither: name them in task.args"
            )

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        error, divergence = self.parts(outputs, batch)
        return (error if divergence is None else error + self.beta * divergence).mean()

    def parts(self, outputs: Outputs, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Reconstruction error and divergence of every sample, [batch] each, both a number of the input."""
        import torch.nn.functional as F

        answer, wanted = self.answer(outputs), self.wanted(batch)
        compared = F.mse_loss if self.minimise == "mse" else F.binary_cross_entropy
        error = compared(answer, wanted.to(answer.dtype), reduction="none").flatten(1).mean(1)
        if self.mean not in outputs.tensors:
            return error, None
        mean, log_variance = (outputs.tensors[name].flatten(1) for name in (self.mean, self.log_variance))
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
        return error, divergence / wanted[0].numel()

    def wanted(self, batch: Batch) -> Tensor:
        name = self.input or next(iter(batch.inputs))
        if name not in batch.inputs:
            raise ConfigError(
                f"{self.name}: the model has no input {name!r}; received {', '.join(batch.inputs)}: name one of these in "
                "task.args.input"
            )
        return batch.inputs[name]

    def metrics(self) -> AutoencoderMetrics:
        return AutoencoderMetrics(self)


class AutoencoderMetrics:
    """``reconstruction``, ``kl`` where the model has a divergence, and ``negative_elbo``, their sum with ``beta``;
    each a mean over samples, a number of the input.
    """

    def __init__(self, task: Autoencoder) -> None:
        self._task = task
        self._each: dict[str, list[np.ndarray]] = {name: [] for name in task.figures}

    def update(self, outputs: Outputs, batch: Batch) -> None:
        error, divergence = self._task.parts(outputs, batch)
        whole = error if divergence is None else error + self._task.beta * divergence
        found = {"reconstruction": error, "kl": divergence, "negative_elbo": whole}
        for name, values in found.items():
            if values is not None:
                self._each[name].append(values.detach().cpu().double().numpy())

    def compute(self) -> dict[str, float]:
        return known(
            **{name: float(np.concatenate(v).mean()) if v else None for name, v in self._each.items()}
        )

    def scores(self) -> np.ndarray | None:
        """The primary metric of every sample, in order."""
        return np.concatenate(self._each[self._task.metric])
