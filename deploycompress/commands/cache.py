"""``deploycompress cache``: check the store, tidy it, and say why a step was made again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploycompress.commands.output import only_text, say

if TYPE_CHECKING:
    from deploycompress.engine.store import FileStore

WAIT_S = 10.0  # for a run that is about to end

store_option = click.option(
    "--store",
    type=click.Path(path_type=Path),
    help="Where finished steps are kept (default: DEPLOYCOMPRESS_STORE, else the user's cache).",
)


@click.group("cache")
def command() -> None:
    """The store of finished steps: check it, tidy it, say why a step was made again."""


@command.command("verify")
@store_option
@only_text
def verify(store: Path | None) -> None:
    """Read every byte that is kept, and set aside what is not as it was written; exit code 4 where there was any."""
    from deploycompress.engine.upkeep import verify
    from deploycompress.errors import StageFailed

    kept = _open(store)
    number, damaged = verify(kept)
    for found in damaged:
        say(f"{found.place}: {found.reason}")
    if damaged:
        raise StageFailed(
            f"{len(damaged)} of {number} results in {kept.root} were damaged and are set aside in quarantine/; the next "
            "run makes them again"
        )
    say(f"all {number} results in {kept.root} are as they were written")


@command.command("gc")
@store_option
@click.option(
    "--older-than",
    default="30 d",
    show_default=True,
    metavar="TIME",
    help="Also take away what no run has used for so long: 12 h, 30 d.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@only_text
def gc(store: Path | None, older_than: str, dry_run: bool) -> None:
    """Take away what was damaged, what killed runs left, and what has not been used for long."""
    from deploycompress.engine.upkeep import collect
    from deploycompress.report.figures import plural, size

    kept, days = _open(store), _days(older_than)
    with kept.alone(WAIT_S):
        taken = collect(kept, days, dry=dry_run)
    for found in taken:
        say(f"{found.place}: {found.reason}, {size(found.bytes)}")
    verb = "would go" if dry_run else "went"
    say(f"{plural(len(taken), 'thing')} with {size(sum(f.bytes for f in taken))} {verb} from {kept.root}")


@command.command("explain")
@click.argument("step")
@click.option(
    "--run",
    "run_dir",
    type=click.Path(path_type=Path),
    help="The run directory (default: the latest in runs/).",
)
@store_option
@only_text
def explain(step: str, run_dir: Path | None, store: Path | None) -> None:
    """Say which part of its key made STEP run again in the last run, with its old value and its new one."""
    from deploycompress.engine.explaining import explain
    from deploycompress.engine.store import FileStore, default_root

    chosen = run_dir or _latest()
    found = explain(chosen, step, FileStore(store.absolute() if store else default_root()))
    say(f"{step} in {chosen}: {found.reason}")
    for difference in found.differences:
        say(f"  {difference.field}: {_told(difference.before)} -> {_told(difference.now)}")


def _open(store: Path | None) -> FileStore:
    """Raises ConfigError where no store is: a misspelt place would look like an empty one."""
    from deploycompress.engine.store import FileStore, default_root
    from deploycompress.errors import ConfigError

    root = store.absolute() if store else default_root()
    if not root.is_dir():
        raise ConfigError(f"there is no store at {root}; name it with --store or DEPLOYCOMPRESS_STORE")
    return FileStore(root)


def _days(text: str) -> float:
    from deploycompress.errors import ConfigError

    number, _, unit = text.strip().partition(" ")
    days = {"d": 1.0, "h": 1 / 24, "min": 1 / 1440}
    try:
        if unit.strip() not in days or float(number) < 0:
            raise ValueError
        return float(number) * days[unit.strip()]
    except ValueError:
        raise ConfigError(
            f"--older-than: received {text!r}, expected a time such as 30 d, 12 h or 10 min"
        ) from None


def _latest() -> Path:
    from deploycompress.errors import ConfigError

    runs = [path.parent for path in Path("runs").glob("*/run.json")]
    if not runs:
        raise ConfigError("there is no run in runs/ here; name a run directory with --run")
    return max(runs, key=lambda run: (run / "run.json").stat().st_mtime)


def _told(value: Any) -> str:
    """A value of a key on one line; of a digest its beginning."""
    from deploycompress.artifact import canonical_json

    if value is None:
        return "nothing"
    if isinstance(value, str) and len(value) == 64:
        return value[:12]
    text = value if isinstance(value, str) else canonical_json(value)
    return text if len(text) <= 120 else text[:117] + "..."
