"""A device that is reached by running commands on it: files by digest, jobs by id, which go on without us."""

from __future__ import annotations

import contextlib
import json
import secrets
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploycompress.artifact import canonical_json, digest_json
from deploycompress.config.devices import DeviceConfig
from deploycompress.config.wording import listed
from deploycompress.devices.link import ANSWER_S, FIRST_CONTACT_S, Answer, Link, Transport
from deploycompress.devices.results import read_facts, read_state
from deploycompress.devices.runner import LAST_RESORT_S
from deploycompress.devices.transfer import receive, send
from deploycompress.errors import EnvironmentMissing
from deploycompress.registry import RUNTIMES
from deploycompress.runtimes.program import PROGRAM

LOCK_WAIT_S = 1800.0  # for others who measure on the device
TELL_S = 0.5  # how long ``poll`` may keep its caller
WAITS_S = (0.5, 15.0)  # of one question whether a job has ended: the first, and the longest
IMPORT_S = 170.0  # an emulated board takes a while
LARGEST_RESULT_BYTES = 1 << 27  # it is parsed as a whole
STARTING = {"state": "running", "done": 0.0, "message": "starting"}


@dataclass
class _Watch:
    """A job that was started: what is known of it, and the question that the device has not answered yet.

    ``until``: when it has ended, whatever happens there; its device lies, or has stood still, if it says otherwise.
    """

    until: float
    state: Mapping[str, Any] = field(default_factory=lambda: STARTING)
    wait_s: float = WAITS_S[0]
    question: Future[Answer] | None = None


class RemoteDevice:
    """The operations of ``agent`` over some ``Transport``."""

    def __init__(
        self, name: str, config: DeviceConfig, transport: Transport, folder: str, controller: str
    ) -> None:
        """``folder``: where files and jobs lie, unless the configuration says it. ``controller``: as in ``Devices``."""
        self.name, self._where, self._config = name, f"device {name}", config
        self._link = Link(name, config, config.folder or folder, transport)
        self._controller = controller or secrets.token_hex(16)
        self._sender = secrets.token_hex(8)
        self._facts: Mapping[str, Any] | None = None
        self._missing: dict[str, str | None] = {}
        self._started: Counter[str] = Counter()
        self._watched: dict[str, _Watch] = {}
        self._background = ThreadPoolExecutor(1, thread_name_prefix=self._where)

    # ---------------------------------------------------------------- the machine

    @property
    def program(self) -> Path | None:
        """The user's own, which the jobs of the runtime ``program`` bring along."""
        return self._config.program

    def facts(self) -> Mapping[str, Any]:
        """The device's own fingerprint; asked for once. Raises EnvironmentMissing when it is away."""
        if self._facts is None:
            told = read_facts(self._link.ask("facts").head, self.name)
            self._facts = {"name": self.name, **told, "emulated": told["emulated"] or self._config.emulated}
        return self._facts

    def missing(self, runtime: str) -> str | None:
        if runtime not in self._missing:
            self._missing[runtime] = self._cannot_run(runtime)
        return self._missing[runtime]

    def _cannot_run(self, runtime: str) -> str | None:
        """Imports the runtime there: one that was built for another processor crashes, and does not raise."""
        known = RUNTIMES.load(runtime)
        if runtime == PROGRAM and self.program is None:
            return f"{self._where} declares no program; add `program: ./FILE` to it in devices.yaml"
        libraries, programs = (
            list(getattr(known, "libraries", ("numpy",))),
            list(getattr(known, "programs", ())),
        )
        answer = self._link.ask(
            "imports",
            libraries=libraries,
            programs=programs,
            timeout_s=IMPORT_S,
            answer_s=IMPORT_S + ANSWER_S,
        )
        if answer.head.get("found") is False:
            return f"{self._where}: there is neither {listed(programs, last='nor')}; install it there"
        code, said = answer.head.get("code"), str(answer.head.get("said", "")).strip()
        told = f": {said.splitlines()[-1][:300]}" if said else ""
        what = f"{self._where}: {' with '.join(libraries)}"
        if code == 0:
            return None
        if code is None:
            return f"{what} was not imported within {IMPORT_S:.0f} s; try it there by hand"
        if isinstance(code, int) and code < 0:
            names = {int(s): s.name for s in signal.Signals}
            return f"{what} crashes on import ({names.get(-code, code)}); install another version there{told}"
        return f"{what} cannot be imported by {self._config.python}; install it there, or name another Python by `python:`{told}"

    # ---------------------------------------------------------------- files

    def push(self, files: Mapping[str, Path]) -> None:
        """Send what the device has not. Raises EnvironmentMissing when it is full, or lost."""
        absent = self._link.ask("have", digests=list(files)).head.get("absent")
        for digest in absent if isinstance(absent, list) else ():
            if digest in files:
                send(self._link, digest, files[digest], self._sender, self._where)

    def collect(self, id: str, files: Mapping[str, Path]) -> None:
        """Raises EnvironmentMissing where one is not there, or arrives damaged."""
        for name, place in files.items():
            if not receive(self._link, id, name, place, self._where):
                raise EnvironmentMissing(f"{self._where}: {name} of the result is not there; run again")

    # ---------------------------------------------------------------- jobs

    def start(self, job: Mapping[str, Any]) -> str:
        """Start a job, or find it again: its id tells what it does, whose it is, and how often that was asked for.

        The deadline is no part of it, since a controller that comes back has less time left.
        """
        does = digest_json({key: value for key, value in job.items() if key != "deadline_s"})
        number = self._started[does]
        self._started[does] += 1
        id = digest_json({"does": does, "controller": self._controller, "number": number})[:40]
        patience_s = self._config.patience.value / 1000
        document = {**job, "lock_wait_s": LOCK_WAIT_S, "alone_s": 2 * (patience_s + ANSWER_S)}
        self._link.ask("start", canonical_json(document).encode(), id=id)
        longest_s = job["deadline_s"] + LAST_RESORT_S + LOCK_WAIT_S + patience_s + ANSWER_S
        self._watched[id] = _Watch(time.monotonic() + longest_s)
        return id

    def poll(self, id: str) -> Mapping[str, Any]:
        """What is known, after half a second at most; the device is asked seldom, and without using its processor."""
        watch = self._watched[id]
        if watch.question is None:
            wait_s, watch.wait_s = watch.wait_s, min(2 * watch.wait_s, WAITS_S[1])
            watch.question = self._background.submit(
                self._link.ask, "poll", id=id, wait_s=wait_s, answer_s=wait_s + ANSWER_S
            )
        try:
            head = watch.question.result(timeout=TELL_S).head
        except NotYet:
            return watch.state
        watch.question = None
        watch.state = read_state(head, self.name)
        if watch.state["state"] != "ended" and time.monotonic() > watch.until:
            raise EnvironmentMissing(
                f"{self._where}: its job is not over, long after its time limit; look what runs there, or restart the device"
            )
        return watch.state

    def pull(self, id: str) -> Mapping[str, Any]:
        """The result as the runner wrote it. Raises EnvironmentMissing when there is none."""
        with tempfile.TemporaryDirectory(prefix="deploycompress-pull-") as folder:
            place = Path(folder) / "result.json"
            if not receive(self._link, id, "result.json", place, self._where, LARGEST_RESULT_BYTES):
                said = self._link.ask("read", id=id, name="log.txt", offset=0, most=1 << 16).data
                last = said.decode(errors="replace").strip()[-500:] or "nothing"
                raise EnvironmentMissing(
                    f"{self._where}: the runner ended and left no result; look whether the device was restarted or "
                    f"out of memory, then run again. It said: {last}"
                )
            try:
                document = json.loads(place.read_bytes())
            except (ValueError, RecursionError) as error:
                raise EnvironmentMissing(f"{self._where}: its result is not JSON: {error}") from error
        if not isinstance(document, dict):
            raise EnvironmentMissing(f"{self._where}: its result is no JSON object; nothing in it was used")
        return document

    def stop(self, id: str) -> None:
        """End a job and take its files away; where the device is lost, the job ends by itself."""
        self._watched.pop(id, None)
        if not self._link.lost:
            with contextlib.suppress(EnvironmentMissing):  # what is wrong was, or will be, told otherwise
                self._link.ask("stop", id=id, patience_s=FIRST_CONTACT_S)
