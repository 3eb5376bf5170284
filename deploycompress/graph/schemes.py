"""INT8 schemes, and which of them a processor wants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deploycompress.errors import ConfigError
from deploycompress.measure.environment import VNNI


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


def known_schemes(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """Those that are worth trying on a processor in ONNX Runtime, the one that it wants first."""
    first = choose_scheme("auto", facts)
    return (first, *(other for other in ("s8s8", "u8s8") if other != first and first != "u8s8_reduced"))


def choose_scheme(scheme: str, facts: Mapping[str, Any]) -> str:
    """``auto`` by the processor that will run it; ``facts`` are a device's.

    x86 with VNNI multiplies U8 by S8 into 32 bits. x86 without it adds pairs of products in 16 bits, which
    saturates (ResNet-50 loses 6 points of accuracy by it), so the weights get 7 bits there. ARM multiplies
    S8 by S8. Raises ConfigError for an unknown name.
    """
    if scheme in SCHEMES:
        return scheme
    if scheme != "auto":
        raise ConfigError(f"unknown quantization scheme {scheme!r}; known: auto, {', '.join(SCHEMES)}")
    if str(facts["architecture"]).lower() not in ("x86_64", "amd64", "x86", "i686"):
        return "s8s8"
    return "u8s8" if VNNI & set(facts["flags"]) else "u8s8_reduced"
