"""What convolutions and linear layers read and give during a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

Watch = Callable[[str, Tensor, Tensor], None]  # layer, what it reads, what it gives


@contextmanager
def watching(module: nn.Module, layers: Iterable[str], watch: Watch) -> Iterator[None]:
    """``watch`` is told of every call of these layers inside."""

    def telling(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> None:
            watch(name, given[0] if given else named["input"], output)

        return hook

    hooks = [
        module.get_submodule(name).register_forward_hook(telling(name), with_kwargs=True) for name in layers
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def channels_last(part: nn.Module, tensor: Tensor) -> Tensor:
    """[everything else, channels] of what a convolution or linear layer reads or gives."""
    dim = 1 - part.weight.ndim if isinstance(part, _ConvNd) else -1
    return tensor.movedim(dim, -1).reshape(-1, tensor.shape[dim])
