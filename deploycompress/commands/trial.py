"""One run of a sweep, in a process of its own: ``python -m deploycompress.commands.trial FOLDER``.

It ends when the process that started it does, whose end of standard input the kernel then closes.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from deploycompress.devices import quiet
from deploycompress.user_code import refuse_user_code, user_code_is_refused
from deploycompress.writing import append_to


def main(folder: Path) -> int:
    """Run the pipeline in ``folder`` as its job says; the exit code is the run's, and so is what is in outcome.json."""
    if user_code_is_refused():
        refuse_user_code()
    quiet.work()  # before anything heavy is imported: somebody may be measuring
    from deploycompress.artifact import read_json, write_json
    from deploycompress.errors import DeployCompressError, of_system
    from deploycompress.sweep.jobs import JOB, OUTCOME

    code, said = 1, ""
    try:
        code = _run(folder, read_json(folder / JOB))
    except DeployCompressError as error:
        code, said = error.exit_code, str(error)
    except OSError as problem:
        refused = of_system(problem)
        if refused is None:
            raise
        code, said = refused.exit_code, str(refused)
    if said:
        print(f"error: {said}", file=sys.stderr)
    write_json(folder / OUTCOME, {"exit_code": code, "error": said})
    return code


def _run(folder: Path, job: dict[str, Any]) -> int:
    from deploycompress.commands.progress import open_view
    from deploycompress.engine.pipeline import run
    from deploycompress.registry import add_to_path
    from deploycompress.sweep.jobs import PIPELINE

    add_to_path(job["search_path"])
    with open_view(verbose=False, quiet=False, terminal=False) as view:
        _note_epochs(view, folder)
        report = run(
            folder / PIPELINE,
            view,
            out=folder,
            store=Path(job["store"]),
            rehearsal=job["rehearsal"],
            command=["deploycompress", "run", str(folder / PIPELINE)],
        )
    return int(report["exit_code"])


def _note_epochs(view: Any, folder: Path) -> None:
    """Write the metric on the validation split, as the run tells it, for whoever may end a hopeless trial."""
    from deploycompress.sweep.jobs import PROGRESS

    shown = view.event

    def event(one: Any) -> None:
        shown(one)
        epoch = re.match(r"epoch (\d+)/", one.message)
        values = [value for name, value in one.figures.items() if name.startswith("val_")]
        if epoch is not None and len(values) == 1:
            line = {"step": one.step, "epoch": int(epoch[1]), "value": values[0]}
            with append_to(folder / PROGRESS) as stream:
                stream.write(json.dumps(line) + "\n")

    view.event = event


def _end_with_the_sweep() -> None:
    def watch() -> None:
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGKILL)  # the steps' processes end with this one

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    _end_with_the_sweep()
    sys.exit(main(Path(sys.argv[1])))
