"""How long does the tiny pipeline with every stage take? In 10 s on a warm server, in 30 s where that has to start.

What the other scripts kill has to be quick, else they cannot kill it often. The lab measures briefly; nothing else
should run on the machine, and how quick the machine is at the time decides a good part of it.

    python benchmarks/reliability/duration.py
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from lab import RESULTS, Project, lab, note_results

WARM_S, COLD_S = 10.0, 30.0
RUNS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    seconds: list[float] = []
    with lab() as here:
        for number in range(1 + RUNS):  # the first one waits for the server
            project = Project(here.folder / f"run-{number}", benchmark=True)
            ended = here.run(project)
            assert ended.code == 0, ended.output
            seconds.append(ended.seconds)
            print(f"{ended.seconds:.2f} s", flush=True)
            shutil.rmtree(project.folder)
    cold, *warm = seconds
    document = {
        "figures": [
            [f"runs of every stage, warm / in {WARM_S:g} s", RUNS, sum(s < WARM_S for s in warm)],
            [f"the same, cold / in {COLD_S:g} s", 1, int(cold < COLD_S)],
        ],
        "warm_s": {"median": statistics.median(warm), "most": max(warm), "each": warm},
        "cold_s": cold,
    }
    note_results("duration", document, arguments.out)
    sys.exit(max(warm) >= WARM_S or cold >= COLD_S)


if __name__ == "__main__":
    main()
