"""Do runs that share a store make each step once? Eight at once, some of them killed.

In every round eight runs of one pipeline begin together on an empty store, each with a run directory of its own; some
of them, drawn at random, are killed at a random time. Those that live have to end well with the same digests; the
runs that say they have made a step are counted, and no lock may be held when all have ended. A step that was being
made by a run that was killed is made by another: that is no second time, for it was not published.

    python benchmarks/reliability/concurrency.py --rounds 10
    python benchmarks/reliability/concurrency.py --rounds 1 --runs 3 --stop-after prune --out DIR
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
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from lab import GATES, RESULTS, Ended, Lab, Project, lab, note_results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--stop-after", help="leave out the stages behind this one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit-minutes", type=float, default=float("inf"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    with lab() as here:
        given = (
            arguments.rounds,
            arguments.runs,
            arguments.stop_after,
            arguments.seed,
            arguments.limit_minutes,
        )
        document = tried(here, *given)
    note_results("concurrency", document, arguments.out)
    sys.exit(any(round["problems"] for round in document["rounds"]))


def tried(
    here: Lab, most: int, runs: int, last: str | None, seed: int, limit_minutes: float = float("inf")
) -> dict[str, Any]:
    """``most`` rounds of so many ``runs``; ``last``: the stage behind which they end."""
    draw, rounds, expected = random.Random(seed), list[dict[str, Any]](), dict[str, Any]()
    deadline = time.monotonic() + 60 * limit_minutes
    while len(rounds) < most and time.monotonic() < deadline:
        rounds.append(_round(here, runs, last, draw, expected))
        print(len(rounds), rounds[-1], flush=True)
    good = sum(not r["problems"] for r in rounds)
    return {
        "figures": [
            ["concurrent rounds tried / without a problem", len(rounds), good],
            ["steps made twice in them", sum(r["made_twice"] for r in rounds), 0],
        ],
        "runs_of_a_round": runs,
        "killed": sum(r["killed"] for r in rounds),
        "rounds": rounds,
    }


def _round(
    here: Lab, runs: int, last: str | None, draw: random.Random, expected: dict[str, Any]
) -> dict[str, Any]:
    folder = here.folder / "round"
    shutil.rmtree(folder, ignore_errors=True)
    projects = [Project(folder / str(number)) for number in range(runs)]
    for project in projects:
        project.store = folder / "store"
        if last is not None:
            _stop_after(project, last)
    doomed = {n: draw.uniform(1.0, 12.0) for n in draw.sample(range(runs), draw.randint(1, runs // 2))}
    since = time.monotonic()
    started = [here.start(project.arguments()) for project in projects]
    ended = _all(started, doomed, since)
    problems = []
    twice = sum(max(0, count - 1) for count in _made(projects).values())
    for number, end in ended.items():
        if end.code == 0:
            made = projects[number].digests()
            expected.setdefault("digests", made)
            if made != expected["digests"]:
                problems.append(f"run {number} has other digests")
        elif number not in doomed:
            problems.append(f"run {number} ended with {end.code}: {end.output[-400:]}")
    if twice:
        problems.append(f"{twice} steps were made twice")
    left = _held(folder / "store")
    if left:
        problems.append(f"locks still held: {left}")
    final = Project(folder / "last")
    final.store = folder / "store"
    if last is not None:
        _stop_after(final, last)
    end = here.run(final)
    remade = [id for id, m in final.manifests().items() if not m["reused"] and id != "model"]
    survivors = sum(e.code == 0 for e in ended.values())
    if end.code != 0 or (survivors and remade) or final.digests() != expected.get("digests", final.digests()):
        problems.append(f"a run afterwards: {end.code}, made again: {remade}")
    killed = sum(e.code == -signal.SIGKILL for e in ended.values())
    return {"killed": killed, "ended_well": survivors, "made_twice": twice, "problems": problems,
            "seconds": round(time.monotonic() - since, 1)}  # fmt: skip


def _all(started: list[tuple[int, Path]], doomed: dict[int, float], since: float) -> dict[int, Ended]:
    """Wait for every run, and kill those that are doomed when their time has come."""
    ended: dict[int, Ended] = {}
    while len(ended) < len(started):
        now = time.monotonic() - since
        for number, (pid, output) in enumerate(started):
            if number in ended:
                continue
            if number in doomed and now > doomed[number]:
                os.killpg(pid, signal.SIGKILL)
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                ended[number] = Ended(os.waitstatus_to_exitcode(status), output.read_text(), now)
        if now > 600:
            for number, (pid, _) in enumerate(started):
                if number not in ended:
                    os.killpg(pid, signal.SIGKILL)
        time.sleep(0.01)
    return ended


def _made(projects: list[Project]) -> dict[str, int]:
    """By step, how many runs say that they have made and published it; those that were killed too, if they got to it."""
    counted: dict[str, int] = {}
    for project in projects:
        record = project.out / "run.json"
        steps = json.loads(record.read_text())["steps"] if record.exists() else []
        for step in steps:
            if step["id"] != "model" and step["state"] == "done" and not step["reused"]:
                counted[step["id"]] = counted.get(step["id"], 0) + 1
    return counted


def _held(store: Path) -> list[str]:
    from deploycompress.engine.locks import held

    return [path.name for path in store.rglob("*.lock") if held(path)]


def _stop_after(project: Project, stage: str) -> None:
    lines = project.pipeline.read_text().splitlines(keepends=True)
    end = next(n for n, line in enumerate(lines) if line.startswith(f"  - {stage}"))
    project.pipeline.write_text("".join(lines[: end + 1]) + GATES)


if __name__ == "__main__":
    main()
