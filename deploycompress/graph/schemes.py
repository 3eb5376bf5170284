"""INT8 schemes, which of them a place wants, and how a file in INT8 is read here for what it gives there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deploycompress.contracts import RunContext
from deploycompress.devices.jobs import open_device
from deploycompress.errors import ConfigError
from deploycompress.measure.environment import VNNI, X86, machine

TENSORRT = ("tensorrt", "trtexec")  # runtimes
GPU = ("cuda", "tensorrt")  # providers


@dataclass(frozen=True)
class Scheme:
    """Types of activations and weights; weights are symmetric and per channel in all of them."""

    activation: str  # a QuantType of onnxruntime
    weight: str
    reduce_range: bool = False  # 7-bit weights
    symmetric: bool = False  # activations too


SCHEMES = {
    "u8s8": Scheme("QUInt8", "QInt8"),
    "s8s8": Scheme("QInt8", "QInt8"),
    "u8s8_reduced": Scheme("QUInt8", "QInt8", reduce_range=True),
    "s8s8_symmetric": Scheme("QInt8", "QInt8", symmetric=True),
}


DYNAMIC = {
    "dynamic": False,
    "dynamic_reduced": True,
}  # with ranges taken as they come; whether weights get 7 bits


def known_schemes(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """Those that are worth trying on a processor in ONNX Runtime, the one that it wants first."""
    first = choose_scheme("auto", facts)
    return (first, *(other for other in ("s8s8", "u8s8") if other != first and first != "u8s8_reduced"))


def choose_scheme(
    scheme: str, facts: Mapping[str, Any], runtime: str = "onnxruntime", provider: str = "cpu"
) -> str:
    """``auto`` by what will run it; ``facts`` are a device's.

    TensorRT refuses a zero point other than zero. x86 with VNNI multiplies U8 by S8 into 32 bits. x86 without it
    saturates (ResNet-50 loses 6 points of accuracy by it), so the weights get 7 bits there, those of ``dynamic`` too. ARM
    multiplies S8 by S8. Raises ConfigError for an unknown name.
    """
    if scheme == "dynamic" and saturates(facts) and not _on_gpu(runtime, provider):
        return "dynamic_reduced"
    if scheme in (*SCHEMES, *DYNAMIC):
        return scheme
    if scheme != "auto":
        raise ConfigError(f"unknown quantization scheme {scheme!r}; known: auto, {', '.join(SCHEMES)}")
    if _on_gpu(runtime, provider):
        return "s8s8_symmetric"
    if saturates(facts):
        return "u8s8_reduced"
    return "u8s8" if _is_x86(facts) else "s8s8"


def target_scheme(scheme: str, context: RunContext) -> str:
    """``choose_scheme`` for the target of a run."""
    target = context.target
    return choose_scheme(
        scheme, open_device(target.device, context.devices).facts(), target.runtime, target.provider
    )


def saturates(facts: Mapping[str, Any]) -> bool:
    """Whether a processor adds pairs of INT8's products in 16 bits, which is too few for 8-bit weights: x86 without VNNI."""
    return _is_x86(facts) and not VNNI & set(facts["flags"])


def reading(facts: Mapping[str, Any], runtime: str, provider: str) -> dict[str, Any]:
    """Options with which ONNX Runtime on this machine's CPU gives what a file in INT8 gives on the device of ``facts``.

    Where this CPU saturates and that place does not, the file is run as it is written: in FP32 between its roundings,
    which is slower. Operators that are in integers in the file itself, as those of the dynamic scheme, saturate even so.
    """
    here = machine()
    alike = not saturates(here) or (saturates(facts) and not _on_gpu(runtime, provider))
    return {} if alike else {"graph_level": "off"}


def target_reading(precision: str, context: RunContext) -> dict[str, Any]:
    """``reading`` of a file in ``precision`` that is made for the target of a run."""
    target = context.target
    if precision != "int8":
        return {}
    return reading(open_device(target.device, context.devices).facts(), target.runtime, target.provider)


def _is_x86(facts: Mapping[str, Any]) -> bool:
    return str(facts["architecture"]).lower() in X86


def _on_gpu(runtime: str, provider: str) -> bool:
    return runtime in TENSORRT or provider.startswith(GPU)
