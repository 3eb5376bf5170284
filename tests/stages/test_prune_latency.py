"""The prune stage with a latency target: everything is measured, in the real runtime."""

import pkgutil
from dataclasses import replace

import pytest

from deploycompress.config.schema import InputSpec, ModelConfig
from deploycompress.engine.store import FileStore
from deploycompress.errors import ConfigError, StageFailed
from deploycompress.graph.execution import inspect_onnx
from deploycompress.model import checkpoint
from deploycompress.model.source import SourceModel
from deploycompress.stages.prune import Prune

pytestmark = pytest.mark.slow

MODEL = """
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        return nn.functional.relu(x + self.b(nn.functional.relu(self.norm(self.a(x)))))


def build():
    return nn.Sequential(
        nn.Conv2d(1, 64, 3, padding=1), nn.ReLU(), Block(64), Block(64),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )
"""


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """A store of latency tables for all tests that do not ask when they were measured."""
    return FileStore(tmp_path_factory.mktemp("tables"))


@pytest.fixture
def context(run_context, tmp_path, monkeypatch, tables):
    monkeypatch.setattr(
        "deploycompress.pruning.latency.fitted.PROBED_SHARES", (0.75, 0.5, 0.25)
    )  # each is an export
    # Other tests run beside these, and the machine is never as quick as at its best.
    monkeypatch.setattr("deploycompress.pruning.latency.whole.PAUSE_S", 1.0)
    monkeypatch.setattr("deploycompress.pruning.latency.whole.PATIENCE_S", 3.0)
    for name, value in {
        "BLOCKS": 6,
        "BLOCK_MS": 20.0,
        "CONFIRMING_BLOCK_MS": 20.0,
        "CONFIRMING_PROCESSES": 2,
    }.items():
        monkeypatch.setattr(f"deploycompress.pruning.latency.settling.{name}", value)
    (tmp_path / "wide_model.py").write_text(MODEL)
    inputs = {"image": InputSpec(shape=("batch", 1, 8, 8))}
    model = SourceModel(ModelConfig(build=f"{tmp_path / 'wide_model.py'}:build", inputs=inputs), 0)
    events = []
    made = run_context(events=events)
    return replace(made, model=model, store=tables), events


def prune(context, source, workdir, **config):
    stage = Prune(Prune.Config.model_validate(config))
    workdir.mkdir()
    outcome = stage.run({"source": (source,)}, workdir, context)
    return outcome, stage.ensures({"source": (source,)}, outcome, context)


def test_a_latency_is_settled_on_a_measured_plan_and_one_in_milliseconds_by_the_same_tables(
    context, checkpoint_of, tmp_path
):
    context, events = context
    context = replace(context, store=FileStore(tmp_path / "store"))
    source = checkpoint_of(context)
    outcome, _ = prune(context, source, tmp_path / "one", target={"latency": "60%", "macs": "70%"})
    assert outcome.details["reached"] and outcome.metrics["latency_ratio"] <= 0.6
    assert outcome.metrics["macs_ratio"] <= 0.7 and outcome.metrics["masked_relative"] < 1e-5
    latency = outcome.details["latency"]
    assert latency["measured"] <= latency["target"] < latency["unpruned"]
    assert {"predicted", "measured", "confirmed"} == set(latency["plans"][0])
    assert latency["prediction"]["align"] in (4, 8, 16, 32)
    assert outcome.details["align"] == latency["prediction"]["align"]
    module = checkpoint.load(outcome.artifacts[0].path, context.model)
    widths = {row["layer"]: row["after"] for row in outcome.details["widths"]}
    assert widths["0"] == module[0].out_channels
    # The tables are in the store now: nothing but whole models is measured again.
    measured = [e.message for e in events if "latency table:" in e.message]
    events.clear()
    wanted_ms = 0.6 * latency["unpruned"]
    wish = {"target": {"latency": f"{wanted_ms:.6f} ms"}, "compensate": False, "criterion": "magnitude"}
    outcome, _ = prune(context, source, tmp_path / "two", **wish)
    assert measured and not any("latency table:" in e.message for e in events)
    assert outcome.details["latency"]["target"] == pytest.approx(wanted_ms, rel=1e-4)
    assert outcome.metrics["latency_ms"] <= wanted_ms and outcome.details["reached"]


def test_a_latency_that_cannot_be_had(context, checkpoint_of, tmp_path):
    context, _ = context
    source = checkpoint_of(context)
    wish = {"target": {"latency": "100 ns"}, "compensate": False, "criterion": "magnitude"}
    with pytest.raises(
        StageFailed, match=r"cannot be reached: of \d+ plans that were measured the fastest takes"
    ):
        prune(context, source, tmp_path / "one", **wish)
    outcome, _ = prune(context, source, tmp_path / "two", **wish, on_unreachable="best")
    assert outcome.details["reached"] is False
    assert any(
        "the target is not reached: the least that can be had is latency" in n.message for n in outcome.notes
    )


@pytest.mark.nightly
def test_where_another_target_is_out_of_reach_the_latency_is_measured_all_the_same(
    context, checkpoint_of, tmp_path
):
    context, _ = context
    source = checkpoint_of(context)
    wish = {"target": {"latency": "60%", "params": 10}, "compensate": False, "criterion": "magnitude"}
    with pytest.raises(StageFailed, match=r"cannot be reached: the smallest is params"):
        prune(context, source, tmp_path / "one", **wish)
    outcome, _ = prune(context, source, tmp_path / "two", **wish, on_unreachable="best")
    (plan,) = outcome.details["latency"]["plans"]
    assert outcome.metrics["latency_ms"] == plan["measured"] != plan["predicted"]
    assert outcome.details["reached"] is False
    assert any("the least that can be had is params" in n.message for n in outcome.notes)


@pytest.mark.nightly
def test_an_int8_target_is_measured_in_int8(context, checkpoint_of, tmp_path, monkeypatch):
    context, _ = context
    context = replace(context, target=context.target.model_copy(update={"precision": "int8"}))
    quantized = []

    def watched(original):
        def run(device, candidates, *args, **given):
            some = candidates if isinstance(candidates, list) else [candidates]
            quantized.extend("QuantizeLinear" in inspect_onnx(c.path)["ops"] for c in some)
            return original(device, candidates, *args, **given)

        return run

    for place in ("whole.measure", "table.profile"):
        name = f"deploycompress.pruning.latency.{place}"
        monkeypatch.setattr(name, watched(pkgutil.resolve_name(name)))
    wish = {"target": {"latency": "60%"}, "compensate": False, "criterion": "magnitude", "blocks": False}
    outcome, _ = prune(context, checkpoint_of(context), tmp_path / "one", **wish, on_unreachable="best")
    assert outcome.metrics["latency_ms"] > 0 and len(quantized) > 5 and all(quantized)
    assert not list(tmp_path.joinpath("one").rglob("*.onnx"))  # of the plans none is left behind


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"precision": "fp16"}, r"measures models in fp32 or int8; received target\.precision fp16"),
        ({"runtime": "tensorrt"}, r"measures ONNX files, and target\.runtime tensorrt opens engine"),
    ],
)
def test_a_latency_that_cannot_be_measured_at_the_target_is_refused_first(context, target, message):
    context, _ = context
    stage = Prune(Prune.Config.model_validate({"target": {"latency": "60%"}}))
    stage.requires(context)
    with pytest.raises(ConfigError, match=message):
        stage.requires(replace(context, target=context.target.model_copy(update=target)))


def test_a_rehearsal_measures_nothing(context, checkpoint_of, tmp_path):
    context, events = context
    rehearsal = replace(context, rehearsal=True, store=None)
    outcome, _ = prune(rehearsal, checkpoint_of(context), tmp_path / "one", target={"latency": "60%"})
    assert outcome.metrics["macs_ratio"] <= 0.6 and "latency_ms" not in outcome.metrics
    assert not any("plans measured" in e.message for e in events)


def test_a_rehearsal_does_not_fail_for_macs_that_nobody_asked_for(context, checkpoint_of, tmp_path):
    context, _ = context
    rehearsal, source = replace(context, rehearsal=True, store=None), checkpoint_of(context)
    outcome, _ = prune(rehearsal, source, tmp_path / "one", target={"latency": "3 ms"}, exclude=["2*", "0"])
    assert outcome.metrics["macs_ratio"] > 0.5


def test_the_machine_is_in_the_key_of_a_measured_target_only(context):
    context, _ = context
    measured = Prune(Prune.Config.model_validate({"target": {"latency": "2 ms"}}))
    counted = Prune(Prune.Config.model_validate({"target": {"macs": "50%"}}))
    assert measured.depends(context)["place"]["device"]["cores"] >= 1 and counted.depends(context) == {}
    assert measured.reads() == {"target"} and counted.reads() == frozenset()
