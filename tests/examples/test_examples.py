"""The example networks: shapes, sizes, and what importing them costs."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from deploycompress.examples import cnn, resnet


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


def test_examples_need_torch_and_nothing_else():
    code = (
        "import sys; import deploycompress.examples.resnet, deploycompress.examples.cnn;"
        "print([m for m in ('pydantic', 'sklearn', 'torchvision', 'onnx', 'accelerate') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
