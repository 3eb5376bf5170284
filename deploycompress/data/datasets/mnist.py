"""MNIST, and whatever has its form, from idx files or one npz file of the user's."""

from __future__ import annotations

import gzip
import struct
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from deploycompress.config.schema import DataConfig
from deploycompress.data.augment import Augment, augment
from deploycompress.data.samples import Images
from deploycompress.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

MEAN, STD = 0.1307, 0.3081  # of the 60,000 training images with pixels in 0..1
IDX_PARTS = {
    "train": ("train-images", "train-labels"),
    "test": ("t10k-images", "t10k-labels"),
}
REMEDY = (
    "data.root names a folder with train-images-idx3-ubyte, train-labels-idx1-ubyte and the two t10k-* files "
    "(.gz or not), or an .npz file with x_train, y_train, x_test and y_test, or with x, y and test_from"
)

USUAL_TRAIN = 60_000  # images of MNIST's own training split, which come first

Arrays = Mapping[str, tuple[np.ndarray, np.ndarray]]  # split -> images [n, h, w] uint8, labels [n]


class Mnist:
    """``train`` and ``test``; one channel, resized when ``image_size`` is not theirs, standardised."""

    class Config(DataConfig):
        image_size: Annotated[int, Field(ge=8)] = 28
        augment: Augment = "none"
        test_from: Annotated[int, Field(ge=1)] | None = (
            None  # of an npz with x and y: the first test sample; None: what the file says, else 60000
        )

        @property
        def preprocessing(self) -> dict[str, Any]:
            size = {"height": self.image_size, "width": self.image_size}
            standard = {"divisor": 255, "mean": [MEAN], "std": [STD]}
            return {"kind": "image", **size, "channels": "L", "layout": "NCHW", **standard}

    def __init__(self, config: Mnist.Config) -> None:
        self.config = config

    def files(self) -> tuple[Path, ...]:
        """Every file the images come from. Raises ConfigError when there is none."""
        root = self.config.root
        if root is None:
            raise ConfigError(f"data source mnist needs data.root: {REMEDY}")
        if root.is_file():
            return (root,)
        for folder in (root, root / "raw", root / "MNIST" / "raw"):  # the last two are torchvision's
            if found := _idx_files(folder):
                return found
        archives = sorted(root.glob("*.npz"))
        if len(archives) == 1:
            return (archives[0],)
        what = "several .npz files" if archives else "neither" if root.is_dir() else "not there"
        raise ConfigError(f"data.root {root}: {what}; {REMEDY}")

    def splits(self) -> Mapping[str, Images]:
        files = self.files()
        arrays = _read_npz(files[0], self.config.test_from) if len(files) == 1 else _read_idx(files)
        return {split: self._images(split, *pair) for split, pair in arrays.items()}

    def _images(self, split: str, pixels: np.ndarray, labels: np.ndarray) -> Images:
        if pixels.ndim != 3 or pixels.dtype != np.uint8 or labels.shape != (len(pixels),):
            raise ConfigError(
                f"data.root {self.config.root}, {split}: received images {pixels.dtype}{list(pixels.shape)} and "
                f"labels {list(labels.shape)}; expected images uint8[n, height, width] and labels [n]"
            )
        prepare = partial(_prepared, size=self.config.image_size)
        changed = partial(augment, kind=self.config.augment) if split == "train" else None
        return Images(pixels[:, None], labels.astype(np.int64), prepare, changed)


def _prepared(images: Tensor, size: int) -> Tensor:
    import torch.nn.functional as F

    if images.shape[-2:] != (size, size):
        images = F.interpolate(images, (size, size), mode="bilinear", align_corners=False)
    return (images / 255 - MEAN) / STD


# ---------------------------------------------------------------- idx


def _idx_files(folder: Path) -> tuple[Path, ...]:
    """The four files, or nothing when one is missing; also with a dot for the hyphen, and gzipped."""
    found = []
    for part in (name for names in IDX_PARTS.values() for name in names):
        candidates = sorted(folder.glob(f"{part}[-.]idx*")) if folder.is_dir() else []
        if not candidates:
            return ()
        found.append(candidates[0])
    return tuple(found)


def _read_idx(files: tuple[Path, ...]) -> Arrays:
    arrays = [_idx(path) for path in files]
    return {"train": (arrays[0], arrays[1]), "test": (arrays[2], arrays[3])}


def _idx(path: Path) -> np.ndarray:
    """An idx file of unsigned bytes: two zeros, the type 8, the number of dimensions, their sizes, the data."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as stream:
            content = stream.read()
        zeros, kind, dimensions = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{dimensions}I", content, 4)
    except (OSError, EOFError, struct.error) as error:
        raise ConfigError(f"{path} cannot be read as an idx file: {error}; copy it again") from error
    data = np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions)
    if zeros != 0 or kind != 8 or data.size != np.prod(shape, dtype=np.int64):
        raise ConfigError(
            f"{path}: received magic {content[:4].hex()} and {data.size} values for shape {list(shape)}; expected an "
            "idx file of unsigned bytes (magic 000008..) with as many values as its shape says; copy it again"
        )
    return data.reshape(shape)


# ---------------------------------------------------------------- npz


def _read_npz(path: Path, test_from: int | None) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        if not all(isinstance(array, np.ndarray) for array in arrays.values()):
            raise ValueError("it is an archive with something else than arrays in it")
    except (OSError, EOFError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise ConfigError(f"data.root {path} cannot be read as an .npz file: {error}; {REMEDY}") from error
    if {"x_train", "y_train", "x_test", "y_test"} <= arrays.keys():
        return {s: (arrays[f"x_{s}"], arrays[f"y_{s}"].ravel()) for s in ("train", "test")}
    if not {"x", "y"} <= arrays.keys():
        raise ConfigError(f"data.root {path} holds {', '.join(arrays) or 'nothing'}; {REMEDY}")
    x, y = arrays["x"], arrays["y"].ravel()
    cut = test_from if test_from is not None else int(arrays.get("test_from", USUAL_TRAIN))
    if cut == USUAL_TRAIN and test_from is None and len(x) <= USUAL_TRAIN:
        raise ConfigError(
            f"data.root {path} holds x and y with {len(x)} samples, and nothing says where the test split begins: "
            "set data.test_from to the index of the first test sample (60000 for MNIST's usual order)"
        )
    if not 0 < cut < len(x):
        raise ConfigError(
            f"data.test_from is {cut}, but {path} holds {len(x)} samples: expected 1 to {len(x) - 1}"
        )
    return {"train": (x[:cut], y[:cut]), "test": (x[cut:], y[cut:])}
