"""Recordings of words or sounds with a class each, as files or in an archive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deploycompress.data.labelled import Files, FolderConfig, labelled
from deploycompress.data.samples import Indices
from deploycompress.data.sound import SoundConfig, log_mel, masked, of_length, shifted, standardised, waveform
from deploycompress.data.tree import Tree, open_tree

if TYPE_CHECKING:
    from torch import Tensor

EXPECTED = (
    "train/CLASS/FILE.wav, with val/ and test/ where there are any, or CLASS/FILE.wav alone, or any folder of files "
    "whose names fit data.pattern"
)


class WavFolder:
    """Recordings of ``seconds`` at ``sample_rate``, as log-mel spectrograms or as they are; one channel."""

    class Config(SoundConfig, FolderConfig):
        pass

    def __init__(self, config: WavFolder.Config) -> None:
        self.config = config

    def files(self) -> tuple[Path, ...]:
        """Every file below the root, or the archive. Raises ConfigError when there is none."""
        return self._tree().files()

    def splits(self) -> Mapping[str, Recordings]:
        tree = self._tree()
        found = labelled(tree, (".wav",), self.config)
        return {
            split: Recordings(tree, files, self.config, changed=split == "train")
            for split, files in found.items()
        }

    def _tree(self) -> Tree:
        return open_tree(self.config.root, "wav_folder", EXPECTED)


@dataclass(frozen=True)
class Recordings:
    """The recordings of one split, read when they are asked for."""

    tree: Tree
    found: Files
    config: WavFolder.Config
    changed: bool

    @property
    def labels(self) -> np.ndarray:
        return self.found.labels

    @property
    def classes(self) -> tuple[str, ...]:
        return self.found.classes

    def __len__(self) -> int:
        return len(self.found.names)

    def batch(self, indices: Indices, rng: np.random.Generator | None) -> tuple[Tensor, Tensor]:
        import torch

        config = self.config
        changing = rng if self.changed and config.augment != "none" else None
        sounds = np.stack([self._sound(self.found.names[i]) for i in indices])
        if changing is not None:
            sounds = shifted(sounds, changing)
        features = standardised(log_mel(sounds, config) if config.features == "log_mel" else sounds, config)
        if changing is not None and config.augment == "shift_and_mask":
            features = masked(features, changing)
        return torch.from_numpy(features[:, None]), torch.from_numpy(self.found.labels[indices])

    def _sound(self, name: str) -> np.ndarray:
        sound = waveform(self.tree.read(name), str(self.tree.place(name)), self.config)
        return of_length(sound, self.config.samples)
