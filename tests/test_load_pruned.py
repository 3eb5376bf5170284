"""``deploycompress.load_pruned``: from a real run to a network that is trained, saved and pruned again."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import deploycompress
from deploycompress.config.schema import InputSpec, ModelConfig
from deploycompress.errors import ConfigError, StageFailed
from deploycompress.model.source import SourceModel
from deploycompress.pruning.apply import apply
from deploycompress.pruning.costs import count
from deploycompress.pruning.discovery import find_groups
from deploycompress.pruning.groups import choose, on_grid

load_pruned = partial(deploycompress.load_pruned, trust_code=True)

PIPELINE = """
name: tiny
model:
  build: networks:build
  args: {width: 16}
  inputs: {image: {shape: [batch, 1, 8, 8]}}
data: {source: digits, image_size: 8, batch_size: 256, calibration: 32}
stages:
  - train: {epochs: 1, lr: 0.1}
  - prune: {target: {macs: 60%}, criterion: magnitude}
  - distill: {epochs: 1, lr: 0.05}
"""
MODEL = """
from torch import nn


def build(width):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10),
    )
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, command) -> Path:
    """A folder with the user's code and the directory ``run`` of a run that has ended."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "networks.py").write_text(MODEL)
    (folder / "pipeline.yaml").write_text(PIPELINE)
    words = ["run", "pipeline.yaml", "--out", "run", "--store", "store", "--no-rehearsal"]
    code, said = command(*words, cwd=folder)
    assert code == 0, said
    return folder


@pytest.fixture
def run_dir(project: Path, tmp_path: Path) -> Path:
    """A copy to spoil; the user's code is where it was."""
    return Path(shutil.copytree(project / "run", tmp_path / "run"))


def model_of(project: Path) -> SourceModel:
    inputs = {"image": InputSpec(shape=("batch", 1, 8, 8))}
    return SourceModel(ModelConfig(build="networks:build", args={"width": 16}, inputs=inputs), 0, [project])


def test_the_last_checkpoint_trains_saves_and_is_pruned_again(project, run_dir, tmp_path):
    loaded = load_pruned(run_dir)
    images, labels = torch.randn(8, 1, 8, 8), torch.arange(8)
    assert not loaded.training and loaded[3].out_channels < 32
    distilled = json.loads((run_dir / "03-distill" / "manifest.json").read_text())
    assert distilled["artifacts"][0]["kind"] == "checkpoint"

    before = loaded(images).detach()
    optimizer = torch.optim.SGD(loaded.parameters(), lr=0.1)
    loaded.train()
    first = nn.functional.cross_entropy(loaded(images), labels)
    first.backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())
    optimizer.step()
    assert nn.functional.cross_entropy(loaded(images), labels) < first

    torch.save(loaded.state_dict(), tmp_path / "mine.pt")
    again = load_pruned(str(run_dir))
    assert torch.equal(again(images), before)
    again.load_state_dict(torch.load(tmp_path / "mine.pt", weights_only=True))
    assert torch.equal(again(images), loaded.eval()(images))

    model = model_of(project)
    groups = on_grid(find_groups(loaded, model).groups, 2)
    scores = {group.id: torch.rand(group.width) for group in groups}
    full = count(loaded, model)["macs"]
    assert groups
    apply(loaded, groups, choose(groups, scores, {group.id: group.grid[0] for group in groups}))
    assert count(loaded, model)["macs"] < full and loaded(images).shape == (8, 10)


def test_a_steps_checkpoint_and_a_checkpoint_folder(project):
    pruned = load_pruned(project / "run", step="prune")
    unpruned = load_pruned(project / "run", step="train")
    assert pruned[3].out_channels < unpruned[3].out_channels == 32
    folder = project / "run" / "02-prune" / "model"
    same = load_pruned(folder)
    assert torch.equal(same[0].weight, pruned[0].weight)
    last = load_pruned(project / "run")
    assert last[0].weight.shape == pruned[0].weight.shape and not torch.equal(
        last[0].weight, pruned[0].weight
    )
    with pytest.raises(ConfigError, match=r"is one checkpoint already; step='prune' goes with its run"):
        load_pruned(folder, step="prune")


def test_neither_weights_nor_data_of_the_run_are_needed(run_dir):
    config = run_dir / "config.yaml"
    config.write_text(config.read_text().replace("weights: null", "weights: /gone/away.pt"))
    assert "/gone/away.pt" in config.read_text()
    assert load_pruned(run_dir)[0].in_channels == 1


def test_rounds_that_were_undone_do_not_count(run_dir):
    record = json.loads((run_dir / "run.json").read_text())
    assert record["steps"][-1]["id"] == "distill"
    record["steps"][-1]["undone"] = "too much was lost"
    (run_dir / "run.json").write_text(json.dumps(record))
    last, pruned = load_pruned(run_dir), load_pruned(run_dir, "prune")
    assert torch.equal(last[0].weight, pruned[0].weight)
    assert not torch.equal(load_pruned(run_dir, "distill")[0].weight, pruned[0].weight)


def test_what_is_no_run_directory(run_dir, tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere is not a run directory \(it does not exist\): expected"):
        load_pruned(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"02-prune is not a run directory: expected one with config\.yaml"):
        load_pruned(run_dir / "02-prune")
    shutil.copytree(run_dir / "02-prune" / "model", tmp_path / "alone")
    with pytest.raises(ConfigError, match="alone is a checkpoint outside of a run directory"):
        load_pruned(tmp_path / "alone")
    (run_dir / "run.json").write_text("{")
    with pytest.raises(ConfigError, match=r"run\.json cannot be read \(JSONDecodeError"):
        load_pruned(run_dir)


def test_steps_that_have_none(run_dir):
    with pytest.raises(ConfigError, match="unknown step 'pruned'; did you mean 'prune'"):
        load_pruned(run_dir, step="pruned")
    shutil.rmtree(run_dir / "02-prune")
    with pytest.raises(
        ConfigError, match="step prune holds no checkpoint; steps with one: model, train, distill"
    ):
        load_pruned(run_dir, step="prune")
    record = json.loads((run_dir / "run.json").read_text())
    for step in record["steps"]:
        step["state"] = "not_run"
    record["steps"][0]["state"] = "failed"
    (run_dir / "run.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=r"run holds no checkpoint \(model failed, train not_run, "):
        load_pruned(run_dir)
    with pytest.raises(ConfigError, match=r"step prune is not done in this run \(not_run\)"):
        load_pruned(run_dir, step="prune")


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("build: networks:build", "build: 'os:system'", "os:system"),
        ("build: networks:build", "build: networks:build", "networks:build"),
        ("build: networks:build", "build: 'timm:networks.py:build'", "timm:networks.py:build"),
    ],
)  # fmt: skip
def test_a_run_directory_names_no_code_unless_it_is_trusted(run_dir, old, new, named):
    config = run_dir / "config.yaml"
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))
    with pytest.raises(
        ConfigError, match=f"builds its model with '{named}', which is code of somebody's own"
    ):
        deploycompress.load_pruned(run_dir)


def test_students_are_code_too(run_dir):
    config = run_dir / "config.yaml"
    text = config.read_text().replace("build: networks:build", "build: deploycompress.examples.cnn:build")
    assert text.count("student: null") == 1
    config.write_text(text.replace("student: null", "student: {build: 'os:system'}"))
    with pytest.raises(ConfigError, match=r"builds its model with 'os:system'"):
        deploycompress.load_pruned(run_dir)


def test_what_was_damaged(run_dir):
    weights = run_dir / "03-distill" / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(StageFailed, match=r"is damaged: model\.safetensors has other contents"):
        load_pruned(run_dir)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("nn.ReLU(),\n", "nn.Tanh(),\n", r"has the code of the model changed since\? \(the run built its model with"),
        ("nn.BatchNorm2d(width), ", "", r"if that code is not what it was, load with the code of then"),
        ("def build", "def made", "'networks:build'|has no 'build'"),
    ],
)  # fmt: skip
def test_the_models_code_has_changed(run_dir, tmp_path, old, new, message):
    config = run_dir / "config.yaml"
    (tmp_path / "changed.py").write_text(MODEL.replace(old, new, 1))
    config.write_text(config.read_text().replace("networks:build", f"{tmp_path / 'changed.py'}:build"))
    with pytest.raises((ConfigError, StageFailed), match=message):
        load_pruned(run_dir)


def test_the_import_is_quick():
    code = "import deploycompress, sys; print(sorted({'torch', 'numpy', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
