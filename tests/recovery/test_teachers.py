"""Teachers: ONNX files, several at once by weight, and what a teacher that does not fit is told."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from deploycompress.contracts import Batch, Outputs
from deploycompress.errors import ConfigError
from deploycompress.recovery.teachers import FileTeacher, NetworkTeacher, Several, open_teacher

WEIGHTS = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)


@pytest.fixture
def file_of(tmp_path):
    """(name of the input, its first dimension) -> an ONNX file that multiplies by WEIGHTS."""

    def make(name="x", batch="batch"):
        graph = helper.make_graph(
            [helper.make_node("MatMul", [name, "w"], ["logits"])],
            "linear",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 8])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 3])],
            [numpy_helper.from_array(WEIGHTS, "w")],
        )
        path = tmp_path / "teacher.onnx"
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.save(model, path)
        return path

    return make


class Says:
    """Answers the same, whatever it is asked."""

    def __init__(self, logits, features=None):
        self.logits, self.features = torch.tensor(logits), features or {}

    def layers(self, batch):
        return dict(self.features)

    def answer(self, batch, paths):
        return Outputs({"logits": self.logits}, {path: self.features[path] for path in paths})


@pytest.mark.parametrize("name", ["x", "another_name"])
def test_an_onnx_file_answers_batches_of_any_size(file_of, name):
    teacher = FileTeacher(file_of(name))
    for size in (4, 1, 7):
        x = torch.randn(size, 8)
        answer = teacher.answer(Batch({"x": x}, None, size), ()).main
        assert torch.allclose(answer, x @ torch.from_numpy(WEIGHTS), atol=1e-5)


def test_an_onnx_file_that_does_not_fit_is_refused(file_of, tmp_path):
    with pytest.raises(
        ConfigError, match=r"teacher.onnx: it takes batches of 4 only; expected a dynamic first"
    ):
        FileTeacher(file_of(batch=4))
    teacher = FileTeacher(file_of())
    with pytest.raises(ConfigError, match=r"teacher.onnx does not run on a batch of x float32\[2, 5\]"):
        teacher.answer(Batch({"x": torch.zeros(2, 5)}, None, 2), ())
    two = {"ids": torch.zeros(2, 8), "mask": torch.zeros(2, 8)}
    with pytest.raises(ConfigError, match=r"it wants the inputs x; the batch has ids, mask"):
        teacher.answer(Batch(two, None, 2), ())
    with pytest.raises(ConfigError, match=r"an ONNX file gives outputs and no features"):
        teacher.layers(Batch(two, None, 2))
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(ConfigError, match=r"broken.onnx"):
        FileTeacher(tmp_path / "broken.onnx")


def test_the_mean_of_several():
    both = Several([Says([[2.0, 0.0]]), Says([[0.0, 4.0]])])
    assert both.answer(Batch({}, None, 1), ()).main.tolist() == [[1.0, 2.0]]


def test_confidence_by_hand():
    """On the label's class the teachers say 1/2 and 1/4: exp(cross-entropy) is 2 and 4, the weights 2/3 and 1/3."""
    half, quarter = [[math.log(2.0), 0.0, 0.0]], [[0.0, math.log(2.0), 0.0]]
    both = Several([Says(half), Says(quarter)], "confidence")
    answer = both.answer(Batch({}, torch.tensor([0]), 1), ()).main
    expected = 2 / 3 * torch.tensor(half) + 1 / 3 * torch.tensor(quarter)
    assert torch.allclose(answer, expected, atol=1e-6)
    # Without labels each is as sure as it is of its own class: 1/2 both.
    unlabelled = both.answer(Batch({}, None, 1), ()).main
    assert torch.allclose(unlabelled, (torch.tensor(half) + torch.tensor(quarter)) / 2, atol=1e-6)


def test_confidence_at_every_position_with_ignored_labels():
    a, b = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    labels = torch.full((2, 4, 4), 255)
    answer = Several([Says(a.tolist()), Says(b.tolist())], "confidence").answer(Batch({}, labels, 2), ()).main
    assert answer.shape == a.shape
    sure = [x.softmax(1).amax(1) for x in (a, b)]
    share = 1 - (1 / sure[0]) / (1 / sure[0] + 1 / sure[1])
    assert torch.allclose(answer, share.unsqueeze(1) * a + (1 - share).unsqueeze(1) * b, atol=1e-5)


@pytest.mark.parametrize("labelled", [True, False])
def test_confidence_at_every_token(labelled):
    """Classes are the last dimension there, and a label below zero is none."""
    a, b = torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    labels = torch.tensor([[0, 2, -100, 1], [1, 1, 0, -100]]) if labelled else None
    answer = Several([Says(a.tolist()), Says(b.tolist())], "confidence").answer(Batch({}, labels, 2), ()).main
    for sample in range(2):
        for token in range(4):
            own = [x[sample, token].softmax(0) for x in (a, b)]
            label = -100 if labels is None else int(labels[sample, token])
            sure = [p.max() if label < 0 else p[label] for p in own]
            share = 1 - (1 / sure[0]) / (1 / sure[0] + 1 / sure[1])
            expected = share * a[sample, token] + (1 - share) * b[sample, token]
            assert torch.allclose(answer[sample, token], expected, atol=1e-5)


def test_a_network_answers_in_float32_in_mixed_precision_too(network, context):
    run = context()
    with torch.autocast("cpu", torch.bfloat16):
        answer = NetworkTeacher(run.model, network()).answer(Batch({"x": run.data.x[:5]}, None, 5), ()).main
    assert answer.dtype == torch.float32


def test_features_are_the_first_ones_and_shapes_have_to_agree():
    first = Says([[1.0, 2.0]], {"layer1": torch.ones(1, 4)})
    both = Several([first, Says([[3.0, 4.0]])])
    assert set(both.answer(Batch({}, None, 1), ["layer1"]).features) == {"layer1"}
    with pytest.raises(
        ConfigError, match=r"the teachers' outputs are \[1, 2\], \[1, 3\]; expected the same shape"
    ):
        Several([first, Says([[1.0, 2.0, 3.0]])]).answer(Batch({}, None, 1), ())


def test_every_output_of_several_is_combined():
    class Two:
        def __init__(self, value):
            self.value = value

        def answer(self, batch, paths):
            whole = torch.tensor([int(self.value)] * 2)
            return Outputs(
                {"a": torch.full((2, 3), self.value), "b": torch.full((2,), self.value), "n": whole}
            )

    for combine in ("mean", "confidence"):
        found = Several([Two(1.0), Two(3.0)], combine).answer(Batch({"x": torch.zeros(2, 1)}, None, 2), ())
        assert [found.tensors[name][0].tolist() for name in "abn"] == [[2.0] * 3, 2.0, 1]


def test_of_several_outputs_the_shared_ones_are_combined_by_name():
    class Gives:
        def __init__(self, **tensors):
            self.tensors = {name: torch.full(shape, value) for name, (shape, value) in tensors.items()}

        def answer(self, batch, paths):
            return Outputs(self.tensors)

    one = Gives(logits=((2, 3), 1.0), embedding=((2, 8), 1.0))
    other = Gives(embedding=((2, 4), 3.0), logits=((2, 3), 3.0))
    found = Several([one, other]).answer(Batch({"x": torch.zeros(2, 1)}, None, 2), ())
    assert list(found.tensors) == ["logits"] and float(found.main[0, 0]) == 2.0


def test_networks_and_files_together(file_of, network, context):
    run = context()
    x = run.data.x[:5]
    teacher = open_teacher(run.model, [network(), file_of()], "mean")
    batch = Batch({"x": x}, None, 5)
    alone = NetworkTeacher(run.model, network()).answer(batch, ()).main
    expected = (alone + x @ torch.from_numpy(WEIGHTS)) / 2
    assert torch.allclose(teacher.answer(batch, ()).main, expected, atol=1e-5)
