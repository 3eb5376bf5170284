"""Weights fitted anew, without training, to make up for the inputs that pruning took away."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import ceil, inf
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from deploycompress.contracts import Batch, Note
from deploycompress.errors import StageFailed
from deploycompress.pruning.activations import channels_last, watching
from deploycompress.pruning.groups import ChannelGroup, Kept, removed_positions
from deploycompress.pruning.shared import shared_layers
from deploycompress.recovery.evaluation import device_of

POSITIONS = 8192  # samples of a layer's inputs and outputs, over all batches
LEAST_ROWS = 2  # of them for each unknown of an output: a classifier would fit the noise of its few samples
LARGEST = 8192  # inputs of one output: the normal equations take its square in memory, its cube in time
RIDGE = 1e-2  # of the mean squared input; keeps the fit near the weights where the data say little

Call = Callable[[nn.Module, Mapping[str, Tensor]], Any]

METHODS = ("forward", "_conv_forward")
KNOWN = {
    tuple(getattr(kind, name, None) for name in METHODS)
    for kind in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
}


@dataclass(frozen=True)
class Compensation:
    """What was fitted: layer -> squared error of its output, before and after, as a share of its output's square.

    ``notes``: the layers that were left as they are, and why.
    """

    errors: Mapping[str, tuple[float, float]]
    notes: tuple[Note, ...]


def compensate(
    pruned: nn.Module,
    unpruned: nn.Module,
    groups: Sequence[ChannelGroup],
    kept: Kept,
    batches: Sequence[Batch],
    call: Call,
    *,
    positions: int = POSITIONS,
    ridge: float = RIDGE,
) -> Compensation:
    """Fit every layer of ``pruned`` that lost inputs to what it gives in ``unpruned``, in place.

    Each convolution and linear layer that read a removed channel gets the weights, and the bias where it has
    one, that minimise |X W' - Y|^2 + l |W' - W|^2: X is what it reads in the pruned network, Y what it gives in
    the unpruned one, W what pruning left (He et al., "Channel Pruning for Accelerating Very Deep Neural
    Networks", equation 3; Kwon et al., "A Fast Post-Training Pruning Framework for Transformers", section 4.3).
    Layers follow one another as they run, so each makes up for what those before it could not.
    ``groups``, ``kept``: as they were applied to ``unpruned``, which is put into evaluation mode where ``pruned`` is.
    ``batches`` need no labels. Batch normalisation should be estimated anew afterwards. Raises StageFailed without a batch, and for inputs that are not finite.
    """
    if not batches:
        raise StageFailed("weights cannot be fitted anew without a batch; the data are empty")
    removed = removed_positions(groups, kept)
    shared = shared_layers(pruned)
    reasons: dict[str, str] = {}
    readers = set()
    for name, part in pruned.named_modules():  # what is not there went with its block
        if (name, "in") in removed:
            reason = _unfit(part) or ("another layer uses its weight too" if name in shared else None)
            if reason is None:
                readers.add(name)
            else:
                reasons[name] = reason
    device = device_of(pruned)
    unpruned = unpruned.to(device).eval()
    pruned.eval()
    errors: dict[str, tuple[float, float]] = {}
    with torch.no_grad():
        calls = _calls(unpruned, readers, batches[0].to(device), call)
        reasons |= dict.fromkeys(
            sorted(readers - calls.keys()), "its forward is not called, only its weight read"
        )
        for name, times in calls.items():
            part = pruned.get_submodule(name)
            gone = removed.get((name, "out"), torch.empty(0, dtype=torch.int64)).to(device)
            equations = _Equations.of(part)
            for number, batch in enumerate(batches):
                inputs = batch.to(device).inputs
                wanted = _seen(unpruned, name, times, inputs, call)
                received = _seen(pruned, name, times, inputs, call)
                for (_, target), (given, output) in zip(wanted, received, strict=True):
                    targets = channels_last(part, target)
                    rows = _sample(len(targets), ceil(positions / len(batches) / times), number).to(device)
                    everything = torch.arange(targets.shape[1], device=device)
                    stay = everything[~torch.isin(everything, gone)]
                    equations.add(_patches(part, given, output, rows), targets[rows][:, stay])
            if equations.rows < LEAST_ROWS * equations.unknowns:
                reasons[name] = (
                    f"{equations.rows} samples of what it gives are too few for {equations.unknowns} weights each"
                )
            else:
                errors[name] = equations.solve(name, part, ridge)
    notes = [Note("skipped", f"its weights are not fitted: {why}", name) for name, why in reasons.items()]
    return Compensation(errors, tuple(notes))


def accept_if_better(
    before: nn.Module, after: nn.Module, loss: Callable[[nn.Module], float]
) -> tuple[nn.Module, float, float]:
    """The network of smaller ``loss``, ``before`` unless ``after`` is really better; and both losses.

    A loss that is no number is above every other, and infinite here.
    """
    was, became = (value if value == value else inf for value in (loss(before), loss(after)))
    return (after if became < was else before), was, became


# ---------------------------------------------------------------- what a layer reads and should give


class _Enough(BaseException):
    """Ends a forward pass whose rest is not needed; no Exception, which a model may catch."""


def _calls(unpruned: nn.Module, readers: set[str], batch: Batch, call: Call) -> dict[str, int]:
    """Layer -> how often a forward pass calls it, in the order in which they run."""
    found: Counter[str] = Counter()
    with watching(unpruned, readers, lambda name, given, output: found.update([name])):
        call(unpruned, batch.inputs)
    return dict(found)


def _seen(
    module: nn.Module, name: str, times: int, inputs: Mapping[str, Tensor], call: Call
) -> list[tuple[Tensor, Tensor]]:
    """What layer ``name`` reads and gives in each of its ``times`` calls."""
    found: list[tuple[Tensor, Tensor]] = []

    def watch(_: str, given: Tensor, output: Tensor) -> None:
        found.append((given.clone(), output.clone()))  # what follows may work in place
        if len(found) == times:
            raise _Enough

    with watching(module, [name], watch), suppress(_Enough):
        call(module, inputs)
    return found


def _unfit(part: nn.Module) -> str | None:
    if isinstance(part, _ConvTransposeNd):
        return "it is a transposed convolution"
    if not isinstance(part, (_ConvNd, nn.Linear)):
        return f"it is a {type(part).__name__}"
    if not _computes_as_usual(part):
        return f"it is a {type(part).__name__}, which computes in a way of its own"
    if "weight" not in part._parameters:
        return "its weight is computed from other parameters"
    if not part.weight.numel():
        return "it has no weights"
    inputs = part.weight[0].numel()
    return f"an output of it reads {inputs} inputs, more than {LARGEST}" if inputs > LARGEST else None


def _computes_as_usual(part: nn.Module) -> bool:
    """A subclass may pad, or standardise its weight, in a ``forward`` of its own."""
    own = tuple(getattr(type(part), name, None) for name in METHODS)
    return own in KNOWN and not any(name in vars(part) for name in METHODS)


def _sample(count: int, most: int, seed: int) -> Tensor:
    """Some of ``count`` rows, the same for the same ``seed``."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:most]


def _patches(part: nn.Module, given: Tensor, output: Tensor, rows: Tensor) -> Tensor:
    """[rows, runs, inputs of one output] what the layer reads for these positions of its output."""
    if not isinstance(part, _ConvNd):
        return channels_last(part, given)[rows][:, None]
    if given.ndim < part.weight.ndim:
        given, output = given[None], output[None]
    mode = "constant" if part.padding_mode == "zeros" else part.padding_mode
    padded = nn.functional.pad(given, part._reversed_padding_repeated_twice, mode)
    sample, *places = torch.unravel_index(rows, (output.shape[0], *output.shape[2:]))
    dims = len(places)
    window: list[Tensor] = []
    for d, place in enumerate(places):
        offsets = torch.arange(part.kernel_size[d], device=rows.device) * part.dilation[d]
        along = place[:, None] * part.stride[d] + offsets
        window.append(along.reshape(len(rows), *(-1 if i == d else 1 for i in range(dims))))
    # The indices stand apart, so that the channels come last: [rows, *kernel, channels].
    at: tuple[Any, ...] = (sample.reshape(-1, *[1] * dims), slice(None), *window)
    found = padded[at]
    return found.movedim(-1, 1).reshape(len(rows), part.groups, -1)


# ---------------------------------------------------------------- the fit


@dataclass
class _Equations:
    """Normal equations of a layer, one system for each run of a grouped convolution; float64.

    ``bias``: whether the last unknown is the layer's bias.
    """

    inputs: Tensor  # X'X  [runs, unknowns, unknowns]
    mixed: Tensor  # X'Y  [runs, unknowns, outputs of a run]
    outputs: float  # |Y|^2
    bias: bool
    rows: int = 0  # samples so far

    @property
    def unknowns(self) -> int:
        return self.inputs.shape[1]

    @classmethod
    def of(cls, part: nn.Module) -> _Equations:
        runs, bias = getattr(part, "groups", 1), part.bias is not None
        weight: Any = part.weight
        unknowns, outputs = weight[0].numel() + bias, len(weight) // runs
        zeros = partial(torch.zeros, dtype=torch.float64, device=weight.device)
        return cls(zeros(runs, unknowns, unknowns), zeros(runs, unknowns, outputs), 0.0, bias)

    def add(self, read: Tensor, target: Tensor) -> None:
        """``read`` [rows, runs, inputs], ``target`` [rows, outputs of all runs]"""
        rows, runs, _ = read.shape
        self.rows += rows
        x = read.double().transpose(0, 1)
        if self.bias:
            x = torch.cat([x, x.new_ones(runs, rows, 1)], 2)
        y = target.double().reshape(rows, runs, -1).transpose(0, 1)
        self.inputs += x.transpose(1, 2) @ x
        self.mixed += x.transpose(1, 2) @ y
        self.outputs += float(y.square().sum())

    def solve(self, name: str, part: nn.Module, ridge: float) -> tuple[float, float]:
        """Put the solution into ``part``; the errors before and after. Raises StageFailed."""
        if not bool(torch.isfinite(self.inputs).all() and torch.isfinite(self.mixed).all()):
            raise StageFailed(
                f"the weights of {name} cannot be fitted: what it reads or gives is not finite; look at the data"
            )
        weight: Any = part.weight
        runs, unknowns, outputs = self.mixed.shape
        old = weight.double().reshape(runs, outputs, -1)
        if self.bias:
            old = torch.cat([old, part.bias.double().reshape(runs, outputs, 1)], 2)  # type: ignore[operator]
        old = old.transpose(1, 2)
        size = self.inputs.diagonal(dim1=1, dim2=2)[:, : unknowns - self.bias].mean(1)
        strength = torch.where(size > 0, ridge * size, 1.0)[:, None].repeat(1, unknowns)
        if self.bias:
            strength[:, -1] = 0.0
        factor = torch.linalg.cholesky(self.inputs + torch.diag_embed(strength))
        new = torch.cholesky_solve(self.mixed + strength[:, :, None] * old, factor)
        flat = new.transpose(1, 2).reshape(runs * outputs, unknowns)
        weight.copy_(flat[:, : unknowns - self.bias].reshape(weight.shape))
        if self.bias:
            part.bias.copy_(flat[:, -1])  # type: ignore[operator]
        return self._error(old), self._error(new)

    def _error(self, solution: Tensor) -> float:
        apart = (solution * (self.inputs @ solution - 2 * self.mixed)).sum() + self.outputs
        return float(apart) / max(self.outputs, 1e-300)
