"""How far two sets of outputs are apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from deploycompress.errors import StageFailed

if TYPE_CHECKING:
    from torch import Tensor

VARIES = 1e-5  # of max|y|: less than this between samples is rounding, not an answer to the input
# Between the outputs of an artefact and of what it was made of, by its precision: these are not judged by elements.
LOWEST_COSINE = {"fp32": 0.999, "fp16": 0.99, "bf16": 0.99, "int8": 0.9}


@dataclass(frozen=True)
class Parity:
    """The worst over all outputs; ``relative`` is max_abs / max|reference|."""

    max_abs: float
    relative: float
    cosine: float
    top1_agreement: float | None  # share of samples with the same largest entry; of [batch, classes] only


def compare(reference: Mapping[str, np.ndarray], candidate: Mapping[str, np.ndarray]) -> Parity:
    """Compare outputs of the same names and shapes.

    Raises StageFailed when names or shapes differ, or a value is not finite.
    """
    if set(reference) != set(candidate):
        raise StageFailed(
            f"the outputs have other names: {', '.join(candidate)}; expected {', '.join(reference)}"
        )
    each = [_one(name, reference[name], candidate[name]) for name in reference]
    agreements = [p.top1_agreement for p in each if p.top1_agreement is not None]
    return Parity(
        max_abs=max(p.max_abs for p in each),
        relative=max(p.relative for p in each),
        cosine=min(p.cosine for p in each),
        top1_agreement=min(agreements) if agreements else None,
    )


def worst(parities: list[Parity]) -> Parity:
    """The worst figure of several comparisons, one by one."""
    agreements = [p.top1_agreement for p in parities if p.top1_agreement is not None]
    return Parity(
        max_abs=max(p.max_abs for p in parities),
        relative=max(p.relative for p in parities),
        cosine=min(p.cosine for p in parities),
        top1_agreement=min(agreements) if agreements else None,
    )


def constant_outputs(outputs: Mapping[str, np.ndarray]) -> list[str]:
    """Names of the outputs that are the same for every sample of a batch (relative to max|y|)."""
    return [name for name, values in outputs.items() if not _varies(np.asarray(values, np.float64))]


def to_numpy(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Tensors by name, on the host; bfloat16 becomes float32, which numpy has."""
    import torch

    return {
        name: (t.float() if t.dtype is torch.bfloat16 else t).detach().cpu().numpy()
        for name, t in tensors.items()
    }


def _one(name: str, reference: np.ndarray, candidate: np.ndarray) -> Parity:
    if reference.shape != candidate.shape:
        raise StageFailed(
            f"output {name} has the shape {list(candidate.shape)}; expected {list(reference.shape)}"
        )
    a, b = np.asarray(reference, np.float64), np.asarray(candidate, np.float64)
    if a.size == 0:
        return Parity(0.0, 0.0, 1.0, None)
    for whose, values in (("the reference's", a), ("the candidate's", b)):
        bad = int(values.size - np.isfinite(values).sum())
        if bad:
            raise StageFailed(f"{whose} output {name} has {bad} NaN or infinite values of {values.size}")
    max_abs, largest = float(np.abs(a - b).max()), float(np.abs(a).max())
    agreement = None
    if a.ndim == 2 and a.shape[1] > 1:
        agreement = float((a.argmax(1) == b.argmax(1)).mean())
    return Parity(
        max_abs, 0.0 if max_abs == 0 else max_abs / max(1e-12, largest), _cosine(a, b, largest), agreement
    )


def _cosine(a: np.ndarray, b: np.ndarray, largest: float) -> float:
    # Scaled first: outputs of untrained networks can be so small that their squares vanish.
    scale = max(largest, float(np.abs(b).max()))
    if scale == 0:
        return 1.0
    a, b = a.ravel() / scale, b.ravel() / scale
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms else 0.0


def _varies(values: np.ndarray) -> bool:
    if values.ndim == 0 or values.shape[0] < 2 or values.size == 0:
        return False
    largest = float(np.abs(values).max())
    return bool(np.isfinite(values).all()) and float(np.ptp(values, axis=0).max()) > VARIES * largest > 0
