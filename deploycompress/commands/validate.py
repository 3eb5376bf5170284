"""``deploycompress validate``: check a pipeline.yaml and show the order of its steps."""

from __future__ import annotations

from pathlib import Path

import click

from deploycompress.commands.output import only_text, say
from deploycompress.commands.user_code import no_user_code


@click.command("validate")
@click.argument("pipeline", type=click.Path(path_type=Path))
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override one key: --set prune.target.macs=30%.",
)
@click.option(
    "--devices",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where the devices are declared (default: devices.yaml beside the pipeline).",
)
@no_user_code
@only_text
def command(pipeline: Path, overrides: tuple[str, ...], devices: Path | None) -> None:
    """Check PIPELINE (a pipeline.yaml): all mistakes at once, each with its place; imports no user code."""
    from deploycompress.config.order import flow
    from deploycompress.config.reader import read

    config = read(pipeline, overrides, devices=devices)
    hops = list(flow(config.stages, [step.id for step in config.stages]))
    width = max(len(hop.id) for hop in hops)
    say(f"{'model':{width}}  {config.model.build}")
    for hop in hops:
        makes = ", ".join(sorted(hop.makes)) if hop.makes else "" if hop.makes is not None else "not known"
        reads = ", ".join(hop.sources.get("source", ())) or "nothing"
        say(f"{hop.id:{width}}  {reads}" + (f" -> {makes}" if makes else ""))
    gates = len(config.gates)
    say(f"ok: {len(hops)} step{'s' * (len(hops) != 1)}, {gates} gate{'s' * (gates != 1)}")
