"""Arrays of the user's in an npz file, or in a folder of npy files."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, model_validator

from deploycompress.config.schema import DataConfig
from deploycompress.data.augment import Augment, augment
from deploycompress.data.samples import Indices
from deploycompress.errors import ConfigError

SPLITS = ("train", "val", "test", "calibration")
EXPECTED = (
    "an .npz file with x_train, y_train and where there are any x_val, y_val, x_test, y_test (or x and y alone), or a "
    "folder with these as .npy files"
)


class Arrays:
    """``x_train``, ``y_train``, ``x_test`` ...; .npy files are mapped and not read, so that they may be large.

    Arrays of objects are refused: reading them would run what was pickled. Floats become float32, targets int64 where
    they are whole numbers; ``scale``, ``mean`` and ``std`` make float32 of any type.
    """

    class Config(DataConfig):
        inputs: tuple[str, ...] = Field(("x",), min_length=1, description="In the order of model.inputs")
        target: str | None = Field("y", description="null: the data have no labels")
        channels_last: bool = Field(
            False, description="Images are [n, height, width, channels]; the network reads channels first"
        )
        scale: Annotated[float, Field(gt=0)] | None = Field(
            None, description="What the first input is divided by: 255 for bytes"
        )
        mean: float | tuple[float, ...] | None = Field(
            None, description="Taken off the first input after scale; several: one for each channel"
        )
        std: float | tuple[float, ...] | None = Field(None, description="As mean; what it is divided by")
        augment: Augment = Field("none", description="Of the first input in training, for images")

        @model_validator(mode="after")
        def _sound(self) -> Arrays.Config:
            if not np.all(np.asarray(1.0 if self.std is None else self.std) > 0):
                raise ValueError(f"std is {self.std}; expected numbers above 0")
            return self

    def __init__(self, config: Arrays.Config) -> None:
        self.config = config

    def files(self) -> tuple[Path, ...]:
        """The npz file, or every npy file of the folder. Raises ConfigError when there is none."""
        root = self.config.root
        if root is None:
            raise ConfigError(f"data source arrays needs data.root: {EXPECTED}")
        found = (root,) if root.is_file() else tuple(sorted(root.glob("*.npy")))
        if not found or found[0].suffix not in (".npz", ".npy") or (root.is_file() and root.suffix != ".npz"):
            raise ConfigError(f"data.root {root}: no array to read; expected {EXPECTED}")
        return found

    def splits(self) -> Mapping[str, ArraySamples]:
        arrays = _read(self.files())
        whole = self._samples(arrays, "", "train")
        found = {split: self._samples(arrays, f"_{split}", split) for split in SPLITS}
        splits = {split: samples for split, samples in found.items() if samples is not None}
        if whole is not None and "train" not in splits:
            splits["train"] = whole
        if not splits:
            raise ConfigError(
                f"data.root {self.config.root} holds {', '.join(sorted(arrays)) or 'nothing'}; expected {EXPECTED}, "
                "or their own names in data.inputs and data.target"
            )
        return splits

    def _samples(self, arrays: Mapping[str, np.ndarray], ending: str, split: str) -> ArraySamples | None:
        """None where the split has no array at all. Raises ConfigError where it has some of them."""
        names = (*self.config.inputs, *([self.config.target] if self.config.target else []))
        there = [f"{name}{ending}" for name in names if f"{name}{ending}" in arrays]
        if not there:
            return None
        if absent := [f"{name}{ending}" for name in names if f"{name}{ending}" not in arrays]:
            raise ConfigError(
                f"data.root {self.config.root} has {', '.join(there)} and not {', '.join(absent)}: add it, or change "
                "data.inputs or data.target (null: no labels)"
            )
        parts = [arrays[f"{name}{ending}"] for name in names]
        lengths = {
            f"{name}{ending}": len(part) if part.ndim else 0 for name, part in zip(names, parts, strict=True)
        }
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{count} in {name}" for name, count in lengths.items())
            raise ConfigError(
                f"data.root {self.config.root}: received {told} samples; expected as many in each"
            )
        inputs = parts[: len(self.config.inputs)]
        target = parts[-1] if self.config.target else None
        return ArraySamples(inputs, _targets(target), self.config, changed=split == "train")


@dataclass(frozen=True)
class ArraySamples:
    """Rows of arrays, converted a batch at a time."""

    inputs: Sequence[np.ndarray]
    targets: np.ndarray | None
    config: Arrays.Config
    changed: bool = False

    @property
    def labels(self) -> np.ndarray | None:
        targets = self.targets
        whole = targets is not None and targets.ndim == 1 and np.issubdtype(targets.dtype, np.integer)
        return targets if whole else None

    def __len__(self) -> int:
        return len(self.inputs[0])

    def batch(self, indices: Indices, rng: np.random.Generator | None) -> tuple[Any, ...]:
        import torch

        first, *others = (torch.from_numpy(_plain(array[indices])) for array in self.inputs)
        if self.config.channels_last:
            first = first.movedim(-1, 1)
        options = self.config
        if self.changed and rng is not None and options.augment != "none":
            first = augment(first.float(), rng, options.augment)
        if options.scale is not None:
            first = first.float() / options.scale
        if options.mean is not None:
            first = first.float() - _by_channel(options.mean, first.ndim)
        if options.std is not None:
            first = first.float() / _by_channel(options.std, first.ndim)
        inputs = (first.contiguous(), *others)
        return inputs if self.targets is None else (inputs, torch.from_numpy(_numbers(self.targets[indices])))


def _by_channel(values: float | tuple[float, ...], dimensions: int) -> Any:
    import torch

    if isinstance(values, float):
        return values
    return torch.tensor(values).reshape(-1, *[1] * (dimensions - 2))  # the second dimension is the channel


def _plain(array: np.ndarray) -> np.ndarray:
    """Of a type that networks read: numpy counts in float64 by itself."""
    return np.ascontiguousarray(array, np.float32 if array.dtype == np.float64 else array.dtype)


def _targets(array: np.ndarray | None) -> np.ndarray | None:
    if array is None:
        return None
    if array.ndim == 2 and array.shape[1] == 1 and np.issubdtype(array.dtype, np.integer):
        array = array[:, 0]  # a column of class numbers
    # Masks may be larger than memory: what is mapped stays so, and is converted a batch at a time.
    return _numbers(array) if array.ndim == 1 else array


def _numbers(array: np.ndarray) -> np.ndarray:
    """Whole numbers as int64, all others as float32."""
    return np.asarray(array, np.int64 if array.dtype.kind in "iub" else np.float32)


def _read(files: tuple[Path, ...]) -> dict[str, np.ndarray]:
    """Every array by name. Raises ConfigError for a file that is none, or holds objects."""
    arrays: dict[str, np.ndarray] = {}
    for file in files:
        try:
            if file.suffix == ".npy":
                arrays[file.stem] = np.load(file, mmap_mode="r", allow_pickle=False)
            else:
                with np.load(file, allow_pickle=False) as archive:
                    arrays |= {name: archive[name] for name in archive.files}
            if not all(isinstance(array, np.ndarray) for array in arrays.values()):
                raise ValueError("it is an archive with something else than arrays in it")
        except (OSError, EOFError, ValueError, AttributeError, zipfile.BadZipFile) as error:
            raise ConfigError(
                f"{file} cannot be read as arrays: {error}; save numbers with numpy.savez or numpy.save (objects, "
                "which numpy would unpickle, are refused)"
            ) from error
    if bad := [name for name, array in arrays.items() if array.dtype.kind not in "fiub"]:
        raise ConfigError(
            f"{files[0]}: {bad[0]} is of type {arrays[bad[0]].dtype}; expected numbers: number the classes from 0"
        )
    return arrays
