"""What the zoo is made of: its suites, and each model's inputs, parameters and MACs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

MODELS = Path(__file__).with_name("zoo_models.py")
# torchvision's names begin with these; longer ones first.
FAMILIES = [
    "alexnet",
    "convnext",
    "densenet",
    "efficientnet_v2",
    "efficientnet",
    "googlenet",
    "inception",
    "maxvit",
    "mnasnet",
    "mobilenet",
    "regnet",
    "resnext",
    "resnet",
    "shufflenet",
    "squeezenet",
    "swin_v2",
    "swin",
    "vgg",
    "vit",
    "wide_resnet",
]
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
    """The models of one suite, cheap ones first."""
    return list(SUITES[suite]())


def _classification() -> Iterator[Entry]:
    import torchvision

    models = torchvision.models.list_models(module=torchvision.models)
    for name in sorted(models, key=_gmacs):
        size = OTHER_SIZES.get(name, 224)
        family = next(f for f in FAMILIES if name.startswith(f))
        yield Entry("torchvision-classification", f"torchvision:{name}", family, f"image=1x3x{size}x{size}")


def _gmacs(name: str) -> float:
    """Of torchvision's own measurement, at the size of its best weights."""
    import torchvision

    best = max(torchvision.models.get_model_weights(name), key=lambda weights: weights.meta["_ops"])
    return float(best.meta["_ops"])


def _segmentation() -> Iterator[Entry]:
    import torchvision

    models = torchvision.models.list_models(module=torchvision.models.segmentation)
    for name in sorted(models, key=_gmacs):
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
# The smallest model by parameters of every family (a file of timm/models), smallest first; timm 1.0.31.
TIMM: dict[str, str] = {
    "convnext": "test_convnext",
    "efficientnet": "test_efficientnet",
    "nfnet": "test_nfnet",
    "mambaout": "test_mambaout",
    "byobnet": "test_byobnet",
    "resnet": "test_resnet",
    "starnet": "starnet_s050",
    "maxxvit": "test_coatnet",
    "dla": "dla46x_c",
    "mobilevit": "mobilevit_xxs",
    "edgenext": "edgenext_xx_small",
    "mobilenetv3": "mobilenetv3_small_050",
    "vovnet": "ese_vovnet19b_slim_dw",
    "repghost": "repghostnet_050",
    "efficientvit_msra": "efficientvit_m0",
    "ghostnet": "ghostnet_050",
    "regnet": "regnetx_002",
    "cspnext": "cspnext_tiny",
    "iformer": "iformer_t",
    "xcit": "xcit_nano_12_p16_224",
    "cspnet": "cs3darknet_focus_s",
    "efficientvit_mit": "efficientvit_b0",
    "swiftformer": "swiftformer_xs",
    "efficientformer_v2": "efficientformerv2_s0",
    "pvt_v2": "pvt_v2_b0",
    "fasternet": "fasternet_t0",
    "fastvit": "fastvit_t8",
    "lcnetv2": "lcnetv2_small",
    "inception_next": "inception_next_atto",
    "rexnet": "rexnet_100",
    "pit": "pit_ti_224",
    "hardcorenas": "hardcorenas_b",
    "repvit": "repvit_m1",
    "eva": "vit_tiny_patch16_dinov3_qkvb",
    "coat": "coat_tiny",
    "vision_transformer": "vit_tiny_patch16_224",
    "convit": "convit_tiny",
    "deit": "deit_tiny_patch16_224",
    "mlp_mixer": "gmlp_ti16_224",
    "hgnet": "hgnetv2_b0",
    "vision_transformer_hybrid": "vit_tiny_r_s16_p8_224",
    "shvit": "shvit_s1",
    "cpubone": "cpubone_nano",
    "efficientvim": "efficientvim_m1",
    "crossvit": "crossvit_tiny_240",
    "levit": "levit_128s",
    "densenet": "densenet121",
    "byoanet": "halonet_h1",
    "dpn": "dpn48b",
    "visformer": "visformer_tiny",
    "resnest": "resnest14d",
    "csatv2": "csatv2",
    "resnetv2": "resnetv2_18",
    "senet": "legacy_seresnet18",
    "metaformer": "poolformerv2_s12",
    "cait": "cait_xxs24_224",
    "sknet": "skresnet18",
    "gcvit": "gcvit_xxtiny",
    "tiny_vit": "tiny_vit_5m_224",
    "efficientformer": "efficientformer_l1",
    "hrnet": "hrnet_w18_small",
    "lowformer": "lowformer_b0",
    "nest": "nest_tiny",
    "vision_transformer_relpos": "vit_relpos_small_patch16_224",
    "convmixer": "convmixer_768_32",
    "xception": "legacy_xception",
    "tnt": "tnt_s_legacy_patch16_224",
    "inception_v3": "inception_v3",
    "rdnet": "rdnet_tiny",
    "twins": "twins_svt_small",
    "mvitv2": "mvitv2_tiny",
    "res2net": "res2next50",
    "xception_aligned": "xception41",
    "volo": "volo_d1_224",
    "hieradet_sam2": "sam2_hiera_tiny",
    "sequencer": "sequencer2d_s",
    "hiera": "hiera_tiny_224",
    "swin_transformer": "swin_tiny_patch4_window7_224",
    "swin_transformer_v2_cr": "swinv2_cr_tiny_224",
    "swin_transformer_v2": "swinv2_tiny_window8_256",
    "davit": "davit_tiny",
    "focalnet": "focalnet_tiny_srf",
    "selecsls": "selecsls42",
    "tresnet": "tresnet_m",
    "nextvit": "nextvit_small",
    "inception_v4": "inception_v4",
    "inception_resnet_v2": "inception_resnet_v2",
    "mobilenetv5": "mobilenetv5_base",
    "pnasnet": "pnasnet5large",
    "naflexvit": "naflexvit_base_patch16_parfac_gap",
    "beit": "beit_base_patch16_224",
    "qwen3_vit": "qwen3_vit_88m",
    "nasnet": "nasnetalarge",
    "vision_transformer_sam": "samvit_base_patch16_224",
    "vitamin": "vitamin_small_224",
    "vgg": "vgg11",
    "gemma4_vit": "gemma4_vit_167m",
    "deepseek_vit": "deepseek_vit_412m",
}
