"""The JSON Schema takes what ``read`` takes and refuses what an editor can know to be wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from deploycompress.config.json_schema import pipeline_schema
from deploycompress.config.yaml_file import parse

PIPELINES = Path(__file__).parents[2] / "pipelines"
FILES = sorted(set(PIPELINES.glob("*.yaml")) - set(PIPELINES.glob("sweep-*.yaml")))

TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
KNOWN = {
    "$schema", "$defs", "$ref", "title", "description", "default", "examples", "type", "enum", "const", "anyOf",
    "properties", "patternProperties", "additionalProperties", "required", "minProperties", "maxProperties", "items",
    "minItems", "maxItems", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "pattern", "format",
    "minLength", "prefixItems",
}  # fmt: skip


def fits(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    """The part of JSON Schema that ours uses; any other keyword is an error, so that none goes unchecked."""
    assert set(schema) <= KNOWN, set(schema) - KNOWN
    if "$ref" in schema:
        return fits(value, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    kinds = [schema["type"]] if isinstance(schema.get("type"), str) else schema.get("type", [])
    typed = not kinds or any(
        number and (kind == "number" or isinstance(value, int)) if kind in ("number", "integer")
        else isinstance(value, TYPES[kind])
        for kind in kinds
    )  # fmt: skip
    if not typed or value not in schema.get("enum", [value]) or value != schema.get("const", value):
        return False
    if "anyOf" in schema and not any(fits(value, inner, root) for inner in schema["anyOf"]):
        return False
    if isinstance(value, str):
        return re.search(schema.get("pattern", ""), value) is not None
    if number:
        return (
            schema.get("minimum", value) <= value <= schema.get("maximum", value)
            and schema.get("exclusiveMinimum", value - 1) < value < schema.get("exclusiveMaximum", value + 1)
        )  # fmt: skip
    if isinstance(value, list):
        count = schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))
        return count and all(fits(item, schema.get("items", {}), root) for item in value)
    if isinstance(value, dict):
        count = schema.get("minProperties", 0) <= len(value) <= schema.get("maxProperties", len(value))
        named = set(schema.get("required", [])) <= set(value)
        return count and named and all(_property_fits(k, v, schema, root) for k, v in value.items())
    return True


def _property_fits(key: str, value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    found = [schema["properties"][key]] if key in schema.get("properties", {}) else []
    found += [s for pattern, s in schema.get("patternProperties", {}).items() if re.search(pattern, key)]
    if not found:
        other = schema.get("additionalProperties", True)
        return other if isinstance(other, bool) else fits(value, other, root)
    return all(fits(value, inner, root) for inner in found)


def accepts(text: str) -> bool:
    schema = pipeline_schema()
    return fits(parse(text, "p").data, schema, schema)


@pytest.mark.parametrize(
    "change",
    [
        ("", ""),
        ("task: classification", "task: {name: 'own:Task', args: {a: 1}}"),
        ("- quantize", "- quantize:"),
        ("- quantize", "- own.py:Stage: {anything: 1}"),
        (
            "- distill: {epochs: 8}",
            "- {repeat: 3, schedule: linear, stages: [train, {distill: {epochs: 3}}]}",
        ),
        ("- quantize", "- quantize: {id: x, from: export, timeout: 5 min}"),
        ("criterion: taylor", "criterion: own:Criterion, align: 16"),
        ("{source: digits, image_size: 32, batch_size: 64}", "{source: 'own:Sounds', rate: 3}"),
        ("latency_p50: {min_speedup: 3.0}", "'metric:f1': {min: 0.9}"),
        ("{mode: quick}", "{runtimes: [tensorrt, own:Runtime]}"),
        ("macs: 20%", "macs: 1.5 M, ratio: 0.3"),
    ],
)
def test_what_read_takes(reading, good, folder, change) -> None:
    (folder / "own.py").write_text(
        "class Stage: ...\nclass Task: ...\nclass Criterion: ...\nclass Sounds: ...\nclass Runtime: ...\n"
    )
    reading(good, change)
    assert accepts(good.replace(*change))


@pytest.mark.parametrize(
    "change",
    [
        ("name: digits-edge", "nam: digits-edge"),
        ("name: digits-edge", "name: a b"),
        ("epochs: 12", "epoch: 12"),
        ("epochs: 12", "epochs: 0"),
        ("epochs: 12", "epochs: '12'"),
        ("lr: 1e-2", "lr: 0"),
        ("lr: 1e-2", "ema: 1"),
        ("- quantize", "- quantise"),
        ("- quantize", "- quantise: {}"),
        ("- quantize", "- {quantize: {}, export: {}}"),
        ("- quantize", "- prune:"),  # its target is required
        ("- quantize", "- repeat: 3"),
        ("criterion: taylor", "criterion: tailor"),
        ("macs: 20%", "macs: 20 ms"),
        ("source: digits", "source: digit"),
        ("image_size: 32", "image_sise: 32"),
        ("task: classification", "task: classified"),
        ("fp32", "fp23"),
        ("latency_p50:", "latency:"),
        ("{min_speedup: 3.0}", "{on_inconclusive: warn}"),
        ("{mode: quick}", "{runtimes: [ort]}"),
    ],
)
def test_what_an_editor_should_mark(refused, good, change) -> None:
    assert refused(good, change)
    assert not accepts(good.replace(*change))


def test_stages_and_sources_are_described(folder) -> None:
    schema = pipeline_schema()
    stages = schema["$defs"]["step"]["anyOf"][1]["properties"]
    assert stages["prune"]["description"] == "Removes channels."
    assert (
        stages["export"]["properties"]["opset"]["description"] == "of the ONNX file"
    )  # the comment beside it
    assert stages["prune"]["properties"]["criterion"]["default"] == "taylor"
    assert "magnitude" in stages["prune"]["properties"]["criterion"]["anyOf"][0]["enum"]
    assert schema["properties"]["data"]["anyOf"][0]["properties"]["source"]["description"] == "Ten classes."


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_the_real_tables_and_every_pipeline(file: Path) -> None:
    if file.stem.startswith("sweep-"):
        pytest.skip("a sweep has a schema of its own")
    assert accepts(file.read_text(encoding="utf-8"))
    assert not accepts(file.read_text(encoding="utf-8").replace("epochs:", "epoch:"))
