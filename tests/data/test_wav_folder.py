"""Recordings: what is read of a wav file, the spectrogram against a plain sum, and what is refused."""

from __future__ import annotations

import io
import os
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from deploycompress.data.sound import SoundConfig, log_mel, masked, shifted, waveform
from deploycompress.errors import ConfigError

RAW = {"sound": ["batch", 1, 400]}
CLIP = {"sample_rate": 4000, "seconds": 0.1, "features": "raw", "mean": 0.0, "std": 1.0}
MEL = {"sample_rate": 8000, "fft": 256, "hop": 128, "mels": 20}


def wav(samples, rate=4000, channels=1, width=2):
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(np.asarray(samples).tobytes())
    return stream.getvalue()


def tone(level, count=400):
    return wav(np.full(count, level * 256, "<i2"))


@pytest.fixture
def root(tmp_path):
    """Digits 0 and 1 by two speakers, takes 0 to 5; the level of the constant sound tells them apart."""
    for digit in (0, 1):
        for s, speaker in enumerate(("ann", "bob")):
            for take in range(6):
                (tmp_path / f"{digit}_{speaker}_{take}.wav").write_bytes(tone(digit * 64 + s * 32 + take + 1))
    return tmp_path


def read(data, split, epoch=None):
    batches = list(data.loader(split, epoch))
    return torch.cat([b.inputs["sound"] for b in batches]), torch.cat([b.targets for b in batches])


def test_names_say_class_and_split(opened, root):
    data = opened(
        "wav_folder", RAW, root=root, pattern="{label}_{speaker}_{take}",
        held_out={"test": {"take": [0]}, "val": {"take": [1], "speaker": ["bob"]}}, **CLIP,
    )  # fmt: skip
    sounds, labels = read(data, "test")
    assert (sounds[:, 0, 0] * 128).round().int().tolist() == [1, 33, 65, 97] and labels.tolist() == [
        0,
        0,
        1,
        1,
    ]
    assert [len(read(data, split)[1]) for split in ("train", "val")] == [18, 2]
    refused = opened(
        "wav_folder",
        RAW,
        root=root,
        pattern="{label}_{speaker}_{take}",
        held_out={"test": {"taek": [0]}},
        **CLIP,
    )
    with pytest.raises(
        ConfigError, match=r"held_out.test names the field 'taek'; the pattern .* has label, speaker, take"
    ):
        refused.loader("test")


def test_short_recordings_end_in_silence_and_long_ones_are_cut(opened, tmp_path):
    for name, count in (("a/short", 100), ("b/long", 900)):
        (tmp_path / name).parent.mkdir()
        (tmp_path / f"{name}.wav").write_bytes(tone(64, count))
    sounds = {
        int(k): s
        for s, k in zip(*read(opened("wav_folder", RAW, root=tmp_path, **CLIP), "train"), strict=True)
    }
    sounds |= {
        int(k): s for s, k in zip(*read(opened("wav_folder", RAW, root=tmp_path, **CLIP), "val"), strict=True)
    }
    assert sounds[0][0].tolist() == [0.5] * 100 + [0.0] * 300 and sounds[1][0].tolist() == [0.5] * 400


def test_every_width_and_several_channels_are_read_alike():
    config = SoundConfig(source="wav_folder", sample_rate=4000)
    contents = {
        "8 bit": wav(np.full(4, 160, "u1"), width=1),
        "16 bit": wav(np.full(4, 8192, "<i2")),
        "24 bit": wav(np.tile(np.array([0, 0, 32], "u1"), 4), width=3),
        "32 bit": wav(np.full(4, 2**29, "<i4"), width=4),
        "stereo": wav(np.array([[16384, 0]] * 4, "<i2"), channels=2),
    }
    for name, content in contents.items():
        assert waveform(content, name, config).tolist() == [0.25] * 4, name


def test_the_spectrogram_is_the_log_of_the_power_in_each_band():
    config = SoundConfig(source="wav_folder", seconds=0.128, **MEL)
    sound = np.sin(2 * np.pi * 1000 * np.arange(1024) / 8000).astype(np.float32)
    found = log_mel(sound[None], config)[0]
    assert found.shape == (20, 9) and found.dtype == np.float32
    # Frame 4 by hand: a plain sum over the samples of its window and over the triangle of each band.
    padded = np.pad(sound, 128)[4 * 128 : 4 * 128 + 256]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(256) / 256)
    k, n = np.arange(129)[:, None], np.arange(256)[None]
    power = np.abs((padded * window * np.exp(-2j * np.pi * k * n / 256)).sum(1)) ** 2
    mel = np.linspace(0, 2595 * np.log10(1 + 4000 / 700), 22)
    edges = 700 * (10 ** (mel / 2595) - 1)
    for band in range(20):
        low, middle, high = edges[band : band + 3]
        weights = np.array([max(0, min((f - low) / (middle - low), (high - f) / (high - middle))) for f in np.arange(129) * 31.25])  # fmt: skip
        assert found[band, 4] == pytest.approx(np.log((weights * power).sum() + 1e-6), abs=2e-3)
    assert edges[found[:, 4].argmax()] < 1000 < edges[found[:, 4].argmax() + 2]


def test_features_are_standardised_each_by_itself_or_as_told(opened, tmp_path):
    rng = np.random.default_rng(0)
    for i in range(8):
        folder = tmp_path / "ab"[i % 2]
        folder.mkdir(exist_ok=True)
        (folder / f"{i}.wav").write_bytes(wav((rng.normal(size=1024) * 3000).astype("<i2"), 8000))
    shape = {"sound": ["batch", 1, 20, 9]}
    own = read(opened("wav_folder", shape, root=tmp_path, seconds=0.128, **MEL), "train")[0]
    assert own.mean((1, 2, 3)).abs().max() < 1e-4 and (own.std((1, 2, 3)) - 1).abs().max() < 0.02
    given = read(
        opened("wav_folder", shape, root=tmp_path, seconds=0.128, mean=2.0, std=4.0, **MEL), "train"
    )[0]
    plain = read(
        opened("wav_folder", shape, root=tmp_path, seconds=0.128, mean=0.0, std=1.0, **MEL), "train"
    )[0]
    assert torch.allclose(given, (plain - 2) / 4, atol=1e-5)
    data = opened("wav_folder", shape, root=tmp_path, seconds=0.128, augment="shift_and_mask", **MEL)
    first, again = (read(data, "train", epoch=1)[0] for _ in range(2))
    assert torch.equal(first, again) and not torch.equal(first, read(data, "train", epoch=2)[0])
    assert torch.equal(read(data, "train")[0], own)


def test_shifting_and_masking_do_what_they_say():
    sounds = np.arange(1, 101, dtype=np.float32)[None].repeat(200, 0)
    moved = shifted(sounds, np.random.default_rng(0))
    by = [int(np.flatnonzero(row)[0]) if row[0] == 0 else 1 - int(row[0]) for row in moved]
    assert min(by) == -10 and max(by) == 10
    assert all((row != 0).sum() == 100 - abs(b) for row, b in zip(moved, by, strict=True))
    blank = masked(np.ones((300, 40, 64), np.float32), np.random.default_rng(0)) == 0
    assert (
        blank.all(2).sum(1).max() == 8 and blank.all(1).sum(1).max() == 13 and blank.all(2).sum(1).min() == 0
    )


def test_what_is_refused(opened, root):
    pattern = {"root": root, "pattern": "{label}_{speaker}_{take}"}

    def message(**options):
        with pytest.raises(ConfigError) as caught:
            list(opened("wav_folder", RAW, **pattern, **CLIP | options, validation=0.02).loader("train"))
        return str(caught.value)

    assert "received 4000 Hz; expected 8000 Hz: set data.sample_rate" in message(
        sample_rate=8000, seconds=0.05
    )
    assert "received float32[23, 1, 200]; expected float32[batch, 1, 400]" in message(seconds=0.05)
    assert "data.mels is 90, and a window of 128 samples" in message(
        features="log_mel", seconds=0.1, fft=128, hop=64, mels=90
    )
    for content in (tone(1)[:30], b"no sound", b""):
        (root / "1_ann_9.wav").write_bytes(content)
        assert "1_ann_9.wav cannot be read as a wav file" in message()
    (root / "1_ann_9.wav").write_bytes(wav(np.zeros(0, "<i2")))
    assert "1_ann_9.wav: received no samples" in message()
    with pytest.raises(ValueError, match="expected both, or none"):
        opened("wav_folder", RAW, mean=1.0)


def test_the_real_one(opened):
    folder = os.environ.get("DEPLOYCOMPRESS_DATA")
    if not folder or not (Path(folder) / "spoken_digits").is_dir():
        pytest.skip(
            "spoken digits are not here: set DEPLOYCOMPRESS_DATA to the folder that holds spoken_digits"
        )
    data = opened(
        "wav_folder", {"sound": ["batch", 1, 40, 64]}, root=Path(folder) / "spoken_digits" / "fsdd_recordings.tar.gz",
        pattern="{label}_{speaker}_{take}", held_out={"test": {"take": [0, 1, 2, 3, 4]}}, sample_rate=8000,
        seconds=1.02, fft=256, hop=128, validation=1 / 9,
    )  # fmt: skip
    assert [sum(b.size for b in data.loader(s)) for s in ("train", "val", "test")] == [2400, 300, 300]
