"""``sweep``: takes a sweep.yaml through its trials, and ends with a report."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from deploycompress.artifact import read_json, write_json, write_text
from deploycompress.config.files import search_path
from deploycompress.devices import quiet
from deploycompress.engine import directory
from deploycompress.engine.interrupts import catch
from deploycompress.engine.locks import lock
from deploycompress.engine.pipeline import LOCK_WAIT_S
from deploycompress.engine.store import default_root
from deploycompress.sweep import jobs, sharing
from deploycompress.sweep.document import build
from deploycompress.sweep.page import render
from deploycompress.sweep.plan import Sweep
from deploycompress.sweep.pool import LocalPool, Pool
from deploycompress.sweep.reader import read
from deploycompress.sweep.storage import open_storage
from deploycompress.sweep.study import Study
from deploycompress.sweep.trials import RECORD, Say, Trials
from deploycompress.writing import clear


def sweep(
    path: Path,
    say: Say,
    *,
    workers: int | None = None,
    ray: str | None = None,
    devices: Path | None = None,
    out: Path | None = None,
    store: Path | None = None,
    command: str = "",
) -> Mapping[str, Any]:
    """Run the sweep at ``path``; its report, whose ``exit_code`` is the sweep's.

    Raises ConfigError and EnvironmentMissing for what is wrong before the first trial, Interrupted after a signal; the
    same call then goes on.
    """
    plan = read(path, devices)
    folder = directory.own(out, plan.config.name)
    kept = store or default_root()
    with ExitStack() as stack:
        stack.enter_context(lock(folder / directory.LOCK, wait_s=LOCK_WAIT_S))
        interrupts = stack.enter_context(catch())
        stack.enter_context(quiet.sweeping(folder))
        pool = _pool(plan, folder, kept, workers, ray)
        stack.callback(pool.close)
        study = Study(plan, open_storage(plan, folder), _owner(folder), pool.slots)
        places = [str(place) for place in search_path(plan.base)]
        state = Trials(plan, folder, kept, study, pool, interrupts, say, places)
        state.competitors()
        state.all()
        pool.close()
        interrupts.check()
        return _end(state, command)


def _pool(plan: Sweep, folder: Path, store: Path, workers: int | None, ray: str | None) -> Pool:
    """Where the trials run, after it was seen that they can share the store and the folder there."""
    if ray is not None:
        from deploycompress.sweep.ray_pool import RayPool

        return RayPool(ray, plan.config.resources, workers, folder, store)
    for place in (store, folder):
        with sharing.probed(place):
            pass
    return LocalPool(workers or 1, folder)


def _owner(folder: Path) -> str:
    """Which sweep folder a trial in a shared database belongs to."""
    path = folder / "owner"
    if not path.is_file():
        write_text(path, secrets.token_hex(16))
    return path.read_text(encoding="utf-8")


def _end(state: Trials, command: str) -> dict[str, Any]:
    folder = state.folder
    competitors = [
        read_json(path)
        for one in state.plan.config.competitors
        if (path := folder / "competitors" / one.name / RECORD).is_file()
    ]
    report = build(state.plan, state.study, competitors, state.seconds, state.started, command)
    best = folder / jobs.PIPELINE
    if report["best"] is None:
        clear(best)
    else:
        (values,) = (t["values"] for t in report["trials"] if t["name"] == report["best"])
        config = state.plan.pipeline(values, [f"name={state.plan.config.name}-best"])
        write_text(best, jobs.with_head(config, report["best"], state.search_path))
    write_json(folder / "report.json", report)
    render(report, folder)
    return report
