"""Every other loss against values computed by hand; masks, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch

from deploycompress.contracts import Batch, Outputs
from deploycompress.errors import ConfigError
from deploycompress.recovery.layers import Layer
from deploycompress.recovery.losses.attention import AttentionTransfer
from deploycompress.recovery.losses.cosine import Cosine
from deploycompress.recovery.losses.dist import Relations
from deploycompress.recovery.losses.dkd import DecoupledSoftLabels
from deploycompress.recovery.losses.features import Features
from deploycompress.recovery.losses.kd import SoftLabels
from deploycompress.recovery.losses.mse import SquaredDistance
from deploycompress.recovery.losses.pixel_kd import PixelSoftLabels
from deploycompress.recovery.losses.token_kd import TokenSoftLabels
from deploycompress.recovery.losses.weighted import Weighted, WeightedSum

NO_LABELS = Batch({}, None, 1)
DIVERGENCE = 0.1308120  # KL((3/4, 1/4) || (1/2, 1/2))
SURE = 2 * math.log(3)  # (SURE, 0) at T = 2 is (3/4, 1/4)


def out(values, features=None):
    return Outputs({"output": torch.as_tensor(values)}, features or {})


def test_dkd_by_hand_and_that_soft_labels_are_a_case_of_it():
    """Teacher (1/2, 1/4, 1/4), student (1/4, 1/2, 1/4), label 0, T = 1.

    Of the label against the rest KL((1/2, 1/2) || (1/4, 3/4)); of the others KL((1/2, 1/2) || (2/3, 1/3)).
    """
    teacher, student = out([[math.log(2), 0.0, 0.0]]), out([[0.0, math.log(2), 0.0]])
    label = Batch({}, torch.tensor([0]), 1)
    right = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    wrong = 0.5 * math.log(3 / 4) + 0.5 * math.log(3 / 2)
    loss = DecoupledSoftLabels(temperature=1.0, beta=2.0)(student, teacher, label)
    assert float(loss) == pytest.approx(right + 2 * wrong) == pytest.approx(0.261624, abs=1e-6)
    # The chain rule of the divergence: with beta = 1 - p_T,y it is the one of all classes, at any T with T^2.
    soft = SoftLabels(1.0)(student, teacher, label)
    same = DecoupledSoftLabels(temperature=1.0, beta=0.5)(student, teacher, label)
    assert float(same) == pytest.approx(float(soft))
    hot, doubled = DecoupledSoftLabels(2.0, 2.0), [out(2 * o.main) for o in (student, teacher)]
    assert float(hot(*doubled, label)) == pytest.approx(4 * float(loss))


@pytest.mark.parametrize(("classes", "temperature"), [(100, 4.0), (101, 1.0)])
@pytest.mark.parametrize(
    "kind", [SoftLabels, DecoupledSoftLabels, Relations, TokenSoftLabels, PixelSoftLabels]
)
def test_the_temperature_is_by_the_number_of_classes_where_none_is_given(kind, classes, temperature):
    axis = 2 if kind is TokenSoftLabels else 1
    shape = [3, 5, 2] if kind is not PixelSoftLabels else [3, 5, 2, 2]
    shape[axis] = classes
    student, teacher = (out(torch.randn(shape, generator=torch.Generator().manual_seed(n))) for n in (1, 2))
    labels = torch.zeros([n for place, n in enumerate(shape) if place != axis], dtype=torch.int64)
    batch = Batch({}, labels, 3)
    values = {t: float(kind(t)(student, teacher, batch)) for t in (None, 1.0, 4.0)}
    assert values[None] == values[temperature] and values[1.0] != pytest.approx(values[4.0])


def test_dkd_grows_over_its_warmup_and_needs_labels():
    teacher, student = out([[1.0, 0.0, 0.0]]), out([[0.0, 1.0, 0.0]])
    label, loss = Batch({}, torch.tensor([0]), 1), DecoupledSoftLabels(warmup=0.2)
    whole = float(loss(student, teacher, label))
    for done, share in ((0.0, 0.0), (0.05, 0.25), (0.2, 1.0), (0.9, 1.0)):
        loss.progress(done)
        assert float(loss(student, teacher, label)) == pytest.approx(share * whole)
    with pytest.raises(ConfigError, match=r"loss dkd: received no labels; expected class indices \[1\]"):
        loss(student, teacher, NO_LABELS)
    with pytest.raises(ConfigError, match=r"received labels float32\[1, 3\]; expected class indices \[1\]"):
        loss(student, teacher, Batch({}, torch.rand(1, 3), 1))


def test_dist_by_hand():
    """At T = 2 rows (3/4, 1/4) and (1/4, 3/4) against their opposites: every correlation is -1, so 1 - r is 2."""
    student, teacher = torch.tensor([[SURE, 0.0], [0.0, SURE]]), torch.tensor([[0.0, SURE], [SURE, 0.0]])
    loss = Relations(temperature=2.0, beta=1.0, gamma=0.5)
    assert float(loss(out(student), out(teacher), NO_LABELS)) == pytest.approx(4 * (2 + 0.5 * 2))
    assert float(loss(out(student), out(student), NO_LABELS)) == pytest.approx(0, abs=1e-5)
    # Of three classes and two samples each correlation by itself, and which of the two it is.
    p = torch.tensor([[0.2, 0.1, 0.7], [0.5, 0.4, 0.1]])
    q = torch.tensor([[0.5, 0.1, 0.4], [0.4, 0.5, 0.1]])

    def apart(rows, others):
        pairs = zip(rows, others, strict=True)
        return sum(1 - float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in pairs) / len(rows)

    samples = Relations(temperature=1.0, gamma=0.0)(out(p.log()), out(q.log()), NO_LABELS)
    classes = Relations(temperature=1.0, beta=0.0)(out(p.log()), out(q.log()), NO_LABELS)
    assert float(samples) == pytest.approx(apart(p, q), abs=1e-5)
    assert float(classes) == pytest.approx(apart(p.T, q.T), abs=1e-5)
    assert abs(float(samples) - float(classes)) > 0.1


def test_mse_and_cosine_by_hand():
    assert float(SquaredDistance()(out([[1.0, 2.0]]), out([[3.0, 5.0]]), NO_LABELS)) == pytest.approx(6.5)
    loss = Cosine()(out([[1.0, 0.0], [2.0, 0.0]]), out([[1.0, 1.0], [7.0, 0.0]]), NO_LABELS)
    assert float(loss) == pytest.approx((1 - 1 / math.sqrt(2) + 0) / 2)
    with pytest.raises(
        ConfigError, match=r"loss mse: the student's output is \[1, 2\] and the teacher's \[2\]"
    ):
        SquaredDistance()(out([[1.0, 2.0]]), out([3.0, 5.0]), NO_LABELS)


def test_cosine_of_hidden_states_leaves_padding_out():
    """Two tokens with an angle of 45 and of 90 degrees."""
    layers = {"layer": Layer((1, 2, 2), 2)}
    student = out([0.0], {"layer": torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])})
    teacher = out([0.0], {"layer": torch.tensor([[[1.0, 1.0], [0.0, 3.0]]])})
    masked = Batch({"mask": torch.tensor([[1, 0]])}, None, 1)
    slope = 1 - 1 / math.sqrt(2)
    for mask, expected in ((None, (slope + 1) / 2), ("mask", slope)):
        loss = Cosine({"layer": "layer"}, mask)
        assert loss.reads_features and [p.student for p in loss.attach(layers, layers)] == ["layer"]
        assert float(loss(student, teacher, masked)) == pytest.approx(expected)
    with pytest.raises(ConfigError, match=r"mask 'mask': received the inputs x; expected an input \[1, 2\]"):
        loss(student, teacher, Batch({"x": torch.ones(1, 2)}, None, 1))
    with pytest.raises(
        ConfigError, match=r"layer of the student is 2 wide and layer of the teacher 3; .*features"
    ):
        loss.attach(layers, {"layer": Layer((1, 2, 3), 2)})
    assert not Cosine().reads_features
    with pytest.raises(ValueError, match="mask is 'mask', which is of hidden states"):
        Cosine(mask="mask")


def tokens(second):
    """Two tokens of one sample, the second with these teacher logits: [1, 2, 2]."""
    return out([[[0.0, 0.0], [0.0, 0.0]]]), out([[[SURE, 0.0], second]])


def test_padding_has_no_say_in_the_tokens_loss():
    student, teacher = tokens([50.0, -50.0])
    mask = {"attention_mask": torch.tensor([[1, 0]])}
    loss = TokenSoftLabels(temperature=2.0)
    assert float(loss(student, teacher, Batch(mask, None, 1))) == pytest.approx(4 * DIVERGENCE, rel=1e-5)
    ignored = Batch({}, torch.tensor([[1, -100]]), 1)
    assert float(loss(student, teacher, ignored)) == pytest.approx(4 * DIVERGENCE, rel=1e-5)
    # Without padding both count, and a token weighs the same in a short sample and in a long one.
    both = float(TokenSoftLabels(2.0, mask=None)(*tokens([0.0, 0.0]), NO_LABELS))
    assert both == pytest.approx(2 * DIVERGENCE, rel=1e-5)
    nothing = Batch({"attention_mask": torch.tensor([[0, 0]])}, None, 1)
    assert float(loss(student, teacher, nothing)) == 0.0


def test_padding_that_nothing_tells_is_refused():
    student, teacher = tokens([0.0, 0.0])
    with pytest.raises(
        ConfigError, match=r"which tokens are padding is not known: the batch has the inputs ids"
    ):
        TokenSoftLabels()(student, teacher, Batch({"ids": torch.ones(1, 2)}, torch.tensor([0]), 1))
    with pytest.raises(ConfigError, match=r"the input attention_mask is \[1, 3\]; expected \[1, 2\]"):
        TokenSoftLabels()(student, teacher, Batch({"attention_mask": torch.ones(1, 3)}, None, 1))


def test_ignored_pixels_have_no_say():
    """[1, 2 classes, 1, 2 pixels]; the second pixel is far off, and ignored."""
    student = out(torch.zeros(1, 2, 1, 2))
    teacher = out(torch.tensor([[[[SURE, 50.0]], [[0.0, -50.0]]]]))
    loss = PixelSoftLabels(temperature=2.0)
    labelled = Batch({}, torch.tensor([[[1, 255]]]), 1)
    assert float(loss(student, teacher, labelled)) == pytest.approx(4 * DIVERGENCE, rel=1e-5)
    other = float(PixelSoftLabels(2.0, ignore_index=1)(student, teacher, labelled))
    everywhere = float(loss(student, teacher, NO_LABELS))
    assert everywhere == pytest.approx((4 * DIVERGENCE + other) / 2, rel=1e-5) and other > 2
    with pytest.raises(ConfigError, match=r"received labels \[1, 4\]; expected \[1, 1, 2\]"):
        loss(student, teacher, Batch({}, torch.zeros(1, 4, dtype=torch.int64), 1))


def test_features_by_hand_with_an_adapter_only_where_the_width_changed():
    layers = {"same": Layer((1, 2), 1), "narrow": Layer((1, 2), 1)}
    wide = {"same": Layer((1, 2), 1), "narrow": Layer((1, 3), 1)}
    loss = Features({"same": "same", "narrow": "narrow"})
    loss.attach(layers, wide)
    assert [tuple(p.shape) for p in loss.trainable.parameters()] == [(3, 2), (3,)]
    with torch.no_grad():
        loss.trainable[0].weight.copy_(torch.tensor([[1.0, 1.0], [2.0, 0.0], [0.0, 0.0]]))
        loss.trainable[0].bias.copy_(torch.tensor([0.0, 0.0, 1.0]))
    student = out([0.0], {"same": torch.tensor([[1.0, 2.0]]), "narrow": torch.tensor([[1.0, 2.0]])})
    teacher = out([0.0], {"same": torch.tensor([[3.0, 2.0]]), "narrow": torch.tensor([[3.0, 2.0, 4.0]])})
    # (2^2 + 0) / 2 = 2; the adapter gives (3, 2, 1): (0 + 0 + 3^2) / 3 = 3; their mean
    assert float(loss(student, teacher, NO_LABELS).detach()) == pytest.approx((2 + 3) / 2)
    loss = Features({"same": "same"})
    loss.attach(layers, wide)
    assert loss.trainable is None


def test_an_adapter_maps_channels_at_every_position():
    loss = Features({"c": "c"})
    loss.attach({"c": Layer((2, 3, 4, 5), 1)}, {"c": Layer((2, 6, 4, 5), 1)})
    s, t = torch.randn(2, 3, 4, 5), torch.randn(2, 6, 4, 5)
    adapter = loss.trainable[0]
    mapped = torch.nn.functional.conv2d(s, adapter.weight[:, :, None, None], adapter.bias)
    expected = (mapped - t).square().mean()
    assert torch.allclose(loss(out([0.0], {"c": s}), out([0.0], {"c": t}), NO_LABELS), expected)


def test_attention_by_hand_whatever_the_widths():
    """Maps (1, 4) / sqrt(17) and (1, 0): squared differences ((1/sqrt(17) - 1)^2 + 16/17) / 2 = 1 - 1/sqrt(17)."""
    loss = AttentionTransfer({"c": "c"})
    loss.attach({"c": Layer((1, 1, 1, 2), 1)}, {"c": Layer((1, 2, 1, 2), 1)})
    student, teacher = torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[2.0, 0.0]], [[-1.0, 0.0]]]])
    found = loss(out([0.0], {"c": student}), out([0.0], {"c": teacher}), NO_LABELS)
    assert float(found) == pytest.approx(1 - 1 / math.sqrt(17))


def test_a_weighted_sum_tells_its_terms_and_anneals_temperatures():
    student, teacher = out([[0.0, 0.0]]), out([[SURE, 0.0]])
    soft = SoftLabels(2.0)
    both = WeightedSum({"kd": Weighted(soft, 0.5), "mse": Weighted(SquaredDistance(), 3.0)}, 1.0)
    terms = both.terms(student, teacher, NO_LABELS)
    assert float(terms["kd"]) == pytest.approx(0.5 * 4 * DIVERGENCE, rel=1e-5)
    assert float(terms["mse"]) == pytest.approx(3 * SURE**2 / 2, rel=1e-5)
    assert float(both(student, teacher, NO_LABELS)) == pytest.approx(sum(map(float, terms.values())))
    for done, temperature in ((0.0, 2.0), (0.5, 1.5), (1.0, 1.0)):
        both.progress(done)
        assert soft.temperature == temperature
