"""Where a run's files come from: the manifest's digests, the statement and the bill of materials against their schemas."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploycompress.artifact import digest_file, read_json, write_json, write_text
from deploycompress.config.schema import PipelineConfig
from deploycompress.report.build import build
from deploycompress.report.provenance import inputs, run_manifest
from deploycompress.report.shipping import ship

Make = Callable[..., tuple[PipelineConfig, Path]]
HOSTILE = '<script>alert(1)</script>|`x`\n::error::y\x1b[2J\u202e"}]'


@pytest.fixture
def ended(make_run: Make) -> Callable[..., tuple[dict[str, Any], Path]]:
    """A run directory with all that a run leaves in it."""

    def end(**changes: Any) -> tuple[dict[str, Any], Path]:
        config, run_dir = make_run(**changes)
        write_text(
            run_dir / "config.yaml",
            "name: x\nmodel: {build: '/home/somebody/model.py:build', weights: /home/somebody/w.pt}\n",
        )
        model = read_json(run_dir / "00-model" / "manifest.json")
        model["details"] |= {
            "digests": {"model": "a" * 64, "data": "b" * 64},
            "weights": {"name": "w.pt", "sha256": "c" * 64},
        }
        write_json(run_dir / "00-model" / "manifest.json", model)
        report = build(config, run_dir)
        report["environment"] |= {"libraries": {"onnxruntime": "1.27.0", "nncf": None}}
        write_json(run_dir / "report.json", report)
        ship(report, run_dir)
        return report, run_dir

    return end


def test_every_input_and_output_has_its_digest(ended: Callable[..., Any]) -> None:
    report, run_dir = ended()
    manifest = run_manifest(report, run_dir)
    present = {
        p.relative_to(run_dir).as_posix(): (digest_file(p), p.stat().st_size)
        for p in run_dir.rglob("*")
        if p.is_file()
    }
    assert {name: (sha256, size) for name, sha256, size in manifest["files"]} == present
    assert [step["id"] for step in manifest["steps"]] == [stage["name"] for stage in report["stages"]]
    assert {"name": "config.yaml", "sha256": present["config.yaml"][0]} in manifest["inputs"]
    assert {"name": "w.pt", "sha256": "c" * 64} in manifest["inputs"]
    assert {"name": "data", "digest": "b" * 64} in manifest["inputs"]
    assert manifest["environment"] == report["environment"] and manifest["versions"]["deploycompress"]


def test_a_file_that_no_step_made_is_an_input(ended: Callable[..., Any]) -> None:
    _, run_dir = ended()
    place = run_dir / "04-distill" / "manifest.json"
    distill = read_json(place)
    distill["inputs"] |= {"teacher": [{"id": "teacher", "sha256": "d" * 64}]}
    write_json(place, distill)
    assert {"name": "teacher", "sha256": "d" * 64} in inputs(run_dir)
    made = {a["sha256"] for a in read_json(run_dir / "03-prune" / "manifest.json")["artifacts"]}
    assert not made & {given.get("sha256") for given in inputs(run_dir)}


def test_a_failed_run_has_a_manifest_of_what_it_made(ended: Callable[..., Any]) -> None:
    report, run_dir = ended(fails_at="export")
    manifest = run_manifest(report, run_dir)
    assert manifest["verdict"] == "error" and "export" not in [step["id"] for step in manifest["steps"]]
    assert not (run_dir / "artifacts").exists()


@pytest.mark.parametrize("hostile", ["", HOSTILE])
def test_the_statement_is_in_toto_s_with_slsa_s_predicate(ended: Callable[..., Any], hostile: str) -> None:
    json_format = pytest.importorskip("google.protobuf.json_format")
    statement_pb2 = pytest.importorskip(
        "in_toto_attestation.v1.statement_pb2", reason="in-toto-attestation is missing"
    )
    from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
    from in_toto_attestation.v1.statement import Statement

    _, run_dir = ended(hostile=hostile)
    folder = run_dir / "artifacts"
    statement = read_json(folder / "provenance.json")
    # Both refuse a field that is not in the published definition.
    Statement.copy_from_pb(json_format.ParseDict(statement, statement_pb2.Statement())).validate()
    predicate = json_format.ParseDict(statement["predicate"], provenance_pb2.Provenance())
    assert predicate.build_definition.build_type and predicate.run_details.builder.id
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    told = {subject["name"]: subject["digest"]["sha256"] for subject in statement["subject"]}
    assert told == {
        p.relative_to(folder).as_posix(): digest_file(p)
        for p in folder.rglob("*")
        if p.is_file() and p.name != "provenance.json"
    }
    needed = {d.name: dict(d.digest) or d.uri for d in predicate.build_definition.resolved_dependencies}
    assert needed["w.pt"] == {"sha256": "c" * 64} and needed["data"] == {"deploycompressV1": "b" * 64}
    assert needed["onnxruntime"] == "pkg:pypi/onnxruntime@1.27.0" and "nncf" not in needed
    assert "somebody" not in (folder / "provenance.json").read_text(), (
        "it tells where files lie on this machine"
    )


@pytest.mark.parametrize("hostile", ["", HOSTILE])
def test_the_bill_of_materials_is_cyclonedx(ended: Callable[..., Any], hostile: str) -> None:
    validation = pytest.importorskip("cyclonedx.validation.json", reason="cyclonedx-python-lib is missing")
    from cyclonedx.schema import SchemaVersion

    report, run_dir = ended(hostile=hostile)
    text = (run_dir / "artifacts" / "mlbom.cdx.json").read_text(encoding="utf-8")
    validator = validation.JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(text) is None
    assert validator.validate_str(text.replace('"performanceMetrics"', '"figures"')) is not None
    bom = read_json(run_dir / "artifacts" / "mlbom.cdx.json")
    models = [c for c in bom["components"] if c["type"] == "machine-learning-model"]
    assert [model["name"] for model in models] == [entry["file"] for entry in report["ships"]]
    for model in models:
        assert model["hashes"] == [
            {"alg": "SHA-256", "content": digest_file(run_dir / "artifacts" / model["name"])}
        ]
    figures = models[0]["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert figures[0] == {"type": "accuracy", "value": "0.985"}
    refs = [c["bom-ref"] for c in bom["components"]]
    assert len(refs) == len(set(refs)) and set(bom["dependencies"][1]["dependsOn"]) <= set(refs)
