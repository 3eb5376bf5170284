"""A forward pass on which labels of channels travel along: what each layer reads, makes and passes on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from deploycompress.contracts import Model
from deploycompress.pruning.labels import FREE, Layer, Ties, along, resized, varying
from deploycompress.pruning.layers import Layer as Kind
from deploycompress.pruning.layers import describe
from deploycompress.pruning.operators import Operators, Place

SAMPLES = 2
OUTPUT = "its channels are the model's outputs"


@dataclass
class Trace:
    """What a pass found: the labels of each place, position by position, and which labels go together."""

    ties: Ties = field(default_factory=Ties)
    places: dict[Place, Tensor] = field(default_factory=dict)
    reached: set[str] = field(default_factory=set)  # layers whose forward was called


def propagate(module: nn.Module, model: Model) -> Trace:
    """Run ``module``, in evaluation mode on the CPU, on random inputs. Raises what its forward raises."""
    found = Trace()
    mode = _Propagation(module, found)
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

    def __init__(self, module: nn.Module, found: Trace) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found, self.ties = found, found.ties
        self.operators = Operators(module, found.ties, found.places)
        self.inside: nn.Module | None = None
        self.kinds: dict[nn.Module, tuple[str, Kind]] = {}
        self.hooks: list[Any] = []
        for name, part in module.named_modules():
            kind = describe(part)
            if isinstance(kind, Kind) and kind.widths and not isinstance(part, nn.RNNBase):
                self.kinds[part] = (name, kind)
                self.hooks.append(part.register_forward_pre_hook(self._enter, with_kwargs=True))
                self.hooks.append(part.register_forward_hook(self._leave, with_kwargs=True))

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
        if given is None or not isinstance(output, Tensor):
            return
        name, kind = self.kinds[part]
        self.found.reached.add(name)
        if "in" in kind.widths:
            self._transform(part, name, kind, given, output)
        elif isinstance(part, nn.Embedding):
            self.operators.set(output, [self._made(name, kind, -1, output)])
        else:
            self._pass_on(part, name, kind, given, output)

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
                self._meet((name, "in"), self.ties.gather(layer, dim))
            elif varying(layer) & acts_on:
                self.ties.freeze(layer, f"{name} mixes neighbours among them")
            else:
                layers.append(resized(layer, output.shape))
        self.found.places.setdefault((name, "in"), torch.full((kind.widths["in"],), FREE))
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
                self._meet((name, "out"), labels)
                passed.append(along(labels, dim, output.shape))
            elif isinstance(part, _ConvNd) and varying(layer) & set(range(dim + 1, given.ndim)):
                self.ties.freeze(layer, f"{name} mixes neighbours among them")
            else:
                passed.append(resized(layer, output.shape))
        self.found.places.setdefault((name, "out"), torch.full((width,), FREE))
        self.operators.set(output, passed)

    def _made(self, name: str, kind: Kind, dim: int, output: Tensor) -> Layer:
        """The output channels of a layer: the same labels whenever it is called."""
        width = kind.widths["out"]
        if (name, "out") not in self.found.places:
            self.found.places[name, "out"] = self.ties.new(width)
        return along(self.found.places[name, "out"], dim, output.shape)

    def _meet(self, place: Place, labels: Tensor) -> None:
        """``labels`` lie at ``place``; with those that lay there in an earlier call they go together."""
        known = self.found.places.setdefault(place, labels)
        if known is labels:
            return
        if len(known) != len(labels):
            self.ties.freeze(torch.cat([known, labels]), f"{place[0]} is used at different widths")
            return
        self.ties.tie(known, labels)
        for one, other in ((known, labels), (labels, known)):
            if bool(((one == FREE) & (other != FREE)).any()):
                self.ties.freeze(other[one == FREE], f"{place[0]} reads something else at the same positions")

    # ------------------------------------------------------------ operators

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self.inside is None:
            tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
            if any(self.operators.layers(t) for t in tensors):
                self.operators.follow(str(func.overloadpacket.__name__), func, args, kwargs, tensors, result)
        return result
