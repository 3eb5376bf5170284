"""What is kept of an artefact's raw samples in the report: how long which share of the calls took at most."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from deploycompress.artifact import read_json
from deploycompress.measure.intervals import FEWEST_SAMPLES

TAIL = (0.01, 0.025, 0.05, 0.075)
SHARES = (*TAIL, *(round(0.1 + 0.02 * i, 2) for i in range(41)), *(1 - share for share in reversed(TAIL)))


def distribution(path: Path) -> dict[str, Any] | None:
    """``shares``, and in ``ms`` what that share of the calls took at most; None where there are no raw samples.

    Null stands where the samples do not support a share: as for the percentiles, 1 % from either end wants 662.
    """
    import numpy as np

    try:
        blocks = read_json(path)["blocks"]
        samples = np.concatenate([np.asarray(block, dtype=np.float64) for block in blocks]) / 1e6
    except (OSError, json.JSONDecodeError, KeyError, TypeError, ValueError):
        return None  # an earlier version's step, or one whose folder is not complete: the figures stand without it
    if not len(samples) or not np.isfinite(samples).all():
        return None
    found = np.percentile(samples, [100 * share for share in SHARES], method="higher")
    enough = [len(samples) >= fewest(share) for share in SHARES]
    values = [float(f"{ms:.5g}") if is_known else None for ms, is_known in zip(found, enough, strict=True)]
    return {"shares": [round(share, 3) for share in SHARES], "ms": values}


def fewest(share: float) -> int:
    """Samples that it takes to tell what a share of the calls takes at most, as MLPerf counts them for p90 and p99."""
    tail = min(share, 1 - share)
    rank = 90 if tail > 0.0999 else 99
    return math.ceil(round(FEWEST_SAMPLES[rank] * (1 - rank / 100) / tail, 6))
