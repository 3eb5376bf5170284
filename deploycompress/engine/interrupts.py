"""SIGINT and SIGTERM become a flag that the run looks at, so that nothing is cut in the middle."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from deploycompress.errors import Interrupted


class Interrupts:
    """``wake`` becomes readable when a signal has come; ``signal_number`` says which."""

    def __init__(self, wake: int | None = None) -> None:
        self.signal_number: int | None = None
        self.wake = wake
        self._cuts = False

    def check(self) -> None:
        """Raises Interrupted once a signal has come."""
        if self.signal_number is not None:
            raise Interrupted(self.signal_number)

    @contextmanager
    def cutting(self) -> Iterator[None]:
        """Around a wait in which nothing is changed: a signal ends it at once, by Interrupted."""
        self.check()
        self._cuts = True
        try:
            yield
        finally:
            self._cuts = False

    def note(self, number: int, frame: FrameType | None) -> None:
        """What a signal does."""
        self.signal_number = self.signal_number or number
        if self._cuts:
            self._cuts = False
            raise Interrupted(self.signal_number)


@contextmanager
def catch() -> Iterator[Interrupts]:
    """Catch both signals while the block runs; outside the main thread there is nothing to catch."""
    if threading.current_thread() is not threading.main_thread():
        yield Interrupts()
        return
    wake, poke = os.pipe()
    os.set_blocking(poke, False)
    interrupts = Interrupts(wake)

    before = {number: signal.signal(number, interrupts.note) for number in (signal.SIGINT, signal.SIGTERM)}
    poked = signal.set_wakeup_fd(poke, warn_on_full_buffer=False)
    try:
        yield interrupts
    finally:
        signal.set_wakeup_fd(poked)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(wake)
        os.close(poke)
