"""Compares two runs, or two artefacts: measured anew side by side where they can be, else as their reports have it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from deploycompress.commands.comparison import (
    Comparison,
    Line,
    metric_line,
    plain_line,
    speed_lines,
    worst_class_line,
)
from deploycompress.commands.finished_run import Run, finished_run
from deploycompress.commands.fresh_gates import all_gates
from deploycompress.commands.given import Given, open_given
from deploycompress.commands.measuring import How, candidate_of, checked_there, how_of
from deploycompress.commands.random_inputs import Wanted, feed_for
from deploycompress.commands.recorded import apart, away, device_of, recorded_lines
from deploycompress.commands.side_by_side import FEWEST_ALIKE, SideBySide, cosines, distinct, side_by_side
from deploycompress.config.devices import LOCAL
from deploycompress.contracts import Device
from deploycompress.devices.jobs import Candidate, Progress
from deploycompress.errors import ConfigError
from deploycompress.measure.environment import environment
from deploycompress.measure.machines import versions_apart
from deploycompress.measure.plan import MODES, Mode
from deploycompress.report.figures import plural
from deploycompress.report.speed import undecided
from deploycompress.report.verdict import Verdict

Inputs = Mapping[str, Wanted]
# Of one process each: metric, its unit, and what a measurement calls it.
ONE_EACH = (
    ("peak_memory", "bytes", "peak_memory_bytes"),
    ("gpu_memory", "bytes", "gpu_memory_bytes"),
    ("energy", "mJ", "energy_mj"),
    ("load", "ms", "load_ms"),
)
COUNTED = ("gpu_memory", "energy")  # where there is something that counts it


def compare_artefacts(
    base: Path,
    head: Path,
    how: How,
    wanted: Inputs,
    batch_size: int | None,
    mode: Mode,
    device: Device,
    progress: Progress,
) -> Comparison:
    """Two files, measured side by side on one machine. Raises as ``benchmarking.benchmark`` does."""
    names = distinct([str(base), str(head)])
    givens = (open_given(base, names[0]), open_given(head, names[1]))
    candidates = [candidate_of(given, how, device) for given in givens]
    feed, notes = feed_for(givens, wanted, batch_size)
    notes = [*notes, *checked_there(device, candidates, feed, progress)]
    found = side_by_side(device, candidates, feed, MODES[mode], progress, again=True)
    alike = cosines(device, candidates, feed, lambda done, message: progress(1.0, "comparing the outputs"))
    lines = _measured_lines(found, _same(givens, candidates))
    lines.append(plain_line("artifact_size", "bytes", *(given.bytes for given in givens)))
    notes = [*notes, *_on_outputs(alike), *_on_rows(found)]
    return Comparison(str(base), str(head), tuple(lines), tuple(notes), True, _environment(device))


def compare_runs(
    base_dir: Path,
    head_dir: Path,
    wanted: Inputs,
    mode: Mode,
    progress: Progress,
    *,
    measure: bool,
    reach: Callable[[str], Device | None],
) -> Comparison:
    """The best artefacts of two runs, and HEAD's gates.

    With ``measure`` they are measured anew where the machine of both runs is at hand: ``reach`` gives a device by its
    name, or None where nobody but the run has said how it is reached. Raises ConfigError where a directory holds no
    finished run, or files or gates that cannot be read.
    """
    base, head = finished_run(base_dir), finished_run(head_dir)
    limits = head.gates()
    here = environment()
    primary = head.report.primary
    if primary.name != base.report.primary.name:
        raise ConfigError(
            f"{base.name} is judged by {base.report.primary.name} and {head.name} by {primary.name}; "
            "runs of different tasks cannot be compared"
        )
    scores = (
        (base.scores, head.scores)
        if base.scores
        and head.scores
        and base.judged_on == head.judged_on
        and len(base.scores) == len(head.scores)
        else None
    )
    lines = [metric_line(primary.name, primary, (base.metric, head.metric), scores)]
    worst = worst_class_line(head.report.figures.get("worst_class", primary), base.per_class, head.per_class)
    lines += [worst] if worst else []
    reason = apart(base, head)
    why_not = reason or ("" if measure else "--no-measure was given")
    device = None if why_not else reach(device_of(head))
    why_not = why_not or away(head, device)
    row = None
    if why_not or device is None:
        lines += recorded_lines(base, head, reason)
        notes = [f"nothing was measured: {why_not}"]
    else:
        givens, candidates, found, unchecked = _measure_runs(base, head, wanted, mode, device, progress)
        row = replace(found.rows[1].measurement, noise_floor=found.floor())
        lines += _measured_lines(found, _same(givens, candidates))
        notes = [*unchecked, *_on_versions(base, head, here), *_on_rows(found)]
    lines.append(plain_line("artifact_size", "bytes", base.best.bytes, head.best.bytes))
    if base.packed_bytes is not None or head.packed_bytes is not None:
        lines.append(plain_line("packed_size", "bytes", base.packed_bytes, head.packed_bytes))
    if base.report.data != head.report.data or (scores is None and base.judged_on != head.judged_on):
        notes.append("the two runs were not judged on the same test samples")
    notes += _on_targets(base, head)
    gates, told = all_gates(head, limits, row, wanted, mode, device, progress)
    return Comparison(
        base.name,
        head.name,
        _with_gates(lines, gates, base, head),
        (*notes, *told),
        row is not None,
        here if device is None else _environment(device),
    )


def _environment(device: Device) -> dict[str, Any]:
    """This machine's; and, where it is another that measures, what that says of itself."""
    facts = device.facts()
    devices = {} if facts["name"] == LOCAL else {"devices": {str(facts["name"]): dict(facts)}}
    return environment() | devices


# ---------------------------------------------------------------- measured now


def _measure_runs(
    base: Run, head: Run, wanted: Inputs, mode: Mode, device: Device, progress: Progress
) -> tuple[tuple[Given, Given], list[Candidate], SideBySide, list[str]]:
    givens = (base.file_of(base.best.id), head.file_of(head.best.id))
    names = distinct([f"BASE {base.best.id}", f"HEAD {head.best.id}"])
    givens = (replace(givens[0], name=names[0]), replace(givens[1], name=names[1]))
    candidates = [
        candidate_of(given, how_of(run.row), device) for given, run in zip(givens, (base, head), strict=True)
    ]
    feed, _ = feed_for(givens, wanted, head.row.batch_size)
    unchecked = checked_there(device, candidates, feed, progress)
    found = side_by_side(device, candidates, feed, MODES[mode], progress, again=True)
    return givens, candidates, found, unchecked


def _measured_lines(found: SideBySide, same: bool) -> list[Line]:
    base, head = (row.measurement for row in found.rows)
    again = found.again.measurement if found.again else base
    lines = speed_lines(found)
    for metric, unit, name in ONE_EACH:
        before, after, twice = (getattr(m, name) for m in (base, head, again))
        if metric in COUNTED and None in (before, after):
            continue
        noise = abs(twice / before - 1) if before and twice else 0.0
        line = plain_line(metric, unit, before, after, noise)
        reason = undecided(head) if metric == "energy" else None
        lines.append(line if reason is None else replace(line, verdict="cannot tell", message=reason))
    if same:  # what two processes of one file differ by is no difference
        told = "BASE and HEAD are the same file"
        lines = [replace(line, verdict="same", message=told) for line in lines]
    return lines


def _same(givens: tuple[Given, Given], candidates: list[Candidate]) -> bool:
    """Whether both sides are one file that is run in one way."""
    base, head = candidates
    one_file = givens[0].digest == givens[1].digest
    return one_file and replace(base, id=head.id, path=head.path) == head


# ---------------------------------------------------------------- beside the lines


def _with_gates(lines: list[Line], gates: Sequence[Verdict], base: Run, head: Run) -> tuple[Line, ...]:
    """Each line with HEAD's gates on it; a gate on something else is a line of its own."""
    primary = head.report.primary.name
    called = {"accuracy": primary, f"metric:{primary}": primary}
    by_metric: dict[str, list[Verdict]] = {}
    for verdict in gates:
        by_metric.setdefault(called.get(verdict.metric, verdict.metric), []).append(verdict)
    found = [replace(line, gates=tuple(by_metric.pop(line.metric, ()))) for line in lines]
    for metric, verdicts in by_metric.items():
        name = metric.removeprefix("metric:")
        figures = (base.row.metrics.get(name), head.row.metrics.get(name))
        info = head.report.figures.get(name)
        line = Line(metric, "", None, None, None, "not compared", verdicts[0].message)
        if info is not None and None not in figures:
            line = metric_line(metric, info, figures, None)
        found.append(replace(line, gates=tuple(verdicts)))
    return tuple(found)


def _runtimes(*runs: Run) -> tuple[str, ...]:
    return tuple(run.row.runtime for run in runs)


def _on_versions(base: Run, head: Run, here: Mapping[str, object]) -> list[str]:
    notes = []
    for run in (base, head):
        apart = versions_apart(run.report.environment, here, _runtimes(base, head))
        if apart:
            notes.append(
                f"{run.name} was made with other versions, both are measured with those here: {'; '.join(apart)}"
            )
    return notes


def _on_targets(base: Run, head: Run) -> list[str]:
    ways = [f"{r.row.runtime} {r.row.provider}, {plural(r.row.threads, 'thread')}" for r in (base, head)]
    return [f"BASE runs in {ways[0]}, HEAD in {ways[1]}"] if ways[0] != ways[1] else []


def _on_outputs(alike: Mapping[str, float | str]) -> list[str]:
    return [
        f"warning: the outputs are not alike: {of}"
        if isinstance(of, str)
        else f"{'warning: ' if of < FEWEST_ALIKE else ''}cosine of the outputs on random inputs: {of:.4f}"
        for of in alike.values()
    ]


def _on_rows(found: SideBySide) -> list[str]:
    return [f"{row.id}: {note}" for row in found.rows for note in row.measurement.notes]
