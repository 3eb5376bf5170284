"""Wide and deep: the probability of a click from numbers and categories."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class WideAndDeep(nn.Module):
    """A linear model of all columns beside a perceptron over the numbers and a vector for each category (Cheng et al.,
    "Wide & Deep Learning for Recommender Systems", 2016, section 3).

    Each column has ``buckets`` vectors of its own: the first for what is missing or unknown, and the ids beyond the
    last share the others.
    """

    first: Tensor  # row of each column's first vector, [categories] int64

    def __init__(
        self, numbers: int, categories: int, buckets: int, vector: int, hidden: Sequence[int]
    ) -> None:
        super().__init__()
        if buckets < 2 or not hidden:
            raise ValueError(
                f"buckets is {buckets} and hidden {list(hidden)}; expected 2 or more, and some widths"
            )
        self.buckets = buckets
        self.register_buffer("first", torch.arange(categories) * buckets, persistent=False)
        self.vectors = nn.Embedding(categories * buckets, vector)
        self.weights = nn.Embedding(categories * buckets, 1)
        self.wide = nn.Linear(numbers, 1)
        widths = [numbers + categories * vector, *hidden]
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU()]
        self.deep = nn.Sequential(*layers, nn.Linear(widths[-1], 1))
        nn.init.normal_(self.vectors.weight, std=0.05)
        nn.init.zeros_(self.weights.weight)

    def forward(self, numbers: Tensor, ids: Tensor) -> Tensor:
        """[batch, numbers] float, [batch, categories] ids from 0 -> logits [batch, 1]."""
        within = torch.where(ids > 0, (ids - 1) % (self.buckets - 1) + 1, 0)
        rows = within + self.first
        deep = self.deep(torch.cat([numbers, self.vectors(rows).flatten(1)], 1))
        return deep + self.wide(numbers) + self.weights(rows).sum(1)  # type: ignore[no-any-return]


def build(
    numbers: int = 13,
    categories: int = 26,
    buckets: int = 1000,
    vector: int = 8,
    hidden: Sequence[int] = (256, 128, 64),
) -> WideAndDeep:
    """An untrained network for ``numbers`` and ``categories`` columns; the defaults are those of Criteo's logs."""
    return WideAndDeep(numbers, categories, buckets, vector, hidden)
