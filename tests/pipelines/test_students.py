"""The pipelines in which one network teaches another, at toy size, on data that the tests make."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deploycompress.config.reader import read
from deploycompress.engine.plan import plan
from deploycompress.errors import ConfigError
from deploycompress.examples import bert
from deploycompress.registry import DATASETS

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ("dots", "rows", "columns")


def patterns(folder: Path) -> Path:
    """Images of 32x32 whose class is the direction of their stripes, in train/CLASS and test/CLASS."""
    rng = np.random.default_rng(0)
    rows, columns = np.indices((32, 32)) // 4 % 2
    for split, count in (("train", 40), ("test", 8)):
        for name, pattern in zip(CLASSES, (rows ^ columns, rows, columns), strict=True):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = 80 + 90 * pattern[:, :, None] + rng.normal(0, 20, (32, 32, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(
                    folder / split / name / f"{number:04}.png"
                )
    return folder


def packed(folder: Path) -> Path:
    """The same as an archive."""
    images, archive = patterns(folder / "images"), folder / "images.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for split in ("train", "test"):
            tar.add(images / split, split)
    return archive


def reviews(folder: Path) -> Path:
    """Sentences whose class is in one word of theirs, with that class behind a tab."""
    rng = np.random.default_rng(0)
    for name, count in (("train", 128), ("dev", 24), ("test", 24)):
        lines = []
        for i in range(count):
            words = list(rng.choice(["the", "film", "is", "long", "and"], size=rng.integers(2, 8)))
            words.insert(int(rng.integers(len(words) + 1)), ("bad", "good")[i % 2])
            lines.append(f"{' '.join(words)}\t{i % 2}\n")
        (folder / f"{name}.tsv").write_text("".join(lines))
    return folder


def cnn(width: int) -> str:
    """With more outputs than there are classes, as ImageNet's networks have them."""
    arguments = f"{{width: {width}, channels: 3, image_size: 32, classes: 8}}"
    return f"{{build: 'deploycompress.examples.cnn:build', args: {arguments}}}"


def student(step: str, network: str, rate: str = "3e-2") -> list[str]:
    return [f"{step}.student={network}", f"{step}.epochs=8", f"{step}.lr={rate}"]


BERT = "width: 16, heads: 2, hidden: 32, words: 40, length: 40, dropout: 0.0"
TRAINED = ["train.epochs=8", "data.batch_size=16", "data.calibration=64"]
PLAIN = ["export.simplify=false"]
IMAGES = [*TRAINED, "data.image_size=32", "data.augment=flip", "train.lr=3e-2"]
PICTURES = [
    *IMAGES, "data.resize=null", "model.build=deploycompress.examples.cnn:build",
    "model.args={width: 8, channels: 3, image_size: 32, classes: 8}",
    "model.inputs.image.shape=[batch, 3, 32, 32]",
]  # fmt: skip
# So few samples judge nothing, and small networks cannot save much: the steps and their checks are tested.
LOOSE = ["gates.accuracy.max_drop=100 pp", "gates.artifact_size.max_ratio=100%"]
TOYS = {
    "resnet50-to-18": (patterns, [*PICTURES, *PLAIN, *student("distill", cnn(4))]),
    "vgg16-to-mobilenet": (patterns, [
            *PICTURES, "export-large.simplify=false", "export-small.simplify=false",
            *student("large", cnn(6)), *student("small", cnn(4)),
        ]),
    "bert-to-distilbert": (
        reviews,
        [
            *TRAINED, *PLAIN, "train.lr=1e-2", f"model.args={{layers: 2, {BERT}}}", "data.vocabulary=40", "data.length=16",
            "model.inputs.input_ids.max=40",
            *student("distill", f"{{build: deploycompress.examples.bert:build, args: {{layers: 1, {BERT}}}}}", "1e-2"),
            "distill.loss=[kd, {cosine: {layers: {bert.encoder.layer.0: bert.encoder.layer.1}, mask: attention_mask}}]",
        ],
    ),
    "resnet56-cifar10": (
        packed,
        [
            *IMAGES, *PLAIN, "data.source=image_folder", "model.args={width: 8, depth: 8, channels: 3, shortcut: padding}",
            "distill.epochs=2", "prune.target.macs=70%",
        ],
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=TOYS)
def ran(request, chain):
    make, changes = TOYS[request.param]
    return request.param, *chain(request.param, make, [*changes, *LOOSE])


def test_teacher_and_students_learn_and_every_step_makes_its_artefact(ran):
    name, told, folder = ran
    assert list(told.splits) == [step.id for step in plan(read(ROOT / "pipelines" / f"{name}.yaml"))]
    ends = [event for event in told.events if re.fullmatch(r"epoch (\d+)/\1", event.message)]
    students = 2 if name == "vgg16-to-mobilenet" else 1
    assert [event.figures["val_accuracy"] > 0.8 for event in ends] == [True] * (1 + students)
    assert len(list(folder.rglob("*.onnx"))) == 1 + 2 * students, "the baseline, and FP32 and INT8 of each"


def test_nothing_is_left_beside_the_run(ran):
    assert not Path("sym_shape_infer_temp.onnx").exists(), "shapes of BERT that ONNX Runtime cannot infer"


def test_the_test_split_is_read_by_the_benchmark_alone_at_the_end(ran):
    _, told, _ = ran
    assert [step for step, splits in told.splits.items() if "test" in splits] == ["benchmark"]
    assert list(told.splits)[-1] == "benchmark"


def test_the_students_are_other_networks_than_their_teachers(ran):
    """Smaller files; the small BERT begins with what its teacher has learned."""
    name, told, folder = ran
    sizes = {path.parent.name.partition("-")[2]: path.stat().st_size for path in folder.rglob("*.onnx")}
    exported = [size for step, size in sizes.items() if step.startswith("export")]
    assert exported and all(size < sizes["baseline"] for size in exported)
    inherited = [event.message for event in told.events if "tensors from its source" in event.message]
    assert inherited == (
        ["the student starts with 27 of its 27 tensors from its source"] * (name == "bert-to-distilbert")
    )


def test_the_layers_that_the_small_bert_learns_from_are_there():
    config = read(ROOT / "pipelines" / "bert-to-distilbert.yaml")
    distill = next(step.config for step in config.stages if step.stage == "distill")
    layers = distill.loss[1]["cosine"]["layers"]
    with torch.device("meta"):
        teacher, student = bert.build(**config.model.args), bert.build(**distill.student.args)
    for own, other in layers.items():
        assert own == f"bert.encoder.layer.{len(student.get_submodule('bert.encoder.layer')) - 1}"
        assert other == f"bert.encoder.layer.{len(teacher.get_submodule('bert.encoder.layer')) - 1}"


@pytest.mark.parametrize("name", TOYS)
def test_without_data_it_says_what_it_expects(name):
    source = read(ROOT / "pipelines" / f"{name}.yaml").data
    with pytest.raises(ConfigError, match=r"needs data\.root: "):
        DATASETS.load(source.source)(source).files()
