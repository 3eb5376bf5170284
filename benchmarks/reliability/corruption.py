"""Is damage in the store found? Every stored file in turn: a bit turned round, cut, emptied, swapped, edited, gone.

Of everything that a run has stored, each file is damaged in each way, and the store is asked for it: it has to find
the damage and set the result aside. Swapped are two files of one name in two results, and two results as wholes; edited
are a figure, the key, a digest and the seal in a record. For each file one of these ways, in turn, is also tried by
running the pipeline again: it has to say that the result was set aside, make it again with the same digests, and find
nothing more in the run after. The copies in the run directory are damaged likewise; these are taken from the store.

    python benchmarks/reliability/corruption.py
    python benchmarks/reliability/corruption.py --sample 6 --out DIR
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from lab import RESULTS, Lab, Project, lab, note_results

READERS = {"timing_cache": "build_engine"}  # folder of the store -> the step that reads it
Trial = tuple[str, str, Callable[[Path], bool]]  # how, which file below the project, what does it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sample", type=int, help="so many whole runs, drawn at random, instead of all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    with lab() as here:
        document = tried(here, arguments.sample, arguments.seed)
    note_results("corruption", document, arguments.out)
    sys.exit(bool(document["failures"]))


def tried(here: Lab, sample: int | None, seed: int) -> dict[str, Any]:
    """``sample``: so many of the whole runs; None: all of them. The store itself is always asked for all."""
    golden, failures = here.golden, list[str]()
    by_way: dict[str, list[int]] = {}  # tried, found
    stored = _in_store(golden)
    for way, file, damage in stored:
        project = golden.copy(here.folder / "trial")
        if damage(project.folder / file):  # an empty file cannot be cut
            found = _is_found(project, golden)
            count = by_way.setdefault(way, [0, 0])
            count[0], count[1] = count[0] + 1, count[1] + found
            failures += [] if found else [f"{way}, {file}: not found"]
    runs = [*_one_for_each_file(stored), *_in_run_dir(golden)]
    if sample is not None:
        runs = random.Random(seed).sample(runs, sample)
    made_again = 0
    for way, file, damage in runs:
        project = golden.copy(here.folder / "trial")
        _forget_its_reader(project, file)
        problem = _problem(here, project, golden, way) if damage(project.folder / file) else None
        made_again += problem is None
        failures += [] if problem is None else [f"{way}, {file}: {problem}"]
        print(f"{way}, {file}: {problem or 'made again'}", flush=True)
    asked, seen = (sum(count[n] for count in by_way.values()) for n in (0, 1))
    return {
        "figures": [
            ["corruptions of stored files tried / found and set aside", asked, seen],
            [
                "of these, in whole runs tried / reported, made again with the same digests",
                len(runs),
                made_again,
            ],
        ],
        "by_way": {way: {"tried": of[0], "found": of[1]} for way, of in by_way.items()},
        "failures": failures,
    }


def _is_found(project: Project, golden: Project) -> bool:
    """Whether nothing that is read from the damaged store is other than it was, and something was set aside."""
    from deploycompress.artifact import damaged, read_json
    from deploycompress.engine.record import read_artifacts
    from deploycompress.engine.store import FOLDERS, FileStore

    said = list[str]()
    store = FileStore(project.store, said.append)
    for manifest in golden.store.glob("steps/*/*/manifest.json"):
        record = read_json(manifest)
        place = store.find(record["key"], said.append)
        if place is None:
            continue
        if read_json(place / "manifest.json") != record or any(damaged(a) for a in read_artifacts(place)):
            return False
    for manifest in golden.store.glob(f"{FOLDERS}/**/manifest.json"):
        record = read_json(manifest)
        store.folder(record["folder"], record["key"], lambda workdir: None)
    return bool(said) and any((project.store / "quarantine").iterdir())


def _one_for_each_file(trials: list[Trial]) -> list[Trial]:
    by_file: dict[str, list[Trial]] = {}
    for trial in trials:
        by_file.setdefault(trial[1], []).append(trial)
    return [of[number % len(of)] for number, of in enumerate(by_file.values())]


def _forget_its_reader(project: Project, file: str) -> None:
    """A folder of the store that one step alone reads is read where that step is made again, and not before."""
    reader = next((step for name, step in READERS.items() if f"/{name}/" in file), None)
    for manifest in (project.store / "steps").glob("*/*/manifest.json"):
        if reader is not None and json.loads(manifest.read_text())["stage"] == reader:
            shutil.rmtree(manifest.parent)


def _problem(here: Lab, project: Project, golden: Project, way: str) -> str | None:
    ended = here.run(project)
    if ended.code != 0:
        return f"the run ended with {ended.code}: {ended.output[-500:]}"
    if project.digests() != golden.digests():
        return "other digests: it was used"
    if "copy" not in way:
        if "set aside" not in ended.output:
            return "nothing was said"
        if not list((project.store / "quarantine").glob("*")):
            return "nothing was set aside"
    again = here.run(project)
    if again.code != 0 or "set aside" in again.output:
        return f"the run after it finds more: {again.output[-500:]}"
    return None


# ---------------------------------------------------------------- what is damaged, and how


def _in_store(golden: Project) -> list[Trial]:
    trials: list[Trial] = []
    stored = sorted(p for p in (golden.store / "steps").glob("*/*") if p.is_dir())
    for number, folder in enumerate(stored):
        other = stored[(number + 1) % len(stored)]
        name = str(folder.relative_to(golden.folder))
        trials.append(("result swapped with another", name, _swapping(other.relative_to(golden.folder))))
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            file = str(path.relative_to(golden.folder))
            trials += [(way, file, damage) for way, damage in DAMAGES.items()]
            twin = next((t for s in stored for t in s.rglob(path.name) if s != folder), None)
            if twin is not None:
                trials.append(("file swapped with another", file, _swapping(twin.relative_to(golden.folder))))
        record = str((folder / "manifest.json").relative_to(golden.folder))
        trials += [(way, record, damage) for way, damage in EDITS.items()]
    for path in sorted((golden.store / "folders").rglob("manifest.json")):
        file = str(path.relative_to(golden.folder))
        trials += [(way, file, damage) for way, damage in DAMAGES.items()]
    return trials


def _in_run_dir(golden: Project) -> list[Trial]:
    reused = [m["directory"] for m in golden.manifests().values() if m["id"] != "model"]
    files = [p for d in reused for p in sorted((golden.out / d).rglob("*")) if p.is_file()]
    return [
        (f"copy: {way}", str(path.relative_to(golden.folder)), damage)
        for path in files
        for way, damage in (("bit turned round", _flip), ("emptied", _empty))
    ]


def _flip(path: Path) -> bool:
    data = bytearray(path.read_bytes())
    if not data:
        return False
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return True


def _cut(path: Path) -> bool:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return bool(data)


def _empty(path: Path) -> bool:
    path.write_bytes(b"")
    return True


def _delete(path: Path) -> bool:
    path.unlink()
    return True


def _edit(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], bool]:
    def edit(path: Path) -> bool:
        record = json.loads(path.read_text())
        before = json.dumps(record)
        change(record)
        path.write_text(json.dumps(record))
        return json.dumps(record) != before

    return edit


def _swapping(other: Path) -> Callable[[Path], bool]:
    """With what lies at ``other`` below the same project."""

    def swap(path: Path) -> bool:
        project = next(parent for parent in path.parents if (parent / "pipeline.yaml").is_file())
        theirs, aside = project / other, path.with_name(".swapped")
        if path.is_file() and path.read_bytes() == theirs.read_bytes():
            return False
        shutil.move(path, aside)
        shutil.move(theirs, path)
        shutil.move(aside, theirs)
        return True

    return swap


def _worse_figure(record: dict[str, Any]) -> None:
    record["metrics"]["val_accuracy"] = 0.999


def _other_digest(record: dict[str, Any]) -> None:
    for artifact in record["artifacts"]:
        artifact["sha256"] = "0" * 64


DAMAGES = {"bit turned round": _flip, "cut in half": _cut, "emptied": _empty, "deleted": _delete}
EDITS = {
    "record edited: a figure": _edit(_worse_figure),
    "record edited: its key": _edit(lambda record: record["key"].update(seed=2)),
    "record edited: a digest": _edit(_other_digest),
    "record edited: its seal": _edit(lambda record: record.update(seal="0" * 64)),
}

if __name__ == "__main__":
    main()
