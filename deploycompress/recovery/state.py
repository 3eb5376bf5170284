"""Everything that a training has come to: taken for a checkpoint, and put back from one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from deploycompress.errors import StageFailed
from deploycompress.recovery.average import Average

History = list[dict[str, float]]


@dataclass
class Progress:
    """How far a training is, in plain numbers. ``index``: optimiser steps done in the epoch that runs."""

    epoch: int = 0  # that are done
    index: int = 0
    samples: int = 0  # of this epoch
    loss: float = 0.0  # of this epoch, the sum over its samples
    shaped: bool = False  # whether what is done after an epoch is done
    peak: float = 0.0  # the highest rate, as configured or probed
    factor: float = 1.0  # of the rate: half of it after each roll-back
    rolled_back: int = 0
    pieces: int = 1  # that a batch is cut into
    skipped: int = 0  # steps in a row without an update, since float16 gradients were too large
    usual_loss: float = 0.0  # of the first steps, a mean
    recent_loss: float = 0.0  # a moving average
    seconds: float = 0.0  # spent, over all processes that did a part
    best: float | None = None
    best_epoch: int = 0
    history: History = field(default_factory=list)


@dataclass
class Training:
    """What trains: the network, and what goes with it. ``beside``: an objective's own modules.

    ``parts``: objective and penalty, of which those with ``state()`` and ``restore(state)`` are kept: plain numbers.
    """

    net: nn.Module
    beside: nn.Module | None
    optimizer: torch.optim.Optimizer
    average: Average | None
    scaler: Any
    parts: Mapping[str, Any]
    per_epoch: int  # optimiser steps
    best: dict[str, Tensor] = field(default_factory=dict)  # the best epoch's network, on the CPU
    progress: Progress = field(default_factory=Progress)

    @property
    def done(self) -> int:
        """Optimiser steps that are done."""
        return self.progress.epoch * self.per_epoch + self.progress.index

    @property
    def shown(self) -> nn.Module:
        """The network that is validated and kept."""
        return self.net if self.average is None else self.average.net

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name; they share memory with what trains."""
        found = {f"{kind}.{name}": tensor for kind, name, tensor in self._modules()}
        found |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        for number, values in self.optimizer.state_dict()["state"].items():
            found |= {f"optimizer.{number}.{k}": v for k, v in values.items() if isinstance(v, Tensor)}
        return found

    def numbers(self) -> dict[str, Any]:
        """What is not a tensor, as JSON. Random numbers are not in it: those of a step follow from its number."""
        state = self.optimizer.state_dict()["state"]
        return {
            "progress": asdict(self.progress),
            "optimizer": {
                str(number): {k: v for k, v in values.items() if not isinstance(v, Tensor)}
                for number, values in state.items()
            },
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "parts": {n: dict(part.state()) for n, part in self.parts.items() if hasattr(part, "state")},
        }

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Put back what ``tensors`` and ``numbers`` gave. Raises StageFailed where they are of another training."""
        own = {f"{kind}.{name}" for kind, name, _ in self._modules()}
        kept = {name for name in tensors if not name.startswith(("best.", "optimizer."))}
        if own != kept:
            odd = sorted(own ^ kept)[0]
            raise StageFailed(f"a checkpoint does not fit what is trained ({odd}); remove it from the store")
        with torch.no_grad():
            for kind, name, tensor in self._modules():
                tensor.copy_(tensors[f"{kind}.{name}"])
        self.best = _below("best.", tensors)
        self._restore_optimizer(tensors, numbers["optimizer"])
        if self.scaler is not None:
            self.scaler.load_state_dict(numbers["scaler"])
        for name, state in numbers["parts"].items():
            self.parts[name].restore(state)
        self.progress = Progress(**numbers["progress"])

    def keep_best(self) -> None:
        self.best = {name: t.detach().cpu().clone() for name, t in _named(self.shown)}

    def put_best(self) -> None:
        """The best epoch's network into the one that is shown."""
        with torch.no_grad():
            for name, tensor in _named(self.shown):
                tensor.copy_(self.best[name])

    def settle(self) -> None:
        """The network that is shown into the one that was given."""
        if self.average is not None:
            with torch.no_grad():
                for (_, own), (_, other) in zip(_named(self.net), _named(self.average.net), strict=True):
                    own.copy_(other)

    def _modules(self) -> Iterator[tuple[str, str, Tensor]]:
        average = None if self.average is None else self.average.net
        for kind, module in (("net", self.net), ("beside", self.beside), ("average", average)):
            if module is not None:
                for name, tensor in _named(module):
                    yield kind, name, tensor

    def _restore_optimizer(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        state: dict[int, dict[str, Any]] = {int(number): dict(values) for number, values in numbers.items()}
        for name, tensor in _below("optimizer.", tensors).items():
            number, _, key = name.partition(".")
            state.setdefault(int(number), {})[key] = tensor.clone()
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})


def _named(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers, those that are not persistent included; a shared one once."""
    yield from module.named_parameters()
    yield from module.named_buffers()


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
