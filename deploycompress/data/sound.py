"""Recordings of one length, as waveforms or as log-mel spectrograms."""

from __future__ import annotations

import io
import struct
import warnings
from functools import lru_cache
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from deploycompress.config.schema import DataConfig
from deploycompress.errors import ConfigError

FLOOR = 1e-6  # of the power, so that silence has a logarithm
DETAIL = 1e-3  # of the deviation, so that silence can be standardised


class SoundConfig(DataConfig):
    """How recordings are cut, and what the network reads of them."""

    sample_rate: Annotated[int, Field(ge=1)] = Field(16_000, description="In Hz; of every file")
    seconds: Annotated[float, Field(gt=0)] = Field(
        1.0, description="Longer files are cut, shorter ones end in silence"
    )
    features: Literal["log_mel", "raw"] = Field(
        "log_mel", description="[batch, 1, mels, frames], or the waveform [batch, 1, samples] in -1..1"
    )
    fft: Annotated[int, Field(ge=16)] = Field(512, description="Samples of a window")
    hop: Annotated[int, Field(ge=1)] = Field(256, description="Samples from one window to the next")
    mels: Annotated[int, Field(ge=1)] = Field(40, description="Bands")
    mean: float | None = Field(
        None, description="Of the features; null: each recording by its own mean and deviation"
    )
    std: Annotated[float, Field(gt=0)] | None = Field(None, description="As mean")
    augment: Literal["none", "shift", "shift_and_mask"] = Field(
        "none",
        description="In training: moved by up to a tenth of its length; also a band and a stretch of it blanked",
    )

    @model_validator(mode="after")
    def _sound(self) -> SoundConfig:
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std: received one of them; expected both, or none")
        if self.features == "raw" and self.augment == "shift_and_mask":
            raise ValueError("augment: shift_and_mask blanks bands of a spectrogram; expected shift for raw")
        if self.features == "log_mel" and self.samples < self.hop:
            raise ValueError(
                f"{self.seconds} s are {self.samples} samples; expected at least hop, {self.hop}"
            )
        return self

    @property
    def preprocessing(self) -> dict[str, Any]:
        names = ("sample_rate", "seconds", "features", "mean", "std")
        spectrum = ("fft", "hop", "mels") if self.features == "log_mel" else ()
        return {"kind": "sound", **{name: getattr(self, name) for name in (*names, *spectrum)}}

    @property
    def samples(self) -> int:
        return round(self.sample_rate * self.seconds)


def waveform(content: bytes, place: str, config: SoundConfig) -> np.ndarray:
    """[samples] float32 in -1..1 of a wav file; several channels become their mean.

    Raises ConfigError naming a file that is none, is empty, or has another sample rate.
    """
    from scipy.io import wavfile

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)  # chunks that are no sound
            rate, samples = wavfile.read(io.BytesIO(content))
    except (ValueError, EOFError, OSError, TypeError, KeyError, IndexError, struct.error) as error:
        raise ConfigError(
            f"{place} cannot be read as a wav file: {error}; convert it, or remove it"
        ) from error
    if rate != config.sample_rate:
        raise ConfigError(
            f"{place}: received {rate} Hz; expected {config.sample_rate} Hz: set data.sample_rate, or convert the file"
        )
    if not samples.size:
        raise ConfigError(f"{place}: received no samples; expected some: record it again, or remove it")
    if samples.dtype.kind == "u":  # 8 bit
        sound = (samples.astype(np.float32) - 128) / 128
    elif samples.dtype.kind == "i":
        sound = samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min)
    else:
        sound = samples.astype(np.float32)
    mono: np.ndarray = sound if sound.ndim == 1 else sound.mean(1)
    return mono


def of_length(sound: np.ndarray, samples: int) -> np.ndarray:
    """Cut at the end, or followed by silence."""
    fixed = np.zeros(samples, np.float32)
    fixed[: len(sound)] = sound[:samples]
    return fixed


def shifted(sounds: np.ndarray, rng: np.random.Generator, share: float = 0.1) -> np.ndarray:
    """Each of [batch, samples] later or earlier by up to ``share`` of its length; silence comes in."""
    length = sounds.shape[1]
    most = round(share * length)
    moved = np.zeros_like(sounds)
    for row, by in enumerate(rng.integers(-most, most + 1, len(sounds))):
        to, start = max(by, 0), max(-by, 0)
        moved[row, to : length - start] = sounds[row, start : length - to]
    return moved


def log_mel(sounds: np.ndarray, config: SoundConfig) -> np.ndarray:
    """[batch, samples] -> [batch, mels, frames] float32: the natural logarithm of the power in each band.

    Hann windows of ``fft`` samples every ``hop``, the first centred on the first sample. The bands are triangles that
    overlap by half, equally wide in mel (Davis and Mermelstein, "Comparison of parametric representations for
    monosyllabic word recognition"; O'Shaughnessy's scale 2595 log10(1 + f/700)).
    """
    around = np.pad(sounds, ((0, 0), (config.fft // 2, config.fft // 2)))
    frames = np.lib.stride_tricks.sliding_window_view(around, config.fft, axis=1)[:, :: config.hop]
    window = np.hanning(config.fft + 1)[:-1].astype(np.float32)
    power = np.abs(np.fft.rfft(frames * window, axis=2)) ** 2
    bands = mel_bands(config.sample_rate, config.fft, config.mels)
    spectrograms: np.ndarray = np.log(np.swapaxes(power @ bands.T, 1, 2) + FLOOR)
    return spectrograms.astype(np.float32)


@lru_cache(maxsize=4)
def mel_bands(sample_rate: int, fft: int, mels: int) -> np.ndarray:
    """[mels, fft // 2 + 1] weights. Raises ConfigError where a band is narrower than a bin of the FFT."""
    top = 2595 * np.log10(1 + sample_rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, mels + 2) / 2595) - 1)
    bins = np.fft.rfftfreq(fft, 1 / sample_rate)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    weights = np.clip(np.minimum((bins - low) / (middle - low), (high - bins) / (high - middle)), 0, None)
    if not weights.sum(1).all():
        raise ConfigError(
            f"data.mels is {mels}, and a window of {fft} samples at {sample_rate} Hz tells "
            f"{int((weights.sum(1) > 0).sum())} of these bands apart: use fewer bands, or a larger data.fft"
        )
    return weights.astype(np.float32)


def masked(spectrograms: np.ndarray, rng: np.random.Generator, share: float = 0.2) -> np.ndarray:
    """A band and a stretch of each [mels, frames], of up to ``share`` each, set to zero, which is the mean.

    Park et al., "SpecAugment: A Simple Data Augmentation Method for Automatic Speech Recognition", section 2.
    """
    blanked = spectrograms.copy()
    _, mels, frames = blanked.shape
    for one in blanked:
        for size, view in ((mels, one), (frames, one.T)):
            width = int(rng.integers(0, round(share * size) + 1))
            start = int(rng.integers(0, size - width + 1))
            view[start : start + width] = 0
    return blanked


def standardised(features: np.ndarray, config: SoundConfig) -> np.ndarray:
    """[batch, ...] by the given mean and deviation, or each by its own."""
    if config.mean is not None and config.std is not None:
        return ((features - config.mean) / config.std).astype(np.float32)
    axes = tuple(range(1, features.ndim))
    mean, std = features.mean(axes, keepdims=True), features.std(axes, keepdims=True)
    return ((features - mean) / (std + DETAIL)).astype(np.float32)  # type: ignore[no-any-return]
