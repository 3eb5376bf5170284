"""What distill is told: losses with arguments, teachers and students, read without a framework."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from deploycompress.errors import ConfigError
from deploycompress.recovery.losses.attention import AttentionTransfer
from deploycompress.recovery.losses.dkd import DecoupledSoftLabels
from deploycompress.recovery.losses.kd import SoftLabels
from deploycompress.recovery.teaching import Teaching
from deploycompress.registry import LOSSES

STUDENT = {"build": "timm:mobilenetv3_small_100", "args": {"num_classes": 3}}


def test_a_loss_is_a_name_or_a_name_with_arguments_or_a_sum():
    (kd,) = Teaching(temperature=2.0).open_loss().parts.values()
    assert isinstance(kd.loss, SoftLabels) and (kd.weight, kd.loss.temperature) == (1.0, 2.0)
    several = Teaching(
        loss=["kd", {"attention": {}}, {"dkd": {"weight": 2, "beta": 0.5, "temperature": 1.0}}]
    )
    parts = several.open_loss().parts
    assert list(parts) == ["kd", "attention", "dkd"]
    assert isinstance(parts["attention"].loss, AttentionTransfer) and parts["attention"].weight == 1000
    dkd = parts["dkd"].loss
    assert isinstance(dkd, DecoupledSoftLabels) and (dkd.beta, dkd.temperature) == (0.5, 1.0)
    assert parts["kd"].loss.temperature is None, "by the number of classes"
    assert parts["dkd"].weight == 2.0 and list(Teaching(loss=["kd", "kd"]).open_loss().parts) == [
        "kd",
        "kd_2",
    ]


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_made_by_its_name_alone(name):
    (part,) = Teaching(loss=name).open_loss().parts.values()
    assert part.weight > 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"loss": {"dkd": {"betta": 1}}}, "dkd: unknown argument 'betta'; did you mean 'beta'"),
        ({"loss": {"dkd": {"beta": -1}}}, "dkd: beta is -1; expected 0 or more"),
        ({"loss": {"dkd": {"beta": "a lot"}}}, "dkd: "),
        ({"loss": {"kd": {"weight": 0}}}, "kd: weight is 0; expected a number above 0"),
        ({"loss": {"kd": {"weight": True}}}, "kd: weight is True; expected a number above 0"),
        ({"loss": {"features": {"layers": ["a"]}}}, r"features: layers: expected \{student layer: teacher layer\}"),
        ({"loss": []}, "at least 1"),
        ({"loss": {"kd": {}, "dkd": {}}}, "at most 1"),
        ({"joint": True, "alpha": 1}, "joint: two networks that only follow each other learn nothing"),
        ({"anneal": {"temperature": 1}}, "anneal.temperature: expected the temperature that it starts from"),
        ({"joint": True, "anneal": {"alpha": 1}}, "joint: two networks that only follow"),
        ({"joint": True, "teacher": ["original", "train"]}, "joint: expected one teacher that can be trained"),
        ({"joint": True, "teacher": "/x/teacher.onnx"}, "joint: expected one teacher that can be trained"),
        ({"joint": True, "teacher_memory": {"cpu": "1 GB"}}, "teacher_memory: expected a network that only answers; one"),
        ({"teacher": "/x/teacher.onnx", "teacher_memory": "auto"}, "teacher_memory: .* an ONNX file runs on the CPU"),
        ({"teacher_memory": {"gpu": "1 GB"}}, "teacher_memory"),
        ({"teacher": {"args": {}}}, "build"),
        ({"teacher": ["original", {"build": "timm:resnet18"}]}, "teacher: timm:resnet18 has no weights"),
        ({"combine": "median"}, "confidence"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_when_it_is_read(given, message):
    with pytest.raises(ValidationError, match=message):
        Teaching(**given)


def test_a_loss_of_ones_own_that_cannot_be_made_says_why(tmp_path):
    own = tmp_path / "own_loss.py"
    own.write_text("def broken(depth):\n    raise ValueError('no such thing')\n")
    with pytest.raises(
        ConfigError, match=r"distill.loss .*own_loss.py:broken could not be made: no such thing"
    ):
        Teaching(loss={f"{own}:broken": {"depth": 1}}).open_loss()
    with pytest.raises(ConfigError, match=r"could not be made: .*depth"):
        Teaching(loss=f"{own}:broken").open_loss()


def test_a_loss_of_ones_own_is_given_a_temperature_in_any_case(tmp_path):
    own = tmp_path / "own_loss.py"
    own.write_text("def scaled(temperature):\n    return lambda student, teacher, batch: temperature\n")
    for given, expected in ({}, 4.0), ({"temperature": 2.0}, 2.0):
        (part,) = Teaching(loss=f"{own}:scaled", **given).open_loss().parts.values()
        assert part.loss(None, None, None) == expected


def test_an_untrained_teacher_may_be_trained_beside_the_student_or_load_its_weights_itself():
    assert Teaching(joint=True, teacher={"build": "timm:resnet18"}).networks()
    assert Teaching(teacher={"build": "own.py:trained"}, student={"build": "timm:resnet18"}).networks()


def test_the_source_teaches_a_student_of_another_build():
    assert Teaching().teachers() == ("original",)
    assert Teaching(student=STUDENT).teachers() == ("last",)
    chosen = Teaching(
        student=STUDENT, teacher=["train", {"build": "timm:resnet18", "args": {"pretrained": True}}]
    )
    assert [network.build for network in chosen.networks()] == [STUDENT["build"], "timm:resnet18"]
    again = Teaching.model_validate(chosen.model_dump(mode="json"))
    assert again == chosen
