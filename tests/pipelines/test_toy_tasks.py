"""The pipelines for pixels, boxes, clicks and codes, at toy size, on data that the tests make."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploycompress.config.reader import read
from deploycompress.engine.plan import plan
from deploycompress.errors import ConfigError
from deploycompress.registry import DATASETS

ROOT = Path(__file__).resolve().parents[2]
SIDE = 32
COLOURS = {1: (220, 40, 40), 2: (40, 60, 220)}  # of the two classes


def patches(rng: np.random.Generator, side: int, least: int, most: int) -> tuple[np.ndarray, int, list[int]]:
    """(a noisy image with a square in it, the square's class, its corners x1 y1 x2 y2)."""
    pixels = rng.integers(90, 150, (side, side, 3), dtype=np.uint8)
    label, size = int(rng.integers(1, 3)), int(rng.integers(least, most + 1))
    left, top = (int(v) for v in rng.integers(0, side - size + 1, 2))
    pixels[top : top + size, left : left + size] = COLOURS[label]
    return pixels, label, [left, top, left + size, top + size]


def masks(folder: Path) -> Path:
    """Squares of two classes on a background, with a row of pixels that are not judged."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 48), ("val", 8), ("test", 8)):
        for kind in ("images", "masks"):
            (folder / split / kind).mkdir(parents=True)
        for number in range(count):
            pixels, label, (x1, y1, x2, y2) = patches(rng, SIDE, 10, 20)
            mask = np.zeros((SIDE, SIDE), np.uint8)
            mask[y1:y2, x1:x2] = label
            mask[0] = 255
            Image.fromarray(pixels).save(folder / split / "images" / f"{number}.png")
            Image.fromarray(mask).save(folder / split / "masks" / f"{number}.png")
    return folder


def boxes(folder: Path) -> Path:
    """The same squares at twice the size, in Pascal VOC's folders."""
    rng = np.random.default_rng(0)
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for split, count in (("train", 64), ("val", 12), ("test", 8)):
        names = [f"{split}_{number}" for number in range(count)]
        (folder / f"ImageSets/Main/{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            pixels, label, corners = patches(rng, 2 * SIDE, 12, 30)
            Image.fromarray(pixels).save(folder / f"JPEGImages/{name}.jpg", quality=95)
            box = "".join(
                f"<{corner}>{value}</{corner}>"
                for corner, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
            )
            object_ = f"<object><name>{('red', 'blue')[label - 1]}</name><bndbox>{box}</bndbox></object>"
            (folder / f"Annotations/{name}.xml").write_text(f"<annotation>{object_}</annotation>")
    return folder


def clicks(folder: Path) -> Path:
    """Criteo's columns, of which one count and one category together tell of a click; in each row a cell is empty."""
    rng = np.random.default_rng(0)
    header = ["label", *(f"I{i}" for i in range(1, 14)), *(f"C{i}" for i in range(1, 27))]
    for split, count in (("train", 256), ("val", 64), ("test", 64)):
        lines = [",".join(header)]
        for _ in range(count):
            counts, kinds = rng.poisson(20, 13), rng.integers(0, 4, 26)
            counts[0] *= rng.integers(1, 3)
            label = int(counts[0] > 28 and kinds[0] > 1)
            cells = [str(label), *map(str, counts), *(f"v{kind}" for kind in kinds)]
            cells[int(rng.integers(3, len(cells)))] = ""
            lines.append(",".join(cells))
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return folder


def strokes(folder: Path) -> Path:
    """A bright bar on black at one of many places and angles, in the form of MNIST's npz file."""
    rng = np.random.default_rng(0)
    across, down = np.meshgrid(np.arange(28), np.arange(28))

    def images(count: int) -> np.ndarray:
        angle, offset = rng.uniform(0, np.pi, (count, 1, 1)), rng.uniform(-8, 8, (count, 1, 1))
        distance = (across - 14) * np.cos(angle) + (down - 14) * np.sin(angle) - offset
        return (255 * np.exp(-((distance / 2) ** 2))).astype(np.uint8)

    parts = {"train": 256, "test": 16}
    found = {f"x_{split}": images(count) for split, count in parts.items()}
    found |= {f"y_{split}": np.arange(count) % 2 for split, count in parts.items()}
    np.savez(folder / "bars.npz", **found)
    return folder


SMALL = ["data.batch_size=8", "train.epochs=8", "train.lr=1e-2", "distill.epochs=2", "prune.target.macs=70%"]
# So few samples judge nothing, and a small network cannot lose much: the steps and their checks are tested.
LOOSE = ["gates.latency_p50.min_speedup=0.01"]
DROP = "gates.accuracy.max_drop=100 pp"
WHOLE = "gates.artifact_size.max_ratio=100%"
TOYS = {
    "segmentation": (
        masks,
        [
            "model.args={width: 8, depth: 2, classes: 3}", "model.inputs.image.shape=[batch, 3, 32, 32]",
            "data.image_size=32", "gates.worst_class.max_drop=100 pp", DROP, WHOLE,
        ],
    ),
    "detection": (
        boxes,
        [
            "model.args={classes: 3, width: 8, sizes: [10, 18, 28]}",
            "model.inputs.image.shape=[batch, 3, 64, 64]", "data.image_size=64", "data.augment=flip",
            "gates.metric:map_50.max_drop=100 pp", DROP, WHOLE,
        ],
    ),
    "click-prediction": (
        clicks,
        ["model.args={buckets: 8, hidden: [32, 16]}", "data.min_count=1", "gates.metric:log_loss.max_rise=100", DROP],
    ),
    "vae": (strokes, ["model.args={width: 8, latent: 4}", "gates.accuracy.max_rise=100", WHOLE]),
}  # fmt: skip
LEARNED = {  # what the unpruned network reaches on the validation split
    "segmentation": lambda figures: figures["val_miou"] > 0.8,
    "detection": lambda figures: figures["val_map"] > 0.4,
    "click-prediction": lambda figures: figures["val_auc"] > 0.9,
    "vae": lambda figures: figures["val_reconstruction"] < 0.3,  # the images' own variance is about 1
}


@pytest.fixture(scope="module", params=TOYS)
def ran(request, chain):
    make, sizes = TOYS[request.param]
    return request.param, *chain(request.param, make, [*SMALL, *LOOSE, *sizes])


def test_it_learns_and_every_step_makes_its_artefact(ran):
    name, told, folder = ran
    assert list(told.splits) == [step.id for step in plan(read(ROOT / "pipelines" / f"{name}.yaml"))]
    (last,) = (event.figures for event in told.events if event.message.startswith("epoch 8/8"))
    assert LEARNED[name](last), last
    sizes = {path.parent.name.partition("-")[2]: path.stat().st_size for path in folder.rglob("*.onnx")}
    assert sizes.keys() == {"baseline", "export", "quantize"} and sizes["export"] < sizes["baseline"]


def test_the_test_split_is_read_by_the_benchmark_alone_at_the_end(ran):
    _, told, _ = ran
    assert [step for step, splits in told.splits.items() if "test" in splits] == ["benchmark"]
    assert list(told.splits)[-1] == "benchmark"


@pytest.mark.parametrize("name", TOYS)
def test_without_data_it_says_what_it_expects(name):
    source = read(ROOT / "pipelines" / f"{name}.yaml").data
    with pytest.raises(ConfigError, match=r"needs data\.root: "):
        DATASETS.load(source.source)(source).files()
