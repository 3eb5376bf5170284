"""``--no-user-code``: what is not this package's own is refused at its place, before anything of it is imported."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deploycompress import registry, user_code
from deploycompress.errors import ConfigError

EVIL = "open('WENT-OFF', 'a').write(__name__)\n\n\ndef build(*given, **args): ...\n\n\nclass Part: ...\n"
PIPELINE = """\
name: guarded
model:
  build: evil.py:build
  inputs: {image: {shape: [batch, 1, 8, 8]}}
task: {name: multi_task, args: {heads: {a: {name: "evil:Part"}}}}
data: {source: "evil:build"}
target: {device: "evil:Part", runtime: "evil:Part", provider: "cuda:0"}
stages:
  - "evil:Part": {}
  - prune: {target: {macs: 50%}, criterion: "evil:Part", allocation: "deploycompress.artifact:remove"}
  - distill: {loss: [kd, {"evil:Part": {weight: 1}}], teacher: {build: "evil:build"}, student: {build: evil.py:build}}
  - compile: {candidates: [{runtime: "evil:Part"}]}
  - benchmark: {runtimes: ["evil:Part"], devices: [local, "evil:Part"]}
  - train: {launch: {nodes: 2, rendezvous: "10.0.0.1:29400"}}
gates:
  metric:accuracy: {max_drop: 1 pp}
"""
PLACES = """\
p.yaml:3:10: model.build
p.yaml:5:51: task.args.heads.a.name
p.yaml:6:16: data.source
p.yaml:7:18: target.device
p.yaml:7:40: target.runtime
p.yaml:9:5: stages.0.evil:Part
p.yaml:10:45: stages.1.prune.criterion
p.yaml:10:70: stages.1.prune.allocation
p.yaml:11:27: stages.2.distill.loss.1.evil:Part
p.yaml:11:72: stages.2.distill.teacher.build
p.yaml:11:104: stages.2.distill.student.build
p.yaml:12:38: stages.3.compile.candidates.0.runtime
p.yaml:13:28: stages.4.benchmark.runtimes.0
p.yaml:13:59: stages.4.benchmark.devices.1
p.yaml:14:44: stages.5.train.launch.rendezvous
""".splitlines()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "evil.py").write_text(EVIL)
    (folder / "p.yaml").write_text(PIPELINE)
    return folder


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (user_code.NO_USER_CODE, "PYTHONSAFEPATH", "TORCH_FORCE_WEIGHTS_ONLY_LOAD"):
        monkeypatch.setenv(name, "")  # and as it was afterwards
    monkeypatch.setattr(sys, "path", list(sys.path))
    user_code.refuse_user_code()


def run(project: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = (
        "import sys; from deploycompress.cli import main; main(sys.argv[1:])"  # as the installed command does
    )
    # An empty entry would be the current folder.
    places = (str(Path(registry.__file__).parents[1]), os.environ.get("PYTHONPATH", ""))
    paths = os.pathsep.join(filter(None, places))
    return subprocess.run(
        [sys.executable, "-P", "-c", command, *arguments],
        cwd=project,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, **more},
    )


def test_every_name_of_code_is_refused_at_its_place(project: Path) -> None:
    done = run(project, "validate", "p.yaml", "--no-user-code", "--set", "train.seed=1")
    assert done.returncode == 2
    lines = [line.removeprefix("error: ") for line in done.stderr.splitlines()]
    refused = [line for line in lines if "--no-user-code refuses" in line]
    assert [re.split(": '|: 10", line)[0] for line in refused] == PLACES
    assert not (project / "WENT-OFF").exists()


@pytest.mark.parametrize(
    "command",
    [
        ("run", "p.yaml", "--set", "prune.criterion=evil:Part"),
        ("inspect", "evil:build", "--input", "image=1x1x8x8"),  # and probe, in the same way
        ("benchmark", "model.onnx", "--device", "evil:Part"),  # and compare
    ],
    ids=" ".join,
)
def test_every_command_refuses_it_before_it_is_imported(project: Path, command: tuple[str, ...]) -> None:
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in "xy"]
    weight = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weight]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    (project / "model.onnx").write_bytes(model.SerializeToString())
    done = run(project, *command, "--no-user-code")
    assert done.returncode == 2 and "--no-user-code refuses" in done.stderr, done.stderr
    assert not (project / "WENT-OFF").exists()


@pytest.mark.parametrize("swept", [False, True], ids=["run", "sweep"])
def test_built_ins_import_nothing_that_lies_beside_the_pipeline(project: Path, swept: bool) -> None:
    """Files with a library's name, in the folder of the pipeline, which is the current one."""
    for name in ("onnxsim", "sklearn", "scipy", "onnx", "torchvision", "numpy"):
        (project / f"{name}.py").write_text(f"{EVIL}raise ImportError('hostile')\n")
    (project / "torchvision:evil.py").write_text(EVIL)
    (project / "q.yaml").write_text(
        "name: q\n"
        "model: {build: deploycompress.examples.cnn:build, args: {width: 4, image_size: 8}, "
        "inputs: {image: {shape: [batch, 1, 8, 8]}}}\n"
        "data: {source: digits, image_size: 8, batch_size: 512}\n"
        f"stages: [{{train: {{epochs: 1}}}}{', export, benchmark' * swept}]\n"
    )
    (project / "s.yaml").write_text(
        "name: s\npipeline: q.yaml\nmatrix: {train.lr: [0.1]}\nobjectives: {accuracy: maximise}\n"
    )
    command = ("sweep", "s.yaml") if swept else ("run", "q.yaml", "--no-rehearsal")
    done = run(project, *command, "--out", "run", "--store", "store", "-q", DEPLOYCOMPRESS_NO_USER_CODE="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (project / "WENT-OFF").exists()


def test_arguments_of_a_network_name_no_code(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``criterion`` among them is the network's own word."""
    from deploycompress.config.reader import read
    from deploycompress.engine.context import import_user_code

    monkeypatch.chdir(project)
    network = "{build: deploycompress.examples.cnn:build, args: {loss: 'evil.py:build'}}"
    (project / "r.yaml").write_text(
        "name: r\n"
        "model: {build: deploycompress.examples.cnn:build, inputs: {image: {shape: [batch, 1, 8, 8]}}}\n"
        f"data: {{source: digits, image_size: 8}}\nstages: [{{train: {{}}}}, {{distill: {{student: {network}}}}}]\n"
    )
    import_user_code(read(project / "r.yaml"))
    assert not (project / "WENT-OFF").exists()


@pytest.mark.parametrize(
    "name",
    [
        "os:system",
        "evil.py:build",
        "deploycompress.artifact:remove",  # ours, and with arguments of one's choice no harmless one
        "deploycompress.registry:load_reference",
        "deploycompress.examples:build",
        "deploycompress.examples.cnn:nn",  # what an example itself imports
        "deploycompress.examples.resnet:Tensor",
        "deploycompress.examples/../evil.py:build",
        "torchvision:extension",
        "torchvision:evil.py:build",
        "timm:evil.py:build",
    ],
)
def test_what_is_not_a_part_of_ours_is_not_loaded(guarded: None, name: str) -> None:
    before = set(sys.modules)
    with pytest.raises(ConfigError, match=r"--no-user-code refuses|and no part of it"):
        registry.load_reference(name)
    assert not [module for module in set(sys.modules) - before if "evil" in module]


def test_what_is_ours_is_loaded(guarded: None) -> None:
    assert callable(registry.load_reference("deploycompress.examples.cnn:build"))
    for table in registry.TABLES:
        for name in table:
            assert registry.is_own(table[name])
            registry.load_reference(table[name])


def test_without_the_option_user_code_is_loaded(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    monkeypatch.setenv(user_code.NO_USER_CODE, "0")
    assert registry.load_reference("evil.py:build").__name__ == "build" and (project / "WENT-OFF").exists()


@pytest.mark.parametrize("command", ["run", "sweep", "validate", "probe", "inspect", "benchmark", "compare"])
def test_every_command_that_takes_names_takes_the_option(command: str) -> None:
    from deploycompress.cli import group

    found = group.get_command(None, command)  # type: ignore[arg-type]
    assert any("--no-user-code" in option.opts for option in found.params)
