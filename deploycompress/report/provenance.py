"""Where a run's files come from: the digests of what went in and came out, also as an in-toto statement."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from deploycompress import __version__
from deploycompress.artifact import MANIFEST, digest_file, read_json, walk_files
from deploycompress.config import yaml_file

STATEMENT = "provenance.json"
CONFIGURATION = ("config.yaml", "devices.yaml")
RECORDS = (
    *CONFIGURATION,
    "run.json",
    "report.json",
)  # the other files of a run are rendered from report.json
RUN, BUILDER = "urn:deploycompress:run:1", "urn:deploycompress:local"
COMPOSED = "deploycompressV1"  # a digest over several things, as the key of a step has it; no file's


def run_manifest(report: Mapping[str, Any], run_dir: Path) -> dict[str, Any]:
    """manifest.json of a run directory: every input and every output by its digest, versions and hardware."""
    steps = _steps(run_dir)
    files = [run_dir / name for name in RECORDS if (run_dir / name).is_file()]
    for folder in [run_dir / step["directory"] for step in steps] + [run_dir / "artifacts"]:
        files += walk_files(folder)
    return {
        "schema": 1,
        **{key: report[key] for key in ("name", "verdict", "exit_code", "started", "seconds")},
        "versions": {"deploycompress": __version__, **_libraries(report)},
        "inputs": inputs(run_dir),
        "steps": [
            {
                **{key: step[key] for key in ("id", "stage", "directory", "key_digest", "inputs")},
                "depends": step["key"].get("depends", {}),
                "outputs": [
                    {key: a[key] for key in ("id", "kind", "path", "sha256", "bytes")}
                    for a in step["artifacts"]
                ],
            }
            for step in steps
        ],
        "files": [[p.relative_to(run_dir).as_posix(), digest_file(p), p.stat().st_size] for p in files],
        "environment": report["environment"],
    }


def inputs(run_dir: Path) -> list[dict[str, str]]:
    """What went into the run: ``name`` with ``sha256`` of a file, or with ``digest`` of several things together."""
    steps = _steps(run_dir)
    found = [
        {"name": name, "sha256": digest_file(run_dir / name)}
        for name in CONFIGURATION
        if (run_dir / name).is_file()
    ]
    for step in steps:
        details = step.get("details", {})
        found += [{"name": n, "digest": d} for n, d in details.get("digests", {}).items()]
        found += [details["weights"]] if "weights" in details else []
    made = {artifact["sha256"] for step in steps for artifact in step["artifacts"]}
    for step in steps:
        for given in (given for several in step["inputs"].values() for given in several):
            entry = {"name": given["id"], "sha256": given["sha256"]}
            if given["sha256"] not in made and entry not in found:
                found.append(entry)
    return found


def statement(report: Mapping[str, Any], run_dir: Path, folder: Path) -> dict[str, Any]:
    """An in-toto Statement v1 with a predicate of SLSA's provenance v1 about every file in ``folder``; not signed.

    https://in-toto.io/Statement/v1, https://slsa.dev/spec/v1.0/provenance
    """
    began = datetime.fromisoformat(report["started"])
    ended = began + timedelta(seconds=round(report["seconds"]))
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [
            {"name": p.relative_to(folder).as_posix(), "digest": {"sha256": digest_file(p)}}
            for p in walk_files(folder)
        ],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": RUN,
                "externalParameters": {"pipeline": _configuration(run_dir)},
                "internalParameters": {"environment": report["environment"]},
                "resolvedDependencies": [*map(_dependency, inputs(run_dir)), *_packages(report)],
            },
            "runDetails": {
                "builder": {"id": BUILDER, "version": {"deploycompress": __version__}},
                "metadata": {"startedOn": _time(began), "finishedOn": _time(ended)},
                "byproducts": [
                    {"name": name, "digest": {"sha256": digest_file(run_dir / name)}}
                    for name in ("report.json", "run.json")
                    if (run_dir / name).is_file()
                ],
            },
        },
    }


def package_url(name: str, version: str) -> str:
    return f"pkg:pypi/{name.lower().replace('_', '-')}@{version}"


# ---------------------------------------------------------------- parts


def _steps(run_dir: Path) -> list[Mapping[str, Any]]:
    """The manifest of every finished step, in order, with its id and folder."""
    done = [step for step in read_json(run_dir / "run.json")["steps"] if step["state"] == "done"]
    return [
        read_json(run_dir / s["directory"] / MANIFEST) | {k: s[k] for k in ("id", "directory")} for s in done
    ]


def _libraries(report: Mapping[str, Any]) -> dict[str, str]:
    told = report["environment"].get("libraries")
    return {name: version for name, version in told.items() if version} if isinstance(told, dict) else {}


def _packages(report: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for name, version in _libraries(report).items():
        yield {"name": name, "uri": package_url(name, version)}


def _dependency(given: Mapping[str, str]) -> dict[str, Any]:
    digest = {"sha256": given["sha256"]} if "sha256" in given else {COMPOSED: given["digest"]}
    return {"name": given["name"], "digest": digest}


def _configuration(run_dir: Path) -> Any:
    """config.yaml as JSON: what ships need not tell where somebody keeps files."""
    path = run_dir / CONFIGURATION[0]
    return _without_folders(yaml_file.load(path).data) if path.is_file() else None


def _without_folders(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _without_folders(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_without_folders(value) for value in node]
    return node.rpartition("/")[2] if isinstance(node, str) and node.startswith("/") else node


def _time(moment: datetime) -> str:
    """RFC 3339 in UTC."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
