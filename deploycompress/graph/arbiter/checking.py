"""Whether an artefact is still right: its outputs beside the source's, and the task's metric on the validation split."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np

from deploycompress.contracts import Device, RunContext
from deploycompress.devices.answers import DEADLINE_S, answers
from deploycompress.devices.jobs import Candidate
from deploycompress.errors import StageFailed
from deploycompress.graph.allowance import loss
from deploycompress.graph.evaluation import Evaluation, evaluate_answers
from deploycompress.graph.execution import Feed, fixed_batch_of
from deploycompress.graph.feeds import PARITY_BATCHES, fixed_batch, take
from deploycompress.model.parity import LOWEST_COSINE, Parity, compare, to_numpy, worst


@dataclass(frozen=True)
class Checked:
    """One artefact beside the source."""

    parity: Parity
    evaluation: Evaluation
    loss: float | None  # of the primary metric, in its unit; None where the metric is not defined here


class Checker:
    """Runs artefacts on the device, on the same inputs as the source; each in a process of its own."""

    def __init__(self, device: Device, source: Candidate, context: RunContext) -> None:
        """Raises as ``answers`` does where the source itself does not run."""
        self._device, self._context = device, context
        self._batch = fixed_batch_of(source.path) or fixed_batch(context.model)
        sizes = (self._batch,) if self._batch else PARITY_BATCHES
        self._feeds = [to_numpy(take(context.data.loader("val"), size)) for size in sizes]
        self._expected, self.source = self._answered(source, DEADLINE_S, self._batch)

    def check(self, candidate: Candidate, deadline_s: float, batch: int | None = None) -> Checked:
        """``batch``: the largest that it takes, where it has one of its own. Raises StageFailed for one that is not right, or not done in time; EnvironmentMissing where it does not load."""
        found, evaluation = self._answered(candidate, deadline_s, self._batch or batch)
        parity = worst([compare(e, f) for e, f in zip(self._expected, found, strict=True)])
        lowest = LOWEST_COSINE[candidate.precision]
        if parity.cosine < lowest:
            raise StageFailed(
                f"its outputs differ from the source's: cosine {parity.cosine:.3f}, expected at least {lowest}"
            )
        return Checked(parity, evaluation, loss(self._context.task.primary, self.source, evaluation))

    def _answered(
        self, candidate: Candidate, deadline_s: float, batch: int | None
    ) -> tuple[list[Mapping[str, np.ndarray]], Evaluation]:
        """What it gives for the inputs that are compared, and its figures on the validation split."""
        compared: list[Mapping[str, np.ndarray]] = []

        def answer(feeds: Iterator[Feed]) -> Iterable[Mapping[str, np.ndarray]]:
            outputs = answers(self._device, candidate, chain(self._feeds, feeds), deadline_s=deadline_s)
            compared.extend(islice(outputs, len(self._feeds)))
            yield from outputs

        loader, task = self._context.data.loader("val"), self._context.task
        return compared, evaluate_answers(answer, candidate.id, loader, task, batch)
