"""A model that only declares its inputs, for loaders to be checked against; sources opened by name."""

from __future__ import annotations

import pytest

from deploycompress.config.schema import InputSpec
from deploycompress.data.source import SourceData
from deploycompress.registry import DATASETS


class DeclaredInputs:
    def __init__(self, **inputs: InputSpec) -> None:
        self.inputs = inputs
        self.digest = "0" * 64


@pytest.fixture
def declared():
    """``declared(image=(["batch", 1, 8, 8], "float32"))`` -> a model with these inputs."""

    def make(**inputs):
        specs = {
            name: InputSpec(shape=spec[0], dtype=spec[1], max=(*spec, None)[2])
            for name, spec in inputs.items()
        }
        return DeclaredInputs(**specs)

    return make


@pytest.fixture
def images(declared):
    return declared(image=(["batch", 1, 8, 8], "float32"))


@pytest.fixture
def opened(declared):
    """``opened("arrays", {"x": ["batch", 4]}, root=...)`` -> the data of a built-in source for these inputs.

    An input is a shape of float32, or (shape, dtype).
    """

    def make(name, model_inputs, /, **options):
        specs = {k: v if isinstance(v, tuple) else (v, "float32") for k, v in model_inputs.items()}
        config = DATASETS.load(name).Config(source=name, **options)
        return SourceData(config, declared(**specs), 0)

    return make
