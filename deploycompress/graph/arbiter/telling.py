"""What is told of a decision: notes for the log, and a row for each candidate for the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from deploycompress.contracts import Note
from deploycompress.graph.arbiter.entries import Entry
from deploycompress.graph.arbiter.racing import Raced

LATE = "was used up"  # what the reason says of a candidate that there was no time for


def notes(
    entries: Sequence[Entry], raced: Mapping[str, Raced], kept: Sequence[str], dropped: Mapping[str, str]
) -> Iterator[Note]:
    """The choice first, then why each of the others is not kept. ``dropped``: by id, of those that were built."""
    if kept:
        speedup = raced[kept[0]].speedup
        message = f"{speedup.value:.2f} times as fast as the source ({speedup.low:.2f} to {speedup.high:.2f})"
        yield Note("decision", message, kept[0])
    else:
        late = sum(
            not raced.get(entry.id(n)) and LATE in entry.reason for entry in entries for n in entry.threads
        )
        within = f", of what could be tried in time ({late} candidates could not)" if late else ""
        yield Note(
            "decision", f"nothing is faster than the source and still right{within}: it goes on as it is"
        )
    for entry in entries:
        if entry.reason:
            yield Note("skipped", entry.reason, entry.recipe.name)
        yield from entry.built.notes if entry.built is not None else ()
    for id, reason in dropped.items():
        yield Note("skipped", reason, id)


def table(
    entries: Sequence[Entry], raced: Mapping[str, Raced], dropped: Mapping[str, str], source: str, metric: str
) -> list[dict[str, Any]]:
    """A row for each candidate but the one with the id ``source``."""
    rows = []
    for entry in entries:
        for threads in entry.threads:
            id, checked, race = entry.id(threads), entry.checked, raced.get(entry.id(threads))
            if id == source:
                continue
            rows.append(
                {
                    "id": id,
                    "recipe": entry.recipe.name,
                    "threads": threads,
                    "metric": None if checked is None else checked.evaluation.metrics.get(metric),
                    "loss": None if checked is None else checked.loss,
                    "cosine": None if checked is None else checked.parity.cosine,
                    "p50_ms": None if race is None else race.p50_ms,
                    "speedup": None if race is None else asdict(race.speedup),
                    "reason": entry.reason or dropped.get(id, ""),
                }
            )
    return rows
