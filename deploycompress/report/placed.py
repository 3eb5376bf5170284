"""Where the operators of each artefact run, the longest first, with what falls back or only reformats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deploycompress.report.document import Operator, Report
from deploycompress.report.figures import figure, plural

MOST_OPERATORS = 20  # the longest ones; report.json has them all


@dataclass(frozen=True)
class PlacedView:
    """One operator; every figure as text."""

    op: str
    node: str
    where: str  # provider or kernel, and precision
    role: str
    time: str
    share: str


@dataclass(frozen=True)
class PlacementView:
    artifact: str
    summary: str
    operators: tuple[PlacedView, ...]
    left_out: int


def placements(report: Report) -> list[PlacementView]:
    """The best artefact first, then in the order of the report."""
    order = sorted(report.placement, key=lambda id: id != report.best_id)
    return [_placement(id, report.placement[id]) for id in order]


def _placement(id: str, operators: Sequence[Operator]) -> PlacementView:
    whole_ms = sum(of.ms for of in operators) or 1.0
    longest = sorted(operators, key=lambda of: -of.ms)
    views = [
        PlacedView(
            of.op,
            of.node,
            ", ".join(filter(None, (of.provider, of.precision))),
            of.role,
            figure(of.ms, "ms"),
            figure(of.ms / whole_ms, "ratio"),
        )
        for of in longest[:MOST_OPERATORS]
    ]
    return PlacementView(id, _summary(operators, whole_ms), tuple(views), max(0, len(longest) - len(views)))


def _summary(operators: Sequence[Operator], whole_ms: float) -> str:
    parts = [plural(len(operators), "operator")]
    for role, words in (("fallback", "fell back"), ("reformat", "only reformat")):
        of = [operator for operator in operators if operator.role == role]
        if of:
            parts.append(
                f"{len(of)} {words} ({figure(sum(o.ms for o in of) / whole_ms, 'ratio')} of the time)"
            )
    return ", ".join(parts)
