"""Scikit-learn's handwritten digits: 1797 real images of 8x8 that come with the library."""

from __future__ import annotations

import gzip
import importlib.util
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from deploycompress.config.schema import DataConfig
from deploycompress.data.augment import Augment, augment
from deploycompress.data.samples import Images, stratified
from deploycompress.errors import EnvironmentMissing

if TYPE_CHECKING:
    from torch import Tensor

TEST_SAMPLES = 600  # the same 600 for every seed: a third, enough for a standard error of 0.4 points at 99 %
MEAN, STD = 0.3055, 0.3245  # of the training images in 0..1, enlarged to about 32x32


class Digits:
    """10 classes in ``train`` (1197) and ``test`` (600), one channel, resized, standardised by mean and std."""

    class Config(DataConfig):
        image_size: Annotated[int, Field(ge=8)] = 32
        augment: Augment = "shift"
        validation: Annotated[float, Field(gt=0, lt=1)] = 0.15

        @property
        def preprocessing(self) -> dict[str, Any]:
            size = {"height": self.image_size, "width": self.image_size}
            standard = {"divisor": 16, "mean": [MEAN], "std": [STD]}
            return {"kind": "image", **size, "channels": "L", "layout": "NCHW", **standard}

    def __init__(self, config: Digits.Config) -> None:
        self.config = config

    def files(self) -> tuple[Path, ...]:
        """The file the images come from. Raises EnvironmentMissing when scikit-learn has none."""
        # Read where it lies: importing sklearn.datasets for it would cost more than a second in every step.
        found = importlib.util.find_spec("sklearn")
        if found is None or found.origin is None:
            raise EnvironmentMissing("data source digits needs scikit-learn: pip install scikit-learn")
        path = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
        if not path.is_file():
            raise EnvironmentMissing(
                f"scikit-learn has no {path}: install it again, or use another data source"
            )
        return (path,)

    def splits(self) -> Mapping[str, Images]:
        with gzip.open(self.files()[0], "rt", encoding="ascii") as stream:
            table = np.loadtxt(stream, delimiter=",", dtype=np.float32)
        pixels = table[:, :-1].reshape(-1, 1, 8, 8) / 16
        labels = table[:, -1].astype(np.int64)
        test, train = stratified(labels, len(labels), TEST_SAMPLES, seed=0)
        large = _resized(pixels, self.config.image_size)
        return {
            "train": Images(
                large[train], labels[train], _standardised, partial(augment, kind=self.config.augment)
            ),
            "test": Images(large[test], labels[test], _standardised),
        }


def _resized(pixels: np.ndarray, size: int) -> np.ndarray:
    """[n, 1, 8, 8] -> [n, 1, size, size], bilinear."""
    import torch
    import torch.nn.functional as F

    large = F.interpolate(torch.from_numpy(pixels), (size, size), mode="bilinear", align_corners=False)
    return large.numpy()


def _standardised(images: Tensor) -> Tensor:
    return (images - MEAN) / STD
