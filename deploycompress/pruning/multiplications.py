"""Counts a forward pass's multiply-accumulates by the tensor that is multiplied, or by the module they lie in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from deploycompress.contracts import Model


@dataclass(frozen=True)
class Multiplications:
    """Multiply-accumulates for one sample."""

    of_parameter: Mapping[str, float]  # name -> those in which the parameter is a factor
    within: Mapping[str, float]  # watched module -> those of two activations (attention products) inside it
    elsewhere: float


def multiplications(module: nn.Module, model: Model, watched: Sequence[str] = ()) -> Multiplications:
    """Run ``module`` once at batch size 1 in evaluation mode and count; ``watched``: paths of modules."""
    inputs = model.example(1)
    batch = next(iter(inputs.values())).shape[0]
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    counter = _Counter(module)
    training = module.training
    module.eval()
    try:
        # With gradients and without fused attention, so that every product is one that the counter knows.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), _watching(module, watched, counter), counter:
            model.call(module, {name: tensor.to(device) for name, tensor in inputs.items()})
    finally:
        module.train(training)
    return Multiplications(
        {name: n / batch for name, n in counter.of_parameter.items()},
        {name: n / batch for name, n in counter.within.items()},
        counter.elsewhere / batch,
    )


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A weight is recognised by its storage: layers transpose and slice it before they multiply.

    Where a layer computes the weight from its parameter (standardised ones), by its number of elements.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names = {p.untyped_storage().data_ptr(): name for name, p in module.named_parameters()}
        self.of_parameter: Counter[str] = Counter()
        self.within: Counter[str] = Counter()
        self.elsewhere = 0.0
        self.inside: list[str] = []
        self.calling: list[Tensor] = []  # weights of the layers that are being called

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = flop_registry.get(func.overloadpacket)
        if formula is None:
            with self:
                decomposed = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if decomposed is NotImplemented else decomposed
        result = func(*args, **kwargs)
        macs = formula(*args, **kwargs, out_val=result) / 2
        # The last one: a learnt input comes before the weight that it is multiplied with.
        name = next((n for a in reversed(args) if (n := self._name(a)) is not None), None)
        if name is None and self.calling:
            weight = self.calling[-1]
            computed = any(isinstance(a, Tensor) and a.numel() == weight.numel() for a in args)
            name = self._name(weight) if computed else None
        if name is not None:
            self.of_parameter[name] += macs
        elif self.inside:
            self.within[self.inside[-1]] += macs
        else:
            self.elsewhere += macs
        return result

    def _name(self, argument: Any) -> str | None:
        """The parameter that ``argument`` is or is a view of; biases, of one dimension, multiply nothing."""
        if not isinstance(argument, Tensor) or argument.ndim < 2:
            return None
        return self.names.get(argument.untyped_storage().data_ptr())


@contextmanager
def _watching(module: nn.Module, watched: Sequence[str], counter: _Counter) -> Iterator[None]:
    def enter(stack: list[Any], what: str | Tensor) -> Callable[..., None]:
        return lambda *_: stack.append(what)

    def leave(stack: list[Any]) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            stack.pop()

        return hook

    places: list[tuple[nn.Module, list[Any], str | Tensor]] = [
        (module.get_submodule(name), counter.inside, name) for name in watched
    ]
    for part in module.modules():
        if isinstance(part, (_ConvNd, nn.Linear)) and isinstance(part.weight, nn.Parameter):
            places.append((part, counter.calling, part.weight))
    hooks = []
    for part, stack, what in places:
        hooks += [
            part.register_forward_pre_hook(enter(stack, what)),
            part.register_forward_hook(leave(stack)),
        ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
