"""Corruptions: the same for everyone, stronger with severity, and of continuous inputs alone."""

from __future__ import annotations

import pytest
import torch

from deploycompress.contracts import Batch
from deploycompress.data.corruptions import CORRUPTIONS, NOISE, CorruptedLoader
from deploycompress.errors import ConfigError


@pytest.fixture
def images() -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    x = 5 + 2 * torch.randn(12, 3, 16, 16, generator=generator)
    return [
        Batch({"image": x[i : i + 4], "ids": torch.ones(4, 2)[:, 0].long()}, torch.arange(4), 4)
        for i in (0, 4, 8)
    ]


def distance(batches: list[Batch], kind: str, severity: int) -> float:
    pairs = zip(batches, CorruptedLoader(batches, kind, severity), strict=True)
    return sum(float((a.inputs["image"] - b.inputs["image"]).square().mean()) for a, b in pairs)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_it_grows_with_severity_and_is_the_same_again(images, kind):
    distances = [distance(images, kind, severity) for severity in range(1, 6)]
    assert distances == sorted(set(distances)) and distances[0] > 0
    first, again = (list(CorruptedLoader(images, kind, 3)) for _ in range(2))
    for clean, one, two in zip(images, first, again, strict=True):
        assert torch.equal(one.inputs["image"], two.inputs["image"])
        assert one.inputs["image"].dtype == torch.float32 and one.inputs["image"].shape == (4, 3, 16, 16)
        assert torch.equal(one.inputs["ids"], clean.inputs["ids"]) and one.targets is clean.targets


def test_noise_is_a_share_of_each_samples_own_deviation():
    quiet = torch.randn(2, 4000, generator=torch.Generator().manual_seed(1))
    quiet[1] *= 100
    (changed,) = CorruptedLoader([Batch({"wave": quiet}, None, 2)], "noise", 2)
    noise = (changed.inputs["wave"] - quiet).std(1) / quiet.std(1)
    assert noise.tolist() == pytest.approx([NOISE[1]] * 2, rel=0.05)


def test_contrast_and_blur_keep_the_mean_and_blur_keeps_what_is_flat(images):
    x = images[0].inputs["image"]
    (low,) = CorruptedLoader(images[:1], "contrast", 1)
    torch.testing.assert_close(low.inputs["image"].mean((2, 3)), x.mean((2, 3)))
    torch.testing.assert_close(low.inputs["image"].std((2, 3)), 0.4 * x.std((2, 3)))
    flat = Batch({"image": torch.full((1, 1, 9, 7), 3.0)}, None, 1)
    (blurred,) = CorruptedLoader([flat], "blur", 5)
    torch.testing.assert_close(blurred.inputs["image"], flat.inputs["image"])


def test_inputs_that_are_not_continuous_are_refused():
    tokens = Batch({"ids": torch.ones(2, 5, dtype=torch.int64)}, None, 2)
    with pytest.raises(
        ConfigError, match=r"corruption noise: received the inputs ids int64\[2, 5\]; expected one of real"
    ):
        list(CorruptedLoader([tokens], "noise", 1))
    wave = Batch({"wave": torch.ones(2, 5)}, None, 2)
    with pytest.raises(
        ConfigError, match=r"corruption blur: .*expected one of real numbers \[batch, channels, height"
    ):
        list(CorruptedLoader([wave], "blur", 1))
