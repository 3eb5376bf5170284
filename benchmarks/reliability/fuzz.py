"""Damaged files through the product's own readers: how many inputs, and what else than a refusal came of them.

Each input is known by its subject and its number, so that a finding is repeated with --only SUBJECT --number N. A
finding is an exception that is no refusal, an input that takes longer than LIMIT_S, a process that was started, or
anything written, moved or removed outside of the folder that the files lie in. Prints, and writes fuzz.json, fuzz.md and
RESULTS.md.

    python benchmarks/reliability/fuzz.py
"""

from __future__ import annotations

import argparse
import faulthandler
import resource
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from fuzz_configuration import Checkpoint, Pipeline
from fuzz_devices import DeviceResult
from fuzz_mutation import chance
from fuzz_onnx import Onnx
from fuzz_records import Manifests
from fuzz_sandbox import Hung, Watch, around, sandbox, watch, within
from fuzz_subject import Subject
from lab import RESULTS, note_results

SUBJECTS: dict[str, type[Subject]] = {
    "pipeline.yaml": Pipeline,
    "architecture.json": Checkpoint,
    "manifests": Manifests,
    "result.json": DeviceResult,
    "onnx": Onnx,
}

INPUTS = 100_000
LIMIT_S = 20.0  # for one input, on a machine that may be busy
HUNG_S = 300.0  # of an input that does not even come back to Python
MOST_KEPT = 20  # findings that are told in full


@dataclass
class Tally:
    """What became of the inputs of one subject."""

    inputs: int = 0
    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    findings: list[dict[str, Any]] = field(default_factory=list)
    slowest_s: float = 0.0
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "inputs": self.inputs,
            "accepted": self.accepted,
            "refused": dict(sorted(self.refused.items())),
            "crashes": sum(f["kind"] == "crash" for f in self.findings),
            "hangs": sum(f["kind"] == "hang" for f in self.findings),
            "outside": sum(f["kind"] == "outside" for f in self.findings),
            "slowest_input_s": round(self.slowest_s, 3),
            "seconds": round(self.seconds, 1),
            "findings": self.findings[:MOST_KEPT],
        }


def fuzz(name: str, numbers: range, *, tell: bool = False) -> Tally:
    """Give these inputs of a subject to the product, in a sandbox."""
    tally = Tally()
    with sandbox() as folder:
        subject = SUBJECTS[name](folder)
        for good in subject.good():  # also imports what is imported late
            subject.read(good)
        watching, before = watch(folder), around(folder)
        for number in numbers:
            _one(subject, name, number, tally, watching)
            if tell and tally.inputs % 5000 == 0:
                print(
                    f"{name}: {tally.inputs} inputs, {len(tally.findings)} findings, {tally.seconds:.0f} s",
                    flush=True,
                )
        if around(folder) != before:
            tally.findings.append(
                {"kind": "outside", "number": -1, "what": "files beside the run directory changed"}
            )
    return tally


def _one(subject: Subject, name: str, number: int, tally: Tally, watching: Watch) -> None:
    given = subject.input(chance(name, number))
    tally.inputs += 1
    watching.seen.clear()
    watching.active = True
    started = time.monotonic()
    faulthandler.dump_traceback_later(HUNG_S, exit=True)
    try:
        within(LIMIT_S, lambda: subject.read(given))
        tally.accepted += 1
    except subject.refuses as refusal:
        tally.refused[type(refusal).__name__] += 1
        if not str(refusal).strip():
            tally.findings.append({"kind": "crash", "number": number, "what": "a refusal without a word"})
    except Hung:
        tally.findings.append({"kind": "hang", "number": number, "what": f"more than {LIMIT_S} s"})
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__}: {str(error)[:300]} ({Path(where.filename).name}:{where.lineno})"
        tally.findings.append({"kind": "crash", "number": number, "what": what})
    finally:
        faulthandler.cancel_dump_traceback_later()
        watching.active = False
    tally.slowest_s = max(tally.slowest_s, time.monotonic() - started)
    tally.seconds += time.monotonic() - started
    tally.findings += [{"kind": "outside", "number": number, "what": what} for what in watching.seen]


# ---------------------------------------------------------------- the command


def markdown(subjects: dict[str, Any]) -> str:
    lines = [
        "# Damaged files",
        "",
        f"Each through the product's own reader of it, at most {LIMIT_S:.0f} s an input; made by "
        "`python benchmarks/reliability/fuzz.py`. Refused means: with one of the product's own errors.",
        "",
        "| file | inputs | crashes | hangs | writes outside | refused | accepted | slowest |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, of in subjects.items():
        refused = sum(of["refused"].values())
        lines.append(
            f"| {name} | {of['inputs']:,} | {of['crashes']} | {of['hangs']} | {of['outside']} | {refused:,} | "
            f"{of['accepted']:,} | {of['slowest_input_s']:.2f} s |"
        )
    return "\n".join(lines) + "\n"


def with_figures(subjects: dict[str, Any]) -> dict[str, Any]:
    inputs = sum(of["inputs"] for of in subjects.values())
    found = sum(of[kind] for of in subjects.values() for kind in ("crashes", "hangs", "outside"))
    figures = [["damaged files read / refused or accepted, nothing else", inputs, inputs - found]]
    return {"figures": figures, "subjects": subjects}


def main() -> int:
    from deploycompress.artifact import read_json
    from deploycompress.writing import write_text

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--inputs", type=int, default=INPUTS, help=f"of each kind of file (default: {INPUTS})"
    )
    parser.add_argument(
        "--only", choices=SUBJECTS, help="one kind of file; the others' figures stay as they are"
    )
    parser.add_argument("--number", type=int, help="show this input, and let its exception through")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if given.number is not None:
        with sandbox() as folder:
            subject = SUBJECTS[given.only](folder)
            made = subject.input(chance(given.only, given.number))
            print(made)
            subject.read(made)
        return 0
    place = given.out / "fuzz.json"
    subjects: dict[str, Any] = read_json(place)["subjects"] if given.only and place.is_file() else {}
    for name in [given.only] if given.only else SUBJECTS:
        subjects[name] = fuzz(name, range(given.inputs), tell=True).to_json()
        note_results("fuzz", with_figures(subjects), given.out)
        write_text(given.out / "fuzz.md", markdown(subjects))
    print(markdown(subjects))
    return int(any(of["findings"] for of in subjects.values()))


if __name__ == "__main__":
    sys.exit(main())
