"""Teachers, students and losses in a pipeline.yaml: names found, mistakes with their place, one whole run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import deploycompress
from deploycompress.artifact import digest_file
from deploycompress.config.reader import dump, read
from deploycompress.engine.context import import_user_code
from deploycompress.errors import ConfigError

LOSS = """
import torch

class Squared:
    def __call__(self, student, teacher, batch):
        return ((student.main - teacher.main) ** 2).mean()
"""


def with_distill(tiny: Path, config: str) -> Path:
    text = tiny.read_text()
    assert "distill: {epochs: 1, lr: 0.05}" in text
    tiny.write_text(text.replace("distill: {epochs: 1, lr: 0.05}", f"distill: {{epochs: 1, {config}}}"))
    return tiny


def distill_of(tiny: Path, config: str):
    found = read(with_distill(tiny, config))
    (tiny.parent / "again.yaml").write_text(dump(found))
    assert read(tiny.parent / "again.yaml") == found
    return found, next(step.config for step in found.stages if step.stage == "distill")


def test_files_and_builds_are_made_absolute(tiny):
    folder = tiny.parent
    (folder / "teacher.onnx").write_bytes(b"")
    (folder / "w.safetensors").write_bytes(b"")
    (folder / "own.py").write_text(LOSS)
    built = "{build: model.py:build, args: {width: 8}, weights: w.safetensors}"
    config, distill = distill_of(
        tiny, f"teacher: [train, teacher.onnx, {built}], loss: [kd, {{own.py:Squared: {{weight: 2}}}}]"
    )
    step, file, network = distill.teacher
    assert (step, file) == ("train", str(folder / "teacher.onnx"))
    assert network.build == f"{folder / 'model.py'}:build" and network.weights == folder / "w.safetensors"
    assert distill.loss == ("kd", {f"{folder / 'own.py'}:Squared": {"weight": 2}})
    sys.modules.pop("deploycompress_user_model", None)
    import_user_code(config)  # so that its text is in the digests
    assert sys.modules["deploycompress_user_model"].__file__ == str(folder / "model.py")
    (_, own) = distill.open_loss().parts.values()
    assert type(own.loss).__name__ == "Squared" and own.weight == 2


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("teacher: trian", r"stages.2.distill.teacher: unknown step 'trian'; did you mean 'train'"),
        ("teacher: [original, trian]", r"stages.2.distill.teacher(.1)?: unknown step 'trian'"),
        ("teacher: export", r"'export' is a later step"),
        ("teacher: baseline", r"distill reads checkpoint, but baseline is onnx"),
        ("teacher: previous", r"'previous' is the student of the round before; this step is in no repeat"),
        ("teacher: mixed", r"'mixed' is the student of the round before; this step is in no repeat"),
        ("teacher: {build: modle.py:build}", r"teacher.build: 'modle.py:build': .* did you mean model.py"),
        ("student: {build: model.py:bild}", r"student.build: 'model.py:bild': .* did you mean 'build'"),
        ("student: {build: model.py:build, weights: x.pt}", r"student.weights: 'x.pt' does not exist"),
        ("inherit: true", r"inherit: the source is the student already; expected a student"),
        ("loss: dkdd", r"distill.loss: unknown loss 'dkdd'; did you mean 'dkd'"),
        ("loss: [kd, {atention: {}}]", r"unknown loss 'atention'; did you mean 'attention'"),
        ("loss: {kd: {temprature: 2}}", r"distill.loss: .*kd: unknown argument 'temprature'; did you mean 'temperature'"),
        ("anneal: {beta: 2}", r"unknown key 'beta'"),
    ],
)  # fmt: skip
def test_mistakes_are_told_with_their_place(tiny, config, message):
    with pytest.raises(ConfigError, match=message):
        read(with_distill(tiny, config))


def test_an_id_that_means_something_else_is_refused(tiny):
    with pytest.raises(ConfigError, match="the id 'previous' has a meaning of its own"):
        read(with_distill(tiny, "id: previous"))


def linear_teacher(path: Path) -> None:
    """[batch, 1, 8, 8] -> [batch, 10] by one matrix."""
    weights = numpy_helper.from_array(np.zeros((64, 10), dtype=np.float32), "w")
    nodes = [
        helper.make_node("Flatten", ["image"], ["x"]),
        helper.make_node("MatMul", ["x", "w"], ["logits"]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])
    graph = helper.make_graph(nodes, "linear", [image], [logits], [weights])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)


STUDENTS = """
name: students
model: {build: model.py:build, inputs: {image: {shape: [batch, 1, 8, 8]}}}
data: {source: digits, image_size: 8, batch_size: 128, calibration: 32}
stages:
  - train: {epochs: 1, lr: 0.1}
  - distill: {id: small, epochs: 1, lr: 0.05, student: {build: student.py:build, args: {width: 4}}}
  - prune: {target: {ratio: 0.5}, align: 1, criterion: magnitude, compensate: false}
  - distill: {id: recover, epochs: 1, lr: 0.05, teacher: [train, small, teacher.onnx], loss: [kd, mse]}
  - export
"""


def test_a_whole_run_in_which_another_network_takes_the_models_place(tiny, command):
    """Trained, distilled into another build, pruned, distilled from two builds and a file, exported."""
    folder = tiny.parent
    student = (folder / "model.py").read_text().replace("nn.ReLU()", "nn.Hardswish()")
    (folder / "student.py").write_text(student)
    (folder / "students.yaml").write_text(STUDENTS)
    linear_teacher(folder / "teacher.onnx")
    run = folder / "run"
    code, said = command("run", "students.yaml", "--out", "run", "--no-rehearsal", cwd=folder)
    assert code == 0, said
    steps = json.loads((run / "run.json").read_text())["steps"]
    assert [step["id"] for step in steps] == ["model", "train", "small", "prune", "recover", "export"]
    manifest = json.loads((run / "04-recover" / "manifest.json").read_text())
    digests = {name: given[0]["sha256"] for name, given in manifest["inputs"].items()}
    assert list(digests) == ["source", "teacher.0", "teacher.1", "teacher.2"]
    assert digests["teacher.2"] == digest_file(folder / "teacher.onnx")

    loaded = deploycompress.load_pruned(run, trust_code=True)
    assert any(isinstance(module, torch.nn.Hardswish) for module in loaded.modules())
    assert loaded[3].out_channels == 4
    first = deploycompress.load_pruned(run, "train", trust_code=True)
    assert not any(isinstance(module, torch.nn.Hardswish) for module in first.modules())


@pytest.mark.parametrize("teacher", ["previous", "mixed"])
def test_the_student_of_a_round_teaches_the_next_one_in_a_real_run(tiny, command, teacher):
    stages = f"""stages:
  - train: {{epochs: 1, lr: 0.1}}
  - repeat: 2
    stages:
      - prune: {{target: {{ratio: 0.5}}, align: 1, criterion: magnitude, compensate: false}}
      - distill: {{epochs: 1, lr: 0.05, teacher: {teacher}}}
"""
    text = tiny.read_text()
    tiny.write_text(text[: text.index("stages:")] + stages)
    code, said = command("run", tiny, "--out", "run", "--no-rehearsal", cwd=tiny.parent)
    assert code == 0, said
    made = {}
    for place in (tiny.parent / "run").glob("*/manifest.json"):
        manifest = json.loads(place.read_text())
        if manifest.get("stage") in ("train", "distill"):
            made[manifest["id"]] = manifest
    digest = {id: manifest["artifacts"][0]["sha256"] for id, manifest in made.items()}
    taught = {
        id: [given[0]["sha256"] for name, given in manifest["inputs"].items() if name.startswith("teacher")]
        for id, manifest in made.items()
    }
    again = [digest["train"]] if teacher == "mixed" else []
    assert taught["distill@1"] == [digest["train"]]
    assert taught["distill@2"] == [*again, digest["distill@1"]]
    assert digest["distill@1"] != digest["distill@2"]
