"""Which artefacts are worth having: of each accuracy the fastest, and only where that is faster than a more accurate one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LEAST_GAIN = (
    0.97  # of the latency of the next more accurate one: less is noise, or not worth another artefact
)


@dataclass(frozen=True)
class Contender:
    """One artefact as it was measured beside the source."""

    name: str
    latency: float  # as a share of the source's
    loss: float  # of the primary metric against the source, in its unit; negative: it is better
    cosine: float  # between its outputs and the source's, the worst of all outputs


def choose(contenders: Sequence[Contender]) -> tuple[list[Contender], dict[str, str]]:
    """The Pareto set of accuracy and latency, the fastest first; and of every other one why it is not in it.

    One that is better than the source counts as equal to it; of equal metrics the closer outputs are the more
    accurate ones.
    """
    kept: list[Contender] = []
    refused: dict[str, str] = {}
    for contender in sorted(contenders, key=lambda c: (max(c.loss, 0.0), -c.cosine, c.latency)):
        fastest = min(kept, key=lambda c: c.latency, default=None)
        if fastest is None or contender.latency <= LEAST_GAIN * fastest.latency:
            kept.append(contender)
        else:
            refused[contender.name] = (
                f"{contender.latency:.2f} of the source's latency: not at least {1 - LEAST_GAIN:.0%} faster than "
                f"{fastest.name} ({fastest.latency:.2f}), which is as accurate or more"
            )
    return sorted(kept, key=lambda c: c.latency), refused
