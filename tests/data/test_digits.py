"""The embedded data: its splits, their order, and what the digest covers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deploycompress.data.datasets.digits import Digits
from deploycompress.data.source import SourceData
from deploycompress.errors import ConfigError


@pytest.fixture
def digits(images):
    def make(seed=0, few=False, **options):
        config = Digits.Config(source="digits", **({"image_size": 8, "batch_size": 100} | options))
        return SourceData(config, images, seed, few=few)

    return make


def everything(loader):
    batches = list(loader)
    return torch.cat([b.inputs["image"] for b in batches]), torch.cat([b.targets for b in batches])


def test_every_image_is_in_one_split_and_test_has_600(digits):
    data = digits()
    parts = {split: everything(data.loader(split)) for split in ("train", "val", "test")}
    sizes = {split: len(labels) for split, (_, labels) in parts.items()}
    assert sizes == {"train": 1017, "val": 180, "test": 600}
    seen = torch.cat([pixels for pixels, _ in parts.values()]).flatten(1)
    assert len(torch.unique(seen, dim=0)) == 1797


def test_the_splits_are_the_same_for_every_seed_and_hold_every_class_in_its_share(digits):
    for split in ("val", "test"):
        pixels, labels = everything(digits(seed=0).loader(split))
        others, other_labels = everything(digits(seed=7).loader(split))
        assert torch.equal(pixels, others) and torch.equal(labels, other_labels)
        counts = torch.bincount(labels, minlength=10)
        assert int(counts.max()) - int(counts.min()) <= 0.1 * counts.float().mean()


def test_pixels_are_standardised_and_resized(images, declared):
    data = SourceData(Digits.Config(source="digits"), declared(image=(["batch", 1, 32, 32], "float32")), 0)
    pixels, _ = everything(data.loader("train"))
    assert pixels.shape[1:] == (1, 32, 32) and pixels.dtype == torch.float32
    assert abs(float(pixels.mean())) < 0.05 and abs(float(pixels.std()) - 1) < 0.1


def test_training_order_and_augmentation_follow_seed_and_epoch_alone(digits):
    first, labels = everything(digits(seed=3).loader("train", epoch=2))
    again, _ = everything(digits(seed=3).loader("train", epoch=2))
    assert torch.equal(first, again)
    assert not torch.equal(labels, everything(digits(seed=3).loader("train", epoch=3))[1])
    assert not torch.equal(labels, everything(digits(seed=4).loader("train", epoch=2))[1])


def test_a_batch_is_the_same_whatever_was_read_before_it(digits):
    loader = digits().loader("train", epoch=0)
    whole = list(loader)
    for number, _ in enumerate(loader):
        torch.rand(7)
        if number == 4:
            break
    assert torch.equal(list(loader)[5].inputs["image"], whole[5].inputs["image"])


def test_only_training_is_augmented(digits):
    plain = digits(augment="none")
    shuffled, labels = everything(plain.loader("train", epoch=0))
    changed, same_labels = everything(digits(augment="shift").loader("train", epoch=0))
    assert torch.equal(labels, same_labels) and not torch.equal(shuffled, changed)
    for split in ("train", "val", "test", "calibration"):
        assert torch.equal(everything(plain.loader(split))[0], everything(digits().loader(split))[0])


def test_the_last_batch_is_kept_and_a_lone_last_sample_joins_the_one_before(digits):
    data = digits(batch_size=254)
    assert [b.size for b in data.loader("train")] == [254, 254, 254, 254, 1]
    assert [b.size for b in data.loader("train", epoch=0)] == [254, 254, 254, 255]
    assert len(data.loader("train", epoch=0)) == 4
    assert [b.size for b in digits(batch_size=100).loader("val")] == [100, 80]


def test_calibration_samples_come_from_train_alone(digits):
    data = digits(calibration=50)
    train = {tuple(p.flatten().tolist()) for p in everything(data.loader("train"))[0]}
    calibration, labels = everything(data.loader("calibration"))
    assert len(calibration) == 50 and {tuple(p.flatten().tolist()) for p in calibration} <= train
    assert torch.bincount(labels, minlength=10).tolist() == [5] * 10
    assert len(everything(digits(calibration=100_000).loader("calibration"))[0]) == 1017


def test_the_rehearsal_reads_two_small_batches(digits):
    data = digits(few=True)
    for split in ("train", "val", "test", "calibration"):
        assert [b.size for b in data.loader(split)] == [8, 8]
    assert [b.size for b in data.loader("train", epoch=0)] == [8, 8]


def test_the_digest_follows_the_options_and_not_the_seed(digits):
    assert digits(seed=0).digest == digits(seed=1).digest == digits(few=True).digest
    assert digits().digest != digits(augment="none").digest


def test_a_size_that_the_model_does_not_take_is_refused(digits, images):
    with pytest.raises(
        ConfigError,
        match=r"split val, input 'image': received float32\[100, 1, 16, 16\]; expected "
        r"float32\[batch, 1, 8, 8\], as model.inputs says",
    ):
        list(digits(image_size=16).loader("val"))


def test_shift_moves_images_and_leaves_their_ink():
    from deploycompress.data.augment import augment

    image = torch.zeros(64, 1, 32, 32)
    image[:, :, 14:18, 14:18] = 1
    moved = augment(image, np.random.default_rng(0), "shift")
    assert torch.allclose(moved.sum((1, 2, 3)), torch.tensor(16.0), atol=1e-3)
    rows = (moved.sum((1, 3)) * torch.arange(32)).sum(1) / 16
    assert 2.5 < float((rows - 15.5).abs().max()) <= 3.3
    turned = augment(image, np.random.default_rng(0), "affine")
    assert float(turned.sum((1, 2, 3)).std()) > 0.5
