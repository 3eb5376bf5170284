"""``deploycompress benchmark``: artefacts side by side on one machine, with how sure each difference is."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from deploycompress.commands.inputs import JsonFile
from deploycompress.commands.measuring import How, measuring_options
from deploycompress.commands.user_code import no_user_code


@click.command("benchmark")
@click.argument("artefacts", metavar="ARTEFACT...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--batch-size",
    "batch_sizes",
    multiple=True,
    type=click.IntRange(min=1),
    metavar="N",
    help="Size of a dynamic batch; repeatable (default: that of --input, else 1).",
)
@measuring_options
@click.option(
    "--aa", is_flag=True, help="Show the first artefact beside itself: the noise floor of the machine."
)
@click.option("--json", "json_file", type=JsonFile(), help="Write all of it to this file.")
@click.option(
    "--samples",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Keep the raw samples in this folder.",
)
@no_user_code
def command(
    artefacts: tuple[Path, ...],
    batch_sizes: tuple[int, ...],
    runtime: str | None,
    provider: str | None,
    threads: int | None,
    inputs: tuple[str, ...],
    device: str,
    devices: Path | None,
    mode: Literal["quick", "full"],
    aa: bool,
    json_file: Path | None,
    samples: Path | None,
) -> None:
    """Measure ONNX files, OpenVINO models and engines on random inputs, whoever made them.

    Each runs in a process of its own, in short blocks that take turns. The first one is what the others are compared
    with; it runs twice, and what it differs from itself by is the noise floor. An artefact is faster or slower where
    its speed-up lies beyond twice that floor and beyond 3 %, and the 95 % interval does not hold 1; it is as fast where
    the whole interval lies within 3 %; else the answer is: cannot tell.
    An engine is opened only where a manifest of ours beside it has its digest.
    """
    from rich.console import Console

    from deploycompress.artifact import write_json
    from deploycompress.commands.benchmark_text import text
    from deploycompress.commands.benchmarking import benchmark
    from deploycompress.commands.measuring import opened
    from deploycompress.commands.random_inputs import wanted_inputs
    from deploycompress.report.annotations import commands_stopped
    from deploycompress.report.figures import clean_lines

    wanted = wanted_inputs(inputs)
    how = How(runtime, provider, threads)
    # Seen on a terminal only; twice a second, since something is being measured beside it.
    with Console(stderr=True).status("starting", refresh_per_second=2) as status:
        found = benchmark(
            artefacts,
            how,
            wanted,
            batch_sizes,
            mode,
            opened(device, devices),
            lambda done, message: status.update(f"{done:.0%} {message}"),
            aa=aa,
            keep=samples,
        )
    if json_file is not None:
        write_json(json_file, found.to_json())
    with commands_stopped(click.echo):
        click.echo(clean_lines(text(found)))
