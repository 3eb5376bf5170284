"""A sample of the damaged files that benchmarks/reliability/fuzz.py gives to the product's readers."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "benchmarks" / "reliability"
SAMPLE = {"pipeline.yaml": 60, "architecture.json": 200, "manifests": 300, "result.json": 300, "onnx": 600}
BEHIND = 1_000_000  # the script's numbers end before


@pytest.fixture(scope="module")
def fuzz() -> Iterator[Any]:
    sys.path.insert(0, str(SCRIPTS))
    before = signal.getsignal(signal.SIGALRM)
    spec = importlib.util.spec_from_file_location("reliability_fuzz", SCRIPTS / "fuzz.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    sys.modules["fuzz_mutation"].EXAMPLES = 40  # type: ignore[attr-defined]  # of hypothesis, whose start is what takes time
    yield module
    signal.signal(signal.SIGALRM, before)
    sys.path.remove(str(SCRIPTS))


@pytest.mark.parametrize("name", SAMPLE)
def test_damaged_files_are_refused_and_nothing_else(fuzz: Any, name: str) -> None:
    tally = fuzz.fuzz(name, range(BEHIND, BEHIND + SAMPLE[name]))
    assert not tally.findings
    assert tally.inputs == SAMPLE[name] and tally.refused and tally.accepted < tally.inputs / 2


def test_the_same_number_is_the_same_input(
    fuzz: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    subject = fuzz.SUBJECTS["onnx"](tmp_path)
    first, again, other = (subject.input(fuzz.chance("onnx", number)) for number in (7, 7, 8))
    assert first == again != other


def test_planted_faults_are_found() -> None:
    """In a process of its own: a fault that is not found may end the process, and would end the whole suite."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("planted_faults.py"))],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "Planted": [],
        "Crash": ["crash"],
        "Hang": ["hang"],
        "Write": ["outside"],
        "Start": ["outside"],
        "Silent": ["crash"],
    }


def test_an_alarm_after_the_call_is_nobodys(fuzz: Any) -> None:
    sys.modules["fuzz_sandbox"]._hung(signal.SIGALRM, sys._getframe())
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_the_committed_figures_are_of_100_000_each_and_no_crash() -> None:
    results = json.loads((SCRIPTS / "fuzz.json").read_text())
    for name in SAMPLE:
        of = results["subjects"][name]
        assert of["inputs"] >= 100_000 and not of["findings"], name
        assert of["crashes"] == of["hangs"] == of["outside"] == 0
        assert of["accepted"] + sum(of["refused"].values()) == of["inputs"]
