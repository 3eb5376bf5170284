"""How long artefacts are measured: blocks of timed calls, and the two modes that users know."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

Mode = Literal["quick", "full"]
UNTIMED_MS = 5.0  # at the start of each block, with one thread


@dataclass(frozen=True)
class Plan:
    """How long each candidate is measured."""

    blocks: int
    block_ms: float
    warmup_ms: float
    least_samples: int = 1  # of all blocks together, however slow the candidate is
    enough_samples: int = 200_000  # of one block: a quick candidate is not measured for longer
    fewest_blocks: int | None = None  # of slow candidates, after ``enough_s``; None: ``blocks``
    enough_s: float | None = None  # seconds for each candidate
    again: float = 0.5  # disturbed blocks are made again, at most this share of ``blocks``

    @property
    def extra_blocks(self) -> int:
        return math.floor(self.again * self.blocks)

    @property
    def fewest(self) -> int:
        return self.blocks if self.fewest_blocks is None else min(self.blocks, self.fewest_blocks)

    @property
    def block_samples(self) -> int:
        return math.ceil(self.least_samples / self.fewest)

    @property
    def nominal_s(self) -> float:
        """Seconds that each candidate's blocks take, where nothing is disturbed and nothing slow."""
        return self.blocks * (self.block_ms + UNTIMED_MS) / 1000

    def longer(self, times: int) -> Plan:
        """As many times the blocks, of the same length."""
        return replace(
            self,
            blocks=times * self.blocks,
            least_samples=times * self.least_samples,
            fewest_blocks=None if self.fewest_blocks is None else times * self.fewest_blocks,
            enough_s=None if self.enough_s is None else times * self.enough_s,
        )


# quick: p90 always (64 samples), p99 (662) up to about 4 ms a call. full: MLPerf's 1,024 samples and 60 s.
# What disturbs a shared machine lasts longer than a block, and then misses one of two that ran side by side, so that
# the number of blocks tells and not their length. On a machine that others kept busy the interval of a ratio was 3.1 %
# wide with 80 blocks of 40 ms, 1.8 % with 240 of 12 ms and 1.3 % with 360 of 7 ms, all in the same 4.5 s an artefact.
# With these a comparison of two and the first one's twin takes at most 20 s.
MODES: dict[Mode, Plan] = {
    "quick": Plan(360, 7.0, 200.0, 64, 20, fewest_blocks=32, enough_s=4.5),
    "full": Plan(200, 320.0, 2000.0, 1024),
}
REHEARSED = Plan(2, 5.0, 5.0, 2)
