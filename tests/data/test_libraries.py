"""Data sets of torchvision and of Hugging Face, from files that the tests write; nothing is fetched."""

from __future__ import annotations

import io
import struct
import sys

import numpy as np
import pytest
import torch

from deploycompress.config.reader import read as read_pipeline
from deploycompress.data.datasets.torchvision import Torchvision
from deploycompress.errors import ConfigError, EnvironmentMissing

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 28, 28), dtype=np.uint8)
CLASSES = np.arange(30, dtype=np.uint8) % 3
GREY = {"image": ["batch", 1, 28, 28]}
FASHION = {"dataset": "FashionMNIST", "image_size": 28, "channels": 1, "mean": (0.0,), "std": (1.0,)}


def png(pixels):
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


PNG = png(PIXELS[0])
SMALL = {"image_size": 28, "channels": 1}


def whole(data, split):
    batches = list(data.loader(split))
    return {n: torch.cat([b.inputs[n] for b in batches]) for n in batches[0].inputs}, torch.cat(
        [b.targets for b in batches]
    )


# ---------------------------------------------------------------- torchvision


@pytest.fixture
def fashion(tmp_path):
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for part, cut in (("train", slice(0, 24)), ("t10k", slice(24, 30))):
        for name, array in (("images-idx3", PIXELS[cut]), ("labels-idx1", CLASSES[cut])):
            head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            (raw / f"{part}-{name}-ubyte").write_bytes(head + array.tobytes())
    return tmp_path


def test_a_data_set_of_torchvision_by_name(opened, fashion):
    data = opened("torchvision", GREY, root=fashion, validation=0.25, **FASHION)
    inputs, labels = whole(data, "test")
    assert torch.equal(inputs["image"][:, 0], torch.from_numpy(PIXELS[24:] / 255).float())
    assert labels.tolist() == CLASSES[24:].tolist()
    assert torch.bincount(whole(data, "val")[1]).tolist() == [2, 2, 2]
    digest = data.digest
    (fashion / "other").write_text("of another data set")
    assert opened("torchvision", GREY, root=fashion, validation=0.25, **FASHION).digest == digest


def test_a_data_set_with_named_splits_keeps_those_it_has(opened, tmp_path):
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    from PIL import Image

    for split, count in (("train", 3), ("val", 2)):
        for label, name in enumerate(("n01440764", "n02102040")):
            folder = tmp_path / "imagenette2" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (9, 7), (100 * label,) * 3).save(folder / f"{i}.JPEG")
    data = opened(
        "torchvision", {"image": ["batch", 3, 8, 8]}, root=tmp_path, dataset="Imagenette", image_size=8
    )
    assert sorted(whole(data, "train")[1].tolist()) == [0, 0, 0, 1, 1, 1] and whole(data, "val")[
        1
    ].tolist() == [
        0,
        0,
        1,
        1,
    ]
    assert whole(data, "val")[0]["image"].shape == (4, 3, 8, 8)
    with pytest.raises(ConfigError, match="split test: there is none"):
        data.loader("test")


def test_the_name_behind_the_colon_is_the_data_set(tmp_path):
    (tmp_path / "pipeline.yaml").write_text(
        "name: x\nmodel: {build: 'deploycompress.examples.resnet:build', inputs: {image: {shape: [batch, 3, 32, 32]}}}\n"
        "data: {source: 'torchvision:CIFAR10', image_size: 32, root: .}\nstages: [train]\n"
    )
    config = read_pipeline(tmp_path / "pipeline.yaml").data
    assert isinstance(config, Torchvision.Config) and (config.source, config.dataset) == (
        "torchvision",
        "CIFAR10",
    )


def test_what_torchvision_does_not_have(opened, fashion, monkeypatch):
    def message(error=ConfigError, **options):
        with pytest.raises(error) as caught:
            list(opened("torchvision", GREY, **{"root": fashion, **FASHION, **options}).loader("train"))
        return str(caught.value)

    assert "torchvision has no data set 'FashonMNIST'; did you mean 'FashionMNIST'?" in message(
        dataset="FashonMNIST"
    )
    assert "name the folder that holds CIFAR10, or set data.download: true" in message(dataset="CIFAR10")
    assert "needs data.root" in message(root=None)
    fake = message(dataset="VOCSegmentation", root=fashion)
    assert "VOCSegmentation" in fake
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "needs torchvision: pip install 'deploycompress[vision]'" in message(EnvironmentMissing)


# ---------------------------------------------------------------- Hugging Face


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    found = pytest.importorskip("datasets", reason="datasets is not installed")
    monkeypatch.setattr(found.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return found


def test_a_set_saved_to_disk_as_text_numbers_and_images(opened, datasets, tmp_path):
    from PIL import Image

    columns = {
        "sentence": ["a good film", "a bad film"] * 4,
        "values": [[float(i), 1.0] for i in range(8)],
        "picture": [Image.fromarray(p) for p in PIXELS[:8]],
        "label": ["pos", "neg"] * 4,
    }
    part = datasets.Dataset.from_dict(columns)
    datasets.DatasetDict({"train": part, "validation": part, "test": part.select([1, 2])}).save_to_disk(
        tmp_path / "set"
    )
    text = opened(
        "huggingface", {"tokens": (["batch", 4], "int64")}, root=tmp_path / "set", text="sentence", length=4
    )
    inputs, labels = whole(text, "test")
    assert inputs["tokens"].tolist() == [[2, 4, 3, 0], [2, 5, 3, 0]] and labels.tolist() == [0, 1]
    numbers = opened("huggingface", {"x": ["batch", 2]}, root=tmp_path / "set", columns=("values",))
    assert whole(numbers, "test")[0]["x"].tolist() == [[1, 1], [2, 1]]
    images = opened(
        "huggingface",
        GREY,
        root=tmp_path / "set",
        image="picture",
        image_size=28,
        channels=1,
        mean=(0.0,),
        std=(1.0,),
    )
    assert torch.equal(whole(images, "test")[0]["image"][:, 0], torch.from_numpy(PIXELS[1:3] / 255).float())
    wrong = opened("huggingface", {"x": ["batch", 2]}, root=tmp_path / "set", columns=("value",))
    with pytest.raises(ConfigError, match="no column 'value'; it has sentence, values, picture, label"):
        wrong.loader("train")


def test_local_files_and_what_is_not_there(opened, datasets, tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "train.csv").write_text("x,label\n" + "".join(f"{i}.5,{i % 2}\n" for i in range(10)))
    (folder / "test.csv").write_text("x,label\n7.5,1\n3.5,0\n")
    data = opened("huggingface", {"x": ["batch"]}, root=folder, columns=("x",))
    inputs, labels = whole(data, "test")
    assert inputs["x"].tolist() == [7.5, 3.5] and labels.tolist() == [1, 0]
    (folder / "test.csv").write_text("x,label\n7.5,1\n3.5,-1\n")
    with pytest.raises(ConfigError, match="split test: column 'label' has -1, which stands for no label"):
        opened("huggingface", {"x": ["batch"]}, root=folder, columns=("x",)).loader("test")
    (folder / "test.csv").unlink()
    whole_set = (folder / "train.csv").read_text().splitlines(keepends=True)
    (folder / "train.csv").unlink()
    for part in (0, 1):  # as the hub keeps them
        rows = "".join(whole_set[1 + 5 * part : 6 + 5 * part])
        (folder / f"train-0000{part}-of-00002.CSV").write_text(whole_set[0] + rows)
    sharded = opened("huggingface", {"x": ["batch"]}, root=folder, columns=("x",), validation=0.2)
    values = [whole(sharded, split)[0]["x"] for split in ("train", "val")]
    assert sorted(torch.cat(values).tolist()) == [i + 0.5 for i in range(10)]
    for name in ("val", "validation"):
        (folder / f"{name}.csv").write_text("x,label\n7.5,1\n3.5,0\n")
    with pytest.raises(ConfigError, match="received train, val, validation, of which two are one split"):
        opened("huggingface", {"x": ["batch"]}, root=folder, columns=("x",)).loader("val")
    for path in folder.glob("[tv]*"):
        path.unlink()
    (folder / "rows.csv").write_text("x,label\n1,1\n")
    with pytest.raises(ConfigError, match=r"received rows.csv.*expected a folder that save_to_disk wrote"):
        opened("huggingface", {"x": ["batch"]}, root=folder, columns=("x",)).loader("train")
    with pytest.raises(ConfigError, match=r"needs data\.root"):
        opened("huggingface", {"x": ["batch"]}, columns=("x",)).loader("train")
    with pytest.raises(ValueError, match="name and download: expected both"):
        opened("huggingface", {"x": ["batch"]}, columns=("x",), name="stanfordnlp/sst2")
    with pytest.raises(ValueError, match="expected one of text, image and columns"):
        opened("huggingface", {"x": ["batch"]})


def test_a_row_that_is_no_text_or_no_image_is_named(opened, datasets, tmp_path):
    part = datasets.Dataset.from_dict({"sentence": ["good", None, "bad", "fine"], "label": [0, 1, 0, 1]})
    datasets.DatasetDict({"train": part, "test": part}).save_to_disk(tmp_path / "texts")
    tokens = {"tokens": (["batch", 4], "int64")}
    with pytest.raises(ConfigError, match=r"'sentence' has None in row 1 \(1 such rows\); expected text"):
        opened("huggingface", tokens, root=tmp_path / "texts", text="sentence", length=4).loader("test")
    images = [{"bytes": png, "path": None} for png in (PNG, PNG, b"no image", PNG)]
    features = datasets.Features({"picture": datasets.Image(), "label": datasets.Value("int64")})
    part = datasets.Dataset.from_dict({"picture": images, "label": [0, 1, 0, 1]}, features=features)
    datasets.DatasetDict({"train": part, "test": part}).save_to_disk(tmp_path / "images")
    data = opened("huggingface", GREY, root=tmp_path / "images", image="picture", **SMALL)
    with pytest.raises(ConfigError, match=r"split test, batch 0: reading failed: sample 2: Unidentified"):
        whole(data, "test")


# ---------------------------------------------------------------- what is not installed


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("image_folder", {}, "image_folder needs Pillow: pip install 'deploycompress[vision]'"),
        (
            "huggingface",
            {"columns": ("x",)},
            "huggingface needs datasets: pip install 'deploycompress[text]'",
        ),
        ("text", {"tokenizer": True}, "needs tokenizers: pip install 'deploycompress[text]'"),
    ],
)
def test_an_extra_that_is_not_installed_is_named(opened, tmp_path, monkeypatch, source, options, message):
    (tmp_path / "train.tsv").write_text("text\tlabel\na\t0\nb\t1\n")
    (tmp_path / "tokenizer.json").write_text("{}")
    if "tokenizer" in options:
        options = {"tokenizer": tmp_path / "tokenizer.json"}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EnvironmentMissing) as caught:
        opened(source, {"x": ["batch", 1]}, root=tmp_path, **options).loader("train")
    assert message in str(caught.value)
