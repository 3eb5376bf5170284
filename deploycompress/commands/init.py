"""``deploycompress init``: write a commented pipeline.yaml that runs."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("init")
@click.argument("path", type=click.Path(path_type=Path), default=Path("pipeline.yaml"))
def command(path: Path) -> None:
    """Write a commented pipeline.yaml that runs, to PATH (default: pipeline.yaml)."""
    from deploycompress.artifact import write_text
    from deploycompress.errors import ConfigError

    if path.is_dir():
        path = path / "pipeline.yaml"
    if path.exists() or path.is_symlink():
        raise ConfigError(f"{path} exists already and is left as it is; give another PATH, or move it away")
    template = Path(__file__).parent / "templates" / "pipeline.yaml"
    try:
        write_text(path, template.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}; give another PATH") from error
    click.echo(f"wrote {path}")
    click.echo(f"next: deploycompress validate {path}, then deploycompress run {path}")
