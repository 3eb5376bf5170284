"""What was found in an unpruned model: layers with their costs, groups and blocks that can go, and what stays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from deploycompress.config.schema import InputSpec, TargetConfig
from deploycompress.measure.environment import environment
from deploycompress.pruning.groups import Unpruned


@dataclass(frozen=True)
class Layer:
    """A module whose weights are multiplied with; sizes are None where they are no convolution's or product's."""

    layer: str  # module path, empty for the model itself
    kind: str  # its class
    kernel: tuple[int, ...]  # empty for a linear layer
    stride: tuple[int, ...]
    runs: int  # groups of a convolution; as many as channels in a depthwise one
    calls: int  # in one forward pass
    c_in: int | None
    c_out: int | None
    macs: float  # of one sample, all calls together
    params: int
    latency_ms: float | None  # of a batch, all calls together; None where it was not measured
    group_in: tuple[str, ...]  # ids of the groups that its inputs are of; several after a concatenation
    group_out: tuple[str, ...]


@dataclass(frozen=True)
class GroupShare:
    """A dependency group, and the part of the model in which its channels are factors."""

    id: str
    width: int
    layers: tuple[str, ...]  # those that make its channels
    heads: int | None  # whole attention heads go; None: single channels
    grid: tuple[int, ...]  # widths it could have
    macs: float
    params: float
    latency_ms: float | None


@dataclass(frozen=True)
class BlockShare:
    """A block that can be taken out, and what would go with it."""

    id: str
    layers: tuple[str, ...]  # those of ``Inspection.layers`` that lie in it
    macs: float
    params: float
    latency_ms: float | None


@dataclass(frozen=True)
class Whole:
    """The unpruned model; ``layers_ms`` is the sum over its layers, each measured by itself."""

    macs: float  # of one sample
    params: float
    bytes: float  # of parameters and buffers
    latency_ms: float | None  # p50 of a batch
    layers_ms: float | None


@dataclass(frozen=True)
class Inspection:
    build: str
    inputs: Mapping[str, InputSpec]
    batch_size: int
    target: TargetConfig | None  # None: nothing was measured
    whole: Whole
    layers: tuple[Layer, ...]  # in the order of their first calls
    groups: tuple[GroupShare, ...]
    blocks: tuple[BlockShare, ...]
    unpruned: tuple[Unpruned, ...]
    notes: tuple[str, ...]  # what was not measured, or not now, and why

    def to_json(self) -> dict[str, Any]:
        """One object.

        ``build``; ``inputs``: by name ``shape`` (the batch as it was given), ``dtype``, ``max``;
        ``target``: what was measured on (``device``, ``runtime``, ``provider``, ``precision``, ``threads``,
        ``batch_size``), null without measurement; ``unpruned_totals``: ``macs`` (of one sample, as everywhere),
        ``params``, ``bytes``, ``latency_ms`` (p50 of a batch), ``layers_ms`` (the sum over the layers);
        ``layers``: ``Layer``; ``groups``: ``GroupShare``; ``blocks``: ``BlockShare``; ``unpruned``: ``layer``,
        ``reason``; ``notes``; ``environment``. A latency that was not measured is null.
        """
        shapes = {name: [self.batch_size, *spec.shape[1:]] for name, spec in self.inputs.items()}
        return {
            "build": self.build,
            "inputs": {
                name: {"shape": shapes[name], "dtype": spec.dtype, "max": spec.max}
                for name, spec in self.inputs.items()
            },
            "target": None if self.target is None else self.target.model_dump(mode="json"),
            "unpruned_totals": asdict(self.whole),
            "layers": [asdict(layer) for layer in self.layers],
            "groups": [asdict(group) for group in self.groups],
            "blocks": [asdict(block) for block in self.blocks],
            "unpruned": [{"layer": u.layer, "reason": u.reason} for u in self.unpruned],
            "notes": list(self.notes),
            "environment": environment(),
        }
