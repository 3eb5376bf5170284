"""A small part of each of these scripts, in one lab: what the test suite runs.

python benchmarks/reliability/sample.py --out DIR --seed 1
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import concurrency
import corruption
import crash
import refusals
import signals
from lab import lab, note_results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    seed = arguments.seed
    with lab() as here:
        for name, tried in {
            "crash": lambda: crash.sampled(here, 4, 3, seed),
            "corruption": lambda: corruption.tried(here, 1, seed),
            "concurrency": lambda: concurrency.tried(here, 1, 3, "prune", seed),
            "signals": lambda: signals.tried(here),
            "refusals": lambda: refusals.sampled(here),
        }.items():
            note_results(name, tried(), arguments.out)


if __name__ == "__main__":
    main()
