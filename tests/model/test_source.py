"""The user's model: how it is built, called, and what its digest covers."""

import importlib
import sys

import pytest
import torch

from deploycompress.config.schema import InputSpec, ModelConfig, Network
from deploycompress.errors import ConfigError
from deploycompress.model.source import SourceModel

LINEAR = "def build(out=2): return nn.Sequential(nn.Flatten(), nn.Linear(192, out))"
TWO_INPUTS = """
class Net(nn.Module):
    def forward(self, a, b):
        return a - b
def build(): return Net()
"""


def of(build, **inputs):
    specs = {name: InputSpec(shape=shape) for name, shape in inputs.items()}
    return SourceModel(ModelConfig(build=build, args={}, weights=None, inputs=specs), 0)


def test_every_build_has_the_same_weights_and_leaves_the_random_numbers_alone(user_model):
    model = user_model(LINEAR)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second = model.build(), model.build()
    assert torch.equal(torch.rand(3), expected)
    assert not first.training
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    other = user_model(LINEAR, seed=1).build()
    assert not torch.equal(first[1].weight, other[1].weight)


def test_inputs_go_by_keyword_when_all_are_parameters_of_forward(user_model):
    inputs = {"b": {"shape": ["batch", 2]}, "a": {"shape": ["batch", 2]}}
    model = user_model(TWO_INPUTS, inputs)
    given = {"a": torch.tensor([[3.0, 3.0]]), "b": torch.tensor([[1.0, 2.0]])}
    assert model.call(model.build(), given)["output"].tolist() == [[2.0, 1.0]]


def test_other_names_go_by_position_in_the_order_given(user_model):
    inputs = {"first": {"shape": ["batch", 2]}, "second": {"shape": ["batch", 2]}}
    model = user_model(TWO_INPUTS, inputs)
    given = {"second": torch.tensor([[1.0, 1.0]]), "first": torch.tensor([[3.0, 5.0]])}
    assert model.call(model.build(), given)["output"].tolist() == [[2.0, 4.0]]


def test_a_wrapper_does_not_change_how_inputs_are_passed(user_model):
    inputs = {"b": {"shape": ["batch", 1]}, "a": {"shape": ["batch", 1]}}
    model = user_model(TWO_INPUTS, inputs)
    module = model.build()

    class Wrapper(torch.nn.Module):
        def forward(self, *args, **kwargs):
            return module(*args, **kwargs)

    given = {"a": torch.tensor([[3.0]]), "b": torch.tensor([[1.0]])}
    assert model.call(Wrapper(), given)["output"].item() == 2.0


def test_examples_fit_the_declared_inputs(user_model):
    inputs = {
        "ids": {"shape": ["batch", "sequence"], "dtype": "int64", "max": 7},
        "mask": {"shape": ["batch", "sequence"], "dtype": "int64"},
        "image": {"shape": [4, 3, 8, 8], "dtype": "float16"},
    }
    model = user_model(LINEAR, inputs)
    example = model.example(3)
    assert example["ids"].shape == example["mask"].shape == (3, 32)
    assert example["ids"].min() >= 0 and example["ids"].max() == 6
    assert bool((example["mask"] == 1).all())
    assert example["image"].shape == (4, 3, 8, 8) and example["image"].dtype == torch.float16
    assert all(torch.equal(v, model.example(3)[k]) for k, v in example.items())


def test_the_digest_covers_code_imported_code_arguments_and_inputs(tmp_path, monkeypatch):
    main, part = tmp_path / "net.py", tmp_path / "net_part.py"
    main.write_text("import net_part\ndef build(out): return net_part.nn.Linear(4, out)\n")
    part.write_text("from torch import nn\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def digest(size=4, out=2):
        for name in ("deploycompress_user_net", "net_part"):
            sys.modules.pop(name, None)  # as in a new process
        importlib.invalidate_caches()
        inputs = {"x": InputSpec(shape=("batch", size))}
        config = ModelConfig(build=f"{main}:build", args={"out": out}, weights=None, inputs=inputs)
        return SourceModel(config, 0).digest

    first = digest()
    assert digest() == first and len(first) == 64
    assert digest(size=5) != first
    assert digest(out=3) != first
    part.write_text("from torch import nn\nX = 1\n")
    assert digest() != first
    part.write_text("from torch import nn\n")
    assert digest() == first
    main.write_text(main.read_text() + "\n")
    assert digest() != first


def test_our_examples_count_as_user_code_and_the_rest_of_us_does_not():
    import deploycompress.examples.resnet  # noqa: F401
    from deploycompress.model.code import loaded_code

    found = loaded_code()
    assert "deploycompress.examples.resnet" in found
    assert "deploycompress.model.source" not in found and "torch" not in found and "json" not in found


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def build(): return 3", "gave back int; expected a torch.nn.Module"),
        ("def build(): raise RuntimeError('no such width')", "RuntimeError: no such width; check model.args"),
        ("def build(width): return nn.Linear(1, width)", "missing 1 required positional argument: 'width'"),
        ("build = 3", "is a int; expected a function or class"),
    ],
)
def test_a_factory_that_does_not_make_a_model(user_model, code, message):
    with pytest.raises(ConfigError, match=message):
        user_model(code).build()


def test_models_of_libraries_by_name():
    model = of("torchvision:squeezenet1_1", image=("batch", 3, 64, 64))
    assert model.call(model.build(), model.example(2))["output"].shape == (2, 1000)
    with pytest.raises(ConfigError, match="unknown torchvision model 'resnet19'; did you mean 'resnet1"):
        of("torchvision:resnet19", image=("batch", 3, 64, 64)).build()


def test_auxiliary_heads_are_left_out():
    module = of("torchvision:googlenet", image=("batch", 3, 64, 64)).build()
    assert not any("aux" in name for name, _ in module.named_parameters())


def test_timm_models_are_never_downloaded():
    pytest.importorskip("timm", reason="timm is not installed")
    with pytest.raises(ConfigError, match="unknown timm model"):
        of("timm:hf-hub:timm/resnet18.a1_in1k", image=("batch", 3, 64, 64)).build()


def test_files_of_the_same_name_in_two_folders_are_two_modules(tmp_path):
    from deploycompress.model.code import loaded_code
    from deploycompress.registry import load_reference

    found = []
    for folder, value in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "twin.py").write_text(f"VALUE = {value}\n")
        found.append(load_reference(f"{tmp_path / folder / 'twin.py'}:VALUE"))
    assert found == [1, 2] and load_reference(f"{tmp_path / 'a' / 'twin.py'}:VALUE") == 1
    assert sum("twin" in name for name in loaded_code()) == 2


def test_two_networks_that_a_checkpoint_could_not_tell_apart_are_refused(tmp_path, user_model):
    model = user_model(LINEAR, {"x": {"shape": ["batch", 4]}})
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "twin.py").write_text(
            "from torch import nn\ndef build(): return nn.Linear(4, 2)\n"
        )
    one, other = (Network(build=f"{tmp_path / folder / 'twin.py'}:build") for folder in ("a", "b"))
    assert model.other(one) is model.other(one)
    with pytest.raises(ConfigError, match=r"have files of the same name.*rename one of the files"):
        model.other(other)
