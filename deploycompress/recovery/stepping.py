"""One optimiser step: forward, backward and update over its batches, with what may go wrong named."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deploycompress.contracts import Batch
from deploycompress.errors import ConfigError, StageFailed
from deploycompress.model.sparse import Masks, keep_zeros
from deploycompress.recovery.feeding import Share
from deploycompress.recovery.objectives import Objective, Terms
from deploycompress.recovery.processes import Processes
from deploycompress.recovery.recipe import Recipe
from deploycompress.recovery.state import Training

ALLOCATING = ("allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
FIRST_STEPS = 10  # their mean loss is what a later one is held against
EXPLODED = 100.0  # times that, and at least this, in the moving average: nothing comes back from there
RECENT = 0.9  # decay of the moving average
OF_ONE = "more than 1 value per channel"  # of torch's batch normalisation
SKIPS = 20  # float16: the scale halves with each, and starts at 2^16

Penalty = Callable[[], Terms]


class Diverged(StageFailed):
    """A loss or a gradient is not finite, or the loss has exploded."""


@dataclass
class Stepper:
    """Takes optimiser steps on ``training``; what they depend on is the seed, the step's number and its batches."""

    training: Training
    objective: Objective
    penalty: Penalty | None
    recipe: Recipe
    processes: Processes
    zeros: Masks
    seed: int

    def take(
        self,
        shares: Sequence[Share],
        number: int,
        steps: int,
        rate: float,
        where: str,
        votes: Sequence[bool],
    ) -> tuple[float, list[bool]]:
        """Step ``number`` of ``steps``, from 0; gives the mean loss a sample, and who of all processes said yes.

        Raises Diverged, or StageFailed when memory runs out, naming ``where``; no weight has changed then.
        """
        for group in self.training.optimizer.param_groups:
            group["lr"] = rate
        if hasattr(self.objective, "progress"):
            self.objective.progress(number / steps)
        buffers = self._buffers()
        while True:
            draw_anew(self.seed, number, self.processes)
            self.training.optimizer.zero_grad()
            try:
                loss, said, told = self._gradients(shares, votes)
                break
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                self._split(shares, where, error, buffers)
            except ValueError as error:
                if OF_ONE not in str(error):
                    raise
                raise ConfigError(
                    f"{where}: received a batch of one sample, whose channels have one value each; batch normalisation "
                    "expects more in training: leave the last batch out where it is small (drop_last=True of a DataLoader), or "
                    "choose another batch size"
                ) from error
        with _named(
            f"{where}: out of memory in the optimizer's update; use optimizer: sgd, or a smaller network"
        ):
            self._update(loss, where, told)
        return loss, said

    def rehearse(self, batch: Batch) -> None:
        """Forward and backward, and no update."""
        loss, _, told = self._gradients([Share(batch, batch.size)], ())
        self._check(loss, float(self._norm()), "the rehearsal's batch", told)
        self.training.optimizer.zero_grad()

    # ------------------------------------------------------------ forward and backward

    def _gradients(
        self, shares: Sequence[Share], votes: Sequence[bool]
    ) -> tuple[float, list[bool], Callable[[], str]]:
        total = sum(share.size for share in shares)
        device, exact, seen = self.processes.device, self.processes.exact, []
        loss_sum = torch.zeros((), dtype=exact, device=device)
        for piece in self._pieces(shares):
            weight = piece.size / total
            with self.processes.autocast():
                terms = self.objective(self.training.net, piece.to(device))
                loss = _sum(terms)
            loss = loss if weight == 1 else loss * weight
            self.processes.backward(loss)
            seen.append((weight, _detached(terms)))
            loss_sum += loss.detach()
        if self.penalty is not None:
            terms = self.penalty()
            seen.append((1.0, _detached(terms)))
            # Each process adds its part of what is the same in all of them.
            loss = _sum(terms) / self.processes.count
            self.processes.backward(loss)
            loss_sum += loss.detach()
        figures = torch.stack(
            [loss_sum, *(torch.as_tensor(float(v), dtype=exact, device=device) for v in votes)]
        )
        value, *said = self.processes.reduce(self._trained, figures).tolist()
        return value, [v > 0 for v in said], lambda: _told(seen)

    def _pieces(self, shares: Sequence[Share]) -> list[Batch]:
        """This process's samples, each batch cut into as many parts as fit into memory."""
        found: list[Batch] = []
        for share in shares:
            own = share.batch
            if own is not None:
                count = min(self.training.progress.pieces, max(1, own.size // 2))
                cuts = [own.size * i // count for i in range(count + 1)]
                found += [own] if count == 1 else [own.rows(a, b) for a, b in itertools.pairwise(cuts)]
        return found

    # ------------------------------------------------------------ the update

    def _update(self, loss: float, where: str, told: Callable[[], str]) -> None:
        training, scaler = self.training, self.training.scaler
        norm = self._norm()
        try:
            self._check(loss, float(norm), where, told)
            self._watch(loss, where, told)
        except Diverged:
            if scaler is not None:  # or it would take the next gradients for ones that it has scaled back
                scaler.update(scaler.get_scale())
            raise
        if self.recipe.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self._trained, self.recipe.clip, norm)
        if scaler is None:
            training.optimizer.step()
        else:
            scaler.step(training.optimizer)
            scaler.update()
        keep_zeros(self.zeros)

    @property
    def _trained(self) -> list[torch.nn.Parameter]:
        return [p for group in self.training.optimizer.param_groups for p in group["params"]]

    def _norm(self) -> Tensor:
        """Of the whole gradient, as it is without a scale."""
        if self.training.scaler is not None:
            self.training.scaler.unscale_(self.training.optimizer)
        return torch.nn.utils.get_total_norm([p.grad for p in self._trained if p.grad is not None])

    def _check(self, loss: float, norm: float, where: str, told: Callable[[], str]) -> None:
        progress, scaled = self.training.progress, self.training.scaler is not None
        # A float16 gradient that is too large is the scale's fault: the scaler lowers it, and leaves the step out.
        progress.skipped = progress.skipped + 1 if scaled and not math.isfinite(norm) else 0
        if math.isfinite(loss) and (math.isfinite(norm) or (scaled and progress.skipped <= SKIPS)):
            return
        what = "gradient" if math.isfinite(loss) else "loss"
        raise Diverged(
            f"{where}: the {what} is not finite ({told()}; gradient norm {norm:.4g}): nothing was saved; use a lower "
            "lr, set clip: 1.0, or look for extreme values in the data"
        )

    def _watch(self, loss: float, where: str, told: Callable[[], str]) -> None:
        """Raises Diverged when the recent losses are far above the first ones (a loss that may be negative: never)."""
        progress = self.training.progress
        done = progress.index if progress.epoch == 0 else FIRST_STEPS
        if done < FIRST_STEPS:
            progress.usual_loss += (loss - progress.usual_loss) / (done + 1)
            progress.recent_loss = progress.usual_loss
            return
        progress.recent_loss = RECENT * progress.recent_loss + (1 - RECENT) * loss
        if progress.usual_loss > 0 and progress.recent_loss > EXPLODED * max(progress.usual_loss, 1.0):
            raise Diverged(
                f"{where}: training diverges: the loss is {progress.recent_loss:.4g} in the mean of the last steps and "
                f"was {progress.usual_loss:.4g} in the first ones ({told()}): use a lower lr, or set clip: 1.0"
            )

    # ------------------------------------------------------------ out of memory

    def _buffers(self) -> list[Tensor]:
        """Copies of the batch statistics, which a forward that fails half-way has moved."""
        if self.recipe.on_out_of_memory == "fail":
            return []
        return [buffer.clone() for buffer in self.training.net.buffers()]

    def _split(
        self, shares: Sequence[Share], where: str, error: BaseException, buffers: Sequence[Tensor]
    ) -> None:
        """Twice as many parts for each batch. Raises StageFailed where that is not asked for, or not possible."""
        self.training.optimizer.zero_grad()
        progress, largest = self.training.progress, max(share.size for share in shares)
        split = self.recipe.on_out_of_memory == "split"
        if not split or largest // (2 * progress.pieces) < 2:
            hint = (
                f"its parts of {largest // progress.pieces} samples cannot be made smaller: use a smaller network "
                "or mixed_precision: bf16"
                if split
                else "set on_out_of_memory: split, or use a smaller data.batch_size with accumulate"
            )
            raise StageFailed(
                f"{where}: out of memory with {largest} samples on {self.processes.device}; {hint}"
            ) from error
        with torch.no_grad():
            for buffer, before in zip(self.training.net.buffers(), buffers, strict=True):
                buffer.copy_(before)
        progress.pieces *= 2
        if self.processes.device.type == "cuda":
            torch.cuda.empty_cache()


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: torch's allocator for the CPU, and libraries beside CUDA's, say so only in words."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in ALLOCATING)


@contextmanager
def _named(message: str) -> Iterator[None]:
    """StageFailed with ``message`` where memory runs out inside."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise StageFailed(message) from error


def draw_anew(seed: int, step: int, processes: Processes) -> None:
    """Begin the random numbers of one step in one process: a training that is cut and goes on draws the same ones."""
    own = int(np.random.SeedSequence([seed, step, processes.rank]).generate_state(1)[0])
    random.seed(own)
    np.random.seed(own)
    if processes.device.type == "cpu":
        torch.default_generator.manual_seed(own)  # torch.manual_seed writes down the whole stack for CUDA
    else:
        torch.manual_seed(own)


def _sum(terms: Terms) -> Tensor:
    first, *others = terms.values()
    return sum(others, start=first)


def _detached(terms: Terms) -> Terms:
    return {name: term.detach() for name, term in terms.items()}


def _told(seen: Sequence[tuple[float, Terms]]) -> str:
    """Every summand of the loss, over the parts of the batch."""
    sums: dict[str, float] = {}
    for share, terms in seen:
        for name, term in terms.items():
            sums[name] = sums.get(name, 0.0) + share * float(term)
    return ", ".join(f"{name} {value:.4g}" for name, value in sums.items())
