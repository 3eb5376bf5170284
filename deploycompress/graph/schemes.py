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
    reduce_range: bool  # 7-bit weights


SCHEMES = {
    "u8s8": Scheme("QUInt8", "QInt8", reduce_range=False),
    "s8s8": Scheme("QInt8", "QInt8", reduce_range=False),
    "u8s8_reduced": Scheme("QUInt8", "QInt8", reduce_range=True),
}


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
