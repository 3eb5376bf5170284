"""Classification data sets of torchvision, by their class name there."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from deploycompress.config.wording import nearest
from deploycompress.data.images import ImageConfig, Pictures, cores
from deploycompress.errors import ConfigError, EnvironmentMissing

SPLITS = ("train", "val", "test")
UNPICKLED = {"LSUN", "LSUNClass"}  # reads its index from a pickle that anybody may have put there


class Torchvision:
    """``torchvision:CIFAR10``: its splits as torchvision names them, from ``root``; downloaded only when asked to.

    Sets with ``train=`` or ``split=`` keep their splits; others (EuroSAT) are one, to cut with ``data.test``.
    """

    class Config(ImageConfig):
        dataset: str = Field(description="The name of a class in torchvision.datasets: CIFAR10")
        download: bool = Field(False, description="Whether to fetch what is not below root")

    def __init__(self, config: Torchvision.Config) -> None:
        self.config = config

    def files(self) -> tuple[Path, ...]:
        """Every file of the data set below the root. Raises ConfigError, and EnvironmentMissing without torchvision."""
        root = self._root()
        if self.config.download:
            _ = self._datasets  # so that the files are there to be read
        own = {
            root / name for name in (self.config.dataset, getattr(self._class, "base_folder", None)) if name
        }
        folders = [folder for folder in sorted(own) if folder.is_dir()] or [root]
        files = tuple(sorted(p for folder in folders for p in folder.rglob("*") if p.is_file()))
        if not files:
            raise ConfigError(f"data.root {root} holds no files; {self._remedy()}")
        return files

    def splits(self) -> Mapping[str, Pictures]:
        return {split: self._pictures(dataset, split) for split, dataset in self._datasets.items()}

    def _root(self) -> Path:
        if self.config.root is None:
            raise ConfigError(
                f"data source torchvision:{self.config.dataset} needs data.root: {self._remedy()}"
            )
        return self.config.root

    def _remedy(self) -> str:
        return f"name the folder that holds {self.config.dataset}, or set data.download: true"

    @cached_property
    def _class(self) -> Callable[..., Any]:
        name = self.config.dataset
        if importlib.util.find_spec("torchvision") is None:
            raise EnvironmentMissing(
                f"data source torchvision:{name} needs torchvision: pip install 'deploycompress[vision]'"
            )
        if name in UNPICKLED:
            raise ConfigError(
                f"torchvision's data set {name} reads a pickle, which would run code from the file; "
                "unpack it into a folder for each class, and take image_folder"
            )
        from torchvision import datasets

        found = getattr(datasets, name, None) if name in datasets.__all__ else None
        if found is None:
            close = nearest(name, datasets.__all__)
            raise ConfigError(
                f"torchvision has no data set {name!r}"
                + (f"; did you mean {close!r}?" if close else "; see torchvision.datasets for their names")
            )
        return found  # type: ignore[no-any-return]

    @cached_property
    def _datasets(self) -> dict[str, Any]:
        """The splits that torchvision has of it; validation and test are what it calls so."""
        known = inspect.signature(self._class).parameters
        if "train" in known:
            return {"train": self._opened(train=True), "test": self._opened(train=False)}
        if "split" not in known:
            return {"train": self._opened()}
        found = {split: self._opened(optional=True, split=split) for split in SPLITS}
        if found["train"] is None:
            found["train"] = self._opened(optional=True, split="trainval")  # OxfordIIITPet
        splits = {split: dataset for split, dataset in found.items() if dataset is not None}
        if "train" not in splits:
            raise ConfigError(
                f"data source torchvision:{self.config.dataset} has no 'train' split; open it in a module:function"
            )
        return splits

    def _opened(self, *, optional: bool = False, **which: Any) -> Any:
        known = inspect.signature(self._class).parameters
        more = {"root": str(self._root()), "download": self.config.download}
        try:
            return self._class(**which, **{k: v for k, v in more.items() if k in known})
        except ValueError as error:
            if optional:  # torchvision says so of a split that it does not know
                return None
            raise self._failed(error) from error
        except Exception as error:  # each data set raises what it likes
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> ConfigError | EnvironmentMissing:
        text = f"data source torchvision:{self.config.dataset} in {self.config.root}: {type(error).__name__}: {error}"
        if isinstance(error, (OSError, ImportError)) and not isinstance(error, FileNotFoundError):
            return EnvironmentMissing(
                f"{text}; look at the network and the folder, or install what is missing"
            )
        return ConfigError(f"{text}; {self._remedy()}")

    def _pictures(self, dataset: Any, split: str) -> Pictures:
        sample = dataset[0] if len(dataset) else None
        if not (isinstance(sample, tuple) and len(sample) == 2 and hasattr(sample[0], "convert")):
            raise ConfigError(
                f"data source torchvision:{self.config.dataset}, split {split}: received {_described(sample)}; expected "
                "pairs of an image and its class: open it in a module:function"
            )
        labels = _labels(dataset)
        if labels is None:
            raise ConfigError(
                f"data source torchvision:{self.config.dataset}, split {split}: its targets are no classes; expected "
                "a whole number for each image: open it in a module:function"
            )
        return Pictures(
            lambda index: dataset[index][0],
            labels,
            len(dataset),
            self.config,
            changed=split == "train",
            classes=getattr(dataset, "classes", None),
            threads=cores(),
        )


def _described(sample: Any) -> str:
    if isinstance(sample, tuple):
        return f"({', '.join(type(part).__name__ for part in sample)})"
    return "no samples" if sample is None else type(sample).__name__


def _labels(dataset: Any) -> np.ndarray | None:
    """The class of every image, as the data set holds them; where it does not, one sample after another."""
    for name in ("targets", "labels", "_labels", "y"):
        values = getattr(dataset, name, None)
        if values is not None and len(values) == len(dataset):
            array = np.asarray(values)
            if array.ndim == 1 and np.issubdtype(array.dtype, np.integer):
                return array
    pairs = getattr(dataset, "samples", None) or getattr(dataset, "_samples", None)  # (file, class)
    targets = [dataset[i][1] for i in range(len(dataset))] if pairs is None else [pair[1] for pair in pairs]
    return np.array(targets, np.int64) if all(isinstance(t, int) for t in targets) else None
