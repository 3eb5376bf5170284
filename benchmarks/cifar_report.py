"""Figures of the comparisons on CIFAR-10's JPEG copy, as Markdown: differences within a seed, over the seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from equal_report import discordant

Row = Mapping[str, Any]

PLACE = "CIFAR-10 (JPEG copy), 10,000 test images, read once for each result, after its last epoch."
SETTINGS = ("network", "epochs", "adapted_epochs", "rate", "precision", "limit", "teaching")


# ---------------------------------------------------------------- recovery of pruned networks


def recovery_markdown(rows: Sequence[Row]) -> str:
    """A section for every network and recipe that was run: each method's accuracy, and its differences."""
    lines = ["# Accuracy after recovery at the same MACs", "", PLACE]
    for settings, chosen in _sections(rows):
        lines += ["", f"## {settings}", "", *_methods(chosen), "", *_against_dense(chosen)]
    return "\n".join(lines) + "\n"


def _methods(rows: Sequence[Row]) -> Iterator[str]:
    yield "| method | times fewer MACs | MACs (M) | parameters | before recovery, validation | test, by seed | mean |"
    yield "|---|---|---|---|---|---|---|"
    for group in _grouped(rows, "method", "speedup"):
        reached = mean(row["reached"] for row in group)
        yield (
            f"| {group[0]['method']} | {reached:.2f} | {mean(r['macs'] for r in group) / 1e6:.1f} | "
            f"{mean(r['params'] for r in group):,.0f} | {mean(r['validation_unrecovered'] for r in group):.2%} | "
            f"{_by_seed(group)} | {mean(r['test'] for r in group):.2%} |"
        )


def _against_dense(rows: Sequence[Row]) -> Iterator[str]:
    """Every pruned network less the dense one of its seed, and ours less each of the others at the same MACs."""
    yield DIFFERENCES
    yield "|---|---|---|---|---|---|---|"
    groups = _grouped(rows, "method", "speedup")
    dense = [group for group in groups if group[0]["method"].startswith("dense")]
    pruned = [group for group in groups if group not in dense]
    for group in pruned:
        for other in (*dense, *pruned):
            same = other in dense or (
                group[0]["method"].startswith("ours")
                and other[0]["method"].startswith("tp_")
                and group[0]["speedup"] == other[0]["speedup"]
            )
            if same:
                name = f"{group[0]['method']} at {group[0]['speedup']:g} - {other[0]['method']}"
                yield from _difference(name, group, other)


# ---------------------------------------------------------------- losses


def distillation_markdown(rows: Sequence[Row], reference: str) -> str:
    """A section for every recipe that was run: each loss less ``reference``, the same training on labels alone."""
    lines = ["# Distillation against fine-tuning", "", PLACE]
    for settings, chosen in _sections(rows):
        trained = [row for row in chosen if "refused" not in row]
        lines += ["", f"## {settings}", "", "| loss | options | test, by seed | mean |", "|---|---|---|---|"]
        groups = _grouped(trained, "loss")
        lines += [
            f"| {group[0]['loss']} | `{group[0]['options']}` | {_by_seed(group)} | "
            f"{mean(r['test'] for r in group):.2%} |"
            for group in groups
        ]
        lines += ["", DIFFERENCES, "|---|---|---|---|---|---|---|"]
        base = next((group for group in groups if group[0]["loss"] == reference), [])
        for group in groups:
            if group is not base:
                lines += _difference(f"{group[0]['loss']} - {reference}", group, base)
        refused = {row["loss"]: row["refused"] for row in chosen if "refused" in row}
        lines += ["", *(f"- `{loss}` does not apply: {reason}" for loss, reason in refused.items())]
    return "\n".join(lines).rstrip() + "\n"


# ---------------------------------------------------------------- both

DIFFERENCES = (
    "| | seeds | difference on test, by seed | mean | standard error | samples only the first has right | "
    "only the second |"
)


def _sections(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    def title(row: Row) -> str:
        return ", ".join(f"{name} {row[name]}" for name in SETTINGS if row.get(name) is not None) + (
            f", {row['speedup']:g} times fewer MACs" if "loss" in row else ""
        )

    for settings in dict.fromkeys(map(title, rows)):
        yield settings, [row for row in rows if title(row) == settings]


def _grouped(rows: Sequence[Row], *names: str) -> list[list[Row]]:
    """The seeds of each thing that was compared, in the order in which they came."""
    keys = dict.fromkeys(tuple(row[name] for name in names) for row in rows)
    groups = [[row for row in rows if tuple(row[name] for name in names) == key] for key in keys]
    return [sorted(group, key=lambda row: row["seed"]) for group in groups]


def _by_seed(group: Sequence[Row]) -> str:
    return ", ".join(f"{row['test']:.2%}" for row in group)


def _pair(row: Row) -> tuple[int, str]:
    """What two rows have to share to be compared: the seed, and the dense network that they started from."""
    return row["seed"], row.get("start", "")


def _difference(name: str, first: Sequence[Row], second: Sequence[Row]) -> Iterator[str]:
    others = {_pair(row): row for row in second}
    pairs = [(row, others[_pair(row)]) for row in first if _pair(row) in others]
    if not pairs:
        return
    found = [100 * (a["test"] - b["test"]) for a, b in pairs]
    error = f"{stdev(found) / math.sqrt(len(found)):.2f} pp" if len(found) > 1 else "-"
    counts = [discordant(a, b) for a, b in pairs]
    yield (
        f"| {name} | {len(pairs)} | {', '.join(f'{value:+.2f}' for value in found)} | {mean(found):+.2f} pp | {error} | "
        f"{sum(a for a, _ in counts)} | {sum(b for _, b in counts)} |"
    )
