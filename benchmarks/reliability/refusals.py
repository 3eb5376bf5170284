"""What does a run say when the machine refuses? No room, no right to write, no memory, a crash, a step that hangs.

Each case happens in the middle of a pipeline: the run has to end with the right exit code and one sentence that names
the cause, what was finished before has to be whole, and the same command without the fault has to end well and reuse
it. A full and a read-only file system are a small tmpfs where one may be mounted. The kernel's own kill for want of
memory happens in a memory cgroup below our own, or below the one of ``--cgroup``. What cannot be tried here is told
as skipped, with the reason.

    python benchmarks/reliability/refusals.py
"""

from __future__ import annotations

import argparse
import random
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from lab import GATES, RESULTS, Lab, Project, lab, memory_cgroup, note_results

SHARES = (0.25, 0.5, 0.75)  # of the room that a run and its store take in the end
FAULTS = '''
"""A stage that goes wrong in the way that the folder's file ``how`` says; with an empty file it does nothing."""
import ctypes, os, resource, signal, subprocess, sys, time
from pathlib import Path

from deploycompress.contracts import Outcome, Stage


def eat(until):
    kept = []
    while len(kept) < until:
        kept.append(bytearray(b"x" * 10_000_000))


class Fault(Stage):
    accepts = frozenset({"checkpoint"})
    produces = frozenset({"checkpoint"})

    def run(self, inputs, workdir, context):
        how = (Path(__file__).parent / "how.txt").read_text()
        (workdir / "half-written").write_text("x")
        if how == "crash in native code":
            ctypes.string_at(0)
        if how == "an allocation is refused (address space)":
            with open("/proc/self/statm") as stream:
                used = int(stream.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + 300_000_000,) * 2)
            eat(100)
        if how == "a tensor is refused (address space)":
            import torch
            with open("/proc/self/statm") as stream:
                used = int(stream.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + 300_000_000,) * 2)
            torch.zeros(10**9)
        if how.startswith("killed by the kernel"):
            (Path(how.split("|")[1]) / "cgroup.procs").write_text(str(os.getpid()))
            eat(1000)
        if how == "killed as the kernel does it":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "sleeps for ever":
            time.sleep(3600)
        if how == "is stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        if how == "waits for a child that hangs":
            subprocess.run([sys.executable, "-c", "import time; time.sleep(3600)"])
        if how == "hangs in native code":
            ctypes.PyDLL(None).sleep(3600)
        (workdir / "half-written").unlink()
        return Outcome()
'''
OOM = r"memory"
IN_A_STEP = {
    "crash in native code": (4, r"SIGSEGV, a crash in native code"),
    "an allocation is refused (address space)": (4, r"out of memory"),
    "a tensor is refused (address space)": (4, r"out of memory"),
    "killed as the kernel does it": (4, r"SIGKILL.*memory runs out"),
    "sleeps for ever": (4, r"not finished after 12 s \(its `timeout`\)"),
    "is stopped": (4, r"not finished after 12 s \(its `timeout`\)"),
    "waits for a child that hangs": (4, r"not finished after 12 s \(its `timeout`\)"),
    "hangs in native code": (4, r"not finished after 12 s \(its `timeout`\)"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--no-room-at", type=int, default=20, help="operations at which room is refused, drawn"
    )
    parser.add_argument(
        "--cgroup", type=Path, help="of the memory controller, to make another one in (default: our own)"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    skipped: dict[str, str] = {}
    with lab() as here:
        golden = _golden(here)
        for case in IN_A_STEP:
            rows.append(_in_a_step(here, golden, case, *IN_A_STEP[case]))
        rows += _killed_by_the_kernel(here, golden, skipped, arguments.cgroup)
        rows += _no_room_at(here, golden, arguments.no_room_at)
        rows += _small_file_system(here, golden, skipped)
        rows.append(_file_size_limit(here, golden))
    note_results("refusals", _with_figures(rows, skipped), arguments.out)
    print(skipped)
    sys.exit(any(row["problems"] for row in rows))


def sampled(here: Lab) -> dict[str, Any]:
    """The case that no other test has: the kernel's own kill."""
    skipped: dict[str, str] = {}
    return _with_figures(_killed_by_the_kernel(here, _golden(here), skipped), skipped)


def _with_figures(rows: list[dict[str, Any]], skipped: dict[str, str]) -> dict[str, Any]:
    good = sum(not row["problems"] for row in rows)
    return {
        "figures": [["refusals tried / right code, one sentence, earlier results whole", len(rows), good]],
        "each": rows,
        "skipped": skipped,
    }


def _golden(here: Lab) -> Project:
    """What a run leaves to which nothing is refused."""
    project = Project(here.folder / "not refused")
    text = project.pipeline.read_text()
    begin = text[: text.index("  - prune")]
    project.pipeline.write_text(
        f"{begin}  - faults.py:Fault: {{timeout: 12 s, id: fault}}\n  - export\n{GATES}"
    )
    (project.folder / "faults.py").write_text(FAULTS)
    (project.folder / "how.txt").write_text("")
    ended = here.run(project)
    assert ended.code == 0, ended.output
    return project


def _killed_by_the_kernel(
    here: Lab, golden: Project, skipped: dict[str, str], parent: Path | None = None
) -> list[dict[str, Any]]:
    with memory_cgroup(300_000_000, parent) as group:
        if not isinstance(group, Path):
            skipped["killed by the kernel"] = group
            return []
        case = f"killed by the kernel (memory cgroup)|{group}"
        return [_in_a_step(here, golden, case, 4, r"SIGKILL.*memory")]


def _in_a_step(here: Lab, golden: Project, case: str, code: int, sentence: str) -> dict[str, Any]:
    project = _fresh(here, golden)
    (project.folder / "how.txt").write_text(case)
    ended = here.run(project)
    return _judged(here, golden, project, case.partition("|")[0], ended.code, ended.output, code, sentence)


def _fresh(here: Lab, golden: Project, folder: Path | None = None) -> Project:
    """The same pipeline with nothing made yet."""
    project = Project(folder or here.folder / "trial")
    project.forget()
    for path in golden.folder.glob("*.*"):
        shutil.copyfile(path, project.folder / path.name)
    return project


def _judged(
    here: Lab,
    golden: Project,
    project: Project,
    case: str,
    code: int,
    output: str,
    expected: int,
    sentence: str,
) -> dict[str, Any]:
    """Of a run that ended: what it said, what it left, and the run after it, which nothing is refused."""
    from deploycompress.engine.store import FileStore, damage_of

    problems = []
    if code != expected:
        problems.append(f"exit code {code}, expected {expected}")
    if not re.search(sentence, output, re.S):
        problems.append(f"does not say {sentence!r}")
    if "Traceback" in output:
        problems.append("a traceback on the terminal")
    if here.no_processes(project, 3.0) is None:
        problems.append("processes are left")
    damaged = [p.name for kind, p in FileStore(project.store).entries() if damage_of(p, kind)]
    if damaged:
        problems.append(f"damaged: {damaged}")
    before = {m["id"] for m in project.manifests().values()} - {"model"}
    (project.folder / "how.txt").write_text("")
    again = here.run(project)
    reused = {m["id"] for m in project.manifests().values() if m["reused"]}
    if again.code != 0 or project.digests() != golden.digests():
        problems.append(f"the next run: {again.code}, {again.output[-300:]}")
    if not before <= reused | {"fault"}:
        problems.append(f"made again: {sorted(before - reused)}")
    if project.left_over():
        problems.append(f"left behind: {project.left_over()}")
    if problems:
        problems.append(output[-400:])
    told = next(
        (line for line in output.splitlines() if "failed after" in line or line.startswith("error")), ""
    )
    row = {"case": case, "exit_code": code, "said": _short(told, project), "problems": problems}
    print(row, flush=True)
    return row


def _short(line: str, project: Project) -> str:
    return re.sub(r"^\[.*?\] ", "", line).replace(str(project.folder), "PROJECT")[:200]


def _no_room_at(here: Lab, golden: Project, number: int) -> list[dict[str, Any]]:
    """ENOSPC from some operation on, as a disk does that has become full."""
    project = _fresh(here, golden)
    here.run(project, points={"at": -1})
    points, rows = here.reached(), []
    before = [n for n, line in enumerate(points, 1) if line.startswith("before") and " delete " not in line]
    for at in sorted(random.Random(0).sample(before, min(number, len(before)))):
        project = _fresh(here, golden)
        ended = here.run(project, points={"at": at, "errno": 28})
        case = f"no room from operation {at} of {len(points)} on"
        rows.append(_judged(here, golden, project, case, ended.code, ended.output, 3, r"no room to write"))
    return rows


def _small_file_system(here: Lab, golden: Project, skipped: dict[str, str]) -> list[dict[str, Any]]:
    place, rows = here.folder / "small", list[dict[str, Any]]()
    place.mkdir()
    whole = sum(512 * p.lstat().st_blocks for p in golden.folder.rglob("*"))
    for share in SHARES:
        size = f"{int(share * whole) >> 10}k"
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)],
            capture_output=True,
            text=True,
        )
        if mounted.returncode != 0:
            skipped["a full and a read-only file system"] = mounted.stderr.strip()
            return rows
        try:
            project = _fresh(here, golden, place / "project")
            ended = here.run(project)
            subprocess.run(["mount", "-o", "remount,size=64m", str(place)], check=True)
            case = f"a file system with room for {share:.0%} of it"
            rows.append(
                _judged(here, golden, project, case, ended.code, ended.output, 3, r"no room to write")
            )
            if share == SHARES[-1]:
                rows.append(_read_only(here, golden, project, place))
        finally:
            subprocess.run(["umount", "-l", str(place)], check=False)
    return rows


def _read_only(here: Lab, golden: Project, project: Project, place: Path) -> dict[str, Any]:
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    ended = here.run(project)
    subprocess.run(["mount", "-o", "remount,rw", str(place)], check=True)
    said = r"cannot read or write.*Read-only file system"
    return _judged(here, golden, project, "a read-only file system", ended.code, ended.output, 3, said)


def _file_size_limit(here: Lab, golden: Project) -> dict[str, Any]:
    """Workers have their limits from the server, so this is the real command, cold."""
    project = _fresh(here, golden)
    done = subprocess.run(
        [sys.executable, "-m", "deploycompress", *project.arguments()],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, 8_000)),
    )
    output = done.stdout + done.stderr
    return _judged(
        here, golden, project, "a limit of 8 kB a file", done.returncode, output, 3, r"no room to write"
    )


if __name__ == "__main__":
    main()
