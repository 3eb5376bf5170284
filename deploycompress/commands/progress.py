"""How a run is shown while it goes on: a live table on a terminal, timed lines elsewhere, all of it in log.txt."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TextIO

import click

from deploycompress.report.figures import clean_lines
from deploycompress.writing import append_to

if TYPE_CHECKING:
    from rich.console import RenderableType

    from deploycompress.contracts import Event
    from deploycompress.engine.plan import Step
    from deploycompress.engine.record import StepRecord


# Words that make a figure a share, which is shown in percent.
SHARES = {"accuracy", "agreement", "top5", "precision", "recall", "f1", "miou", "auc", "map", "wer", "cer"}


class _Screen(Protocol):
    """Where lines go; a live screen also shows the state of all steps."""

    def line(self, text: str) -> None: ...
    def show(self, view: View) -> None: ...


class View:
    """The engine's listener: keeps what is known of each step and says it, once, in words with numbers."""

    def __init__(self, screen: _Screen, *, verbose: bool, quiet: bool) -> None:
        self.screen, self.verbose, self.quiet = screen, verbose, quiet
        self.clock = time.monotonic()
        self.log: TextIO | None = None
        self.names: dict[str, str] = {}  # step id -> directory
        self.states: dict[str, tuple[str, float]] = {}  # directory -> state, seconds
        self.now: tuple[str, float, str, float | None] | None = None  # directory, since, message, share done

    # ------------------------------------------------------------ what the engine says

    def planned(self, run_dir: Path, steps: Sequence[Step]) -> None:
        self.log = append_to(run_dir / "log.txt")
        self.names = {step.id: step.directory for step in steps}
        self.states = {step.directory: ("waiting", 0.0) for step in steps}
        self._say(f"{len(steps)} steps into {run_dir}")

    def joined(self, step: Step, planned: Step) -> None:
        """A step that was not planned; it is shown behind the one in whose place it stands."""
        self.names[step.id] = step.directory
        states = list(self.states.items())
        at = [name for name, _ in states].index(planned.directory) + 1
        self.states = dict([*states[:at], (step.directory, ("waiting", 0.0)), *states[at:]])

    def started(self, step_id: str) -> None:
        name = self.names.get(step_id, step_id)
        self.now = (name, time.monotonic(), "", None)
        if name not in self.states:  # the rehearsal, which comes after the first step
            first, *rest = self.states
            self.states = {n: self.states.get(n, ("running", 0.0)) for n in (first, name, *rest)}
        self.states[name] = ("running", 0.0)
        self.screen.show(self)
        what = (
            "started" if step_id in self.names else "the whole chain with untrained weights and a few inputs"
        )
        self._say(f"{name}: {what}")

    def event(self, event: Event) -> None:
        name = self.names.get(event.step, event.step)
        text = clean_lines(event.message + "".join(f", {figure(*item)}" for item in event.figures.items()))
        if self.now is not None:
            self.now = (self.now[0], self.now[1], text, event.done)
        fleeting = event.kind == "progress" and not event.figures
        detail = fleeting or event.kind == "parity"
        self._say(f"{name}: {text}", loud=event.kind == "warning", detail=detail)
        self.screen.show(self)

    def finished(self, record: StepRecord) -> None:
        name = record.directory or record.id
        state = "reused" if record.reused else record.state
        self.states[name] = (state, record.seconds)
        self.now = None
        self.screen.show(self)
        if record.error is not None:
            self._say(f"{name}: failed after {record.seconds:.1f} s: {record.error['message']}", loud=True)
        else:
            self._say(
                f"{name}: {'reused from the store' if record.reused else 'done'} ({record.seconds:.1f} s)"
            )

    # ------------------------------------------------------------ saying it

    def _say(self, text: str, *, loud: bool = False, detail: bool = False) -> None:
        line = f"[{time.monotonic() - self.clock:7.1f} s] {clean_lines(text)}"
        if self.log is not None:
            self.log.write(line + "\n")
        if loud or not (self.quiet or (detail and not self.verbose)):
            self.screen.line(line)


class _Lines:
    """Plain timed lines, for CI and pipes."""

    def line(self, text: str) -> None:
        click.echo(text)

    def show(self, view: View) -> None:
        pass


class _Live:
    """A table of the steps that is drawn again in place, with the lines above it."""

    MARKS = {
        "waiting": "[dim]·[/]",
        "running": "[cyan]▸[/]",
        "done": "[green]✔[/]",
        "reused": "[green]↺[/]",
        "failed": "[red]✘[/]",
    }

    def __init__(self, lines: bool) -> None:
        from rich.live import Live

        self.lines = lines
        self.view: View | None = None
        # Twice a second: a benchmark is running beside us.
        self.live = Live(get_renderable=self._table, refresh_per_second=2, transient=False)

    def line(self, text: str) -> None:
        if self.lines:
            self.live.console.print(text, markup=False, highlight=False)

    def show(self, view: View) -> None:
        self.view = view

    def _table(self) -> RenderableType:
        from rich.markup import escape
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        if self.view is None:
            return table
        for name, (state, seconds) in self.view.states.items():
            running = self.view.now if self.view.now and self.view.now[0] == name else None
            if running is not None:
                spent = time.monotonic() - running[1]
                table.add_row(
                    self.MARKS[state],
                    f"[bold]{escape(name)}[/]",
                    f"{spent:6.1f} s",
                    _bar(running[3]) + escape(running[2]),
                )
            else:
                spent_text = "" if state == "waiting" else f"{seconds:6.1f} s"
                table.add_row(
                    self.MARKS.get(state, " "),
                    escape(name),
                    spent_text,
                    "[dim]reused[/]" if state == "reused" else "",
                )
        return table


def _bar(share: float | None) -> str:
    if share is None:
        return ""
    filled = round(20 * min(1.0, max(0.0, share)))
    return f"[cyan]{'━' * filled}[/][dim]{'━' * (20 - filled)}[/] "


@contextmanager
def open_view(*, verbose: bool, quiet: bool, terminal: bool) -> Iterator[View]:
    """The view that fits where the output goes."""
    if not terminal or quiet:
        yield View(_Lines(), verbose=verbose, quiet=quiet)
        return
    screen = _Live(lines=verbose)
    with screen.live:
        yield View(screen, verbose=verbose, quiet=quiet)


# ---------------------------------------------------------------- numbers in words


def figure(name: str, value: float) -> str:
    """A figure with its unit, by its name: ``val_accuracy`` 0.981 is "val accuracy 98.1 %"."""
    words = name.replace("_", " ")
    if name == "seconds_left":
        return f"{value:.0f} s left"
    if name == "seconds":
        return f"{value:.1f} s"
    if name == "lr":
        return f"lr {value:.2g}"
    if name.endswith("_ms"):
        return f"{words[:-3]} {value:.3g} ms"
    if name == "bytes" or name.endswith("_bytes"):
        return f"{words} {value / 1000:,.1f} KB"
    told = set(words.replace(".", " ").split())
    if told & SHARES or "worst_class" in name or "exact_match" in name or name.endswith("_ratio"):
        return f"{words} {100 * value:.1f} %"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{words} {value:,.0f}"
    return f"{words} {value:.4g}"
