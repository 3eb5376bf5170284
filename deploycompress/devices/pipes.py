"""Runs a program with bytes on its standard input, for as long and for as many bytes as the caller says."""

from __future__ import annotations

import os
import selectors
import subprocess
import time
from collections.abc import Sequence
from typing import IO, Any

PIECE = 1 << 16


class TooMuch(Exception):
    """It wrote more than it was allowed to; it was ended."""


def run(
    arguments: Sequence[str], data: bytes, timeout_s: float, most: int
) -> tuple[int | None, bytes, bytes]:
    """Exit code (None: it did not end in time, and was ended), standard output and standard error.

    ``most``: bytes of each of the two. Raises TooMuch, and FileNotFoundError where there is no such program.
    """
    end = time.monotonic() + timeout_s
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(arguments, bufsize=0, **pipes) as process, selectors.DefaultSelector() as open_ends:
        assert process.stdin and process.stdout and process.stderr
        told: dict[IO[bytes], bytearray] = {process.stdout: bytearray(), process.stderr: bytearray()}
        rest = memoryview(data)
        os.set_blocking(process.stdin.fileno(), False)
        open_ends.register(process.stdin, selectors.EVENT_WRITE)
        for stream in told:
            open_ends.register(stream, selectors.EVENT_READ)
        try:
            while open_ends.get_map():
                ready = open_ends.select(max(0.0, end - time.monotonic()))
                if not ready and time.monotonic() >= end:
                    raise TimeoutError
                for key, _ in ready:
                    if key.fileobj is process.stdin:
                        rest = _written(process.stdin, rest)
                        if not rest:
                            open_ends.unregister(process.stdin)
                            process.stdin.close()
                        continue
                    piece = os.read(key.fd, PIECE)
                    text = told[key.fileobj]  # type: ignore[index]
                    text += piece
                    if not piece:
                        open_ends.unregister(key.fileobj)
                    if len(text) > most:
                        raise TooMuch
            code: int | None = process.wait(max(0.0, end - time.monotonic()))
        except (TimeoutError, subprocess.TimeoutExpired):
            process.kill()
            code = None
        except BaseException:
            process.kill()
            raise
    return code, bytes(told[process.stdout]), bytes(told[process.stderr])


def _written(stream: IO[bytes], rest: memoryview) -> memoryview:
    """What is left to be written; nothing where nobody reads any more."""
    try:
        return rest[os.write(stream.fileno(), rest[:PIECE]) :]
    except BrokenPipeError:
        return rest[:0]
