"""Why a step was made and not reused: which parts of its key are not what they were."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploycompress.artifact import MANIFEST, digest_json, read_json, write_json
from deploycompress.config.wording import listed, unknown
from deploycompress.engine.plan import Step
from deploycompress.engine.store import STEPS, FileStore
from deploycompress.engine.worker import JOBS
from deploycompress.errors import ConfigError


@dataclass(frozen=True)
class Difference:
    """One field of the key, as it was and as it is; None where it was not, or is not, there."""

    field: str  # config.target.macs
    before: Any
    now: Any


@dataclass(frozen=True)
class Explanation:
    reason: str
    differences: tuple[Difference, ...] = ()


def note_why(run_dir: Path, step: Step, key: Mapping[str, Any], damage: Sequence[str]) -> None:
    """Keep what ``explain`` needs before the step is made, and the record of the last run is gone."""
    before = _key(run_dir / step.directory / MANIFEST)
    write_json(run_dir / JOBS / f"{step.id}.why.json", {"before": before, "key": key, "damage": [*damage]})


def explain(run_dir: Path, step_id: str, store: FileStore) -> Explanation:
    """Of a step of the last run in ``run_dir``. Raises ConfigError where there is no such run or step."""
    try:
        steps = {step["id"]: step for step in read_json(run_dir / "run.json")["steps"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{run_dir} is no run directory that can be read ({type(error).__name__}: {error}); expected one such "
            "as runs/<name>: name it with --run"
        ) from error
    if step_id not in steps:
        raise ConfigError(f"{run_dir}: {unknown('step', step_id, steps)}")
    record = steps[step_id]
    if record["reused"]:
        return Explanation("it was not made again: nothing in its key has changed, and its result was reused")
    why = run_dir / JOBS / f"{step_id}.why.json"
    if not why.is_file():
        state = (
            "it was not reached in the last run"
            if record["state"] == "not_run"
            else "it is made in every run"
        )
        return Explanation(state)
    noted = read_json(why)
    if noted["damage"]:
        return Explanation(f"its stored result was damaged and set aside: {listed(noted['damage'])}")
    before, told = noted["before"], "than in the run before in this directory"
    if before is None:
        before, told = _nearest(store, noted["key"]), "than of the most similar step in the store"
    if before is None:
        return Explanation("there is no earlier result of this stage to compare with, here or in the store")
    found = tuple(differences(before, noted["key"]))
    if not found:
        return Explanation(
            "its key is as it was, but the store did not hold its result: another store, or tidied up"
        )
    return Explanation(f"its key is another {told}", found)


def differences(before: Any, now: Any, field: str = "") -> Iterator[Difference]:
    """Every leaf in which two key documents differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in dict.fromkeys((*before, *now)):
            yield from differences(before.get(name), now.get(name), f"{field}.{name}" if field else name)
    elif before != now:
        yield Difference(field, before, now)


def _nearest(store: FileStore, key: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The key of the stored step of the same stage that differs in the fewest fields."""
    own = digest_json(key)
    found = [
        stored
        for kind, place in store.entries()
        if kind == STEPS and place.name != own
        if (stored := _key(place / MANIFEST)) is not None and stored.get("stage") == key["stage"]
    ]
    return min(found, key=lambda stored: sum(1 for _ in differences(stored, key)), default=None)


def _key(manifest: Path) -> dict[str, Any] | None:
    try:
        return dict(read_json(manifest)["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
