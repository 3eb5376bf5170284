"""The convolutions and matrix products of a model as they are called: what a latency table has rows for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from deploycompress.contracts import Model

OperatorKind = Literal["conv", "conv_transpose", "matmul"]


@dataclass(frozen=True)
class Operator:
    """One call of one convolution or matrix product with a weight of the model.

    ``input``: the shape it reads, channels in dimension 1 (the last one of a matrix product, whose leading
    dimensions are one). ``c_out``: channels it gives. A depthwise convolution has ``groups == c_in``.
    """

    layer: str  # module path of the weight
    kind: OperatorKind
    input: tuple[int, ...]
    c_out: int
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    output_padding: tuple[int, ...] = ()
    groups: int = 1
    bias: bool = True

    @property
    def c_in(self) -> int:
        return self.input[1]

    @property
    def depthwise(self) -> bool:
        return 1 < self.groups == self.c_in

    @property
    def family(self) -> str:
        """Operators of one family share kernels, and a factor of the prediction."""
        return "depthwise" if self.depthwise else "matmul" if self.kind == "matmul" else "conv"

    def at(self, c_in: int, c_out: int) -> Operator:
        """The same operator with other widths."""
        shape = (self.input[0], c_in, *self.input[2:])
        groups = c_in if self.depthwise else self.groups
        return replace(self, input=shape, c_out=c_in if self.depthwise else c_out, groups=groups)

    def anywhere(self) -> Operator:
        """Without its layer's name: what has the same latency."""
        return replace(self, layer="")

    @property
    def bytes_moved(self) -> int:
        """Of what it reads, its weight among it, and of what it gives; in float32."""
        weight = self.c_in // self.groups * prod(self.kernel) * self.c_out
        return 4 * (prod(self.input) + weight + self.positions * self.c_out)

    @property
    def positions(self) -> int:
        """Places at which it gives its channels: pixels, tokens; of all samples together."""
        if self.kind == "matmul":
            return self.input[0]
        sizes = zip(
            self.input[2:],
            self.kernel,
            self.stride,
            self.padding,
            self.dilation,
            self.output_padding,
            strict=True,
        )
        if self.kind == "conv_transpose":
            spatial = [(n - 1) * s - 2 * p + d * (k - 1) + o + 1 for n, k, s, p, d, o in sizes]
        else:
            spatial = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d, _ in sizes]
        return int(self.input[0] * prod(spatial))

    @property
    def macs(self) -> int:
        """Multiply-accumulates, of all samples together."""
        places = prod((self.input[0], *self.input[2:])) if self.kind == "conv_transpose" else self.positions
        return places * (self.c_in // self.groups) * self.c_out * int(prod(self.kernel))


def operators(module: nn.Module, model: Model, batch_size: int) -> list[Operator]:
    """Every call of ``module``'s weights in one forward pass at ``batch_size``, in order.

    Seen below torch's functions, so that a weight which a module uses in a function of its own counts too.
    """
    recorder = _Recorder(module)
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    inputs = {name: tensor.to(device) for name, tensor in model.example(batch_size).items()}
    training, fast = module.training, torch.backends.mha.get_fastpath_enabled()
    module.eval()
    torch.backends.mha.set_fastpath_enabled(False)  # it is one operation that hides four products
    try:
        with torch.no_grad(), recorder:
            model.call(module, inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        module.train(training)
    return recorder.found


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, module: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[Operator] = []
        # A transposed or sliced view of a weight has the weight's storage.
        self._layers = {
            parameter.untyped_storage().data_ptr(): name.rpartition(".")[0]
            for name, parameter in module.named_parameters()
            if parameter.ndim > 1
        }

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        if packet is torch.ops.aten.convolution:
            self._convolution(*args)
        elif packet is torch.ops.aten.mm:
            self._product(args[0], args[1], bias=False)
        elif packet is torch.ops.aten.addmm:
            self._product(args[1], args[2], bias=True)
        return result

    def _layer(self, weight: Tensor) -> str | None:
        return self._layers.get(weight.untyped_storage().data_ptr())

    def _product(self, rows: Tensor, weight: Tensor, *, bias: bool) -> None:
        layer = self._layer(weight)
        if layer is not None:
            shape = (int(rows.shape[0]), int(rows.shape[1]))
            self.found.append(Operator(layer, "matmul", shape, int(weight.shape[1]), bias=bias))

    def _convolution(
        self,
        data: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        transposed: bool,
        output_padding: Sequence[int],
        groups: int,
    ) -> None:
        layer = self._layer(weight)
        if layer is None:
            return
        kernel = tuple(weight.shape[2:])

        def each(values: Sequence[int]) -> tuple[int, ...]:
            return tuple(int(v) for v in values) * (len(kernel) if len(values) == 1 else 1)

        self.found.append(
            Operator(
                layer,
                "conv_transpose" if transposed else "conv",
                tuple(data.shape),
                int(weight.shape[1] * groups if transposed else weight.shape[0]),
                kernel,
                each(stride),
                each(padding),
                each(dilation),
                each(output_padding),
                int(groups),
                bias=True,  # of its own, or of the batch normalisation that is folded into it
            )
        )
