"""Real data for the benchmarks, read from the data folder and cut into train, validation and test.

Every set is cut the same way each time; what is expensive to decode is kept in ``cache``.
"""

from __future__ import annotations

import csv
import io
import tarfile
import wave
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

CIFAR_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
CIFAR_VALIDATION = 5_000
PHOTO_PIXELS = 128
SAMPLE_RATE, SECONDS = 8_000, 1.02  # long enough for 64 frames
FFT, HOP, MELS, FRAMES = 256, 128, 40, 64


@dataclass(frozen=True)
class Samples:
    """Inputs as they are stored, uint8 images or float32 spectrograms, and labels [n]."""

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, indices: Tensor) -> Samples:
        return Samples(self.inputs[indices], self.labels[indices])


@dataclass(frozen=True)
class Sets:
    train: Samples
    validation: Samples
    test: Samples


def cifar10_jpeg(data: Path, cache: Path) -> Sets:
    """CIFAR-10 in its JPEG copy, 45,000 / 5,000 / 10,000: what is measured on it holds for that copy."""

    def make() -> dict[str, np.ndarray]:
        found: dict[str, list[tuple[str, int, np.ndarray]]] = {"train": [], "test": []}
        with tarfile.open(data / "cifar10_jpeg" / "cifar10_jpeg.tar.gz") as archive:
            for member in archive:
                if member.isfile():
                    split, label, _ = member.name.split("/")
                    read = archive.extractfile(member)
                    assert read is not None
                    image = np.asarray(Image.open(io.BytesIO(read.read())).convert("RGB"))
                    found[split].append((member.name, CIFAR_CLASSES.index(label), image))
        arrays = {}
        for split, images in found.items():
            images.sort(key=lambda entry: entry[0])
            arrays[f"{split}_x"] = np.stack([image for _, _, image in images]).transpose(0, 3, 1, 2)
            arrays[f"{split}_y"] = np.array([label for _, label, _ in images])
        return arrays

    arrays = _kept(cache / "cifar10_jpeg.npz", make)
    train = Samples(torch.from_numpy(arrays["train_x"]), torch.from_numpy(arrays["train_y"]))
    test = Samples(torch.from_numpy(arrays["test_x"]), torch.from_numpy(arrays["test_y"]))
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    return Sets(train.at(order[CIFAR_VALIDATION:]), train.at(order[:CIFAR_VALIDATION]), test)


def photographs(data: Path, cache: Path) -> Sets:
    """1,000 photographs with ImageNet labels, none of ImageNet: 400 / 100 / 500.

    There is no training set. The first half serves to calibrate, to recover without labels and to choose; only
    the other half is reported on.
    """

    def make() -> dict[str, np.ndarray]:
        folder = data / "imagenet_eval_nips17_1000"
        with (folder / "labels.csv").open(newline="") as stream:
            labels = {row["file"]: int(row["label"]) for row in csv.DictReader(stream)}
        images = {}
        with tarfile.open(folder / "images_jpeg95.tar") as archive:
            for member in archive:
                if member.name in labels:
                    read = archive.extractfile(member)
                    assert read is not None
                    image = Image.open(io.BytesIO(read.read())).convert("RGB")
                    size = (PHOTO_PIXELS, PHOTO_PIXELS)
                    images[member.name] = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
        names = sorted(images)
        pixels = np.stack([images[name] for name in names]).transpose(0, 3, 1, 2)
        return {"x": pixels, "y": np.array([labels[name] for name in names])}

    arrays = _kept(cache / "photographs.npz", make)
    every = Samples(torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"]))
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(0))
    return Sets(every.at(order[:400]), every.at(order[400:500]), every.at(order[500:]))


def spoken_digits(data: Path, cache: Path) -> Sets:
    """Log-mel spectrograms [n, 1, 40, 64] of spoken digits: takes 10-49 / 5-9 / 0-4 of every speaker."""

    def make() -> dict[str, np.ndarray]:
        spectrograms, labels, takes = [], [], []
        with tarfile.open(data / "spoken_digits" / "fsdd_recordings.tar.gz") as archive:
            for member in sorted(archive.getmembers(), key=lambda m: m.name):
                if member.name.endswith(".wav"):
                    digit, _, take = Path(member.name).stem.split("_")
                    read = archive.extractfile(member)
                    assert read is not None
                    spectrograms.append(_log_mel(_waveform(read.read())))
                    labels.append(int(digit))
                    takes.append(int(take))
        return {"x": np.stack(spectrograms)[:, None], "y": np.array(labels), "take": np.array(takes)}

    arrays = _kept(cache / "spoken_digits.npz", make)
    take = arrays["take"]
    mean, std = arrays["x"][take >= 10].mean(), arrays["x"][take >= 10].std()
    inputs = torch.from_numpy(((arrays["x"] - mean) / std).astype(np.float32))
    every = Samples(inputs, torch.from_numpy(arrays["y"]))
    parts = (take >= 10, (take >= 5) & (take < 10), take < 5)
    return Sets(*(every.at(torch.from_numpy(np.flatnonzero(part))) for part in parts))


def _waveform(content: bytes) -> np.ndarray:
    """[samples] in -1..1, cut or filled with zeros to the same length."""
    with wave.open(io.BytesIO(content)) as stream:
        samples = np.frombuffer(stream.readframes(stream.getnframes()), dtype="<i2") / 32768
    length = int(SAMPLE_RATE * SECONDS)
    return np.pad(samples[:length], (0, max(0, length - len(samples))))


def _log_mel(samples: np.ndarray) -> np.ndarray:
    """[mels, frames], natural logarithm of the power in triangular bands of equal width in mel."""
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(samples, FFT // 2), FFT)[::HOP][:FRAMES]
    power = np.abs(np.fft.rfft(frames * np.hanning(FFT), axis=1)) ** 2
    top = 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, MELS + 2) / 2595) - 1)
    bins = np.fft.rfftfreq(FFT, 1 / SAMPLE_RATE)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    bands = np.clip(np.minimum((bins - low) / (middle - low), (high - bins) / (high - middle)), 0, None)
    return np.log(bands @ power.T + 1e-6)


def _kept(path: Path, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f"{path.stem}.part.npz")
        np.savez(aside, **make())
        aside.replace(path)
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays}
