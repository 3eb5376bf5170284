"""All figures of this folder, one script after the other, and RESULTS.md of them.

crash.py goes on with what crash.json says it has tried; everything else begins anew. It takes hours, and says
what it finds as it goes: nothing else should run on the machine, since some cases have a few seconds to end in.

    python benchmarks/reliability/all.py
    python benchmarks/reliability/all.py --out DIR   # all of it anew, in an empty folder
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from lab import RESULTS

SCRIPTS = ("duration", "crash", "corruption", "concurrency", "signals", "determinism", "refusals", "fuzz")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    codes = {
        name: subprocess.run(
            [sys.executable, str(Path(__file__).with_name(f"{name}.py")), "--out", str(out)]
        ).returncode
        for name in SCRIPTS
    }
    for name, code in codes.items():
        print(f"{name}.py ended with {code}")
    return int(any(codes.values()))


if __name__ == "__main__":
    sys.exit(main())
