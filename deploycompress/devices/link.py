"""Asks a device's agent for one operation, and again while the link is lost."""

from __future__ import annotations

import json
import secrets
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from deploycompress.config.devices import DeviceConfig
from deploycompress.devices import pipes
from deploycompress.devices.bundle import agent
from deploycompress.errors import EnvironmentMissing

FIRST_CONTACT_S = 15.0  # a device that was never reached is not waited for as one that was
PAUSES_S = (0.5, 15.0)  # between tries: the first one, and the longest
ANSWER_S = 60.0  # of an operation that does not wait
SLOWEST_BYTES_S = 16_000
LARGEST_HEAD_BYTES = 1 << 20
NOISE_BYTES = 1 << 20  # of a profile or a banner around the answer
# The request follows on standard input, so that no data is ever part of a command line.
PROGRAM = (
    "import sys; s = sys.stdin.buffer; "
    'sys.version_info >= (3, 8) or sys.exit("deploycompress: Python %d.%d" % sys.version_info[:2]); '
    'exec(compile(s.read(int(s.readline())), "agent", "exec"))'
)


class LinkLost(Exception):
    """The link failed in a way that may be over soon; the message has no end and no capital."""


@dataclass(frozen=True)
class Done:
    """What came of a command; ``code`` is None where it did not end in time."""

    code: int | None
    out: bytes
    error: str


class Transport(Protocol):
    """Runs a command line in the device's shell."""

    def run(self, command: str, data: bytes, timeout_s: float, most: int) -> Done:
        """With ``data`` on its standard input; ``most``: bytes of what comes back.

        Raises EnvironmentMissing where the program for it is not here, ``pipes.TooMuch``.
        """
        ...

    def explain(self, done: Done) -> None:
        """Raises LinkLost or EnvironmentMissing where the link, and not the command, has failed."""
        ...


@dataclass(frozen=True)
class Answer:
    head: Mapping[str, Any]
    data: bytes
    seconds: float  # with all tries


class Link:
    """One device's agent, behind a transport. ``lost``: it was given up."""

    def __init__(self, name: str, config: DeviceConfig, folder: str, transport: Transport) -> None:
        self._name, self._config, self._folder, self._transport = name, config, folder, transport
        self._command = f"exec {in_home(config.python)} -I -c {shlex.quote(PROGRAM)}"
        self._patience_s = config.patience.value / 1000
        self._reached = self.lost = False

    def ask(
        self,
        do: str,
        data: bytes = b"",
        *,
        answer_s: float = ANSWER_S,
        patience_s: float | None = None,
        **more: Any,
    ) -> Answer:
        """One operation of ``agent``. Raises EnvironmentMissing when the device is lost, or refuses it."""
        patience_s = self._patience_s if patience_s is None else patience_s
        if not self._reached:
            patience_s = min(FIRST_CONTACT_S, patience_s)
        started, pause_s = time.monotonic(), PAUSES_S[0]
        lost_at: float | None = None  # patience is with a lost link, not with an operation that took its time
        while True:
            try:
                head, found = self._once({"do": do, **more}, data, answer_s)
            except LinkLost as lost:
                lost_at = lost_at or time.monotonic()
                if time.monotonic() - lost_at + pause_s > patience_s:
                    self.lost = True
                    raise EnvironmentMissing(
                        f"device {self._name}: {lost}, and so for {patience_s:.0f} s; look whether it is switched on "
                        "and reachable, then run the same command again"
                    ) from lost
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, PAUSES_S[1])
                continue
            self._reached = True
            if "error" in head:
                raise self._refused(head["error"])
            return Answer(head, found, time.monotonic() - started)

    def _once(
        self, request: Mapping[str, Any], data: bytes, answer_s: float
    ) -> tuple[Mapping[str, Any], bytes]:
        mark, program = secrets.token_hex(16), agent().encode()
        line = json.dumps({**request, "folder": self._folder, "mark": mark, "bytes": len(data)}).encode()
        sent = b"%d\n%s%s\n%s" % (len(program), program, line, data)
        asked = int(request.get("most", 0))
        timeout_s = answer_s + max(len(sent), asked) / SLOWEST_BYTES_S
        try:
            done = self._transport.run(
                self._command, sent, timeout_s, asked + LARGEST_HEAD_BYTES + NOISE_BYTES
            )
        except pipes.TooMuch as error:
            raise EnvironmentMissing(
                f"device {self._name}: it answered with more than was asked for; look at what its shell prints at a login"
            ) from error
        answer = _between(done.out, mark.encode())
        if answer is not None:
            return answer
        self._transport.explain(done)
        if done.code is None:
            raise LinkLost(f"it did not answer within {answer_s:.0f} s")
        raise self._no_agent(done)

    def _no_agent(self, done: Done) -> EnvironmentMissing:
        """The command came through, and there was no answer of ours."""
        python, said = self._config.python, done.error.strip()
        last = said.splitlines()[-1][:300] if said else "it said nothing"
        device = f"device {self._name}"
        if "deploycompress: Python" in said:
            version = said.rpartition("deploycompress: ")[2].split("\n")[0][:20]
            return EnvironmentMissing(
                f"{device}: {python} there is {version}, and 3.8 is needed; name a newer one by `python:`"
            )
        if done.code in (126, 127) or "not found" in said:
            return EnvironmentMissing(
                f"{device}: there is no {python} there ({last}); install Python 3.8 or newer with numpy and the "
                "runtime, or say by `python:` where it is"
            )
        return EnvironmentMissing(
            f"{device}: {python} ended with code {done.code} and gave no answer ({last}); try it there by hand"
        )

    def _refused(self, error: Any) -> EnvironmentMissing:
        told = error if isinstance(error, dict) else {}
        kind, message = told.get("kind"), str(told.get("message", "no reason given"))[:500]
        remedies = {
            "full": "the device is full; free some space there, or name another `folder:`",
            "closed": "the device does not let us write there; name another `folder:`",
        }
        return EnvironmentMissing(
            f"device {self._name}: {remedies.get(str(kind), 'the device failed')}: {message}"
        )


def in_home(path: str) -> str:
    """A word for any shell; ``~/`` is the home there."""
    if path.startswith("~/"):
        return f'"$HOME"/{shlex.quote(path[2:])}'
    return shlex.quote(path)


def _between(out: bytes, mark: bytes) -> tuple[Mapping[str, Any], bytes] | None:
    """The answer between the two marks, whatever a profile printed around it; None where it is not whole."""
    _, found, rest = out.partition(b"\n%s " % mark)
    line, newline, rest = rest.partition(b"\n")
    if not found or not newline or not line.isdigit() or len(line) > 9:
        return None
    size = int(line)
    try:
        head = json.loads(rest[:size]) if size <= LARGEST_HEAD_BYTES else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(head, dict) or not isinstance(head.get("bytes"), int):
        return None
    end = size + head["bytes"]
    return (head, rest[size:end]) if rest[end:].startswith(b"\n" + mark) else None
