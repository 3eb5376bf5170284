"""The user's model, found by its name in the configuration."""

from __future__ import annotations

import inspect
import random
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from os.path import abspath
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deploycompress.artifact import digest_json
from deploycompress.config.schema import InputSpec, ModelConfig, Network
from deploycompress.errors import ConfigError, StageFailed
from deploycompress.model.build_name import build_name, build_of, mark_build
from deploycompress.model.code import loaded_code
from deploycompress.model.factory import Factory, installed_version, open_factory
from deploycompress.model.outputs import named_outputs
from deploycompress.model.weights import load_weights
from deploycompress.user_code import user_code_is_refused

__all__ = ["SourceModel", "load_weights", "named_outputs"]

LOADER = "deploycompress.model.recipe:load"  # reads what ``SourceModel.recipe`` gives
OTHER_DIMENSION = 32  # the example's size of a named dimension that is not the batch (a sequence, a height)


class SourceModel:
    """Implements ``contracts.Model`` for ``model:`` in pipeline.yaml.

    ``others``: networks that the stages name. A checkpoint of one bears its name, and nothing is ever built because
    a checkpoint asks for it: only what the configuration names.
    """

    def __init__(
        self,
        config: ModelConfig,
        seed: int,
        search_path: Sequence[Path] = (),
        others: Iterable[Network] = (),
    ) -> None:
        self._config, self._seed = config, seed
        self._search_path = () if user_code_is_refused() else tuple(search_path)
        self._name = ""  # on what is built; the pipeline's own model has none
        self._by_keyword: bool | None = None  # known once the model was built, before anything wraps it
        self._others: dict[str, SourceModel] = {}
        for network in others:
            self.other(network)

    @property
    def inputs(self) -> Mapping[str, InputSpec]:
        return self._config.inputs

    @cached_property
    def _factory(self) -> Factory:
        return open_factory(self._config.build, self._config.args, self._search_path)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the reference, its arguments, the inputs, the user's code and installed versions."""
        self.build()  # what the factory imports when it is called counts too
        place, _, name = self._config.build.rpartition(":")
        return digest_json(
            {
                "build": f"{Path(place).name if place.endswith('.py') else place}:{name}",
                "args": self._config.args,
                "inputs": {k: v.model_dump(mode="json") for k, v in self._config.inputs.items()},
                "code": loaded_code(),
                "installed": installed_version(self._factory.package),
            }
        )

    @property
    def recipe(self) -> dict[str, Any]:
        """As JSON, for ``model.recipe.load``. Its process finds modules where this one does."""
        networks = [
            Network(build=of._config.build, args=of._config.args, weights=None)
            for of in self._others.values()
        ]
        return {
            "loader": LOADER,
            "config": self._config.model_dump(mode="json", exclude={"weights", "expect", "tolerance"}),
            "seed": self._seed,
            "search_path": [*map(str, self._search_path), *filter(None, sys.path)],
            "others": [network.model_dump(mode="json", exclude={"weights"}) for network in networks],
        }

    def build(self) -> nn.Module:
        """A fresh untrained model in evaluation mode; the same weights every time.

        Raises ConfigError when the factory is not found or fails, EnvironmentMissing when its library is.
        """
        factory = self._factory
        with seeded(self._seed):
            module = factory().eval()
        if self._name:
            mark_build(module, self._name)
        if self._by_keyword is None:
            self._by_keyword = self._names_fit(module)
        return module

    def example(self, batch_size: int) -> dict[str, Tensor]:
        """Random inputs by name; the same every time.

        A named first dimension is ``batch_size``, a number stays what it is. Floats are normal, integers are
        below ``max`` (ones where it is not given: a mask or a type id).
        """
        generator = torch.Generator().manual_seed(self._seed)
        return {name: _random(spec, batch_size, generator) for name, spec in self._config.inputs.items()}

    def call(self, module: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run ``module``: by keyword when all names are parameters of its forward, else by position."""
        if build_of(module) != self._name:
            return self.named(build_of(module)).call(module, inputs)
        given = {name: inputs[name] for name in self._config.inputs}
        by_keyword = self._by_keyword if self._by_keyword is not None else self._names_fit(module)
        return named_outputs(module(**given) if by_keyword else module(*given.values()))

    def other(self, network: Network) -> SourceModel:
        """Another network that reads the same inputs; this model when it is built alike."""
        own = self._config
        if (network.build, network.args) == (own.build, own.args):
            return self
        name = build_name(network)
        before = self._others.get(name)
        if before is not None and abspath(before._config.build) != abspath(network.build):
            raise ConfigError(
                f"{before._config.build} and {network.build} have files of the same name, and a checkpoint could not "
                "tell which of them it is of: rename one of the files"
            )
        if before is None:
            config = own.model_copy(update={"build": network.build, "args": network.args, "weights": None})
            made = SourceModel(config, self._seed, self._search_path)
            made._name = name
            self._others[name] = made
        return self._others[name]

    def named(self, name: str) -> SourceModel:
        """The one that ``other`` made under ``name``. Raises StageFailed for a name that nothing here has."""
        if name == self._name:
            return self
        if name not in self._others:
            known = ", ".join(self._others) or "no other"
            raise StageFailed(
                f"the checkpoint is of another network, {name}; the configuration names {known} beside model.build: "
                "add it as a student, or load with the configuration that made it"
            )
        return self._others[name]

    def _names_fit(self, module: nn.Module) -> bool:
        parameters = inspect.signature(module.forward).parameters
        return all(
            name in parameters and parameters[name].kind in (_NAMED, inspect.Parameter.KEYWORD_ONLY)
            for name in self._config.inputs
        )


_NAMED = inspect.Parameter.POSITIONAL_OR_KEYWORD


def _random(spec: InputSpec, batch_size: int, generator: torch.Generator) -> Tensor:
    shape = [
        size if isinstance(size, int) else batch_size if i == 0 else OTHER_DIMENSION
        for i, size in enumerate(spec.shape)
    ]
    dtype: torch.dtype = getattr(torch, spec.dtype)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    top = spec.max or (256 if dtype is torch.uint8 else None)
    if top is None or dtype is torch.bool:
        return torch.ones(shape, dtype=dtype)
    return torch.randint(0, top, shape, generator=generator).to(dtype)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's, numpy's and Python's generators start from ``seed`` inside, and go on as before afterwards."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
