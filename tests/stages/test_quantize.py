"""The quantize stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from deploycompress.config.schema import AccuracyGate
from deploycompress.errors import ConfigError, EnvironmentMissing, StageFailed
from deploycompress.graph import schemes
from deploycompress.graph.evaluation import Evaluation
from deploycompress.graph.execution import inspect_onnx
from deploycompress.graph.judging import judge_artifacts
from deploycompress.graph.ladder.scales import scales_of
from deploycompress.model.parity import LOWEST_COSINE
from deploycompress.runtimes.onnxruntime import OnnxRuntime
from deploycompress.stages import quantize
from deploycompress.stages.distill import Distill
from deploycompress.stages.export import Export
from deploycompress.stages.quantize import Quantize


def replace_target(context, **changes):
    return context.target.model_copy(update=changes)


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
    assert Quantize(Quantize.Config(scheme="s8s8")).depends(run_context()) == {"scheme": "s8s8", "place": {}}
    assert Quantize(Quantize.Config()).depends(run_context())["scheme"] in ("u8s8", "s8s8", "u8s8_reduced")
    for_a_gpu = run_context(runtime="tensorrt")
    assert Quantize(Quantize.Config()).depends(for_a_gpu)["scheme"] == "s8s8_symmetric"


def test_a_file_for_tensorrt_is_judged_as_it_is_written_where_this_processor_saturates(
    run_context, exported_of, tmp_path: Path, monkeypatch
) -> None:
    """By everything that looks at what it gives: the search, the repair, the checks and the test split."""
    monkeypatch.setattr(schemes, "machine", lambda: {"architecture": "x86_64", "flags": ["avx2"]})
    monkeypatch.setattr("deploycompress.graph.allowance.allowance", lambda *_: (-1.0, ()))  # out of reach
    levels: dict[bool, set[str | None]] = {True: set(), False: set()}
    opens = OnnxRuntime.open

    def noted(self: OnnxRuntime, path: Path, options: Mapping[str, Any]):
        levels["DequantizeLinear" in inspect_onnx(path)["ops"]].add(options.get("graph_level"))
        return opens(self, path, options)

    monkeypatch.setattr(OnnxRuntime, "open", noted)
    context = run_context(runtime="tensorrt")
    source = exported_of(context)
    stage, inputs = Quantize(Quantize.Config(calibrator="search")), {"source": (source,)}
    outcome = stage.run(inputs, tmp_path, context)
    stage.ensures(inputs, outcome, context)
    judged, _ = judge_artifacts([source, replace(outcome.artifacts[0], id="quantize")], context)
    assert len(judged) == 2 and "repair" in outcome.details
    assert outcome.details["scheme"] == "s8s8_symmetric"
    assert levels == {True: {"off"}, False: {None}}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_is_half_the_bytes(run_context, exported_of, tmp_path: Path, precision: str) -> None:
    context = run_context()
    source = exported_of(context, opset=22)
    stage, inputs = Quantize(Quantize.Config(precision=precision)), {"source": (source,)}
    stage.requires(context)
    outcome = stage.run(inputs, tmp_path, context)
    (made,) = outcome.artifacts
    assert made.precision == precision and "scheme" not in made.details
    assert made.details.get("runtime") == ("openvino" if precision == "bf16" else None)  # which can run it
    assert stage.ensures(inputs, outcome, context)["quantize_cosine"] > 0.999
    assert stage.depends(context)["scheme"] == ""
    elsewhere = replace(
        context, target=replace_target(context, provider="cuda")
    )  # runs it in ONNX Runtime itself
    assert (stage.depends(context) == stage.depends(elsewhere)) == (precision == "fp16")


def test_dynamic_quantizes_what_multiplies_matrices(run_context, exported_of, tmp_path: Path) -> None:
    context = run_context()
    stage, inputs = Quantize(Quantize.Config(scheme="dynamic")), {"source": (exported_of(context),)}
    outcome = stage.run(inputs, tmp_path, context)
    operators = {node.op_type for node in onnx.load(outcome.artifacts[0].path).graph.node}
    assert "Conv" in operators and operators & {"MatMulInteger", "DynamicQuantizeMatMul"}
    assert outcome.details["scheme"] in ("dynamic", "dynamic_reduced") and len(outcome.details) == 1
    assert stage.ensures(inputs, outcome, context)["quantize_cosine"] > 0.99


def test_what_loses_more_than_the_gate_allows_is_repaired_or_says_so(
    run_context, exported_of, tmp_path: Path, monkeypatch
) -> None:
    """An untrained network loses nothing that means anything, so what it loses is told by the file here."""
    context = replace(run_context(), gates={"accuracy": AccuracyGate(max_drop="1 pp")})
    source = exported_of(context)
    monkeypatch.setattr(
        quantize, "_validated", lambda path, *_: Evaluation({"accuracy": reached(path)}, None, {}, 9)
    )

    def reached(path: Path) -> float:
        """0.9 in FP32; 0.8 in INT8, and 0.895 where a layer of it is in FP32."""
        weights = {t.data_type for t in onnx.load(path).graph.initializer if len(t.dims) > 1}
        return (
            0.9
            if onnx.TensorProto.INT8 not in weights
            else 0.895
            if onnx.TensorProto.FLOAT in weights
            else 0.8
        )

    stage, inputs = Quantize(Quantize.Config(scheme="s8s8")), {"source": (source,), "baseline": (source,)}
    outcome = stage.run(inputs, tmp_path, context)
    assert "layers in FP32" in outcome.details["repair"]
    assert outcome.metrics["val_accuracy"] == 0.895
    told = [note.message for note in outcome.notes if note.subject == "repair"]
    assert [message.split(" (")[0] for message in told][:4] == [
        "as configured",
        "calibrator",
        "equalisation",
        "bias correction",
    ]
    assert [p.name for p in tmp_path.glob("*.onnx")] == ["model.onnx"] and not list(tmp_path.glob(".repair*"))
    strict = replace(context, gates={"accuracy": AccuracyGate(max_drop="0.1 pp")})
    (tmp_path / "strict").mkdir()
    outcome = stage.run(inputs, tmp_path / "strict", strict)
    (warning,) = (note for note in outcome.notes if note.kind == "warning")
    assert "no repair is enough: the best one (" in warning.message and "0.001 are allowed" in warning.message
    (tmp_path / "off").mkdir()
    off = Quantize(Quantize.Config(scheme="s8s8", repair=False)).run(inputs, tmp_path / "off", context)
    assert "repair" not in off.details and off.metrics["val_accuracy"] == 0.8


def test_scales_that_were_trained_with_go_into_the_file(run_context, checkpoint_of, tmp_path: Path) -> None:
    context = run_context()
    source = checkpoint_of(context)
    folders = {name: tmp_path / name for name in ("distill", "export", "same", "other")}
    for folder in folders.values():
        folder.mkdir()
    distill = Distill(Distill.Config(epochs=1, quantized="s8s8"))
    assert distill.depends(context)["scheme"] == "s8s8"
    learned = distill.run({"source": (source,), "teacher": (source,)}, folders["distill"], context).artifacts[
        0
    ]
    known = learned.details["input_scales"]
    assert known["scheme"] == "s8s8" and set(known["layers"]) == {"0", "5"}
    exported = Export(Export.Config()).run({"source": (learned,)}, folders["export"], context).artifacts[0]
    outcome = Quantize(Quantize.Config(scheme="s8s8")).run({"source": (exported,)}, folders["same"], context)
    assert outcome.details["learned_scales"] == 2
    written = {np.float32(s[0]["scale"]) for s in scales_of(outcome.artifacts[0].path).values()}
    assert {np.float32(scale) for scale, _ in known["layers"].values()} <= written
    stage = Quantize(Quantize.Config(scheme="s8s8_symmetric"))
    other = stage.run({"source": (exported,)}, folders["other"], context)
    assert "learned_scales" not in other.details
    (warning,) = other.notes
    assert (
        "learned with the values of s8s8, and its file is in s8s8_symmetric: calibrated anew"
        in warning.message
    )


def test_the_calibrator_is_searched_for_where_that_is_asked(
    run_context, exported_of, tmp_path: Path, monkeypatch
) -> None:
    """By the outputs on calibration samples that no range is taken from."""
    from deploycompress.graph.ladder.climbing import Ladder

    context = run_context()
    source = exported_of(context)
    away = {"minmax": 0.3, "percentile_99.99": 0.1}
    monkeypatch.setattr(Ladder, "_distance_of", lambda self, recipe: away.get(recipe.calibrator, 0.2))
    stage = Quantize(Quantize.Config(calibrator="search"))
    outcome = stage.run({"source": (source,)}, tmp_path, context)
    assert outcome.artifacts[0].details["calibrator"] == "percentile_99.99"
    told = {note.subject: note.message for note in outcome.notes}
    assert told["calibrator percentile_99.99"] == "outputs 0.1 away" and len(told) == 5


def test_each_calibrator_is_a_file_of_its_own_when_it_is_searched_for(
    run_context, exported_of, tmp_path: Path
) -> None:
    context = run_context()
    stage = Quantize(Quantize.Config(calibrator="search"))
    outcome = stage.run({"source": (exported_of(context),)}, tmp_path, context)
    distances = [note.message for note in outcome.notes if note.subject.startswith("calibrator ")]
    assert len(distances) == 5 and len(set(distances)) > 1


def test_nncf_makes_a_folder_for_openvino(run_context, exported_of, tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    context = run_context()
    source = exported_of(context)
    stage = Quantize(Quantize.Config(scheme="nncf"))
    stage.requires(context)
    outcome = stage.run({"source": (source,)}, tmp_path, context)
    (made,) = outcome.artifacts
    assert (made.kind, made.precision, made.details["runtime"]) == ("openvino", "int8", "openvino")
    assert "FakeQuantize" in (made.path / "model.xml").read_text()
    assert stage.ensures({"source": (source,)}, outcome, context)["quantize_cosine"] > 0.95
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_a_scheme_of_int8_and_another_precision_contradict(run_context) -> None:
    for scheme in ("nncf", "dynamic"):
        with pytest.raises(
            ConfigError, match=f"scheme {scheme} is of int8, and precision is fp16; leave one"
        ):
            Quantize(Quantize.Config(precision="fp16", scheme=scheme)).requires(run_context())


def test_nncf_that_is_not_there(run_context, monkeypatch) -> None:
    monkeypatch.setattr(
        "deploycompress.graph.compilers.openvino.OpenVinoCompiler.missing", lambda self: "nncf not installed"
    )
    with pytest.raises(EnvironmentMissing, match="quantize: nncf not installed"):
        Quantize(Quantize.Config(scheme="nncf")).requires(run_context())


def test_a_calibrator_that_fails_is_not_the_end_of_the_search(
    run_context, exported_of, tmp_path: Path, monkeypatch
) -> None:
    """Histograms have no range for a mask of minus infinity."""
    from deploycompress.graph.ladder.climbing import Ladder

    def distance_of(self, recipe, works=("minmax",)):
        if recipe.calibrator not in works:
            raise StageFailed("a range is not finite")
        return 0.2

    context = run_context()
    source = exported_of(context)
    monkeypatch.setattr(Ladder, "_distance_of", distance_of)
    outcome = Quantize(Quantize.Config(calibrator="search")).run({"source": (source,)}, tmp_path, context)
    assert outcome.artifacts[0].details["calibrator"] == "minmax"
    skipped = [note.message for note in outcome.notes if note.kind == "skipped"]
    assert skipped == ["a range is not finite"] * 4
    monkeypatch.setattr(Ladder, "_distance_of", lambda self, recipe: distance_of(self, recipe, ()))
    (tmp_path / "again").mkdir()
    with pytest.raises(StageFailed, match="no calibrator makes a file: a range is not finite"):
        Quantize(Quantize.Config(calibrator="search")).run({"source": (source,)}, tmp_path / "again", context)


def test_nncf_keeps_the_batch_that_a_file_fixes(run_context, exported_of, tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    source, context = exported_of(run_context(4)), run_context()
    stage = Quantize(Quantize.Config(scheme="nncf"))
    (made,) = stage.run({"source": (source,)}, tmp_path, context).artifacts
    assert made.details["batch"] == 4
    assert stage.depends(context) != stage.depends(run_context(provider="gpu"))
