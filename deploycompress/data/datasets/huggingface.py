"""Hugging Face data sets: saved to disk, in local files, or downloaded when asked to."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from deploycompress.config.wording import listed
from deploycompress.data.images import ImageConfig, Pictures, cores, require_pillow
from deploycompress.data.labelled import SYNONYMS
from deploycompress.data.samples import Indices
from deploycompress.data.words import Sentences, TextConfig, encoder, tokenizer_files
from deploycompress.errors import ConfigError, EnvironmentMissing

BUILDERS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json", ".arrow": "arrow"}
SHARD = re.compile(r"-\d+-of-\d+$")  # train-00000-of-00004.parquet, as the hub keeps large sets
EXPECTED = (
    "a folder that save_to_disk wrote, or files called train, and where there are any val and test, ending in "
    f"{' '.join(BUILDERS)}"
)


class HuggingFace:
    """One column of text or of images, or several of numbers, and a label."""

    class Config(TextConfig, ImageConfig):
        text: str | None = Field(None, description="The column with sentences")
        image: str | None = Field(None, description="The column with images")
        columns: tuple[str, ...] = Field(
            (), description="Columns of numbers or lists of them, one for each input"
        )
        label: str | None = Field("label", description="The column that is predicted; null: no labels")
        name: str | None = Field(
            None, description="Of a data set to download: owner/name; needs download: true"
        )
        download: bool = Field(False, description="Whether it may be fetched")

        @model_validator(mode="after")
        def _one_kind(self) -> HuggingFace.Config:
            if [self.text is not None, self.image is not None, bool(self.columns)].count(True) != 1:
                raise ValueError("expected one of text, image and columns, to say what the model reads")
            if (self.name is not None) != self.download:
                raise ValueError("name and download: expected both for a data set that is fetched, else root")
            return self

    def __init__(self, config: HuggingFace.Config) -> None:
        self.config = config

    def files(self) -> tuple[Path, ...]:
        """What lies below the root, and the tokenizer; a downloaded set's files in the cache."""
        tokenizer = tokenizer_files(self.config.tokenizer)
        if self.config.name is not None:
            cached = {Path(f["filename"]) for part in self._parts.values() for f in part.cache_files}
            return (*sorted(cached), *tokenizer)
        root = self.config.root
        found = (
            sorted(p for p in root.rglob("*") if p.is_file()) if root is not None and root.is_dir() else []
        )
        if not found:
            raise ConfigError(f"data source huggingface needs data.root: {EXPECTED}; received {root}")
        return (*found, *tokenizer)

    def splits(self) -> Mapping[str, Any]:
        parts = self._parts
        if "train" not in parts:
            raise ConfigError(
                f"data source huggingface: received the splits {', '.join(parts)}; expected 'train'"
            )
        config = self.config
        used = [c for c in (config.text, config.image, *config.columns, config.label) if c is not None]
        for split, part in parts.items():
            for column in used:
                if column not in part.column_names:
                    raise ConfigError(
                        f"data source huggingface, split {split}: no column {column!r}; it has "
                        f"{listed(part.column_names)}: change data.text, data.image, data.columns or data.label"
                    )
        numbers, classes = self._labels(parts)
        if config.text is not None:
            return self._sentences(parts, config.text, numbers, classes)
        if config.image is not None:
            require_pillow("huggingface")
            return {s: self._pictures(part, s, numbers[s], classes) for s, part in parts.items()}
        return {s: Columns(part, config.columns, numbers[s], classes) for s, part in parts.items()}

    # ------------------------------------------------------------ opening

    @cached_property
    def _parts(self) -> dict[str, Any]:
        """The data set of each split."""
        if importlib.util.find_spec("datasets") is None:
            raise EnvironmentMissing(
                "data source huggingface needs datasets: pip install 'deploycompress[text]'"
            )
        with _wrapped(self.config):
            found = self._load()
        parts = dict(found) if isinstance(found, Mapping) else {"train": found}
        return {SYNONYMS[name.lower()]: part for name, part in parts.items() if name.lower() in SYNONYMS}

    def _load(self) -> Any:
        import datasets

        if self.config.name is not None:
            return datasets.load_dataset(self.config.name)
        self.files()
        root = self.config.root
        assert root is not None  # files() has said so otherwise
        if (root / "dataset_dict.json").is_file() or (root / "state.json").is_file():
            return datasets.load_from_disk(str(root))
        files: dict[str, list[str]] = {}
        kinds = set()
        for path in sorted(root.iterdir()):
            name = SHARD.sub("", path.stem).lower()
            if name in SYNONYMS and path.suffix.lower() in BUILDERS:
                files.setdefault(name, []).append(str(path))
                kinds.add(BUILDERS[path.suffix.lower()])
        if len({SYNONYMS[name] for name in files}) < len(files):
            raise ConfigError(
                f"data.root {root}: received {listed(sorted(files))}, of which two are one split; expected one of them"
            )
        if len(kinds) != 1 or "train" not in {SYNONYMS[name] for name in files}:
            raise ConfigError(
                f"data.root {root}: received {listed(sorted(p.name for p in root.iterdir()))}; expected {EXPECTED}"
            )
        return datasets.load_dataset(kinds.pop(), data_files=files)

    # ------------------------------------------------------------ what the model reads

    def _labels(self, parts: Mapping[str, Any]) -> tuple[dict[str, np.ndarray | None], Sequence[str] | None]:
        """Class numbers, or float32 numbers, of each split; names become numbers in their sorted order."""
        label = self.config.label
        if label is None:
            return dict.fromkeys(parts), None
        values = {split: np.asarray(part[label][:]) for split, part in parts.items()}
        for split, found in values.items():
            empty = found.dtype == object and any(value is None for value in found)
            if empty or (found.dtype.kind == "f" and np.isnan(found).any()):
                raise ConfigError(
                    f"data source huggingface, split {split}: column {label!r} has rows without a label"
                )
            if found.dtype.kind == "i" and found.ndim == 1 and len(found) and found.min() < 0:
                raise ConfigError(
                    f"data source huggingface, split {split}: column {label!r} has {found.min()}, which stands for no "
                    "label: leave the split out, or take a set with its labels"
                )
        names = getattr(parts["train"].features[label], "names", None)
        if values["train"].dtype.kind in "UO":
            names = sorted({str(value) for found in values.values() for value in found})
            number = {name: index for index, name in enumerate(names)}
            values = {s: np.array([number[str(v)] for v in found], np.int64) for s, found in values.items()}
        kept = {s: v.astype(np.int64 if v.dtype.kind in "iub" else np.float32) for s, v in values.items()}
        return dict(kept), names

    def _sentences(
        self, parts: Mapping[str, Any], column: str, labels: Mapping[str, np.ndarray | None], classes: Any
    ) -> dict[str, Sentences]:
        texts = {split: list(part[column][:]) for split, part in parts.items()}
        for split, found in texts.items():
            if odd := [row for row, text in enumerate(found) if not isinstance(text, str)]:
                raise ConfigError(
                    f"data source huggingface, split {split}: column {column!r} has {found[odd[0]]!r} in row {odd[0]} "
                    f"({len(odd)} such rows); expected text: fill or leave out such rows"
                )
        encode = encoder(self.config, texts["train"])
        return {
            s: Sentences(encode(t), labels[s], self.config, encode.pad, classes) for s, t in texts.items()
        }

    def _pictures(self, part: Any, split: str, labels: np.ndarray | None, classes: Any) -> Pictures:
        column = str(self.config.image)
        if not hasattr(part[0][column], "convert"):
            raise ConfigError(
                f"data source huggingface, split {split}: column {column!r} holds {type(part[0][column]).__name__}; "
                "expected images: cast the column to datasets.Image"
            )
        images = part.select_columns([column])  # or every image column of a row would be decoded

        def read(index: int) -> Any:
            return images[index][column]

        changed = split == "train"
        return Pictures(read, labels, len(part), self.config, changed, classes, threads=cores())


@dataclass(frozen=True)
class Columns:
    """Columns of numbers, read from the memory-mapped file a batch at a time; floats become float32."""

    part: Any
    columns: Sequence[str]
    labels: np.ndarray | None
    classes: Sequence[str] | None

    def __len__(self) -> int:
        return len(self.part)

    def batch(self, indices: Indices, rng: np.random.Generator | None) -> tuple[Any, ...]:
        import torch

        rows = self.part[indices.tolist()]
        arrays = [np.asarray(rows[column]) for column in self.columns]
        inputs = tuple(torch.from_numpy(a.astype(np.float32) if a.dtype == np.float64 else a) for a in arrays)
        return inputs if self.labels is None else (inputs, torch.from_numpy(self.labels[indices]))


@contextmanager
def _wrapped(config: HuggingFace.Config) -> Iterator[None]:
    """What datasets raises, as a sentence."""
    try:
        yield
    except (ConfigError, EnvironmentMissing):
        raise
    except ConnectionError as error:
        raise EnvironmentMissing(
            f"data source huggingface: {config.name} cannot be fetched: {error}"
        ) from error
    except Exception as error:  # each file format raises its own
        raise ConfigError(
            f"data source huggingface: {config.name or config.root} cannot be opened: {type(error).__name__}: {error}; "
            f"expected {EXPECTED}"
        ) from error
