"""devices.yaml: every mistake at once with its place, and back to YAML unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploycompress.config.device_file import dump_devices, read_devices
from deploycompress.config.devices import AdbConfig, SshConfig
from deploycompress.config.reader import dump, read
from deploycompress.errors import ConfigError

GOOD = """\
board:
  ssh: pi@raspberry.local
  port: 2222
  identity: keys/id board
  jump: me@bastion:2200
  python: ~/venv/bin/python
  folder: /mnt/fast disk/it's
  patience: 10 min
phone: {adb: "R58M12:5555", python: /data/python, emulated: true}
"""


@pytest.fixture
def place(folder: Path) -> Path:
    (folder / "keys").mkdir()
    (folder / "keys" / "id board").touch()
    (folder / "devices.yaml").write_text(GOOD)
    return folder / "devices.yaml"


def test_what_is_declared(place: Path) -> None:
    devices, problems = read_devices(place)
    board, phone = devices["board"], devices["phone"]
    assert problems == [] and isinstance(board, SshConfig) and isinstance(phone, AdbConfig)
    assert board.identity == place.parent / "keys" / "id board"  # beside the file, and absolute
    assert board.patience.value == 600_000 and phone.patience.value == 300_000
    assert (board.emulated, phone.emulated) == (False, True)


def test_back_to_yaml(place: Path, tmp_path: Path) -> None:
    devices, _ = read_devices(place)
    again = tmp_path / "again.yaml"
    again.write_text(dump_devices({name: device for name, device in devices.items() if device}))
    assert read_devices(again) == (devices, [])


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("port: 2222", "prot: 2222", "3:3: board.prot: unknown key 'prot'; did you mean 'port'?"),
        ("port: 2222", "port: 0", "3:9: board.port: received 0, expected a number of at least 1"),
        ("port: 2222", "port: '22'", "3:9: board.port: received '22', expected a whole number"),
        (
            "pi@raspberry.local",
            "-oProxyCommand=x",
            "2:8: board.ssh: received '-oProxyCommand=x', expected user@host",
        ),
        (
            "pi@raspberry.local",
            "a b",
            "2:8: board.ssh: received 'a b', expected user@host, a host, or a name of",
        ),
        ("me@bastion:2200", "-J", "board.jump: received '-J', expected user@host"),
        ("keys/id board", "keys/id_bord", "board.identity: 'keys/id_bord' does not exist; did you mean"),
        ("~/venv/bin/python", "-x", "board.python: received '-x', expected a path or a command, in one line"),
        ("10 min", "10", "board.patience: received 10: the unit is missing"),
        ('"R58M12:5555"', "'-x'", "phone.adb: received '-x', expected a serial as `adb devices` shows it"),
        ("phone: {adb", "phone: {ssh: a, adb", "9:8: phone: received a mapping"),
        (
            "phone: {adb: ",
            "phone: {usb: ",
            "phone: received a mapping (usb, python, emulated), expected one of ssh: ...",
        ),
        (
            "board:\n",
            "local:\n",
            "1:1: local: local is this machine and always there; name the device otherwise",
        ),
        (
            "board:\n",
            "the board:\n",
            "1:1: the board: received 'the board', expected letters, digits, '.', '_' and",
        ),
    ],
)
def test_one_mistake_gives_one_line(place: Path, old: str, new: str, expected: str) -> None:
    assert old in GOOD
    place.write_text(GOOD.replace(old, new))
    _, problems = read_devices(place)
    (line,) = map(str, problems)
    assert expected in line.replace(str(place) + ":", "", 1)


def test_the_pipeline_and_its_devices_together(place: Path, good: str, folder: Path) -> None:
    pipeline = folder / "pipeline.yaml"
    pipeline.write_text(good.replace("device: local", "device: board"))
    config = read(pipeline)
    assert config.target.device == "board" and isinstance(config.devices["board"], SshConfig)
    copy = folder / "run"  # the two side by side again, as a run writes them for its steps
    copy.mkdir()
    (copy / "config.yaml").write_text(dump(config))
    assert "devices" not in dump(config)
    (copy / "devices.yaml").write_text(dump_devices(config.devices))
    assert read(copy / "config.yaml") == config


def test_another_file_of_devices(place: Path, good: str, folder: Path) -> None:
    pipeline = folder / "pipeline.yaml"
    pipeline.write_text(good.replace("device: local", "device: tv"))
    with pytest.raises(
        ConfigError, match=r"unknown device 'tv'; known: local, board, phone, a name in devices.yaml"
    ):
        read(pipeline)
    (folder / "lab.yaml").write_text("tv: {adb: T1}\n")
    assert read(pipeline, devices=folder / "lab.yaml").target.device == "tv"


def test_mistakes_of_both_files_at_once(place: Path, good: str, folder: Path) -> None:
    pipeline = folder / "pipeline.yaml"
    pipeline.write_text(good.replace("device: local", "device: board").replace("epochs: 12", "epoch: 12"))
    place.write_text(GOOD.replace("port: 2222", "port: 0"))
    with pytest.raises(ConfigError) as caught:
        read(pipeline)
    lines = [str(problem) for problem in caught.value.problems]
    assert len(lines) == 2, lines  # and not a third one that there is no board
    assert lines[0].startswith(f"{pipeline}:") and lines[1].startswith(f"{place}:3:9: board.port")


def test_devices_do_not_stand_in_the_pipeline(good: str, folder: Path) -> None:
    pipeline = folder / "pipeline.yaml"
    pipeline.write_text(good + "devices: {board: {ssh: pi}}\n")
    with pytest.raises(
        ConfigError, match=r"devices stand in a devices.yaml beside this file, or behind --devices"
    ):
        read(pipeline)
