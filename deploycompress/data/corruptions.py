"""Corrupted copies of a split's batches: what a camera, a lens or a microphone does to an input."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from deploycompress.contracts import Batch, Loader
from deploycompress.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SEED = 0  # the same corruption of the same sample for every artefact and in every run
SEVERITIES = 5

# By severity, 1 to 5. The first and third are shares of a sample's own standard deviation: what the data source
# gives is scaled already, to a range that is not known here. For images in 0..1 with the usual deviation of a
# quarter they are about those of Hendrycks, Dietterich, "Benchmarking Neural Network Robustness to Common
# Corruptions and Perturbations" (2019); the contrasts are theirs; blurs are shares of the shorter side, between
# their ones for 32 and for 224 pixels. Nothing is cut off at the ends of the range.
NOISE = (0.3, 0.5, 0.7, 1.0, 1.5)
BLUR = (0.010, 0.015, 0.020, 0.025, 0.030)
BRIGHTNESS = (0.4, 0.8, 1.2, 1.6, 2.0)
CONTRAST = (0.4, 0.3, 0.2, 0.1, 0.05)

Corruption = Callable[
    ["Tensor", int, "torch.Generator"], "Tensor"
]  # samples, severity from 0, random numbers


@dataclass(frozen=True)
class CorruptedLoader:
    """The batches of ``clean`` with every continuous input corrupted; targets stay.

    ``kind``: a key of CORRUPTIONS; ``severity``: 1 to 5. The order and size of the batches decide which random
    numbers a sample gets, so that two readings of one split are alike.
    """

    clean: Loader
    kind: str
    severity: int

    def __len__(self) -> int:
        return len(self.clean)

    def __iter__(self) -> Iterator[Batch]:
        import torch

        change = CORRUPTIONS[self.kind]
        for number, batch in enumerate(self.clean):
            generator = torch.Generator().manual_seed(SEED + number)
            continuous = require_continuous(batch.inputs, self.kind)
            changed = {
                name: change(tensor, self.severity - 1, generator) if name in continuous else tensor
                for name, tensor in batch.inputs.items()
            }
            yield replace(batch, inputs=changed)


def require_continuous(inputs: Mapping[str, Tensor], kind: str) -> list[str]:
    """The inputs that ``kind`` changes. Raises ConfigError where there is none."""
    found = [
        name
        for name, tensor in inputs.items()
        if tensor.is_floating_point() and (tensor.ndim == 4 or (kind == "noise" and tensor.ndim >= 2))
    ]
    if not found:
        received = ", ".join(
            f"{n} {str(t.dtype).removeprefix('torch.')}{list(t.shape)}" for n, t in inputs.items()
        )
        expected = "[batch, ...]" if kind == "noise" else "[batch, channels, height, width]"
        raise ConfigError(
            f"corruption {kind}: received the inputs {received}; expected one of real numbers {expected}: leave it out "
            "of benchmark.corruptions"
        )
    return found


def _noise(samples: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Gaussian."""
    import torch

    drawn = torch.randn(samples.shape, generator=generator).to(samples)
    return samples + NOISE[severity] * _deviation(samples) * drawn


def _blur(samples: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Gaussian, in both directions, with the border's values beyond it."""
    import torch
    import torch.nn.functional as F

    sigma = BLUR[severity] * min(samples.shape[-2:])
    reach = min(max(1, round(3 * sigma)), min(samples.shape[-2:]))
    at = torch.arange(-reach, reach + 1).to(samples)
    kernel = (-0.5 * (at / sigma).square()).exp()
    kernel = (kernel / kernel.sum()).repeat(samples.shape[1], 1, 1, 1)
    padded = F.pad(samples, (reach,) * 4, mode="replicate")
    across = F.conv2d(padded, kernel, groups=samples.shape[1])
    return F.conv2d(across, kernel.transpose(2, 3), groups=samples.shape[1])


def _brightness(samples: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    return samples + BRIGHTNESS[severity] * _deviation(samples)


def _contrast(samples: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Drawn together towards each channel's mean."""
    mean = samples.mean((-2, -1), keepdim=True)
    return mean + CONTRAST[severity] * (samples - mean)


def _deviation(samples: Tensor) -> Tensor:
    """Of each sample by itself, [batch, 1, ...]."""
    each = samples.flatten(1).std(1, correction=0)
    return each.reshape(-1, *[1] * (samples.ndim - 1))


CORRUPTIONS: Mapping[str, Corruption] = {
    "noise": _noise,
    "blur": _blur,
    "brightness": _brightness,
    "contrast": _contrast,
}
