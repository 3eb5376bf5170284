"""The errors a user can meet, one class per exit code."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass


class DeployCompressError(Exception):
    """What went wrong, what was received and expected, and what to do: all of it in the message."""

    exit_code = 1


@dataclass(frozen=True)
class Problem:
    """One mistake in a configuration: where it stands and what is wrong with it."""

    message: str
    where: str = ""  # "pipeline.yaml:12:9", empty when the mistake has no place in a file
    path: str = ""  # "stages.1.prune.target", empty when the mistake is not about a key

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.path, self.message) if part)


class ConfigError(DeployCompressError):
    """What the configuration says, or names, is wrong (weights, data and labels included)."""

    exit_code = 2

    def __init__(self, problems: str | Sequence[Problem]) -> None:
        self.problems = (Problem(problems),) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class EnvironmentMissing(DeployCompressError):
    """A library, a device, a driver, disk space or a lock is not to be had."""

    exit_code = 3


class StageFailed(DeployCompressError):
    """A step crashed, ran out of time, or made something that is not right."""

    exit_code = 4


class GateFailed(DeployCompressError):
    """The artefacts were made and measured, and do not meet the budget."""

    exit_code = 5


class Interrupted(DeployCompressError):
    """SIGINT or SIGTERM; the next run goes on from there."""

    def __init__(self, signal_number: int) -> None:
        self.exit_code = 128 + signal_number
        super().__init__("interrupted; run the same command again to go on from there")


_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_WAY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR})


def of_system(error: OSError) -> EnvironmentMissing | None:
    """What a file system that refused means to a user; None when it is no such refusal but a bug."""
    place = f" {error.filename}" if error.filename else ""
    if error.errno in _NO_ROOM:
        return EnvironmentMissing(f"no room to write{place}: {error.strerror}; free some space")
    if error.errno in _NO_WAY:
        return EnvironmentMissing(
            f"cannot read or write{place}: {error.strerror}; look at the path and its permissions"
        )
    return None


BY_NAME: dict[str, type[DeployCompressError]] = {
    cls.__name__: cls
    for cls in (DeployCompressError, ConfigError, EnvironmentMissing, StageFailed, GateFailed)
}
