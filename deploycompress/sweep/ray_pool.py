"""Runs of a sweep as tasks of a Ray cluster that exists: one task a run, on whichever node has what it takes."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from deploycompress.errors import EnvironmentMissing
from deploycompress.sweep import pool, sharing
from deploycompress.sweep.jobs import Job
from deploycompress.sweep.schema import Resources
from deploycompress.user_code import refuse_user_code, user_code_is_refused

TRIES_AFTER_LOSS = 5  # a node that dies costs one; the run goes on from the store on another node
ANSWER_S = 10.0  # of a cluster, at the start
CHECK_S = 120.0
LOST = 3  # the exit code of a run whose nodes died time and again: the environment's


def run_here(folder: str, sweep_folder: str, no_user_code: bool) -> int:
    """The task: the run in ``folder`` as a process of this node, which ends with the task; its exit code."""
    if no_user_code:  # the node's environment is its own
        refuse_user_code()
    process = pool.started(Path(folder), pool.environment(Path(sweep_folder), os.cpu_count() or 1))
    try:
        return process.wait()
    finally:  # also where the task is cancelled, which raises KeyboardInterrupt here
        pool.finish([process])


class RayPool:
    """As many runs at a time as the cluster has room for, and at most ``most``."""

    def __init__(
        self, address: str, resources: Resources, most: int | None, sweep_folder: Path, store: Path
    ) -> None:
        self._ray = ray = _import()
        try:
            _knock(address)
            ray.init(address=address, logging_level="ERROR", log_to_driver=False, configure_logging=False)
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            raise EnvironmentMissing(
                f"--ray {address}: no Ray cluster answers there ({_first(error)}); start one with `ray start --head`, and name "
                "it as host:6379, or auto on one of its nodes"
            ) from error
        try:
            nodes = [node for node in ray.nodes() if node["Alive"]]
            fitting = self._room(address, nodes, resources)
            self.slots = min(most or fitting, fitting)
            self._check_shared([sweep_folder, store], nodes)
        except BaseException:
            ray.shutdown()
            raise
        self._folder = str(sweep_folder)
        self._task = ray.remote(
            num_cpus=resources.cpus,
            num_gpus=resources.gpus,
            resources={resources.device: 1} if resources.device else None,
            max_retries=TRIES_AFTER_LOSS,
        )(run_here)
        self._running: dict[Any, Job] = {}

    def start(self, job: Job) -> None:
        self._running[self._task.remote(str(job.folder), self._folder, user_code_is_refused())] = job

    def ended(self) -> list[tuple[Job, int]]:
        if not self._running:
            return []
        references, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        return [(self._running.pop(reference), self._code(reference)) for reference in references]

    def stop(self, job: Job) -> None:
        for reference in [r for r, running in self._running.items() if running == job]:
            self._ray.cancel(reference)
            del self._running[reference]
            self._gone([reference])

    def close(self) -> None:
        references = list(self._running)
        self._running.clear()
        with contextlib.suppress(Exception):  # a cluster that has gone has ended them itself
            for reference in references:
                self._ray.cancel(reference)
            self._gone(references)
        self._ray.shutdown()

    # ------------------------------------------------------------ the cluster

    def _gone(self, references: list[Any]) -> None:
        if references:
            self._ray.wait(references, num_returns=len(references), timeout=pool.GRACE_S + 1)

    def _code(self, reference: Any) -> int:
        try:
            return int(self._ray.get(reference))
        except self._ray.exceptions.RayError as error:
            print(f"Ray: {_first(error)}", file=sys.stderr)
            return LOST

    def _room(self, address: str, nodes: list[Any], resources: Resources) -> int:
        """How many runs the cluster holds at a time. Raises EnvironmentMissing where not even one."""
        wanted = {
            "CPU": resources.cpus,
            "GPU": resources.gpus,
            resources.device: 1.0 if resources.device else 0.0,
        }
        wanted = {name: count for name, count in wanted.items() if count}
        rooms = [
            min(int(node["Resources"].get(name, 0.0) / count) for name, count in wanted.items())
            for node in nodes
        ]
        if sum(rooms) == 0:
            has = [", ".join(f"{k}: {v:g}" for k, v in _told(n).items()) for n in nodes]
            raise EnvironmentMissing(
                f"--ray {address}: no node of the cluster has what `resources` asks for, "
                f"{', '.join(f'{k}: {v:g}' for k, v in wanted.items())}; its nodes have {' | '.join(has)}. Ask for less, or "
                "start a node with it, as in `ray start --address=... --resources='{\"orin\": 1}'`"
            )
        return sum(rooms)

    def _check_shared(self, folders: list[Path], nodes: list[Any]) -> None:
        """On every node: the folders are the same, and a lock that is held here is held there."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        look = self._ray.remote(num_cpus=0, max_retries=0)(sharing.look)
        with ExitStack() as stack:
            places = [str(stack.enter_context(sharing.probed(folder))) for folder in folders]
            for node in nodes:
                on = look.options(
                    scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                )
                for folder, place in zip(folders, places, strict=True):
                    try:
                        reason = self._ray.get(on.remote(place), timeout=CHECK_S)
                    except (self._ray.exceptions.RayError, self._ray.exceptions.GetTimeoutError) as error:
                        reason = f"the node does not answer, or has no deploycompress: {_first(error)}"
                    if reason:
                        raise EnvironmentMissing(
                            f"{folder} is not shared with the node {node['NodeManagerAddress']}: {reason}; {sharing.REMEDY} "
                            "that every node has at the same path"
                        )


def _knock(address: str) -> None:
    """Raises OSError where nobody listens: Ray itself was seen to try for ten minutes."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if separator and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_S).close()


def _import() -> Any:
    try:
        import ray
    except ImportError as error:
        raise EnvironmentMissing(
            f"--ray needs Ray, which is not installed ({error}); pip install 'deploycompress[sweep,ray]'"
        ) from error
    return ray


def _told(node: Any) -> dict[str, float]:
    """What a node has, without what Ray adds for itself."""
    return {k: v for k, v in node["Resources"].items() if ":" not in k and "memory" not in k}


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
