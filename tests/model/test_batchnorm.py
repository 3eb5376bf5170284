"""Statistics are those of the data, and nothing else moves."""

import pytest
import torch
from torch import nn

from deploycompress.errors import StageFailed
from deploycompress.model.batchnorm import reestimate_batchnorm


def call(module, inputs):
    return module(inputs["x"])


def test_statistics_are_those_of_the_data():
    module = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5))
    module[0].momentum = 0.3
    module[0].running_mean.fill_(100)
    batches = [
        {"x": torch.randn(64, 3, generator=torch.Generator().manual_seed(i)) * 2 + 5} for i in range(4)
    ]
    reestimate_batchnorm(module, batches, call)
    means = torch.stack([b["x"].mean(0) for b in batches]).mean(0)
    variances = torch.stack([b["x"].var(0) for b in batches]).mean(0)
    assert torch.allclose(module[0].running_mean, means, atol=1e-5)
    assert torch.allclose(module[0].running_var, variances, atol=1e-4)
    assert module[0].momentum == 0.3
    assert not any(part.training for part in module.modules())
    assert all(p.grad is None for p in module.parameters())


def test_a_model_without_statistics_reads_no_data():
    def never():
        raise AssertionError
        yield

    reestimate_batchnorm(
        nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False)), never(), call
    )


def test_no_batch_is_an_error_and_not_a_silent_reset():
    with pytest.raises(StageFailed, match="without a batch"):
        reestimate_batchnorm(nn.Sequential(nn.BatchNorm1d(3)), [], call)


def test_a_failing_forward_leaves_evaluation_mode():
    module = nn.Sequential(nn.BatchNorm1d(3))
    with pytest.raises(StageFailed, match=r"from batches of one sample.*raise data.batch_size"):
        reestimate_batchnorm(module, [{"x": torch.ones(1, 3)}], call)
    assert not module[0].training and module[0].momentum == 0.1


def test_batches_count_by_their_samples_and_one_sample_alone_is_left_out():
    module = nn.Sequential(nn.BatchNorm1d(3))
    values = torch.randn(13, 3, generator=torch.Generator().manual_seed(0)) + 2
    reestimate_batchnorm(module, [{"x": values[12:]}, {"x": values[:8]}, {"x": values[8:12]}], call)
    torch.testing.assert_close(module[0].running_mean, values[:12].mean(0))
    spread = (8 * values[:8].var(0) + 4 * values[8:12].var(0)) / 12
    torch.testing.assert_close(module[0].running_var, spread)
    images = nn.Sequential(nn.BatchNorm2d(1))
    pictures = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    reestimate_batchnorm(images, [{"x": pictures[:1]}, {"x": pictures[1:]}], call)  # of many values each
    torch.testing.assert_close(images[0].running_mean, pictures.mean().reshape(1))
