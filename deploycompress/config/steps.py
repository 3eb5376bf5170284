"""The list under ``stages``: what each item names, and ``repeat`` written out as single steps.

A step's id is its stage's name; of several with one name the second is ``export-2``, the third ``export-3``,
in the order of the file. Inside a ``repeat`` every id gets its round: ``prune@1``, ``prune@2``.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from deploycompress.config import schedule, teachers
from deploycompress.config.document import Document, KeyPath, Place
from deploycompress.config.schema import Repeat
from deploycompress.config.validation import validate
from deploycompress.config.wording import listed, shown

OPTIONS = ("id", "from", "timeout", "back_off")  # of every step, beside its stage's own configuration
SPARSITY = "sparsity"  # beside what stands under `target`, it follows the schedule of a repeat
RESERVED = (
    "model",
    "baseline",
    "original",
    "last",
    "all",
    *teachers.ROUNDS,
)  # `from` gives them a meaning, the planner folders


@dataclass(frozen=True)
class Written:
    """One step as it stands in the file, ``repeat`` not yet written out."""

    path: KeyPath  # of the item: ("stages", 2) or ("stages", 2, "stages", 0)
    stage: str
    id: str = ""
    chosen: bool = False  # whether the id stands in the file
    repeat: KeyPath | None = None  # of the repeat it is in

    @property
    def config(self) -> KeyPath:
        return (*self.path, self.stage)


def expand(document: Document) -> None:
    """Replace ``stages`` by a list of ``{stage, id, options, config}``; mistakes are noted in ``document``.

    Each part keeps the place where it was written.
    """
    before = dict(document.places)
    steps = list(_steps(document, written(document, report=True)))
    for path in [p for p in document.places if len(p) > 1 and p[0] == "stages"]:
        del document.places[path]
    document.data["stages"] = []
    for index, (data, origins) in enumerate(steps):
        document.data["stages"].append(data)
        for part, origin in origins.items():
            _copy_places(before, origin, document.places, ("stages", index, *part), _part(data, part))
    _check_ids(document)
    _apply_schedules(document)


def written(document: Document, report: bool = False) -> list[Written]:
    """Every step of the file with its id; ``report``: note what is no step in ``document``."""
    found: list[Written] = []
    items = document.data.get("stages") if isinstance(document.data, dict) else None
    for index, item in enumerate(items if isinstance(items, list) else ()):
        path: KeyPath = ("stages", index)
        if not (isinstance(item, dict) and "repeat" in item):
            found += _named(document, path, item, report)
            continue
        repeat = validate(Repeat, document, path) if report else None
        inner = item.get("stages")
        for number, step in enumerate(inner if isinstance(inner, list) else ()):
            nested = _named(document, (*path, "stages", number), step, report)
            rounds = repeat is not None or not report
            found += [replace(one, repeat=path) for one in nested if rounds]
    return _with_ids(document, found)


def default_id(stage: str) -> str:
    """``prune``; of a user's ``module:Name`` the name."""
    return stage.rpartition(":")[2].lstrip("_") or "step"


# ---------------------------------------------------------------- items


def _named(document: Document, path: KeyPath, item: Any, report: bool) -> list[Written]:
    """The step that an item names; nothing, and a mistake, when it names none."""
    message = ""
    if isinstance(item, str):
        return [Written(path, item)]
    if isinstance(item, dict) and "repeat" in item:
        message = "a repeat inside a repeat is not supported; write its stages out"
    elif isinstance(item, dict) and len(item) == 1:
        stage, config = next(iter(item.items()))
        if config is None or isinstance(config, dict):
            return [Written(path, stage)]
        path = (*path, stage)
        message = f"received {shown(config)}, expected a mapping, as {stage}: {{key: value}}"
    elif isinstance(item, dict) and item:
        first, *rest = item
        message = (
            f"a step has one key, the name of its stage; {listed(repr(r) for r in rest)} "
            f"should stand inside it: indent further than {first!r}"
        )
    else:
        message = f"received {shown(item)}, expected a stage: name, or name: {{key: value}}"
    if report:
        document.report(path, message)
    return []


def _with_ids(document: Document, steps: list[Written]) -> list[Written]:
    unnamed: Counter[str] = Counter()
    found = []
    for step in steps:
        chosen = _body(document, step).get("id")
        if isinstance(chosen, str):
            found.append(replace(step, id=chosen, chosen=True))
            continue
        name = default_id(step.stage)
        unnamed[name] += 1
        found.append(replace(step, id=name if unnamed[name] == 1 else f"{name}-{unnamed[name]}"))
    return found


def _body(document: Document, step: Written) -> Mapping[str, Any]:
    item = document.value(step.path)
    return (item[step.stage] or {}) if isinstance(item, dict) else {}


# ---------------------------------------------------------------- writing out


Origins = dict[KeyPath, KeyPath]  # part of the new step -> where it was written


def _steps(document: Document, steps: list[Written]) -> Iterator[tuple[dict[str, Any], Origins]]:
    done: set[KeyPath] = set()
    for step in steps:
        if step.repeat is None:
            yield _step(document, step, step.id, steps, 0, {})
        elif step.repeat not in done:
            done.add(step.repeat)
            settings = document.value(step.repeat)
            inner = [s for s in steps if s.repeat == step.repeat]
            _check_back_off(document, step.repeat, inner)
            for round in range(1, settings["repeat"] + 1):
                for one in inner:
                    yield _step(document, one, f"{one.id}@{round}", steps, round, settings)


def _check_back_off(document: Document, path: KeyPath, inner: list[Written]) -> None:
    settings = document.value(path)
    if not settings.get("back_off"):
        return
    if settings["repeat"] == 1:
        document.report((*path, "repeat"), "received 1, expected at least 2 rounds where there is back_off")
    if not any(scheduled(_body(document, step)) for step in inner):
        message = "there is no step to halve: none of the stages has a target or a sparsity"
        document.report((*path, "back_off"), message, key=True)


def _step(
    document: Document,
    step: Written,
    id: str,
    steps: list[Written],
    round: int,
    repeat: Mapping[str, Any],
) -> tuple[dict[str, Any], Origins]:
    body = copy.deepcopy(dict(_body(document, step)))
    options = {key: body.pop(key) for key in OPTIONS if key in body}
    if isinstance(options.get("from"), str):
        options["from"] = _in_round(options["from"], step, steps, round, document)
    if teachers.KEY in body:
        rewritten = partial(_in_round, step=step, steps=steps, round=round, document=document)
        body[teachers.KEY], problem = teachers.of_round(body[teachers.KEY], step.id, round, rewritten)
        if problem is not None:
            document.report((*step.config, teachers.KEY), problem)
    whole = step.config if isinstance(document.value(step.path), dict) else step.path
    origins: Origins = {(): whole, ("config",): whole, ("options",): whole}
    data: dict[str, Any] = {"stage": step.stage, "id": id, "options": options, "config": body}
    if round:
        back_off, shape = repeat.get("back_off"), repeat.get("schedule", "exponential")
        data["round"] = {
            "number": round,
            "of": repeat["repeat"],
            "schedule": shape,
            "back_off": bool(back_off),
        }
        options |= {"back_off": back_off["max_drop"]} if back_off else {}
    return data, origins


def _in_round(source: str, step: Written, steps: list[Written], round: int, document: Document) -> str:
    """``from: prune`` of a repeated step: inside its repeat the same round's, outside the last one."""
    for other in steps:
        if other.id == source and other.repeat is not None:
            return (
                f"{source}@{round if other.repeat == step.repeat else document.value(other.repeat)['repeat']}"
            )
    return source


def _part(data: Any, path: KeyPath) -> Any:
    for key in path:
        data = data[key]
    return data if path else None  # of the step as a whole: its own place only


def _copy_places(
    before: Mapping[KeyPath, Place], origin: KeyPath, places: dict[KeyPath, Place], path: KeyPath, data: Any
) -> None:
    """Give ``data``, now at ``path``, and everything in it the places it had below ``origin``."""
    if origin in before:
        places[path] = before[origin]
    entries: Iterable[tuple[str | int, Any]] = ()
    if isinstance(data, dict):
        entries = data.items()
    elif isinstance(data, list):
        entries = enumerate(data)
    for key, value in entries:
        _copy_places(before, (*origin, key), places, (*path, key), value)


# ---------------------------------------------------------------- checks and schedule


def _check_ids(document: Document) -> None:
    seen: set[str] = set()
    for index, step in enumerate(document.data["stages"]):
        path: KeyPath = ("stages", index, "options", "id")
        base = step["id"].partition("@")[0]
        if step["id"] in seen:
            document.report(path, f"duplicate id {step['id']!r}; an earlier step has it")
        elif base in RESERVED:
            document.report(path, f"the id {base!r} has a meaning of its own; choose another")
        elif "round" in step and "@" in step["options"].get("id", ""):
            document.report(
                path, "inside a repeat an id gets its round (@1, @2 ...) by itself; leave '@' out"
            )
        elif "back_off" in step["options"] and ("round" not in step and "@" not in step["id"]):
            message = "it belongs to a repeat: {repeat: 3, stages: [...], back_off: {max_drop: 2 pp}}"
            document.report(("stages", index, "options", "back_off"), message, key=True)
        seen.add(step["id"])


def _apply_schedules(document: Document) -> None:
    for index, step in enumerate(document.data["stages"]):
        round = step.pop("round", None)
        for path, block in scheduled(step["config"]).items() if round is not None else ():
            key = path[-1]
            number, of, shape = round["number"], round["of"], round["schedule"]
            try:
                if round["back_off"]:
                    schedule.halfway(key, None, block[key])
                block[key] = schedule.of_round(key, block[key], number, of, shape)
            except ValueError as error:
                document.report(("stages", index, "config", *path), str(error))


def scheduled(config: Mapping[str, Any]) -> dict[tuple[str, ...], dict[str, Any]]:
    """Path within a step's configuration of what goes to its end round by round -> the mapping that holds it."""
    target = config.get("target")
    found: dict[tuple[str, ...], Any] = {}
    found |= {("target", key): target for key in target} if isinstance(target, dict) else {}
    found |= {(SPARSITY,): config} if config.get(SPARSITY) is not None else {}
    return found
