"""Arrays from npz and npy files: what is read, how it is converted, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deploycompress.errors import ConfigError

X = np.arange(40 * 6, dtype=np.float64).reshape(40, 6)
Y = np.arange(40) % 2
SIX = {"x": ["batch", 6]}


def read(data, split="train", epoch=None):
    batches = list(data.loader(split, epoch))
    return torch.cat([b.inputs["x"] for b in batches]), torch.cat([b.targets for b in batches])


@pytest.fixture
def folder(tmp_path):
    np.save(tmp_path / "x_train.npy", X)
    np.save(tmp_path / "y_train.npy", Y)
    np.save(tmp_path / "x_test.npy", X[:10])
    np.save(tmp_path / "y_test.npy", Y[:10])
    return tmp_path


def test_a_folder_of_npy_files_is_mapped_and_not_read(opened, folder):
    data = opened("arrays", SIX, root=folder, validation=0.25)
    x, y = read(data)
    assert x.dtype == torch.float32 and y.dtype == torch.int64 and len(x) == 30
    assert torch.equal(read(data, "test")[0], torch.from_numpy(X[:10]).float())
    assert torch.bincount(read(data, "val")[1]).tolist() == [5, 5]
    inputs = data._splits["test"].inputs
    assert isinstance(inputs[0], np.memmap)


def test_masks_are_mapped_too_and_converted_a_batch_at_a_time(opened, tmp_path):
    masks = np.arange(40 * 6, dtype=np.uint8).reshape(40, 2, 3)
    for name, array in (("x_train", X), ("y_train", masks)):
        np.save(tmp_path / f"{name}.npy", array)
    data = opened("arrays", SIX, root=tmp_path)
    x, y = read(data)
    assert y.dtype == torch.int64 and torch.equal(
        y, torch.from_numpy(masks.astype(np.int64))[(x[:, 0] / 6).long()]
    )
    part = data._splits["train"]
    assert isinstance(part.whole.targets, np.memmap) and part.whole.targets.dtype == np.uint8


def test_an_npz_of_one_pair_is_train_and_a_test_split_is_cut(opened, tmp_path):
    np.savez(tmp_path / "d.npz", x=X, y=Y[:, None])
    data = opened("arrays", SIX, root=tmp_path / "d.npz", test=0.2, validation=0.25)
    parts = [read(data, split) for split in ("train", "val", "test")]
    assert [len(x) for x, _ in parts] == [24, 8, 8]
    assert sorted(torch.cat([x[:, 0] for x, _ in parts]).tolist()) == X[:, 0].tolist()
    assert torch.bincount(parts[2][1]).tolist() == [4, 4]


def test_without_a_test_split_and_no_share_for_it_there_is_none(opened, tmp_path):
    np.savez(tmp_path / "d.npz", x=X, y=Y)
    with pytest.raises(
        ConfigError, match=r"split test: there is none; .* or set data.test to a share of train"
    ):
        opened("arrays", SIX, root=tmp_path / "d.npz").loader("test")


def test_several_inputs_and_no_labels(opened, tmp_path):
    np.savez(tmp_path / "d.npz", a_train=X, b_train=np.ones((40, 3), np.int64))
    data = opened(
        "arrays", {"p": ["batch", 6], "q": (["batch", 3], "int64")}, root=tmp_path / "d.npz", inputs=("a", "b"),
        target=None,
    )  # fmt: skip
    batch = next(iter(data.loader("val")))
    assert (
        batch.inputs["q"].dtype == torch.int64 and batch.inputs["p"].shape == (4, 6) and batch.targets is None
    )


def test_images_of_bytes_are_scaled_turned_and_standardised_by_channel(opened, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 5, 4, 3), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", x_train=pixels, y_train=np.arange(8) % 2)
    data = opened(
        "arrays", {"x": ["batch", 3, 5, 4]}, root=tmp_path / "d.npz", channels_last=True, scale=255.0,
        mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.25), augment="crop", validation=0.25,
    )  # fmt: skip
    expected = (pixels / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.5, 0.25]
    wanted = expected[data._splits["train"].indices].transpose(0, 3, 1, 2)
    in_order = (images[images.sum((1, 2, 3)).argsort()] for images in (read(data)[0].numpy(), wanted))
    assert np.allclose(*in_order, atol=1e-6)
    assert not torch.equal(
        read(data, epoch=0)[0].sum((1, 2, 3)).sort()[0], read(data)[0].sum((1, 2, 3)).sort()[0]
    )


def test_targets_of_numbers_are_float32_and_not_cut_by_class(opened, tmp_path):
    np.savez(tmp_path / "d.npz", x=X, y=X[:, 0])
    assert read(opened("arrays", SIX, root=tmp_path / "d.npz"))[1].dtype == torch.float32


def test_the_digest_follows_the_contents_and_not_the_place(opened, folder, tmp_path_factory):
    digest = opened("arrays", SIX, root=folder).digest
    moved = tmp_path_factory.mktemp("elsewhere") / "moved"
    folder.rename(moved)
    assert opened("arrays", SIX, root=moved).digest == digest
    assert opened("arrays", SIX, root=moved, scale=2.0).digest != digest
    np.save(moved / "x_test.npy", X[:10] + 1)
    assert opened("arrays", SIX, root=moved).digest != digest


def test_objects_are_refused_in_both_kinds_of_file(opened, tmp_path):
    np.save(tmp_path / "x_train.npy", np.array([{}], dtype=object))
    with pytest.raises(ConfigError, match=r"x_train.npy cannot be read as arrays: .*Python objects"):
        opened("arrays", SIX, root=tmp_path).loader("train")
    np.savez(tmp_path / "d.npz", x=np.array([{}], dtype=object), y=Y)
    with pytest.raises(ConfigError, match=r"d.npz cannot be read as arrays: .*allow_pickle"):
        opened("arrays", SIX, root=tmp_path / "d.npz").loader("train")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x_train": X}, "has x_train and not y_train: add it, or change data.inputs or data.target"),
        ({"x_train": X, "y_train": Y[:9]}, "received 40 in x_train, 9 in y_train samples; expected as many in each"),
        ({"a": X}, "holds a; expected an .npz file with x_train"),
        ({"x": X, "y": np.array(["cat"] * 40)}, "y is of type <U3; expected numbers"),
        ({"x": X[:0], "y": Y[:0]}, "split train is empty: expected at least one sample"),
        ({"x": X[:, :5], "y": Y}, "received float32[36, 5]; expected float32[batch, 6]"),
        ({"x_train": X, "y_train": Y, "x_test": X, "y_test": 0 * Y}, "split test: 1 classes, where train has 2: 1 missing"),
        ({"x_train": X, "y_train": 0 * Y, "x_val": X, "y_val": Y}, "split val: 2 classes, where train has 1: 1 not in"),
    ],
    ids=["no-labels", "lengths", "names", "text", "empty", "shape", "missing-class", "extra-class"],
)  # fmt: skip
def test_what_does_not_fit_is_refused(opened, tmp_path, arrays, message):
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(ConfigError) as caught:
        read(opened("arrays", SIX, root=tmp_path / "d.npz", batch_size=64))
    assert message in str(caught.value)


def test_a_split_may_lack_classes_when_that_is_said(opened, tmp_path):
    np.savez(tmp_path / "d.npz", x_train=X, y_train=Y, x_test=X, y_test=0 * Y)
    data = opened("arrays", SIX, root=tmp_path / "d.npz", allow_missing_classes=True)
    assert read(data, "test")[1].unique().tolist() == [0]


def test_no_root_a_broken_file_and_an_empty_folder(opened, tmp_path):
    with pytest.raises(ConfigError, match=r"data source arrays needs data\.root"):
        _ = opened("arrays", SIX).digest
    with pytest.raises(ConfigError, match="no array to read"):
        _ = opened("arrays", SIX, root=tmp_path).digest
    (tmp_path / "d.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(ConfigError, match=r"d.npz cannot be read as arrays"):
        opened("arrays", SIX, root=tmp_path / "d.npz").loader("train")
