"""Images in class folders and archives: splits, classes, cutting, augmenting, and what is refused."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from deploycompress.data.augment import crop
from deploycompress.data.images import ImageConfig, fitted
from deploycompress.errors import ConfigError

IMAGE = {"image": ["batch", 3, 16, 16]}
PLAIN = {"image_size": 16, "mean": (0, 0, 0), "std": (1, 1, 1)}


def png(colour, size=(16, 16)):
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "png")
    return stream.getvalue()


@pytest.fixture
def files():
    """Names and contents: two classes of ten grey levels each in train, two of each in test."""
    found = {}
    for label, klass in enumerate(("cat", "dog")):
        for i in range(10):
            found[f"train/{klass}/{i}.png"] = png((label * 100 + i,) * 3)
        for i in range(2):
            found[f"test/{klass}/{i}.png"] = png((label * 100 + 50 + i,) * 3)
    return found


@pytest.fixture
def root(tmp_path, files):
    return written(tmp_path / "images", files)


def written(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def read(data, split, epoch=None):
    batches = list(data.loader(split, epoch))
    return torch.cat([b.inputs["image"] for b in batches]), torch.cat([b.targets for b in batches])


def levels(data, split):
    """(grey level 0..255, class) of every image."""
    images, labels = read(data, split)
    return sorted(zip((images[:, 0, 0, 0] * 255).round().int().tolist(), labels.tolist(), strict=True))


def test_splits_and_classes_come_from_the_folders(opened, root):
    data = opened("image_folder", IMAGE, root=root, validation=0.2, **PLAIN)
    assert levels(data, "test") == [(50, 0), (51, 0), (150, 1), (151, 1)]
    train, val = levels(data, "train"), levels(data, "val")
    assert sorted(train + val) == [(i, 0) for i in range(10)] + [(100 + i, 1) for i in range(10)]
    assert [label for _, label in val] == [0, 0, 1, 1]
    told = data.interface
    assert len(told["labels"]) == 2 and told["labels"] == sorted(told["labels"])
    assert told["preprocessing"] == {
        **{"kind": "image", "height": 16, "width": 16, "channels": "RGB", "layout": "NCHW", "divisor": 255},
        **{"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0], "resize": None, "crop": "center"},
    }


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_an_archive_gives_what_its_folder_gives_also_with_a_folder_around_all(
    opened, tmp_path, files, root, kind
):
    path = tmp_path / f"images.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(f"pets/{name}", content)
            archive.writestr("__MACOSX/pets/._x.png", b"")
    else:
        with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w") as tar:
            tar.add(root, arcname="./pets")
    for split in ("train", "val", "test"):
        assert torch.equal(
            read(opened("image_folder", IMAGE, root=path, **PLAIN), split)[0],
            read(opened("image_folder", IMAGE, root=root, **PLAIN), split)[0],
        )


def test_class_folders_alone_are_train_and_other_split_names_can_be_told(opened, tmp_path, files):
    alone = {name.removeprefix("train/"): c for name, c in files.items() if name.startswith("train/")}
    data = opened(
        "image_folder", IMAGE, root=written(tmp_path / "alone", alone), test=0.2, validation=0.25, **PLAIN
    )
    assert [len(levels(data, split)) for split in ("train", "val", "test")] == [12, 4, 4]
    renamed = {name.replace("test/", "held/"): c for name, c in files.items()}
    data = opened(
        "image_folder", IMAGE, root=written(tmp_path / "named", renamed), folders={"test": "held"}, **PLAIN
    )
    assert len(levels(data, "test")) == 4
    with pytest.raises(
        ConfigError, match=r"no folder 'heldout', which data.folders names; received held, train"
    ):
        opened("image_folder", IMAGE, root=tmp_path / "named", folders={"test": "heldout"}, **PLAIN).loader(
            "test"
        )


def test_classes_and_splits_may_stand_in_the_file_names(opened, tmp_path):
    files = {f"{k}_{who}_{i}.png": png((i, 0, 0)) for k in "ab" for who in ("x", "y") for i in range(4)}
    data = opened(
        "image_folder", IMAGE, root=written(tmp_path / "named", files), pattern="{label}_{who}_{take}",
        held_out={"test": {"who": ["y"], "take": [0, 1]}, "val": {"take": ["3"]}}, **PLAIN,
    )  # fmt: skip
    assert [len(levels(data, split)) for split in ("train", "val", "test")] == [8, 4, 4]
    assert {level for level, _ in levels(data, "test")} == {0, 1}


def test_the_shorter_side_is_resized_and_the_centre_cut_as_torchvision_does():
    transforms = pytest.importorskip("torchvision.transforms", reason="torchvision is not installed")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 61, 3), dtype=np.uint8))
    for size, resize in ((16, 20), (16, 16), (20, 33)):
        config = ImageConfig(source="image_folder", image_size=size, resize=resize)
        theirs = transforms.Compose([transforms.Resize(resize), transforms.CenterCrop(size)])(image)
        assert np.array_equal(np.asarray(fitted(image, config)), np.asarray(theirs))
    wide = fitted(image, ImageConfig(source="image_folder", image_size=(10, 30)))
    assert wide.size == (30, 10)


def test_training_is_augmented_by_seed_and_epoch_and_the_rest_is_not(opened, tmp_path):
    noise = np.random.default_rng(0)
    files = {}
    for i in range(24):
        stream = io.BytesIO()
        Image.fromarray(noise.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(stream, "png")
        files[f"{'ab'[i % 2]}/{i}.png"] = stream.getvalue()
    root = written(tmp_path / "noise", files)
    plain = opened("image_folder", IMAGE, root=root, **PLAIN)
    order, labels = read(plain, "train", epoch=0)
    for kind in ("flip", "crop", "resized_crop"):
        data = opened("image_folder", IMAGE, root=root, augment=kind, **PLAIN)
        first, same_labels = read(data, "train", epoch=0)
        assert torch.equal(first, read(data, "train", epoch=0)[0]) and torch.equal(labels, same_labels)
        assert first.shape == order.shape and not torch.equal(first, order)
        for split in ("train", "val"):
            assert torch.equal(read(data, split)[0], read(plain, split)[0])
        kept = opened("image_folder", IMAGE, root=root, augment=kind, in_memory=True, **PLAIN)
        for epoch in (0, 0):
            assert torch.equal(read(kept, "train", epoch=epoch)[0], first)
    flipped = read(opened("image_folder", IMAGE, root=root, augment="flip", **PLAIN), "train", epoch=0)[0]
    turned = [not torch.equal(a, b) for a, b in zip(flipped, order, strict=True)]
    assert 4 < sum(turned) < 20
    assert all(torch.equal(a, b.flip(-1)) for a, b, t in zip(flipped, order, turned, strict=True) if t)


def test_in_memory_decodes_every_image_once(opened, root):
    data = opened("image_folder", IMAGE, root=root, in_memory=True, **PLAIN)
    first = read(data, "test")[0]
    for path in (root / "test").rglob("*.png"):
        path.unlink()
    assert torch.equal(read(data, "test")[0], first)


def test_crop_moves_by_whole_pixels_in_both_directions_and_brings_in_black():
    images = torch.zeros(400, 1, 16, 24)
    images[:, 0, 8, 12] = 1
    images[:, 0, 0, 0] = 1
    moved = crop(images, np.random.default_rng(0))
    rows, columns = moved[:, 0, 4:13, 6:19].sum(2).argmax(1) - 4, moved[:, 0, 4:13, 6:19].sum(1).argmax(1) - 6
    assert sorted(set(rows.tolist())) == [-2, -1, 0, 1, 2] and sorted(set(columns.tolist())) == list(
        range(-3, 4)
    )
    assert set(moved.sum((1, 2, 3)).tolist()) == {1.0, 2.0}, "what is moved out is gone"


def test_a_plain_tar_is_read_where_it_lies_and_an_end_that_is_cut_off_is_told(opened, tmp_path, root):
    path = tmp_path / "images.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(root, arcname="pets")
        (root / "train/cat/0.png").write_bytes(png((77, 77, 77)))
        tar.add(root / "train/cat/0.png", arcname="pets/train/cat/0.png")  # the last of a name counts
    data = opened("image_folder", IMAGE, root=path, **PLAIN)
    assert (77, 0) in levels(data, "train") + levels(data, "val")
    with path.open("r+b") as archive:
        archive.truncate(3000)
    with pytest.raises(
        ConfigError, match=r"images.tar/\S+ cannot be read: the archive ends after \d+ of \d+ bytes"
    ):
        read(data, "train")


def test_sixteen_bits_keep_their_range_and_an_unknown_one_is_refused(opened, tmp_path):
    for name, value in (("a", 0), ("a", 300), ("b", 40000), ("b", 65535)):
        place = tmp_path / "train" / name / f"{value}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((16, 16), value, np.uint16)).save(place)
    grey = {"image_size": 16, "mean": (0,), "std": (1,), "channels": 1, "validation": 0.5}
    data = opened("image_folder", {"image": ["batch", 1, 16, 16]}, root=tmp_path, **grey)
    assert sorted(levels(data, "train") + levels(data, "val")) == [(0, 0), (1, 0), (156, 1), (255, 1)]
    Image.fromarray(np.full((16, 16), 0.5, np.float32)).save(tmp_path / "train" / "a" / "0.png", "tiff")
    with pytest.raises(
        ConfigError, match=r"an image of mode F has pixels from 0\.5 to 0\.5; expected 8 or 16 bits"
    ):
        for split in ("train", "val"):
            read(opened("image_folder", {"image": ["batch", 1, 16, 16]}, root=tmp_path, **grey), split)


def test_a_name_that_is_no_text_is_named(opened, root):
    try:
        os.rename(root / "train/cat/0.png", os.fsencode(root / "train/cat") + b"/M\xfcller.png")
    except OSError:
        pytest.skip("this file system has no such names")
    with pytest.raises(ConfigError, match=r"M\\xfcller.png' is not in UTF-8; rename it"):
        opened("image_folder", IMAGE, root=root, **PLAIN).loader("train")


def test_grey_images_and_the_usual_mean(opened, root):
    data = opened("image_folder", {"image": ["batch", 1, 16, 16]}, root=root, image_size=16, channels=1)
    images, _ = read(data, "test")
    assert torch.allclose(images[:, 0, 0, 0], (torch.tensor([50, 51, 150, 151]) / 255 - 0.5) / 0.5)
    data = opened("image_folder", IMAGE, root=root, image_size=16)
    assert torch.allclose(read(data, "test")[0][0, :, 0, 0], (50 / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225]))  # fmt: skip


def test_the_digest_follows_a_file_and_its_class(opened, root):
    digest = opened("image_folder", IMAGE, root=root).digest
    (root / "train/cat/0.png").rename(root / "train/dog/cat0.png")
    moved = opened("image_folder", IMAGE, root=root).digest
    (root / "train/dog/cat0.png").write_bytes(png((1, 2, 3)))
    assert len({digest, moved, opened("image_folder", IMAGE, root=root).digest}) == 3


@pytest.mark.parametrize("broken", ["cut", "text"])
def test_a_broken_image_is_named(opened, root, broken):
    path = root / "test/dog/1.png"
    path.write_bytes(path.read_bytes()[:60] if broken == "cut" else b"no image")
    with pytest.raises(
        ConfigError, match=r"test/dog/1.png cannot be decoded as an image: .*copy it again, or remove it"
    ):
        read(opened("image_folder", IMAGE, root=root, **PLAIN), "test")


def test_what_a_folder_must_have(opened, root, files, tmp_path):
    def message(**options):
        with pytest.raises(ConfigError) as caught:
            opened("image_folder", IMAGE, **{"root": root, **PLAIN, **options}).loader("train")
        return str(caught.value)

    assert "needs data.root: train/CLASS/IMAGE" in message(root=None)
    (tmp_path / "file.txt").write_text("x")
    assert "is a file and no archive of a kind that is read" in message(root=tmp_path / "file.txt")
    (tmp_path / "broken.tar.gz").write_bytes(b"\x1f\x8b no archive")
    assert "broken.tar.gz cannot be read as an archive" in message(root=tmp_path / "broken.tar.gz")
    (tmp_path / "empty").mkdir()
    assert "holds no files" in message(root=tmp_path / "empty")
    (root / "train/bird").mkdir()
    assert "the class folder train/bird has no file ending in .jpg" in message()
    (root / "train/bird/0.png").write_bytes(files["train/cat/0.png"])
    assert "split test: 2 classes, where train has 3: 'bird' missing" in message()
    (root / "train/1.png").write_bytes(files["train/cat/0.png"])
    assert "train/1.png lies in no class folder; expected SPLIT/CLASS/1.png" in message()
    named = written(tmp_path / "named", {"a_1.png": b"", "b-1.png": b""})
    assert "the name of b-1.png does not fit data.pattern '{label}_{take}'" in message(
        root=named, pattern="{label}_{take}"
    )
    one = written(tmp_path / "one", {"only/1.png": b""})
    assert "received one class, 'only'; expected at least two" in message(root=one)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": (0.5,)}, "mean has 1 numbers; expected 3"),
        ({"std": (1, 1, 0)}, "expected numbers above 0"),
        ({"resize": 8}, "resize is 8; expected at least image_size, 16"),
        ({"pattern": "{speaker}_{take}"}, r"expected \{label\} in it"),
    ],
)
def test_options_that_contradict_each_other(opened, root, options, message):
    with pytest.raises(ValueError, match=message):
        opened("image_folder", IMAGE, root=root, image_size=16, **options)
