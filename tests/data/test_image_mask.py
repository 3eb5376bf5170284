"""Images with masks: pairs, splits, values, windows of both, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from deploycompress.errors import ConfigError

IMAGE = {"image": ["batch", 3, 16, 16]}
PLAIN = {"image_size": 16, "mean": (0, 0, 0), "std": (1, 1, 1), "batch_size": 4, "validation": 0.25}
LEVELS = (0, 120, 240)  # of the red channel, by class


def mask(rng, size=(32, 32)):
    """Class indices in blocks of 8x8, of which some are not judged."""
    blocks = rng.choice([0, 1, 2, 255], size=(size[1] // 8, size[0] // 8)).astype(np.uint8)
    blocks.flat[:3] = 0, 1, 2
    return np.kron(blocks, np.ones((8, 8), np.uint8))


def write(root, name, indices, *, folder="", palette=False, ending="", values=None):
    """An image whose red channel tells the class, and its mask."""
    image = np.zeros((*indices.shape, 3), np.uint8)
    for number, level in enumerate(LEVELS):
        image[indices == number, 0] = level
    picture = Image.fromarray(indices if values is None else np.array(values, np.uint8)[indices])
    if palette:
        picture.putpalette(list(range(256)) * 3)
    for kind, content, more in (("images", image, ""), ("masks", picture, ending)):
        place = root / folder / kind
        place.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(content) if isinstance(content, np.ndarray) else content
        picture.save(place / f"{name}{more}.png")


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("valid", 2), ("test", 2)):
        for number in range(count):
            write(tmp_path, number, mask(rng), folder=split, palette=number % 2 == 0)
    return tmp_path


def read(data, split, epoch=None):
    batches = list(data.loader(split, epoch))
    return torch.cat([b.inputs["image"] for b in batches]), torch.cat([b.targets for b in batches])


def refused(data, split="train"):
    with pytest.raises(ConfigError) as caught:
        list(data.loader(split))
    return str(caught.value)


def agree(images, masks):
    """The share of judged pixels whose colour is that of their class."""
    wanted = torch.tensor(LEVELS)[masks.clamp(max=2)] / 255
    return float(((images[:, 0] - wanted).abs() < 0.1)[masks != 255].float().mean())


def test_image_and_mask_are_of_one_size_and_say_the_same(opened, root):
    data = opened("image_mask", IMAGE, root=root, **PLAIN)
    images, masks = read(data, "train")
    assert images.shape == (6, 3, 16, 16) and masks.shape == (6, 16, 16) and masks.dtype == torch.int64
    assert set(masks.unique().tolist()) == {0, 1, 2, 255}, "no values between those of the masks"
    assert agree(images, masks) > 0.8, "but for the pixels between two classes"
    assert [len(read(data, split)[0]) for split in ("val", "test")] == [2, 2]


@pytest.mark.parametrize("augment", ["flip", "crop"])
def test_in_training_both_are_cut_and_turned_together(opened, root, augment):
    data = opened("image_mask", IMAGE, root=root, augment=augment, **PLAIN)
    plain, seen = read(data, "train")[1], []
    for epoch in range(4):
        images, masks = read(data, "train", epoch)
        assert agree(images, masks) > 0.8, "but for the pixels between two classes"
        seen += list(masks)
    both = {tuple(m.flatten().tolist()) for m in [*plain, *plain.flip(-1)]}
    inside = [tuple(m.flatten().tolist()) in both for m in seen]
    assert all(inside) if augment == "flip" else inside.count(True) <= 2
    assert any(not any(torch.equal(m, p) for p in plain) for m in seen), "and some are turned"
    assert torch.equal(read(data, "train", 3)[1], masks), "the same seed and epoch give the same windows"


def test_splits_may_lie_inside_the_two_folders_and_masks_have_an_ending(opened, tmp_path):
    rng = np.random.default_rng(1)
    for number in range(4):
        write(tmp_path, number, mask(rng), ending="_mask")
    data = opened("image_mask", IMAGE, root=tmp_path, mask_ending="_mask", **PLAIN)
    assert [len(read(data, split)[0]) for split in ("train", "val")] == [3, 1]
    for kind in ("images", "masks"):
        (tmp_path / kind / "test").mkdir()
        for file in (tmp_path / kind).glob("0*"):
            file.rename(tmp_path / kind / "test" / file.name)
    data = opened("image_mask", IMAGE, root=tmp_path, mask_ending="_mask", **PLAIN)
    images, masks = read(data, "test")
    assert len(images) == 1 and agree(images, masks) > 0.8, "but for the pixels between two classes"


def test_black_and_white_masks_need_their_values(opened, tmp_path):
    """White is 255, which would not be judged: a network that learns from black alone."""
    rng = np.random.default_rng(2)
    for number in range(4):
        write(tmp_path, number, mask(rng) % 2, values=[0, 255])
    told = refused(opened("image_mask", IMAGE, root=tmp_path, **PLAIN))
    assert "the indices 0, 255, where 255 is not judged" in told and "data.values: [0, 255]" in told
    data = opened("image_mask", IMAGE, root=tmp_path, values=(0, 255), **PLAIN)
    assert set(read(data, "train")[1].unique().tolist()) == {0, 1}


def test_values_are_numbered_and_void_ones_not_judged(opened, tmp_path):
    for number in range(4):
        write(tmp_path, number, mask(np.random.default_rng(number)) % 3, values=[10, 20, 30])
    data = opened("image_mask", IMAGE, root=tmp_path, values=(20, 10), void=(30,), **PLAIN)
    assert set(read(data, "train")[1].unique().tolist()) == {0, 1, 255}
    told = refused(opened("image_mask", IMAGE, root=tmp_path, values=(20, 10), **PLAIN))
    assert ".png has the value 30 in" in told and "expected 20, 10" in told and "data.void" in told


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda r: (r / "masks/2.png").unlink(), "images/2.png has no mask (1 such images); expected 2.png in 'masks'"),
        (lambda r: (r / "images/2.png").unlink(), "masks/2.png has no image (1 such masks)"),
        (lambda r: (r / "masks/2.png").write_bytes(b"no"), "masks/2.png cannot be decoded as an image"),
        (lambda r: Image.new("RGB", (32, 32)).save(r / "masks/2.png"), "masks/2.png is an image of mode RGB"),
        (lambda r: Image.new("L", (8, 8)).save(r / "masks/2.png"), "masks/2.png is 8x8 and its image images/2.png 32x32"),
        (lambda r: Image.new("L", (8, 8)).save(r / "masks/2.bmp"), "masks/2.bmp and masks/2.png have one name"),
    ],
)  # fmt: skip
def test_a_broken_or_missing_half_of_a_pair_is_named(opened, tmp_path, damage, expected):
    for number in range(4):
        write(tmp_path, number, mask(np.random.default_rng(number)))
    damage(tmp_path)
    data = opened("image_mask", IMAGE, root=tmp_path, **PLAIN)
    with pytest.raises(ConfigError) as caught:
        _ = [list(data.loader(split)) for split in ("train", "val")]
    assert expected in str(caught.value)


def test_no_images_at_all(opened, tmp_path):
    assert "needs data.root: images/NAME.jpg" in refused(opened("image_mask", IMAGE, **PLAIN))
    (tmp_path / "a.png").write_bytes(b"")
    assert "no image in a folder 'images'" in refused(opened("image_mask", IMAGE, root=tmp_path, **PLAIN))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"values": (0, 0)}, "each one once"),
        ({"void": (3,)}, "void without values"),
        ({"masks": "images"}, "images and masks are both 'images'"),
    ],
)
def test_options_that_contradict_each_other(opened, options, expected):
    with pytest.raises(ValueError, match=expected):
        opened("image_mask", IMAGE, **options)
