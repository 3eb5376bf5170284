"""A model as JSON, by which a process that has nothing but a checkpoint's folder puts the network together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from deploycompress.config.schema import InputSpec, ModelConfig, Network
from deploycompress.model import checkpoint
from deploycompress.model.source import SourceModel


def load(
    folder: Path, recipe: Mapping[str, Any]
) -> tuple[nn.Module, dict[str, tuple[str, tuple[int | str, ...]]], Callable[..., Any]]:
    """The network kept in ``folder``, its inputs (type and shape), and how it is called on named tensors.

    ``recipe``: what ``contracts.Model.recipe`` gives. Raises as ``checkpoint.load`` does.
    """
    config = ModelConfig.model_validate(recipe["config"])
    others = [Network.model_validate(other) for other in recipe["others"]]
    model = SourceModel(config, recipe["seed"], [Path(p) for p in recipe["search_path"]], others)
    inputs = {name: _described(spec) for name, spec in model.inputs.items()}
    return checkpoint.load(folder, model), inputs, model.call


def _described(spec: InputSpec) -> tuple[str, tuple[int | str, ...]]:
    return spec.dtype, spec.shape
