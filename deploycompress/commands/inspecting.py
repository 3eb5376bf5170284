"""Inspects an unpruned model: its operators are measured one by one, and it as a whole; all else is counted."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from deploycompress.commands.inspection import BlockShare, GroupShare, Inspection, Layer, Whole
from deploycompress.config.schema import InputSpec, ModelConfig, TargetConfig
from deploycompress.contracts import Model, Store
from deploycompress.devices.jobs import Progress
from deploycompress.devices.profiles import NotProfiled
from deploycompress.errors import ConfigError, DeployCompressError, EnvironmentMissing, StageFailed
from deploycompress.graph.operators import Operator
from deploycompress.model.source import SourceModel
from deploycompress.pruning.axes import AxisWidth
from deploycompress.pruning.blocks import Block, find_blocks
from deploycompress.pruning.costs import WidthCosts
from deploycompress.pruning.discovery import find_groups, producing_layers
from deploycompress.pruning.groups import ChannelGroup, on_grid
from deploycompress.pruning.latency.bench import Place
from deploycompress.pruning.latency.rows import Row, rows
from deploycompress.pruning.latency.table import Latencies, measured_table
from deploycompress.pruning.latency.whole import WholeModels
from deploycompress.pruning.multiplications import Multiplications, multiplications
from deploycompress.pruning.planning import ALIGN
from deploycompress.registry import RUNTIMES

BLOCKS, BLOCK_MS = 10, 100.0  # of the whole model's measurement
KEPT = "The layers' times were kept from an earlier measurement; the whole model was measured now."


def inspect_model(
    build: str,
    inputs: Mapping[str, InputSpec],
    batch_size: int,
    target: TargetConfig | None,
    store: Store,
    progress: Progress,
) -> Inspection:
    """``build`` with random weights, counted, and measured at ``target`` where one is given.

    Raises ConfigError when there is no such model, StageFailed when it does not run on these inputs,
    EnvironmentMissing when a library or the device is not to be had.
    """
    model = SourceModel(ModelConfig(build=build, args={}, weights=None, inputs=dict(inputs)), 0, [Path.cwd()])
    place = None if target is None else _place(target)
    module = model.build()
    _run(module, model, batch_size)
    found = find_groups(module, model)
    groups = on_grid(found.groups, ALIGN)
    blocks = find_blocks(module, model, groups)
    table = rows(module, model, groups, batch_size)
    times = _Times({}, None, ())
    if place is not None:
        times = _measure(module, model, [row.operator for row in table], place, store, progress)
    layers = _layers(module, table, multiplications(module, model), times.operators)
    costs = WidthCosts(module, groups, model, blocks)
    full = costs.full
    whole = Whole(full["macs"], full["params"], full["size"], times.whole_ms, _sum_ms(layers))
    return Inspection(
        build,
        inputs,
        batch_size,
        target,
        whole,
        layers,
        tuple(_group_share(group, module, groups, costs, table, times.operators) for group in groups),
        tuple(_block_share(block, groups, costs, layers) for block in blocks),
        found.unpruned,
        times.notes,
    )


def _place(target: TargetConfig) -> Place:
    runtime = RUNTIMES.load(target.runtime)()
    missing = runtime.missing()
    if missing:
        raise EnvironmentMissing(f"the runtime {target.runtime} cannot run here: {missing}")
    return Place.of(target)


def _run(module: nn.Module, model: Model, batch_size: int) -> None:
    """One forward pass on random inputs. Raises ConfigError with its reason."""
    try:
        with torch.no_grad():
            model.call(module, model.example(batch_size))
    except DeployCompressError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or ["no message"])[0]
        raise ConfigError(
            f"the forward pass on random inputs failed: {type(error).__name__}: {reason}; check --input"
        ) from error


# ---------------------------------------------------------------- measured


@dataclass(frozen=True)
class _Times:
    operators: Latencies  # empty where they were not measured
    whole_ms: float | None
    notes: tuple[str, ...]


def _measure(
    module: nn.Module,
    model: Model,
    operators: Sequence[Operator],
    place: Place,
    store: Store,
    progress: Progress,
) -> _Times:
    notes: list[str] = []
    told: list[str] = []

    def tell(done: float, message: str) -> None:
        told.append(message)
        progress(done, message)

    found: Latencies = {}
    try:
        found = measured_table(operators, operators, place, store, tell) if operators else {}
        if operators and not told:
            notes.append(KEPT)
    except NotProfiled as reason:
        notes.append(f"No times of layers: {reason}")
    whole_ms = None
    with tempfile.TemporaryDirectory(prefix="deploycompress-inspect-") as folder:
        progress(0.0, "exporting and measuring the whole model")
        try:
            whole = WholeModels(module, module, model, (), (), place, Path(folder), progress)
            whole.measure((), blocks=BLOCKS, block_ms=BLOCK_MS)
            whole_ms = whole.unpruned_ms
            notes += [f"While the whole model was measured: {note}." for note in whole.notes]
        except StageFailed as reason:
            notes.append(f"The whole model was not measured: {reason}")
    return _Times(found, whole_ms, tuple(notes))


# ---------------------------------------------------------------- counted


def _layers(
    module: nn.Module, table: Sequence[Row], counted: Multiplications, latencies: Latencies
) -> tuple[Layer, ...]:
    """A layer for every module whose parameters are multiplied with, in the order of the calls."""
    calls: defaultdict[str, list[Row]] = defaultdict(list)
    for row in table:
        calls[row.operator.layer].append(row)
    macs: defaultdict[str, float] = defaultdict(float)
    for name, count in counted.of_parameter.items():
        macs[name.rpartition(".")[0]] += count
    params = _own_parameters(module)
    names = dict.fromkeys([*calls, *macs])
    return tuple(_layer(n, module.get_submodule(n), calls[n], macs[n], params[n], latencies) for n in names)


def _layer(
    name: str, part: nn.Module, calls: Sequence[Row], macs: float, params: int, latencies: Latencies
) -> Layer:
    operators = [row.operator for row in calls]
    first = max(operators, key=lambda op: op.macs, default=None)
    out = _ids(row.outputs for row in calls)
    depthwise = first is not None and first.depthwise
    return Layer(
        layer=name,
        kind=type(part).__name__,
        kernel=first.kernel if first else (),
        stride=first.stride if first else (),
        runs=first.groups if first else 1,
        calls=len(calls),
        c_in=first.c_in if first else None,
        c_out=first.c_out if first else None,
        macs=macs,
        params=params,
        latency_ms=sum(latencies[op.anywhere()] for op in operators) if latencies and operators else None,
        group_in=out if depthwise else _ids(row.inputs for row in calls),
        group_out=out,
    )


def _ids(axes: Iterable[AxisWidth | None]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(id for axis in axes if axis is not None for id in axis.per_channel))


def _own_parameters(module: nn.Module) -> dict[str, int]:
    """Module path -> elements of its own parameters; one that is shared counts where it comes first."""
    seen: set[int] = set()
    found: dict[str, int] = {}
    for name, part in module.named_modules():
        own = {id(p): p.numel() for p in part.parameters(recurse=False) if id(p) not in seen}
        seen |= own.keys()
        found[name] = sum(own.values())
    return found


def _group_share(
    group: ChannelGroup,
    module: nn.Module,
    groups: Sequence[ChannelGroup],
    costs: WidthCosts,
    table: Sequence[Row],
    latencies: Latencies,
) -> GroupShare:
    """What would not be there if the group had no channel: what its channels are factors of."""
    full = {g.id: g.width for g in groups}
    without = {**full, group.id: 0}
    cost, ms = costs.at(without), None
    if latencies:
        ms = sum(_part(row, without, full) * latencies[row.operator.anywhere()] for row in table)
    members = {member.layer for member in group.members if member.axis == "out"}
    return GroupShare(
        id=group.id,
        width=group.width,
        layers=tuple(layer for layer, _ in producing_layers(module) if layer in members),
        heads=None if group.heads is None else group.steps,
        grid=group.grid,
        macs=costs.full["macs"] - cost["macs"],
        params=costs.full["params"] - cost["params"],
        latency_ms=ms,
    )


def _part(row: Row, without: Mapping[str, int], full: Mapping[str, int]) -> float:
    """The share of an operator's products that go with these widths."""
    before_in, before_out = row.widths(full, full)
    c_in, c_out = row.widths(without, full)
    if row.operator.depthwise:
        return 1 - c_out / before_out
    return 1 - (c_in * c_out) / (before_in * before_out)


def _block_share(
    block: Block, groups: Sequence[ChannelGroup], costs: WidthCosts, layers: Sequence[Layer]
) -> BlockShare:
    cost = costs.at({**{g.id: g.width for g in groups}, block.id: 0})
    inside = [layer for layer in layers if layer.layer in (block.id, *block.layers)]
    macs, params = (costs.full[name] - cost[name] for name in ("macs", "params"))
    return BlockShare(block.id, tuple(layer.layer for layer in inside), macs, params, _sum_ms(inside))


def _sum_ms(layers: Sequence[Layer]) -> float | None:
    """None where none of them was measured."""
    known = [layer.latency_ms for layer in layers if layer.latency_ms is not None]
    return sum(known) if known else None
