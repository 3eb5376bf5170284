"""``deploycompress probe``: any model with random weights through every hop, in one line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from deploycompress.commands.probing import Report
    from deploycompress.config.schema import InputSpec

INPUT = re.compile(r"(?P<name>[A-Za-z_]\w*)=(?P<shape>\d+(x\d+)*)(:(?P<dtype>\w+)(:(?P<max>\d+))?)?")
DEFAULT_MACS = "50%"


@click.command("probe")
@click.argument("build")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    required=True,
    metavar="NAME=SHAPE[:DTYPE[:MAX]]",
    help="image=1x3x224x224, or input_ids=1x128:int64:30521. The first dimension is the batch, measured at that size.",
)
@click.option("--macs", metavar="SHARE", help=f"MACs that remain (default: {DEFAULT_MACS}).")
@click.option("--ratio", metavar="SHARE", help="Share of the channels that is removed, instead of --macs.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Write what was found to this file."
)
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
    specs, batch_size = _specs(inputs)
    target = _target("ratio", ratio) if ratio else _target("macs", macs or DEFAULT_MACS)

    from deploycompress.artifact import write_json
    from deploycompress.commands.probing import probe
    from deploycompress.errors import StageFailed

    report = probe(build, specs, batch_size, target, lambda line: click.echo(line))
    for line in _summary(report):
        click.echo(line)
    if json_file is not None:
        write_json(json_file, report.to_json())
    if not report.ok:
        failed = next(name for name, hop in report.hops.items() if not hop.ok)
        raise StageFailed(f"probe {build}: {failed}: {report.hops[failed].error}")
    if not report.reached:
        raise StageFailed(
            f"probe {build}: the target is not reached: {report.shortfall}; {len(report.unpruned)} layers are left whole"
        )


def _specs(inputs: tuple[str, ...]) -> tuple[dict[str, InputSpec], int]:
    """The inputs with a dynamic batch, and the batch size that was given."""
    from pydantic import ValidationError

    from deploycompress.config.schema import InputSpec

    specs: dict[str, InputSpec] = {}
    batches: dict[str, int] = {}
    for text in inputs:
        match = INPUT.fullmatch(text)
        if match is None:
            raise click.BadParameter(
                f"received {text!r}; expected NAME=SHAPE[:DTYPE[:MAX]], as image=1x3x224x224 or ids=1x128:int64:30521",
                param_hint="--input",
            )
        name, sizes = match["name"], [int(size) for size in match["shape"].split("x")]
        if name in specs:
            raise click.BadParameter(f"input {name!r} is given twice", param_hint="--input")
        batches[name] = sizes[0]
        try:
            specs[name] = InputSpec.model_validate(
                {"shape": ["batch", *sizes[1:]], "dtype": match["dtype"] or "float32"}
                | ({"max": int(match["max"])} if match["max"] else {})
            )
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise click.BadParameter(f"{text!r}: {place}: {first['msg']}", param_hint="--input") from error
    if len(set(batches.values())) > 1 or 0 in batches.values():
        received = ", ".join(f"{name} {size}" for name, size in batches.items())
        raise click.BadParameter(
            f"the first dimension is the batch and must be one positive number for all inputs; received {received}",
            param_hint="--input",
        )
    return specs, next(iter(batches.values()))


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
