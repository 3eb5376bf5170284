"""The compile stage: what it builds, refuses and keeps, with runtimes whose calls take a known time."""

from __future__ import annotations

import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from deploycompress.config.quantities import Quantity
from deploycompress.config.schema import AccuracyGate, SizeGate
from deploycompress.contracts import Event
from deploycompress.devices.local import Local
from deploycompress.errors import ConfigError, EnvironmentMissing
from deploycompress.graph.arbiter import racing
from deploycompress.graph.arbiter.checking import Checked
from deploycompress.graph.arbiter.decision import Arbiter, Terms
from deploycompress.graph.arbiter.racing import Raced
from deploycompress.graph.arbiter.wanted import Wanted
from deploycompress.graph.compilers.recipe import Built
from deploycompress.graph.evaluation import Evaluation
from deploycompress.measure.measurement import Speedup
from deploycompress.measure.plan import Plan
from deploycompress.model.parity import Parity
from deploycompress.stages.compile import Compile

RUNTIME = '''
"""ONNX Runtime, with calls that last as long as they are told to, or go wrong."""
import contextlib
import os
import signal
import time

import numpy as np
import onnxruntime


class Timed:
    accepts = frozenset({"onnx"})
    libraries = ("onnxruntime",)

    def missing(self):
        return None

    @contextlib.contextmanager
    def open(self, path, options):
        yield TimedSession(onnxruntime.InferenceSession(str(path)), options)


class TimedSession:
    def __init__(self, session, options):
        self.session, self.options = session, options
        self.inputs = {i.name: None for i in session.get_inputs()}

    def bind(self, feed):
        self.feed = {name: feed[name] for name in self.inputs}
        return self.call

    def call(self):
        fail = self.options.get("fail")
        if fail == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if fail == "raise":
            raise RuntimeError("the device was lost")
        end = time.perf_counter_ns() + int(float(self.options.get("busy_ms", 4)) * 1e6)
        self.outputs = self.session.run(None, self.feed)
        if fail == "wrong":
            self.outputs = [o[:, ::-1].copy() for o in self.outputs]
        if fail == "worse":
            self.outputs = [o + 0.5 * np.roll(o, 1, axis=1) for o in self.outputs]
        while time.perf_counter_ns() < end:
            pass

    def fetch(self):
        return {o.name: v for o, v in zip(self.session.get_outputs(), self.outputs)}
'''


@pytest.fixture
def timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "timed_runtime.py").write_text(textwrap.dedent(RUNTIME))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "timed_runtime", raising=False)  # another test's
    brief = Plan(blocks=4, block_ms=20.0, warmup_ms=10.0, least_samples=8, enough_samples=200)
    monkeypatch.setattr(racing, "FIRST", brief)
    monkeypatch.setattr(racing, "FINAL", brief)
    return "timed_runtime:Timed"


def compiled(context, source, workdir: Path, **config):
    stage = Compile(Compile.Config.model_validate({"threads": [1], **config}))
    workdir.mkdir()
    stage.requires(context)
    return stage.run({"source": (source,), "baseline": (source,)}, workdir, context)


@pytest.mark.quiet
def test_keeps_the_fastest_that_is_right_and_says_what_became_of_the_others(
    run_context, exported_of, timed: str, tmp_path: Path
) -> None:
    events: list[Event] = []
    context = run_context(runtime=timed, events=events)
    options = [
        {"busy_ms": 1},
        {"busy_ms": 2},
        {"busy_ms": 3.96},
        {"busy_ms": 1.5, "fail": "wrong"},
        {"busy_ms": 1.5, "fail": "crash"},
        {"busy_ms": 1.5, "fail": "raise"},
    ]
    candidates = [{"runtime": timed, "options": {k: str(v) for k, v in o.items()}} for o in options]
    outcome = compiled(context, exported_of(context), tmp_path / "work", candidates=candidates)
    (made,) = outcome.artifacts  # the same file twice is as accurate, so the slower one is refused
    assert made.kind == "onnx" and made.details["options"] == {"busy_ms": "1"}
    assert (made.details["runtime"], made.details["threads"]) == (timed, 1)
    assert made.path.is_file() and made.path.is_relative_to(tmp_path / "work")
    rows = {row["id"]: row for row in outcome.details["candidates"]}
    reasons = {
        id.removeprefix("timed_runtime-Timed-fp32.busy_ms-"): row["reason"] for id, row in rows.items()
    }
    assert reasons["1.t1"] == ""
    assert "not at least 3% faster than" in reasons["2.t1"]
    assert "not at least 3% faster than" in reasons["3.96.t1"]
    assert "its outputs differ from the source's: cosine" in reasons["1.5.fail-wrong.t1"]
    assert "was ended by SIGSEGV" in reasons["1.5.fail-crash.t1"]
    assert "the device was lost" in reasons["1.5.fail-raise.t1"]
    best = rows[made.id]
    # 4 ms beside 1 ms; where five processes share two cores, what is waited for comes to both.
    assert best["speedup"]["low"] > 1 and best["cosine"] == 1.0
    (decision,) = (note for note in outcome.notes if note.kind == "decision")
    assert decision.subject == made.id and "times as fast as the source" in decision.message
    assert any(event.kind == "decision" and made.id in event.message for event in events)
    assert [p.name for p in (tmp_path / "work").iterdir()] == [made.id]  # nothing else is left


def test_a_source_that_nothing_beats_goes_on_as_it_is(
    run_context, exported_of, timed: str, tmp_path: Path
) -> None:
    context = run_context(runtime=timed)
    slower = [{"runtime": timed, "options": {"busy_ms": "12"}}]  # three times the source
    outcome = compiled(context, exported_of(context), tmp_path / "work", candidates=slower)
    assert outcome.artifacts == ()
    assert [n.message for n in outcome.notes if n.kind == "decision"] == [
        "nothing is faster than the source and still right: it goes on as it is"
    ]


@pytest.fixture
def every_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that INT8 with all 256 levels is right on, whatever this one is."""
    facts = {**Local().facts(), "flags": ["avx2", "avx512_vnni"]}
    monkeypatch.setattr(Local, "facts", lambda self: facts)


def arbiter_of(context, source, baseline, folder: Path, max_drop: str | None = None) -> Arbiter:
    wanted = [
        Wanted(runtime="onnxruntime", precision="fp32"),
        Wanted(runtime="onnxruntime", precision="int8", scheme="s8s8"),
    ]
    drop = None if max_drop is None else Quantity.parse(max_drop, "points")
    terms = Terms(wanted, (2,), Quantity.parse("1 min", "time"), drop, None)
    return Arbiter(terms, {"onnx": source}, baseline, folder, context)


def test_the_allowance_is_its_own_or_what_is_left_of_the_gates(
    run_context, exported_of, tmp_path: Path
) -> None:
    from deploycompress.devices.jobs import Candidate, open_device
    from deploycompress.graph.arbiter.checking import Checker

    context = run_context()
    source = exported_of(context)
    candidate = Candidate("the source", source.main_file, "onnxruntime")
    checker = Checker(open_device("local"), candidate, context)
    gated = replace(context, gates={"accuracy": AccuracyGate(max_drop="3 pp")})
    asked = [
        arbiter_of(of, source, source, tmp_path, drop)._allowance(checker, candidate)
        for of, drop in ((context, None), (gated, None), (gated, "2 pp"))
    ]
    assert asked == [(0.01, ()), (0.03, ()), (0.02, ())]
    # A baseline that is better than the source by more than the gate allows.
    better = replace(checker.source, metrics={"accuracy": checker.source.metrics["accuracy"] - 0.5})
    checker.source = better
    other = replace(source, sha256="other")
    left, (note,) = arbiter_of(gated, source, other, tmp_path)._allowance(checker, candidate)
    assert left == 0.0 and note.kind == "warning"
    assert "has already lost 0.5 of the 3 pp that the accuracy gate allows" in note.message


def test_what_loses_more_than_is_allowed_is_dropped(
    run_context, exported_of, tmp_path: Path, every_scheme: None
) -> None:
    class Loses:
        """A checker whose candidate is two points worse."""

        def check(self, candidate: object, deadline_s: float, batch: int | None) -> Checked:
            return Checked(Parity(0.1, 0.1, 0.99, 1.0), Evaluation({"accuracy": 0.9}, None, {}, 180), 0.02)

    context = run_context()
    source = exported_of(context)
    arbiter = arbiter_of(context, source, source, tmp_path)
    reasons = {}
    for allowed in (0.03, 0.01, None):
        entry = arbiter.entries[1]
        entry.reason, entry.built = "", Built(source.main_file, "onnx")
        arbiter._check(entry, Loses(), allowed)  # type: ignore[arg-type]
        reasons[allowed] = entry.reason
    assert reasons == {
        0.03: "",
        None: "",
        0.01: "dropped: it loses 0.02 of accuracy on 180 validation samples, and may lose 0.01",
    }


def test_what_is_small_enough_comes_first(
    run_context, exported_of, tmp_path: Path, every_scheme: None
) -> None:
    """Although it is slower: the gate on the size would fail with the other."""
    context = replace(run_context(), gates={"artifact_size": SizeGate(max="1 KB")})
    source = exported_of(context)
    arbiter = arbiter_of(context, source, source, tmp_path)
    raced = {}
    for entry, size, speed, lost in zip(arbiter.entries, (2000, 500), (2.0, 1.5), (0.01, 0.0), strict=True):
        path = tmp_path / entry.id(2)
        path.write_bytes(b"0" * size)
        entry.built = Built(path, "onnx")
        parity = Parity(0.0, 0.0, 1.0 - lost, None)
        entry.checked = Checked(parity, Evaluation({}, None, {}, 1), lost)
        raced[entry.id(2)] = Raced(1.0, Speedup(speed, speed, speed))
    kept, refused = arbiter._choose(raced)
    assert kept == ["onnxruntime-int8-s8s8.t2", "onnxruntime-fp32.t2"] and not refused
    # The same of the memory, as a share of the source's and in bytes.
    for gate, first in (
        (SizeGate(max_ratio="80%"), "onnxruntime-int8-s8s8.t2"),
        (SizeGate(max="600 B"), "onnxruntime-int8-s8s8.t2"),
        (SizeGate(max="1 KB"), "onnxruntime-fp32.t2"),
    ):
        arbiter._context = replace(context, gates={"peak_memory": gate})
        shares = dict(zip(raced, ((0.9, 900), (0.5, 500)), strict=True))
        used = {
            id: replace(of, peak_memory=shares[id][0], peak_memory_bytes=shares[id][1])
            for id, of in raced.items()
        }
        assert arbiter._choose(used)[0][0] == first


def test_one_file_that_is_run_in_two_ways_is_built_once(
    run_context, exported_of, tmp_path: Path, monkeypatch
) -> None:
    context = run_context()
    source = exported_of(context)
    wanted = [Wanted(runtime="openvino", precision=precision) for precision in ("bf16", "fp32")]
    terms = Terms(wanted, (1,), Quantity.parse("1 min", "time"), None, None)
    facts = {**Local().facts(), "flags": ["avx512_bf16", "avx512_vnni"]}
    monkeypatch.setattr(Local, "facts", lambda self: facts)
    arbiter = Arbiter(terms, {"onnx": source}, source, tmp_path, context)
    assert [entry.recipe.name for entry in arbiter.entries] == ["openvino/bf16", "openvino/fp32"]
    (tmp_path / "calibration").mkdir()
    for number, entry in enumerate(arbiter.entries):
        arbiter._build(entry, tmp_path / str(number), tmp_path / "calibration")
    first, second = (entry.built for entry in arbiter.entries)
    assert first is not None and first == second and not (tmp_path / "1").exists()


def test_the_budget_bounds_it_and_the_best_so_far_is_delivered(
    run_context, exported_of, timed: str, tmp_path: Path
) -> None:
    context = run_context(runtime=timed)
    candidates = [{"runtime": timed, "options": {"busy_ms": "1"}}, {"runtime": "openvino"}]
    outcome = compiled(
        context, exported_of(context), tmp_path / "work", candidates=candidates, budget="10 ms"
    )
    assert outcome.artifacts == ()
    skipped = [n.message for n in outcome.notes if n.kind == "skipped"]
    assert skipped and all("the budget of 10 ms was used up" in message for message in skipped)


def test_what_is_not_there_is_refused_before_anything_runs(run_context, monkeypatch) -> None:
    def refusal(**wanted: str) -> None:
        Compile(Compile.Config.model_validate({"candidates": [wanted]})).requires(run_context())

    with pytest.raises(
        ConfigError,
        match=r"compile: openvino has no recipe for fp16 .* it has .*openvino/int8, .*openvino/fp32",
    ):
        refusal(runtime="openvino", precision="fp16")
    monkeypatch.setattr("deploycompress.runtimes.openvino.OpenVino.missing", lambda self: "install it")
    with pytest.raises(EnvironmentMissing, match="compile: openvino cannot run here: install it"):
        refusal(runtime="openvino")


def test_what_runs_nowhere_else_is_not_built_for_another_device() -> None:
    from deploycompress.graph.arbiter.entries import missing

    assert missing("pytorch", "local") is None and missing("onnxruntime", "board") is None
    assert missing("pytorch", "board") == "what is built for it here does not run on board"
    assert missing("tensorrt", "board") == "what is built for it here does not run on board"


def test_the_rehearsal_builds_nothing(run_context, exported_of, tmp_path: Path) -> None:
    context = run_context(rehearsal=True)
    outcome = compiled(context, exported_of(context), tmp_path / "work")
    assert outcome.artifacts == () and not list((tmp_path / "work").iterdir())


@pytest.mark.nightly
def test_a_network_is_tried_where_the_target_runs_networks_and_nothing_else_is_there(
    run_context, checkpoint_of, monkeypatch, tmp_path: Path
) -> None:
    context = run_context(runtime="pytorch")
    source = checkpoint_of(context)
    brief = Plan(blocks=2, block_ms=5.0, warmup_ms=5.0, least_samples=4, enough_samples=20)
    monkeypatch.setattr(racing, "FIRST", brief)
    monkeypatch.setattr(racing, "FINAL", brief)
    monkeypatch.setattr("deploycompress.graph.compilers.pytorch.BF16_X86", set())
    stage = Compile(Compile.Config(threads=(1,)))
    (tmp_path / "work").mkdir()
    outcome = stage.run({"source": (source,), "baseline": (source,)}, tmp_path / "work", context)
    (row,) = outcome.details["candidates"]  # eager, it is the source itself
    assert row["id"] == "pytorch-fp32-compiled.t1" and row["cosine"] > 0.9999
    for made in outcome.artifacts:
        assert made.kind == "checkpoint" and (made.path / "architecture.json").is_file()
        assert made.details["options"] == {"computes_in": "fp32", "compiled": True}


@pytest.mark.nightly
def test_a_network_beside_onnx_files_where_it_is_named(
    run_context, checkpoint_of, exported_of, timed: str, tmp_path: Path
) -> None:
    context = run_context(runtime=timed)
    wanted = [{"runtime": "pytorch", "precision": "fp32", "options": {"compiled": False}}]
    stage = Compile(Compile.Config.model_validate({"threads": [1], "candidates": wanted}))
    source, network = exported_of(context), checkpoint_of(context)
    for given, made in (((network,), 1), ((), 0)):
        workdir = tmp_path / f"work{made}"
        workdir.mkdir()
        inputs = {"source": (source,), "baseline": (source,), "network": given}
        outcome = stage.run(inputs, workdir, context)
        assert [a.kind for a in outcome.artifacts] == ["checkpoint"] * made  # 4 ms beside far less
    reasons = {row["reason"] for row in outcome.details["candidates"]}
    assert reasons == {"not built: it is made from an artefact of kind checkpoint, and there is none here"}


def test_what_it_may_make_depends_on_what_it_tries() -> None:
    from deploycompress.config.schema import TargetConfig

    named = Compile(Compile.Config.model_validate({"candidates": [{"runtime": "pytorch"}]}))
    assert "checkpoint" not in Compile(Compile.Config()).makes(TargetConfig())
    assert "checkpoint" in named.makes(TargetConfig())
    assert "checkpoint" in Compile(Compile.Config()).makes(TargetConfig(runtime="pytorch"))


def test_its_source_is_what_it_was_given_and_not_what_lies_beside_the_network(
    run_context, checkpoint_of, exported_of, tmp_path: Path, monkeypatch
) -> None:
    """A compile before it may have kept ONNX files of its own."""
    from deploycompress.graph.arbiter import decision

    seen: list[dict[str, str]] = []

    class Looks:
        def __init__(self, terms, sources, *more) -> None:
            seen.append({kind: source.id for kind, source in sources.items()})

        def decide(self, workdir):
            return None

    monkeypatch.setattr(decision, "Arbiter", Looks)
    context = run_context()
    source = replace(exported_of(context), id="given")
    beside = (replace(source, id="slow"), replace(checkpoint_of(context), id="network"))
    Compile(Compile.Config()).run(
        {"source": (source,), "baseline": (source,), "network": beside}, tmp_path, context
    )
    assert seen == [{"checkpoint": "network", "onnx": "given"}]
