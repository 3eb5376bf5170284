"""The pipeline's data by name: a built-in source or the user's function, opened on first use."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from deploycompress.artifact import digest_file, digest_json
from deploycompress.config.schema import DataConfig
from deploycompress.contracts import Event, Loader, Model, Split, Store
from deploycompress.data.contents import digests_of
from deploycompress.data.loaders import OrderedLoader, StreamLoader, chunks
from deploycompress.data.splits import Splits, Stream, open_splits
from deploycompress.errors import ConfigError, DeployCompressError
from deploycompress.registry import DATASETS

FEW_SAMPLES, FEW_BATCH = 16, 8  # in the rehearsal: two batches


class Source(Protocol):
    """What a built-in source is: made from its own ``Config(DataConfig)``."""

    def files(self) -> tuple[Path, ...]:
        """The files whose contents are the data. Raises ConfigError or EnvironmentMissing."""
        ...

    def splits(self) -> Mapping[str, Any]:
        """As a user's function returns them, see ``SourceData``."""
        ...


class SourceData:
    """Splits of a built-in source or of a user's ``module:function``.

    The function is called with ``data.args`` (and ``root``, where it is set) as keywords and returns a dict
    from ``train``, ``val``, ``test`` and ``calibration`` to one of:

    - a map-style data set of samples: ``__len__`` and ``__getitem__``; with ``targets`` or ``labels`` (the
      class of every sample) a validation split is cut with every class in its share;
    - the same with ``batch(indices, rng)`` for ``__getitem__``, which reads a whole batch at once; ``rng`` is
      a numpy generator to augment with in training, else None;
    - an iterable of batches, begun anew by every ``iter``; ``set_epoch(epoch)`` is called where it has one. A
      generator of its own that it draws from has to begin anew with it, or a training that is cut ends differently.

    A sample, or a batch, is (inputs, targets), a dict by input name with ``targets``, a Batch, or inputs alone.
    Without ``val``, that share (``data.validation``) of train is cut off; without ``calibration``,
    ``data.calibration`` samples of what is left are taken. A train split that augments by itself, and does not
    through ``rng``, should come with both. The function's ``fingerprint`` (text, or a callable that takes the same
    keywords) stands for the contents of the data; without one its file's code and ``data.version`` do.
    """

    def __init__(
        self,
        config: DataConfig,
        model: Model,
        seed: int,
        *,
        few: bool = False,
        store: Store | None = None,  # remembers the digests of large data
        classes: bool = True,  # whether whole numbers among the targets are classes
        emit: Callable[[Event], None] = lambda event: None,  # hears of a long reading
    ) -> None:
        self._config, self._model, self._seed, self._few = config, model, seed, few
        self._store, self._classes, self._emit = store, classes, emit

    @cached_property
    def digest(self) -> str:
        """Of the options and of what they name: a built-in's files, a function's fingerprint or code."""
        built_in = self._built_in
        if built_in is None:
            options = self._config.model_dump(mode="json")
            code = [[self._config.source, _fingerprint(self._function, self._keywords())]]
            return digest_json({"options": options, "contents": code})
        # A file counts by what is in it and not by where it lies.
        places = {name for name, value in self._config if isinstance(value, Path)}
        options = self._config.model_dump(mode="json", exclude=places)
        contents = digests_of(built_in.files(), self._config.root, self._store, self._emit)
        return digest_json({"options": options, "contents": contents})

    def loader(self, split: Split, epoch: int | None = None) -> Loader:
        """Batches of ``data.batch_size``, the last one smaller; shuffled by seed and epoch in training.

        Without an epoch train is shuffled too, always in the same way, and nothing in it is augmented.

        Raises ConfigError when there is no such split or it is empty, and while reading, where a batch does
        not fit the model's inputs or holds NaN or Inf.
        """
        where = f"data source {self._config.source}, split {split}"
        found = self._splits.get(split)
        if found is None:
            raise ConfigError(
                f"{where}: there is none; received {', '.join(self._splits)}: return a {split!r} split"
                + (", or set data.test to a share of train" if split == "test" else "")
            )
        specs, size = self._model.inputs, self._config.batch_size
        if isinstance(found, Stream):
            limit, at_most = (FEW_SAMPLES, FEW_BATCH) if self._few else (found.limit, None)
            return StreamLoader(found.batches, specs, where, epoch, limit, at_most, self._seed)
        total, size = (
            (min(len(found), FEW_SAMPLES), min(size, FEW_BATCH)) if self._few else (len(found), size)
        )
        if epoch is None:
            # The first samples of train are to be of all kinds; many data lie in the order of their classes.
            order = _shuffled(total, self._seed) if split == "train" else np.arange(total)
            return OrderedLoader(found, specs, where, chunks(order, size, together=split == "calibration"))
        order = _shuffled(total, self._seed, epoch)
        return OrderedLoader(found, specs, where, chunks(order, size, together=True), (self._seed, epoch))

    @property
    def interface(self) -> Mapping[str, Any]:
        """What whoever runs the model has to know of its data, as JSON, where it is known.

        ``labels``: names of the classes in the order of their numbers; ``preprocessing``: of a raw sample.
        """
        names = next((n for s in self._splits.values() if (n := getattr(s, "classes", None))), None)
        return {
            **({"labels": list(names)} if names else {}),
            **({"preprocessing": told} if (told := self._config.preprocessing) else {}),
        }

    @cached_property
    def _built_in(self) -> Source | None:
        if self._config.source not in DATASETS:
            return None
        source: Source = DATASETS.load(self._config.source)(self._config)
        return source

    @cached_property
    def _function(self) -> Callable[..., Any]:
        function = DATASETS.load(self._config.source)
        if not callable(function):
            raise ConfigError(
                f"data source {self._config.source} is a {type(function).__name__}; expected a function"
            )
        return function  # type: ignore[no-any-return]

    @cached_property
    def _splits(self) -> Splits:
        given = self._built_in.splits() if self._built_in else self._called()
        return open_splits(given, self._config, self._model.inputs, self._classes)

    def _called(self) -> object:
        keywords = self._keywords()
        try:
            return self._function(**keywords)
        except DeployCompressError:
            raise
        except Exception as error:
            received = ", ".join(f"{key}={value!r}" for key, value in keywords.items())
            raise ConfigError(
                f"data source {self._config.source}({received}) failed: {type(error).__name__}: {error}"
            ) from error

    def _keywords(self) -> dict[str, Any]:
        root = self._config.root
        return {**self._config.args, **({} if root is None else {"root": root})}


def _shuffled(total: int, *seeds: int) -> np.ndarray:
    return np.random.default_rng(seeds).permutation(total)


def _fingerprint(function: Callable[..., Any], keywords: Mapping[str, Any]) -> str:
    own = getattr(function, "fingerprint", None)
    if own is not None:
        return str(own(**keywords) if callable(own) else own)
    file = getattr(sys.modules.get(function.__module__), "__file__", None)
    if file is None:
        raise ConfigError(
            f"{function.__module__}:{function.__qualname__} comes from no file, so that nothing says when its data "
            "change: give it a fingerprint attribute, a text that changes with the data"
        )
    return digest_file(Path(file))
