"""``deploycompress schema``: print the JSON Schema of pipeline.yaml."""

from __future__ import annotations

import json

import click


@click.command("schema")
def command() -> None:
    """Print the JSON Schema of pipeline.yaml, for an editor that completes and checks YAML."""
    from deploycompress.config.json_schema import pipeline_schema

    click.echo(json.dumps(pipeline_schema(), indent=2, ensure_ascii=False))
