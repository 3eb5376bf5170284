"""Groups tried out before they are offered: those that work stay, others are mended, or left out with the reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from torch import nn

from deploycompress.contracts import Model
from deploycompress.pruning.following import changes, touching
from deploycompress.pruning.groups import ChannelGroup, Unpruned
from deploycompress.pruning.trials import ROUNDS, Problem, livened, try_out

MOST_TRIALS = 400  # of changes, in all: some hundred modules may ask for widths
MOST_REFUSED = 2  # times that one kind of change to modules of one class may not help before it is given up


def screen(
    module: nn.Module, model: Model, groups: Sequence[ChannelGroup]
) -> tuple[list[ChannelGroup], list[Unpruned]]:
    """Which groups can be pruned, and why not the others.

    All at once where that works, which is the rule. Where the pruned forward fails, the module at work is told
    the widths it asks for, or the groups it ties together become one; what cannot be mended is set aside, and
    tried again without the others.
    """
    if not groups:
        return [], []
    screening = _Screening(livened(module, model), model)
    good = list(groups)
    for number in range(len(ROUNDS)):
        screening.settle(good, number)
        good = screening.good
    return good, sorted(screening.failed, key=lambda u: [g.id for g in groups].index(u.layer))


class _Screening:
    def __init__(self, subject: nn.Module, model: Model) -> None:
        self.subject, self.model = subject, model
        self.good: list[ChannelGroup] = []
        self.failed: list[Unpruned] = []
        self.trials = 0  # of changes
        self.helped: Counter[tuple[type[nn.Module], str]] = Counter()
        self.refused: Counter[tuple[type[nn.Module], str]] = Counter()

    def settle(self, groups: Sequence[ChannelGroup], number: int) -> None:
        """Find those of ``groups`` that can be pruned together to the shares of a round, or mend them."""
        order = {group.id: i for i, group in enumerate(groups)}
        self.good = []
        pending = [list(groups)] if groups else []
        while pending:
            part = pending.pop()
            mended, problem = self._mended([*self.good, *part], number)
            if problem is None:
                self.good = mended
            elif len(part) > 1:
                pending += _divided(part, problem)
            else:
                self.failed.append(Unpruned(part[0].id, self._reason(part, problem, number)))
        self.good.sort(key=lambda g: order[g.id])

    def _mended(self, groups: list[ChannelGroup], number: int) -> tuple[list[ChannelGroup], Problem | None]:
        """``groups`` changed until they work together; or as far as that goes, and what is wrong then."""
        problem = self._try(groups, number)
        while problem is not None:
            better = next(
                filter(None, (self._better(groups, problem, p, number) for p in problem.blamed[:2])), None
            )
            if better is None:
                break
            groups, problem = better
        return groups, problem

    def _better(
        self, groups: list[ChannelGroup], problem: Problem, path: str, number: int
    ) -> tuple[list[ChannelGroup], Problem | None] | None:
        """A change to the module that fails after which the forward gets further; out of it, if there is one."""
        kind = type(self.subject.get_submodule(path))
        likely = sorted(changes(self.subject, groups, path), key=lambda c: -self.helped[kind, c.label])
        best: tuple[list[ChannelGroup], Problem] | None = None
        for change in likely:
            key = (kind, change.label)
            if self.trials == MOST_TRIALS or self.refused[key] >= MOST_REFUSED * (1 + self.helped[key]):
                continue
            self.trials += 1
            left = self._try(change.groups, number)
            if left is None or (left.calls > problem.calls and left.blamed and path not in left.blamed):
                self.helped[key] += 1
                return change.groups, left
            if left.blamed and left.calls > (best[1] if best else problem).calls:
                best = change.groups, left
            self.refused[key] += 1
        return best

    def _reason(self, alone: list[ChannelGroup], problem: Problem, number: int) -> str:
        if self.good and not touching(alone, _place(problem)):  # it may be another one's fault
            own = self._try(alone, number)
            return own.reason if own else f"together with other groups {problem.reason}"
        return problem.reason

    def _try(self, groups: Sequence[ChannelGroup], number: int) -> Problem | None:
        return try_out(self.subject, self.model, groups, number)


def _divided(part: list[ChannelGroup], problem: Problem) -> list[list[ChannelGroup]]:
    """Those that reach the module or layer that fails, after those that do not; halves where that tells nothing."""
    ids = {group.id for group in touching(part, _place(problem))}
    if 0 < len(ids) < len(part):
        return [[group for group in part if (group.id in ids) is at_work] for at_work in (True, False)]
    return [part[len(part) // 2 :], part[: len(part) // 2]]


def _place(problem: Problem) -> str:
    """The layer or module that fails; the whole model where none is known."""
    return problem.layer or next(iter(problem.blamed), "")
