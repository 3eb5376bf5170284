"""One operation of a device's agent over a link that comes and goes, behind a scripted transport."""

from __future__ import annotations

import json
import time

import pytest

from deploycompress.config.devices import SshConfig
from deploycompress.devices import link
from deploycompress.errors import EnvironmentMissing


class Transport:
    """Each call takes ``seconds``; the first ``lost`` of them lose the link."""

    def __init__(self, seconds: float, lost: int) -> None:
        self.seconds, self.lost = seconds, lost

    def run(self, command: str, data: bytes, timeout_s: float, most: int) -> link.Done:
        time.sleep(self.seconds)
        program, _, rest = data.partition(b"\n")
        request = json.loads(rest[int(program) :].partition(b"\n")[0])
        mark = request["mark"].encode()
        self.lost -= 1
        answer = b"" if self.lost >= 0 else b'{"bytes": 0}'
        return link.Done(0, b"\n%s %d\n%s\n%s" % (mark, len(answer), answer, mark), "")

    def explain(self, done: link.Done) -> None:
        raise link.LinkLost("it is away")


def test_patience_begins_when_the_link_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operation that took longer than that is asked for again all the same."""
    monkeypatch.setattr(link, "PAUSES_S", (0.01, 0.01))
    config = SshConfig(ssh="board", patience="1 s")
    assert link.Link("board", config, "~", Transport(1.1, lost=1)).ask("facts").head == {"bytes": 0}
    with pytest.raises(EnvironmentMissing, match="it is away, and so for 1 s"):
        link.Link("board", config, "~", Transport(0.3, lost=100)).ask("facts")
