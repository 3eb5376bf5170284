"""A forward pass on which labels of channels travel along: what each layer reads, makes and passes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from deploycompress.contracts import Model
from deploycompress.pruning.labels import FREE, Layer, along, resized, varying
from deploycompress.pruning.layers import Layer as Kind
from deploycompress.pruning.layers import describe
from deploycompress.pruning.operator_rules import Operators
from deploycompress.pruning.places import Place, Places

SAMPLES = 2
OUTPUT = "its channels are the model's outputs"


@dataclass(frozen=True)
class Heads:
    """What groups of whole heads know already: labels need not say it.

    ``claimed``: positions that are theirs. ``outlets``: path of a module that gives its heads to others unprojected
    -> their channels.
    """

    claimed: Mapping[Place, Tensor] = field(default_factory=dict)
    outlets: Mapping[str, int] = field(default_factory=dict)


def propagate(module: nn.Module, model: Model, heads: Heads) -> Places:
    """Run ``module``, in evaluation mode on the CPU, on random inputs. Raises what its forward raises."""
    found = Places(module, heads.claimed)
    mode = _Propagation(module, found, heads)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operator for a whole transformer layer
    try:
        with torch.no_grad(), mode:
            outputs = model.call(module, model.example(SAMPLES))
        for tensor in outputs.values():
            for layer in mode.operators.layers(tensor):
                found.ties.freeze(layer, OUTPUT)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        mode.close()
    return found


class _Propagation(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Known kinds of layers are met as modules, through hooks; all between them operator by operator."""

    def __init__(self, module: nn.Module, found: Places, heads: Heads) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found, self.ties, self.heads = found, found.ties, heads
        self.operators = Operators(module, found)
        self.inside: nn.Module | None = None
        self.kinds: dict[nn.Module, tuple[str, Kind | str]] = {}
        self.hooks: list[Any] = []
        for name, part in module.named_modules():
            kind = describe(part)
            if isinstance(part, nn.RNNBase) or _is_called(part, kind):
                self.kinds[part] = (name, kind)
                self.hooks.append(part.register_forward_pre_hook(self._enter, with_kwargs=True))
                self.hooks.append(part.register_forward_hook(self._leave, with_kwargs=True))
            if name in heads.outlets:
                self.hooks.append(part.register_forward_hook(self._let_out(name)))

    def close(self) -> None:
        for hook in self.hooks:
            hook.remove()

    # ------------------------------------------------------------ layers as modules

    def _enter(self, part: nn.Module, args: Any, kwargs: Any) -> None:
        if self.inside is None:
            self.inside = part

    def _leave(self, part: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if self.inside is not part:
            return
        self.inside = None
        given = next((t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)), None)
        name, kind = self.kinds[part]
        if isinstance(kind, str):
            self.operators.freeze(given, f"tied to {name}: {kind}")
        elif given is not None and isinstance(output, Tensor):
            self.found.reached.add(name)
            if "in" in kind.widths:
                self._transform(part, name, kind, given, output)
            elif isinstance(part, nn.Embedding):
                self.operators.set(output, [self._made(name, kind, -1, output)])
            else:
                self._pass_on(part, name, kind, given, output)

    def _let_out(self, path: str) -> Any:
        """The heads leave their module: its output has a label for each of their channels."""

        def hook(_: nn.Module, args: Any, output: Any) -> None:
            width = self.heads.outlets[path]
            first = next((t for t in tree_leaves(output) if isinstance(t, Tensor)), None)
            if first is not None and first.shape[-1] == width:
                labels = self.found.at((path, "heads"), width)
                self.operators.set(first, [along(labels, first.ndim - 1, first.shape)])

        return hook

    def _transform(self, part: nn.Module, name: str, kind: Kind, given: Tensor, output: Tensor) -> None:
        """A convolution or linear layer: reads channels and makes others."""
        if isinstance(part, _ConvNd):
            kernel = part.kernel_size
            dim = given.ndim - 1 - len(kernel)
            acts_on = {given.ndim - len(kernel) + i for i, k in enumerate(kernel) if k > 1}
        else:
            dim, acts_on = given.ndim - 1, set()
        layers = [self._made(name, kind, dim, output)]
        for layer in self.operators.layers(given):
            if dim in varying(layer):
                self.found.meet((name, "in"), self.ties.gather(layer, dim))
            elif varying(layer) & acts_on:
                self.ties.freeze(layer, f"{name} mixes neighbours among them")
            else:
                layers.append(resized(layer, output.shape))
        self.found.labels.setdefault((name, "in"), torch.full((kind.widths["in"],), FREE))
        self.operators.set(output, layers)

    def _pass_on(self, part: nn.Module, name: str, kind: Kind, given: Tensor, output: Tensor) -> None:
        """A normalisation, a depthwise convolution, a PReLU: each channel stays what it is."""
        width, read = kind.widths["out"], kind.widths["out"] // kind.multiplier
        layers = self.operators.layers(given)
        dims = [1, -1] if given.shape[-1] != width or not isinstance(part, nn.LayerNorm) else [-1]
        if isinstance(part, nn.LayerNorm) and given.ndim > 1 and given.shape[1] == given.shape[-1] == width:
            dims = [-1] if any(given.ndim - 1 in varying(layer) for layer in layers) else [1]
        dim = next(
            (d % given.ndim for d in dims if given.ndim > 1 and given.shape[d] == read), given.ndim - 1
        )
        passed = []
        for layer in layers:
            if dim in varying(layer):
                if given.shape[dim] != read:
                    self.ties.freeze(layer, f"{name} does not read them channel by channel")
                    continue
                labels = self.ties.gather(layer, dim).repeat_interleave(kind.multiplier)
                self.found.meet((name, "out"), labels)
                passed.append(along(labels, dim, output.shape))
            elif isinstance(part, _ConvNd) and varying(layer) & set(range(dim + 1, given.ndim)):
                self.ties.freeze(layer, f"{name} mixes neighbours among them")
            else:
                passed.append(resized(layer, output.shape))
        self.found.labels.setdefault((name, "out"), torch.full((width,), FREE))
        self.operators.set(output, passed)

    def _made(self, name: str, kind: Kind, dim: int, output: Tensor) -> Layer:
        """The output channels of a layer: the same labels whenever it is called."""
        return along(self.found.at((name, "out"), kind.widths["out"]), dim, output.shape)

    # ------------------------------------------------------------ operators

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self.inside is None:
            tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
            if self.operators.concerns(tensors):
                self.operators.follow(str(func.overloadpacket.__name__), func, args, kwargs, tensors, result)
        return result


def _is_called(part: nn.Module, kind: Kind | str) -> bool:
    """Whether it is a known layer that is used by a call; torch's attention multiplies with its parameters."""
    return isinstance(kind, Kind) and bool(kind.widths) and not isinstance(part, nn.MultiheadAttention)
