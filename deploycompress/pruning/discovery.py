"""The dependency groups of a model, each one tried out; what cannot be pruned is named with its reason."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import starmap

from torch import nn

from deploycompress.contracts import Model
from deploycompress.pruning.groups import ChannelGroup, Found, Unpruned
from deploycompress.pruning.labelled_groups import ROOTS, labelled_groups
from deploycompress.pruning.layers import Layer, describe
from deploycompress.pruning.propagation import OUTPUT
from deploycompress.pruning.screening import screen


def find_groups(module: nn.Module, model: Model, exclude: Sequence[str] = ()) -> Found:
    """Every group of ``module`` that can be pruned: traced, checked and tried out on random inputs.

    Labels that travel through a forward pass show most groups; where they do not, the dependency graph is
    asked. ``exclude``: patterns (``layer4.*``) of layers whose output channels stay. Nothing is raised for a
    model that cannot be pruned: all its layers are then left whole.
    """
    candidates, unpruned = labelled_groups(module, model, exclude)
    good, failed = screen(module, model, candidates)
    reasons = {u.layer: u.reason for u in (*unpruned, *failed)}
    if set(reasons.values()) - {OUTPUT}:
        from deploycompress.pruning.graph_groups import trace_groups  # 2 s to import

        others = [g for g in trace_groups(module, model, exclude)[0] if g.id in reasons and _apart(g, good)]
        found, _ = screen(module, model, others, beside=good)
        good += found
        for group in found:
            for member in group.members:
                reasons.pop(member.layer, None) if member.axis == "out" else None
    order = {name: i for i, (name, _) in enumerate(module.named_modules())}
    good.sort(key=lambda group: order[group.id])
    every = sorted(starmap(Unpruned, reasons.items()), key=lambda u: order.get(u.layer, -1))
    return Found(tuple(good), tuple(every))


def _apart(group: ChannelGroup, others: Sequence[ChannelGroup]) -> bool:
    """Whether no position of ``group`` is in another group."""
    taken = {
        (m.layer, m.axis, position) for g in others for m in g.members for position in m.positions.tolist()
    }
    return not any(
        (m.layer, m.axis, position) in taken for m in group.members for position in m.positions.tolist()
    )


def producing_layers(module: nn.Module) -> Iterator[tuple[str, int]]:
    """Path and output width of every convolution and linear layer, in order."""
    for name, part in module.named_modules():
        if isinstance(part, ROOTS):
            layer = describe(part)
            width = layer.widths["out"] if isinstance(layer, Layer) else int(part.weight.shape[0])
            yield name, width
