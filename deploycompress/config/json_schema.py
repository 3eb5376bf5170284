"""The JSON Schema of pipeline.yaml, for an editor: every stage, data source and gate with its keys."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from deploycompress.config import names
from deploycompress.config.comments import comments
from deploycompress.config.schema import (
    GATES,
    AccuracyGate,
    Gate,
    ModelConfig,
    OpenDataConfig,
    PipelineConfig,
    Repeat,
    StepOptions,
    TargetConfig,
    TaskConfig,
)
from deploycompress.registry import DATASETS, DEVICES, STAGES, TASKS, Table

Schema = dict[str, Any]


def pipeline_schema() -> Schema:
    """A JSON Schema (draft 2020-12). Loads every built-in stage and data source, and no framework."""
    defs: Schema = {}
    properties = {
        "name": _property(PipelineConfig, "name"),
        "seed": _property(PipelineConfig, "seed"),
        "model": _schema(ModelConfig, "model", defs),
        "task": {"anyOf": [_name(TASKS), _task(defs)]},
        "data": {"anyOf": list(_data_sources(defs))},
        "target": _schema(TargetConfig, "target", defs),
        "stages": {"type": "array", "minItems": 1, "items": {"anyOf": [_ref("step"), _ref("repeat")]}},
        "gates": _gates(defs),
    }
    defs["step"] = _step(defs)
    defs["repeat"] = _schema(Repeat, "repeat", defs)
    defs["repeat"]["properties"]["stages"]["items"] = _ref("step")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "deploycompress pipeline.yaml",
        "type": "object",
        "properties": properties,
        "required": ["name", "model", "data", "stages"],
        "additionalProperties": False,
        "$defs": defs,
    }


# ---------------------------------------------------------------- blocks


def _step(defs: Schema) -> Schema:
    """A stage's name, or one key: the name, with its configuration."""
    options = StepOptions.model_json_schema(by_alias=True)["properties"]
    properties = {}
    for name in STAGES:
        stage = STAGES.load(name)
        schema = _schema(stage.Config, name, defs)
        schema["description"] = inspect.getdoc(stage) or ""
        schema["properties"] = schema.get("properties", {}) | options
        if not schema.get("required"):
            schema["type"] = ["object", "null"]  # `- export:` with nothing behind it
        properties[name] = schema
    mapping = {
        "type": "object",
        "properties": properties,
        "patternProperties": {":": {"type": ["object", "null"]}},
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 1,
    }
    return {"anyOf": [_name(STAGES), mapping]}


def _task(defs: Schema) -> Schema:
    schema = _schema(TaskConfig, "task", defs)
    schema["properties"]["name"] = _name(TASKS)
    return schema


def _data_sources(defs: Schema) -> Iterable[Schema]:
    for name in DATASETS:
        source = DATASETS.load(name)
        schema = _schema(source.Config, f"data.{name}", defs)
        schema["properties"]["source"] = {"const": name, "description": inspect.getdoc(source) or ""}
        yield schema
    own = _schema(OpenDataConfig, "data", defs)
    own["properties"]["source"] = {"type": "string", "pattern": ":", "description": "module:function"}
    yield own


def _gates(defs: Schema) -> Schema:
    def gate(model: type[Gate], name: str) -> Schema:
        schema = _schema(model, name, defs)
        limits = [key for key in model.model_fields if key not in Gate.model_fields]
        schema["anyOf"] = [{"required": [key]} for key in limits]
        return schema

    return {
        "type": "object",
        "properties": {name: gate(model, name) for name, model in GATES.items()},
        "patternProperties": {"^metric:.+": gate(AccuracyGate, "metric")},
        "additionalProperties": False,
    }


# ---------------------------------------------------------------- parts


class _Described(GenerateJsonSchema):
    """Takes the comment beside a key for its description, where it has no other."""

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        described = super().model_schema(schema)
        for key, comment in comments(schema["cls"]).items():
            if key in described.get("properties", {}):
                described["properties"][key].setdefault("description", comment)
        return described


def _schema(model: type[BaseModel], name: str, defs: Schema) -> Schema:
    """The schema of one model, titled ``name``; what it refers to goes into ``defs``."""
    reference = f"#/$defs/{name}.{{model}}"
    schema = model.model_json_schema(by_alias=True, ref_template=reference, schema_generator=_Described)
    for inner, definition in schema.pop("$defs", {}).items():
        defs[f"{name}.{inner}"] = definition
    schema["title"] = name
    for key, value in schema.get("properties", {}).items():
        if key in names.TABLES:
            schema["properties"][key] = _with_names(value, names.TABLES[key])
    return schema


def _with_names(schema: Schema, table: Table) -> Schema:
    """``schema`` with every plain text in it narrowed to the names of ``table``."""
    if schema.get("type") == "string" and "const" not in schema and "enum" not in schema:
        return {k: v for k, v in schema.items() if k != "type"} | _name(table)
    changed = dict(schema)
    if isinstance(schema.get("items"), dict):
        changed["items"] = _with_names(schema["items"], table)
    if "anyOf" in schema:
        changed["anyOf"] = [_with_names(s, table) for s in schema["anyOf"]]
    return changed


def _name(table: Table) -> Schema:
    if table is DEVICES:  # which there are, another file says
        return {"type": "string", "description": "local, a name in devices.yaml, or module:Name"}
    own = {"type": "string", "pattern": ":", "description": "module:Name"}
    return {"anyOf": [{"enum": list(table)}, own]} if table else own


def _property(model: type[BaseModel], name: str) -> Schema:
    found: Schema = model.model_json_schema()["properties"][name]
    return found


def _ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}
