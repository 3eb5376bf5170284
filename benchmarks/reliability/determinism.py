"""Do two runs give the same bytes? Two fresh stores, two processes that share nothing but the machine.

Compared are the digests of everything that a step made. On a CPU with one thread all that is computed has to be equal
bit by bit; what is measured, and what is chosen by what was measured, is not compared, and is named. A third run on the
first store has to take every decision from there again.

    python benchmarks/reliability/determinism.py
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from lab import RESULTS, Project, note_results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="dc-same-"))
    projects = [Project(folder / name) for name in ("one", "two")]
    for project in projects:
        _run(project)
    one, two = (project.digests() for project in projects)
    same = {step: one[step] == two[step] for step in one}
    choices = [_choices(projects[0])]
    _run(projects[0])
    again = {id: m["reused"] for id, m in projects[0].manifests().items() if id != "model"}
    choices.append(_choices(projects[0]))
    manifests = projects[0].manifests()
    shutil.rmtree(folder)
    document = {
        "figures": [
            ["steps compared in two stores / the same digests", len(same), sum(same.values())],
            ["decisions by measurement / the same in the next run", len(choices[0]), _equal(*choices)],
        ],
        "same_digests": same,
        "not_compared": {id: m["inexact"] for id, m in manifests.items() if m["inexact"] is not None},
        "reused_in_a_third_run": again,
    }
    note_results("determinism", document, arguments.out)
    sys.exit(not all(same.values()) or choices[0] != choices[1])


def _run(project: Project) -> None:
    subprocess.run([sys.executable, "-m", "deploycompress", *project.arguments()], check=True)


def _choices(project: Project) -> dict[str, Any]:
    made = {
        id: [a["sha256"] for a in m["artifacts"]] for id, m in project.manifests().items() if m["inexact"]
    }
    return {id: digests for id, digests in made.items() if id != "benchmark"}  # which is made in every run


def _equal(first: dict[str, Any], second: dict[str, Any]) -> int:
    return sum(first[id] == second[id] for id in first)


if __name__ == "__main__":
    main()
