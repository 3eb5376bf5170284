"""A device on loopback for tests and benchmarks: a real sshd of its own, and a link to it that fails as it is told to."""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
import shlex
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploycompress.config.devices import SshConfig
from deploycompress.devices.link import Answer, Link

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
MISSING = None if SSHD and shutil.which("ssh") else "sshd is not installed: apt-get install openssh-server"


@dataclass
class Sshd:
    """A server for this user alone, on 127.0.0.1; ``home`` is what its sessions have for a home folder."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def home(self) -> Path:
        return self.folder / "home of the device"

    @property
    def user(self) -> str:
        return pwd.getpwuid(os.getuid()).pw_name

    def config(self, port: int | None = None, **more: Any) -> SshConfig:
        """What devices.yaml would say; ``port``: of a link to it."""
        port = self.port if port is None else port
        known = self.folder / f"known hosts {port}"
        key = (self.folder / "host_key.pub").read_text()
        written = known.with_name(f"{known.name} {threading.get_ident()}")
        written.write_text(f"[127.0.0.1]:{port} {key}[127.0.0.1]:{self.port} {key}")
        written.replace(known)  # at once: another client may be reading it
        given = {
            "ssh": f"{self.user}@127.0.0.1",
            "port": port,
            "identity": self.folder / "key",
            "known_hosts": known,
            **more,
        }
        return SshConfig.model_validate(given)

    def processes(self, folder: Path | None = None) -> list[int]:
        """Of jobs on the device, which work in a folder of their own below ``folder``, or below its home."""
        found, above = [], str(folder or self.folder)
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.readlink(entry / "cwd").startswith(above + "/"):
                    found.append(int(entry.name))
        return found


@contextlib.contextmanager
def sshd(folder: Path, python: str) -> Iterator[Sshd]:
    """Starts a server in ``folder``; ``python`` is what ``python3`` means on the device."""
    assert SSHD is not None, MISSING
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("host_key", "key", "other_key"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(folder / name)], check=True
        )
    shutil.copyfile(folder / "key.pub", folder / "authorized_keys")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    home, programs = folder / "home of the device", folder / "bin"
    home.mkdir()
    programs.mkdir()
    python_with(programs / "python3", python)
    settings = {
        "ListenAddress": f"127.0.0.1:{port}",
        "HostKey": folder / "host_key",
        "AuthorizedKeysFile": folder / "authorized_keys",
        "PidFile": "none",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "PermitRootLogin": "prohibit-password",
        "StrictModes": "no",
        "UsePAM": "no",
        "MaxStartups": "100",
        "SetEnv": f'"HOME={home}" "PATH={programs}:/usr/bin:/bin" "DEPLOYCOMPRESS_LOCK={folder}/lock"',
    }
    (folder / "sshd_config").write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    with (folder / "sshd.log").open("wb") as log:
        process = subprocess.Popen(
            [SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stdin=subprocess.DEVNULL, stderr=log
        )
    server = Sshd(folder, port, process)
    try:
        wait_until(lambda: b"Server listening" in (folder / "sshd.log").read_bytes(), 60)
        yield server
    finally:
        process.terminate()
        process.wait()


def wait_until(holds: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


# ---------------------------------------------------------------- a link that fails

KINDS = ("cut", "reset", "stall", "slow", "flip", "refuse")


@dataclass(frozen=True)
class Fault:
    """What happens to one connection, when so many bytes have gone through it in one direction."""

    kind: str
    after_bytes: int = 0
    upward: bool = True  # of the bytes to the device


@dataclass
class FaultyLink:
    """A TCP proxy on loopback; ``faults``: number of the connection, from 0, -> what happens to it."""

    to: int
    faults: dict[int, Fault] = field(default_factory=dict)
    down: bool = False  # every connection is closed at once
    connections: int = 0
    struck: set[int] = field(default_factory=set)  # the connections whose fault has come

    def __post_init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._server.close()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            fault = self.faults.get(self.connections)
            number, self.connections = self.connections, self.connections + 1
            if fault is not None and fault.kind == "refuse":
                self.struck.add(number)
            if self.down or (fault is not None and fault.kind == "refuse"):
                near.close()
                continue
            far = socket.create_connection(("127.0.0.1", self.to))
            for source, sink, upward in ((near, far, True), (far, near, False)):
                one = fault if fault is not None and fault.upward == upward else None
                strike = functools.partial(self.struck.add, number)
                threading.Thread(target=_pump, args=(source, sink, one, strike), daemon=True).start()


def fail_at(phase: str, fault: Fault, link: FaultyLink, replace: Callable[..., Any], times: int = 1) -> None:
    """The first connections of an operation (facts, have, put, start, poll, read, stop) have the fault.

    ``replace``: setattr, or pytest's, which takes it back.
    """
    ask = Link.ask

    def failing(self: Link, do: str, *data: bytes, **more: Any) -> Answer:
        if do == phase and not link.faults:
            link.faults.update({link.connections + number: fault for number in range(times)})
        return ask(self, do, *data, **more)

    replace(Link, "ask", failing)


def _pump(
    source: socket.socket, sink: socket.socket, fault: Fault | None, strike: Callable[[], None]
) -> None:
    """Copies until the end, or until the fault; a slow link goes on at 20 kB/s."""
    gone = 0
    with contextlib.suppress(OSError):
        while True:
            data = source.recv(4096 if fault is not None else 1 << 16)
            if not data:
                break
            if fault is not None and gone + len(data) > fault.after_bytes:
                strike()
                if fault.kind == "slow":
                    time.sleep(len(data) / 20_000)
                elif fault.kind == "flip":
                    data = bytes([data[0] ^ 0x20]) + data[1:]
                elif fault.kind == "stall":
                    time.sleep(600)
                else:
                    for end in (source, sink) if fault.kind == "reset" else ():
                        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    break
            gone += len(data)
            sink.sendall(data)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR) if fault is None or fault.kind != "reset" else end.close()
    if fault is None:
        with contextlib.suppress(OSError):
            source.close()


def script(path: Path, *lines: str) -> str:
    """A shell script on the device; gives its path."""
    path.write_text("\n".join(("#!/bin/sh", *lines, "")))
    path.chmod(0o755)
    return str(path)


def python_with(path: Path, python: str, *lines: str) -> str:
    """A Python of the device that does something first."""
    return script(path, *lines, f'exec {shlex.quote(python)} "$@"')
