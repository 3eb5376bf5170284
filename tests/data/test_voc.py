"""Pascal VOC's folders: splits, classes, boxes that move with their image, and what is refused."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from deploycompress.data.windows import Window, drawn
from deploycompress.errors import ConfigError

IMAGE = {"image": ["batch", 3, 20, 40]}
PLAIN = {"image_size": (20, 40), "mean": (0, 0, 0), "std": (1, 1, 1), "batch_size": 4, "validation": 0.5}
HALF = [("cat", 20, 0, 40, 20)]  # in an image of 40x20: its right half


def picture(size=(80, 40)):
    """Black, with a white right half."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[:, size[0] // 2 :] = 255
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


def annotation(objects, size=(80, 40)):
    boxes = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox>"
        f"</object>"
        for name, a, b, c, d in objects
    )
    return f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>{boxes}</annotation>"


@pytest.fixture
def root(tmp_path):
    """Four images of 80x40: a dog in a corner of each, and a cat in the right half of the first two."""
    for number in range(4):
        cat = [("cat", 40, 0, 80, 40)] * (number < 2)
        add(tmp_path, f"i{number}", annotation([("dog", 0, 0, 20, 10), *cat]))
    lists(tmp_path, train="i0\ni1\n", val="i2\n", test="i3\n")
    return tmp_path


def add(root, name, text, image=None):
    for folder in ("JPEGImages", "Annotations"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / f"JPEGImages/{name}.png").write_bytes(picture() if image is None else image)
    (root / f"Annotations/{name}.xml").write_text(text)


def lists(root, **splits):
    (root / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
    for split, text in splits.items():
        (root / f"ImageSets/Main/{split}.txt").write_text(text)


def read(data, split, epoch=None):
    batches = list(data.loader(split, epoch))
    return torch.cat([b.inputs["image"] for b in batches]), [t for b in batches for t in b.targets]


def refused(data, split="train"):
    with pytest.raises(ConfigError) as caught:
        list(data.loader(split))
    return str(caught.value)


def test_boxes_are_in_the_pixels_of_the_resized_image_and_classes_begin_at_one(opened, root):
    images, targets = read(opened("voc", IMAGE, root=root, **PLAIN), "train")
    assert images.shape == (2, 3, 20, 40) and images[0, 0, 10].round().tolist() == [0.0] * 20 + [1.0] * 20
    assert targets[0]["labels"].tolist() == [2, 1], "cat, dog: sorted"
    assert targets[0]["boxes"].tolist() == [[0, 0, 10, 5], [20, 0, 40, 20]]
    assert targets[0]["boxes"].dtype == torch.float32 and targets[0]["labels"].dtype == torch.int64


def test_splits_are_those_of_the_lists_also_in_an_archive_with_other_files_around(opened, root, tmp_path):
    archive = tmp_path / "set.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for folder in ("JPEGImages", "Annotations", "ImageSets"):
            tar.add(root / folder, f"BCCD/{folder}")
        tar.add(root / "Annotations/i0.xml", "README.xml")
    for place in (root, archive):
        data = opened("voc", IMAGE, root=place, **PLAIN)
        assert [len(read(data, split)[0]) for split in ("train", "val", "test")] == [2, 1, 1]


def test_without_lists_all_of_it_is_train_and_an_image_may_be_empty(opened, tmp_path):
    for number in range(3):
        add(tmp_path, f"i{number}", annotation(HALF[:number]))
    data = opened("voc", IMAGE, root=tmp_path, **PLAIN)
    images, targets = read(data, "train")
    assert len(images) + len(read(data, "val")[0]) == 3
    everything = targets + read(data, "val")[1]
    assert sorted(len(t["labels"]) for t in everything) == [0, 1, 1]
    assert all(t["boxes"].shape == (len(t["labels"]), 4) for t in everything)


@pytest.mark.parametrize("augment", ["flip", "crop"])
def test_in_training_boxes_stay_on_what_they_mark(opened, tmp_path, augment):
    """The white half is wherever its box says, in every window."""
    for number in range(8):
        add(tmp_path, f"i{number}", annotation([("cat", 40, 0, 80, 40)]))
    lists(tmp_path, train="\n".join(f"i{n}" for n in range(8)))
    data = opened("voc", IMAGE, root=tmp_path, augment=augment, **PLAIN)
    places = set()
    for epoch in range(4):
        for image, target in zip(*read(data, "train", epoch), strict=True):
            white = image[0] > 0.5
            for x1, y1, x2, y2 in target["boxes"].round().int().tolist():
                assert (
                    white[y1:y2, x1 + 1 : x2 - 1].all()
                    and abs(int(white.sum()) - (x2 - x1) * (y2 - y1)) <= 20
                )
                places.add((x1, y1, x2, y2))
    assert len(places) == 2 if augment == "flip" else len(places) > 8
    again = read(data, "train", 3)[0]
    assert torch.equal(image, again[-1]), "the same seed and epoch give the same windows"


def test_a_window_cuts_boxes_and_drops_those_whose_centre_is_outside():
    window = Window(10, 0, 30, 20, mirrored=True)
    boxes = np.array([[0, 0, 22, 10], [0, 0, 12, 10], [28, 4, 40, 8.0]])
    found, kept = window.boxes(boxes, (40, 40))
    assert kept.tolist() == [0] and found.tolist() == [[40 - 24, 0, 40, 20]]
    for seed in range(50):
        some = drawn((80, 40), "crop", np.random.default_rng(seed))
        assert 0 <= some.left < some.right <= 80 and 0 <= some.top < some.bottom <= 40
        assert (some.right - some.left) * (some.bottom - some.top) >= 0.25 * 80 * 40


BROKEN = [("cat", 30, 5, 30, 9), ("cat", 90, 5, 95, 9), ("dog", 0, 0, 20, 10)]


def test_boxes_without_an_area_are_named_or_skipped(opened, root):
    add(root, "i1", annotation(BROKEN))
    told = refused(opened("voc", IMAGE, root=root, **PLAIN))
    assert "2 boxes have no area" in told and "Annotations/i1.xml: cat at 30 5 30 9" in told
    assert "data.broken_boxes: skip" in told
    _, targets = read(opened("voc", IMAGE, root=root, broken_boxes="skip", **PLAIN), "train")
    assert targets[1]["labels"].tolist() == [2] and targets[1]["boxes"].tolist() == [[0, 0, 10, 5]]


def test_boxes_outside_are_found_also_where_the_annotation_does_not_say_the_size(opened, root):
    add(root, "i1", annotation(BROKEN[1:], size=(0, 0)))
    assert "1 boxes have no area" in refused(opened("voc", IMAGE, root=root, **PLAIN))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (annotation(HALF, size=(40, 20)), "i1.xml is for an image of 40x20, but JPEGImages/i1.png is 80x40"),
        (annotation([("cat", "one", 0, 4, 4)]), "i1.xml, object 1: the box is xmin 'one'"),
        (annotation([("cat", "nan", 0, 4, 4)]), "expected four finite numbers"),
        (annotation(HALF).replace("<ymin>0</ymin>", ""), "ymin missing"),
        (annotation([*HALF, ("", 0, 0, 4, 4)]), "i1.xml, object 2: no <name>"),
        (annotation(HALF)[:-5], "i1.xml cannot be read as XML"),
        (
            '<!DOCTYPE a [<!ENTITY b "cat">]>' + annotation([("&b;", 0, 0, 4, 4)]),
            "it has a document type, 'a'; expected elements alone",
        ),
    ],
)  # fmt: skip
def test_a_broken_annotation_is_named(opened, root, text, expected):
    add(root, "i1", text)
    assert expected in refused(opened("voc", IMAGE, root=root, **PLAIN))


def test_a_document_that_grows_without_end_is_refused_at_once(opened, root):
    entities = "".join(f'<!ENTITY e{n + 1} "{f"&e{n};" * 10}">' for n in range(12))
    add(root, "i1", f'<!DOCTYPE a [<!ENTITY e0 "cat">{entities}]>' + annotation([("&e12;", 0, 0, 4, 4)]))
    assert "document type" in refused(opened("voc", IMAGE, root=root, **PLAIN))


def test_files_that_are_missing_or_listed_twice_are_named(opened, root):
    data = {"root": root, **PLAIN}
    lists(root, val="i2\ni9\n")
    assert "val.txt lists 'i9', which has no Annotations/i9.xml" in refused(opened("voc", IMAGE, **data))
    lists(root, val="i2\ni0\n")
    assert "val.txt lists 'i0', which is in train already" in refused(opened("voc", IMAGE, **data))
    lists(root, val="i2\n")
    (root / "JPEGImages/i3.png").unlink()
    assert "Annotations/i3.xml has no image i3 in JPEGImages" in refused(opened("voc", IMAGE, **data))


def test_classes_may_be_given_in_an_order_of_their_own(opened, root):
    _, targets = read(opened("voc", IMAGE, root=root, classes=("dog", "cat"), **PLAIN), "train")
    assert targets[0]["labels"].tolist() == [1, 2]
    told = refused(opened("voc", IMAGE, root=root, classes=("dog",), **PLAIN))
    assert "received the class 'cat'; expected dog, as data.classes says" in told


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda p: None, "data source voc needs data.root: Annotations/NAME.xml and JPEGImages/NAME.jpg"),
        (lambda p: p / "absent", "does not exist"),
        (lambda p: p, "no folder Annotations; voc expects one set of Annotations/NAME.xml"),
    ],
)
def test_no_set_at_all(opened, tmp_path, make, expected):
    (tmp_path / "notes.txt").write_text("nothing")
    assert expected in refused(opened("voc", IMAGE, root=make(tmp_path), **PLAIN))
