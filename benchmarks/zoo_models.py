"""Models of the zoo that no registry builds by name: small, with random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class First(nn.Module):
    """A transformers model that gives back its first output alone, from its first input."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.model(x, return_dict=True)[0]
        return found


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
    return First(BertForSequenceClassification(BertConfig(**sizes, vocab_size=2000)))


def distilbert() -> nn.Module:
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    config = DistilBertConfig(dim=256, n_layers=4, n_heads=4, hidden_dim=1024, vocab_size=2000)
    return First(DistilBertForSequenceClassification(config))


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_embd=256, n_layer=4, n_head=4, vocab_size=2000, n_positions=128, use_cache=False)
    return First(GPT2LMHeadModel(config))


def vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 768}
    return First(ViTForImageClassification(ViTConfig(**sizes, image_size=96)))


def whisper_encoder() -> nn.Module:
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    return First(
        WhisperEncoder(
            WhisperConfig(
                d_model=192,
                encoder_layers=3,
                encoder_attention_heads=3,
                encoder_ffn_dim=768,
                max_source_positions=150,
            )
        )
    )


def wav2vec2() -> nn.Module:
    from transformers import Wav2Vec2Config, Wav2Vec2ForSequenceClassification

    config = Wav2Vec2Config(
        hidden_size=192,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=768,
        conv_dim=(128, 128, 128, 128),
        conv_stride=(5, 4, 4, 4),
        conv_kernel=(10, 8, 4, 4),
        num_feat_extract_layers=4,
        num_conv_pos_embeddings=31,
        num_conv_pos_embedding_groups=4,
    )
    return First(Wav2Vec2ForSequenceClassification(config))


class Recurrent(nn.Module):
    """Frames [N, 50, 40] -> classes, with convolutions before and linear layers after the recurrence."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.Conv1d(40, 128, 5, padding=2), nn.ReLU(), nn.Conv1d(128, 128, 3))
        self.recurrent = kind(128, 64, num_layers=1, batch_first=True)
        self.after = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 12))

    def forward(self, x: Tensor) -> Tensor:
        frames = torch.relu(self.before(x.transpose(1, 2))).transpose(1, 2)
        found: Tensor = self.after(self.recurrent(frames)[0][:, -1])
        return found


def lstm_classifier() -> nn.Module:
    return Recurrent(nn.LSTM)


def gru_classifier() -> nn.Module:
    return Recurrent(nn.GRU)


class ConvVae(nn.Module):
    """Images [N, 3, 64, 64] -> reconstruction, mean and log-variance of the code; the code is its mean."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 32, 4, 2, 1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 4, 2, 1),
            nn.ReLU(),
            nn.Conv2d(64, 128, 4, 2, 1),
            nn.ReLU(),
        )
        self.mean, self.log_variance = nn.Linear(128 * 64, 64), nn.Linear(128 * 64, 64)
        self.expand = nn.Linear(64, 128 * 64)
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(128, 64, 4, 2, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(64, 32, 4, 2, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(32, 3, 4, 2, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        seen = self.encoder(x).flatten(1)
        mean = self.mean(seen)
        code = torch.relu(self.expand(mean)).view(x.shape[0], -1, 8, 8)
        return {
            "reconstruction": self.decoder(code),
            "mean": mean,
            "log_variance": self.log_variance(seen),
        }


class Pyramid(nn.Module):
    """The backbone of a detection model: images -> feature maps by name."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.backbone: Any = detector.backbone

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self.backbone(x)
        return found


def _pyramid(name: str) -> nn.Module:
    from torchvision.models import get_model

    return Pyramid(get_model(name, weights=None, weights_backbone=None))


def conv_vae() -> nn.Module:
    return ConvVae()


def fasterrcnn_resnet50_fpn() -> nn.Module:
    return _pyramid("fasterrcnn_resnet50_fpn")


def fasterrcnn_mobilenet_v3_large_320_fpn() -> nn.Module:
    return _pyramid("fasterrcnn_mobilenet_v3_large_320_fpn")


def fcos_resnet50_fpn() -> nn.Module:
    return _pyramid("fcos_resnet50_fpn")


def retinanet_resnet50_fpn_v2() -> nn.Module:
    return _pyramid("retinanet_resnet50_fpn_v2")


def ssd300_vgg16() -> nn.Module:
    return _pyramid("ssd300_vgg16")


def ssdlite320_mobilenet_v3_large() -> nn.Module:
    return _pyramid("ssdlite320_mobilenet_v3_large")
