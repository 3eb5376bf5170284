"""A forward pass on which labels of channels travel along: what each layer reads, makes and passes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from deploycompress.contracts import Model
from deploycompress.pruning.labels import FREE, Layer, Ties, along, is_free, resized, tidy, varying
from deploycompress.pruning.layers import Axis, describe
from deploycompress.pruning.layers import Layer as Kind
from deploycompress.pruning.movements import MOVES, REDUCTIONS, SUMS, reduced_dims

SAMPLES = 2
OUTPUT = "its channels are the model's outputs"
PRODUCT = "they are multiplied with one another, as in attention"

Place = tuple[str, Axis | int]  # a layer and its axis, or a bare tensor and its dimension


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
            for layer in mode.layers(tensor):
                found.ties.freeze(layer, OUTPUT)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        mode.close()
    return found


class _Propagation(TorchDispatchMode):
    """Known kinds of layers are met as modules, through hooks; all between them operator by operator."""

    def __init__(self, module: nn.Module, found: Trace) -> None:
        super().__init__()
        self.found, self.ties = found, found.ties
        self.known: Any = WeakTensorKeyDictionary()  # tensor -> its layers
        self.inside: nn.Module | None = None
        self.kinds: dict[nn.Module, tuple[str, Kind]] = {}
        self.hooks: list[Any] = []
        for name, part in module.named_modules():
            kind = describe(part)
            if isinstance(kind, Kind) and kind.widths and not isinstance(part, nn.RNNBase):
                self.kinds[part] = (name, kind)
                self.hooks.append(part.register_forward_pre_hook(self._enter, with_kwargs=True))
                self.hooks.append(part.register_forward_hook(self._leave, with_kwargs=True))
        self.bare = {id(t): (name, t) for name, t in module.named_parameters()}
        self.bare |= {id(t): (name, t) for name, t in module.named_buffers() if t.is_floating_point()}

    def close(self) -> None:
        for hook in self.hooks:
            hook.remove()

    # ------------------------------------------------------------ labels of tensors

    def layers(self, tensor: Any) -> list[Layer]:
        if not isinstance(tensor, Tensor):
            return []
        if tensor not in self.known and id(tensor) in self.bare:
            name, _ = self.bare[id(tensor)]
            self.known[tensor] = []
            for dim, size in enumerate(tensor.shape):
                if size > 1:
                    labels = self.found.places.setdefault((name, dim), self.ties.new(size))
                    self.known[tensor].append(along(labels, dim, tensor.shape))
        found: list[Layer] = self.known.get(tensor, [])
        return found

    def _set(self, tensor: Any, layers: Sequence[Layer]) -> None:
        if isinstance(tensor, Tensor):
            self.known[tensor] = [tidied for layer in layers if not is_free(tidied := tidy(layer))]

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
            self._set(output, [self._made(name, kind, -1, output)])
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
        for layer in self.layers(given):
            if dim in varying(layer):
                self._meet((name, "in"), self.ties.gather(layer, dim))
            elif varying(layer) & acts_on:
                self.ties.freeze(layer, f"{name} mixes neighbours among them")
            else:
                layers.append(resized(layer, output.shape))
        self.found.places.setdefault((name, "in"), torch.full((kind.widths["in"],), FREE))
        self._set(output, layers)

    def _pass_on(self, part: nn.Module, name: str, kind: Kind, given: Tensor, output: Tensor) -> None:
        """A normalisation, a depthwise convolution, a PReLU: each channel stays what it is."""
        width = kind.widths["out"]
        layers = self.layers(given)
        dims = [1, -1] if given.shape[-1] != width or not isinstance(part, nn.LayerNorm) else [-1]
        if isinstance(part, nn.LayerNorm) and given.ndim > 1 and given.shape[1] == given.shape[-1] == width:
            dims = [-1] if any(given.ndim - 1 in varying(layer) for layer in layers) else [1]
        dim = next((d % given.ndim for d in dims if given.ndim > 1 and given.shape[d] == width), given.ndim - 1)
        passed = []
        for layer in layers:
            if dim in varying(layer):
                if given.shape[dim] != width:
                    self.ties.freeze(layer, f"{name} does not read them channel by channel")
                    continue
                labels = self.ties.gather(layer, dim)
                self._meet((name, "out"), labels)
                passed.append(along(labels, dim, output.shape))
            elif isinstance(part, _ConvNd) and varying(layer) & set(range(dim + 1, given.ndim)):
                self.ties.freeze(layer, f"{name} mixes neighbours among them")
            else:
                passed.append(resized(layer, output.shape))
        self.found.places.setdefault((name, "out"), torch.full((width,), FREE))
        self._set(output, passed)

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
            if any(self.layers(t) for t in tensors):
                self._follow(str(func.overloadpacket.__name__), func, args, kwargs, tensors, result)
        return result

    def _follow(
        self, name: str, func: Any, args: Any, kwargs: Any, tensors: list[Tensor], result: Any
    ) -> None:
        outputs = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        if name in MOVES:
            self._move(func, args, kwargs, tensors, result)
        elif name in REDUCTIONS:
            self._reduce(name, args, tensors[0], outputs)
        elif name in ("mm", "bmm", "addmm", "baddbmm", "convolution") or "attention" in name:
            self._product(name, args, kwargs, tensors, outputs)
        elif len(outputs) == 1 and _broadcasts(tensors, outputs[0]):
            self._set(outputs[0], self._together(tensors, outputs[0].shape))
        elif outputs and all(o.ndim == tensors[0].ndim for o in outputs):
            for output in outputs:  # a pooling, an interpolation: some dimensions change, the others stay
                self._set(output, self._resize(name, tensors[0], output))
        else:
            for tensor in tensors:
                self._freeze(tensor, f"the operator {name} is not understood")

    def _freeze(self, tensor: Tensor, reason: str) -> None:
        for layer in self.layers(tensor):
            self.ties.freeze(layer, reason)

    def _move(self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor], result: Any) -> None:
        """What moves elements moves their labels."""
        stacks = _aligned([self.layers(t) for t in tensors])
        results: list[list[Tensor]] = []
        for stack in stacks:
            replaced = {id(t): layer for t, layer in zip(tensors, stack, strict=True)}

            def labels_of(tensor: Tensor, replaced: dict[int, Layer | None] = replaced) -> Tensor:
                layer = replaced.get(id(tensor))
                if layer is not None:
                    return layer
                return torch.zeros((), dtype=torch.int64).expand(tensor.shape) if tensor.is_floating_point() else tensor

            moved_args, moved_kwargs = tree_map_only(Tensor, labels_of, (args, kwargs))
            moved = MOVES[func.overloadpacket.__name__](func, *moved_args, **moved_kwargs)
            results.append([t for t in tree_leaves(moved) if isinstance(t, Tensor)])
        for i, output in enumerate(t for t in tree_leaves(result) if isinstance(t, Tensor)):
            self._set(output, [moved[i] for moved in results])

    def _reduce(self, name: str, args: Any, tensor: Tensor, outputs: list[Tensor]) -> None:
        dims, keepdim = reduced_dims(name, args, tensor, outputs[0])
        layers = []
        for layer in self.layers(tensor):
            if varying(layer) <= dims:
                if name not in SUMS:
                    self.ties.freeze(layer, f"the operator {name} takes them together")
                continue
            gathered = self.ties.gather_over(layer, dims)
            if not keepdim:
                for dim in sorted(dims, reverse=True):
                    gathered = gathered.squeeze(dim)
            layers.append(gathered)
        for output in outputs:
            self._set(output, [resized(layer, output.shape) for layer in layers])

    def _product(
        self, name: str, args: Any, kwargs: Any, tensors: list[Tensor], outputs: list[Tensor]
    ) -> None:
        if name == "convolution":
            given, weight, groups = args[0], args[1], args[8]
            if groups == given.shape[1] == weight.shape[0]:  # depthwise: a blur
                layers = []
                for layer in self.layers(given):
                    if varying(layer) == {1}:
                        self._tie_to_weight(layer, weight)
                        layers.append(resized(layer, outputs[0].shape))
                    else:
                        self.ties.freeze(layer, "a convolution mixes neighbours among them")
                self._set(outputs[0], layers)
                return
        for tensor in tensors:
            self._freeze(tensor, PRODUCT if "conv" not in name else "a convolution whose weight is computed")

    def _tie_to_weight(self, layer: Layer, weight: Tensor) -> None:
        channels = self.ties.gather(layer, 1)
        for own in self.layers(weight):
            if varying(own) == {0}:
                self.ties.tie(channels, self.ties.gather(own, 0))

    def _together(self, tensors: list[Tensor], shape: torch.Size) -> list[Layer]:
        """Element by element: labels that vary along the same dimensions meet."""
        found: list[Layer] = []
        for tensor in tensors:
            for layer in self.layers(tensor):
                spread = layer.view((1,) * (len(shape) - layer.ndim) + layer.shape) if layer.ndim < len(shape) else layer
                spread = spread.expand(shape)
                same = next((i for i, other in enumerate(found) if varying(other) & varying(spread)), None)
                if same is None:
                    found.append(spread)
                else:
                    self.ties.tie(found[same], spread)
                    found[same] = torch.where(found[same] == FREE, spread, found[same])
        return found

    def _resize(self, name: str, tensor: Tensor, output: Tensor) -> list[Layer]:
        found = []
        for layer in self.layers(tensor):
            dims = varying(layer)
            if any(tensor.shape[d] != output.shape[d] for d in dims):
                self.ties.freeze(layer, f"the operator {name} is not understood")
            else:
                found.append(resized(layer, output.shape))
        return found


def _broadcasts(tensors: list[Tensor], output: Tensor) -> bool:
    try:
        return torch.broadcast_shapes(*(t.shape for t in tensors)) == output.shape
    except RuntimeError:
        return False


def _aligned(layers: list[list[Layer]]) -> list[list[Layer | None]]:
    """Stacks of one layer of each tensor (None where it has none): those that vary along the same dimensions."""
    stacks: list[list[Layer | None]] = []
    for i, own in enumerate(layers):
        for layer in own:
            for stack in stacks:
                kinds = [varying(other) for other in stack if other is not None]
                if stack[i] is None and any(k & varying(layer) for k in kinds):
                    stack[i] = layer
                    break
            else:
                fresh: list[Layer | None] = [None] * len(layers)
                fresh[i] = layer
                stacks.append(fresh)
    return stacks


