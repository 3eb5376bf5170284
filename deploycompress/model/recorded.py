"""What a model gave before it was saved, kept beside its checkpoint to hold what is loaded against."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deploycompress.contracts import Model
from deploycompress.model.parity import compare, to_numpy
from deploycompress.writing import saving


def record_outputs(
    module: nn.Module, model: Model, feeds: Iterable[Mapping[str, Tensor]], path: Path
) -> None:
    """Keep what ``module`` gives on ``feeds``, to compare what is loaded later with it."""
    arrays: dict[str, Any] = {}
    with torch.no_grad():
        for number, feed in enumerate(feeds):
            outputs = to_numpy(model.call(module.eval(), feed))
            arrays |= {f"{number}/{name}": array for name, array in outputs.items()}
    with saving(path):
        np.savez(path, **arrays)


def apart_from_record(
    module: nn.Module, model: Model, feeds: Iterable[Mapping[str, Tensor]], path: Path
) -> float:
    """The largest relative difference to what ``record_outputs`` kept."""
    apart = 0.0
    with np.load(path, allow_pickle=False) as kept, torch.no_grad():
        for number, feed in enumerate(feeds):
            found = to_numpy(model.call(module.eval(), feed))
            expected = {name: kept[f"{number}/{name}"] for name in found}
            apart = max(apart, compare(expected, found).relative)
    return apart
