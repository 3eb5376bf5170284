"""Sequence recognition with CTC: a text for each recording, without a time for each letter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from deploycompress.contracts import Batch, MetricInfo, Outputs
from deploycompress.data.tasks.aspects import Aspect
from deploycompress.data.tasks.checks import chosen, require_classes, require_indices, require_metric, table
from deploycompress.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

NAME = "ctc"


@dataclass(frozen=True)
class Ctc:
    """Logits [batch, frames, symbols] and label sequences; the CTC loss (Graves et al. 2006).

    Labels are a list of integer tensors, one a sample, or one tensor [batch, longest] filled up with ``padding``.
    ``lengths``: the output, or else the input, [batch], that says how many frames of each sample count; None: all.
    ``symbols``: the text of every symbol, as a string of characters or a list, without which words are not known;
    words are cut at spaces. Texts are decoded greedily: the likeliest symbol of each frame, repetitions once,
    blanks left out. ``metric``: ``wer`` where the symbols hold a space, else ``cer``.
    """

    blank: int = 0
    padding: int = -100
    lengths: str | None = None
    symbols: Sequence[str] | None = None
    metric: str | None = None
    output: str | None = None

    _ALL: ClassVar[dict[str, MetricInfo]] = table(
        MetricInfo("wer", higher_is_better=False, unit="share"),
        MetricInfo("cer", higher_is_better=False, unit="share"),
    )

    def __post_init__(self) -> None:
        if self.symbols is not None and not 0 <= self.blank < len(self.symbols):
            raise ValueError(
                f"blank is {self.blank}; expected 0 to {len(self.symbols) - 1}, as symbols has as many"
            )
        if self.metric is not None:
            require_metric(
                NAME if self.spaced else f"{NAME} without a space among symbols", self.metric, self.figures
            )

    @property
    def spaced(self) -> bool:
        return self.symbols is not None and " " in self.symbols

    @property
    def figures(self) -> dict[str, MetricInfo]:
        return self._ALL if self.spaced else {"cer": self._ALL["cer"]}

    @property
    def primary(self) -> MetricInfo:
        return self.figures[self.metric or next(iter(self.figures))]

    @property
    def aspects(self) -> tuple[Aspect, ...]:
        return (Aspect(self.output, class_axis=2),)

    def check(self, outputs: Outputs, batch: Batch) -> None:
        """Logits are 3-D, labels are symbols without the blank, and there are frames enough. Raises ConfigError."""
        logits = chosen(outputs, self.output, NAME)
        if logits.ndim != 3 or len(logits) != batch.size:
            raise ConfigError(
                f"{NAME}: the model's output is {list(logits.shape)} for a batch of {batch.size}; expected "
                f"[{batch.size}, frames, symbols]: transpose it in the model where frames come first"
            )
        require_classes(logits.shape[2], None if self.symbols is None else len(self.symbols), NAME)
        if not self.blank < logits.shape[2]:
            raise ConfigError(f"{NAME}: blank is {self.blank}, but the model has {logits.shape[2]} symbols")
        frames = self.frames(outputs, batch, logits)
        for number, (labels, count) in enumerate(zip(self.sequences(batch), frames.tolist(), strict=True)):
            require_indices(labels, logits.shape[2], NAME)
            symbols = labels.tolist()
            if self.blank in symbols:
                raise ConfigError(
                    f"{NAME}: sample {number} of a batch has the blank, {self.blank}, among its labels: number the "
                    f"symbols around it, or fill up with {self.padding}, as task.args.padding says"
                )
            needed = len(symbols) + sum(a == b for a, b in pairwise(symbols))
            if needed > count:
                raise ConfigError(
                    f"{NAME}: sample {number} of a batch has {len(symbols)} labels, which need {needed} frames; "
                    f"received {count}: let the model give more frames, or leave out such samples"
                )

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        import torch
        import torch.nn.functional as F

        logits, labels = chosen(outputs, self.output, NAME), self.sequences(batch)
        counts = torch.tensor([len(one) for one in labels], device=logits.device)
        return F.ctc_loss(
            logits.float().log_softmax(2).transpose(0, 1),
            torch.cat(labels).long().to(logits.device),
            self.frames(outputs, batch, logits),
            counts,
            blank=self.blank,
        )

    def metrics(self) -> CtcMetrics:
        return CtcMetrics(self)

    def sequences(self, batch: Batch) -> list[Tensor]:
        """The labels of each sample, without what fills them up. Raises ConfigError when there are none."""
        import torch

        rows = batch.targets
        if not isinstance(rows, (torch.Tensor, list, tuple)) or len(rows) != batch.size:
            raise ConfigError(
                f"{NAME}: received {'no labels' if rows is None else f'labels of type {type(rows).__name__}'} for a "
                f"batch of {batch.size}; expected as many integer tensors, or one [{batch.size}, longest] filled up "
                f"with {self.padding}"
            )
        tensors = [torch.as_tensor(row) for row in rows]
        return [row[row != self.padding] for row in tensors]

    def frames(self, outputs: Outputs, batch: Batch, logits: Tensor) -> Tensor:
        """How many frames of each sample count, [batch] integers."""
        import torch

        most = logits.shape[1]
        if self.lengths is None:
            return torch.full((len(logits),), most, device=logits.device)
        found = outputs.tensors.get(self.lengths, batch.inputs.get(self.lengths))
        if found is None or tuple(found.shape) != (len(logits),) or not bool((found <= most).all()):
            received = (
                "neither" if found is None else f"{found.tolist() if found.ndim == 1 else list(found.shape)}"
            )
            raise ConfigError(
                f"{NAME}: task.args.lengths names {self.lengths!r}: received {received}; expected an output or an input "
                f"[{len(logits)}] with numbers of frames up to {most}, which is how many the model gives"
            )
        return found.long()


class CtcMetrics:
    """``wer`` and ``cer``: edits (insertions, deletions, substitutions) over the words, or symbols, of the labels."""

    def __init__(self, task: Ctc) -> None:
        self._task = task
        self._edits = dict.fromkeys(task.figures, 0)
        self._counts = dict.fromkeys(task.figures, 0)

    def update(self, outputs: Outputs, batch: Batch) -> None:
        task = self._task
        logits = chosen(outputs, task.output, NAME).detach()
        best, frames = logits.argmax(2).cpu().numpy(), task.frames(outputs, batch, logits).tolist()
        for row, count, labels in zip(best, frames, task.sequences(batch), strict=True):
            self._compare("cer", labels.tolist(), decode(row[:count], task.blank))
            if task.spaced:
                self._compare("wer", *map(self._words, (labels.tolist(), decode(row[:count], task.blank))))

    def _words(self, symbols: Sequence[int]) -> list[str]:
        assert self._task.symbols is not None
        return "".join(self._task.symbols[s] for s in symbols).split()

    def _compare(self, name: str, true: Sequence[object], found: Sequence[object]) -> None:
        self._edits[name] += edits(true, found)
        self._counts[name] += len(true)

    def compute(self) -> dict[str, float]:
        return {name: self._edits[name] / count for name, count in self._counts.items() if count}

    def scores(self) -> np.ndarray | None:
        """None: long texts count more than short ones, so the rate is not a mean over samples."""
        return None


def decode(symbols: np.ndarray, blank: int) -> list[int]:
    """Greedy decoding: repetitions once, then without blanks (Graves et al. 2006, section 3.1)."""
    if not len(symbols):
        return []
    once = symbols[np.concatenate(([True], symbols[1:] != symbols[:-1]))]
    kept: list[int] = once[once != blank].tolist()
    return kept


def edits(true: Sequence[object], found: Sequence[object]) -> int:
    """Levenshtein's distance, a row of the table at a time."""
    numbers: dict[object, int] = {}
    a, b = (np.array([numbers.setdefault(s, len(numbers)) for s in row], np.int64) for row in (true, found))
    steps = np.arange(len(b) + 1)
    row = steps.copy()
    for symbol in a:
        best = row + 1  # left out
        best[1:] = np.minimum(best[1:], row[:-1] + (b != symbol))
        row = np.minimum.accumulate(best - steps) + steps  # and put in, any number of times
    return int(row[-1])
