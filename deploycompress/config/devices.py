"""The shape of devices.yaml: how each device is reached, by the name that a pipeline has for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field

from deploycompress.config.base import StrictModel
from deploycompress.config.quantities import Duration

LOCAL = "local"  # is always there
# None begins with '-': ssh and adb would take it for an option.
HOST = r"^([A-Za-z0-9_][A-Za-z0-9._-]*@)?[A-Za-z0-9][A-Za-z0-9.:_-]{0,252}$"
SERIAL = r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,99}$"
TEXT = r"^[^\x00-\x1f\x7f-]([^\x00-\x1f\x7f]{0,999})$"  # a path or a command's name, in one line


class DeviceConfig(StrictModel):
    """What every remote device takes."""

    python: Annotated[str, Field(pattern=TEXT)] = Field(
        "python3", description="Of the device: 3.8 or newer with numpy and the runtime; ~/ is its home"
    )
    folder: Annotated[str, Field(pattern=TEXT)] | None = Field(
        None, description="Where files and jobs lie on the device; else ~/.cache/deploycompress"
    )
    program: Path | None = Field(
        None,
        description="Of yours, for runtime: program; it is sent along, runs ONNX files there and times them",
    )
    patience: Duration = Field(
        "5 min", validate_default=True, description="How long a lost link is tried again"
    )
    emulated: bool = Field(
        False, description="Its timings mean nothing; qemu's user mode is also recognised without this"
    )


class SshConfig(DeviceConfig):
    """A device behind the system's ``ssh``, whose own configuration applies besides these keys."""

    ssh: Annotated[str, Field(pattern=HOST)] = Field(description="user@host, or a name of ~/.ssh/config")
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    identity: Path | None = Field(None, description="The private key; else ssh's own and the agent's")
    known_hosts: Path | None = Field(None, description="In place of ~/.ssh/known_hosts; always checked")
    jump: Annotated[str, Field(pattern=HOST)] | None = Field(
        None, description="user@host or user@host:port to go through"
    )


class AdbConfig(DeviceConfig):
    """An Android device behind the system's ``adb``."""

    adb: Annotated[str, Field(pattern=SERIAL)] = Field(description="The serial that `adb devices` shows")


KINDS: dict[str, type[DeviceConfig]] = {"ssh": SshConfig, "adb": AdbConfig}  # also names in the registry


@dataclass(frozen=True)
class Devices:
    """The devices besides ``local``, and whose jobs run there.

    ``controller``: kept in the run directory, so that a run which was killed finds its own jobs again, and
    no other's. Empty: nobody comes back for them.
    """

    declared: Mapping[str, DeviceConfig] = field(default_factory=dict)
    controller: str = ""

    def of(self, name: str) -> DeviceConfig | None:
        return self.declared.get(name)
