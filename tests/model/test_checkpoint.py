"""A changed model comes back; what cannot be described, or was tampered with, is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from deploycompress.errors import StageFailed
from deploycompress.model import checkpoint

NET = """
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.LayerNorm(8)
        self.act = nn.ReLU()
        self.scale = 1.5
        self.hidden_size, self.patch_size, self.flag = 8, 4, True
        self.parts, self._parts = [4, 4], (4, 4)
        self.register_buffer("table", torch.arange(8.0), persistent=False)

    def forward(self, image):
        return self.norm(self.act(self.conv(image)).mean((2, 3))) * self.scale + self.table


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Block()
        self.head = nn.Linear(8, 4)

    def forward(self, image):
        return self.head(self.block(image))


def build():
    return Net()
"""


def narrowed(module):
    """Four of the block's eight channels are cut out by hand, as any pruner might."""
    keep = torch.tensor([0, 2, 5, 7])
    block = module.block
    block.conv.weight = nn.Parameter(block.conv.weight.detach()[keep])
    block.conv.bias = nn.Parameter(block.conv.bias.detach()[keep])
    block.conv.out_channels = 4
    block.norm.weight = nn.Parameter(block.norm.weight.detach()[keep])
    block.norm.bias = nn.Parameter(block.norm.bias.detach()[keep])
    block.norm.normalized_shape = (4,)
    block.table = block.table[keep]
    block.hidden_size, block.parts = 4, [1, 3]
    module.head.weight = nn.Parameter(module.head.weight.detach()[:, keep])
    module.head.in_features = 4
    return module


@pytest.fixture
def saved(user_model, tmp_path):
    model = user_model(NET)
    module = narrowed(model.build())
    checkpoint.save(module, tmp_path / "model", model)
    return model, module, tmp_path / "model"


def test_a_changed_model_comes_back_and_goes_on_training(saved):
    model, module, folder = saved
    loaded = checkpoint.load(folder, model)
    assert {p.name for p in folder.iterdir()} == {"model.safetensors", "architecture.json"}
    assert repr(loaded) == repr(module) and not loaded.training
    for network in (module, loaded):
        network.train()
        optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
        model.call(network, model.example(4))["output"].square().sum().backward()
        optimiser.step()
    for (name, a), b in zip(module.named_parameters(), loaded.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert torch.equal(loaded.block.table, torch.tensor([0.0, 2, 5, 7]))
    assert loaded.block.parts == [1, 3] and loaded.block.hidden_size == 4


def test_the_edits_are_sizes_only(saved):
    document = json.loads((saved[2] / "architecture.json").read_text())
    assert [(e["path"], e["attributes"]) for e in document["architecture"]["edits"]] == [
        ("block", {"hidden_size": 4, "parts": [1, 3]}),
        ("block.conv", {"out_channels": 4}),
        ("block.norm", {"normalized_shape": [4]}),
        ("head", {"in_features": 4}),
    ]


def test_a_checkpoint_can_be_pruned_again(saved, tmp_path):
    model, _, folder = saved
    again = checkpoint.load(folder, model)
    again.head.out_features = 2
    again.head.weight = nn.Parameter(again.head.weight.detach()[:2])
    again.head.bias = nn.Parameter(again.head.bias.detach()[:2])
    checkpoint.save(again, tmp_path / "second", model)
    assert checkpoint.load(tmp_path / "second", model).head.weight.shape == (2, 4)


def hook(module):
    module.head.register_forward_hook(lambda *_: None)


def new_module(module):
    module.extra = nn.Linear(1, 1)


def other_type(module):
    module.block.act = nn.GELU()


def gone(module):
    del module.block.act
    module.block.act = lambda x: x


def other_float(module):
    module.block.scale = 2.5


def other_forward(module):
    module.forward = lambda image: image.mean((1, 2, 3))


def other_int(module):
    module.head.something = 3


def tied(module):
    module.block.norm.bias = module.block.norm.weight


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (hook, "module head has a forward hook"),
        (new_module, r"module extra \(torch.nn.modules.linear.Linear\) is not in a fresh build"),
        (other_type, "module block.act is a torch.nn.modules.activation.GELU; a fresh build has a .*ReLU"),
        (gone, r"module block\.act .* of a fresh build is gone"),
        (other_float, r"attribute scale of module block changed from 1\.5 to 2\.5"),
        (other_forward, r"attribute forward of module \(root\) is new"),
        (other_int, "attribute something of module head is new"),
        (tied, "other names share a tensor"),
    ],
)
def test_what_cannot_be_described_is_refused_with_the_reason(user_model, tmp_path, change, message):
    model = user_model(NET)
    module = model.build()
    change(module)
    with pytest.raises(StageFailed, match=message):
        checkpoint.save(module, tmp_path / "model", model)
    assert not (tmp_path / "model").exists()


def test_nan_is_not_kept(user_model, tmp_path):
    model = user_model(NET)
    module = model.build()
    with torch.no_grad():
        module.head.bias[1] = float("nan")
    with pytest.raises(StageFailed, match=r"tensor head\.bias has 1 NaN"):
        checkpoint.save(module, tmp_path / "model", model)


def test_a_cache_that_a_forward_pass_filled_is_left_behind(user_model, tmp_path):
    model = user_model(
        """
        class Cached(nn.Module):
            def __init__(self):
                super().__init__()
                self.head, self.cache = nn.Linear(3, 4), {}

            def forward(self, image):
                self.cache.setdefault("grid", torch.ones(1, 3))
                return self.head(image.mean((2, 3)) * self.cache["grid"])


        def build():
            return Cached()
        """
    )
    module = model.build()
    model.call(module, model.example(2))
    assert module.cache
    checkpoint.save(module, tmp_path / "model", model)
    loaded = checkpoint.load(tmp_path / "model", model)
    assert torch.equal(loaded.head.weight, module.head.weight)
    module.cache = {"grid": 2.0}  # a number: plain data counts
    with pytest.raises(StageFailed, match=r"attribute cache of module \(root\) changed from"):
        checkpoint.save(module, tmp_path / "other", model)


def test_tied_weights_stay_one_tensor(user_model, tmp_path):
    model = user_model(
        """
        class Tied(nn.Module):
            def __init__(self):
                super().__init__()
                self.embedding = nn.Embedding(11, 6)
                self.head = nn.Linear(6, 11, bias=False)
                self.head.weight = self.embedding.weight
            def forward(self, ids):
                return self.head(self.embedding(ids))
        def build(): return Tied()
        """,
        {"ids": {"shape": ["batch", 5], "dtype": "int64", "max": 11}},
    )
    module = model.build()
    checkpoint.save(module, tmp_path / "model", model)
    loaded = checkpoint.load(tmp_path / "model", model)
    assert loaded.head.weight is loaded.embedding.weight
    assert list(load_file(tmp_path / "model" / "model.safetensors")) == ["embedding.weight"]


def test_a_recurrent_layer_and_its_flat_weights(user_model, tmp_path):
    model = user_model(
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.rnn = nn.LSTM(3, 5, batch_first=True)
            def forward(self, x):
                return self.rnn(x)[0]
        def build(): return Net()
        """,
        {"x": {"shape": ["batch", 4, 3]}},
    )
    module = model.build()
    with torch.no_grad():
        module.rnn.weight_hh_l0.mul_(2)
    checkpoint.save(module, tmp_path / "model", model)
    loaded = checkpoint.load(tmp_path / "model", model)
    given = model.example(2)
    assert torch.equal(model.call(loaded, given)["output"], model.call(module, given)["output"])


# ---------------------------------------------------------------- architecture.json may come from anyone


def deep(document, path, value):
    *parents, last = path
    for part in parents:
        document = document[part]
    document[last] = value


BLOCK = ("architecture", "edits", 0)
EDIT = ("architecture", "edits", 1)
TENSOR = ("architecture", "tensors", "head.weight")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ((*EDIT, "attributes"), {"forward": 4}, "only sizes of layers may be set"),
        ((*EDIT, "attributes"), {"weight": 4}, "only sizes of layers may be set"),
        ((*EDIT, "attributes"), {"kernel_size": [5, 5]}, "there and only sizes of layers may be set"),
        ((*EDIT, "attributes"), {"num_heads": 4}, "sets num_heads .* the model has None there"),
        ((*EDIT, "attributes"), {"out_channels": "os.system"}, "is not an architecture"),
        ((*EDIT, "attributes"), {"out_channels": True}, "is not an architecture"),
        ((*EDIT, "attributes"), {"out_channels": 2**40}, "is not an architecture"),
        ((*EDIT, "attributes"), {"out_channels": 0}, "is not an architecture"),
        ((*EDIT, "attributes"), {"out_channels": [4]}, r"sets out_channels of block.conv to \(4,\)"),
        ((*EDIT, "attributes"), {"out_channels": 9}, "the model has 8 there and a size may only become smaller"),
        ((*BLOCK, "attributes"), {"hidden_size": 9}, "the model has 8 there and a size may only become smaller"),
        ((*BLOCK, "attributes"), {"patch_size": 1}, "the model has 4 there and only sizes of layers may be set"),
        ((*BLOCK, "attributes"), {"_parts": [2, 2]}, "and only sizes of layers may be set"),
        ((*BLOCK, "attributes"), {"parts": [2, 2, 4]}, r"sets parts of block to \(2, 2, 4\); the model has \[4, 4\] there"),
        ((*BLOCK, "attributes"), {"parts": [2, 6]}, "a size may only become smaller"),
        ((*BLOCK, "attributes"), {"flag": 1}, "the model has True there"),
        ((*EDIT, "attributes"), {"out_channels": 5}, r"gives block.conv sizes for a weight of \[5, 3\]"),
        ((*EDIT, "path"), "block.__class__", "names a module 'block.__class__' that the model has not"),
        ((*EDIT, "type"), "builtins.eval", "says that block.conv is a builtins.eval"),
        ((*EDIT, "more"), 1, "is not an architecture: .*more: Extra inputs"),
        ((*TENSOR, "shape"), [4, 5], r"holds head.weight as float32 \[4, 4\]"),
        ((*TENSOR, "dtype"), "float64", "holds head.weight as float32"),
        ((*TENSOR, "kind"), "buffer", "says that head.weight is a buffer"),
        (("architecture", "tensors", "ghost"), {"shape": [1], "dtype": "float32", "kind": "buffer"}, "disagree on the tensors ghost"),
        (("architecture", "ties"), {"head.bias": "head.weight"}, "ties head.bias = head.weight; the model ties none"),
        (("probe", "outputs", "output", "values", 0), 99.0, "does not give what the saved one gave"),
        (("probe", "tolerance"), 10.0, "is not an architecture: probe.tolerance"),
        (("probe", "outputs"), {}, "is not an architecture"),
        (("schema",), 2, "is not an architecture: schema"),
    ],
)  # fmt: skip
def test_an_edited_architecture_is_refused(saved, path, value, message):
    model, _, folder = saved
    document = json.loads((folder / "architecture.json").read_text())
    deep(document, path, value)
    (folder / "architecture.json").write_text(json.dumps(document))
    with pytest.raises(StageFailed, match=message):
        checkpoint.load(folder, model)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema": NaN}', "[" * 100_000, '{"schema": 1}'])
def test_an_architecture_that_is_none(saved, text):
    model, _, folder = saved
    (folder / "architecture.json").write_text(text)
    with pytest.raises(StageFailed, match=r"architecture\.json"):
        checkpoint.load(folder, model)


def test_damaged_weights(saved):
    model, _, folder = saved
    file = folder / "model.safetensors"
    tensors = load_file(file)
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(StageFailed, match=r"model\.safetensors cannot be read"):
        checkpoint.load(folder, model)
    save_file({**tensors, "head.bias": torch.full((4,), float("nan"))}, file)
    with pytest.raises(StageFailed, match=r"head\.bias has 4 NaN"):
        checkpoint.load(folder, model)
    save_file({**tensors, "head.bias": tensors["head.bias"] + 1}, file)
    with pytest.raises(StageFailed, match="output output is off by"):
        checkpoint.load(folder, model)
    file.unlink()
    with pytest.raises(StageFailed, match="cannot be read"):
        checkpoint.load(folder, model)


def test_code_that_changed_since_is_noticed(saved, user_model):
    _, _, folder = saved
    changed = user_model(NET.replace("self.act(self.conv(image))", "self.act(self.conv(image) + 1)"))
    with pytest.raises(StageFailed, match="has the code of the model changed since"):
        checkpoint.load(folder, changed)


def test_outputs_that_are_not_finite_are_not_kept(user_model, tmp_path):
    model = user_model(
        "class Bad(nn.Module):\n  def forward(self, image): return image / 0\ndef build(): return Bad()"
    )
    with pytest.raises(StageFailed, match="output output has NaN or infinite values on random inputs"):
        checkpoint.save(model.build(), tmp_path / "model", model)
