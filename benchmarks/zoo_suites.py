"""What the zoo is made of: its suites, and each model's inputs, parameters and MACs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

MODELS = Path(__file__).with_name("zoo_models.py")
# torchvision's names begin with these; longer ones first.
FAMILIES = (
    "alexnet convnext densenet efficientnet_v2 efficientnet googlenet inception maxvit mnasnet mobilenet "
    "regnet resnext resnet shufflenet squeezenet swin_v2 swin vgg vit wide_resnet"
).split()
OTHER_SIZES = {"inception_v3": 299, "vit_h_14": 224, "swin_v2_t": 256, "swin_v2_s": 256, "swin_v2_b": 256}


@dataclass(frozen=True)
class Entry:
    """One model: how it is built, and ``--input`` of the probe."""

    suite: str
    build: str
    family: str
    inputs: str = "image=1x3x224x224"

    @property
    def name(self) -> str:
        return self.build.rpartition(":")[2]


def entries(suite: str) -> list[Entry]:
    """The models of one suite, in the order of their names."""
    return list(SUITES[suite]())


def _classification() -> Iterator[Entry]:
    import torchvision

    for name in torchvision.models.list_models(module=torchvision.models):
        size = OTHER_SIZES.get(name, 224)
        family = next(f for f in FAMILIES if name.startswith(f))
        yield Entry(
            "torchvision-classification", f"torchvision:{name}", family, f"image=1x3x{size}x{size}"
        )


def _segmentation() -> Iterator[Entry]:
    import torchvision

    for name in torchvision.models.list_models(module=torchvision.models.segmentation):
        yield Entry("torchvision-segmentation", f"torchvision:{name}", name.partition("_")[0])


def _detection() -> Iterator[Entry]:
    for name, size in (
        ("fasterrcnn_mobilenet_v3_large_320_fpn", 320),
        ("fasterrcnn_resnet50_fpn", 320),
        ("fcos_resnet50_fpn", 320),
        ("retinanet_resnet50_fpn_v2", 320),
        ("ssd300_vgg16", 300),
        ("ssdlite320_mobilenet_v3_large", 320),
    ):
        build = f"{MODELS}:{name}"
        yield Entry("torchvision-detection-backbones", build, name.partition("_")[0], f"x=1x3x{size}x{size}")


def _timm() -> Iterator[Entry]:
    for family, name in TIMM.items():
        import timm

        channels, height, width = timm.get_pretrained_cfg(name).input_size
        yield Entry("timm-families", f"timm:{name}", family, f"x=1x{channels}x{height}x{width}")


def _transformers() -> Iterator[Entry]:
    for name, inputs in (
        ("bert", "x=1x64:int64:2000"),
        ("distilbert", "x=1x64:int64:2000"),
        ("gpt2", "x=1x64:int64:2000"),
        ("vit", "x=1x3x96x96"),
        ("whisper_encoder", "x=1x80x300"),
        ("wav2vec2", "x=1x8000"),
    ):
        yield Entry("transformers", f"{MODELS}:{name}", name, inputs)


def _other() -> Iterator[Entry]:
    for name, inputs in (
        ("lstm_classifier", "x=1x50x40"),
        ("gru_classifier", "x=1x50x40"),
        ("conv_vae", "x=1x3x64x64"),
    ):
        yield Entry("other", f"{MODELS}:{name}", name, inputs)


SUITES: dict[str, Callable[[], Iterator[Entry]]] = {
    "torchvision-classification": _classification,
    "torchvision-segmentation": _segmentation,
    "torchvision-detection-backbones": _detection,
    "timm-families": _timm,
    "transformers": _transformers,
    "other": _other,
}
TIMM: dict[str, str] = {}
