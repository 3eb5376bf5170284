"""Weights files of every form, and what is wrong with the others."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from deploycompress.errors import ConfigError
from deploycompress.model.source import load_weights


def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))


@pytest.fixture
def trained():
    torch.manual_seed(3)
    module = net()
    module[1].running_mean.normal_()
    return module


def same(a, b):
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


@pytest.mark.parametrize(
    ("wrap", "how"),
    [
        (lambda s: s, "as it is"),
        (lambda s: {"state_dict": s, "epoch": 3}, "from 'state_dict'"),
        (lambda s: {"model": {"state_dict": s}, "model_ema": {}}, "from 'model', from 'state_dict'"),
        (lambda s: {"module." + k: v for k, v in s.items()}, "without the prefix 'module.'"),
        (
            lambda s: {"state_dict": {"module._orig_mod." + k: v for k, v in s.items()}},
            "from 'state_dict', without the prefix 'module.', without the prefix '_orig_mod.'",
        ),
        (lambda s: {k: v for k, v in s.items() if "num_batches" not in k}, "as it is"),
    ],
)
def test_pickled_state_dicts_are_unwrapped(trained, tmp_path, wrap, how):
    torch.save(wrap(trained.state_dict()), tmp_path / "w.pth")
    module = net()
    assert load_weights(module, tmp_path / "w.pth") == how
    assert same(trained, module)


def test_safetensors(trained, tmp_path):
    save_file(trained.state_dict(), tmp_path / "w.safetensors")
    module = net()
    load_weights(module, tmp_path / "w.safetensors")
    assert same(trained, module)


def test_a_name_that_is_tied_may_be_left_out(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(5, 3)
            self.head = nn.Linear(3, 5, bias=False)
            self.head.weight = self.embedding.weight

    source, module = Tied(), Tied()
    save_file({"embedding.weight": source.embedding.weight.detach()}, tmp_path / "w.safetensors")
    load_weights(module, tmp_path / "w.safetensors")
    assert torch.equal(module.head.weight, source.embedding.weight)


def edited(state, **changes):
    return {k: v for k, v in {**state, **changes}.items() if v is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"3.bias": None}, r"missing in the file: 3\.bias"),
        ({"extra": torch.zeros(1)}, r"not in the model: extra"),
        ({"3.weight": torch.zeros(2, 9)}, r"other shapes: 3\.weight is \[2, 9\], the model's is \[2, 16\]"),
        (
            {"0.bias": torch.tensor([1.0, float("nan"), 0, float("inf")])},
            r"tensor 0\.bias has 2 NaN or infinite values of 4",
        ),
        ({"note": "hello"}, r"note in it are not tensors"),
    ],
)
def test_what_does_not_fit_is_named(trained, tmp_path, changes, message):
    torch.save(edited(trained.state_dict(), **changes), tmp_path / "w.pt")
    module = net()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    with pytest.raises(ConfigError, match=message):
        load_weights(module, tmp_path / "w.pt")
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_a_pickled_model_is_refused_and_not_run(trained, tmp_path):
    torch.save(trained, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=r"would run code from the file; save the state_dict: safetensors"):
        load_weights(net(), tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.pt", b"", "cannot be read"),
        ("w.pth", b"not a file of weights", "cannot be read|would run code"),
        ("w.safetensors", b"\x10\0\0\0\0\0\0\0{broken", "not a readable safetensors file"),
        ("w.h5", b"x", r"has the ending '\.h5'; expected \.safetensors"),
    ],
)
def test_damaged_files_and_other_formats(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_weights(net(), tmp_path / name)


def test_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match=r"model\.weights: .*none\.pt does not exist"):
        load_weights(net(), tmp_path / "none.pt")


def test_an_empty_document(tmp_path):
    torch.save({}, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match="holds an empty mapping; expected a state_dict"):
        load_weights(net(), tmp_path / "w.pt")
