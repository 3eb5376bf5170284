"""Damaged files through the product's own readers: how many inputs, and what else than a refusal came of them.

Each input is known by its subject and its number, so that a finding is repeated with --only SUBJECT --number N. A
finding is an exception that is no refusal, an input that takes longer than LIMIT_S, a process that was started, or
anything written, moved or removed outside of the folder that the files lie in. Prints, and writes results/fuzz.json and
results/fuzz.md.

    python benchmarks/reliability/fuzz.py
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from mutation import chance
from subjects import SUBJECTS, Subject

INPUTS = 100_000
LIMIT_S = 20.0  # for one input, on a machine that may be busy
HUNG_S = 300.0  # of an input that does not even come back to Python
RESULTS = Path(__file__).parent / "results"
MOST_KEPT = 20  # findings that are told in full
WRITES = (
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.mkdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
    "shutil.move",
)
STARTS = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "socket.connect",
    "pickle.find_class",
)


class Hung(BaseException):
    """An input took longer than it may. No ``except Exception`` of the product swallows it."""


@dataclass
class Watch:
    """Notes, by Python's audit events, what is written outside of ``folder`` and what is started."""

    folder: Path
    active: bool = False
    seen: list[str] = field(default_factory=list)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active:
            return
        if event in STARTS:
            self.seen.append(f"{event} {arguments[:2]!r}")
        elif event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            flags = arguments[2] or 0
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND):
                self._note(event, arguments[0])
        elif event in WRITES:
            for argument in arguments[:2]:
                if isinstance(argument, str | bytes | os.PathLike):
                    self._note(event, argument)

    def _note(self, event: str, place: Any) -> None:
        path = os.path.realpath(os.fsdecode(place))
        if path != os.devnull and not path.startswith(f"{self.folder}{os.sep}"):
            self.seen.append(f"{event} {path!r}")


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
    with _sandbox() as folder:
        subject = SUBJECTS[name](folder)
        for good in subject.good():  # also imports what is imported late
            subject.read(good)
        watch, before = _watch(folder), _around(folder)
        for number in numbers:
            _one(subject, name, number, tally, watch)
            if tell and tally.inputs % 5000 == 0:
                print(
                    f"{name}: {tally.inputs} inputs, {len(tally.findings)} findings, {tally.seconds:.0f} s",
                    flush=True,
                )
        if _around(folder) != before:
            tally.findings.append(
                {"kind": "outside", "number": -1, "what": "files beside the run directory changed"}
            )
    return tally


def _one(subject: Subject, name: str, number: int, tally: Tally, watch: Watch) -> None:
    given = subject.input(chance(name, number))
    tally.inputs += 1
    watch.seen.clear()
    watch.active = True
    started = time.monotonic()
    faulthandler.dump_traceback_later(HUNG_S, exit=True)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    try:
        subject.read(given)
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
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        watch.active = False
    tally.slowest_s = max(tally.slowest_s, time.monotonic() - started)
    tally.seconds += time.monotonic() - started
    tally.findings += [{"kind": "outside", "number": number, "what": what} for what in watch.seen]


# ---------------------------------------------------------------- the sandbox


@contextlib.contextmanager
def _sandbox() -> Iterator[Path]:
    """A folder to be in, with files around it that nothing may touch."""
    here, temporary = Path.cwd(), tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="deploycompress-fuzz-") as scratch:
        folder = Path(scratch).resolve() / "around" / "inside"
        folder.mkdir(parents=True)
        for name in ("x", "model.onnx", "manifest.json"):
            (folder.parent / name).write_text("untouched")
        os.chdir(folder)
        tempfile.tempdir = str(folder)
        try:
            yield folder
        finally:
            os.chdir(here)
            tempfile.tempdir = temporary


def _around(folder: Path) -> dict[str, str]:
    outside = [p for p in folder.parent.parent.rglob("*") if p.is_file() and folder not in p.parents]
    return {str(path): path.read_text() for path in outside}


_WATCHES: list[Watch] = []


def _watch(folder: Path) -> Watch:
    """Python's audit hooks stay for good, so there is one."""
    if not _WATCHES:
        _WATCHES.append(Watch(folder))
        sys.addaudithook(lambda event, arguments: _WATCHES[0](event, arguments))
        signal.signal(signal.SIGALRM, _hung)
    _WATCHES[0].folder = folder
    return _WATCHES[0]


def _hung(number: int, frame: Any) -> None:
    raise Hung


# ---------------------------------------------------------------- the command


def markdown(results: dict[str, Any]) -> str:
    lines = [
        "# Damaged files",
        "",
        f"Each through the product's own reader of it, at most {LIMIT_S:.0f} s an input; made by "
        "`python benchmarks/reliability/fuzz.py`. Refused means: with one of the product's own errors.",
        "",
        "| file | inputs | crashes | hangs | writes outside | refused | accepted | slowest |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, of in results["subjects"].items():
        refused = sum(of["refused"].values())
        lines.append(
            f"| {name} | {of['inputs']:,} | {of['crashes']} | {of['hangs']} | {of['outside']} | {refused:,} | "
            f"{of['accepted']:,} | {of['slowest_input_s']:.2f} s |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    from deploycompress.artifact import read_json, write_json, write_text
    from deploycompress.measure.environment import environment

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--inputs", type=int, default=INPUTS, help=f"of each kind of file (default: {INPUTS})"
    )
    parser.add_argument(
        "--only", choices=SUBJECTS, help="one kind of file; the others' figures stay as they are"
    )
    parser.add_argument("--number", type=int, help="show this input, and let its exception through")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if given.number is not None:
        with _sandbox() as folder:
            subject = SUBJECTS[given.only](folder)
            made = subject.input(chance(given.only, given.number))
            print(made)
            subject.read(made)
        return 0
    place = given.results / "fuzz.json"
    results: dict[str, Any] = read_json(place) if given.only and place.is_file() else {"subjects": {}}
    for name in [given.only] if given.only else SUBJECTS:
        results["subjects"][name] = fuzz(name, range(given.inputs), tell=True).to_json()
        results["environment"] = environment()
        write_json(place, results)
        write_text(given.results / "fuzz.md", markdown(results))
    print(markdown(results))
    return int(any(of["findings"] for of in results["subjects"].values()))


if __name__ == "__main__":
    sys.exit(main())
