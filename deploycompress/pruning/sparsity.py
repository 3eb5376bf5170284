"""Weight-level sparsity: which single weights become zero, by magnitude."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from deploycompress.pruning.discovery import ROOTS
from deploycompress.pruning.groups import Unpruned
from deploycompress.pruning.layers import Layer, describe

Scope = Literal["global", "layer"]
Masks = Mapping[str, Tensor]  # parameter name -> True where the weight stays

RUN = 4  # weights next to one another along the input dimension, of which ...
KEPT_OF_RUN = 2  # ... so many stay


@dataclass(frozen=True)
class Weights:
    """The weights that may become sparse, by parameter name with the input dimension; and the layers left whole."""

    tensors: Mapping[str, Tensor]
    input_dims: Mapping[str, int | None]  # None: every channel has one input (depthwise)
    whole: tuple[Unpruned, ...]


def find_weights(module: nn.Module, exclude: Sequence[str] = ()) -> Weights:
    """Weights of convolutions and linear layers; biases, normalisations and embeddings are none.

    ``exclude``: patterns (``head``, ``layer4.*``) of layers that stay.
    """
    embedded = {id(part.weight): name for name, part in module.named_modules() if _is_embedding(part)}
    tensors: dict[str, Tensor] = {}
    dims: dict[str, int | None] = {}
    whole: list[Unpruned] = []
    seen: set[int] = set()
    for name, part in module.named_modules():
        if not isinstance(part, ROOTS):
            whole += _other_kind(name, part)
            continue
        weight = part._parameters.get("weight")
        if any(fnmatchcase(name, pattern) for pattern in exclude):
            whole.append(Unpruned(name, "excluded by the configuration"))
        elif weight is None:
            packed = isinstance(part, nn.MultiheadAttention)
            reason = (
                "its projections share one tensor"
                if packed
                else "its weight is computed from other parameters"
            )
            whole.append(Unpruned(name, reason))
        elif id(weight) in embedded:
            whole.append(Unpruned(name, f"shares its weight with the embedding {embedded[id(weight)]}"))
        elif id(weight) not in seen:  # of layers that share one the first
            seen.add(id(weight))
            layer = describe(part)
            key = f"{name}.weight" if name else "weight"
            tensors[key] = weight.detach()
            dims[key] = layer.tensors["weight"].get("in") if isinstance(layer, Layer) else None
    return Weights(tensors, dims, tuple(whole))


def by_magnitude(weights: Mapping[str, Tensor], sparsity: float, scope: Scope) -> dict[str, Tensor]:
    """Masks that close the ``sparsity`` share of weights that is smallest by |w|: of all of them, or of each layer.

    Han et al., "Learning both Weights and Connections for Efficient Neural Networks" (each layer); Zhu, Gupta, "To
    prune, or not to prune" (2017) for the whole network. What is zero already counts and stays zero.
    """
    if scope == "layer":
        return {name: _smallest_gone(weight, sparsity) for name, weight in weights.items()}
    if not weights:
        return {}
    everything = _smallest_gone(torch.cat([w.flatten().float().cpu() for w in weights.values()]), sparsity)
    parts = torch.split(everything, [w.numel() for w in weights.values()])
    return {n: part.reshape(w.shape) for (n, w), part in zip(weights.items(), parts, strict=True)}


def two_of_four(weights: Weights) -> tuple[dict[str, Tensor], tuple[Unpruned, ...]]:
    """Masks that keep the two largest of every four weights along the input dimension; and the layers left whole.

    Mishra et al., "Accelerating Sparse Deep Neural Networks" (2021), section 3. Of equal weights the first stays.
    """
    masks: dict[str, Tensor] = {}
    whole: list[Unpruned] = []
    for name, weight in weights.tensors.items():
        dim = weights.input_dims[name]
        width = 1 if dim is None else weight.shape[dim]
        if dim is None or width % RUN:
            reason = f"its input dimension is {width}, not a multiple of {RUN}"
            whole.append(Unpruned(name.removesuffix("weight").removesuffix("."), reason))
            continue
        last = weight.movedim(dim, -1)
        runs = last.reshape(*last.shape[:-1], -1, RUN)
        order = runs.abs().argsort(dim=-1, descending=True, stable=True)
        stays = torch.zeros_like(runs, dtype=torch.bool).scatter_(-1, order[..., :KEPT_OF_RUN], True)
        masks[name] = stays.flatten(-2).movedim(-1, dim).contiguous()
    return masks, tuple(whole)


def close(module: nn.Module, masks: Masks) -> None:
    """Set what the masks leave out to zero, in place."""
    with torch.no_grad():
        for name, mask in masks.items():
            weight = module.get_parameter(name)
            weight.mul_(mask.to(weight.device))


def _smallest_gone(weight: Tensor, sparsity: float) -> Tensor:
    """False for the round(sparsity * n) weights of least magnitude, of equal ones for the first."""
    mask = torch.ones(weight.numel(), dtype=torch.bool)
    mask[weight.flatten().abs().argsort(stable=True)[: round(sparsity * weight.numel())]] = False
    return mask.reshape(weight.shape)


def _other_kind(name: str, part: nn.Module) -> Iterator[Unpruned]:
    """Of layers with weights that are no convolution and no linear layer."""
    own = [
        parameter for parameter in part._parameters.values() if parameter is not None and parameter.ndim > 1
    ]
    if own and not _is_embedding(part) and not isinstance(part, ParametrizationList):
        yield Unpruned(name, f"{type(part).__name__} is not a kind of layer that gets zeros")


def _is_embedding(part: nn.Module) -> bool:
    return isinstance(part, (nn.Embedding, nn.EmbeddingBag))
