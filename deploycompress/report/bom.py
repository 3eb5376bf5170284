"""What ships as a CycloneDX 1.6 machine-learning bill of materials."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from deploycompress import __version__
from deploycompress.artifact import digest_json
from deploycompress.report.provenance import package_url

FILE = "mlbom.cdx.json"
DATA = "data"


def bom(
    report: Mapping[str, Any], shipped: Sequence[Mapping[str, Any]], inputs: Sequence[Mapping[str, str]]
) -> dict[str, Any]:
    """``shipped``: the entries of artifacts/manifest.json; ``inputs``: as ``provenance.inputs`` gives them.

    https://cyclonedx.org/docs/1.6/json: the model cards of the files, the data they learned from, the libraries.
    """
    libraries = {name: v for name, v in (report["environment"].get("libraries") or {}).items() if v}
    packages = [_package(name, version) for name, version in libraries.items()]
    models = [_model(entry, report) for entry in shipped]
    refs = [DATA, *(package["bom-ref"] for package in packages)]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, digest_json([entry['sha256'] for entry in shipped]))}",
        "version": 1,
        "metadata": {
            "timestamp": report["started"],
            "tools": {
                "components": [{"type": "application", "name": "deploycompress", "version": __version__}]
            },
            "component": {"type": "machine-learning-model", "bom-ref": "run", "name": report["name"]},
        },
        "components": [*models, _data(report, inputs), *packages],
        "dependencies": [
            {"ref": "run", "dependsOn": [model["bom-ref"] for model in models]},
            *({"ref": model["bom-ref"], "dependsOn": refs} for model in models),
        ],
    }


def _model(entry: Mapping[str, Any], report: Mapping[str, Any]) -> dict[str, Any]:
    primary = report["primary"]["name"]
    metrics = sorted(entry["metrics"].items(), key=lambda pair: pair[0] != primary)
    latency, gain = entry["latency_ms"], entry["speedup"]
    figures = [{"type": name, "value": f"{value:.6g}"} for name, value in metrics]
    figures += [{"type": "latency p50 (ms)", "value": f"{latency['p50']:.6g}"}] if latency else []
    if gain:
        interval = {"lowerBound": f"{gain['low']:.4g}", "upperBound": f"{gain['high']:.4g}"}
        figures.append({"type": "speed-up", "value": f"{gain['value']:.4g}", "confidenceInterval": interval})
    lone = len(entry["files"]) == 1 and entry["files"][0][1] == entry["sha256"]
    properties = {name: str(entry[name]) for name in ("id", "kind", "precision")} | {
        "digest": entry["sha256"]
    }
    return {
        "type": "machine-learning-model",
        "bom-ref": f"model/{entry['file']}",
        "name": entry["file"],
        **({"hashes": _hashes(entry["sha256"])} if lone else {"components": [*_files(entry)]}),
        "modelCard": {
            "modelParameters": {
                "modelArchitecture": report["model"]["build"].rpartition("/")[
                    2
                ],  # of a file, not where it lies
                "datasets": [{"ref": DATA}],
                "inputs": [*_interface(entry["inputs"])],
                "outputs": [*_interface(entry["outputs"])],
            },
            "quantitativeAnalysis": {"performanceMetrics": figures},
        },
        "properties": [
            {"name": f"deploycompress:{name}", "value": value} for name, value in properties.items()
        ],
    }


def _files(entry: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for name, sha256, _ in entry["files"]:
        yield {
            "type": "file",
            "bom-ref": f"file/{entry['file']}/{name}",
            "name": name,
            "hashes": _hashes(sha256),
        }


def _hashes(sha256: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": sha256}]


def _interface(told: Any) -> Iterator[dict[str, str]]:
    """``image: float32 [batch, 1, 32, 32]`` for each."""
    for name, of in told.items() if isinstance(told, Mapping) else ():
        shape = of.get("shape") if isinstance(of, Mapping) else None
        sizes = "any shape" if shape is None else f"[{', '.join(map(str, shape))}]"
        yield {
            "format": f"{name}: {of.get('dtype', 'other') if isinstance(of, Mapping) else 'other'} {sizes}"
        }


def _data(report: Mapping[str, Any], inputs: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """The data set by its name, and by the digest over its files that the steps' keys have."""
    digests = [given["digest"] for given in inputs if given["name"] == DATA and "digest" in given]
    source = report["data"]["source"]
    return {
        "type": "data",
        "bom-ref": DATA,
        "name": source,
        "data": [{"type": "dataset", "name": source}],
        "properties": [{"name": "deploycompress:digest", "value": digest} for digest in digests],
    }


def _package(name: str, version: str) -> dict[str, Any]:
    url = package_url(name, version)
    return {"type": "library", "bom-ref": url, "name": name, "version": version, "purl": url}
