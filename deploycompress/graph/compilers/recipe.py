"""What a compiler promises: the recipes of one runtime, and an artefact by each of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from deploycompress.artifact import Kind
from deploycompress.contracts import Note
from deploycompress.graph.execution import Feed, inspect_onnx
from deploycompress.writing import copy


@dataclass(frozen=True)
class Recipe:
    """One way to make an artefact in FP32 into another, and how it is run then."""

    runtime: str
    precision: str  # fp32, bf16, fp16, int8
    scheme: str = ""  # of INT8, where there are several; or another word for how it is run
    options: Mapping[str, Any] = field(
        default_factory=dict
    )  # the runtime's own, besides provider and threads
    same_file: str = (
        ""  # name of another recipe of the runtime that makes the same file, which is run otherwise
    )

    @property
    def name(self) -> str:
        return f"{self.runtime}/{self.precision}" + (f"-{self.scheme}" if self.scheme else "")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Built:
    """What a recipe gave, a file or a folder with ``model.*`` in it."""

    path: Path
    kind: Kind
    notes: tuple[Note, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)  # for the artefact: an engine's profile


class Compiler(Protocol):
    """Makes the artefacts of one runtime; ``build`` runs in a process of its own, since a library may crash."""

    reads: ClassVar[Kind]  # what ``build`` is given: an ONNX file, or a checkpoint
    portable: ClassVar[bool]  # whether what is built here runs on another device

    def missing(self) -> str | None:
        """Why it cannot build here, with what to do; None when it can."""
        ...

    def recipes(
        self, provider: str, facts: Mapping[str, Any], operators: Mapping[str, int]
    ) -> Sequence[Recipe]:
        """What is worth trying on a device with these ``facts`` for a file with these operators, best guess first."""
        ...

    def build(self, recipe: Recipe, source: Path, folder: Path, calibration: Iterable[Feed]) -> Built:
        """Raises StageFailed where the file cannot be made so."""
        ...


def copied(source: Path, folder: Path) -> Built:
    """The file as it is; with its weights, in a folder, where they lie beside it."""
    external = inspect_onnx(source)["external"]
    place = folder / "model" if external else folder
    place.mkdir(exist_ok=True)
    for name in (*external, source.name):
        copy(source.parent / name, place / ("model.onnx" if name == source.name else name))
    return Built(place if external else place / "model.onnx", "onnx")
