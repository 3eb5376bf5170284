"""The problem that the solvers share: choices, what each option loses, and costs of single options and of pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Protocol

import numpy as np
from torch import Tensor

from deploycompress.pruning.blocks import Block
from deploycompress.pruning.budget import Budget
from deploycompress.pruning.costs import Costs
from deploycompress.pruning.groups import ChannelGroup

GONE = 0  # the width of a removed block, and of the groups inside it
NEGLIGIBLE = 1e-9  # of the unpruned model's cost: no interaction


@dataclass(frozen=True)
class Choice:
    """One group's width, or whether one block stays; the last option is the whole."""

    id: str
    options: tuple[int, ...]
    losses: np.ndarray  # [options] importance that goes
    inside: str = ""  # the block that takes it along


State = Mapping[str, int]  # choice -> index of its option


@dataclass(frozen=True)
class Problem:
    """Minimise the sum of losses within ``limits``.

    cost(state) = base + sum of ``own[a][option of a]`` + sum of ``pairs[a, b][option of a, option of b]``, for
    every limited cost at once (the last axis): exact where no operator depends on more than two groups.
    """

    choices: Mapping[str, Choice]
    blocks: Mapping[str, tuple[str, ...]]  # block -> the groups inside it
    limits: np.ndarray  # [costs]
    base: np.ndarray  # [costs] of the unpruned model
    own: Mapping[str, np.ndarray]  # [options, costs]
    pairs: Mapping[tuple[str, str], np.ndarray]  # [options, options, costs]

    def cost(self, state: State) -> np.ndarray:
        total = self.base + sum(own[state[id]] for id, own in self.own.items())
        return np.asarray(total + sum(pair[state[a], state[b]] for (a, b), pair in self.pairs.items()))

    def loss(self, state: State) -> float:
        return float(sum(choice.losses[state[id]] for id, choice in self.choices.items()))

    def met(self, state: State) -> bool:
        return bool((self.cost(state) <= self.limits * (1 + 1e-9)).all())

    def widths(self, state: State) -> dict[str, int]:
        return {id: choice.options[state[id]] for id, choice in self.choices.items()}

    def among(self, options: Mapping[str, np.ndarray]) -> Problem:
        """The same with these options alone, by their numbers in rising order; the whole is among them."""
        return replace(
            self,
            choices={
                id: replace(c, options=tuple(c.options[i] for i in options[id]), losses=c.losses[options[id]])
                for id, c in self.choices.items()
            },
            own={id: own[options[id]] for id, own in self.own.items()},
            pairs={(a, b): pair[np.ix_(options[a], options[b])] for (a, b), pair in self.pairs.items()},
        )

    @property
    def whole(self) -> dict[str, int]:
        return {id: len(choice.options) - 1 for id, choice in self.choices.items()}


def problem(
    groups: Sequence[ChannelGroup],
    blocks: Sequence[Block],
    scores: Mapping[str, Tensor],
    costs: Costs,
    budget: Budget,
) -> Problem:
    """The problem of these groups and blocks.

    Costs are taken apart by differences to the unpruned model: what one choice saves by itself, and what two
    of them save together beside that.
    """
    owner = {id: block.id for block in blocks for id in block.groups}
    choices = {g.id: _widths(g, scores[g.id], owner.get(g.id, "")) for g in groups}
    choices |= {b.id: Choice(b.id, (GONE, 1), np.array([float(scores[b.id].sum()), 0.0])) for b in blocks}
    names = list(budget.limits)
    full = {id: choice.options[-1] for id, choice in choices.items()}

    def at(**changed: int) -> np.ndarray:
        found = costs.at({**full, **changed})
        return np.array([found[name] for name in names])

    base = at()
    own = {id: _own(choice, base, at) for id, choice in choices.items()}
    pairs = {}
    for a, b in _neighbours(groups, blocks):
        pair = _pair(choices[a], choices[b], own, base, at)
        if (np.abs(pair) > NEGLIGIBLE * base).any():
            pairs[a, b] = pair
    inside = {b.id: tuple(sorted(id for id in b.groups if id in choices)) for b in blocks}
    return Problem(choices, inside, np.array([budget.limits[n] for n in names]), base, own, pairs)


def _widths(group: ChannelGroup, scores: Tensor, block: str) -> Choice:
    total = float(scores.sum())
    losses = [total - float(scores[group.keep(scores, width)].sum()) for width in group.grid]
    if block:  # what its channels were worth is in the block's loss
        return Choice(group.id, (GONE, *group.grid), np.array([0.0, *losses]), block)
    return Choice(group.id, group.grid, np.array(losses))


def _own(choice: Choice, base: np.ndarray, at: _At) -> np.ndarray:
    return np.array(
        [_zero(base) if _taken(choice, w) else at(**{choice.id: w}) - base for w in choice.options]
    )


def _pair(a: Choice, b: Choice, own: Mapping[str, np.ndarray], base: np.ndarray, at: _At) -> np.ndarray:
    found = np.zeros((len(a.options), len(b.options), len(base)))
    for i, wide in enumerate(a.options[:-1]):
        for j, high in enumerate(b.options[:-1]):
            if not (_taken(a, wide) or _taken(b, high)):
                found[i, j] = at(**{a.id: wide, b.id: high}) - base - own[a.id][i] - own[b.id][j]
    return found


def _taken(choice: Choice, width: int) -> bool:
    """Whether the option is that the group goes with its block: the block's own figures say what that saves."""
    return bool(choice.inside) and width == GONE


def _zero(base: np.ndarray) -> np.ndarray:
    return np.zeros_like(base)


def _neighbours(groups: Sequence[ChannelGroup], blocks: Sequence[Block]) -> list[tuple[str, str]]:
    """Choices that share a layer, so that one changes what the other saves; not a block with what is inside it."""
    layers: dict[str, list[str]] = {}
    for group in groups:
        for layer in {member.layer for member in group.members}:
            layers.setdefault(layer, []).append(group.id)
    found = {pair: None for ids in layers.values() for pair in combinations(sorted(ids), 2)}
    for block in blocks:
        touching = {id for layer in block.layers for id in layers.get(layer, ())} - set(block.groups)
        found.update({(block.id, id): None for id in sorted(touching)})
    return list(found)


class _At(Protocol):
    def __call__(self, **changed: int) -> np.ndarray: ...
