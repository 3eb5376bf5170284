"""Figures of the comparison at equal latency, as Markdown: accuracy by seed, and differences within a seed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import mean, stdev
from typing import Any

import numpy as np

OURS = ("ours", "ours_plain")
DENSE = "dense"

Row = Mapping[str, Any]


def markdown(rows: Sequence[Row], notes: Sequence[str] = ()) -> str:
    """One section for every network, target and budget that was run; ``notes`` of what was found come first."""
    settings = dict.fromkeys((r["network"], r["target"], r["steps"]) for r in rows)
    lines = [
        "# Accuracy at equal measured latency",
        "",
        "Latency is a share of the dense network's, measured interleaved with it (ONNX Runtime, CPU, one thread, "
        "batch 1), with a 95 % interval. Accuracy is on test, read once, after the last step of a recovery that "
        "is the same for all; `dense` is the dense network given the same recovery.",
    ]
    if notes:
        lines += ["", "## Findings", "", *(f"- {note}" for note in notes)]
    for network, target, steps in settings:
        chosen = [r for r in rows if (r["network"], r["target"], r["steps"]) == (network, target, steps)]
        lines += [
            "",
            f"## {network}: {target:.0%} of the latency, {steps} steps",
            "",
            chosen[0]["data"] + ".",
        ]
        lines += ["", *_by_seed(chosen), "", *_differences(chosen)]
    return "\n".join(lines) + "\n"


def _by_seed(rows: Sequence[Row]) -> Iterator[str]:
    yield "| method | seed | test | validation | before recovery | latency | interval | MACs (M) | widths |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for row in sorted(rows, key=lambda r: (r["method"] != DENSE, r["method"], r["seed"])):
        low, high = row["interval"]
        missed = "" if reached(row) or row["method"] == DENSE else " (target not reached)"
        yield (
            f"| {row['method']} | {row['seed']} | {row['test']:.2%} | {row['validation']:.2%} | "
            f"{row['validation_unrecovered']:.2%} | {row['latency']:.1%}{missed} | {low:.1%} to {high:.1%} | "
            f"{row['macs'] / 1e6:.1f} | {' '.join(map(str, row['widths']))} |"
        )


def _differences(rows: Sequence[Row]) -> Iterator[str]:
    """Each of our methods less each of the others, within a seed."""
    by_place = {(r["method"], r["seed"]): r for r in rows}
    others = [m for m in dict.fromkeys(r["method"] for r in rows) if m not in OURS]
    yield "| | seeds | mean difference on test | standard error | samples only the first has right | only the second |"
    yield "|---|---|---|---|---|---|"
    for first in OURS:
        for second in others:
            seeds = sorted({s for m, s in by_place if m == first} & {s for m, s in by_place if m == second})
            pairs = [(by_place[first, s], by_place[second, s]) for s in seeds]
            if not pairs:
                continue
            found = [100 * (a["test"] - b["test"]) for a, b in pairs]
            error = f"{stdev(found) / math.sqrt(len(found)):.2f} pp" if len(found) > 1 else "-"
            counts = [discordant(a, b) for a, b in pairs]
            slower = "" if all(reached(b) for _, b in pairs) else " (slower than the target)"
            yield (
                f"| {first} - {second}{slower} | {len(pairs)} | {mean(found):+.2f} pp | {error} | "
                f"{sum(a for a, _ in counts)} | {sum(b for _, b in counts)} |"
            )


def reached(row: Row) -> bool:
    return bool(row["latency"] <= row["target"])


def discordant(a: Row, b: Row) -> tuple[int, int]:
    """Samples that only ``a`` has right, and that only ``b`` has."""
    first, second = (np.unpackbits(np.frombuffer(bytes.fromhex(r["correct"]), np.uint8)) for r in (a, b))
    return int((first > second).sum()), int((second > first).sum())
