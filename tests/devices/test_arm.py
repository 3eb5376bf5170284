"""The whole device path on an emulated 64-bit ARM device: everything but its timings is real."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import arm_lab
import numpy as np
import pytest

from deploycompress.devices.jobs import Candidate, measure
from deploycompress.devices.ssh import Ssh
from deploycompress.graph.agreement import check_on
from deploycompress.graph.schemes import choose_scheme
from deploycompress.measure.plan import Plan

FEED = {"x": np.random.default_rng(0).standard_normal((2, 64), dtype=np.float32)}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ssh]:
    reason = arm_lab.missing()
    if reason:
        pytest.skip(reason)
    folder = Path(os.environ["DEPLOYCOMPRESS_ARM_DEVICE"])
    arm_lab.build(folder)
    with arm_lab.arm_device(folder, tmp_path_factory.mktemp("arm")) as config:
        yield Ssh("arm", config)


def test_its_own_fingerprint_and_not_that_of_the_host(arm: Ssh) -> None:
    facts = arm.facts()
    assert facts["architecture"] == "aarch64" and facts["emulated"] is True
    assert facts["cpu"] == "aarch64, emulated" and "asimd" in facts["flags"]
    assert choose_scheme("auto", facts) == "s8s8"
    assert facts["libraries"]["onnxruntime"] == arm_lab.ONNXRUNTIME
    assert arm.missing("onnxruntime") is None


def test_measures_marks_and_agrees(
    arm: Ssh, made: Callable[[str, int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    candidates = [
        Candidate(id, made(id, layers), "onnxruntime") for id, layers in (("base", 40), ("small", 4))
    ]
    assert check_on(arm, candidates, FEED) == []
    found = measure(
        arm,
        candidates,
        baseline="base",
        feed=FEED,
        plan=Plan(blocks=4, block_ms=50, warmup_ms=20),
        workdir=tmp_path,
    )
    for row in found.values():
        assert row.device == "arm" and row.emulated
        assert "the device is emulated, so its times say nothing about a real one" in row.notes
