"""What do SIGINT and SIGTERM leave? In every phase of a run: exit code, time, processes, locks, and the next run.

Only the run's own process gets the signal, as from a CI system that cancels a job. It has to end with 130 or 143 within
7.5 s; no process of it may be left two seconds later, no lock be held, nothing in the store be damaged or half-written.
The same command is then given again, and gets the signal in the next phase; the last time it is left alone, and has to
end with the digests of a run that was never disturbed. Before the first step the real command is signalled, cold.

    python benchmarks/reliability/signals.py
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from lab import RESULTS, Lab, Project, lab, note_results

WINDOW_S = 7.5
GONE_S = 2.0
# Phase, the line after which it has begun, and how many seconds later the signal is sent.
PHASES = [
    ("model", r"00-model: started", 0.05),
    ("rehearsal", r"rehearsal: train works", 0.2),
    ("train", r"01-train: epoch 2/", 0.0),
    ("baseline", r"02-baseline: started", 0.3),
    ("prune with latency table", r"03-prune: started", 3.0),
    ("distill", r"04-distill: started", 0.2),
    ("export", r"07-export: started", 0.5),
    ("quantize", r"08-quantize: started", 0.1),
    ("compile, while it measures", r"09-compile: started", 0.6),
    ("build_engine", r"10-build_engine: started", 0.05),
    ("pack", r"11-pack: started", 0.05),
    ("benchmark", r"12-benchmark: started", 1.0),
    ("report", r"12-benchmark: done", 0.0),
]
PUBLISHING = ("publishing a step", "/steps/")
COLD_S = (0.3, 1.0, 2.5, 5.0)  # of the real command: Python, the configuration, the fork server
SAMPLE = ("model", "train", "export")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with lab() as here:
        for row in _every(here, sample=False):
            rows.append(row)
            note_results(
                "signals", _document(rows), arguments.out
            )  # what was tried is known also if it is cut
    sys.exit(any(row["problems"] for row in rows))


def tried(here: Lab) -> dict[str, Any]:
    """A few phases of a short pipeline, and SIGTERM alone."""
    return _document(list(_every(here, sample=True)))


def _every(here: Lab, *, sample: bool) -> Iterator[dict[str, Any]]:
    for number in (signal.SIGTERM,) if sample else (signal.SIGTERM, signal.SIGINT):
        yield from _warm(here, number, sample)
        yield from () if sample else (_cold(here, number, after) for after in COLD_S)


def _document(rows: list[dict[str, Any]]) -> dict[str, Any]:
    good = sum(not row["problems"] for row in rows)
    return {
        "figures": [["signals sent / right code, in 7.5 s, nothing left, next run right", len(rows), good]],
        "slowest_s": max(row["seconds"] for row in rows),
        "each": rows,
    }


def _warm(here: Lab, number: int, sample: bool) -> Iterator[dict[str, Any]]:
    """One project that is signalled in one phase after the other."""
    project = Project(here.folder / f"signal-{number}", benchmark=not sample)
    project.pipeline.write_text(
        project.pipeline.read_text()
        .replace("train: {epochs: 2", "train: {epochs: 60")
        .replace(
            "{target: {macs: 60%}, criterion: magnitude}", "{target: {latency: 60%}, on_unreachable: best}"
        )
        .replace("distill: {epochs: 1", "distill: {epochs: 20")
    )
    if sample:
        text = project.pipeline.read_text()
        project.pipeline.write_text(text[: text.index("  - prune")] + "  - export\ngates: {}\n")
    phases = [p for p in PHASES if not sample or p[0] in SAMPLE]
    if sample:
        phases = [(name, line.replace("07-export", "02-export"), after) for name, line, after in phases]
    last: dict[str, Any] = {}
    for name, line, after in phases:
        last = _signalled(here, project, name, number, line=re.compile(line), after=after)
        print(last, flush=True)
        yield last
        if name == "train" and not sample:
            last = _signalled(here, project, PUBLISHING[0], number, point=PUBLISHING[1])
            print(last, flush=True)
            yield last
    ended = here.run(project)
    if ended.code != 0 or project.left_over():
        last["problems"].append(
            f"the last run ended with {ended.code}, {project.left_over()}: {ended.output[-500:]}"
        )


def _signalled(
    here: Lab,
    project: Project,
    phase: str,
    number: int,
    *,
    line: re.Pattern[str] | None = None,
    after: float = 0.0,
    point: str = "",
) -> dict[str, Any]:
    arguments = [a for a in project.arguments() if a != "--no-rehearsal" or phase != "rehearsal"]
    points = {"at": -1, "when": point, "signal": int(number)} if point else None
    since = time.monotonic()
    pid, output = here.start(arguments, points=points)
    sent = None
    if line is not None:
        while not line.search(output.read_text()):
            if time.monotonic() - since > 300 or os.waitid(
                os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT
            ):
                break
            time.sleep(0.01)
        time.sleep(after)
        os.kill(pid, number)
        sent = time.monotonic()
    else:
        plan = here.points / "plan.json"
        while plan.exists() and time.monotonic() - since < 300:
            time.sleep(0.005)
        sent = time.monotonic()
    ended = here.wait((pid, output), sent)
    problems = []
    if ended.code != 128 + number:
        problems.append(f"exit code {ended.code}: {ended.output[-300:]}")
    if ended.seconds > WINDOW_S:
        problems.append("too late")
    gone = here.no_processes(project, GONE_S)
    if gone is None:
        problems.append("processes are left")
    problems += _state(project)
    return {
        "phase": phase,
        "signal": signal.Signals(number).name,
        "seconds": round(ended.seconds, 2),
        "processes_gone_s": None if gone is None else round(gone, 2),
        "problems": problems,
    }


def _state(project: Project) -> list[str]:
    from deploycompress.engine.locks import held
    from deploycompress.engine.store import FileStore, damage_of

    locks = [p.name for p in (*project.store.rglob("*.lock"), project.out / ".lock") if held(p)]
    damaged = [p.name for kind, p in FileStore(project.store).entries() if damage_of(p, kind)]
    left = [
        name for name in project.left_over() if not name.startswith("store/tmp/")
    ]  # the next run's to sweep
    found = {"locks are held": locks, "damaged": damaged, "left behind": left}
    return [f"{what}: {which}" for what, which in found.items() if which]


def _cold(here: Lab, number: int, after: float) -> dict[str, Any]:
    """The real command in a process of its own, which imports everything."""
    project = Project(here.folder / f"cold-{number}-{after:g}")
    log = here.folder / "cold.txt"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "deploycompress", *project.arguments()],
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    time.sleep(after)
    process.send_signal(number)
    sent = time.monotonic()
    code = process.wait(60)
    seconds = time.monotonic() - sent
    text = log.read_text()
    problems = []
    # Until Python itself has come to our first line, a signal does what it does to any program.
    if code != 128 + number and not (code == -number and not text):
        problems.append(f"exit code {code}: {text[-300:]}")
    if "Traceback" in text and after > COLD_S[0]:
        problems.append(f"a traceback: {text[-300:]}")
    if seconds > WINDOW_S:
        problems.append("too late")
    deadline = time.monotonic() + GONE_S
    while _group(process.pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    if _group(process.pid):
        problems.append("processes are left")
    row = {"phase": f"cold, after {after:g} s", "signal": signal.Signals(number).name,
           "seconds": round(seconds, 2), "problems": problems}  # fmt: skip
    print(row, flush=True)
    return row


def _group(session: int) -> list[int]:
    """The processes of the command's session, and those of its workers, whose sessions are their own."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            fields = (place / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(place.name))
    return found


if __name__ == "__main__":
    main()
