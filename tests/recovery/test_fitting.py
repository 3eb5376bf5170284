"""A loss is shown what the task judges, and one that has nothing to say of it is refused beforehand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from deploycompress.config.schema import TaskConfig
from deploycompress.contracts import Batch, Outputs
from deploycompress.data.open import open_task
from deploycompress.data.tasks.aspects import Aspect
from deploycompress.errors import ConfigError
from deploycompress.recovery.fitting import require_teaching
from deploycompress.recovery.losses.kd import SoftLabels
from deploycompress.recovery.losses.mse import SquaredDistance
from deploycompress.recovery.mixture import soft_terms
from deploycompress.recovery.mutual import MutualLearning
from deploycompress.recovery.objectives import Distillation
from deploycompress.recovery.recipe import Recipe
from deploycompress.recovery.teaching import Teaching
from deploycompress.recovery.training import fit

HEADS = {
    "kind": {"task": "classification", "target": "label"},
    "age": {"task": "regression", "weight": 0.5},
}


def outputs(seed: int) -> Outputs:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"embedding": (4, 6), "kind": (4, 3), "age": (4, 1)}
    return Outputs({name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()})


BATCH = Batch(
    {"x": torch.zeros(4, 1)}, {"label": torch.tensor([0, 1, 2, 0]), "age": torch.ones(4, 1)}, size=4
)


def task_of(name: str, **args: object):
    return open_task(TaskConfig(name=name, args=args))


def losses(*names: object):
    return Teaching(loss=names if len(names) > 1 else names[0]).open_loss()


def test_every_head_is_taught_by_its_weight():
    student, teacher = outputs(0), outputs(1)
    terms = soft_terms(losses("mse"), task_of("multi_task", heads=HEADS), student, teacher, BATCH)
    apart = {
        name: (student.tensors[name] - teacher.tensors[name]).square().mean() for name in ("kind", "age")
    }
    assert set(terms) == {"mse.kind", "mse.age"}
    assert torch.equal(terms["mse.kind"], apart["kind"]) and torch.equal(terms["mse.age"], 0.5 * apart["age"])


def test_a_loss_on_classes_is_asked_for_the_heads_that_have_some_and_with_their_labels():
    student, teacher = outputs(0), outputs(1)
    terms = soft_terms(losses("dkd", "mse"), task_of("multi_task", heads=HEADS), student, teacher, BATCH)
    assert set(terms) == {"dkd", "mse.kind", "mse.age"}
    unlabelled = replace(BATCH, targets=None)
    alone = soft_terms(losses("kd", "mse"), task_of("multi_task", heads=HEADS), student, teacher, unlabelled)
    pair = (Outputs({"kind": one.tensors["kind"]}) for one in (student, teacher))
    assert torch.equal(alone["kd"], SoftLabels()(*pair, unlabelled))


def test_the_output_that_the_task_reads_is_the_first():
    """Also for a loss of one's own, which is asked once, and finds the others behind it."""
    seen = []

    def own(student: Outputs, teacher: Outputs, batch: Batch) -> torch.Tensor:
        seen.append((list(student.tensors), list(teacher.tensors)))
        return student.main.sum()

    student, teacher = outputs(0), outputs(1)
    one = task_of("regression", output="age")
    found = soft_terms(SquaredDistance(), one, student, teacher, BATCH)
    assert torch.equal(found["loss"], (student.tensors["age"] - teacher.tensors["age"]).square().mean())
    soft_terms(own, one, student, teacher, BATCH)
    soft_terms(own, task_of("multi_task", heads=HEADS), student, teacher, BATCH)
    assert seen == [(["age", "embedding", "kind"],) * 2, (["kind", "embedding", "age"],) * 2]


def test_a_teacher_without_that_output_is_refused():
    teacher = Outputs({"embedding": torch.zeros(4, 6), "kind": torch.zeros(4, 3)})
    with pytest.raises(
        ConfigError, match="the task reads the output 'age', and the teacher has embedding, kind"
    ):
        soft_terms(SquaredDistance(), task_of("regression", output="age"), outputs(0), teacher, BATCH)


@pytest.mark.parametrize(
    ("loss", "task", "told"),
    [
        (
            "kd",
            task_of("regression"),
            "dimension 1 of an output, and the task regression has none; use loss: mse",
        ),
        ("dist", task_of("multi_label"), "has none; use loss: mse"),
        ("kd", task_of("ranking"), "has none; use loss: mse"),
        ("kd", task_of("autoencoder"), "has none; use loss: mse"),
        ("kd", task_of("detection"), "has none; use loss: mse"),
        ("kd", task_of("token_classification"), "has them elsewhere; use loss: token_kd"),
        ("dist", task_of("ctc"), "has them elsewhere; use loss: token_kd"),
        ("token_kd", task_of("classification"), "has them elsewhere; use loss: kd"),
        ("kd", task_of("multi_task", heads=HEADS), "kd says nothing of age, which the task MultiTask judges"),
    ],
)
def test_what_teaches_nothing_is_refused(loss, task, told):
    with pytest.raises(ConfigError, match=told):
        require_teaching(losses(loss), task)


def test_a_loss_for_pixels_is_not_asked_for_a_head_of_one_label_an_image():
    heads = {"mask": {"task": "segmentation"}, "kind": {"task": "classification"}}
    task, generator = task_of("multi_task", heads=heads), torch.Generator().manual_seed(0)
    student, teacher = (
        Outputs(
            {
                "kind": torch.randn(2, 3, generator=generator),
                "mask": torch.randn(2, 3, 4, 4, generator=generator),
            }
        )
        for _ in range(2)
    )
    batch = Batch(
        {"x": torch.zeros(2, 1)}, {"mask": torch.zeros(2, 4, 4).long(), "kind": torch.zeros(2).long()}, 2
    )
    assert set(soft_terms(losses("pixel_kd", "kd"), task, student, teacher, batch)) == {
        "pixel_kd",
        "kd.mask",
        "kd.kind",
    }
    with pytest.raises(ConfigError, match="pixel_kd says nothing of kind"):
        require_teaching(losses("pixel_kd"), task)


def test_a_loss_on_features_is_shown_them_whatever_is_judged():
    class OnFeatures:
        reads_features = True

        def __call__(self, student, teacher, batch):
            return (student.features["a"] - teacher.features["a"]).abs().mean()

    student, teacher = (
        Outputs({"other": torch.zeros(4, 1)}, {"a": torch.full((4, 2), v)}) for v in (1.0, 3.0)
    )
    found = soft_terms(OnFeatures(), task_of("multi_task", heads=HEADS), student, teacher, BATCH)
    assert set(found) == {"loss"} and float(found["loss"]) == 2.0


def test_aspects_without_a_name_are_summed():
    class TwoOutputs:
        aspects = (Aspect("kind", None), Aspect("age", None))

    student, teacher = outputs(0), outputs(1)
    (found,) = soft_terms(losses("mse"), TwoOutputs(), student, teacher, BATCH).values()
    parts = [(student.tensors[n] - teacher.tensors[n]).square().mean() for n in ("kind", "age")]
    assert torch.allclose(found, sum(parts))


@pytest.mark.parametrize(
    ("loss", "task"),
    [
        ("kd", task_of("classification")),
        ("pixel_kd", task_of("segmentation")),
        ("token_kd", task_of("ctc")),
        ("token_kd", task_of("detection", minimise="multibox")),
        ("mse", task_of("detection")),
        ("mse", task_of("multi_task", heads=HEADS)),
        ("features", task_of("regression")),
        ("kd", object()),  # a task of one's own says nothing of its outputs
    ],
)
def test_what_teaches_something_is_not(loss, task):
    require_teaching(losses(loss), task)


def test_one_class_teaches_nothing_whatever_the_task_says():
    one = Outputs({"y": torch.zeros(4, 1)})
    for name in ("kd", "dist", "dkd"):
        with pytest.raises(
            ConfigError, match=rf"loss {name}: the output is \[4, 1\], one class .* use loss: mse"
        ):
            soft_terms(losses(name), object(), one, one, BATCH)


def test_a_teacher_that_counts_for_nothing_is_not_asked(network, context):
    run, asked = context(), []
    teacher = network()
    teacher.register_forward_hook(lambda *_: asked.append(1))
    batch = run.data.loader("train", epoch=0)[0]
    labels_alone = Distillation(run.model, run.task, teacher, SoftLabels(), alpha=0.0)
    found = labels_alone(network(), batch)
    assert set(found) == {"task"} and not asked
    later = Distillation(run.model, run.task, teacher, SoftLabels(), alpha=0.0, final_alpha=0.5)
    later.progress(0.5)
    assert set(later(network(), batch)) == {"loss", "task"} and asked


def test_batch_normalisation_of_one_sample_is_named(network, context):
    def of_one(batch: Batch, number: int) -> Batch:
        return batch.rows(0, 1) if number == 3 else batch

    run = context(of_one)
    objective = Distillation(run.model, run.task, network(), SoftLabels())
    with pytest.raises(ConfigError, match=r"batch 4 of 6.*received a batch of one sample.*drop_last=True"):
        fit(network(), objective, Recipe(epochs=1), run)


def test_it_is_asked_before_the_first_step_and_not_where_the_labels_alone_count(network, context):
    run = replace(context(), task=task_of("regression"))
    batch = run.data.loader("train", epoch=0)[0]
    for kind in (Distillation, MutualLearning):
        with pytest.raises(ConfigError, match="the task regression has none; use loss: mse"):
            kind(run.model, run.task, network(), losses("kd"), 0.0, final_alpha=0.5).prepare(network(), batch)
    column = replace(batch, targets=torch.zeros(16, 3))
    Distillation(run.model, run.task, network(), losses("kd"), alpha=0.0).prepare(network(), column)
