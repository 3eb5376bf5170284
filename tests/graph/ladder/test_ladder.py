"""Repairs of an INT8 file, each on a network that needs just that one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from deploycompress.graph.execution import run_onnx
from deploycompress.graph.export import export_onnx
from deploycompress.graph.ladder.bias_correction import correct_biases
from deploycompress.graph.ladder.climbing import Ladder, Recipe, distance
from deploycompress.graph.ladder.equalization import equalize
from deploycompress.graph.ladder.exclusion import _names, _profiled, layer_names, ranked, saved_ms
from deploycompress.graph.ladder.layers import Graph, layers
from deploycompress.graph.ladder.scales import scales_of
from deploycompress.graph.ladder.statistics import channel_statistics
from deploycompress.graph.quantization import quantize_onnx
from deploycompress.model.parity import compare

SCHEME = "s8s8"


class Unequal(nn.Module):
    """Channels of very different ranges between its layers: convolutions, a depthwise one, a normalisation."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.last = nn.Conv2d(8, 8, 1)
        self.norm = nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 4)
        with torch.no_grad():
            spread = torch.logspace(-2, 2, 8)
            for part in (self.first, self.depthwise):
                part.weight *= (
                    spread.flip(0).view(-1, 1, 1, 1) if part is self.depthwise else spread.view(-1, 1, 1, 1)
                )
            self.last.weight /= 3
            self.norm.weight *= spread
            self.up.weight /= spread

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        x = self.last(torch.relu(self.depthwise(x)))
        x = self.norm(x.mean((2, 3)))
        return self.down(torch.relu(self.up(x)))


@pytest.fixture(scope="module")
def unequal(tmp_path_factory, small) -> Path:
    model = small(Unequal(), image=("batch", 3, 12, 12))
    path = tmp_path_factory.mktemp("unequal") / "model.onnx"
    export_onnx(model.module, model, path, feeds=[model.example(2)])
    return path


@pytest.fixture(scope="module")
def feeds() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [{"image": rng.normal(size=(16, 3, 12, 12)).astype(np.float32)} for _ in range(8)]


def off(source: Path, candidate: Path, feeds) -> float:
    before, after = run_onnx(source, feeds), run_onnx(candidate, feeds)
    (name,) = before[0]
    return distance(np.concatenate([b[name] for b in before]), np.concatenate([a[name] for a in after]))


def test_statistics_are_those_of_each_channel(exported: Path, feeds) -> None:
    graph = Graph(onnx.load(exported).graph)
    second = list(layers(graph))[1]
    found = channel_statistics(exported, {second.reads: 1, "image": 1}, feeds)
    images = np.concatenate([feed["image"] for feed in feeds])
    np.testing.assert_allclose(found["image"].mean, images.mean((0, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(found["image"].largest, np.abs(images).max((0, 2, 3)))
    assert found[second.reads].mean.shape == (8,) and (found[second.reads].mean >= 0).all()


def test_equalised_channels_compute_the_same_and_survive_int8(unequal: Path, feeds, tmp_path: Path) -> None:
    equal = tmp_path / "equal.onnx"
    assert (
        equalize(unequal, equal, feeds) >= 3
    )  # what the depthwise, the pointwise and the linear layers read
    before, after = run_onnx(unequal, feeds), run_onnx(equal, feeds)
    assert max(compare(b, a).relative for b, a in zip(before, after, strict=True)) < 1e-4
    for source, name in ((unequal, "plain"), (equal, "better")):
        quantize_onnx(source, tmp_path / f"{name}.onnx", feeds, scheme=SCHEME)
    plain, better = (off(unequal, tmp_path / f"{name}.onnx", feeds) for name in ("plain", "better"))
    assert better < 0.5 * plain


def test_a_weight_that_two_layers_share_is_equalised_in_none_of_them_alone(tmp_path: Path, feeds) -> None:
    """Each gets its own: the other one goes on reading the old values."""
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 18]>
        net (float[batch, 4] x) => (float[batch, 4] y, float[batch, 4] z) {
            a = MatMul (x, w)
            h = Relu (a)
            y = MatMul (h, v)
            z = MatMul (x, w)
        }
    """)
    spread = np.float32([1, 10, 100, 0.1])
    for name, factor in (("w", spread), ("v", 1 / spread[:, None])):
        values = rng.normal(size=(4, 4)).astype(np.float32) * factor
        model.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float32), name))
    onnx.save(model, tmp_path / "shared.onnx")
    given = [{"x": rng.normal(size=(8, 4)).astype(np.float32)} for _ in range(4)]
    assert equalize(tmp_path / "shared.onnx", tmp_path / "equal.onnx", given) == 1
    before, after = run_onnx(tmp_path / "shared.onnx", given), run_onnx(tmp_path / "equal.onnx", given)
    assert max(compare(b, a).relative for b, a in zip(before, after, strict=True)) < 1e-5
    names = {t.name for t in onnx.load(tmp_path / "equal.onnx").graph.initializer}
    assert "w" in names and len(names) == 3


def test_a_corrected_bias_takes_out_the_mean_of_what_rounding_adds(tmp_path: Path) -> None:
    """One linear layer, inputs that are all positive: the whole error is a shift, by hand (W_q - W) E[x]."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(6, 32)).astype(np.float32)
    weight[:, 0] = 20.0  # one large weight: the others get few levels
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 18]>
        net (float[batch, 32] x) => (float[batch, 6] y) {
            y = Gemm <transB = 1> (x, w)
        }
    """)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(model, tmp_path / "plain.onnx")
    given = [{"x": (1 + rng.random((64, 32))).astype(np.float32)} for _ in range(4)]
    assert correct_biases(tmp_path / "plain.onnx", tmp_path / "corrected.onnx", given) == 1
    scale = np.abs(weight).max(1, keepdims=True) / 127
    mean = np.concatenate([g["x"] for g in given]).mean(0)
    expected = -((np.round(weight / scale) * scale - weight) @ mean)
    (bias,) = (t for t in onnx.load(tmp_path / "corrected.onnx").graph.initializer if t.name != "w")
    np.testing.assert_allclose(onnx.numpy_helper.to_array(bias), expected, rtol=1e-4, atol=1e-5)
    shifts = []
    for name in ("plain", "corrected"):
        quantize_onnx(tmp_path / f"{name}.onnx", tmp_path / f"{name}.int8.onnx", given, scheme=SCHEME)
        before, after = (
            run_onnx(tmp_path / "plain.onnx", given),
            run_onnx(tmp_path / f"{name}.int8.onnx", given),
        )
        errors = np.concatenate([a["y"] - b["y"] for b, a in zip(before, after, strict=True)])
        shifts.append(np.abs(errors.mean(0)).max())
    assert shifts[1] < 0.5 * shifts[0]


def test_scales_that_are_known_are_kept_exactly(unequal: Path, feeds, tmp_path: Path) -> None:
    first, again = tmp_path / "first.onnx", tmp_path / "again.onnx"
    quantize_onnx(unequal, first, feeds, scheme=SCHEME)
    scales = scales_of(first)
    assert len(scales) >= 4
    quantize_onnx(unequal, again, feeds[:1], scheme=SCHEME, scales=scales)
    assert {name: float(s[0]["scale"]) for name, s in scales_of(again).items()} == {
        name: float(s[0]["scale"]) for name, s in scales.items()
    }
    assert off(first, again, feeds) == 0.0


def test_the_layer_that_spoils_it_is_found(unequal: Path, feeds, tmp_path: Path) -> None:
    plain = tmp_path / "plain.onnx"
    quantize_onnx(unequal, plain, feeds, scheme=SCHEME)
    names = layer_names(unequal)
    assert len(names) == 5
    without = {}
    for name in names:
        path = tmp_path / f"without{len(without)}.onnx"
        quantize_onnx(unequal, path, feeds[:1], scheme=SCHEME, in_float=[name], scales=scales_of(plain))
        without[name] = off(unequal, path, feeds)
    order = ranked(names, without.__getitem__, off(unequal, plain, feeds), {}, lambda: True)
    assert order and without[order[0]] == min(without.values())
    costly = {order[0]: 1.0}  # a millisecond: what it gains is not worth that
    assert ranked(names, without.__getitem__, off(unequal, plain, feeds), costly, lambda: True)[0] != order[0]
    assert ranked(names, without.__getitem__, 1.0, {}, lambda: False) == []


def test_what_int8_saves_is_found_by_the_layers_names(exported: Path, feeds, tmp_path: Path) -> None:
    """Under the names that ONNX Runtime gives to what it has fused; a file beside itself saves nothing."""
    quantized = tmp_path / "quantized.onnx"
    quantize_onnx(exported, quantized, feeds, scheme=SCHEME)
    names = layer_names(exported)
    saved = saved_ms(exported, quantized, feeds[0], threads=1)
    assert set(saved) == set(names) and len(set(saved.values())) > len(names) / 2  # not the mean of all
    again = saved_ms(exported, exported, feeds[0], threads=1)
    assert max(map(abs, again.values())) < max(map(abs, saved.values())) + 0.05
    graph = Graph(onnx.load(exported).graph)
    times = _profiled(exported, feeds[0], 1)
    assert all(any(name in times for name in _names(layer, graph)) for layer in layers(graph))


@pytest.fixture
def climbed(unequal: Path, feeds, tmp_path: Path):
    """(allowed) -> the best file of a ladder from the plain one, the notes, and what the plain one loses."""
    first = tmp_path / "first.onnx"
    quantize_onnx(unequal, first, feeds, scheme=SCHEME)
    loses = off(unequal, first, feeds)

    def climb(allowed: float, **options):
        folder = tmp_path / f"{allowed}"
        folder.mkdir()
        ladder = Ladder(unequal, feeds, folder, lambda path: off(unequal, path, feeds), **options)
        return *ladder.climb(first, Recipe(SCHEME), loses, allowed * loses), loses, folder

    return climb


def test_the_ladder_ends_at_the_first_rung_that_is_enough(climbed) -> None:
    best, notes, loses, folder = climbed(0.3)
    assert best.lost <= 0.3 * loses and best.recipe.equalized and best.path.is_file()
    assert [note.message.split(" (")[0] for note in notes] == ["as configured", "calibrator", "equalisation"]
    assert not best.recipe.in_float
    # What was only compared is gone again: the rewritten source, what was tried, and the first file beside them.
    assert len(list(folder.iterdir())) <= 3


def test_what_nothing_helps_is_the_best_of_what_was_tried(climbed) -> None:
    best, notes, _, _ = climbed(-1.0)
    tried = [
        float(note.message.split("loses ")[1].split(",")[0]) for note in notes if note.kind == "decision"
    ]
    assert best.lost == pytest.approx(min(tried), rel=1e-3) and len(tried) >= 4


def test_a_rung_that_fails_is_passed_over(climbed, monkeypatch) -> None:
    def fails(*_: object, **__: object) -> int:
        raise ValueError("of no shape that it knows")

    monkeypatch.setattr("deploycompress.graph.ladder.climbing.equalize", fails)
    best, notes, loses, _ = climbed(-1.0)
    (skipped,) = (note for note in notes if note.kind == "skipped")
    assert skipped.message == "equalisation failed: ValueError: of no shape that it knows"
    assert best.lost <= loses and best.path.is_file()


def test_the_file_that_was_there_stays_where_nothing_is_better(unequal: Path, feeds, tmp_path: Path) -> None:
    first = tmp_path / "first.onnx"
    quantize_onnx(unequal, first, feeds, scheme=SCHEME)
    ladder = Ladder(unequal, feeds, tmp_path, lambda path: 0.5)
    best, _ = ladder.climb(first, Recipe(SCHEME), 0.2, 0.1)
    assert best.path == first and best.lost == 0.2


def test_scales_of_a_training_are_kept_on_every_rung(climbed, unequal: Path) -> None:
    """Only layers in FP32 are tried then: any other repair would make other weights of those that were trained."""
    second = [layer.reads for layer in layers(Graph(onnx.load(unequal).graph))][1]
    known = {second: [{"scale": np.array(0.5, np.float32), "zero_point": np.array(-128, np.int8)}]}
    best, notes, _, _ = climbed(-1.0, scales=known)
    assert not any(word in note.message for note in notes for word in ("calibrator", "equalis", "bias"))
    for note in notes[1:]:
        assert "layers in FP32" in note.message
    if best.recipe.in_float:
        assert float(scales_of(best.path)[second][0]["scale"]) == 0.5


def test_batches_of_other_lengths_do_not_end_it(tmp_path: Path) -> None:
    """As texts have them; histograms want one length, and are passed over."""
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 18]>
        net (float[batch, length, 8] x) => (float[batch, length, 4] y) {
            y = MatMul (x, w)
        }
    """)
    model.graph.initializer.append(
        onnx.numpy_helper.from_array(rng.normal(size=(8, 4)).astype(np.float32), "w")
    )
    onnx.save(model, tmp_path / "net.onnx")
    given = [{"x": rng.normal(size=(4, length, 8)).astype(np.float32)} for length in (3, 5, 7, 4, 6, 3)]
    quantize_onnx(tmp_path / "net.onnx", tmp_path / "int8.onnx", given, scheme=SCHEME)
    ladder = Ladder(tmp_path / "net.onnx", given, tmp_path, lambda path: 0.2)
    best, notes = ladder.climb(tmp_path / "int8.onnx", Recipe(SCHEME), 0.2, 0.1)
    assert best.lost == 0.2 and len(notes) >= 4


def test_channels_along_another_axis_are_left(tmp_path: Path) -> None:
    """As many channels as steps: what a convolution gives along axis 1 is not what a product reads along the last."""
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 18]>
        net (float[batch, 3, 18] x) => (float[batch, 16, 4] y) {
            h = Conv (x, w)
            r = Relu (h)
            y = MatMul (r, v)
        }
    """)
    for name, shape in (("w", (16, 3, 3)), ("v", (16, 4))):
        values = rng.normal(size=shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    onnx.save(model, tmp_path / "net.onnx")
    given = [{"x": rng.normal(size=(4, 3, 18)).astype(np.float32)}]
    assert equalize(tmp_path / "net.onnx", tmp_path / "equal.onnx", given) == 0
