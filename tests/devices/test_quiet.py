"""While something is measured on a machine, nothing else works there; shown by the times of real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path

import pytest

from deploycompress.devices import quiet

# Each process works, waits for others and measures a few times, and notes when it began and ended what.
WORKER = """
import random, sys, time
from pathlib import Path
from deploycompress.devices import quiet
from deploycompress.engine.store import FileStore

def note(what, began):
    with open(sys.argv[1], "a") as stream:
        stream.write(f"{sys.argv[2]} {what} {began} {time.monotonic()}\\n")

def make(folder):
    with quiet.measuring("local"):
        began = time.monotonic()
        time.sleep(0.05)
        note("measure", began)

random.seed(int(sys.argv[2]))
store = FileStore(Path(sys.argv[3]))
for turn in range(4):
    quiet.work()
    began = time.monotonic()
    time.sleep(random.uniform(0.01, 0.1))
    note("work", began)
    store.folder("table", {"turn": turn}, make)  # all want it, one makes it
    with quiet.measuring("local"):
        began = time.monotonic()
        time.sleep(0.03)
        note("measure", began)
    began = time.monotonic()
    time.sleep(0.02)
    note("measure", began)  # still alone: until it rests
    quiet.rest()
"""


def processes(tmp_path: Path, environment: dict[str, str]) -> list[tuple[str, str, float, float]]:
    notes = tmp_path / "notes"
    script = textwrap.dedent(WORKER)
    words = [sys.executable, "-c", script, str(notes)]
    started = [
        subprocess.Popen([*words, str(number), str(tmp_path / "store")], env={**os.environ, **environment})
        for number in range(4)
    ]
    try:
        assert [p.wait(timeout=60) for p in started] == [0] * 4
    finally:
        for process in started:  # those that wait for each other
            process.kill()
            process.wait()
    rows = [line.split() for line in notes.read_text().splitlines()]
    return [(who, what, float(began), float(ended)) for who, what, began, ended in rows]


def disturbed(rows) -> int:
    """Measurements during which another process worked or measured."""
    return sum(
        what == "measure" and any(o != who and b < ended and began < e for o, _, b, e in rows)
        for who, what, began, ended in rows
    )


def test_nothing_works_beside_a_measurement_and_nobody_waits_for_ever(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    rows = processes(tmp_path, {quiet.VARIABLE: str(tmp_path)})
    assert sum(what == "measure" for _, what, *_ in rows) == 4 * 4 * 2 + 4
    assert disturbed(rows) == 0
    assert any(
        o != w and b < e and s < f for w, x, s, e in rows for o, y, b, f in rows if x == y == "work"
    ), "work goes on beside other work"


def test_outside_a_sweep_nothing_waits(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv(quiet.VARIABLE, raising=False)
    assert disturbed(processes(tmp_path, {})) > 0
    assert not list(tmp_path.glob("deploycompress-*"))


def test_a_measurement_that_waits_is_not_overtaken_by_new_work(tmp_path, monkeypatch):
    """With two that work in turns without a pause, one would otherwise wait as long as they go on."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    busy = """
import sys, time
from deploycompress.devices import quiet
while True:
    quiet.work(); time.sleep(0.15); quiet.rest()
"""
    environment = {**os.environ, quiet.VARIABLE: str(tmp_path)}
    others = [subprocess.Popen([sys.executable, "-c", busy], env=environment) for _ in range(2)]
    try:
        time.sleep(1.5)
        measure = "from deploycompress.devices import quiet\nwith quiet.measuring('local'): pass"
        assert subprocess.run([sys.executable, "-c", measure], env=environment, timeout=60).returncode == 0
    finally:
        for process in others:
            process.kill()
            process.wait()


def test_another_device_is_measured_in_turn_and_leaves_this_machine_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with quiet.sweeping(tmp_path), quiet.measuring("board"):
        code = "from deploycompress.devices import quiet\nquiet.work(); print('works', flush=True)\n"
        code += "with quiet.measuring('board'): print('measures')"
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "works\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.5)
    assert process.communicate(timeout=60)[0] == "measures\n"


def test_time_spent_waiting_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)  # found anew, from TMPDIR
    told: list[bool] = []
    before = quiet.waited_s()
    code = "import sys\nfrom deploycompress.devices import quiet\n"
    code += "with quiet.measuring('local'): print('alone', flush=True); sys.stdin.read()"
    with quiet.sweeping(tmp_path):
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "alone\n"
        over = threading.Timer(0.5, process.stdin.close)

        def tell(waits: bool) -> None:
            told.append(waits)
            if waits:
                over.start()

        monkeypatch.setattr(quiet, "_tell", tell)
        quiet.work()
    process.wait()
    assert told == [True, False] and 0.2 < quiet.waited_s() - before < 60


def test_a_rehearsal_measures_beside_others(tmp_path, monkeypatch):
    """What it measures is thrown away, so it does not wait for the training of another trial to end."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    code = "from deploycompress.devices import quiet\nquiet.work(); quiet.rehearse()\n"
    code += "with quiet.measuring('local'): print('measures')"
    with quiet.sweeping(tmp_path):
        quiet.work()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "measures\n"
