"""MNIST's file forms, small ones made here, and the real one where it is at hand."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from deploycompress.data.datasets.mnist import Mnist
from deploycompress.data.source import SourceData
from deploycompress.errors import ConfigError

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (50, 28, 28), dtype=np.uint8)
Y = (np.arange(50) % 10).astype(np.uint8)


@pytest.fixture
def mnist(declared):
    model = declared(image=(["batch", 1, 28, 28], "float32"))

    def make(root, **options):
        return SourceData(Mnist.Config(source="mnist", root=root, **options), model, 0)

    return make


def write_idx(folder, packed, names=("{}-images-idx3-ubyte", "{}-labels-idx1-ubyte")):
    folder.mkdir(parents=True, exist_ok=True)
    for part, cut in (("train", slice(0, 40)), ("t10k", slice(40, 50))):
        for name, array in zip(names, (X[cut], Y[cut]), strict=True):
            content = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
            path = folder / (name.format(part) + (".gz" if packed else ""))
            path.write_bytes(gzip.compress(content) if packed else content)


def read(data):
    return torch.cat([b.inputs["image"] for b in data.loader("test")]), torch.cat(
        [b.targets for b in data.loader("test")]
    )


def expected():
    return (torch.from_numpy(X[40:, None].copy()).float() / 255 - 0.1307) / 0.3081, torch.from_numpy(
        Y[40:]
    ).long()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("inside", [".", "raw", "MNIST/raw"])
def test_idx_files(mnist, tmp_path, packed, inside):
    write_idx(tmp_path / inside, packed)
    images, labels = read(mnist(tmp_path))
    assert torch.allclose(images, expected()[0]) and torch.equal(labels, expected()[1])


def test_idx_files_with_a_dot_in_their_names(mnist, tmp_path):
    write_idx(tmp_path, False, ("{}-images.idx3-ubyte", "{}-labels.idx1-ubyte"))
    assert torch.equal(read(mnist(tmp_path))[1], expected()[1])


def test_npz_with_four_arrays_by_file_or_folder(mnist, tmp_path):
    np.savez(tmp_path / "mnist.npz", x_train=X[:40], y_train=Y[:40], x_test=X[40:], y_test=Y[40:])
    for root in (tmp_path, tmp_path / "mnist.npz"):
        images, labels = read(mnist(root))
        assert torch.allclose(images, expected()[0]) and torch.equal(labels, expected()[1])


def test_npz_with_x_and_y_is_cut_at_test_from(mnist, tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    assert torch.equal(read(mnist(tmp_path, test_from=40))[1], expected()[1])
    np.savez(tmp_path / "a.npz", x=X, y=Y, test_from=np.array(40))
    assert torch.equal(read(mnist(tmp_path))[1], expected()[1])


def test_the_digest_follows_the_contents_and_not_the_place(mnist, tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "m.npz", x=X if name != "c" else 255 - X, y=Y)
    digests = [mnist(tmp_path / name, test_from=40).digest for name in ("a", "b", "c")]
    assert digests[0] == digests[1] != digests[2]


def test_other_sizes_are_resized(declared, tmp_path):
    np.savez(tmp_path / "m.npz", x=X, y=Y)
    config = Mnist.Config(source="mnist", root=tmp_path, test_from=40, image_size=32)
    data = SourceData(config, declared(image=(["batch", 1, 32, 32], "float32")), 0)
    assert read(data)[0].shape == (10, 1, 32, 32)


def test_what_is_missing_or_broken_is_named_with_what_to_do(mnist, tmp_path):
    with pytest.raises(ConfigError, match=r"needs data.root: .*train-images-idx3-ubyte"):
        mnist(None).loader("test")
    with pytest.raises(ConfigError, match=r"nowhere: not there; data.root names a folder with"):
        mnist(tmp_path / "nowhere").loader("test")
    with pytest.raises(ConfigError, match=r"neither; data.root names"):
        mnist(tmp_path).loader("test")
    np.savez(tmp_path / "m.npz", x=X, y=Y)
    with pytest.raises(ConfigError, match=r"holds x and y with 50 samples, .* set data.test_from"):
        mnist(tmp_path).loader("test")
    with pytest.raises(ConfigError, match=r"data.test_from is 50, but .* holds 50 samples: expected 1 to 49"):
        mnist(tmp_path, test_from=50).loader("test")
    np.savez(tmp_path / "m.npz", pictures=X)
    with pytest.raises(ConfigError, match=r"holds pictures; data.root names"):
        mnist(tmp_path).loader("test")
    np.savez(tmp_path / "m.npz", x=X.astype(np.float32), y=Y)
    with pytest.raises(
        ConfigError, match=r"train: received images float32\[40, 28, 28\] .*expected images uint8"
    ):
        mnist(tmp_path, test_from=40).loader("test")
    (tmp_path / "m.npz").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(ConfigError, match=r"m.npz cannot be read as an .npz file"):
        mnist(tmp_path, test_from=40).loader("test")


def test_objects_in_an_npz_are_refused(mnist, tmp_path):
    np.savez(tmp_path / "m.npz", x=np.array([{}], dtype=object), y=Y)
    with pytest.raises(ConfigError, match=r"allow_pickle=False"):
        mnist(tmp_path, test_from=40).loader("test")


def test_a_cut_idx_file_is_refused(mnist, tmp_path):
    write_idx(tmp_path, packed=False)
    whole = (tmp_path / "t10k-images-idx3-ubyte").read_bytes()
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(whole[:-1])
    with pytest.raises(
        ConfigError, match=r"received magic 00000803 and 7839 values for shape \[10, 28, 28\]"
    ):
        mnist(tmp_path).loader("test")
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(b"\0\0")
    with pytest.raises(ConfigError, match=r"t10k-images-idx3-ubyte cannot be read as an idx file"):
        mnist(tmp_path).loader("test")


def test_the_real_one(mnist):
    folder = os.environ.get("DEPLOYCOMPRESS_DATA")
    if not folder or not (Path(folder) / "mnist_63000").is_dir():
        pytest.skip("MNIST is not here: set DEPLOYCOMPRESS_DATA to the folder that holds mnist_63000")
    data = mnist(Path(folder) / "mnist_63000", batch_size=1000)
    assert [sum(b.size for b in data.loader(s)) for s in ("train", "val", "test")] == [54_000, 6_000, 3_000]
    images, labels = read(data)
    assert labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert abs(float(images.mean())) < 0.05
