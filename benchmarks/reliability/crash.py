"""Is anything lost when a run is killed? At every operation that changes a file, and at random times.

A pipeline of every stage is run once undisturbed. Then, for every operation of the writing layer, of the run's process
and of its workers, the run's process group is killed by SIGKILL right before it and right after it, and the next run
has to finish with the same digests on one CPU thread. So that a trial takes seconds, it begins with a store in which
every other step is done: the step in whose operations the kill falls is made twice, once until it is killed and once
to its end. At random times whole runs from an empty store are killed, one after the other, each going on from what the
one before has left, until one gets to its end; then its digests are compared, and another begins.

    python benchmarks/reliability/crash.py                    # all that is not in results yet, then random kills
    python benchmarks/reliability/crash.py --limit-minutes 30 # as much of it as fits; go on by the same command
    python benchmarks/reliability/crash.py --only compile --random 0
    python benchmarks/reliability/crash.py --join A B         # what --out A and --out B have found of different steps
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from lab import RESULTS, Ended, Lab, Project, lab, note_results

BEGIN, END = "begin", "end"  # before the first step; gates, report and what ships
LAST = ("compile", "benchmark")  # they measure for seconds, so they are tried when all else is done
GONE_S = 3.0  # a worker notices within one second that its run is gone
LONGEST_S = 10.0  # of a run that is killed at a random time, which takes about as long as a whole one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--limit-minutes", type=float, default=float("inf"))
    parser.add_argument("--random", type=int, default=200, help="kills at random times, in all")
    parser.add_argument("--random-first", action="store_true", help="before the points")
    parser.add_argument("--only", action="append", default=[], help="only the points of this step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--join", type=Path, nargs="+", default=[], help="only put together what is there")
    arguments = parser.parse_args()
    if arguments.join:
        joined = with_figures(_joined([_before(folder) for folder in arguments.join]))
        note_results("crash", joined, arguments.out)
        return
    deadline = time.monotonic() + 60 * arguments.limit_minutes
    document = _before(arguments.out)

    def points() -> None:
        for step, number in crashes.plan(arguments.only):
            if time.monotonic() > deadline:
                break
            crashes.try_point(step, number)
            note_results("crash", with_figures(document), arguments.out)

    def kills() -> None:
        while document["random"]["kills"] < arguments.random and time.monotonic() < deadline:
            crashes.try_random(arguments.random, arguments.seed)
            note_results("crash", with_figures(document), arguments.out)

    with lab() as here:
        crashes = Crashes(here, document)
        crashes.time_undisturbed()
        for part in (kills, points) if arguments.random_first else (points, kills):
            part()
    note_results("crash", with_figures(document), arguments.out)
    sys.exit(bool(document["failures"]))


def sampled(here: Lab, points: int, kills: int, seed: int) -> dict[str, Any]:
    """A few points of two steps, drawn at random, and a few kills at random times."""
    document, draw = _nothing_yet(), random.Random(seed)
    crashes = Crashes(here, document)
    steps = draw.sample([step for step in (*crashes.steps, END) if step not in LAST], 2)
    for step, number in draw.sample(crashes.plan(steps), points):
        crashes.try_point(step, number)
    while document["random"]["kills"] < kills:
        crashes.try_random(kills, seed)
    return with_figures(document)


def with_figures(document: dict[str, Any]) -> dict[str, Any]:
    steps, random_kills = document["steps"].values(), document["random"]
    points, tried, resumed = (
        sum(step["points"] for step in steps),
        sum(len(step["tried"]) for step in steps),
        sum(step["resumed"] for step in steps),
    )
    of = "" if tried == points else f" ({tried} of {points} tried yet)"
    return {
        "figures": [
            [f"kill points tried / resumed{of}", tried, resumed],
            ["random kills / resumed", random_kills["kills"], random_kills["resumed"]],
        ],
        **{name: value for name, value in document.items() if name != "figures"},
    }


def _before(out: Path) -> dict[str, Any]:
    place = out / "crash.json"
    if place.is_file():
        document = dict(json.loads(place.read_text()))
        document.pop("environment")
        return document
    return _nothing_yet()


def _joined(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Of processes side by side, each with steps of its own."""
    whole = _nothing_yet()
    for document in found:
        assert not whole["steps"].keys() & document["steps"].keys(), "a step was tried by two"
        whole["steps"] |= document["steps"]
        whole["failures"] += document["failures"]
        whole["seconds_undisturbed"] = document["seconds_undisturbed"]
        kills = whole["random"]
        for name in ("kills", "resumed", "finished_the_same"):
            kills[name] += document["random"][name]
        for step, times in document["random"]["killed_in"].items():
            kills["killed_in"][step] = kills["killed_in"].get(step, 0) + times
    return whole


def _nothing_yet() -> dict[str, Any]:
    return {
        "steps": {},  # step -> points (before and after each operation), those tried, how many resumed
        "random": {"kills": 0, "resumed": 0, "finished_the_same": 0, "killed_in": {}},
        "seconds_undisturbed": {},
        "failures": [],
    }


class Crashes:
    """The undisturbed run, what each trial begins with, and what came of them."""

    def __init__(self, here: Lab, document: dict[str, Any]) -> None:
        self.here, self.document = here, document
        self.digests = here.golden.digests()
        self.steps = list(here.golden.manifests())
        self._measured: Project | None = None
        self._ranges: dict[str, tuple[int, int]] = {}

    @property
    def measured(self) -> Project:
        """An undisturbed run with the benchmark."""
        if self._measured is None:
            self._measured = Project(self.here.folder / "measured", benchmark=True)
            ended = self.here.run(self._measured)
            assert ended.code == 0, ended.output
        return self._measured

    def time_undisturbed(self) -> None:
        warm = Project(self.here.folder / "warm")
        ended = self.here.run(warm)
        shutil.rmtree(warm.folder)
        seconds = {"while_the_server_imports": self.here.seconds_cold, "warm": ended.seconds}
        self.document["seconds_undisturbed"] = {name: round(of, 1) for name, of in seconds.items()}

    # ------------------------------------------------------------ the points

    def plan(self, only: list[str]) -> list[tuple[str, int]]:
        """Every point that was not tried yet, those of quick steps first."""
        steps = [*(s for s in (BEGIN, *self.steps, END) if s not in LAST), *LAST]
        order = []
        for step in [s for s in steps if not only or s in only]:
            first, last = self._range(step)
            known = self.document["steps"].setdefault(step, {"points": 0, "tried": [], "resumed": 0})
            known["points"] = last - first
            order += [(step, n) for n in range(last - first) if n not in known["tried"]]
        # Right after an operation the disk is as it is right before the next one: each state once, then again.
        return sorted(order, key=lambda of: (of[0] in LAST, of[1] % 2))

    def _range(self, step: str) -> tuple[int, int]:
        """Of the points of a run from this step's beginning: the first one of the step, and the one after its last."""
        if step not in self._ranges:
            self._ranges[step] = self._counted(step)
        return self._ranges[step]

    def _counted(self, step: str) -> tuple[int, int]:
        project = self._base(step)
        marks = self.here.folder / "marks"
        marks.write_text("")
        ended = self.here.run(project, points={"at": -1}, prepare=lambda: _mark_steps(marks, self.here))
        assert ended.code == 0, ended.output
        at = {line.split()[0]: int(line.split()[1]) for line in marks.read_text().splitlines()}
        ids = [id.partition(":")[0] for id in at if id.endswith(":from")]
        if step == BEGIN:
            return 0, at[f"{ids[0]}:from"]
        if step == END:
            return at[f"{ids[-1]}:to"], len(self.here.reached())
        return at[f"{step}:from"], at[f"{step}:to"]

    def _base(self, step: str) -> Project:
        """All but this step is done; also in the run directory, as a run leaves it that was killed there."""
        whole = self.measured if step == "benchmark" else self.here.golden
        base = self.here.folder / "bases" / step
        if not base.exists():
            project = whole.copy(base)
            if step not in (BEGIN, END):
                manifest = whole.manifests()[step]
                shutil.rmtree(project.out / manifest["directory"])
                for stored in project.store.glob(f"steps/*/{manifest['key_digest']}"):
                    shutil.rmtree(stored)
        return Project(base).copy(self.here.folder / "trial")

    def try_point(self, step: str, number: int) -> None:
        first, _ = self._range(step)
        project = self._base(step)
        killed = self.here.run(project, points={"at": first + number + 1})
        reached = self.here.reached()
        told = f"{step} {number}: {reached[-1] if reached else 'nothing'}".replace(str(project.folder), "")
        problem = None if killed.code == -signal.SIGKILL else f"was not killed (exit code {killed.code})"
        self._judge(told, project, problem, same=self.digests, counter=self.document["steps"][step])
        self.document["steps"][step]["tried"].append(number)

    def _judge(
        self,
        told: str,
        project: Project,
        problem: str | None,
        *,
        same: dict[str, Any],
        counter: dict[str, Any],
    ) -> None:
        """The next run, and whether everything is as if nothing had happened."""
        if problem is None and self.here.no_processes(project, GONE_S) is None:
            problem = "a worker outlived its run"
        again = self.here.run(project)
        problem = problem or self._wrong(project, again, same)
        if problem is None:
            counter["resumed"] += 1
        else:
            self.document["failures"].append(f"{told}: {problem}")
        print(f"{told}: {problem or 'resumed'}", flush=True)

    def _wrong(self, project: Project, ended: Ended, same: dict[str, Any]) -> str | None:
        from deploycompress.engine.store import FileStore, damage_of

        if ended.code != 0:
            return f"the next run ended with {ended.code}: {ended.output[-600:]}"
        if project.digests() != same:
            return f"other digests: {[id for id, of in project.digests().items() if of != same.get(id)]}"
        damaged = [place.name for kind, place in FileStore(project.store).entries() if damage_of(place, kind)]
        if damaged or list((project.store / "quarantine").glob("*")):
            return f"something in the store was damaged: {damaged}"
        return f"left behind: {project.left_over()}" if project.left_over() else None

    # ------------------------------------------------------------ random times

    def try_random(self, most: int, seed: int) -> None:
        """From an empty store: runs that are killed one after the other, until one gets to its end."""
        project, counts = Project(self.here.folder / "random"), self.document["random"]
        # All three: else a run that ends before its kill comes would be drawn again and again.
        draw = random.Random(
            f"{seed} {counts['kills']} {counts['finished_the_same']} {len(self.document['failures'])}"
        )
        project.forget()
        while True:
            after = draw.uniform(0.0, LONGEST_S) if counts["kills"] < most else 600.0
            since = time.monotonic()
            pid, output = self.here.start(project.arguments())
            ended = self._kill_after(pid, output, since, after)
            if ended is None:
                continue  # it is the next one that has to go on
            problem = self._wrong(project, ended, self.digests)
            if problem is not None:
                self.document["failures"].append(f"random: {problem}")
            counts["finished_the_same"] += problem is None
            print(f"random: {counts['kills']} kills, {problem or 'finished the same'}", flush=True)
            return

    def _kill_after(self, pid: int, output: Path, since: float, after: float) -> Ended | None:
        """The run when it ended by itself; None when it was killed, which is counted with the step it was in."""
        counts = self.document["random"]
        while time.monotonic() - since < after:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                ended = Ended(os.waitstatus_to_exitcode(status), output.read_text(), time.monotonic() - since)
                output.unlink()
                return ended
            time.sleep(0.005)
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        counts["kills"] += 1
        text = output.read_text()
        output.unlink()
        where = next(
            (w.rstrip(":") for w in reversed(text.split()) if w[:2].isdigit() and "-" in w[:4]), "begin"
        )
        counts["killed_in"][where] = counts["killed_in"].get(where, 0) + 1
        wrong = (
            "failed after" in text
            or self.here.no_processes(Project(self.here.folder / "random"), GONE_S) is None
        )
        counts["resumed"] += not wrong
        if wrong:
            self.document["failures"].append(f"random kill in {where}: {text[-600:]}")
        return None


def _mark_steps(marks: Path, here: Lab) -> None:
    """In a run that is only counted: at which point each step begins and ends."""
    from deploycompress.engine import pipeline

    inner: Callable[..., None] = pipeline._Run._step

    def step(self: Any, step: Any, planned: str | None = None) -> None:
        _mark(marks, here, f"{step.id}:from")
        inner(self, step, planned)
        _mark(marks, here, f"{step.id}:to")

    pipeline._Run._step = step  # type: ignore[method-assign]


def _mark(marks: Path, here: Lab, name: str) -> None:
    with marks.open("a") as stream:
        stream.write(f"{name} {len(here.reached())}\n")


if __name__ == "__main__":
    main()
