"""Each gate on both sides of its limit, and the choice of the artefact it is judged on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploycompress.artifact import Artifact, FileRecord
from deploycompress.config.quantities import Quantity
from deploycompress.config.schema import (
    AccuracyGate,
    EnergyGate,
    Gate,
    LatencyGate,
    PlacementGate,
    SizeGate,
    TargetConfig,
    ThroughputGate,
)
from deploycompress.contracts import MetricInfo
from deploycompress.measure.measurement import SMEARED, Latency, Measurement, Speedup
from deploycompress.report.gates import Best, Judgement, judge
from deploycompress.report.verdict import Verdict

ACCURACY = MetricInfo("accuracy", True, "share")
TARGET = TargetConfig(threads=2)


def artifact(id: str, size: int = 1000) -> Artifact:
    path = Path(f"{id}.onnx")
    return Artifact(id, "onnx", path, "0" * 64, size, (FileRecord(path.name, "0" * 64, size),))


def row(
    id: str, p50: float = 1.0, speedup: tuple[float, float, float] | None = None, **more: Any
) -> Measurement:
    figures = {"p90": 1.1 * p50, "p99": None, "mean": p50, "samples": 512} | more.pop("latency", {})
    settings = {"runtime": "onnxruntime", "device": "local", "provider": "cpu", "precision": "fp32"}
    return Measurement(
        **{"artifact": id, **settings, "threads": 2, "batch_size": 1, "metrics": {"accuracy": 0.99}, **more},
        latency_ms=Latency(p50=p50, seconds=1.0, **figures),
        speedup=None if speedup is None else Speedup(*speedup),
    )


def right(wrong: Sequence[int] = (), samples: int = 600) -> list[float]:
    return [0.0 if i in wrong else 1.0 for i in range(samples)]


def judged(
    gates: Mapping[str, Gate],
    rows: Sequence[Measurement],
    sizes: Mapping[str, int] | None = None,
    scores: Mapping[str, Sequence[float]] | None = None,
    primary: MetricInfo = ACCURACY,
    **more: Any,
) -> Judgement:
    ids = {"baseline": 1000, "small": 250} | dict(sizes or {})
    artifacts = [artifact(id, size) for id, size in ids.items()]
    return judge(gates, artifacts, rows, scores or {}, "baseline", primary, TARGET, **more)


def only(gates: Mapping[str, Gate], rows: Sequence[Measurement] | None = None, **more: Any) -> Verdict:
    rows = rows or [row("baseline", 1.0), row("small", 0.25, (4.0, 3.8, 4.2))]
    (verdict,) = judged(gates, rows, **more).verdicts
    return verdict


def amount(text: str) -> Quantity:
    return Quantity.parse(text, "points", "percent", "time", "bytes", "energy", "number")


# ---------------------------------------------------------------- accuracy


@pytest.mark.parametrize(
    ("wrong", "allowed", "expected", "message"),
    [
        (
            range(0),
            "1 pp",
            "pass",
            "dropped by 0.00 pp on 600 samples (95 % interval of the drop −0.64 pp to 0.64 pp)",
        ),
        (range(30), "1 pp", "fail", "dropped by 5.00 pp"),
        (range(4), "1 pp", "inconclusive", "cannot be resolved with 600 samples, about "),
        (range(6), "1 pp", "inconclusive", "no number of them would, as the drop equals the limit"),
    ],
)
def test_accuracy_drop_is_judged_on_its_interval(
    wrong: range, allowed: str, expected: str, message: str
) -> None:
    gate = AccuracyGate(max_drop=amount(allowed))
    verdict = only({"accuracy": gate}, scores={"baseline": right(), "small": right(wrong)})
    assert verdict.verdict == expected
    assert message in verdict.message
    assert verdict.value == pytest.approx(len(wrong) / 600)
    assert verdict.low is not None and verdict.high is not None
    assert verdict.low <= verdict.value <= verdict.high
    assert (verdict.limit, verdict.unit, verdict.bound) == (pytest.approx(0.01), "points", "max_drop")


def test_the_same_drop_over_other_samples_is_less_certain() -> None:
    """Paired: samples that only one of the two gets right are what the interval is made of."""
    gate = {"accuracy": AccuracyGate(max_drop=amount("2 pp"))}
    overlapping = only(gate, scores={"baseline": right(range(30)), "small": right(range(34))})
    apart = only(gate, scores={"baseline": right(range(30)), "small": right(range(100, 134))})
    assert overlapping.value == pytest.approx(apart.value or 0)
    assert (overlapping.verdict, apart.verdict) == ("pass", "inconclusive")


def test_metrics_that_are_better_the_lower_they_are_get_worse_by_a_rise() -> None:
    error = MetricInfo("error", False, "share")
    rows = [row("baseline", metrics={"error": 0.0}), row("small", 0.5, (2, 2, 2), metrics={"error": 0.1})]
    gate = {"accuracy": AccuracyGate(max_rise=amount("1 pp"))}
    worse = {"baseline": [0.0] * 600, "small": [1.0] * 60 + [0.0] * 540}
    verdict = only(gate, rows, scores=worse, primary=error)
    assert (verdict.verdict, verdict.value, verdict.bound) == ("fail", pytest.approx(0.1), "max_rise")
    on_the_limit = only(
        gate, rows, scores={"baseline": worse["baseline"], "small": [1.0] * 6 + [0.0] * 594}, primary=error
    )
    assert "no number of them would, as the rise equals the limit" in on_the_limit.message


def test_what_nothing_is_known_of_gets_worse_as_its_gate_says() -> None:
    rows = [row("baseline", metrics={"own": 1.0}), row("small", 0.5, (2, 2, 2), metrics={"own": 1.5})]
    rise = only({"metric:own": AccuracyGate(max_rise=amount("0.2"))}, rows)
    assert (rise.verdict, rise.bound, rise.value) == ("fail", "max_rise", pytest.approx(0.5))
    drop = only({"metric:own": AccuracyGate(max_drop=amount("0.2"))}, rows)
    assert (drop.verdict, drop.bound, drop.value) == ("pass", "max_drop", pytest.approx(-0.5))


def test_a_lower_is_better_metric_that_is_worse_has_risen() -> None:
    mae = MetricInfo("mae", False, "")
    rows = [row("baseline", metrics={"mae": 1.0}), row("small", 0.5, (2, 2, 2), metrics={"mae": 1.5})]
    gate = {"accuracy": AccuracyGate(max_rise=amount("0.2"))}
    plain = only(gate, rows, primary=mae)
    assert (plain.verdict, plain.value) == ("fail", pytest.approx(0.5))
    assert plain.message.startswith("mae rose by 0.500; compared as two plain figures")
    paired = only(gate, rows, primary=mae, scores={"baseline": [1.0] * 300, "small": [1.5, 1.6, 1.4] * 100})
    assert (
        paired.verdict == "fail"
        and "rose by 0.500 on 300 samples (95 % interval of the rise" in paired.message
    )


def test_another_metric_is_judged_the_way_it_is_better() -> None:
    figures = {"wer": MetricInfo("wer", False, "share")}
    rows = [row("baseline", metrics={"wer": 0.10}), row("small", 0.5, (2, 2, 2), metrics={"wer": 0.13})]
    gate = {"metric:wer": AccuracyGate(max_rise=amount("2 pp"))}
    verdict = only(gate, rows, figures=figures)
    assert (verdict.verdict, verdict.value, verdict.unit) == ("fail", pytest.approx(0.03), "points")
    assert verdict.message.startswith(
        "wer rose by 3.00 pp; compared as two plain figures, since wer has no score"
    )


def test_a_metric_under_a_corruption_is_judged_sample_by_sample() -> None:
    name = "accuracy_noise"
    rows = [row("baseline", metrics={name: 1.0}), row("small", 0.5, (2, 2, 2), metrics={name: 0.95})]
    scores = {"baseline": {name: right()}, "small": {name: right(range(30))}}
    gate = {f"metric:{name}": AccuracyGate(max_drop=amount("2 pp"))}
    figures = {name: MetricInfo(name, True, "share")}
    verdict = only(gate, rows, figures=figures, other_scores=scores)
    assert verdict.verdict == "fail" and "on 600 samples (95 % interval of the drop" in verdict.message


def test_a_figure_of_one_class_can_be_guarded() -> None:
    by_class = {"baseline": {"recall": {"3": 0.9, "4": 0.5}}, "small": {"recall": {"3": 0.7, "4": 0.5}}}
    figures = {"recall": MetricInfo("recall", True, "share")}
    gate = {"metric:recall.3": AccuracyGate(max_drop=amount("5 pp"))}
    verdict = only(gate, by_class=by_class, figures=figures)
    assert (verdict.verdict, verdict.value) == ("fail", pytest.approx(0.2))
    other = only(
        {"metric:recall.4": AccuracyGate(max_drop=amount("5 pp"))}, by_class=by_class, figures=figures
    )
    assert other.verdict == "pass"
    missing = only({"metric:recall.7": AccuracyGate(min=amount("5%"))}, by_class=by_class, figures=figures)
    assert missing.verdict == "fail" and "no recall.7 was measured" in missing.message


def test_scores_of_other_samples_fail_with_their_counts() -> None:
    verdict = only(
        {"accuracy": AccuracyGate(max_drop=amount("1 pp"))},
        scores={"baseline": right(), "small": right(samples=599)},
    )
    assert verdict.verdict == "fail"
    assert verdict.message == "600 scores of the baseline against 599: not the same samples"


def test_a_rise_is_called_one() -> None:
    gate = {"accuracy": AccuracyGate(max_drop=amount("1 pp"))}
    verdict = only(gate, scores={"baseline": right(range(12)), "small": right()})
    assert verdict.verdict == "pass"
    assert verdict.message.startswith("rose by 2.00 pp on 600 samples")


def test_without_scores_two_figures_are_compared_and_it_says_so() -> None:
    rows = [row("baseline", metrics={"accuracy": 0.99}), row("small", metrics={"accuracy": 0.97})]
    verdict = only({"accuracy": AccuracyGate(max_drop=amount("1 pp"))}, rows)
    assert (verdict.verdict, verdict.value) == ("fail", pytest.approx(0.02))
    assert "no score for each sample" in verdict.message


@pytest.mark.parametrize(("level", "expected"), [("98%", "pass"), ("99.5%", "fail")])
def test_accuracy_level(level: str, expected: str) -> None:
    verdict = only({"accuracy": AccuracyGate(min=amount(level))})
    assert (verdict.verdict, verdict.message) == (expected, "accuracy is 99.00 %")


def test_a_metric_by_name() -> None:
    metrics = {"accuracy": 0.9, "loss": 0.4}
    rows = [row("baseline", metrics=metrics), row("small", metrics=metrics)]
    assert only({"metric:loss": AccuracyGate(max=amount("0.3"))}, rows).verdict == "fail"
    assert only({"metric:loss": AccuracyGate(max=amount("0.5"))}, rows).verdict == "pass"
    missing = only({"metric:f1": AccuracyGate(min=amount("50%"))}, rows)
    assert missing.verdict == "fail"
    assert missing.message == "no f1 was measured on the test split"


def test_worst_class_names_the_class_that_lost_most() -> None:
    per_class = {"baseline": {"cat": 0.9, "dog": 0.8}, "small": {"cat": 0.7, "dog": 0.79}}
    gate = {"worst_class": AccuracyGate(max_drop=amount("5 pp"), min=amount("60%"))}
    rows = [row("baseline"), row("small")]
    drop, level = judged(gate, rows, per_class=per_class).verdicts
    assert (drop.verdict, drop.message) == ("fail", "class cat lost most: 20.00 pp")
    assert (level.verdict, level.message) == ("pass", "class cat is 70.00 %")
    assert judged(gate, rows).verdicts[0].message == "no figure for each class"


# ---------------------------------------------------------------- speed


@pytest.mark.parametrize(
    ("limit", "expected"), [(3.8, "pass"), (4.3, "fail"), (4.0, "inconclusive"), (4.2, "inconclusive")]
)
def test_speedup_is_judged_on_its_interval(limit: float, expected: str) -> None:
    verdict = only({"latency_p50": LatencyGate(min_speedup=limit)})
    assert verdict.verdict == expected
    assert (verdict.value, verdict.low, verdict.high) == (4.0, 3.8, 4.2)
    assert ("a longer measurement is needed" in verdict.message) == (expected == "inconclusive")


@pytest.mark.parametrize(("limit", "expected"), [("0.25 ms", "pass"), ("200 us", "fail")])
def test_absolute_latency(limit: str, expected: str) -> None:
    verdict = only({"latency_p50": LatencyGate(max=amount(limit))})
    assert (verdict.verdict, verdict.message) == (expected, "p50 is 0.250 ms over 512 samples")


def test_a_percentile_that_too_few_samples_support_is_inconclusive() -> None:
    verdict = only({"latency_p99": LatencyGate(max=amount("1 ms"))})
    assert (verdict.verdict, verdict.value) == ("inconclusive", None)
    assert verdict.message == "p99 needs at least 662 samples; 512 were measured"


def test_p90_speedup_is_the_ratio_of_the_two() -> None:
    verdict = only({"latency_p90": LatencyGate(min_speedup=3.9)})
    assert (verdict.verdict, verdict.value) == ("pass", pytest.approx(4.0))


@pytest.mark.parametrize(
    ("limit", "verdict"), [(1.2, "pass"), (1.06, "inconclusive"), (1.0, "inconclusive"), (0.8, "fail")]
)
def test_an_absolute_limit_within_the_interval_is_not_decided(limit: float, verdict: str) -> None:
    """1 ms, from 0.97 to 1.05 ms; and 2 % more each way, by which the baseline differed from itself."""
    gate = LatencyGate(max=amount(f"{limit} ms"))
    interval = {"p50": (0.97, 1.05)}
    small = row("small", 1.0, (4.0, 3.8, 4.2), intervals=interval, noise_floor=0.02)
    found = only({"latency_p50": gate}, [row("baseline", 4.0), small])
    assert (found.verdict, found.low, found.high) == (verdict, 0.97, 1.05)
    assert ("a longer measurement is needed" in found.message) == (verdict == "inconclusive")


def test_tails_and_throughput_are_weighed_by_their_intervals() -> None:
    small = row(
        "small",
        1.0,
        (4.0, 3.8, 4.2),
        ratios={"p90": Speedup(3.0, 2.6, 3.4)},
        intervals={"mean": (0.9, 1.1)},
    )
    rows = [row("baseline", 4.0), small]
    for limit, verdict in ((2.5, "pass"), (3.0, "inconclusive"), (3.5, "fail")):
        found = only({"latency_p90": LatencyGate(min_speedup=limit)}, rows)
        assert (found.verdict, found.value) == (verdict, 3.0), "in the same job, and not of two rows"
    for rate, verdict in ((900, "pass"), (1000, "inconclusive"), (1200, "fail")):
        found = only({"throughput": ThroughputGate(min=rate)}, rows)
        assert found.verdict == verdict and found.value == pytest.approx(1000)


def test_the_energy_of_a_gpu_in_short_blocks_is_not_told() -> None:
    note = f"{SMEARED}: its counter stands still"
    gate = EnergyGate(max_ratio=amount("50%"))
    rows = [row("baseline", notes=(note,)), row("small", 0.25, (4.0, 3.8, 4.2), notes=(note,))]
    found = only({"energy": gate}, rows)
    assert found.verdict == "inconclusive" and found.message == note
    told = {"energy_of": ("gpu-0",)}
    rows = [row("baseline", energy_mj=9.0, **told)]
    rows.append(row("small", 0.25, (4.0, 3.8, 4.2), energy_mj=5.0, energy_ratio=0.4, **told))
    assert only({"energy": gate}, rows).value == 0.4, "beside the baseline in its own job"


def test_what_others_disturbed_decides_nothing() -> None:
    told = "9 of 20 rounds were disturbed (9 throttled by the control group), too many to leave out"
    rows = [
        row("baseline"),
        row("small", 0.25, (4.0, 3.8, 4.2), disturbed=True, notes=(told,), energy_mj=1.0),
    ]
    for gate in (
        {"latency_p50": LatencyGate(min_speedup=2.0)},
        {"latency_p50": LatencyGate(max=amount("1 ms"))},
        {"latency_p90": LatencyGate(min_speedup=9.0)},
        {"throughput": ThroughputGate(min=1)},
        {"energy": EnergyGate(max=amount("2 mJ"))},
    ):
        verdict = only(gate, rows)
        assert verdict.verdict == "inconclusive" and verdict.value is not None
        assert "9 throttled by the control group" in verdict.message
        assert verdict.message.endswith("measure again when less else runs on local")


@pytest.mark.parametrize(("floor", "expected"), [(0.0, "pass"), (0.01, "pass"), (0.05, "inconclusive")])
def test_the_noise_floor_is_a_part_of_the_interval(floor: float, expected: str) -> None:
    rows = [row("baseline"), row("small", 0.25, (4.0, 3.8, 4.2), noise_floor=floor)]
    verdict = only({"latency_p50": LatencyGate(min_speedup=3.7)}, rows)
    assert verdict.verdict == expected
    assert ("with the noise floor of 5.00 %" in verdict.message) == (expected == "inconclusive")
    limit = LatencyGate(min_speedup=4.3)
    assert only({"latency_p50": limit}, rows).verdict == ("inconclusive" if floor == 0.05 else "fail")


@pytest.mark.parametrize(
    ("samples", "seconds", "limit", "expected"),
    [
        (1024, 60.0, "1 ms", "pass"),
        (1023, 60.0, "1 ms", "inconclusive"),
        (9000, 59.9, "1 ms", "inconclusive"),
        (9000, 2.0, "100 us", "fail"),
    ],
)
def test_a_p99_passes_only_when_it_was_measured_for_long(
    samples: int, seconds: float, limit: str, expected: str
) -> None:
    long = replace(row("small"), latency_ms=Latency(0.25, 0.3, 0.4, 0.25, samples, seconds))
    verdict = only({"latency_p99": LatencyGate(max=amount(limit))}, [row("baseline"), long])
    assert (verdict.verdict, verdict.value) == (expected, 0.4)
    assert ("take `benchmark: {mode: full}`" in verdict.message) == (expected == "inconclusive")


def test_energy() -> None:
    counted = {"energy_of": ("package-0",)}
    rows = [row("baseline", energy_mj=8.0, **counted), row("small", energy_mj=2.0, **counted)]
    assert only({"energy": EnergyGate(max=amount("2 mJ"))}, rows).verdict == "pass"
    assert only({"energy": EnergyGate(max=amount("1999 uJ"))}, rows).verdict == "fail"
    verdict = only({"energy": EnergyGate(max_ratio=amount("25%"))}, rows)
    assert (verdict.verdict, verdict.value, verdict.unit) == ("pass", 0.25, "ratio")
    assert verdict.message == "2.00 mJ against 8.00 mJ an inference, of all that package-0 took"
    assert only({"energy": EnergyGate(max_ratio=amount("24%"))}, rows).verdict == "fail"


def test_energy_that_was_not_counted_alike_fails() -> None:
    elsewhere = [row("baseline", energy_mj=8.0, energy_of=("gpu-0",)), row("small", energy_mj=2.0)]
    verdict = only({"energy": EnergyGate(max_ratio=amount("25%"))}, elsewhere)
    assert (verdict.verdict, verdict.message) == ("fail", "the baseline has no energy to compare with")
    nothing = [row("baseline"), row("small")]
    verdict = only({"energy": EnergyGate(max=amount("2 mJ"))}, nothing)
    assert verdict.verdict == "fail" and "no counter of energy could be read" in verdict.message


def test_throughput() -> None:
    verdict = only({"throughput": ThroughputGate(min=4500)})
    assert (verdict.verdict, verdict.value) == ("fail", pytest.approx(4000))
    assert only({"throughput": ThroughputGate(min=3500)}).verdict == "pass"


# ---------------------------------------------------------------- bytes, absence, policy


@pytest.mark.parametrize(
    ("gate", "expected", "unit"),
    [
        (SizeGate(max_ratio=amount("25%")), "pass", "ratio"),
        (SizeGate(max_ratio=amount("24%")), "fail", "ratio"),
        (SizeGate(max=amount("250 B")), "pass", "bytes"),
        (SizeGate(max_ratio=amount("249 B")), "fail", "bytes"),
    ],
)
def test_artifact_size(gate: SizeGate, expected: str, unit: str) -> None:
    verdict = only({"artifact_size": gate})
    assert (verdict.verdict, verdict.unit) == (expected, unit)


def test_peak_memory() -> None:
    rows = [row("baseline", peak_memory_bytes=100), row("small", peak_memory_bytes=70)]
    assert only({"peak_memory": SizeGate(max_ratio=amount("70%"))}, rows).verdict == "pass"
    assert only({"peak_memory": SizeGate(max=amount("60 B"))}, rows).verdict == "fail"


@pytest.mark.parametrize(
    ("metric", "gate"),
    [
        ("packed_size", SizeGate(max_ratio=amount("50%"))),
        ("peak_memory", SizeGate(max_ratio=amount("50%"))),
    ],
)
def test_a_gate_whose_metric_is_absent_fails(metric: str, gate: Gate) -> None:
    verdict = only({metric: gate})
    assert verdict.verdict == "fail"
    assert verdict.message == f"nothing in this run measured {metric}"
    assert verdict.blocks


def test_warn_lets_only_the_inconclusive_through() -> None:
    straddles = {"latency_p50": LatencyGate(min_speedup=4.0, on_inconclusive="warn")}
    missed = {"latency_p50": LatencyGate(min_speedup=9.0, on_inconclusive="warn")}
    extended = {"latency_p50": LatencyGate(min_speedup=4.0, on_inconclusive="extend")}
    assert [only(g).blocks for g in (straddles, missed, extended)] == [False, True, True]
    assert only(straddles).only_warns and not only(missed).only_warns


def test_nothing_measured_at_the_target_fails_every_gate() -> None:
    gates = {"latency_p50": LatencyGate(max=amount("1 ms")), "artifact_size": SizeGate(max=amount("1 KB"))}
    found = judged(gates, [row("small", threads=1)])
    assert found.best is None
    assert [v.verdict for v in found.verdicts] == ["fail", "fail"]
    assert found.verdicts[0].message == "no latency was measured at the target"


# ---------------------------------------------------------------- the best artefact


def choice(gates: Mapping[str, Gate], **more: Any) -> Best | None:
    """Between ``small`` and the faster ``int8``, which is larger and less accurate."""
    rows = [
        row("baseline", 1.0),
        row("small", 0.5, (2.0, 1.9, 2.1), metrics={"accuracy": 0.98}),
        row("int8", 0.2, (5.0, 4.9, 5.1), metrics={"accuracy": 0.97}),
    ]
    return judged(gates, rows, sizes={"int8": 800}, **more).best


def test_best_is_the_fastest_that_meets_every_gate_not_about_speed() -> None:
    assert choice({}) == Best("int8", "onnxruntime")
    assert choice({"artifact_size": SizeGate(max_ratio=amount("50%"))}) == Best("small", "onnxruntime")
    out_of_reach = {"latency_p50": LatencyGate(min_speedup=99.0)}
    assert choice(out_of_reach) == Best("int8", "onnxruntime")
    small_enough = {"artifact_size": SizeGate(max_ratio=amount("50%"))}
    assert choice(out_of_reach | small_enough) == Best("small", "onnxruntime")


def test_a_slower_artefact_that_meets_every_gate_is_better_than_a_faster_one_that_does_not() -> None:
    rows = [row("baseline"), row("small", 0.5), row("int8", 0.2, latency={"p90": 5.0})]
    gate = {"latency_p90": LatencyGate(max=amount("1 ms"))}
    assert judged(gate, rows, sizes={"int8": 10}).best == Best("small", "onnxruntime")


def test_best_falls_back_to_accuracy_then_to_doubt_then_to_the_most_accurate() -> None:
    size = {"artifact_size": SizeGate(max=amount("1 B"))}
    level = {"accuracy": AccuracyGate(min=amount("98%"))}
    assert choice(size | level) == Best("small", "onnxruntime")
    drop = {"accuracy": AccuracyGate(max_drop=amount("1 pp"))}
    doubt = {"baseline": right(), "small": right(range(4)), "int8": right(range(4))}
    assert choice(drop, scores=doubt) == Best("int8", "onnxruntime")
    assert choice({"accuracy": AccuracyGate(min=amount("99.9%"))}) == Best("small", "onnxruntime")


def test_the_baseline_is_best_only_where_nothing_else_was_measured() -> None:
    slower = [row("baseline", 1.0), row("small", 2.0, (0.5, 0.49, 0.51))]
    assert judged({}, slower).best == Best("small", "onnxruntime")
    alone = judged({"latency_p50": LatencyGate(min_speedup=1.5)}, [row("baseline", 1.0)])
    assert alone.best == Best("baseline", "onnxruntime")
    assert alone.verdicts[0].verdict == "fail"
    assert alone.verdicts[0].message == "nothing but the baseline was measured"


def test_only_rows_at_the_target_count() -> None:
    rows = [row("baseline"), row("small", 0.5, (2, 2, 2)), row("int8", 0.1, (9, 9, 9), runtime="openvino")]
    assert judged({}, rows, sizes={"int8": 10}).best == Best("small", "onnxruntime")


def test_an_engine_counts_in_the_one_runtime_that_opens_it() -> None:
    rows = [row("baseline"), row("engine", 0.1, (10, 9, 11), runtime="tensorrt", provider="cuda")]
    engine = replace(artifact("engine"), kind="engine", details={"runtime": "tensorrt"})
    found = judge({}, [artifact("baseline"), engine], rows, {}, "baseline", ACCURACY, TARGET)
    assert found.best == Best("engine", "tensorrt")


def test_the_fastest_is_told_by_the_paired_speedup_and_not_by_a_disturbed_p50() -> None:
    rows = [
        row("baseline", 1.0),
        row("small", 0.30, (3.4, 3.2, 3.6)),
        row("smaller", 0.35, (3.7, 3.5, 3.9)),  # its process met the busier moments, and so did the baseline
    ]
    best = judged({}, rows, {"smaller": 100}).best
    assert best == Best("smaller", "onnxruntime")


def operator(node: str, op: str, role: str = "", ms: float = 0.1) -> dict[str, Any]:
    return {"node": node, "op": op, "provider": "CPU", "precision": "fp32", "role": role, "ms": ms}


@pytest.mark.parametrize(
    ("allow", "expected", "value"),
    [
        ((), "fail", 2.0),
        (("fallback",), "fail", 1.0),
        (("reformat", "Resize"), "pass", 0.0),
        (("CPU",), "pass", 0.0),
    ],
)
def test_placement_counts_what_fell_back_or_only_reformats(
    allow: tuple[str, ...], expected: str, value: float
) -> None:
    rows = [
        operator("a", "Conv", ms=0.6),
        operator("b", "Resize", "fallback", 0.3),
        operator("c", "Cast", "reformat"),
    ]
    verdict = only({"placement": PlacementGate(allow=allow)}, placement={"small": rows})
    assert (verdict.verdict, verdict.value) == (expected, value)
    if value == 2.0:
        assert (
            "2 of 3 operators, 40.0 % of the time: Resize b (fallback, CPU), Cast c (reformat, CPU)"
            in verdict.message
        )
    unknown = only({"placement": PlacementGate(allow=allow)}, placement={"baseline": rows})
    assert unknown.verdict == "fail" and "does not tell where its operators run" in unknown.message


def test_a_package_is_held_against_the_file_that_it_spares() -> None:
    gate = {"packed_size": SizeGate(max_ratio=Quantity(0.25, "percent", "25%"))}
    held = replace(artifact("small", 250), sha256="1" * 64)
    package = replace(artifact("pack/package", 100), kind="package", details={"of": "1" * 64})
    rows = [row("baseline", 1.0), row("small", 0.25, (4.0, 3.8, 4.2))]
    found = judge(gate, [artifact("baseline"), held, package], rows, {}, "baseline", ACCURACY, TARGET)
    assert [(v.verdict, v.value) for v in found.verdicts] == [("pass", 0.1)]
    without = judge(gate, [artifact("baseline"), held], rows, {}, "baseline", ACCURACY, TARGET)
    assert [v.verdict for v in without.verdicts] == ["fail"]


def test_what_was_made_for_another_runtime_counts_there_and_against_the_target() -> None:
    """Twice as fast as the baseline there, three times as fast as the one that it replaces."""
    details = {"runtime": "openvino", "threads": 1}
    there = replace(artifact("small", 250), kind="openvino", details=details)
    gates = {"latency_p50": LatencyGate(min_speedup=2.5)}
    rows = [
        row("baseline", 1.0),
        row("baseline", 0.7, runtime="openvino"),
        row(
            "small",
            0.33,
            (2.0, 1.9, 2.1),
            runtime="openvino",
            threads=1,
            speedup_vs_target=Speedup(3.0, 2.9, 3.1),
        ),
    ]
    found = judge(gates, [artifact("baseline"), there], rows, {}, "baseline", ACCURACY, TARGET)
    assert found.best == Best("small", "openvino")
    assert [(v.verdict, v.value) for v in found.verdicts] == [("pass", 3.0)]
    elsewhere = [rows[0], replace(rows[2], threads=2)]  # with other threads than it was made for
    found = judge(gates, [artifact("baseline"), there], elsewhere, {}, "baseline", ACCURACY, TARGET)
    assert found.best == Best("baseline", "onnxruntime")


def test_a_row_with_one_thing_changed_is_never_the_targets() -> None:
    """Although it is in the runtime and with the threads that the artefact was made for."""
    made = replace(artifact("small", 250), details={"runtime": "onnxruntime", "threads": 1})
    gates = {"latency_p50": LatencyGate(min_speedup=1.5)}
    here = row("small", 0.9, (1.11, 1.1, 1.12), threads=1)
    elsewhere = row(
        "small", 0.9, (2.0, 1.9, 2.1), threads=1, at_target=False
    )  # beside the baseline with one thread
    for rows in ([here, elsewhere], [elsewhere, here]):
        found = judge(
            gates, [artifact("baseline"), made], [row("baseline"), *rows], {}, "baseline", ACCURACY, TARGET
        )
        assert [(v.verdict, v.value) for v in found.verdicts] == [("fail", 1.11)]


@pytest.mark.parametrize(
    ("metric", "gate"),
    [
        ("latency_p50", LatencyGate(max=Quantity.parse("9 s", "time"))),
        ("latency_p50", LatencyGate(min_speedup=1.1)),
        ("latency_p99", LatencyGate(max=Quantity.parse("9 s", "time"))),
        ("throughput", ThroughputGate(min=0.1)),
    ],
)
def test_times_of_an_emulated_device_decide_nothing(metric: str, gate: Gate) -> None:
    """Though every one of these limits is met by what was measured."""
    rows = [row("baseline", 1.0, emulated=True), row("small", 0.25, (4.0, 3.8, 4.2), emulated=True)]
    verdict = only({metric: gate}, rows)
    assert verdict.verdict == "inconclusive" and verdict.blocks and verdict.value is None
    assert (
        verdict.message == "the device is emulated, so no time measured on it counts; measure on a real one"
    )
