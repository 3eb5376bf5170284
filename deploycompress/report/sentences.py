"""What came out and under which conditions, in plain sentences."""

from __future__ import annotations

from deploycompress.report.document import Report
from deploycompress.report.figures import duration, figure, plural, shortened, signed

NOTHING_SHIPS = " Nothing ships: no artefact was measured to be faster than the baseline."


def headline(report: Report) -> str:
    """What came out, in one sentence."""
    if report.error is not None:
        place = f"{report.error.step}: " if report.error.step else ""
        first = report.error.message.splitlines() or [report.error.class_]
        return shortened(place + first[0].removeprefix(place), 300)
    words = {"fail": "failed", "inconclusive": "cannot be decided"}
    blocking = {g.metric: None for g in report.gates if g.verdict == report.verdict and not g.only_warns}
    lead = f"{', '.join(blocking)} {words[report.verdict]}: " if report.verdict in words and blocking else ""
    return shortened(lead + _outcome(report), 400)


def _outcome(report: Report) -> str:
    """How the best artefact compares with the baseline."""
    row, base = report.row(report.best_id), report.row(report.baseline)
    if row is None:
        return "nothing was measured at the target."
    latency = figure(row.latency_ms.p50, "ms")
    parts = [f"{row.artifact} takes {latency} an inference"]
    if row.gain is not None and base is not None:
        parts = [
            f"{row.artifact} is {figure(row.gain.value, 'x')} as fast as the baseline "
            f"({latency} against {figure(base.latency_ms.p50, 'ms')})"
        ]
    if row.emulated:
        parts[0] += " on an emulated device, whose times say nothing about a real one"
    ours, theirs = report.artefact(row.artifact), report.artefact(report.baseline)
    if ours is not None and theirs is not None and theirs.bytes and ours is not theirs:
        parts.append(f"at {figure(ours.bytes / theirs.bytes, 'ratio')} of its size")
    change = report.change(row)
    if change is not None:
        parts.append(f"{report.primary.name} {signed(change, report.change_unit)}")
    unshipped = "" if report.ships or theirs is None or ours is theirs else NOTHING_SHIPS
    return ", ".join(parts) + "." + unshipped


def circumstances(report: Report) -> list[str]:
    """When, how long and on what."""
    words = [duration(report.seconds), *conditions(report)]
    if report.started:
        words.insert(0, report.started.replace("T", " ").replace("+00:00", " UTC"))
    if report.data.test_samples:
        words.append(f"{report.data.test_samples:,} test samples")
    return words


def conditions(report: Report) -> list[str]:
    """What the target is."""
    target = report.target
    if not target.device:
        return ["the benchmark's machine"]
    batch = f"batch size {target.batch_size}"
    return [
        target.device,
        f"{target.runtime} {target.provider}".strip(),
        plural(target.threads, "thread"),
        batch,
    ]


def pareto_note(report: Report) -> str:
    """What the lines of the plot of metric and latency are."""
    found = report.intervals.get(report.best_id or "")
    name = report.primary.name
    told = f"Across: where repeated blocks beside the baseline put p50. Up: where {name} on "
    told += (
        "other samples of this kind would lie" if found is None else f"{found.samples:,} samples places it"
    )
    return f"{told}. The stepped line joins those that none is both faster and better than; dashed lines are limits of gates."
