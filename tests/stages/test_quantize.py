"""The quantize stage."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploycompress.errors import StageFailed
from deploycompress.model.parity import LOWEST_COSINE
from deploycompress.stages.quantize import Quantize


def test_makes_a_close_int8_file(run_context, exported_of, tmp_path: Path) -> None:
    context = run_context()
    stage, inputs = Quantize(Quantize.Config(scheme="s8s8")), {"source": (exported_of(context),)}
    stage.requires(context)
    outcome = stage.run(inputs, tmp_path, context)
    (made,) = outcome.artifacts
    assert (made.precision, made.kind) == ("int8", "onnx")
    assert (made.details["scheme"], made.details["calibration_samples"]) == ("s8s8", 64)
    assert {"val_accuracy", "val_accuracy_before", "bytes"} <= set(outcome.metrics)
    parity = stage.ensures(inputs, outcome, context)
    assert set(parity) == {"quantize_cosine", "quantize_top1_agreement"}
    assert parity["quantize_cosine"] > 0.99


@pytest.mark.parametrize(("batch", "wanted", "given"), [("batch", 20, 20), (16, 20, 32), (16, None, 80)])
def test_calibrates_with_as_many_samples_as_asked(
    run_context, exported_of, tmp_path: Path, batch: int | str, wanted: int | None, given: int
) -> None:
    context = run_context(batch)
    stage = Quantize(Quantize.Config(calibration=wanted))
    outcome = stage.run({"source": (exported_of(context),)}, tmp_path, context)
    assert outcome.details["calibration_samples"] == given  # a fixed batch is filled up from 50 + 14
    assert stage.ensures({"source": (exported_of(context),)}, outcome, context)["quantize_cosine"] > 0.99


def test_a_result_that_is_far_off_fails_except_in_the_rehearsal(
    run_context, exported_of, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setitem(LOWEST_COSINE, "int8", 1.1)
    for rehearsal in (True, False):
        context = run_context(rehearsal=rehearsal)
        stage, inputs = Quantize(Quantize.Config()), {"source": (exported_of(context),)}
        workdir = tmp_path / str(rehearsal)
        workdir.mkdir()
        outcome = stage.run(inputs, workdir, context)
        if rehearsal:
            stage.ensures(inputs, outcome, context)
            continue
        with pytest.raises(
            StageFailed,
            match=r"INT8 differs from its source: cosine \d\.\d+ .* expected at least 1.1; it begins at node .*Conv.*: ",
        ):
            stage.ensures(inputs, outcome, context)


def test_the_scheme_of_this_processor_is_in_the_key(run_context) -> None:
    assert Quantize(Quantize.Config(scheme="s8s8")).depends(run_context()) == {"scheme": "s8s8"}
    assert Quantize(Quantize.Config()).depends(run_context())["scheme"] in ("u8s8", "s8s8", "u8s8_reduced")
