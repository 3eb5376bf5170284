"""The processes that do one step together: started by torch.distributed.run, listened to, and ended with it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploycompress.errors import BY_NAME, DeployCompressError, Interrupted, StageFailed

if TYPE_CHECKING:
    from deploycompress.recovery.recipe import Launch

MESSAGES = "DEPLOYCOMPRESS_MESSAGES"  # in a rank's environment: the named pipe that it reports to
SHUTDOWN_S = 4  # for a checkpoint after SIGTERM; less than the run itself waits
LONGEST = 4000  # bytes of a message: what a pipe takes in one piece, whoever else writes
END = "end"

Send = Callable[[Mapping[str, Any]], None]


# ---------------------------------------------------------------- in a rank


def inside() -> bool:
    """Whether this process is one of several that do a step together."""
    return MESSAGES in os.environ


def writes() -> bool:
    """Whether this process is the one on its machine that keeps the result."""
    return not inside() or os.environ.get("LOCAL_RANK") == "0"


@contextlib.contextmanager
def workdir(given: Path) -> Iterator[Path]:
    """``given`` for the process that keeps the result; a folder that is thrown away for the others."""
    if writes():
        yield given
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def sender() -> Send:
    """Reports to the process that started this one: progress from the one that writes, errors from all."""
    pipe = os.open(os.environ[MESSAGES], os.O_WRONLY)

    def send(message: Mapping[str, Any]) -> None:
        if "error" in message or writes():
            os.write(pipe, (_short(message) + "\n").encode())

    return send


def _short(message: Mapping[str, Any]) -> str:
    text = json.dumps(message)
    if len(text) < LONGEST or "error" not in message:
        return text
    error = message["error"]
    return json.dumps(
        {"error": {**error, "message": error["message"][: LONGEST // 8]}}
    )  # an escape may take six


def wait_for_parent() -> None:
    """Returns when the process that started this one is gone."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(0.2)


# ---------------------------------------------------------------- around them


def run(run_dir: Path, step_id: str, key: str, launch: Launch, send: Send) -> None:
    """Do the step in ``launch.processes`` processes here, together with those of the other machines.

    ``key``: the digest of the step's key; machines meet when theirs is the same. Raises what the ranks raised,
    StageFailed when one of them died or the other machines did not come, Interrupted after SIGTERM.
    """
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError

    before = signal.getsignal(signal.SIGTERM)
    errors: list[DeployCompressError] = []
    with tempfile.TemporaryDirectory() as folder, _listening(Path(folder) / "messages", send, errors):
        _set_environment(launch)
        try:
            command = ["-m", "deploycompress.engine.worker", str(run_dir), step_id]
            arguments = torchrun.parse_args([*_options(launch, key), *command])  # type: ignore[no-untyped-call]
            torchrun.run(arguments)  # type: ignore[no-untyped-call]
            return
        except SignalException as error:
            raise Interrupted(signal.SIGTERM) from error
        except RendezvousError as error:
            raise StageFailed(
                f"{launch.nodes} machines were to meet at {launch.rendezvous}, and did not ({type(error).__name__}): "
                "run the same command on each, with the same configuration and data"
            ) from error
        except ChildFailedError as error:
            failed = error
        finally:
            signal.signal(signal.SIGTERM, before)
            del os.environ[MESSAGES]
    raise _cause(failed.failures, launch.total, errors) from failed


def _options(launch: Launch, key: str) -> list[str]:
    alone = [] if launch.nodes > 1 else ["--local-addr", "127.0.0.1"]
    return [
        *("--nnodes", str(launch.nodes), "--nproc-per-node", str(launch.processes), "--rdzv-backend", "c10d"),
        *("--rdzv-endpoint", launch.rendezvous or "127.0.0.1:0", "--rdzv-id", key[:32], *alone),
        *("--max-restarts", "0", "--signals-to-handle", "SIGTERM", "--shutdown-timeout", str(SHUTDOWN_S)),
    ]


def _set_environment(launch: Launch) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // launch.processes)))
    if launch.nodes == 1:
        local = "lo0" if sys.platform == "darwin" else "lo"
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, local)


@contextlib.contextmanager
def _listening(pipe: Path, send: Send, errors: list[DeployCompressError]) -> Iterator[None]:
    """Pass on what ranks write to ``pipe``; their errors are collected."""
    os.mkfifo(pipe)
    end = os.open(pipe, os.O_RDWR)  # not read-only: the pipe stays open while no rank has it
    os.environ[MESSAGES] = str(pipe)

    def listen() -> None:
        with os.fdopen(os.dup(end), "r") as lines:
            for line in lines:
                message = json.loads(line)
                if END in message:
                    return
                if "error" in message:
                    error = message["error"]
                    errors.append(BY_NAME[error["class"]](error["message"]))
                else:
                    send(message)

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield
    finally:
        os.write(end, f'{{"{END}": true}}\n'.encode())
        thread.join()
        os.close(end)


def _cause(failures: Mapping[int, Any], total: int, errors: list[DeployCompressError]) -> DeployCompressError:
    """A process that was killed before what the others say of it; then the first error."""
    for rank, failure in sorted(failures.items()):
        if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM:
            name = signal.Signals(-failure.exitcode).name
            return StageFailed(
                f"process {rank + 1} of {total} was ended by {name}: run the same command again to go on from the last "
                "checkpoint" + ("; the kernel does this when memory runs out" if name == "SIGKILL" else "")
            )
    if errors:
        return errors[0]
    rank, failure = min(failures.items())
    return StageFailed(f"process {rank + 1} of {total} ended with exit code {failure.exitcode}; see log.txt")
