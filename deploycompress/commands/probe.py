"""``deploycompress probe``: any model with random weights through every hop, in one line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploycompress.commands.inputs import JsonFile, input_specs, model_arguments
from deploycompress.commands.user_code import no_user_code

if TYPE_CHECKING:
    from deploycompress.commands.probing import Report

DEFAULT_MACS = "50%"


@click.command("probe")
@model_arguments
@click.option("--macs", metavar="SHARE", help=f"MACs that remain (default: {DEFAULT_MACS}).")
@click.option("--ratio", metavar="SHARE", help="Share of the channels that is removed, instead of --macs.")
@click.option("--json", "json_file", type=JsonFile(), help="Write what was found to this file.")
@no_user_code
def command(
    build: str, inputs: tuple[str, ...], macs: str | None, ratio: str | None, json_file: Path | None
) -> None:
    """Prune BUILD with random weights, and take it to a measured INT8 file.

    BUILD is torchvision:NAME, timm:NAME, module:function or path/to/file.py:function. The hops are prune,
    checkpoint, export, simplify, quantize and benchmark; each is compared with the one before.
    Exit code 0 when all of them work and the target is reached, else 4.
    """
    if macs and ratio:
        raise click.UsageError("--macs and --ratio exclude each other; give one of them")
    specs, batch_size = input_specs(inputs)
    target = _target("ratio", ratio) if ratio else _target("macs", macs or DEFAULT_MACS)

    from deploycompress.artifact import write_json
    from deploycompress.commands.probing import probe
    from deploycompress.errors import StageFailed
    from deploycompress.report.annotations import commands_stopped
    from deploycompress.report.figures import clean_lines

    with commands_stopped(click.echo):
        report = probe(build, specs, batch_size, target, lambda line: click.echo(clean_lines(line)))
        for line in _summary(report):
            click.echo(clean_lines(line))
    if json_file is not None:
        write_json(json_file, report.to_json())
    if not report.ok:
        failed = next(name for name, hop in report.hops.items() if not hop.ok)
        raise StageFailed(f"probe {build}: {failed}: {report.hops[failed].error}")
    if not report.reached:
        raise StageFailed(
            f"probe {build}: the target is not reached: {report.shortfall}; {len(report.unpruned)} layers are left whole"
        )


def _target(name: str, text: str) -> tuple[str, float]:
    """("macs", share that remains) or ("ratio", share of channels removed)."""
    from deploycompress.config.quantities import Quantity

    try:
        share = Quantity.parse(text, "percent", "number").value
    except ValueError as error:
        raise click.BadParameter(f"received {text!r}: {error}", param_hint=f"--{name}") from error
    if not 0 < share <= 1:
        raise click.BadParameter(
            f"received {text!r}; expected a share above 0 and at most 100%", param_hint=f"--{name}"
        )
    return name, share


def _summary(report: Report) -> list[str]:
    lines = []
    if report.macs_ratio is not None and report.params_ratio is not None:
        latency = (
            "not measured" if report.latency_ratio is None else f"{report.latency_ratio:.2f} of the unpruned"
        )
        lines.append(
            f"remain: MACs {report.macs_ratio:.1%}, parameters {report.params_ratio:.1%}; latency p50 {latency}"
        )
    by_reason: dict[str, list[str]] = {}
    for layer, reason in report.unpruned:
        by_reason.setdefault(reason, []).append(layer)
    for reason, layers in by_reason.items():
        more = f" and {len(layers) - 1} more" if len(layers) > 1 else ""
        lines.append(f"left whole: {layers[0]}{more}: {reason}")
    return lines
