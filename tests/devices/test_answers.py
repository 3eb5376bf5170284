"""What artefacts give on a device, file by file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deploycompress.devices import answers as module
from deploycompress.devices.answers import answers
from deploycompress.devices.jobs import Candidate
from deploycompress.devices.local import Local
from deploycompress.errors import EnvironmentMissing, StageFailed
from deploycompress.measure.plan import Plan


def test_the_outputs_of_every_feed_in_order(device: Local, made, monkeypatch) -> None:
    monkeypatch.setattr(module, "BYTES_AT_ONCE", 3 * 64 * 4)  # several jobs
    feeds = [{"x": np.full((n % 2 + 1, 64), n, np.float32)} for n in range(7)]
    found = list(answers(device, Candidate("c", made("c", 3), "onnxruntime"), iter(feeds)))
    assert len(found) == 7
    for feed, outputs in zip(feeds, found, strict=True):
        np.testing.assert_array_equal(outputs["y"], feed["x"])


def test_a_crash_is_the_artefacts_error_and_a_load_the_devices(device: Local, made, wayward: str) -> None:
    feeds = [{"x": np.ones((2, 64), np.float32)}] * 6
    crash = Candidate("c", made("c", 1), wayward, options={"fail": "crash"})
    with pytest.raises(StageFailed, match=r"c on local in .* did not run: its process was ended by SIGSEGV"):
        list(answers(device, crash, feeds))
    load = Candidate("c", made("c", 1), wayward, options={"fail": "load"})
    with pytest.raises(EnvironmentMissing, match="did not run: no kernel for this processor"):
        list(answers(device, load, feeds))
    hang = Candidate("c", made("c", 1), wayward, options={"fail": "hang"})
    with pytest.raises(StageFailed, match="did not finish within the job's time limit"):
        list(answers(device, hang, feeds, deadline_s=3))


def test_two_runtimes_are_measured_in_one_job(device: Local, made, tmp_path: Path) -> None:
    from deploycompress.devices.jobs import measure

    ids = {"base": "onnxruntime", "base there": "openvino", "small": "openvino"}
    files = {"base": made("base", 300), "base there": made("base", 300), "small": made("small", 20)}
    found = measure(
        device,
        [Candidate(id, files[id], runtime) for id, runtime in ids.items()],
        baseline="base",
        references={"openvino": "base there"},
        feed={"x": np.ones((2, 64), np.float32)},
        plan=Plan(blocks=4, block_ms=10, warmup_ms=10),
        workdir=tmp_path,
    )
    assert (found["base"].speedup, found["base"].speedup_vs_target) == (None, None)
    there, small = found["base there"], found["small"]
    assert there.speedup is None and there.speedup_vs_target is not None
    assert small.speedup is not None and small.speedup.value > 2
    assert small.speedup_vs_target is not None and small.speedup_vs_target.value != small.speedup.value
