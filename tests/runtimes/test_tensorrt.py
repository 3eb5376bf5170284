"""TensorRT: what can be known without a GPU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deploycompress.runtimes import tensorrt
from deploycompress.runtimes.tensorrt import TensorRT

HERE = TensorRT().missing()


@pytest.mark.skipif(HERE is None, reason="TensorRT runs here")
def test_says_why_it_cannot_run_here() -> None:
    assert HERE is not None
    if not any(os.path.exists(node) for node in tensorrt.TRT_GPU_NODES):
        assert HERE == "there is no NVIDIA GPU here; run on a machine that has one"
    else:
        assert "install" in HERE


def test_the_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "TRT_GPU_NODES", ("/dev/null",))
    monkeypatch.setattr(tensorrt, "_trt_driver_library", lambda: None)
    assert "libcuda.so.1" in str(TensorRT().missing())
    if tensorrt.importlib.util.find_spec("tensorrt") is None:
        monkeypatch.setattr(tensorrt, "_trt_driver_library", lambda: "libcuda.so.1")
        assert "TensorRT is not installed" in str(TensorRT().missing())


def test_providers_name_a_gpu() -> None:
    assert [tensorrt._trt_ordinal(p) for p in ("cuda", "cuda:1", "cpu")] == [0, 1, 0]


@pytest.mark.skipif(HERE is not None, reason=f"TensorRT cannot run here: {HERE}")
def test_a_damaged_engine_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.engine").write_bytes(b"no engine")
    with pytest.raises(RuntimeError, match="does not load"):
        with TensorRT().open(tmp_path / "model.engine", {}):
            pass
