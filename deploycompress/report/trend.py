"""The last runs of a name as small plots: speed-up, latency, the primary metric and size, run by run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deploycompress.report.axes import Tick, steps
from deploycompress.report.document import Earlier, Report
from deploycompress.report.figures import figure, significant
from deploycompress.report.history import milestone

WIDTH, HEIGHT = 250, 112
LEFT, RIGHT, TOP, BOTTOM = 62.0, 12.0, 12.0, 14.0

Span = tuple[float, float, float]  # value, low, high


@dataclass(frozen=True)
class Dot:
    x: float
    y: float
    y_low: float
    y_high: float
    here: bool  # measured on this machine and at this target
    is_last: bool
    verdict: str


@dataclass(frozen=True)
class Panel:
    title: str
    value: str  # of this run
    ticks: tuple[Tick, ...]
    dots: tuple[Dot, ...]
    line: str  # through those of this machine and target: figures of two machines are never compared


@dataclass(frozen=True)
class RunView:
    """One run as text, for the table below the plots."""

    started: str
    verdict: str
    best: str
    p50: str
    speedup: str
    metric: str
    size: str
    elsewhere: str  # what differs from this run's machine and target; empty where nothing does


@dataclass(frozen=True)
class Trend:
    width: int
    height: int
    panels: tuple[Panel, ...]
    runs: tuple[RunView, ...]  # the newest first
    elsewhere: int


def trend(report: Report) -> Trend | None:
    """This run and those before it; None where there is none before."""
    if not report.history:
        return None
    runs = [*report.history, Earlier.model_validate(milestone(report, []))]
    unit = report.primary.unit
    told: tuple[tuple[str, str, Callable[[Earlier], Span | None]], ...] = (
        ("speed-up", "x", _speedup),
        ("p50 latency", "ms", lambda run: _alone(run.p50_ms)),
        (report.primary.name, unit, lambda run: _alone(run.metric)),
        ("size", "bytes", lambda run: _alone(run.bytes)),
    )
    panels = [_panel(title, unit, [of(run) for run in runs], runs) for title, unit, of in told]
    return Trend(
        WIDTH,
        HEIGHT,
        tuple(panel for panel in panels if panel is not None),
        tuple(_view(run, report) for run in reversed(runs)),
        sum(bool(_elsewhere(run, runs[-1])) for run in runs),
    )


def _speedup(run: Earlier) -> Span | None:
    return None if run.speedup is None else (run.speedup.value, run.speedup.low, run.speedup.high)


def _alone(value: float | None) -> Span | None:
    return None if value is None else (value, value, value)


def _panel(title: str, unit: str, values: Sequence[Span | None], runs: Sequence[Earlier]) -> Panel | None:
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return None
    low, high = min(v[1] for v in known), max(v[2] for v in known)
    air = 0.15 * (high - low) or 0.02 * abs(high) or 1.0
    low, high = low - air, high + air
    floor = HEIGHT - BOTTOM

    def y(value: float) -> float:
        return floor - (floor - TOP) * (value - low) / (high - low)

    pitch = (WIDTH - LEFT - RIGHT) / max(1, len(runs) - 1)
    dots = [
        None
        if value is None
        else Dot(
            LEFT + pitch * number,
            y(value[0]),
            y(value[1]),
            y(value[2]),
            here=not _elsewhere(run, runs[-1]),
            is_last=number == len(runs) - 1,
            verdict=run.verdict,
        )
        for number, (value, run) in enumerate(zip(values, runs, strict=True))
    ]
    shown = [dot for dot in dots if dot is not None]
    ticks = [Tick(y(at), _short(at, unit)) for at in steps(low, high, 3)]
    newest = values[-1]
    return Panel(
        title,
        figure(None if newest is None else newest[0], unit),
        tuple(ticks),
        tuple(shown),
        " ".join(f"{dot.x:.1f},{dot.y:.1f}" for dot in shown if dot.here),
    )


def _elsewhere(run: Earlier, this: Earlier) -> str:
    """What this run's figures cannot be compared for."""
    told = dict(this.target)
    other = [f"{name} {value}" for name, value in dict(run.target).items() if value != told[name]]
    return "; ".join((*run.machine, *([f"target: {', '.join(other)}"] if other else [])))


def _short(value: float, unit: str) -> str:
    """A tick's text: the title has the unit where that is long."""
    match unit:
        case "share":
            return f"{100 * value:g} %"
        case "bytes":
            return figure(value, unit)
        case "x":
            return f"{value:g}×"
        case _:
            return f"{value:g}" if abs(value) < 1e5 else significant(value)


def _view(run: Earlier, report: Report) -> RunView:
    this = Earlier.model_validate(milestone(report, []))
    return RunView(
        run.started.replace("T", " ").replace("+00:00", " UTC"),
        run.verdict,
        run.best or "–",
        figure(run.p50_ms, "ms"),
        figure(None if run.speedup is None else run.speedup.value, "x"),
        figure(run.metric, report.primary.unit),
        figure(run.bytes, "bytes"),
        _elsewhere(run, this),
    )
