"""A network that classifies sentences."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class WordConvolutions(nn.Module):
    """Word vectors, convolutions over 3, 4 and 5 words, the largest answer of each filter, one linear layer.

    Kim, "Convolutional Neural Networks for Sentence Classification", section 2, with vectors learned from nothing.
    """

    def __init__(self, words: int, vector: int, width: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, vector, padding_idx=0)
        self.spread = nn.Dropout(dropout)
        self.conv3 = nn.Conv1d(vector, width, 3, padding=1)
        self.conv4 = nn.Conv1d(vector, width, 4, padding=2)
        self.conv5 = nn.Conv1d(vector, width, 5, padding=2)
        self.relu = nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(3 * width, classes)
        with torch.no_grad():
            self.embedding.weight.mul_(0.1)  # from 1, which small gradients do not move in a few epochs

    def forward(self, tokens: Tensor) -> Tensor:
        """Ids [batch, length], 0 for padding -> logits [batch, classes]."""
        x = self.spread(self.embedding(tokens)).transpose(1, 2)
        found = [self.relu(conv(x)).amax(2) for conv in (self.conv3, self.conv4, self.conv5)]
        return self.linear(self.dropout(torch.cat(found, 1)))  # type: ignore[no-any-return]


def build(
    words: int = 10_000, vector: int = 100, width: int = 100, classes: int = 2, dropout: float = 0.5
) -> WordConvolutions:
    """An untrained network for ids below ``words``."""
    return WordConvolutions(words, vector, width, classes, dropout)
