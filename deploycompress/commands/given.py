"""An artefact that the command line names: what kind it is, what it takes, and whether it may be opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from deploycompress.artifact import MANIFEST, Artifact, Kind, digest_file, digest_json, read_json
from deploycompress.config.wording import listed
from deploycompress.errors import ConfigError
from deploycompress.graph.execution import inspect_onnx, precision_of
from deploycompress.model.parity import LOWEST_COSINE

# TensorProto.DataType of onnx.proto, of what random inputs can be made
DTYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
}
KINDS: dict[str, Kind] = {".onnx": "onnx", ".xml": "openvino", ".engine": "engine", ".plan": "engine"}
FILES = ("model.onnx", "model.xml", "model.engine")  # of a folder
EXPECTED = "an ONNX file, a folder with model.onnx or model.xml in it, or an engine"
MOST_BYTES = 64 * 2**20  # of a manifest


@dataclass(frozen=True)
class Interface:
    """One input as the file declares it; a dimension that is no number is dynamic, a shape of None has any rank."""

    dtype: str
    shape: tuple[int | str | None, ...] | None
    max: int | None = None  # integers are below it, where that is known


@dataclass(frozen=True)
class Given:
    """One artefact, described; ``inputs`` is None where neither the file nor a manifest tells them."""

    name: str
    artifact: Artifact
    inputs: Mapping[str, Interface] | None
    bytes: int  # with the weights that an ONNX file keeps beside it, which the digest covers too
    digest: str
    made_for: Mapping[str, Any] = field(default_factory=dict)  # runtime, provider, threads, options


def open_given(path: Path, name: str) -> Given:
    """Describe what lies at ``path``; ``name`` is what it is called in tables and messages.

    Raises ConfigError for what is not there, is no artefact, is refused by the safe reader, or is an engine that
    no manifest of ours knows.
    """
    main = _main_file(path)
    kind = KINDS.get(main.suffix)
    if kind is None:
        raise ConfigError(f"{path} is no artefact that can be measured; expected {EXPECTED}")
    whole = main.parent if kind == "openvino" else path  # the weights lie beside model.xml
    # The safe reader comes first: nothing of a file that it refuses is looked at any further.
    told = inspect_onnx(main) if kind == "onnx" else None
    artifact = Artifact.of(name, kind, whole)
    entry = _entry(artifact)
    if kind == "engine" and entry is None:
        raise ConfigError(
            f"{path} is refused: an engine is executable code, and no {MANIFEST} beside it has its digest "
            f"{artifact.sha256[:12]}…; benchmark it in the run's artifacts/ folder, or build it here with build_engine"
        )
    entry = entry or {}
    said = entry.get("precision")
    known = str(said) if said in LOWEST_COSINE else precision_of(told) if told is not None else "fp32"
    artifact = replace(artifact, precision=known)
    inputs = configured(entry.get("inputs")) if told is None else _declared(told["inputs"], name)
    beside = [] if told is None or path.is_dir() else [main.parent / file for file in told["external"]]
    digest = digest_json([artifact.sha256, *map(digest_file, beside)]) if beside else artifact.sha256
    size_bytes = artifact.bytes + sum(file.stat().st_size for file in beside)
    return Given(name, artifact, inputs, size_bytes, digest, made_for(entry.get("details")))


def made_for(details: Any) -> dict[str, Any]:
    """How an artefact is to be run, from a record that may come from anywhere: of what is built in, nothing else."""
    from deploycompress.registry import RUNTIMES

    if not isinstance(details, Mapping) or details.get("runtime") not in list(RUNTIMES):
        return {}
    found: dict[str, Any] = {"runtime": details["runtime"]}
    provider, threads, options = (details.get(key) for key in ("provider", "threads", "options"))
    found |= {"provider": provider} if isinstance(provider, str) else {}
    found |= {"threads": threads} if isinstance(threads, int) and threads > 0 else {}
    return found | ({"options": dict(options)} if isinstance(options, Mapping) else {})


def _main_file(path: Path) -> Path:
    if path.is_dir():
        if (path / "report.json").is_file():
            raise ConfigError(
                f"{path} is a run directory; expected {EXPECTED}, such as {path}/artifacts/model.onnx"
            )
        found = [path / file for file in FILES if (path / file).is_file()]
        if not found:
            raise ConfigError(f"{path} holds no {listed(FILES, last='or')}; expected {EXPECTED}")
        return found[0]
    if not path.is_file():
        raise ConfigError(f"{path} does not exist; expected {EXPECTED}")
    if path.suffix == ".xml" and path.name != "model.xml":
        raise ConfigError(
            f"{path} cannot be measured by that name; expected model.xml with model.bin in one folder"
        )
    return path


def _entry(artifact: Artifact) -> dict[str, Any] | None:
    """What a manifest of ours beside the artefact says of it: that of artifacts/, or of the step that made it."""
    from deploycompress.engine.store import seal

    path = artifact.path.parent / MANIFEST
    try:
        if path.stat().st_size > MOST_BYTES:
            return None
        manifest = read_json(path)
        if manifest["schema"] != 1 or ("seal" in manifest and manifest["seal"] != seal(manifest)):
            return None
        found = [
            e for e in manifest["artifacts"] if (e["sha256"], e["bytes"]) == (artifact.sha256, artifact.bytes)
        ]
        return dict(found[0]) if found else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None  # it is no manifest of ours, and knows nothing


def _declared(told: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, Interface]:
    unknown = [input for input, of in told.items() if of["type"] not in DTYPES]
    if unknown:
        raise ConfigError(
            f"{name}: the input {unknown[0]!r} holds no numbers (type {told[unknown[0]]['type']} of onnx.proto); "
            "no random inputs can be made for it"
        )
    return {
        input: Interface(DTYPES[of["type"]], None if of["shape"] is None else tuple(map(_size, of["shape"])))
        for input, of in told.items()
    }


def _size(dimension: int | str | None) -> int | str | None:
    """Some exporters write 0 or -1 for a dynamic dimension."""
    return None if isinstance(dimension, int) and dimension < 1 else dimension


def configured(inputs: Any) -> dict[str, Interface] | None:
    """The inputs as pipeline.yaml had them, from artifacts/manifest.json; None where they are not there."""
    from pydantic import ValidationError

    from deploycompress.config.schema import InputSpec

    try:
        specs = {str(name): InputSpec.model_validate(spec) for name, spec in inputs.items()}
    except (AttributeError, ValidationError):
        return None
    return {name: Interface(spec.dtype, spec.shape, spec.max) for name, spec in specs.items()}
