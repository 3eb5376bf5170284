"""A folder to read damaged files in, and a watch over what else is touched meanwhile."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

WRITES = (
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.mkdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
    "shutil.move",
)
STARTS = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "socket.connect",
    "pickle.find_class",
)


class Hung(BaseException):
    """An input took longer than it may. No ``except Exception`` of the product swallows it."""


@dataclass
class Watch:
    """Notes, by Python's audit events, what is written outside of ``folder`` and what is started."""

    folder: Path
    active: bool = False
    seen: list[str] = field(default_factory=list)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active:
            return
        if event in STARTS:
            self.seen.append(f"{event} {arguments[:2]!r}")
        elif event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            flags = arguments[2] or 0
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND):
                self._note(event, arguments[0])
        elif event in WRITES:
            for argument in arguments[:2]:
                if isinstance(argument, str | bytes | os.PathLike):
                    self._note(event, argument)

    def _note(self, event: str, place: Any) -> None:
        path = os.path.realpath(os.fsdecode(place))
        if path != os.devnull and not path.startswith(f"{self.folder}{os.sep}"):
            self.seen.append(f"{event} {path!r}")


@contextlib.contextmanager
def sandbox() -> Iterator[Path]:
    """A folder to be in, with files around it that nothing may touch."""
    here, temporary = Path.cwd(), tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="deploycompress-fuzz-") as scratch:
        folder = Path(scratch).resolve() / "around" / "inside"
        folder.mkdir(parents=True)
        for name in ("x", "model.onnx", "manifest.json"):
            (folder.parent / name).write_text("untouched")
        os.chdir(folder)
        tempfile.tempdir = str(folder)
        try:
            yield folder
        finally:
            os.chdir(here)
            tempfile.tempdir = temporary


def around(folder: Path) -> dict[str, str]:
    outside = [p for p in folder.parent.parent.rglob("*") if p.is_file() and folder not in p.parents]
    return {str(path): path.read_text() for path in outside}


_WATCHES: list[Watch] = []


def watch(folder: Path) -> Watch:
    """Python's audit hooks stay for good, so there is one."""
    if not _WATCHES:
        _WATCHES.append(Watch(folder))
        sys.addaudithook(lambda event, arguments: _WATCHES[0](event, arguments))
    signal.signal(signal.SIGALRM, _hung)  # each time: others may have taken it meanwhile
    _WATCHES[0].folder = folder
    return _WATCHES[0]


def within(seconds: float, call: Callable[[], Any]) -> None:
    """Raises Hung inside ``call`` after so many seconds, and again after as many: one in a finalizer is swallowed."""
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        _limited(call)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _limited(call: Callable[[], Any]) -> None:
    call()


def _hung(number: int, frame: FrameType | None) -> None:
    """An alarm that comes when the call has just ended is nobody's."""
    while frame is not None:
        if frame.f_code is _limited.__code__:
            raise Hung
        frame = frame.f_back
