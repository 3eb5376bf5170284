"""A convolutional variational autoencoder for small images."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def _narrower(channels_in: int, channels_out: int, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    ]


class Autoencoder(nn.Module):
    """Two halvings to a code of ``latent`` numbers and two doublings back (Kingma, Welling, "Auto-Encoding Variational
    Bayes", 2014, appendix C, with convolutions).

    In training the code is drawn at random from what the encoder says; in use it is the mean of that, so that the same
    image always gives the same answer and the exported network draws nothing.
    """

    def __init__(self, width: int, latent: int, channels: int, image_size: int) -> None:
        super().__init__()
        if image_size % 4:
            raise ValueError(f"image_size is {image_size}; expected a multiple of 4")
        side = image_size // 4
        self.encoder = nn.Sequential(
            *_narrower(channels, width, 1),
            *_narrower(width, 2 * width, 2),
            *_narrower(2 * width, 2 * width, 2),
            nn.Flatten(),
        )
        self.mean = nn.Linear(2 * width * side**2, latent)
        self.log_variance = nn.Linear(2 * width * side**2, latent)
        self.decoder = nn.Sequential(
            nn.Unflatten(1, (latent, 1, 1)),
            nn.ConvTranspose2d(latent, 2 * width, side),  # a linear layer to side x side, by channel
            nn.ReLU(),
            nn.Upsample(scale_factor=2, mode="nearest"),
            *_narrower(2 * width, 2 * width, 1),
            nn.Upsample(scale_factor=2, mode="nearest"),
            *_narrower(2 * width, width, 1),
            nn.Conv2d(width, channels, 3, padding=1),
        )

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """[batch, channels, side, side] -> ``reconstruction`` of that shape, ``mean``, ``log_variance`` [batch, latent]."""
        features = self.encoder(image)
        mean, log_variance = self.mean(features), self.log_variance(features)
        code = mean
        if self.training:  # equation 10: mean + deviation * noise
            code = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        return {"reconstruction": self.decoder(code), "mean": mean, "log_variance": log_variance}


def build(width: int = 24, latent: int = 16, channels: int = 1, image_size: int = 28) -> Autoencoder:
    """An untrained network for square images."""
    return Autoencoder(width, latent, channels, image_size)
