"""The processes that train one network together, on Accelerate; one alone is the plain case."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import broadcast, convert_to_fp32
from torch import Tensor, nn

from deploycompress.errors import ConfigError
from deploycompress.measure.environment import BF16, cpu_flags
from deploycompress.recovery.allocation import keep_freed_memory
from deploycompress.recovery.recipe import Recipe

WAIT = timedelta(hours=2)  # for a process that validates alone; one that has died is noticed at once
BUCKET = 2**24  # elements that are reduced together: as many copies of gradients as are in memory at once


def device() -> torch.device:
    """Where training happens: what Accelerate finds."""
    found: torch.device = _state().device
    return found


def keeps_result() -> bool:
    """Whether this process is the one on its machine whose network is kept; alone it is."""
    kept: bool = _state().is_local_main_process
    return kept


def _state() -> PartialState:
    # torchrun's variables alone do not make Accelerate take gloo; `cpu` does.
    on_cpu = torch.distributed.is_torchelastic_launched() and not torch.cuda.is_available()
    return PartialState(cpu=on_cpu, timeout=WAIT)


class Processes:
    """Who trains, on what, and with which precision. Every process holds the whole network.

    Gradients are summed here and not by DistributedDataParallel: adapters beside the network, penalties on its
    weights, parameters that a batch does not reach, and hooks on its modules by path all work as in one process;
    and each process counts by the samples it has, so that the sum is right for a batch that does not divide. A loss
    that is a mean over something else than samples (tokens, pixels with a label) is nearly so.
    """

    def __init__(self, recipe: Recipe) -> None:
        state = _state()
        if recipe.mixed_precision == "fp16" and state.device.type == "cpu":
            raise ConfigError("mixed_precision: fp16 needs an accelerator; on a CPU use bf16, or no")
        # Both are singletons, which refuse another precision than that of an earlier training in this process.
        AcceleratorState._reset_state()
        GradientState._reset_state()
        on_cpu = state.device.type == "cpu"
        if on_cpu:
            keep_freed_memory()
        self.accelerator = Accelerator(mixed_precision=recipe.mixed_precision, cpu=on_cpu, **_logging(recipe))
        self.device: torch.device = self.accelerator.device
        if self.scaler is not None:  # or a process without samples in its first step has no scale
            self.scaler.scale(torch.zeros((), device=self.device))
        self.count: int = self.accelerator.num_processes
        self.rank: int = self.accelerator.process_index
        # Each machine keeps its own files, so that none needs a folder that all of them see.
        self.writes: bool = self.accelerator.is_local_main_process

    @property
    def slowed(self) -> str | None:
        """Why the precision that was asked for costs time on this device instead of saving it; None: it does not."""
        if self.device.type != "cpu" or self.accelerator.mixed_precision != "bf16" or BF16 & set(cpu_flags()):
            return None
        return (
            "mixed_precision: bf16 is emulated on this processor, which has no instructions for it; with AVX2 alone a "
            "ResNet-20 trains twelve times slower in it than without: leave mixed_precision out here"
        )

    @property
    def exact(self) -> torch.dtype:
        """Of sums over many samples; Apple's GPUs have no float64."""
        return torch.float32 if self.device.type == "mps" else torch.float64

    @property
    def scaler(self) -> Any:
        """What keeps float16 gradients from vanishing; None with any other precision."""
        return self.accelerator.scaler

    def autocast(self) -> AbstractContextManager[None]:
        context: AbstractContextManager[None] = self.accelerator.autocast()
        return context

    def backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)

    def cut(self, size: int) -> tuple[int, int]:
        """From which to which of a batch of ``size`` samples are this process's; (size, size) where it has none.

        Two at least, where the batch has two: batch normalisation has no variance of one.
        """
        parts = min(self.count, max(1, size // 2))
        if self.rank >= parts:
            return size, size
        return size * self.rank // parts, size * (self.rank + 1) // parts

    def reduce(self, parameters: Sequence[nn.Parameter], figures: Tensor) -> Tensor:
        """Sum the gradients over all processes, in place; gives back the sum of ``figures`` ([n], of ``exact``)."""
        if self.count == 1:
            return figures
        for bucket in _buckets(parameters):
            # A parameter that only another process's samples reached has no gradient here.
            flat = torch.cat([_gradient(p).reshape(-1) for p in bucket])
            torch.distributed.all_reduce(flat)
            place = 0
            for parameter in bucket:
                parameter.grad = flat[place : place + parameter.numel()].view_as(parameter).clone()
                place += parameter.numel()
        torch.distributed.all_reduce(figures)
        return figures

    def agree(self, values: Sequence[float]) -> list[float]:
        """The first process's numbers, in all of them."""
        if self.count == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=self.exact, device=self.device)
        result: list[float] = broadcast(tensor).tolist()
        return result

    def lowest(self, value: int) -> int:
        """The lowest of all processes' numbers."""
        if self.count == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.int64, device=self.device)
        torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MIN)
        return int(tensor)

    def spread(self, module: nn.Module) -> None:
        """The first process's parameters and buffers into all others."""
        if self.count > 1:
            with torch.no_grad():
                for tensor in [*module.parameters(), *module.buffers()]:
                    torch.distributed.broadcast(tensor.data, 0)


@contextmanager
def float32_outputs(net: nn.Module, recipe: Recipe) -> Iterator[None]:
    """Inside, a network that computes in mixed precision answers in float32, in which losses are taken."""
    if recipe.mixed_precision == "no":
        yield
        return
    hook = net.register_forward_hook(lambda module, inputs, output: convert_to_fp32(output))
    try:
        yield
    finally:
        hook.remove()


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    bucket: list[nn.Parameter] = []
    size = 0
    for parameter in parameters:
        if bucket and (size + parameter.numel() > BUCKET or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        size += parameter.numel()
    if bucket:
        yield bucket


def _gradient(parameter: nn.Parameter) -> Tensor:
    return parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)


def _logging(recipe: Recipe) -> dict[str, Any]:
    return {"log_with": list(recipe.track), "project_dir": recipe.track_folder} if recipe.track else {}
