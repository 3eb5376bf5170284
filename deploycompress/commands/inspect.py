"""``deploycompress inspect``: where a model's MACs, parameters and time go, and what could be taken out of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import click

from deploycompress.commands.inputs import JsonFile, input_specs, model_arguments
from deploycompress.commands.user_code import no_user_code


@click.command("inspect")
@model_arguments
@click.option("--runtime", default="onnxruntime", show_default=True, help="What layers and model are run in.")
@click.option("--precision", type=click.Choice(["fp32", "int8"]), default="fp32", show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--no-latency", is_flag=True, help="Count only; nothing is measured.")
@click.option(
    "--sort",
    type=click.Choice(["latency", "macs", "params", "order"]),
    help="What the rows are sorted by (default: latency, macs where that is not measured).",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    help="Show N rows (default: those that make up 95 %); the others as a sum.",
)
@click.option(
    "--store",
    type=click.Path(path_type=Path),
    help="Where measured layers are kept (default: DEPLOYCOMPRESS_STORE, else the user's cache).",
)
@no_user_code
@click.option("--json", "json_file", type=JsonFile(), help="Write all of it to this file, every row.")
def command(
    build: str,
    inputs: tuple[str, ...],
    runtime: str,
    precision: Literal["fp32", "int8"],
    threads: int,
    no_latency: bool,
    sort: Literal["latency", "macs", "params", "order"] | None,
    limit: int | None,
    store: Path | None,
    json_file: Path | None,
) -> None:
    """Show what BUILD is made of, with random weights, before anything is pruned.

    BUILD is torchvision:NAME, timm:NAME, module:function or path/to/file.py:function. Every layer with its
    MACs, parameters and measured time; the groups of channels that go together and the blocks that can be
    taken out, with their shares; what is left whole, and why.
    """
    if no_latency and sort == "latency":
        raise click.UsageError("--no-latency and --sort latency contradict each other; give one of them")
    specs, batch_size = input_specs(inputs)

    from rich.console import Console

    from deploycompress.artifact import write_json
    from deploycompress.commands.inspecting import inspect_model
    from deploycompress.commands.inspection_text import text
    from deploycompress.config.schema import TargetConfig
    from deploycompress.engine.store import FileStore, default_root
    from deploycompress.report.annotations import commands_stopped

    target = TargetConfig(runtime=runtime, precision=precision, threads=threads, batch_size=batch_size)
    kept = FileStore(store.absolute() if store else default_root())
    # Seen on a terminal only; twice a second, since something is being measured beside it.
    with Console(stderr=True).status(f"inspecting {build}", refresh_per_second=2) as status:
        found = inspect_model(
            build,
            specs,
            batch_size,
            None if no_latency else target,
            kept,
            lambda done, message: status.update(message),
        )
    if json_file is not None:
        write_json(json_file, found.to_json())
    with commands_stopped(click.echo):
        click.echo(text(found, sort or "latency", limit, colour=sys.stdout.isatty()))
