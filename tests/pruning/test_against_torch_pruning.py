"""Our groups held against Torch-Pruning's dependency graph, on networks that it follows."""

import pytest
import torch
from torch import nn

from deploycompress.config.schema import InputSpec, ModelConfig
from deploycompress.model.source import SourceModel
from deploycompress.pruning.discovery import find_groups

torch_pruning = pytest.importorskip("torch_pruning")
pytest.importorskip("torchvision")

LAYERS = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)


def theirs(graph, names, layer):
    """(layer, axis) of everything that goes with the first output channel of ``layer``."""
    group = graph.get_pruning_group(layer, torch_pruning.prune_conv_out_channels, idxs=[0])
    found = set()
    for dependency, _ in group:
        module = dependency.target.module
        if isinstance(module, LAYERS):
            reads = graph.is_in_channel_pruning_fn(dependency.handler)
            both = graph.is_out_channel_pruning_fn(dependency.handler)
            found.add((names[module], "in" if reads and not both else "out"))
    return found


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "squeezenet1_1", "regnet_x_400mf"])
def test_the_same_layers_hang_together(name):
    inputs = {"image": InputSpec(shape=("batch", 3, 64, 64))}
    model = SourceModel(ModelConfig(build=f"torchvision:{name}", inputs=inputs), 0)
    module = model.build()
    groups = find_groups(module, model).groups
    graph = torch_pruning.DependencyGraph().build_dependency(module, torch.randn(1, 3, 64, 64))
    names = {part: path for path, part in module.named_modules()}
    compared = 0
    for group in groups:
        layer = module.get_submodule(group.id)
        if isinstance(layer, nn.Conv2d) and layer.groups == 1:
            ours = {
                (m.layer, m.axis)
                for m in group.members
                if isinstance(module.get_submodule(m.layer), LAYERS) and 0 in m.channels.tolist()
            }
            assert ours == theirs(graph, names, layer), group.id
            compared += 1
    assert compared >= 8
