"""PyTorch behind the contract."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deploycompress.config.schema import InputSpec, ModelConfig, Network
from deploycompress.contracts import Session
from deploycompress.errors import StageFailed
from deploycompress.model import checkpoint
from deploycompress.model.source import SourceModel
from deploycompress.runtimes.pytorch import PyTorch

CODE = """
from torch import nn


class Two(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.first = nn.Linear(3, width)
        self.second = nn.Linear(width, 2)

    def forward(self, x, ids):
        hidden = self.first(x).relu()
        return {"sum": self.second(hidden), "same": ids}


def build(width=4):
    return Two(width)


def other():
    return Two(6)
"""
FEED = {
    "x": np.random.default_rng(0).standard_normal((5, 3), dtype=np.float32),
    "ids": np.arange(5, dtype=np.int64),
}


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SourceModel]:
    """Of a module that lies in a folder which only the model's search path names."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "two_outputs.py").write_text(CODE)
    inputs = {"x": InputSpec(shape=("batch", 3)), "ids": InputSpec(shape=("batch",), dtype="int64")}
    config = ModelConfig(build="two_outputs:build", args={"width": 5}, weights=None, inputs=inputs)
    others = [Network(build="two_outputs:other", weights=None)]
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield SourceModel(config, 3, [tmp_path / "code"], others)
    sys.modules.pop("two_outputs", None)


@pytest.fixture
def saved(model: SourceModel, tmp_path: Path) -> Path:
    checkpoint.save(model.build(), tmp_path / "model", model)
    return tmp_path / "model"


def expected(module: torch.nn.Module, model: SourceModel) -> dict[str, np.ndarray]:
    with torch.no_grad():
        outputs = model.call(module, {name: torch.from_numpy(array) for name, array in FEED.items()})
    return {name: tensor.numpy() for name, tensor in outputs.items()}


def given(path: Path, options: Mapping[str, Any]) -> Mapping[str, np.ndarray]:
    with PyTorch().open(path, options) as session:
        session.bind(FEED)()
        return session.fetch()


def test_runs_what_is_bound_and_fetches_it(model: SourceModel, saved: Path) -> None:
    wanted = expected(model.build(), model)
    assert PyTorch().missing() is None
    before = torch.get_num_threads()
    with PyTorch().open(saved / "model.safetensors", {"threads": 2, "network": model.recipe}) as session:
        assert isinstance(session, Session) and torch.get_num_threads() == 2
        assert session.inputs == {"x": ("float32", ("batch", 3)), "ids": ("int64", ("batch",))}
        for rows in (5, 1, 3):
            session.bind({**{name: array[:rows] for name, array in FEED.items()}, "more": np.ones(1)})()
            found = session.fetch()
            assert list(found) == ["sum", "same"] and found["same"].dtype == np.int64
            np.testing.assert_array_equal(found["sum"], wanted["sum"][:rows])
    assert torch.get_num_threads() == before


def test_half_the_bits_are_other_numbers_given_back_in_float32(model: SourceModel, saved: Path) -> None:
    wanted = expected(model.build(), model)["sum"]
    found = given(saved, {"computes_in": "bf16", "network": model.recipe})["sum"]
    assert found.dtype == np.float32
    assert 0 < np.abs(found - wanted).max() < 0.02 * np.abs(wanted).max()


@pytest.mark.slow
def test_a_compiled_network_computes_the_same(model: SourceModel, saved: Path) -> None:
    wanted = expected(model.build(), model)["sum"]
    found = given(saved, {"compiled": True, "network": model.recipe})["sum"]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_what_does_not_compile_says_so(
    model: SourceModel, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compiled(network: Any, **_: Any) -> Any:
        def fails(*given: Any, **named: Any) -> Any:
            raise TypeError("no compiler\nand much more")

        return fails

    monkeypatch.setattr(torch, "compile", compiled)
    with pytest.raises(RuntimeError, match=r"torch\.compile does not compile it: TypeError: no compiler$"):
        given(saved, {"compiled": True, "network": model.recipe})


def test_a_checkpoint_of_another_network_that_the_configuration_names(
    model: SourceModel, tmp_path: Path
) -> None:
    other = model.other(Network(build="two_outputs:other", weights=None))
    checkpoint.save(other.build(), tmp_path / "other", model)
    found = given(tmp_path / "other", {"network": model.recipe})
    np.testing.assert_array_equal(found["sum"], expected(other.build(), other)["sum"])


def test_what_is_not_there_is_an_error_and_nothing_else_is_run_instead(
    model: SourceModel, saved: Path
) -> None:
    with pytest.raises(RuntimeError, match="PyTorch runs on cpu or cuda here, not on npu"):
        given(saved, {"provider": "npu", "network": model.recipe})
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="finds no CUDA device here"):
            given(saved, {"provider": "cuda:1", "network": model.recipe})
    elsewhere = {**model.recipe, "config": {**model.recipe["config"], "build": "not_there:build"}}
    with pytest.raises(RuntimeError, match=r"the network is not put together here: .*not_there"):
        given(saved, {"network": elsewhere})


def test_the_recipe_is_json_and_makes_the_same_model_again(model: SourceModel, saved: Path) -> None:
    import json

    from deploycompress.model.recipe import load

    module, inputs, call = load(saved, json.loads(json.dumps(model.recipe)))
    assert inputs["x"] == ("float32", ("batch", 3))
    outputs = call(module, {name: torch.from_numpy(array) for name, array in FEED.items()})
    np.testing.assert_array_equal(outputs["sum"].detach(), expected(model.build(), model)["sum"])
    with pytest.raises(StageFailed):
        load(saved.parent, model.recipe)


def test_a_row_for_each_layer(model: SourceModel, saved: Path) -> None:
    found = PyTorch().profile(saved, {"network": model.recipe, "computes_in": "bf16"}, FEED, calls=4)
    assert {name: row["op"] for name, row in found.items()} == {"first": "Linear", "second": "Linear"}
    for row in found.values():
        assert len(row["ns"]) == 4 and min(row["ns"]) > 0
        assert (row["provider"], row["precision"], row["role"]) == ("cpu", "bf16", "")
    with pytest.raises(NotImplementedError, match="a compiled network has no layers of its own"):
        PyTorch().profile(saved, {"network": model.recipe, "compiled": True}, FEED, calls=4)


def test_a_layer_that_is_used_twice_is_timed_as_one_and_an_unused_one_not_at_all(
    tmp_path: Path,
) -> None:
    (tmp_path / "shared_layer.py").write_text(
        "from torch import nn\n\n\n"
        "class Shared(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.layer, self.unused = nn.Linear(3, 3), nn.Linear(3, 3)\n\n"
        "    def forward(self, x):\n"
        "        return self.layer(self.layer(x))\n"
    )
    inputs = {"x": InputSpec(shape=("batch", 3))}
    build = f"{tmp_path / 'shared_layer.py'}:Shared"
    model = SourceModel(ModelConfig(build=build, weights=None, inputs=inputs), 0)
    checkpoint.save(model.build(), tmp_path / "model", model)
    found = PyTorch().profile(tmp_path / "model", {"network": model.recipe}, FEED, calls=4)
    assert list(found) == ["layer"] and len(found["layer"]["ns"]) == 4


def test_the_users_module_comes_before_an_installed_one_of_its_name(
    model: SourceModel, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "two_outputs.py").write_text("raise ImportError('the wrong one')\n")
    recipe = model.recipe
    sys.modules.pop("two_outputs")
    monkeypatch.setattr(
        sys, "path", [str(tmp_path / "other"), *(p for p in sys.path if "code" not in Path(p).name)]
    )
    assert given(saved, {"network": recipe})["sum"].shape == (5, 2)


def test_the_call_keeps_what_it_needs_alive(model: SourceModel, saved: Path) -> None:
    context = PyTorch().open(saved, {"network": model.recipe})
    session = context.__enter__()
    call = session.bind(FEED)
    gone = weakref.ref(session)
    del session
    gc.collect()
    assert gone() is not None
    call()
