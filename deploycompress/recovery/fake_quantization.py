"""Training for INT8: layers compute with the values that weights and inputs will have there.

Each convolution and linear layer reads its input rounded to 256 levels between the least and the largest value that
calibration saw, and uses its weight rounded by output channel; gradients pass as if nothing had been rounded (Jacob et al.
2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", section 3). The scales
of the inputs stay as they are from the first step, and go into the INT8 file exactly. Batch normalisation may follow: it
scales an output channel as a whole, and with that channel's weights their scale.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deploycompress.contracts import Batch, Model
from deploycompress.errors import ConfigError

QUANTIZED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
LEVELS = 255


@dataclass(frozen=True)
class InputScale:
    """Of one layer's input: real = scale * (stored - zero_point), stored in 0..255."""

    scale: float
    zero_point: int


def calibrated(
    student: nn.Module, model: Model, batches: Iterable[Batch], symmetric: bool
) -> dict[str, InputScale]:
    """The input scales of every layer that runs, by its path. Raises ConfigError where none does."""
    seen: dict[str, tuple[float, float]] = {}

    def watch(name: str) -> object:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            least, most = seen.get(name, (0.0, 0.0))  # zero has to be a level
            seen[name] = (min(least, float(inputs[0].min())), max(most, float(inputs[0].max())))

        return hook

    hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in _layers(student)]  # type: ignore[arg-type]
    try:
        with torch.no_grad():
            for batch in batches:
                model.call(student, batch.inputs)
    finally:
        for handle in hooks:
            handle.remove()
    if not seen:
        raise ConfigError("quantized: the network has no convolution or linear layer that could be quantized")
    return {name: _scale(*bounds, symmetric) for name, bounds in seen.items()}


@contextmanager
def fake_quantized(
    student: nn.Module, scales: Mapping[str, InputScale], weight_levels: int = 127
) -> Iterator[None]:
    """While this lasts, the layers in ``scales`` compute as in INT8; copies of ``student`` do so too.

    ``weight_levels``: on each side of zero; 63 where the range is reduced.
    """
    handles = []
    for name, layer in _layers(student):
        if name not in scales:
            continue
        enter, leave = _rounding(scales[name], weight_levels)
        handles.append(layer.register_forward_pre_hook(enter))
        handles.append(layer.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _layers(student: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Those whose weight is a plain parameter of their own: one that is computed has no values to round."""
    for name, layer in student.named_modules():
        if isinstance(layer, QUANTIZED) and "weight" in layer._parameters:
            yield name, layer


def _rounding(scale: InputScale, weight_levels: int):  # type: ignore[no-untyped-def]
    """A hook before the layer, that rounds its input and weight, and one behind it that leaves the weight as it is."""

    def enter(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        weight = layer._parameters["weight"]
        assert weight is not None
        layer.__dict__["weight"] = _rounded_weight(weight, weight_levels)  # is found before the parameter
        rounded = torch.fake_quantize_per_tensor_affine(
            inputs[0].float(), scale.scale, scale.zero_point, 0, LEVELS
        )
        return (rounded.to(inputs[0].dtype), *inputs[1:])

    def leave(layer: nn.Module, _: object, __: object) -> None:
        layer.__dict__.pop("weight", None)

    return enter, leave


def _rounded_weight(weight: Tensor, levels: int) -> Tensor:
    """By output channel, symmetric: a channel's largest value is the last level."""
    with torch.no_grad():
        largest = weight.detach().abs().flatten(1).amax(1).float()
        scale = torch.where(largest > 0, largest / levels, torch.ones_like(largest))
    zeros = torch.zeros(len(scale), dtype=torch.int32, device=weight.device)
    rounded = torch.fake_quantize_per_channel_affine(weight.float(), scale, zeros, 0, -levels, levels)
    return rounded.to(weight.dtype)


def _scale(least: float, most: float, symmetric: bool) -> InputScale:
    """As ONNX Runtime's quantizer takes it from a range; ``symmetric``: zero is in the middle."""
    if symmetric:
        most = max(-least, most)
        return InputScale(max(2 * most, 1e-8) / (LEVELS - 1), 128)
    scale = max(most - least, 1e-8) / LEVELS
    return InputScale(scale, round(-least / scale))
