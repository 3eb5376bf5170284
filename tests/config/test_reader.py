"""Every mistake at once, each with its place, what was received, what was expected, and the nearest name."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from deploycompress.config.reader import dump, read, search_path
from deploycompress.config.schema import DataConfig, OpenConfig, OpenDataConfig

PIPELINES = Path(__file__).parents[2] / "pipelines"
FILES = sorted(set(PIPELINES.glob("*.yaml")) - set(PIPELINES.glob("sweep-*.yaml")))


def test_defaults_are_filled_in_and_the_result_is_frozen(reading, good, folder) -> None:
    config = reading(good)
    assert config.task.name == "classification" and config.seed == 0
    assert [step.id for step in config.stages] == [
        "train", "prune", "distill", "export", "quantize", "build_engine", "benchmark",
    ]  # fmt: skip
    assert config.stages[1].config.target.macs.value == pytest.approx(0.2)
    assert config.stages[5].source == "export"
    assert config.data.image_size == 32
    with pytest.raises(ValueError, match="frozen"):
        config.name = "other"


MISTAKES = [
    # unknown keys, with the nearest name
    ("epochs: 12", "epoch: 12", "11:13: stages.0.train.epoch: unknown key 'epoch'; did you mean 'epochs'? Known: epochs, lr, ema"),
    ("name:", "nam:", "1:1: nam: unknown key 'nam'; did you mean 'name'? Known: name, seed, model"),
    ("{target: {macs: 20%}", "{macs: 20%", "12:13: stages.1.prune.macs: unknown key 'macs'; it belongs into 'target': {target: {macs: ...}}"),
    ("{opset: 18}", "{colour: 18}", "14:14: stages.3.export.colour: unknown key 'colour'; known: opset, simplify, id, from, timeout"),
    # wrong types: nothing is taken for what it is not
    ("epochs: 12", "epochs: '12'", "11:21: stages.0.train.epochs: received '12', expected a whole number"),
    ("epochs: 12", "epochs: true", "11:21: stages.0.train.epochs: received true, expected a whole number"),
    ("epochs: 12", "epochs: 1.5", "11:21: stages.0.train.epochs: received 1.5, expected a whole number"),
    ("epochs: 12", "epochs: [12]", "11:21: stages.0.train.epochs: received a list of 1, expected a whole number"),
    ("epochs: 12", "epochs: null", "received nothing (null), expected a whole number"),
    ("lr: 1e-2", "ema: 1", "stages.0.train.ema: received 1, expected true or false"),
    ("lr: 1e-2", "ema: yes", "stages.0.train.ema: received 'yes', expected true or false"),
    ("opset: 18", "simplify: yes", "stages.3.export.simplify: received 'yes', expected onnxsim or true or false"),
    ("criterion: taylor", "align: true", "stages.1.prune.align: received true, expected auto or a whole number"),
    ("lr: 1e-2", "betas: [0.9, x]", "stages.0.train.betas.1: received 'x', expected a number"),
    ("lr: 1e-2", "betas: 0.9", "stages.0.train.betas: received 0.9, expected a list"),
    ("{width: 32}", "32", "4:9: model.args: received 32, expected a mapping"),
    ("build: deploycompress.examples.resnet:build", "build: 3", "3:10: model.build: received 3, expected text"),
    # values out of range
    ("epochs: 12", "epochs: 0", "received 0, expected a number of at least 1"),
    ("lr: 1e-2", "lr: -1", "received -1, expected a number above 0"),
    ("task:", "seed: -5\ntask:", "7:7: seed: received -5, expected a number of at least 0"),
    ("digits-edge", "digits/edge", "1:7: name: received 'digits/edge', expected letters, digits, '.', '_' and '-'"),
    ("fp32", "fp23", "9:58: target.precision: received 'fp23', expected fp32, fp16, bf16 or int8; did you mean 'fp32'?"),
    ("criterion: taylor", "align: x", "stages.1.prune.align: received 'x', expected auto or a whole number"),
    # shapes
    ("batch, 1, 32", "batch, 0, 32", "6:35: model.inputs.image.shape.1: received 0, expected a number of at least 1 or text"),
    ("batch, 1, 32", "batch, true, 32", "model.inputs.image.shape.1: received true, expected a whole number or text"),
    ("batch, 1, 32", "a b, 1, 32", "model.inputs.image.shape.0: received 'a b', expected a whole number or the name of a dynamic"),
    ("shape: [batch, 1, 32, 32]", "shape: []", "model.inputs.image.shape: received a list of 0, expected at least 1 of them"),
    ("{image: {shape: [batch, 1, 32, 32]}}", "{}", "model.inputs: received a mapping (empty), expected at least 1 of them"),
    # quantities
    ("macs: 20%", "macs: 20 ms", "stages.1.prune.target.macs: received '20 ms': unknown unit 'ms'; expected a quantity such as 50% or 1.5 M"),
    ("macs: 20%", "macs: 0.2", "received 0.2: a plain number is a count here; for a share write 20%"),
    ("macs: 20%", "macs: 120%", "received '120%': must be at most 100%"),
    ("macs: 20%", "size: 3 kb", "received '3 kb': unknown unit 'kb', did you mean 'KB'? Expected a quantity such as 50% or 300 KB"),
    ("{from: export}", "{timeout: 5}", "stages.5.build_engine.timeout: received 5: the unit is missing; expected a quantity such as 2 ms"),
    ("max_drop: 1 pp", "max_drop: 1%", "19:24: gates.accuracy.max_drop: received '1%': unknown unit '%'; expected a quantity such as 1 pp or 0.3"),
    # names of the tables
    ("train:", "trian:", "11:5: stages.0.trian: unknown stage 'trian'; did you mean 'train'? Known: train, prune"),
    ("- quantize", "- quantise", "15:5: stages.4: unknown stage 'quantise'; did you mean 'quantize'? Known: train, prune"),
    ("criterion: taylor", "criterion: tailor", "12:45: stages.1.prune.criterion: unknown criterion 'tailor'; did you mean 'taylor'? Known: magnitude"),
    ("source: digits", "source: digit", "8:16: data.source: unknown data source 'digit'; did you mean 'digits'? Known: digits, or module:Name"),
    ("task: classification", "task: classifier", "7:7: task.name: unknown task 'classifier'; did you mean 'classification'?"),
    ("runtime: onnxruntime", "runtime: onnx-runtime", "9:34: target.runtime: unknown runtime 'onnx-runtime'; did you mean 'onnxruntime'?"),
    ("device: local", "device: pi", "9:18: target.device: unknown device 'pi'; known: local, a name in devices.yaml, or module:Name"),
    ("{mode: quick}", "{runtimes: [tensorrt, ort]}", "stages.6.benchmark.runtimes.1: unknown runtime 'ort'"),
    # gates
    ("latency_p50:", "latency:", "20:3: gates.latency: unknown gate 'latency'; did you mean 'latency_p50'? Known: accuracy"),
    ("{min_speedup: 3.0}", "{}", "20:3: gates.latency_p50: the gate has no limit; give max or min_speedup"),
    ("{min_speedup: 3.0}", "", "20:3: gates.latency_p50: the gate has no limit; give max or min_speedup"),
    ("{max_drop: 1 pp, on_inconclusive: warn}", "{on_inconclusive: warn}", "19:3: gates.accuracy: the gate has no limit; give min, max, max_drop or max_rise"),
    ("on_inconclusive: warn", "on_inconclusive: extend", "gates.accuracy.on_inconclusive: received extend, but measuring longer decides nothing about accuracy; expected fail or warn"),
    ("latency_p50: {min_speedup: 3.0}", "latency_p99: {max: 3 ms}", "20:3: gates.latency_p99: a p99 never passes in mode quick, which takes too few samples; write `- benchmark: {mode: full}`"),
    ("latency_p50: {min_speedup: 3.0}", "energy: {max: 3 ms}", "20:17: gates.energy.max: received '3 ms': unknown unit 'ms'; expected a quantity such as 5 mJ"),
    ("on_inconclusive: warn", "on_inconclusive: ignore", "gates.accuracy.on_inconclusive: received 'ignore', expected fail, warn or extend"),
    ("{min_speedup: 3.0}", "3.0", "20:16: gates.latency_p50: received 3.0, expected a mapping with on_inconclusive, max or min_speedup"),
    ("max_drop: 1 pp", "max_drop: 1", "19:24: gates.accuracy.max_drop: received 1: a plain number is a share from 0 to 1 here; write 1 pp"),
    ("max_drop: 1 pp", "min: 98", "19:19: gates.accuracy.min: received 98: a plain number is a share from 0 to 1 here; write 98%"),
    ("max_drop: 1 pp", "max_dorp: 1 pp", "19:14: gates.accuracy.max_dorp: unknown key 'max_dorp'; did you mean 'max_drop'?"),
    ("task: classification", "task: {name: classification, args: {clases: 3}}", "7:37: task.args.clases: unknown argument 'clases'; did you mean 'classes'?"),
    ("task: classification", "task: {args: {label_smoothing: 3}}", "7:14: task.args: classification: label_smoothing is 3; expected 0 or more"),
    ("lr: 1e-2", "decay: [1]", "stages.0.train.decay: received a list of 1, expected 2 of them"),
    ("lr: 1e-2", "lr: nan", "stages.0.train.lr: received 'nan', expected a finite number"),
    ("latency_p50:", "'metric:':", "gates.metric:: unknown gate 'metric:'"),
    # blocks that are no blocks
    ("{source: digits, image_size: 32, batch_size: 64}", "digits", "8:7: data: received 'digits', expected a mapping, as {source: ...}"),
    ("{image: {shape: [batch, 1, 32, 32]}}", "{image: [1, 1, 32, 32]}", "6:19: model.inputs.image: received a list of 4, expected a mapping, as {shape: ...}"),
    ("{target: {macs: 20%}", "{target: 20%", "12:21: stages.1.prune.target: received '20%', expected a mapping with macs, size or ratio"),
    ("source: digits, ", "", "8:1: data: the key 'source' is missing; expected digits or module:function"),
    # model
    ("resnet:build", "resnet:buidl", "3:10: model.build: 'deploycompress.examples.resnet:buidl': deploycompress.examples.resnet has no 'buidl'; did you mean 'build'?"),
    ("weights: null", "weights: none.pt", "5:12: model.weights: 'none.pt' does not exist; looked in "),
    # what stands in the list of stages
    ("- quantize", "- quantize: 8", "15:15: stages.4.quantize: received 8, expected a mapping, as quantize: {key: value}"),
    ("- quantize", "- 8", "15:5: stages.4: received 8, expected a stage: name, or name: {key: value}"),
    ("- quantize", "- quantize:\n    scheme: auto", "15:5: stages.4: a step has one key, the name of its stage; 'scheme' should stand inside it: indent further than 'quantize'"),
    ("- quantize", "- quantize: {id: a b}", "15:20: stages.4.quantize.id: received 'a b', expected letters, digits, '_' and '-'"),
    ("- quantize", "- quantize: {id: export}", "15:20: stages.4.quantize.id: duplicate id 'export'; an earlier step has it"),
    ("- quantize", "- quantize: {id: baseline}", "15:20: stages.4.quantize.id: the id 'baseline' has a meaning of its own; choose another"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "expected"), MISTAKES)
def test_one_mistake_gives_one_line(refused, good, old: str, new: str, expected: str) -> None:
    lines = refused(good, (old, new))
    assert len(lines) == 1, lines
    assert lines[0].startswith("pipeline.yaml:")
    assert expected in lines[0].replace("pipeline.yaml:", "", 1)


def test_all_mistakes_at_once_in_the_order_of_the_file(refused, good) -> None:
    lines = refused(
        good,
        ("resnet:build", "resnet:make"),
        ("batch_size: 64", "batch_size: none"),
        ("epochs: 12", "epoch: 12"),
        ("criterion: taylor", "criterion: tailor, criterion: random"),
        ("from: export", "from: exprot"),
        ("min_speedup: 3.0", "max: 3"),
        ("max_drop: 1 pp", "max_dorp: 1 pp, min: x"),
        sets=("distill.epochs=0", "nonsense=1"),
    )
    assert [line.partition(": ")[0] for line in lines] == [
        "pipeline.yaml:3:10",
        "pipeline.yaml:8:52",
        "pipeline.yaml:11:13",
        "pipeline.yaml:12:45",
        "pipeline.yaml:12:53",
        "pipeline.yaml:16:26",
        "pipeline.yaml:19:14",
        "pipeline.yaml:19:35",
        "pipeline.yaml:20:22",
        "--set nonsense=1",
        "--set distill.epochs=0",
    ]


def test_missing_blocks(refused) -> None:
    lines = refused("seed: 1\n")
    assert [line.partition(": ")[2] for line in lines] == [
        "name: the key 'name' is missing: the name of the pipeline and of its run directory",
        "model: the key 'model' is missing: {build: module:function, inputs: {...}}",
        "data: the key 'data' is missing: {source: digits}, or {source: module:function}",
        "stages: the key 'stages' is missing: a list such as [train, prune, export]",
    ]
    assert refused("- train\n") == [
        "pipeline.yaml:1:1: received a list of 1, expected keys such as name: and model:"
    ]


@pytest.mark.parametrize(
    ("value", "expected"),
    [("", "received nothing (null), expected a list of stages"), ("train", "received 'train', expected a list"), ("[]", "no stage is given")],
)  # fmt: skip
def test_stages_that_are_no_list(refused, good, value: str, expected: str) -> None:
    head, _, rest = good.partition("stages:")
    tail = rest.partition("gates:")[2]
    lines = refused(f"{head}stages: {value}\ngates:{tail}")
    assert any(expected in line for line in lines), lines
    assert all(line.startswith("pipeline.yaml:") for line in lines)


# ---------------------------------------------------------------- paths and user code


def test_paths_are_looked_for_beside_the_file_first(folder: Path, good: str, monkeypatch) -> None:
    project, elsewhere = folder / "project", folder / "elsewhere"
    for place in (project, elsewhere):
        place.mkdir()
        (place / "both.pt").write_bytes(b"")
    (elsewhere / "only.pt").write_bytes(b"")
    (project / "model.py").write_text("def build(width): ...\n")
    monkeypatch.chdir(elsewhere)
    text = good.replace("deploycompress.examples.resnet:build", "model.py:build")
    (project / "p.yaml").write_text(text.replace("weights: null", "weights: both.pt"))
    config = read(Path("../project/p.yaml"))
    assert config.model.weights == (project / "both.pt").resolve()
    assert config.model.build == f"{(project / 'model.py').resolve()}:build"
    assert search_path(Path("../project/p.yaml")) == (project.resolve(), elsewhere.resolve())
    assert (
        read(Path("../project/p.yaml"), ["model.weights=only.pt"]).model.weights
        == (elsewhere / "only.pt").resolve()
    )


def test_every_path_of_a_configuration_must_exist(refused, reading, good, folder) -> None:
    (folder / "start.pt").write_bytes(b"")
    config = reading(good, ("lr: 1e-2", "start: start.pt"))
    assert config.stages[0].config.start == (folder / "start.pt").resolve()
    (line,) = refused(good, ("lr: 1e-2", "start: stert.pt"))
    assert "11:32: stages.0.train.start: 'stert.pt' does not exist; did you mean start.pt? Looked in " in line
    (line,) = refused(good, ("batch_size: 64", "root: nowhere"))
    assert "data.root: 'nowhere' does not exist; looked in " in line


def test_weights_of_another_kind(refused, good, folder) -> None:
    (folder / "w.ckpt").write_bytes(b"")
    (line,) = refused(good, ("weights: null", "weights: w.ckpt"))
    assert "5:12: model.weights: received " in line
    assert line.endswith("expected a file ending in .safetensors, .pt, .pth or .th")


OWN = """
    raise SystemExit("imported")
    from deploycompress.config.base import StrictModel
    from deploycompress.config.schema import DataConfig
    from deploycompress.contracts import Outcome, Stage

    class Own(Stage):
        accepts = produces = frozenset({"checkpoint"})

        class Config(StrictModel):
            strength: float = 1.0

        def run(self, *_):
            return Outcome()

    class Sounds:
        class Config(DataConfig):
            rate: int = 16000

    def loader(split): ...
"""


def test_user_code_is_located_and_not_imported(reading, refused, good, folder) -> None:
    (folder / "own.py").write_text(dedent(OWN))
    config = reading(
        good, ("- quantize", "- own.py:Own: {anything: 1, id: mine}"), ("digits,", "own:Sounds,")
    )
    step = config.stages[4]
    assert step.stage == f"{(folder / 'own.py').resolve()}:Own" and step.id == "mine"
    assert step.config == OpenConfig(anything=1)
    assert config.data == OpenDataConfig(source="own:Sounds", image_size=32, batch_size=64)
    config = reading(good, ("{source: digits, image_size: 32,", "{source: 'own.py:loader', args: {a: 1},"))
    assert type(config.data) is DataConfig and config.data.source == f"{(folder / 'own.py').resolve()}:loader"
    (line,) = refused(good, ("- quantize", "- own.py:Own"), ("digits,", "own:loader,"))
    assert (
        "8:28: data.image_size: unknown key 'image_size'" in line
    )  # a function takes args, no keys of its own
    (line,) = refused(good, ("- quantize", "- own.py:Owl: {anything: 1}"))
    assert "15:5: stages.4.own.py:Owl: stage 'own.py:Owl': own.py has no 'Owl'; did you mean 'Own'?" in line
    lines = refused(
        good, ("criterion: taylor", "criterion: criteria.py:Mine"), ("task: class", "task: own:Class")
    )
    assert "task 'own:Classification': own has no 'Classification'; it has Own, Sounds, loader" in lines[0]
    assert "criterion 'criteria.py:Mine': the file criteria.py does not exist; looked in" in lines[1]


def test_user_code_is_imported_and_its_keys_checked_where_allowed(reading, refused, good, folder) -> None:
    name = f"own_{abs(hash(str(folder)))}"  # no other test has imported it
    (folder / f"{name}.py").write_text(dedent(OWN.replace('raise SystemExit("imported")', "")))
    source = ("digits, image_size: 32,", f"{name}:Sounds,")
    order = ("- distill: {epochs: 8}", f"- {name}:Own: {{strength: 2.5}}")
    config = reading(good, order, source, load_user_code=True)
    assert config.stages[2].config.strength == 2.5 and config.data.rate == 16000
    wrong = (order[0], order[1].replace("strength", "strenght"))
    lines = refused(good, wrong, (source[0], f"{name}:Sounds, rate: fast,"), load_user_code=True)
    assert "data.rate: received 'fast', expected a whole number" in lines[0]
    assert "unknown key 'strenght'; did you mean 'strength'? Known: strength, id, from, timeout" in lines[1]
    (folder / "broken.py").write_text("import nothing_of_that_name\nclass Own: ...\n")
    (line,) = refused(good, (order[0], "- broken.py:Own"), load_user_code=True)
    assert "13:5: stages.2: stage " in line
    assert "importing " in line and "ModuleNotFoundError: No module named 'nothing_of_that_name'" in line


# ---------------------------------------------------------------- dump


EXAMPLES = {
    "as it is": (),
    "quantities": (
        ("macs: 20%", "macs: 1.50 M, size: 0300 KB, ratio: 0.30"),
        ("{from: export}", "{from: export, timeout: 1.5 h}"),
        ("min_speedup: 3.0", "max: 0.5 s"),
        ("max_drop: 1 pp", "min: 98.5%, max_drop: 0.01"),
    ),
    "odd text": (
        ("{width: 32}", "{a: '1e3', b: 'yes: no', c: '', d: [~, 1e-7, true], e: 'null', f: 0o17, 1: é}"),
    ),
    "repeat": (
        (
            "  - prune: {target: {macs: 20%}, criterion: taylor}\n  - distill: {epochs: 8}\n",
            "  - repeat: 3\n    stages: [{prune: {target: {macs: 20%, ratio: 0.3}}}, distill]\n",
        ),
    ),
    "several of a name": (("- quantize", "- quantize\n  - export: {from: train}"),),
    "metric": (("latency_p50: {min_speedup: 3.0}", "'metric:f1': {min: 0.9}"),),
}


@pytest.mark.parametrize("changes", EXAMPLES.values(), ids=EXAMPLES)
def test_dump_reads_back_equal(reading, good, folder, changes) -> None:
    config = reading(good, *changes)
    text = dump(config)
    (folder / "runs").mkdir()
    (folder / "runs" / "config.yaml").write_text(text)
    again = read(folder / "runs" / "config.yaml")
    assert again == config
    assert dump(again) == text
    assert "repeat" not in text


def test_dump_of_files_and_user_code(reading, good, folder) -> None:
    (folder / "own.py").write_text(dedent(OWN))
    (folder / "w.pt").write_bytes(b"")
    (folder / "given.onnx").write_bytes(b"")
    config = reading(
        good,
        ("weights: null", "weights: w.pt"),
        ("- quantize", "- quantize: {from: given.onnx}"),
        ("- distill: {epochs: 8}", "- own.py:Own: {x: {y: [1, 2]}}"),
        ("digits,", "own.py:Sounds,"),
    )
    assert config.stages[4].source == str((folder / "given.onnx").resolve())
    (folder / "runs").mkdir()
    (folder / "runs" / "config.yaml").write_text(dump(config))
    assert read(folder / "runs" / "config.yaml") == config


def test_a_changed_value_is_not_equal(reading, good) -> None:
    assert reading(good) == reading(good, ("12, lr: 1e-2", "12, lr: 0.010"))
    assert reading(good) != reading(good, ("epochs: 12", "epochs: 13"))
    assert reading(good) != reading(good, ("macs: 20%", "macs: 21%"))


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_every_pipeline_reads_and_reads_back(file: Path, tmp_path: Path) -> None:
    if file.stem.startswith("sweep-"):
        pytest.skip("a sweep is read by the sweep command")
    config = read(file)
    (tmp_path / "config.yaml").write_text(dump(config), encoding="utf-8")
    assert read(tmp_path / "config.yaml") == config
    assert dump(read(tmp_path / "config.yaml")) == dump(config)
