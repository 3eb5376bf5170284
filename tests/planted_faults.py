"""A program: readers with every fault that benchmarks/reliability/fuzz.py looks for, and what it finds in each, as JSON."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks" / "reliability"))

import fuzz


class Planted:
    refuses = (ValueError,)

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def good(self) -> list[str]:
        return []

    def input(self, chance: Any) -> None:
        return None

    def read(self, given: None) -> None:
        (self.folder / "inside").write_text("x")
        self.fault()

    def fault(self) -> None: ...


class Crash(Planted):
    def fault(self) -> None:
        raise KeyError("x")


class Hang(Planted):
    def fault(self) -> None:
        while True:
            try:
                time.sleep(0)
            except Exception:
                continue


class Write(Planted):
    def fault(self) -> None:
        Path("../beside").write_text("x")


class Start(Planted):
    def fault(self) -> None:
        os.system("true")


class Silent(Planted):
    def fault(self) -> None:
        raise ValueError


if __name__ == "__main__":
    fuzz.LIMIT_S, fuzz.HUNG_S = 0.2, 20.0
    found = {}
    for planted in (Planted, Crash, Hang, Write, Start, Silent):
        name = planted.__name__
        fuzz.SUBJECTS[name] = planted  # type: ignore[assignment]
        found[name] = sorted({finding["kind"] for finding in fuzz.fuzz(name, range(1)).findings})
    print(json.dumps(found))
