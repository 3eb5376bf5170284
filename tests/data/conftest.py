"""A model that only declares its inputs, for loaders to be checked against."""

from __future__ import annotations

import pytest

from deploycompress.config.schema import InputSpec


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
