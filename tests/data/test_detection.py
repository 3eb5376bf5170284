"""The detection task against torchvision's own losses and post-processing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deploycompress.contracts import Batch, Outputs
from deploycompress.data.tasks.anchors import BACKGROUND, BETWEEN, decode, encode, match
from deploycompress.data.tasks.detection import Detection
from deploycompress.errors import ConfigError
from deploycompress.examples import detector

SIDE = 64
TARGETS = [
    {"boxes": torch.tensor([[3.0, 4, 30, 28], [36, 34, 60, 62]]), "labels": torch.tensor([1, 2])},
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    {"boxes": torch.tensor([[10.0, 30, 26, 62]]), "labels": torch.tensor([2])},
]


def answered(network: torch.nn.Module) -> tuple[Outputs, Batch]:
    """What the network says about three noisy images, with more than noise in its logits."""
    image = torch.randn(3, 3, SIDE, SIDE)
    with torch.no_grad():
        found = dict(network(image))
    found["logits"] = found["logits"] + 3 + 2 * torch.randn_like(found["logits"])
    found["offsets"] = found["offsets"] + 0.2 * torch.randn_like(found["offsets"])
    return Outputs(found), Batch({"image": image}, TARGETS, 3)


@pytest.fixture(scope="module")
def retinanet():
    from torchvision.models.detection import RetinaNet
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    torch.manual_seed(0)
    backbone = torch.nn.Conv2d(3, 8, 8, 8)
    backbone.out_channels = 8
    anchors = AnchorGenerator(sizes=((16, 28),), aspect_ratios=((0.5, 1.0, 2.0),))
    return RetinaNet(backbone, 3, anchor_generator=anchors, min_size=SIDE, max_size=SIDE).eval()


@pytest.fixture(scope="module")
def ssd():
    from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
    from torchvision.models.detection.ssd import SSD

    torch.manual_seed(0)
    backbone = torch.nn.Conv2d(3, 8, 8, 8)
    backbone.out_channels = [8]
    boxes = DefaultBoxGenerator([[2]], scales=[0.3, 0.5])
    return SSD(backbone, boxes, (SIDE, SIDE), 3).eval()


def test_focal_loss_is_retinanets(retinanet):
    outputs, batch = answered(detector.Dense(retinanet))
    task = Detection()
    task.check(outputs, batch)
    head = {"cls_logits": outputs.tensors["logits"], "bbox_regression": outputs.tensors["offsets"]}
    wanted = retinanet.compute_loss(TARGETS, head, list(outputs.tensors["anchors"]))
    assert float(task.loss(outputs, batch)) == pytest.approx(float(sum(wanted.values())), rel=1e-5)


def test_multibox_loss_is_ssds(ssd):
    outputs, batch = answered(detector.Dense(ssd))
    task = Detection(minimise="multibox", scale=(10, 5))
    task.check(outputs, batch)
    head = {"cls_logits": outputs.tensors["logits"], "bbox_regression": outputs.tensors["offsets"]}
    anchors = list(outputs.tensors["anchors"])
    matched = [
        ssd.proposal_matcher(_overlaps(t["boxes"], a)) if len(t["boxes"]) else torch.full((len(a),), -1)
        for t, a in zip(TARGETS, anchors, strict=True)
    ]
    wanted = ssd.compute_loss(TARGETS, head, anchors, matched)
    assert float(task.loss(outputs, batch)) == pytest.approx(float(sum(wanted.values())), rel=1e-5)


def _overlaps(boxes, anchors):
    from torchvision.ops import box_iou

    return box_iou(boxes, anchors)


def test_detections_are_those_of_torchvisions_post_processing(retinanet):
    outputs, batch = answered(detector.Dense(retinanet))
    task = Detection(score_threshold=0.6, most=20)
    retinanet.score_thresh, retinanet.nms_thresh, retinanet.detections_per_img = 0.6, 0.5, 20
    head = {"cls_logits": [outputs.tensors["logits"]], "bbox_regression": [outputs.tensors["offsets"]]}
    anchors = [[a] for a in outputs.tensors["anchors"]]
    wanted = retinanet.postprocess_detections(head, anchors, [(SIDE, SIDE)] * 3)
    for mine, theirs in zip(task.detections(outputs, batch), wanted, strict=True):
        assert 0 < len(mine["boxes"]) <= 20
        torch.testing.assert_close(mine["scores"], theirs["scores"])
        torch.testing.assert_close(mine["boxes"], theirs["boxes"])
        assert torch.equal(mine["labels"], theirs["labels"])


def perfect(boxes, labels, anchors, classes):
    """Logits and offsets that say exactly these boxes."""
    matched = match(boxes, anchors, 0.5, 0.4)
    logits = torch.full((len(anchors), classes), -9.0)
    own = matched >= 0
    logits[own, labels[matched[own]]] = 9
    offsets = torch.zeros(len(anchors), 4)
    offsets[own] = encode(boxes[matched[own]], anchors[own], (1, 1))
    return logits, offsets


def test_average_precision_of_exact_and_of_missed_boxes():
    corners = torch.tensor([[x, y] for x in (0.0, 16, 32) for y in (0.0, 16, 32)])
    anchors = torch.cat([corners, corners + 16], 1)
    said = [perfect(t["boxes"], t["labels"], anchors, 3) for t in TARGETS]
    said[2] = (torch.full((9, 3), -9.0), torch.zeros(9, 4))  # nothing found in the third image
    outputs = Outputs(
        {
            "logits": torch.stack([logits for logits, _ in said]),
            "offsets": torch.stack([offsets for _, offsets in said]),
            "anchors": anchors.expand(3, -1, -1),
        }
    )
    metrics = Detection().metrics()
    metrics.update(outputs, Batch({"image": torch.zeros(3, 3, SIDE, SIDE)}, TARGETS, 3))
    assert metrics.by_class() == {"ap": {"1": pytest.approx(1.0), "2": pytest.approx(0.5, abs=0.01)}}
    found = metrics.compute()
    assert found["map"] == pytest.approx(0.75, abs=0.01) and found["worst_class"] == pytest.approx(
        0.5, abs=0.01
    )
    assert metrics.scores() is None


def test_average_precision_is_torchmetrics():
    from torchmetrics.detection import MeanAveragePrecision

    from deploycompress.data.tasks.average_precision import average_precision

    torch.manual_seed(0)
    true, found = [], []
    for count in (3, 0, 5, 1, 7):
        corners, labels = 40 * torch.rand(count, 2), torch.randint(3, (count,))
        boxes = torch.cat([corners, corners + 5 + 15 * torch.rand(count, 2)], 1)
        true.append({"boxes": boxes, "labels": labels})
        moved = torch.cat([boxes + 2 * torch.randn(count, 4), boxes[:2] + 9])
        said = torch.cat([labels, torch.full((len(boxes[:2]),), 4)])  # a class that is nowhere true
        found.append({"boxes": moved, "labels": said, "scores": torch.rand(len(said))})
    # Its own thresholds are in float32, so that a recall of exactly 0.2 falls on the other side of one.
    recalls, overlaps = np.linspace(0, 1, 101).tolist(), np.linspace(0.5, 0.95, 10).tolist()
    wanted = MeanAveragePrecision(class_metrics=True, rec_thresholds=recalls, iou_thresholds=overlaps)
    wanted.update(found, true)
    figures = {k: v.tolist() for k, v in wanted.compute().items()}
    mine, classes = average_precision(found, true)
    assert mine == pytest.approx({name: figures[name] for name in ("map", "map_50", "map_75")}, abs=1e-6)
    each = dict(zip(map(str, figures["classes"]), figures["map_per_class"], strict=True))
    assert each.pop("4") == -1 and classes == pytest.approx(each, abs=1e-6)
    assert average_precision(found[1:2], true[1:2]) == ({}, {})


def test_offsets_and_boxes_are_inverse_and_matching_by_hand():
    boxes, anchors = torch.tensor([[2.0, 3, 9, 7]]), torch.tensor([[0.0, 0, 8, 8]])
    torch.testing.assert_close(decode(encode(boxes, anchors, (10, 5)), anchors, (10, 5)), boxes)
    anchors = torch.tensor([[0.0, 0, 8, 8], [0, 0, 8, 18], [0, 0, 4, 8], [50, 50, 58, 58]])
    assert match(torch.tensor([[0.0, 0, 8, 8]]), anchors, 0.6, 0.45).tolist() == [
        0,
        BACKGROUND,
        BETWEEN,
        BACKGROUND,
    ]
    # A box that nothing overlaps well still has the anchor that overlaps it most.
    assert match(torch.tensor([[48.0, 48, 52, 52]]), anchors, 0.6, 0.45)[3] == 0


def test_a_detector_of_another_form_is_refused():
    with pytest.raises(ValueError, match="fcos_resnet50_fpn is a FCOS; expected a RetinaNet or an SSD"):
        detector.torchvision("fcos_resnet50_fpn")
    processed = Outputs({"output_0.boxes": torch.zeros(3, 4), "output_0.scores": torch.zeros(3)})
    with pytest.raises(
        ConfigError,
        match=r"no output 'logits'; received output_0\.boxes.*deploycompress\.examples\.detector:torchvision",
    ):
        Detection().check(processed, Batch({}, TARGETS, 3))
