"""Where boxes and classes come from when none are given: region proposals and the box head (§7)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import batched_nms
from writing import clip_boxes

from transfiner_refine.errors import CheckpointError
from transfiner_refine.official.checkpoint import fill, fit
from transfiner_refine.official.features import ImageFeatures
from transfiner_refine.official.read import TensorFile

__all__ = [
    "DETECTOR_NAMES",
    "BoxHead",
    "Detections",
    "Detector",
    "ProposalNetwork",
    "Proposals",
    "decode_boxes",
    "load_detector",
]

_SIZES = (32.0, 64.0, 128.0, 256.0, 512.0)  # sides of the anchors on p2 … p6, pixels
_STRIDES = (4, 8, 16, 32, 64)
_RATIOS = (0.5, 1.0, 2.0)  # height over width
_LARGEST_STEP = math.log(1000 / 16)  # of a predicted size
_PROPOSALS = 1000  # a level before, and all levels after the suppression
_PROPOSAL_OVERLAP = 0.7
_BOX_GRID = 7
_BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
_LEAST_SCORE = 0.05
_BOX_OVERLAP = 0.5
_DETECTIONS = 100


def decode_boxes(boxes: Tensor, deltas: Tensor, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """Boxes moved and resized by predicted steps.

    Args:
        boxes: [n, 4] XYXY.
        deltas: [n, …, 4] steps of the centre in box sides, and of the logarithm of width and height.
        weights: what the steps are divided by.

    Returns:
        [n, …, 4] XYXY.
    """
    boxes = boxes.view(len(boxes), *(1,) * (deltas.ndim - 2), 4)
    size = boxes[..., 2:] - boxes[..., :2]
    centre = boxes[..., :2] + 0.5 * size
    deltas = deltas / deltas.new_tensor(weights)
    centre = centre + deltas[..., :2] * size
    size = size * deltas[..., 2:].clamp(max=_LARGEST_STEP).exp()
    return torch.cat((centre - 0.5 * size, centre + 0.5 * size), -1)


@dataclass(frozen=True)
class Proposals:
    """Boxes that may hold an object, of one image: ``boxes`` [n, 4] XYXY pixels, ``logits`` [n], falling."""

    boxes: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Detections:
    """Objects of one image: ``boxes`` [n, 4] XYXY pixels, ``scores`` [n] falling, ``classes`` [n] int64."""

    boxes: Tensor
    scores: Tensor
    classes: Tensor


class ProposalNetwork(nn.Module):
    """RPN (Ren et al. 2015) on p2 … p6.

    Args:
        width: channels of the features.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Conv2d(width, width, 3, padding=1)
        self.objectness = nn.Conv2d(width, len(_RATIOS), 1)
        self.deltas = nn.Conv2d(width, 4 * len(_RATIOS), 1)

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """p2 … p5 → objectness logits [B, 3, H, W] and deltas [B, 12, H, W] of p2 … p6."""
        maps = [*maps, F.max_pool2d(maps[-1], 1, 2)]
        hidden = [F.relu(self.hidden(each)) for each in maps]
        return [self.objectness(each) for each in hidden], [self.deltas(each) for each in hidden]

    def propose(self, maps: list[Tensor], sizes: Sequence[tuple[int, int]]) -> list[Proposals]:
        """The best boxes of each image, inside its (height, width) without the padding."""
        logits, deltas = self(maps)
        result = []
        for image, (height, width) in enumerate(sizes):
            boxes, scores, levels = [], [], []
            for level, (logit, delta) in enumerate(zip(logits, deltas, strict=True)):
                rows = logit.shape[2:]
                score = logit[image].permute(1, 2, 0).flatten().float()
                best, index = score.topk(min(_PROPOSALS, len(score)))
                step = delta[image].permute(1, 2, 0).reshape(-1, 4).float()
                anchors = _anchors(level, rows[0], rows[1], score.device)
                boxes.append(decode_boxes(anchors[index], step[index]))
                scores.append(best)
                levels.append(torch.full_like(index, level))
            clipped, kept = clip_boxes(torch.cat(boxes), height, width)
            clipped, score, place = clipped[kept], torch.cat(scores)[kept], torch.cat(levels)[kept]
            chosen = batched_nms(clipped, score, place, _PROPOSAL_OVERLAP)[:_PROPOSALS]
            result.append(Proposals(clipped[chosen], score[chosen]))
        return result


def _anchors(level: int, height: int, width: int, device: torch.device) -> Tensor:
    """[height · width · 3, 4] boxes in the order row, column, ratio."""
    shapes = []
    for ratio in _RATIOS:
        w = math.sqrt(_SIZES[level] ** 2 / ratio)
        h = ratio * w
        shapes.append([-w / 2, -h / 2, w / 2, h / 2])
    y = torch.arange(height, device=device) * _STRIDES[level]
    x = torch.arange(width, device=device) * _STRIDES[level]
    y, x = torch.meshgrid(y, x, indexing="ij")
    centre = torch.stack((x, y, x, y), 2).view(-1, 1, 4)
    return (centre + torch.tensor(shapes, device=device)).view(-1, 4)


class BoxHead(nn.Module):
    """Fast R-CNN's head: class and class-specific box from a box's features.

    Args:
        inputs: channels of the features.
        width: hidden channels.
        classes: number of classes K.
    """

    def __init__(self, inputs: int, width: int, classes: int) -> None:
        super().__init__()
        self.hidden = nn.ModuleList((nn.Linear(inputs * _BOX_GRID**2, width), nn.Linear(width, width)))
        self.classify = nn.Linear(width, classes + 1)
        self.deltas = nn.Linear(width, 4 * classes)

    def forward(self, image: ImageFeatures, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """N boxes → features [N, width], class logits [N, K + 1], background last, and deltas [N, K, 4]."""
        hidden = torch.cat([image.pooled(box, _BOX_GRID) for box in boxes]).flatten(1)
        for layer in self.hidden:
            hidden = F.relu(layer(hidden))
        deltas = self.deltas(hidden)
        return hidden, self.classify(hidden).float(), deltas.float().view(len(hidden), -1, 4)

    def detect(self, image: ImageFeatures, proposals: Tensor, size: tuple[int, int]) -> Detections:
        """The best detections of one image of ``size`` (height, width), from its proposals [N, 4]."""
        _, logits, deltas = self(image, proposals)
        scores = logits.softmax(1)[:, :-1]  # [N, K]
        boxes = decode_boxes(proposals, deltas, _BOX_WEIGHTS)  # [N, K, 4]
        proposal, classes = (scores > _LEAST_SCORE).nonzero(as_tuple=True)
        scores = scores[proposal, classes]
        boxes, _ = clip_boxes(boxes[proposal, classes], *size)
        best = batched_nms(boxes, scores, classes, _BOX_OVERLAP)[:_DETECTIONS]
        return Detections(boxes[best], scores[best], classes[best])


#: The release's name of each layer → ours.
_LAYERS = {
    "proposal_generator.rpn_head.conv": "rpn.hidden",
    "proposal_generator.rpn_head.objectness_logits": "rpn.objectness",
    "proposal_generator.rpn_head.anchor_deltas": "rpn.deltas",
    "roi_heads.box_head.fc1": "box.hidden.0",
    "roi_heads.box_head.fc2": "box.hidden.1",
    "roi_heads.box_predictor.cls_score": "box.classify",
    "roi_heads.box_predictor.bbox_pred": "box.deltas",
}
#: The release's name of each tensor → ours, as ``fill`` takes them.
DETECTOR_NAMES = {f"{a}.{part}": [f"{b}.{part}"] for a, b in _LAYERS.items() for part in ("weight", "bias")}


class Detector(nn.Module):
    """Both together: ``width`` channels of features, ``hidden`` of the box head, number of classes."""

    def __init__(self, width: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.rpn, self.box = ProposalNetwork(width), BoxHead(width, hidden, classes)


def load_detector(file: TensorFile) -> Detector:
    """RPN and box head of a checkpoint, in float32 on the CPU, in evaluation mode.

    Raises:
        CheckpointError: the file does not hold them, as converted files do not.
    """
    missing = [name for name in DETECTOR_NAMES if name not in file.tensors]
    if missing:
        raise CheckpointError(
            f"the file lacks {missing[0]}",
            file=file.path,
            remedy="finding boxes needs the authors' original file; a converted one refines given boxes only",
        )
    architecture = fit(file).architecture
    with torch.device("meta"):
        hidden = len(file.tensors["roi_heads.box_head.fc1.weight"])
        detector = Detector(architecture.fpn_width, hidden, architecture.classes)
    fill(detector, file.tensors, DETECTOR_NAMES)
    return detector.eval()
