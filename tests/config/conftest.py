"""Small stages and a data source, in the tables in place of the real ones: these tests are about reading."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from deploycompress import registry
from deploycompress.config.base import StrictModel
from deploycompress.config.quantities import Ratio, RemainingBytes, RemainingCount
from deploycompress.config.reader import read
from deploycompress.config.schema import DataConfig, PipelineConfig
from deploycompress.contracts import Outcome, Stage
from deploycompress.errors import ConfigError, Problem

GOOD = """\
name: digits-edge
model:
  build: deploycompress.examples.resnet:build
  args: {width: 32}
  weights: null
  inputs: {image: {shape: [batch, 1, 32, 32]}}
task: classification
data: {source: digits, image_size: 32, batch_size: 64}
target: {device: local, runtime: onnxruntime, precision: fp32, threads: 2}
stages:
  - train: {epochs: 12, lr: 1e-2}
  - prune: {target: {macs: 20%}, criterion: taylor}
  - distill: {epochs: 8}
  - export: {opset: 18}
  - quantize
  - build_engine: {from: export}
  - benchmark: {mode: quick}
gates:
  accuracy: {max_drop: 1 pp, on_inconclusive: warn}
  latency_p50: {min_speedup: 3.0}
"""


class _Stage(Stage):
    def run(self, *_: Any) -> Outcome:
        return Outcome()


class Train(_Stage):
    """Learns."""

    accepts = produces = frozenset({"checkpoint"})

    class Config(StrictModel):
        epochs: Annotated[int, Field(ge=1)] = 3
        lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-2
        ema: bool = False
        betas: tuple[float, ...] = ()
        decay: tuple[float, float] = (1.0, 1.0)
        start: Path | None = None


class Target(StrictModel):
    macs: RemainingCount | None = None
    size: RemainingBytes | None = None
    ratio: Ratio | None = None


class Prune(_Stage):
    """Removes channels."""

    accepts = produces = frozenset({"checkpoint"})
    compresses = True

    class Config(StrictModel):
        target: Target
        criterion: str = "taylor"
        align: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"

    def inputs(self) -> Mapping[str, str]:
        return {"source": "last", "original": "original"}


class Distill(_Stage):
    """Learns from a teacher."""

    accepts = produces = frozenset({"checkpoint"})

    class Config(StrictModel):
        epochs: Annotated[int, Field(ge=1)] = 3
        teacher: str = "original"

    def inputs(self) -> Mapping[str, str]:
        return {"source": "last", "teacher": self.config.teacher}


class Export(_Stage):
    """To ONNX."""

    accepts = frozenset({"checkpoint"})
    produces = frozenset({"onnx"})

    class Config(StrictModel):
        opset: int = 18  # of the ONNX file
        simplify: bool | Literal["onnxsim"] = True


class Quantize(_Stage):
    """To INT8."""

    accepts = produces = frozenset({"onnx"})
    compresses = True

    class Config(StrictModel):
        scheme: Literal["auto", "u8s8", "s8s8"] = "auto"


class BuildEngine(_Stage):
    """To an engine."""

    accepts = frozenset({"onnx"})
    produces = frozenset({"engine"})

    class Config(StrictModel):
        runtime: str = "tensorrt"


class Benchmark(_Stage):
    """Measures."""

    accepts = frozenset({"onnx", "engine"})
    produces = frozenset()

    class Config(StrictModel):
        mode: Literal["quick", "full"] = "quick"
        runtimes: tuple[str, ...] = ()
        corruptions: tuple[str, ...] = ()

    def inputs(self) -> Mapping[str, str]:
        return {"source": "all", "baseline": "baseline"}


class Digits:
    """Ten classes."""

    class Config(DataConfig):
        image_size: Annotated[int, Field(ge=8)] = 32


STAGES = {
    "train": Train,
    "prune": Prune,
    "distill": Distill,
    "export": Export,
    "quantize": Quantize,
    "build_engine": BuildEngine,
    "benchmark": Benchmark,
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of the test, empty, with the small stages in the tables."""
    entries = {name: f"{__name__}:{stage.__name__}" for name, stage in STAGES.items()}
    monkeypatch.setattr(registry.STAGES, "_entries", entries)
    monkeypatch.setattr(registry.DATASETS, "_entries", {"digits": f"{__name__}:Digits"})
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def good(folder: Path) -> str:
    """A pipeline.yaml without a mistake."""
    return GOOD


Read = Callable[..., PipelineConfig]
Refused = Callable[..., list[str]]


@pytest.fixture
def reading(folder: Path) -> Read:
    """Reads a text as pipeline.yaml, first replacing each (old, new) that is given."""

    def read_text(
        text: str, *changes: tuple[str, str], sets: tuple[str, ...] = (), **options: Any
    ) -> PipelineConfig:
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (folder / "pipeline.yaml").write_text(text, encoding="utf-8")
        return read(Path("pipeline.yaml"), sets, **options)

    return read_text


@pytest.fixture
def refused(reading: Read) -> Refused:
    """The problems, as lines of text, of a text that must be refused."""

    def problems(*args: Any, **options: Any) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            reading(*args, **options)
        assert all(isinstance(problem, Problem) for problem in caught.value.problems)
        assert caught.value.exit_code == 2
        return [str(problem) for problem in caught.value.problems]

    return problems
