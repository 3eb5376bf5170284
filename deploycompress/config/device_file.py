"""devices.yaml -> the devices it declares, with all its mistakes at once; and back to YAML."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploycompress.config import yaml_file, yaml_text
from deploycompress.config.devices import KINDS, LOCAL, DeviceConfig
from deploycompress.config.document import Document, KeyPath
from deploycompress.config.files import found, not_found, with_paths
from deploycompress.config.schema import NAME
from deploycompress.config.validation import WORDS, validate
from deploycompress.config.wording import listed, shown
from deploycompress.errors import Problem
from deploycompress.user_code import user_code_is_refused

FILE = "devices.yaml"


def beside(pipeline: Path) -> Path | None:
    """The file of devices beside ``pipeline``; None where there is none."""
    path = pipeline.parent / FILE
    return path if path.is_file() else None


def read_devices(path: Path) -> tuple[dict[str, DeviceConfig | None], list[Problem]]:
    """Devices by name, their paths absolute, None for one with mistakes; and every mistake in the file.

    Raises ConfigError where the file is no YAML, or is not there.
    """
    document = yaml_file.load(path)
    if not isinstance(document.data, dict):
        document.report((), f"received {shown(document.data)}, expected devices such as board: {{ssh: ...}}")
        return {}, document.problems
    devices = {name: _device(document, name, path.resolve().parent) for name in document.data}
    return devices, document.problems


def dump_devices(devices: Mapping[str, DeviceConfig]) -> str:
    """YAML text that ``read_devices`` reads back to equal devices."""
    return yaml_text.to_yaml(
        {name: device.model_dump(mode="json", exclude_none=True) for name, device in devices.items()}
    )


def _device(document: Document, name: str, folder: Path) -> DeviceConfig | None:
    if name == LOCAL:
        document.report(
            (name,), "local is this machine and always there; name the device otherwise", key=True
        )
        return None
    if re.fullmatch(NAME, name) is None:
        document.report((name,), f"received {shown(name)}, expected {WORDS[NAME]}", key=True)
        return None
    raw: Any = document.value((name,))
    kinds = [kind for kind in KINDS if isinstance(raw, dict) and kind in raw]
    if len(kinds) != 1:
        ways = listed([f"{kind}: ..." for kind in KINDS], last="or")
        also = f" with {listed(kinds, last='and')}" if kinds else ""
        document.report((name,), f"received {shown(raw)}{also}, expected one of {ways}")
        return None
    device = validate(KINDS[kinds[0]], document, (name,))
    if device is None:
        return None
    if device.program is not None and user_code_is_refused():
        document.report((name, "program"), "a program of one's own, which --no-user-code refuses")

    def absolute(key: KeyPath, file: Path) -> Path:
        place = found(file, [folder])
        if place is None:
            document.report((name, *key), not_found(file, [folder]))
        return place or file

    return with_paths(device, absolute)
