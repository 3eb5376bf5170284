"""The harness over every task: it learns, it refuses what does not fit, and an ONNX file gives the same figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deploycompress.config.schema import InputSpec, TaskConfig
from deploycompress.contracts import Batch, ClassMetrics, Outputs, figures_of
from deploycompress.data.open import open_task
from deploycompress.data.tasks.segmentation import Segmentation
from deploycompress.data.tasks.token_classification import TokenClassification
from deploycompress.errors import ConfigError
from deploycompress.model.outputs import named_outputs
from deploycompress.recovery.evaluation import evaluate
from deploycompress.registry import TASKS

SAMPLES = 48


@dataclass(frozen=True)
class Problem:
    """What a small network can learn, and targets that the task must refuse."""

    module: nn.Module
    inputs: Mapping[str, Tensor]
    targets: Any
    wrong: Mapping[str, Any]  # the message -> targets of a whole batch
    args: Mapping[str, Any] = field(default_factory=dict)
    needs_labels: bool = True

    def batches(self, size: int) -> list[Batch]:
        whole = Batch(self.inputs, self.targets, SAMPLES)
        starts = range(0, SAMPLES, size)
        return [part(whole, i, min(i + size, SAMPLES)) for i in starts]


def part(whole: Batch, start: int, end: int) -> Batch:
    def cut(value: Any) -> Any:
        return {k: cut(v) for k, v in value.items()} if isinstance(value, Mapping) else value[start:end]

    return Batch(cut(whole.inputs), None if whole.targets is None else cut(whole.targets), end - start)


class Named:
    """The model contract over a module: inputs by position, outputs by the names that any form of them has."""

    digest = "0"

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.inputs = {
            name: InputSpec(shape=("batch", *t.shape[1:]), dtype=str(t.dtype).removeprefix("torch."))
            for name, t in problem.inputs.items()
        }

    def example(self, batch_size: int) -> dict[str, Tensor]:
        return {name: t[:batch_size] for name, t in self.problem.inputs.items()}

    def call(self, module: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return named_outputs(module(*inputs.values()))


# ---------------------------------------------------------------- problems


def points(outputs: int) -> tuple[Tensor, nn.Module]:
    return torch.randn(SAMPLES, 8), nn.Linear(8, outputs)


def classification() -> Problem:
    x, module = points(3)
    y = (torch.arange(SAMPLES) % 3).to(torch.int32)
    wrong = {
        "labels from 0 to 3; expected 0 to 2": torch.arange(SAMPLES) % 4,
        r"received labels float32\[48\]": y.float(),
        "received no labels": None,
    }
    return Problem(module, {"x": x + 3 * nn.functional.one_hot(y.long(), 8)}, y, wrong)


def multi_label() -> Problem:
    x, module = points(4)
    y = (x[:, :4] > 0).int()
    wrong = {
        r"received labels int32\[48, 3\]; expected \[48, 4\] of 0 and 1": y[:, :3],
        "labels from 0 to 2; expected": y * 2,
        "labels of type list": y.tolist(),
    }
    return Problem(module, {"x": x}, y, wrong, {"metric": "exact_match"})


class TwoMaps(nn.Module):
    """As torchvision's segmentation networks: a dict with ``out`` and ``aux``."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.aux = nn.Conv2d(1, 3, 1), nn.Conv2d(1, 3, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"out": self.out(image), "aux": self.aux(image)}


def segmentation() -> Problem:
    x = torch.randn(SAMPLES, 1, 6, 5)
    y = (x[:, 0] > -0.5).long() + (x[:, 0] > 0.5).long()
    y[:, 0, 0] = 255
    wrong = {
        "labels from 0 to 254; expected 0 to 2, or 255 for what is not counted": y.where(y < 255, 254),
        r"received labels int64\[48\]; expected integers \[48, height, width\]": y[:, 0, 0],
    }
    return Problem(TwoMaps(), {"image": x}, y, wrong)


def detection() -> Problem:
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.retinanet import RetinaNet, RetinaNetHead

    from deploycompress.examples.detector import Dense

    class Backbone(nn.Module):
        out_channels = 8

        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(1, 8, 4, 4), nn.ReLU())

        def forward(self, image: Tensor) -> Tensor:
            found: Tensor = self.layers(image)
            return found

    anchors = AnchorGenerator(sizes=((8,),), aspect_ratios=((1.0,),))
    head = RetinaNetHead(8, 1, 2, norm_layer=partial(nn.GroupNorm, 2))
    module = Dense(RetinaNet(Backbone(), 2, anchor_generator=anchors, head=head))
    x, targets = torch.zeros(SAMPLES, 1, 16, 16), []
    for i in range(SAMPLES):
        left, top, label = 4 * (i % 3), 4 * (i // 3 % 3), i % 2
        x[i, 0, top : top + 8, left : left + 8] = 3 * label - 1
        box = torch.tensor([[left, top, left + 8, top + 8]], dtype=torch.float32)
        targets.append({"boxes": box, "labels": torch.tensor([label])})
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    targets[0] = nothing
    wrong = {
        "received no labels": None,
        "targets of type Tensor": torch.zeros(SAMPLES),
        "expected a dict with the tensors 'boxes' and 'labels'": [{"boxes": t["boxes"]} for t in targets],
        "labels from 2 to 2; expected 0 to 1": [{**targets[1], "labels": torch.tensor([2])}] * SAMPLES,
        "a box has no area": [{**targets[1], "boxes": torch.tensor([[4.0, 4, 4, 8]])}] * SAMPLES,
    }
    return Problem(module, {"image": x}, targets, wrong)


def regression() -> Problem:
    x, module = points(2)
    y = 3 + x[:, :2] @ torch.tensor([[1.0, -1], [2, 1]])
    wrong = {
        r"received targets float32\[48\]; expected numbers \[48, 2\]": y[:, 0],
        "received NaN or Inf among the targets": y.log(),
    }
    return Problem(module, {"x": x}, y, wrong)


@dataclass
class Answer:
    """As transformers' ModelOutput: what is not given is None."""

    loss: Tensor | None = None
    logits: Tensor | None = None


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(7, 8), nn.Linear(8, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Answer:
        return Answer(logits=self.head(self.embedding(input_ids) * attention_mask[..., None]))


def token_classification() -> Problem:
    ids = torch.randint(7, (SAMPLES, 6))
    mask = (torch.arange(6) < torch.randint(3, 7, (SAMPLES, 1))).long()
    y = ids % 3
    y[:, 0] = -100
    wrong = {
        "labels from 0 to 3; expected 0 to 2, or -100": (ids % 4).masked_fill(ids == 6, -100),
        r"received labels int64\[48, 5\]; expected integers \[48, 6\]": y[:, 1:],
    }
    inputs = {"input_ids": ids, "attention_mask": mask}
    return Problem(Tokens(), inputs, y, wrong, {"mask": "attention_mask"})


def ctc() -> Problem:
    texts = [torch.randint(1, 4, (i % 4,)) for i in range(SAMPLES)]
    x = torch.zeros(SAMPLES, 12, 5)
    for i, text in enumerate(texts):
        for j, symbol in enumerate(text.tolist()):
            x[i, 3 * j : 3 * j + 2, symbol] = 3
    wrong = {
        "has the blank, 0, among its labels": [torch.tensor([0])] * SAMPLES,
        "labels from 4 to 4; expected 0 to 3": [torch.tensor([4])] * SAMPLES,
        "has 7 labels, which need 13 frames; received 12": [torch.ones(7, dtype=torch.int64)] * SAMPLES,
        "received no labels": None,
    }
    return Problem(nn.Linear(5, 4), {"frames": x}, texts, wrong, {"symbols": "-ab "})


def ranking() -> Problem:
    x, module = points(1)
    y = (x[:, 0] + x[:, 1] > 0).float()
    wrong = {
        r"received labels float32\[48, 2\]; expected \[48\] of 0 and 1": y[:, None].repeat(1, 2),
        "labels from -1 to 1; expected": 2 * y - 1,
    }
    return Problem(module, {"x": x}, y, wrong)


class Vae(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mean, self.log_variance, self.decoder = nn.Linear(8, 2), nn.Linear(8, 2), nn.Linear(2, 8)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        mean, log_variance = self.mean(x), self.log_variance(x)
        code = mean + torch.randn_like(mean) * (log_variance / 2).exp() if self.training else mean
        return {"reconstruction": self.decoder(code), "mean": mean, "log_variance": log_variance}


def autoencoder() -> Problem:
    x = torch.randn(SAMPLES, 2) @ torch.randn(2, 8)
    return Problem(Vae(), {"x": x}, None, {}, {"beta": 0.01}, needs_labels=False)


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.age, self.kind = nn.Linear(8, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"years": self.age(x), "kind": self.kind(x)}


def multi_task() -> Problem:
    easy = classification()
    x, kind = easy.inputs["x"], easy.targets
    rows = [{"age": x[i, 3].item(), "kind": int(kind[i])} for i in range(SAMPLES)]
    wrong = {
        "head kind: received Tensor targets; expected a dict with 'kind'": kind,
        "head kind: received a dict with age targets; expected a dict with 'kind'": [{"age": 1.0}] * SAMPLES,
        "head kind: .*labels from 3 to 3; expected 0 to 2": [{"age": 1.0, "kind": 3}] * SAMPLES,
    }
    heads = {
        "kind": {"task": "classification", "weight": 0.5},
        "age": {"task": "regression", "output": "years", "args": {"minimise": "huber"}},
    }
    return Problem(Heads(), {"x": x}, rows, wrong, {"heads": heads})


PROBLEMS: Mapping[str, Callable[[], Problem]] = {
    f.__name__: f
    for f in (
        classification, multi_label, segmentation, detection, regression, token_classification, ctc, ranking,
        autoencoder, multi_task,
    )
}  # fmt: skip


@pytest.fixture(params=list(TASKS))
def opened(request: pytest.FixtureRequest) -> tuple[Any, Problem]:
    """Every task of the table, with its problem."""
    torch.manual_seed(0)
    problem = PROBLEMS[request.param]()
    return open_task(TaskConfig(name=request.param, args=dict(problem.args))), problem


def trained(task: Any, problem: Problem, steps: int = 60) -> tuple[float, float]:
    """The loss before and after some steps of Adam on everything at once."""
    batch = problem.batches(SAMPLES)[0]
    optimizer = torch.optim.Adam(problem.module.parameters(), 0.1)
    losses = []
    for _ in range(steps):
        outputs = Outputs(named_outputs(problem.module(*problem.inputs.values())))
        task.check(outputs, batch)
        loss = task.loss(outputs, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[0], losses[-1]


def test_it_learns(opened):
    task, problem = opened
    before, after = trained(task, problem)
    assert after < 0.6 * before


def test_it_refuses_what_does_not_fit_and_says_what_was_received_and_expected(opened):
    task, problem = opened
    outputs = Outputs(named_outputs(problem.module(*problem.inputs.values())))
    if not problem.needs_labels:
        task.check(outputs, Batch(problem.inputs, None, SAMPLES))
    for message, targets in problem.wrong.items():
        with pytest.raises(ConfigError, match=message):
            task.check(outputs, Batch(problem.inputs, targets, SAMPLES))
    with pytest.raises(ConfigError, match=r"\[48, 1, 1, 1, 1\]|no output|for the input"):
        task.check(
            Outputs({"odd": torch.zeros(SAMPLES, 1, 1, 1, 1)}),
            Batch(problem.inputs, problem.targets, SAMPLES),
        )


def test_its_figures_are_those_it_tells_of_and_do_not_depend_on_the_batches(opened):
    task, problem = opened
    trained(task, problem, steps=5)
    figures, scores = evaluate(problem.module, Named(problem), problem.batches(7), task)
    whole, _ = evaluate(problem.module, Named(problem), problem.batches(SAMPLES), task)
    assert figures == pytest.approx(whole, abs=1e-6)
    known = figures_of(task)
    assert task.primary.name in figures and set(figures) <= set(known)
    assert all(
        0 <= value <= 1 for name, value in figures.items() if known[name].unit == "share" and name != "wer"
    )
    if scores is not None:
        assert len(scores) == SAMPLES
        assert scores.mean() == pytest.approx(figures[task.primary.name], rel=1e-6)


def test_its_worst_class_is_the_lowest_of_the_first_figure_by_class(opened):
    task, problem = opened
    metrics = task.metrics()
    with torch.no_grad():
        for batch in problem.batches(16):
            metrics.update(Outputs(named_outputs(problem.module(*batch.inputs.values()))), batch)
    worst = [value for name, value in metrics.compute().items() if name.endswith("worst_class")]
    if isinstance(metrics, ClassMetrics):
        assert min(next(iter(metrics.by_class().values())).values()) == worst[0]
    else:
        assert not worst


@pytest.mark.parametrize(
    "name", ["segmentation", "detection", "token_classification", "ctc", "autoencoder", "multi_task"]
)
def test_an_onnx_file_gives_the_same_figures(name: str, tmp_path: Path):
    """Those whose inputs, outputs or targets are of more than one tensor; also in pieces of a fixed batch size."""
    from deploycompress.graph.evaluation import evaluate_artifact
    from deploycompress.graph.export import export_onnx
    from deploycompress.runtimes.onnxruntime import OnnxRuntime

    torch.manual_seed(0)
    problem = PROBLEMS[name]()
    task, model = open_task(TaskConfig(name=name, args=dict(problem.args))), Named(problem)
    trained(task, problem, steps=40)
    problem.module.eval()
    figures, scores = evaluate(problem.module, model, problem.batches(20), task)
    path = tmp_path / "model.onnx"
    export_onnx(problem.module, model, path, feeds=[model.example(1), model.example(5)])
    for fixed in (None, 7):
        found = evaluate_artifact(OnnxRuntime(), path, {}, problem.batches(20), task, fixed)
        assert found.metrics == pytest.approx(figures, abs=1e-4)
        assert found.samples == SAMPLES
        assert (found.scores is None) == (scores is None)


def test_what_a_runtime_reads_is_checked_too(tmp_path: Path):
    from deploycompress.graph.evaluation import evaluate_artifact
    from deploycompress.graph.export import export_onnx
    from deploycompress.runtimes.onnxruntime import OnnxRuntime

    problem = classification()
    path = tmp_path / "model.onnx"
    model = Named(problem)
    export_onnx(problem.module, model, path, feeds=[model.example(1), model.example(5)])
    batch = Batch(problem.inputs, torch.arange(SAMPLES) % 4, SAMPLES)
    with pytest.raises(ConfigError, match="labels from 0 to 3; expected 0 to 2"):
        evaluate_artifact(OnnxRuntime(), path, {}, [batch.rows(0, 8)], open_task(TaskConfig()), None)


@pytest.mark.parametrize("task", [Segmentation, TokenClassification])
def test_label_smoothing_mixes_in_the_uniform_target_and_not_where_nothing_counts(task):
    """Two classes; of two places the second is ignored."""
    logits = torch.tensor([[math.log(3.0), 0.0], [5.0, 0.0]])  # [places, classes]
    ignored = task().ignore_index
    labels = torch.tensor([0, ignored])
    if task is Segmentation:
        outputs, targets = logits.T.reshape(1, 2, 1, 2), labels.reshape(1, 1, 2)
    else:
        outputs, targets = logits.reshape(1, 2, 2), labels.reshape(1, 2)
    batch = Batch({"x": torch.zeros(1, 1)}, targets, 1)
    smoothed = -0.8 * math.log(0.75) - 0.2 * (math.log(0.75) + math.log(0.25)) / 2
    assert float(task().loss(Outputs({"y": outputs}), batch)) == pytest.approx(-math.log(0.75))
    found = task(label_smoothing=0.2).loss(Outputs({"y": outputs}), batch)
    assert float(found) == pytest.approx(smoothed)
    with pytest.raises(ValueError, match=r"label_smoothing is 1\.0; expected 0 or more, and less than 1"):
        task(label_smoothing=1.0)


def test_a_task_of_the_users_own_has_to_be_one():
    with pytest.raises(ConfigError, match="without primary, check, loss, metrics; expected a task with"):
        open_task(TaskConfig(name="builtins:dict"))
    with pytest.raises(ConfigError, match="task sys:path is a list; expected a class or a function"):
        open_task(TaskConfig(name="sys:path"))
    own = open_task(
        TaskConfig(name="deploycompress.data.tasks.regression:Regression", args={"metric": "rmse"})
    )
    assert own.primary.name == "rmse"


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("regression", {"metric": "map"}, "metric 'map' is not defined for regression; expected one of mae, rmse, r2"),
        ("ctc", {"metric": "wer", "symbols": "-ab"}, "metric 'wer' is not defined for ctc without a space"),
        ("segmentation", {"metric": "f1"}, "expected one of miou, pixel_accuracy"),
        ("multi_task", {"heads": {"a": {"task": "regresion"}}}, "head a: unknown task 'regresion'"),
        ("multi_task", {"heads": {"a": {"task": "regression", "wait": 2}}}, "head a: received unknown wait"),
        ("multi_task", {"heads": {"a": {"task": "regression", "weight": 0}}}, "weight is 0; expected a number above 0"),
        ("multi_task", {"heads": {"a": {"task": "regression"}}, "metric": "a.f1"}, "expected one of a.mae, a.rmse"),
        ("autoencoder", {"minimise": "l7"}, "minimise is 'l7'; expected mse, bce"),
    ],
)  # fmt: skip
def test_a_metric_or_an_option_that_the_task_does_not_have(name, args, message):
    with pytest.raises(ConfigError, match=message):
        open_task(TaskConfig(name=name, args=args))


def test_texts_are_classified_from_dicts_by_a_transformers_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A data set of dicts, two inputs by name, and outputs that are a ModelOutput with more in it than logits."""
    from deploycompress.config.schema import DataConfig, ModelConfig
    from deploycompress.data.source import SourceData
    from deploycompress.model.source import SourceModel

    (tmp_path / "texts.py").write_text(
        "import torch\n"
        "from transformers import BertConfig, BertForSequenceClassification\n\n"
        "def build():\n"
        "    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)\n"
        "    config = BertConfig(**sizes, vocab_size=20, num_labels=3, output_hidden_states=True)\n"
        "    return BertForSequenceClassification(config)\n\n"
        "class Texts:\n"
        "    def __len__(self):\n"
        "        return 20\n\n"
        "    def __getitem__(self, i):\n"
        "        ids = torch.full((6,), i)\n"
        "        return {'input_ids': ids, 'attention_mask': torch.ones_like(ids), 'label': i % 3}\n\n"
        "def load():\n"
        "    return {'train': Texts(), 'test': Texts()}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    ids = InputSpec(shape=("batch", 6), dtype="int64", max=20)
    mask = InputSpec(shape=("batch", 6), dtype="int64", max=2)
    model = SourceModel(
        ModelConfig(build="texts:build", inputs={"attention_mask": mask, "input_ids": ids}), 0
    )
    data = SourceData(DataConfig(source="texts:load", batch_size=8), model, 0)
    module = model.build()
    task = open_task(TaskConfig(args={"classes": 3, "output": "logits"}))
    figures, scores = evaluate(module, model, data.loader("test"), task)
    assert len(scores) == 20 and scores.mean() == pytest.approx(figures["accuracy"])
    outputs = model.call(module, next(iter(data.loader("test"))).inputs)
    assert next(iter(outputs)) == "logits" and "hidden_states.0" in outputs
    with pytest.raises(
        ConfigError, match=r"the model has no output 'scores'; received logits, hidden_states\.0"
    ):
        evaluate(module, model, data.loader("test"), open_task(TaskConfig(args={"output": "scores"})))
