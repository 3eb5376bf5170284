"""What single operators take, measured in the real runtime."""

import statistics

import numpy as np
import pytest

from deploycompress.devices.jobs import Candidate
from deploycompress.devices.local import Local
from deploycompress.devices.profiles import NotProfiled, profile, profiles
from deploycompress.errors import EnvironmentMissing
from deploycompress.graph.catalogue import write_catalogue
from deploycompress.graph.operators import Operator

SMALL = Operator("", "matmul", (8, 64), 64)
LARGE = Operator("", "matmul", (512, 512), 512)


@pytest.fixture
def catalogue(tmp_path):
    path = tmp_path / "catalogue.onnx"
    return path, write_catalogue([SMALL, LARGE], path)


def test_each_operator_has_its_own_time(catalogue):
    path, feed = catalogue
    found = profile(Local(), Candidate("c", path, "onnxruntime"), feed, calls=12)
    small, large = ([v.ns for k, v in found.items() if k.startswith(prefix)] for prefix in ("p0_", "p1_"))
    assert all(len(samples) == 12 for samples in (*small, *large))
    assert {(of.provider, of.precision, of.role) for of in found.values()} == {
        ("CPUExecutionProvider", "fp32", "")
    }
    assert {"MatMul", "Gemm"} & {of.op for of in found.values()}
    # 512 times the multiply-accumulates.
    assert statistics.median(large[0]) > 20 * max(1, statistics.median(small[0]))


@pytest.fixture
def plain(tmp_path, monkeypatch):
    """A runtime that says nothing of operators."""
    (tmp_path / "plain_runtime.py").write_text(
        "class Plain:\n"
        "    accepts = frozenset({'onnx'})\n"
        "    libraries = ()\n"
        "    def missing(self):\n"
        "        return None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "plain_runtime:Plain"


@pytest.fixture
def broken(tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not an ONNX file")
    return path


def test_a_runtime_without_such_figures_says_so(catalogue, plain):
    path, feed = catalogue
    with pytest.raises(NotProfiled, match="does not tell what a single operator takes"):
        profile(Local(), Candidate("c", path, plain), feed, calls=2)


def test_of_several_each_has_its_own_answer(catalogue, plain, broken):
    path, feed = catalogue
    several = [
        Candidate("unsaid", path, plain),
        Candidate("broken", broken, "onnxruntime"),
        Candidate("told", path, "onnxruntime"),
    ]
    found = profiles(Local(), several, feed, calls=3)
    assert isinstance(found["unsaid"], NotProfiled)
    assert type(found["broken"]) is EnvironmentMissing and "broken on local" in str(found["broken"])
    assert {len(of.ns) for of in found["told"].values()} == {3}


def test_a_file_that_does_not_load_is_the_devices_error(broken):
    with pytest.raises(EnvironmentMissing, match="was not profiled"):
        profile(Local(), Candidate("c", broken, "onnxruntime"), {"x": np.ones(1, np.float32)}, calls=2)
