"""Sentences as token ids: by a vocabulary made of the training text, or by the user's own tokenizer."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import numpy as np
from pydantic import Field

from deploycompress.config.schema import DataConfig
from deploycompress.data.padding import padded
from deploycompress.data.samples import Indices
from deploycompress.errors import ConfigError, EnvironmentMissing

if TYPE_CHECKING:
    from torch import Tensor

PAD, UNKNOWN = 0, 1
PIECE = 10_000  # texts
WORD = re.compile(r"\w+|[^\w\s]")


class TextConfig(DataConfig):
    """How sentences become ids."""

    tokenizer: Path | None = Field(
        None,
        description="A tokenizer.json, or a folder with a tokenizer of transformers; null: words of train",
    )
    vocabulary: Annotated[int, Field(ge=3)] = Field(
        10_000,
        description="Ids at most, without a tokenizer: 0 pads, 1 is any other word, the most frequent come first",
    )
    min_count: Annotated[int, Field(ge=1)] = Field(2, description="Rarer words of train are 'any other'")
    lower: bool = Field(True, description="Whether upper and lower case are the same, without a tokenizer")
    length: Annotated[int, Field(ge=1)] = Field(64, description="Ids of a sentence; what is longer is cut")
    padding: Literal["length", "longest"] = Field(
        "length",
        description="longest: a batch is as long as its longest sentence; model.inputs must name that dimension",
    )
    mask: bool = Field(
        False, description="Whether the model's second input is the mask, int64: 1 for an id, 0 for padding"
    )

    @property
    def preprocessing(self) -> dict[str, Any]:
        tokenizer = self.tokenizer.name if self.tokenizer else "words of the training split"
        told = {name: getattr(self, name) for name in ("length", "padding", "lower", "mask")}
        return {"kind": "text", "tokenizer": tokenizer, **told}


class Encoder(Protocol):
    """Text -> ids."""

    @property
    def pad(self) -> int: ...
    def __call__(self, texts: Sequence[str]) -> list[np.ndarray]: ...


def encoder(config: TextConfig, train: Iterable[str]) -> Encoder:
    """The user's tokenizer, else the words of ``train``. Raises ConfigError and EnvironmentMissing."""
    if config.tokenizer is None:
        return Vocabulary.made(train, config)
    return Tokenizer.opened(config.tokenizer, config.length)


def tokenizer_files(path: Path | None) -> tuple[Path, ...]:
    """What the tokenizer is made of, for the digest."""
    if path is None:
        return ()
    return (path,) if path.is_file() else tuple(sorted(p for p in path.iterdir() if p.is_file()))


@dataclass(frozen=True)
class Vocabulary:
    """Words and punctuation marks by frequency."""

    ids: dict[str, int]
    lower: bool
    pad: int = PAD

    @classmethod
    def made(cls, texts: Iterable[str], config: TextConfig) -> Vocabulary:
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(_words(text, config.lower))
        kept = sorted(
            (word for word, n in counts.items() if n >= config.min_count), key=lambda w: (-counts[w], w)
        )
        return cls({w: i for i, w in enumerate(kept[: config.vocabulary - 2], start=2)}, config.lower)

    def __call__(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [
            np.array([self.ids.get(word, UNKNOWN) for word in _words(text, self.lower)], np.int64)
            for text in texts
        ]


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer of the user's from local files; nothing is downloaded and none of its code is run.

    It cuts what is longer than ``length`` itself, so that the marks at the end of a sentence stay.
    """

    encode: Callable[[list[str]], Sequence[Sequence[int]]]
    pad: int

    @classmethod
    def opened(cls, path: Path, length: int) -> Tokenizer:
        file = path / "tokenizer.json" if path.is_dir() else path
        if file.is_file():
            return cls._of_file(file, length)
        if importlib.util.find_spec("transformers") is None:
            raise EnvironmentMissing(
                f"tokenizer {path}: needs transformers: pip install 'deploycompress[text]'"
            )
        from transformers import AutoTokenizer

        try:
            own = AutoTokenizer.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
        except Exception as error:  # transformers raises many kinds
            raise ConfigError(
                f"data.tokenizer {path} cannot be opened: {error}; expected a tokenizer.json, or what "
                "save_pretrained of a tokenizer writes"
            ) from error
        cut = {"truncation": True, "max_length": length}
        return cls(lambda texts: own(texts, **cut)["input_ids"], int(own.pad_token_id or PAD))

    @classmethod
    def _of_file(cls, file: Path, length: int) -> Tokenizer:
        if importlib.util.find_spec("tokenizers") is None:
            raise EnvironmentMissing(
                f"tokenizer {file}: needs tokenizers: pip install 'deploycompress[text]'"
            )
        from tokenizers import Tokenizer as Fast

        try:
            own = Fast.from_file(str(file))
        except Exception as error:  # tokenizers raises plain Exception
            raise ConfigError(
                f"data.tokenizer {file} cannot be read: {error}; expected a tokenizer.json"
            ) from error
        own.no_padding()
        own.enable_truncation(length)
        marks = (own.token_to_id(mark) for mark in ("[PAD]", "<pad>", "<|endoftext|>"))
        pad = next((mark for mark in marks if mark is not None), PAD)
        return cls(lambda texts: [e.ids for e in own.encode_batch(texts)], pad)

    def __call__(self, texts: Sequence[str]) -> list[np.ndarray]:
        # In pieces: what a tokenizer knows of a text takes a hundred times the memory of its ids.
        pieces = (list(texts[at : at + PIECE]) for at in range(0, len(texts), PIECE))
        return [np.array(ids, np.int64) for piece in pieces for ids in self.encode(piece)]


@dataclass(frozen=True)
class Sentences:
    """Encoded sentences, padded a batch at a time."""

    ids: Sequence[np.ndarray]
    labels: np.ndarray | None
    config: TextConfig
    pad: int
    classes: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: Indices, rng: np.random.Generator | None) -> tuple[Any, ...]:
        import torch

        rows = [self.ids[i][: self.config.length] for i in indices]
        ids, mask = padded(rows, self.config.length if self.config.padding == "length" else None, self.pad)
        inputs: tuple[Tensor, ...] = (ids, mask) if self.config.mask else (ids,)
        return inputs if self.labels is None else (inputs, torch.from_numpy(self.labels[indices]))


def _words(text: str, lower: bool) -> list[str]:
    return WORD.findall(text.lower() if lower else text)
