"""What several rooms' tests share: a pipeline that takes seconds, and a store of its own for each test."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploycompress.cli import main
from deploycompress.engine import launch

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop(
    "PYTHONDONTWRITEBYTECODE", None
)  # each of hundreds of processes would compile the project again
for name in (
    "GITHUB_STEP_SUMMARY",
    "GITHUB_ACTIONS",
):  # where these tests run in a job of GitHub's themselves
    os.environ.pop(name, None)

FORKED = Path(__file__).resolve().parents[1] / "benchmarks" / "reliability" / "forked"
MODEL = '''
"""A network that trains in a second."""
from torch import nn


def build(width: int = 16) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, 10),
    )
'''

PIPELINE = """
name: tiny
seed: 1
model:
  build: model.py:build
  inputs: {image: {shape: [batch, 1, 8, 8]}}
task: classification
data: {source: digits, image_size: 8, batch_size: 128, calibration: 32}
target: {threads: 1}
stages:
  - train: {epochs: 1, lr: 0.1}
  - prune: {target: {macs: 60%}, criterion: magnitude}
  - distill: {epochs: 1, lr: 0.05}
  - export
  - quantize: {precision: int8}
  - benchmark
gates:
  artifact_size: {max: 1 MB}
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of slow tests first: at the end one process would wait for the other.

    Files of quiet tests last, and those tests first in them: all other processes wait for each, and each for the
    longest test that runs in them.
    """
    marked = {
        name: {item.path for item in items if item.get_closest_marker(name)} for name in ("slow", "quiet")
    }

    def turn(item: pytest.Item) -> tuple[int, bool]:
        last = item.path in marked["quiet"]
        return (2 if last else item.path not in marked["slow"]), not item.get_closest_marker("quiet")

    items.sort(key=turn)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A test marked ``quiet`` says what was measured, so none of the other processes runs a test meanwhile."""
    with _machine(alone=item.get_closest_marker("quiet") is not None):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """What a ``quiet`` test says of a machine that others are using at that very time is not looked at."""
    try:
        return (yield)
    except AssertionError:
        if item.get_closest_marker("quiet") is not None and (share := _share_of_a_core()) < 0.8:
            pytest.skip(f"other programs use this machine: of a core there was {share:.0%} left")
        raise


def _share_of_a_core() -> float:
    """The least that one of as many processes as there are cores is given in a second."""
    spin = "import time; end = time.time() + 1\nwhile time.time() < end: pass\nprint(time.process_time())"
    cores = len(os.sched_getaffinity(0))
    all_of_them = [
        subprocess.Popen([sys.executable, "-S", "-c", spin], stdout=subprocess.PIPE) for _ in range(cores)
    ]
    return min(float(process.communicate()[0]) for process in all_of_them)


@contextlib.contextmanager
def _machine(alone: bool) -> Iterator[None]:
    """The kernel's lock, together with others or alone; a turnstile lets nobody past one that waits to be alone."""
    session = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    if session is None:
        yield
        return
    root = Path(tempfile.gettempdir())
    with (
        open(root / f"pytest-{session}.turn", "w") as turn,
        open(root / f"pytest-{session}.run", "w") as running,
    ):
        fcntl.flock(turn, fcntl.LOCK_EX)
        fcntl.flock(running, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(turn, fcntl.LOCK_UN)
        yield


def pytest_sessionfinish() -> None:
    session = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    for file in Path(tempfile.gettempdir()).glob(f"pytest-{session}.*"):
        file.unlink(missing_ok=True)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A folder with model.py and a pipeline.yaml of every kind of step; DESIGN asks for under 10 s when warm."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "model.py").write_text(textwrap.dedent(MODEL))
    (folder / "pipeline.yaml").write_text(PIPELINE.lstrip())
    return folder / "pipeline.yaml"


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or fills the user's store."""
    store = tmp_path / "store"
    monkeypatch.setenv("DEPLOYCOMPRESS_STORE", str(store))
    return store


@pytest.fixture(scope="session")
def warm_server(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One fork server for all runs in this process, which measure for half a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("server"))  # it outlives the folder of any one test
        patch.setenv("PYTHONPATH", str(FORKED), prepend=os.pathsep)
        patch.setattr(launch, "PRELOADED", [*launch.PRELOADED, "short_measurements"])
        launch.warm_up()


@pytest.fixture(scope="session")
def command(warm_server) -> Callable[..., tuple[int, str]]:
    """The command line in this process: exit code, and all it said.

    Where the process, or what was measured, is what a test asks about, it starts one of its own.
    """

    def run(*words: object, cwd: Path) -> tuple[int, str]:
        said, before = io.StringIO(), signal.getsignal(signal.SIGTERM)
        with contextlib.chdir(cwd), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                main([*map(str, words)])
            except SystemExit as ended:
                assert isinstance(ended.code, int)
                return ended.code, said.getvalue()
            finally:
                signal.signal(signal.SIGTERM, before)
        raise AssertionError("the command returned instead of ending")

    return run


Command = tuple[str, dict[str, str], str]  # name, properties, message


@pytest.fixture
def obeyed() -> Callable[[str], list[Command]]:
    """What GitHub's runner does with a stream of output: the workflow commands that it obeys, unescaped.

    Its rules (actions/runner, ActionCommand.cs and ActionCommandManager.cs): ``::name a=b,c=d::message`` at the
    beginning of a line, ``##[name a=b;c=d]message`` anywhere in it; none between ``stop-commands`` and its token.
    """
    known = {"error", "warning", "notice", "debug", "group", "endgroup", "add-mask", "stop-commands"}

    def unescaped(text: str, more: str = "") -> str:
        for sign in "\r\n" + more + "%":
            text = text.replace(f"%{ord(sign):02X}", sign)
        return text

    def read(output: str) -> list[Command]:
        found: list[Command] = []
        token = ""
        for line in re.split(r"\r\n|\r|\n", output):
            match = re.match(r"\s*::([^ :]+)(?: (.*?))?::(.*)", line)
            if match is None or match[1] not in known | {token}:
                match = re.search(r"##\[([^ \]]+)(?: (.*?))?\](.*)", line)
            if match is None or match[1] not in known | {token}:
                continue
            name, given, message = match[1], match[2] or "", match[3]
            if token:
                token = "" if name == token else token
                continue
            if name == "stop-commands":
                token = message
                continue
            pairs = (pair.split("=", 1) for pair in given.split(",") if "=" in pair)
            found.append((name, {key: unescaped(v, ":,") for key, v in pairs}, unescaped(message)))
        assert not token, "the commands were stopped and never allowed again"
        return found

    return read
