"""What ``benchmark`` and ``compare`` take to measure files: runtime, threads, batch sizes, inputs, and for how long."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    import numpy as np

    from deploycompress.commands.given import Given
    from deploycompress.config.devices import Devices
    from deploycompress.contracts import Device
    from deploycompress.devices.jobs import Candidate, Progress
    from deploycompress.report.document import Row

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class How:
    """The options; None where an artefact's manifest, or else the default, decides."""

    runtime: str | None = None
    provider: str | None = None
    threads: int | None = None

    @property
    def given(self) -> bool:
        return (self.runtime, self.provider, self.threads) != (None, None, None)


def measuring_options(command: Command) -> Command:
    """``--runtime --provider --threads --input --device --devices --mode`` of a command."""
    options = (
        click.option(
            "--runtime", help="What opens the files (default: what they were made for, else onnxruntime)."
        ),
        click.option(
            "--provider",
            help="Of the runtime, such as cpu or cuda (default: what they were made for, else cpu).",
        ),
        click.option(
            "--threads",
            type=click.IntRange(min=1),
            metavar="N",
            help="(default: what they were made for, else 1)",
        ),
        click.option(
            "--input",
            "inputs",
            multiple=True,
            metavar="NAME=SHAPE[:DTYPE[:MAX]]",
            help="Sizes of an input whose dimensions are dynamic, and what its integers are below: "
            "image=1x3x224x224, input_ids=1x128:int64:30521. Repeatable.",
        ),
        click.option("--device", default="local", show_default=True, help="Where it is measured."),
        click.option(
            "--devices",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="Where the devices are declared (default: devices.yaml here).",
        ),
        click.option(
            "--mode",
            type=click.Choice(["quick", "full"]),
            default="quick",
            show_default=True,
            help="Four seconds or a minute of each artefact.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def opened(name: str, file: Path | None) -> Device:
    """The device of that name, declared in ``file`` or else in devices.yaml of the current directory.

    Raises ConfigError where there is none, or with the mistakes of that file.
    """
    from deploycompress.config.device_file import FILE
    from deploycompress.config.devices import LOCAL
    from deploycompress.devices.jobs import open_device

    if name == LOCAL and file is None:
        return open_device(name)
    place = file or Path(FILE)
    return open_device(name, _declared(place)) if file or place.is_file() else open_device(name)


def reached(name: str, file: Path | None) -> Device | None:
    """A device that a report names: local, or one that ``file`` declares; it is believed nothing else.

    Raises as ``opened`` does.
    """
    from deploycompress.config.devices import LOCAL

    if name == LOCAL:
        return opened(name, None)
    known = file is not None and _declared(file).of(name) is not None
    return opened(name, file) if known else None


def _declared(file: Path) -> Devices:
    from deploycompress.config.device_file import read_devices
    from deploycompress.config.devices import Devices
    from deploycompress.errors import ConfigError

    found, problems = read_devices(file)
    if problems:
        raise ConfigError(problems)
    return Devices({name: of for name, of in found.items() if of is not None})


def checked_there(
    device: Device, candidates: Sequence[Candidate], feed: Mapping[str, np.ndarray], progress: Progress
) -> list[str]:
    """Hold what they give on another device against what they give here, before they are timed; what could not be.

    Raises StageFailed where it is something else. What no record of ours says to be in FP32 may compute in less.
    """
    from deploycompress.config.devices import LOCAL
    from deploycompress.graph.agreement import check_on

    if device.facts()["name"] == LOCAL:
        return []
    loose = [replace(c, precision="fp16") if c.precision == "fp32" else c for c in candidates]
    return [
        f"the outputs of {c.id} on {device.facts()['name']} were not checked: {c.runtime} cannot run here"
        for c in check_on(device, loose, feed, progress)
    ]


def candidate_of(given: Given, how: How, device: Device) -> Candidate:
    """The artefact in the runtime that was asked for, else the one it was made for.

    Raises ConfigError where there is no such runtime or it does not open the file, EnvironmentMissing where it cannot
    run on ``device``.
    """
    from deploycompress.config.devices import LOCAL
    from deploycompress.devices.jobs import Candidate
    from deploycompress.errors import ConfigError, EnvironmentMissing
    from deploycompress.registry import RUNTIMES

    made_for = given.made_for
    own = str(made_for.get("runtime") or ("openvino" if given.artifact.kind == "openvino" else "onnxruntime"))
    name = how.runtime or own
    runtime = RUNTIMES.load(name)()
    if given.artifact.kind not in runtime.accepts or (given.artifact.kind == "engine" and name != own):
        made = f"was made for {own}" if made_for.get("runtime") else f"is of kind {given.artifact.kind}"
        raise ConfigError(f"{given.name} {made}; the runtime {name} does not open it")
    missing = device.missing(name)
    if missing:
        where = "here" if (there := device.facts()["name"]) == LOCAL else f"on {there}"
        raise EnvironmentMissing(f"the runtime {name} cannot run {where}: {missing}")
    mine = made_for if name == own else {}
    provider = how.provider or str(mine.get("provider") or "cpu")
    threads = how.threads or int(mine.get("threads") or 1)
    options = mine.get("options") or {}
    path, precision = given.artifact.path, given.artifact.precision
    return Candidate(given.name, path, name, provider, threads, precision, options)


def how_of(row: Row) -> How:
    """As a run measured it. Raises ConfigError for a runtime of the user's: a report names no code to be run."""
    from deploycompress.errors import ConfigError
    from deploycompress.registry import RUNTIMES

    if row.runtime not in list(RUNTIMES):
        raise ConfigError(
            f"{row.artifact} was measured in the runtime {row.runtime}, which is not built in; compare the two artefacts "
            "with --runtime, or the reports with --no-measure"
        )
    return How(row.runtime, row.provider or None, row.threads)
