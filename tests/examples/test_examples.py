"""The example networks: shapes, sizes, and what importing them costs."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from deploycompress.examples import clicks, cnn, detector, resnet, unet, vae


def test_resnet_maps_images_to_logits_at_any_batch_size():
    net = resnet.build(width=8).eval()
    for batch in (1, 3):
        assert net(torch.zeros(batch, 1, 32, 32)).shape == (batch, 10)


def test_resnet_has_the_size_that_the_quickstart_states():
    assert sum(p.numel() for p in resnet.build(width=32, depth=8).parameters()) == 308_074


@pytest.mark.parametrize(("depth", "convolutions"), [(8, 9), (14, 15), (20, 21)])
def test_resnet_depth_counts_its_layers(depth, convolutions):
    """Depth counts the linear layer and not the two 1x1 convolutions on shortcuts."""
    net = resnet.build(width=4, depth=depth)
    assert sum(isinstance(m, torch.nn.Conv2d) for m in net.modules()) == convolutions == depth - 1 + 2


def test_resnet_refuses_a_depth_that_is_none():
    with pytest.raises(ValueError, match=r"depth is 6n \+ 2 .* got 10"):
        resnet.build(depth=10)


def test_padded_shortcuts_have_no_weights_and_add_zeros_on_both_sides():
    """The published ResNet-56 of this form has 853,018 parameters (He et al., table 6: 0.85 M)."""
    net = resnet.build(width=16, depth=56, channels=3, shortcut="padding")
    assert sum(p.numel() for p in net.parameters()) == 853_018
    assert {name.split(".")[0] for name in net.state_dict()} == {
        *("conv1", "bn1", "layer1", "layer2", "layer3", "linear")
    }
    assert not [name for name in net.state_dict() if "shortcut" in name]
    x = torch.arange(1.0, 33.0).reshape(1, 2, 4, 4)
    padded = net.layer2[0].shortcut.__class__(stride=2, zeros=1)(x)
    assert padded.shape == (1, 4, 2, 2)
    assert padded[:, 1:3].equal(x[:, :, ::2, ::2]) and not padded[:, [0, 3]].any()


def test_resnet_refuses_a_shortcut_that_is_none():
    with pytest.raises(ValueError, match="shortcut is 'padded', expected projection or padding"):
        resnet.build(shortcut="padded")


def test_cnn_maps_images_to_logits_and_scales_with_width():
    assert cnn.build(width=8)(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert sum(p.numel() for p in cnn.build().parameters()) == 421_642


def test_unet_gives_a_class_for_every_pixel():
    net = unet.build(width=4, depth=3, classes=5).eval()
    for size in ((16, 24), (32, 8)):
        assert net(torch.zeros(2, 3, *size)).shape == (2, 5, *size)


def test_unet_sees_what_it_saw_on_the_way_down_at_every_size():
    """Every channel that comes up, and every one from beside, moves the answer."""
    net = unet.build(width=4, depth=3)
    net(torch.randn(2, 3, 16, 16)).square().sum().backward()
    for convolutions, width in zip(net.up, (16, 8, 4), strict=True):
        by_channel = convolutions[0].weight.grad.abs().sum((0, 2, 3))
        assert by_channel.shape == (3 * width,) and bool((by_channel > 0).all())


def test_the_small_detector_has_anchors_of_the_sizes_it_is_told_on_three_maps():
    found = detector.small(classes=3, width=4, sizes=(10, 20, 40)).eval()(torch.zeros(2, 3, 64, 96))
    each = [6 * (64 // stride) * (96 // stride) for stride in (8, 16, 32)]
    assert found["logits"].shape == (2, sum(each), 3)
    assert found["offsets"].shape == found["anchors"].shape == (2, sum(each), 4)
    low, high = found["anchors"][0].split(2, -1)
    sides = (high - low).prod(-1).sqrt().split(each)
    for size, some in zip((10, 20, 40), sides, strict=True):
        assert float(some.min()) == pytest.approx(size, rel=0.1)
        assert float(some.max()) == pytest.approx(size * 2**0.5, rel=0.1)


def test_a_click_has_one_logit_and_each_column_vectors_of_its_own():
    net = clicks.build(numbers=2, categories=3, buckets=5, vector=4, hidden=(8,)).eval()
    assert net(torch.zeros(6, 2), torch.zeros(6, 3, dtype=torch.int64)).shape == (6, 1)
    seen = []
    net.vectors.register_forward_pre_hook(lambda module, rows: seen.append(rows[0].tolist()))
    net(torch.zeros(3, 2), torch.tensor([[0, 0, 0], [1, 2, 4], [5, 6, 9]]))
    assert seen == [[[0, 5, 10], [1, 7, 14], [1, 7, 11]]], "0 apart; ids from 1 share the other four"
    with pytest.raises(ValueError, match=r"buckets is 1 and hidden \[8\]"):
        clicks.build(buckets=1, hidden=(8,))


def test_an_autoencoder_draws_its_code_in_training_alone():
    net = vae.build(width=4, latent=3)
    image = torch.randn(2, 1, 28, 28)
    found = net(image)
    assert {name: tuple(t.shape) for name, t in found.items()} == {
        "reconstruction": (2, 1, 28, 28), "mean": (2, 3), "log_variance": (2, 3)
    }  # fmt: skip
    assert not torch.equal(found["reconstruction"], net(image)["reconstruction"])
    net.eval()
    assert torch.equal(net(image)["reconstruction"], net(image)["reconstruction"])
    with pytest.raises(ValueError, match="image_size is 30; expected a multiple of 4"):
        vae.build(image_size=30)


def test_examples_need_torch_and_nothing_else():
    code = (
        "import sys, pkgutil, importlib, deploycompress.examples as all;"
        "[importlib.import_module(f'{all.__name__}.{m.name}') for m in pkgutil.iter_modules(all.__path__)];"
        "print([m for m in ('pydantic', 'sklearn', 'torchvision', 'onnx', 'accelerate') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
