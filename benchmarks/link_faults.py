"""What becomes of measurements on a device whose link fails: results, clean errors, wrong figures, orphans.

A real sshd on loopback is the device, a TCP proxy the link to it. In each of the trials one operation of the protocol,
drawn with its kind and its byte, fails: cut, reset, stalled, slowed to 20 kB/s, one bit turned round, or refused; once,
several times in a row, or for good. The measured call takes a known time, so that a figure that is wrong is seen to be.
Waits are shortened to seconds. Needs openssh-server.

    python benchmarks/link_faults.py --trials 100
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "devices"))

from device_lab import KINDS, MISSING, Fault, FaultyLink, Sshd, fail_at, sshd  # noqa: E402

from deploycompress.artifact import write_json  # noqa: E402
from deploycompress.devices import link, remote, ssh  # noqa: E402
from deploycompress.devices.jobs import Candidate, run_job  # noqa: E402
from deploycompress.devices.results import Timing  # noqa: E402
from deploycompress.devices.ssh import Ssh  # noqa: E402
from deploycompress.errors import EnvironmentMissing  # noqa: E402
from deploycompress.measure.environment import environment  # noqa: E402
from deploycompress.measure.plan import Plan  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "link_faults.json"
PHASES = ("facts", "have", "put", "start", "poll", "read", "stop")
PLAN = Plan(blocks=4, block_ms=20, warmup_ms=10, least_samples=4, again=0.0)
BUSY_MS = 2.0
SLOWEST = 1.25  # times the known time, of the quickest call: another process can only add to it
PATIENCE_S, ANSWER_S = 6.0, 5.0
RUNTIME = """
import contextlib, os, time
import numpy as np

class Known:
    accepts, libraries = frozenset({"onnx"}), ("numpy",)
    def missing(self): return None
    @contextlib.contextmanager
    def open(self, path, options):
        with open(options["runs"], "a") as stream:
            stream.write("x")
        yield KnownSession(options)

class KnownSession:
    inputs = {"x": None}
    def __init__(self, options): self.ns = options["busy_ms"] * 1e6
    def bind(self, feed): return self.call
    def call(self):
        end = time.perf_counter_ns() + self.ns
        while time.perf_counter_ns() < end: pass
    def fetch(self): return {"y": np.ones(1, np.float32)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if MISSING:
        sys.exit(MISSING)
    ssh.CONNECT_S, ssh.ALIVE_S, ssh.SILENT = 2, 1, 2
    link.PAUSES_S, link.ANSWER_S, remote.ANSWER_S = (0.1, 0.5), ANSWER_S, ANSWER_S
    draw = random.Random(arguments.seed)
    folder = Path(tempfile.mkdtemp(prefix="deploycompress-faults-"))
    (folder / "known_runtime.py").write_text(RUNTIME)
    sys.path.insert(0, str(folder))
    shutil.copyfile(ROOT / "benchmarks" / "link_faults.py", folder / "any.bin")  # the runtime opens anything
    trials = []
    with sshd(folder / "server", sys.executable) as server:
        number = 0
        while len(trials) < arguments.trials:
            trial, number = _trial(number, draw, server, folder), number + 1
            if trial["struck"]:  # else the connection was over before that byte
                trials.append(trial)
                print(len(trials), trial, flush=True)
    counts = Counter(trial["outcome"] for trial in trials)
    write_json(
        RESULTS,
        {
            "trials": len(trials),
            "results": counts["result"],
            "clean_errors": counts["clean error"],
            "wrong_figures": counts["wrong figure"],
            "other_errors": counts["another error"],
            "measured_twice": sum(trial["runs"] > 1 for trial in trials),
            "orphans": sum(trial["orphans"] for trial in trials),
            "by_kind": _by(trials, "kind"),
            "by_phase": _by(trials, "phase"),
            "each": trials,
            "environment": environment(),
        },
    )
    shutil.rmtree(folder)


def _trial(number: int, draw: random.Random, server: Sshd, folder: Path) -> dict[str, Any]:
    upward = draw.random() < 0.6
    longest = 16_000 if upward else 4_000  # of most connections
    fault = Fault(draw.choice(KINDS), draw.choice((0, draw.randrange(30, longest))), upward)
    phase, times = draw.choice(PHASES), draw.choice((1, 1, 1, 2, 3, 10_000))
    through, runs = FaultyLink(server.port), folder / f"runs{number}"
    there = server.folder / f"there{number % 10}"  # some files are there already, the inputs never
    device = Ssh("board", server.config(through.port, folder=str(there), patience=f"{PATIENCE_S:g} s"))
    candidate = Candidate(
        "it", folder / "any.bin", "known_runtime:Known", options={"busy_ms": BUSY_MS, "runs": str(runs)}
    )
    started = time.monotonic()
    with _failing(phase, fault, through, times):
        outcome, message = _outcome(device, candidate, np.full((2, 4), number, np.float32))
    seconds = time.monotonic() - started
    return {
        **asdict(fault),
        "phase": phase,
        "times": times,
        "struck": len(through.struck),
        "outcome": outcome,
        "message": message.replace(str(folder), "FOLDER"),
        "seconds": round(seconds, 1),
        "runs": len(runs.read_text()) if runs.exists() else 0,
        "orphans": _orphans(server),
    }


def _outcome(device: Ssh, candidate: Candidate, feed: np.ndarray) -> tuple[str, str]:
    try:
        device.facts()
        result = run_job(
            device,
            [candidate],
            feed={"x": feed},
            plan=PLAN,
            progress=lambda *_: None,
        )
    except EnvironmentMissing as error:
        clean = str(error).startswith("device board: ") and "\n" not in str(error)
        return ("clean error" if clean else "another error"), str(error)
    except Exception as error:
        return "another error", repr(error)
    found = result.candidates["it"]
    if not isinstance(found, Timing):
        return "another error", found.message
    blocks = found.blocks_ns + found.set_aside_ns
    least_ms = min(map(min, blocks)) / 1e6
    right = len(blocks) == PLAN.blocks and BUSY_MS <= least_ms <= SLOWEST * BUSY_MS
    return ("result" if right else "wrong figure"), f"{least_ms:.3f} ms"


@contextmanager
def _failing(phase: str, fault: Fault, through: FaultyLink, times: int) -> Iterator[None]:
    ask = link.Link.ask
    fail_at(phase, fault, through, setattr, times)
    try:
        yield
    finally:
        link.Link.ask = ask  # type: ignore[method-assign]
        through.close()


def _orphans(server: Sshd) -> int:
    """Processes of jobs that are there when the time has passed in which nobody needs to ask for them."""
    end = time.monotonic() + 2 * (PATIENCE_S + ANSWER_S) + 10
    while server.processes() and time.monotonic() < end:
        time.sleep(0.5)
    return len(server.processes())


def _by(trials: list[dict[str, Any]], key: str) -> dict[str, dict[str, int]]:
    names = sorted({trial[key] for trial in trials})
    return {name: dict(Counter(t["outcome"] for t in trials if t[key] == name)) for name in names}


if __name__ == "__main__":
    main()
