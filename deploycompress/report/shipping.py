"""Fills artifacts/ with what ships."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploycompress import __version__
from deploycompress.artifact import MANIFEST, digest_file, publish, remove, walk_files, write_json, write_text
from deploycompress.errors import StageFailed
from deploycompress.report import bom, provenance
from deploycompress.report.document import check
from deploycompress.report.example import FILE, example
from deploycompress.runtimes import onnx_file
from deploycompress.writing import copy

FOLDER = "artifacts"
CARD = "MODEL_CARD.md"
# TensorProto.DataType of onnx.proto
DTYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
}
TOLD = ("labels", "preprocessing")
KINDS = ("onnx", "openvino", "engine", "package", "checkpoint")


def selection(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """Which artefact ships as which file: one for each kind and precision, the best one first.

    Within a kind and precision the fastest at the target is taken, or the one made last where none was
    measured. The baseline and competitors do not ship, nor does what was measured to be slower than it; a run that
    an error stopped ships nothing.
    """
    if report["verdict"] == "error":
        return []
    best = (report["best"] or {}).get("artifact")
    rows = {row["artifact"]: row for row in report["measurements"] if row["at_target"]}
    chosen: dict[tuple[str, str], Mapping[str, Any]] = {}
    for artifact in reversed(report["artifacts"]):
        if artifact["id"] in report.get("competitors", ()):
            continue
        if artifact["kind"] not in KINDS or artifact["id"] == report["baseline"] or _held(artifact):
            continue
        if artifact["kind"] == "checkpoint" and artifact["id"] not in rows:
            continue  # what models are built from; it ships where a network is what runs at the target
        if _is_slower(rows.get(artifact["id"])):
            continue
        slot = (artifact["kind"], artifact["precision"])
        if slot not in chosen or _rank(artifact, best, rows) < _rank(chosen[slot], best, rows):
            chosen[slot] = artifact
    shipped = sorted(chosen.values(), key=lambda a: _rank(a, best, rows))
    digests = {artifact["sha256"] for artifact in shipped}
    shipped += [a for a in report["artifacts"] if _held(a) in digests]  # with what they hold, or not at all
    lone = {kind for kind in KINDS if sum(a["kind"] == kind for a in shipped) == 1}
    return [{"artifact": a["id"], "file": _file(a, a["kind"] in lone)} for a in shipped]


def _held(artifact: Mapping[str, Any]) -> str | None:
    """The digest of what a package holds; None of anything else."""
    return artifact["details"].get("of") if artifact["kind"] == "package" else None


def ship(report: Mapping[str, Any], run_dir: Path) -> None:
    """Make ``run_dir``/artifacts anew: copies of what ships, manifest.json, where it comes from, a model card, an example.

    What an earlier run left there is taken away, also when nothing ships. Raises StageFailed when a
    file is not the one that was recorded.
    """
    destination = run_dir / FOLDER
    if destination.exists():
        remove(destination)
    if not report["ships"]:
        return
    with tempfile.TemporaryDirectory(prefix=f".{FOLDER}.", dir=run_dir) as scratch:
        workdir = Path(scratch) / FOLDER
        workdir.mkdir()
        by_id = {artifact["id"]: artifact for artifact in report["artifacts"]}
        for shipped in report["ships"]:
            _copy(by_id[shipped["artifact"]], run_dir, workdir / shipped["file"])
        manifest = _manifest(report, run_dir, workdir)
        write_json(workdir / MANIFEST, manifest)
        write_json(workdir / bom.FILE, bom.bom(report, manifest["artifacts"], manifest["inputs"]))
        write_text(workdir / CARD, card(report))
        program = example(manifest["artifacts"], report["target"])
        if program is not None:
            write_text(workdir / FILE, program)
        write_json(workdir / provenance.STATEMENT, provenance.statement(report, run_dir, workdir))
        publish(workdir, destination)


def card(report: Mapping[str, Any]) -> str:
    """MODEL_CARD.md: what it is, how good and how fast it was measured to be, how it was made."""
    from deploycompress.report.pages import markdown

    return markdown("model_card.md", check(report))


def _is_slower(row: Mapping[str, Any] | None) -> bool:
    """Whether the whole interval of its speed-up lies below 1."""
    gain = None if row is None else row.get("speedup_vs_target") or row["speedup"]
    return gain is not None and gain["high"] < 1


def _rank(
    artifact: Mapping[str, Any], best: str | None, rows: Mapping[str, Mapping[str, Any]]
) -> tuple[bool, float]:
    row = rows.get(artifact["id"])
    return (artifact["id"] != best, float("inf") if row is None else row["latency_ms"]["p50"])


def _file(artifact: Mapping[str, Any], only_one: bool) -> str:
    """model.onnx, model.int8.onnx, model.engine; a folder (external data, OpenVINO) has no suffix of a file."""
    kind, precision = artifact["kind"], artifact["precision"]
    plain = precision == "fp32" or (kind == "engine" and only_one)
    stem = "model" if plain else f"model.{precision}"
    if kind == "package":
        return stem + "".join(Path(artifact["path"]).suffixes)
    if _is_file(artifact):
        ending = Path(artifact["path"]).suffix
        return stem + (".optimized" if (kind, ending) == ("engine", ".onnx") else "") + ending
    return stem if kind == "onnx" else f"{stem}.{kind}"


def _is_file(artifact: Mapping[str, Any]) -> bool:
    """A single file's digest is its own; a folder's is that of the list of its files."""
    return len(artifact["files"]) == 1 and artifact["files"][0][1] == artifact["sha256"]


def _copy(artifact: Mapping[str, Any], run_dir: Path, destination: Path) -> None:
    """Copy an artefact, never link it, and compare every byte with the record."""
    source = run_dir / artifact["path"]
    try:
        copy(source, destination)
    except OSError as error:
        raise StageFailed(f"{artifact['id']} cannot be shipped: {error}") from error
    found = _files(destination)
    expected = [(name, sha256) for name, sha256, _ in artifact["files"]]
    if _is_file(artifact):
        expected = [(destination.name, expected[0][1])]
    if found != expected:
        raise StageFailed(
            f"{artifact['id']} cannot be shipped: {artifact['path']} is not the file that was made; "
            "run again to make it anew"
        )


def _files(path: Path) -> list[tuple[str, str]]:
    if path.is_file():
        return [(path.name, digest_file(path))]
    return [(p.relative_to(path).as_posix(), digest_file(p)) for p in walk_files(path)]


def _manifest(report: Mapping[str, Any], run_dir: Path, folder: Path) -> dict[str, Any]:
    """What a deployment needs to know of each file, without the run directory."""
    by_id = {artifact["id"]: artifact for artifact in report["artifacts"]}
    rows = {row["artifact"]: row for row in report["measurements"] if row["at_target"]}
    best = (report["best"] or {}).get("artifact")

    def entry(shipped: Mapping[str, str]) -> dict[str, Any]:
        artifact, row = by_id[shipped["artifact"]], rows.get(shipped["artifact"])
        inputs, outputs, told = _interface(artifact, folder / shipped["file"], report["model"]["inputs"])
        return {
            "file": shipped["file"],
            "best": artifact["id"] == best,
            **{key: artifact[key] for key in ("id", "kind", "precision", "sha256", "bytes", "files")},
            "inputs": inputs,
            "outputs": outputs,
            **told,
            **({"network": report["network"]} if artifact["kind"] == "checkpoint" else {}),
            "details": artifact["details"],
            "metrics": artifact["metrics"],
            "latency_ms": None if row is None else row["latency_ms"],
            "speedup": None if row is None else row["speedup"],
            "speedup_vs_target": None if row is None else row.get("speedup_vs_target"),
        }

    return {
        "schema": 1,
        "name": report["name"],
        "verdict": report["verdict"],
        "best": report["best"],
        "model": report["model"],
        "target": report["target"],
        "artifacts": [entry(shipped) for shipped in report["ships"]],
        "gates": report["gates"],
        "inputs": provenance.inputs(run_dir),
        "environment": report["environment"],
        "deploycompress": __version__,
    }


def _interface(artifact: Mapping[str, Any], path: Path, configured: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Inputs and outputs by name, with shape and type: what an ONNX file says, else what is known.

    And what the file tells of its data: ``labels``, ``preprocessing``.
    """
    if artifact["kind"] != "onnx":
        return configured, artifact["details"].get("outputs"), {}
    try:
        described = onnx_file.check(path if path.is_file() else path / "model.onnx")
    except ValueError as error:
        raise StageFailed(f"{artifact['id']} cannot be shipped: {error}") from error
    inputs, outputs = (
        {name: {"shape": of["shape"], "dtype": DTYPES.get(of["type"], "other")} for name, of in given.items()}
        for given in (described["inputs"], described["outputs"])
    )
    metadata = described["metadata"]
    told = {name: json.loads(metadata[key]) for name in TOLD if (key := f"deploycompress.{name}") in metadata}
    return inputs, outputs, told
