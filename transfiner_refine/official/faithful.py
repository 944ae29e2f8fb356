"""Faithful mode: the release's masks from given boxes and classes, or from the image alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from transfiner_refine.errors import CheckpointError
from transfiner_refine.official.config import NODE_GRIDS, FaithfulOptions, Preparation
from transfiner_refine.official.detector import Detections, Detector
from transfiner_refine.official.images import prepare
from transfiner_refine.official.network import ImageFeatures, OfficialNetwork
from transfiner_refine.official.nodes import select_nodes
from transfiner_refine.official.quadtree import QuadtreeLevel
from transfiner_refine.official.regions import Regions
from transfiner_refine.official.writing import blur, clip_boxes, paste_masks, write_back

__all__ = ["FaithfulMasks", "HeadOutput", "OfficialPredictor", "run_head"]


@dataclass(frozen=True)
class HeadOutput:
    """What the mask branch says of N boxes, of which the first n are refined.

    Attributes:
        coarse_logits: [N, 28, 28] of each box's class.
        incoherence: [n, 28, 28] probabilities.
        levels: the nodes of the n boxes.
        labels: [m] foreground probability of each level's nodes.
        probability: [N, 112, 112], final.
    """

    coarse_logits: Tensor
    incoherence: Tensor
    levels: list[QuadtreeLevel]
    labels: list[Tensor]
    probability: Tensor


@dataclass(frozen=True)
class FaithfulMasks:
    """The masks of one image.

    Attributes:
        index: [M] int64, which of the given boxes each mask belongs to; those outside the image are left out.
        boxes: [M, 4] XYXY float32 in the image, clipped to it.
        masks: [M, height, width] bool.
        classes: [M] int64.
        scores: [M] float32; None where boxes were given.
    """

    index: NDArray[np.int64]
    boxes: NDArray[np.float32]
    masks: NDArray[np.bool_]
    classes: NDArray[np.int64]
    scores: NDArray[np.float32] | None = None


def run_head(
    network: OfficialNetwork, regions: Regions, classes: Tensor, options: FaithfulOptions
) -> HeadOutput:
    """The mask branch on boxes of a batch, image after image.

    Args:
        network: the network.
        regions: N boxes.
        classes: [N] int64, class index of each box.
        options: the release's peculiarities.
    """
    if len(regions) == 0:
        return _nothing(regions.boxes)
    context = regions.context()
    hidden = network.coarse.hidden(context)
    logits = network.coarse.logits(hidden, classes)
    count = len(regions) if options.limit is None else min(options.limit, len(regions))
    u = torch.sigmoid(network.incoherence(context[:count], hidden[:count]))
    levels = select_nodes(u, dilate_finest=options.demo)
    coarse = torch.sigmoid(logits)
    labels = network.label(regions.first(count), context[:count], coarse[:count], levels)
    refined = write_back(coarse[:count], levels, labels, skip_empty_level=options.skip_empty_level)
    if options.demo:
        refined = blur(refined)
    rest = F.interpolate(coarse[count:, None], refined.shape[-2:], mode="bilinear", align_corners=False)
    return HeadOutput(logits, u, levels, labels, torch.cat((refined, rest[:, 0])))


def _nothing(like: Tensor) -> HeadOutput:
    """The output for a batch without boxes."""
    coarse, finest = (
        like.new_zeros(0, NODE_GRIDS[0], NODE_GRIDS[0]),
        like.new_zeros(0, NODE_GRIDS[-1], NODE_GRIDS[-1]),
    )
    levels = select_nodes(coarse)
    return HeadOutput(coarse, coarse, levels, [like.new_zeros(0) for _ in levels], finest)


class OfficialPredictor:
    """The release's inference.

    Args:
        network: from ``load_official_network``.
        detector: from ``load_detector``; needed only where no boxes are given.
        options: peculiarities of the release, all off by default (``FaithfulOptions.evaluation()`` for its
            published numbers).
        preparation: size and colours of the input, None for the release's.
    """

    def __init__(
        self,
        network: OfficialNetwork,
        detector: Detector | None = None,
        *,
        options: FaithfulOptions | None = None,
        preparation: Preparation | None = None,
    ) -> None:
        self.network, self.detector = network, detector
        self.options = options or FaithfulOptions()
        self.preparation = preparation or Preparation.of(network.architecture)
        network.sequence.pack()

    @torch.inference_mode()
    def masks(
        self,
        images: Sequence[NDArray[np.uint8]],
        boxes: Sequence[NDArray[np.float32]],
        classes: Sequence[NDArray[np.int64]],
    ) -> list[FaithfulMasks]:
        """Masks in given boxes; the images are one batch.

        Args:
            images: H×W×3 uint8 RGB each.
            boxes: for each image [N, 4] XYXY, pixels.
            classes: for each image [N], class indices in the order of training, 0 … K - 1.
        """
        batch = prepare(images, self.preparation, self.device)
        features = self.network.features(batch.input)
        scaled = [
            torch.as_tensor(each, dtype=torch.float32).reshape(-1, 4) * batch.to_network(i)
            for i, each in enumerate(boxes)
        ]
        labels = [torch.as_tensor(each, dtype=torch.int64).reshape(-1) for each in classes]
        found = [Detections(box, box.new_zeros(0), label) for box, label in zip(scaled, labels, strict=True)]
        return self._paste(features, found, batch.sizes, batch.originals, scored=False)

    @torch.inference_mode()
    def detect(self, images: Sequence[NDArray[np.uint8]]) -> list[FaithfulMasks]:
        """Objects and their masks from images alone, best score first; the images are one batch.

        Raises:
            CheckpointError: there is no detector.
        """
        if self.detector is None:
            raise CheckpointError("no RPN and box head to find boxes with", remedy="pass load_detector(...)")
        batch = prepare(images, self.preparation, self.device)
        features = self.network.features(batch.input)
        found = []
        for i, proposals in enumerate(self.detector.rpn.propose(features.maps, batch.sizes)):
            image = torch.full((len(proposals.boxes),), i, device=self.device)
            regions = Regions.of(features.table, proposals.boxes, image)
            found.append(self.detector.box.detect(regions, batch.sizes[i]))
        return self._paste(features, found, batch.sizes, batch.originals, scored=True)

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return next(self.network.parameters()).device

    def _paste(
        self,
        features: ImageFeatures,
        found: list[Detections],
        sizes: list[tuple[int, int]],
        originals: list[tuple[int, int]],
        *,
        scored: bool,
    ) -> list[FaithfulMasks]:
        """Runs the mask branch on all images' boxes in one row and pastes image by image."""
        counts = [len(each.boxes) for each in found]
        image = torch.arange(len(found)).repeat_interleave(torch.tensor(counts)).to(self.device)
        boxes = torch.cat([each.boxes for each in found]).to(self.device)
        classes = torch.cat([each.classes for each in found]).to(self.device)
        output = run_head(self.network, Regions.of(features.table, boxes, image), classes, self.options)
        result = []
        probabilities = torch.split(output.probability, counts)
        for each, probability, size, original in zip(found, probabilities, sizes, originals, strict=True):
            factor = torch.tensor([original[1] / size[1], original[0] / size[0]] * 2, device=self.device)
            clipped, kept = clip_boxes(each.boxes.to(self.device) * factor, *original)
            masks = paste_masks(probability[kept], clipped[kept], *original)
            kept = kept.cpu()
            result.append(
                FaithfulMasks(
                    kept.nonzero().squeeze(1).numpy(),
                    clipped.cpu()[kept].numpy(),
                    masks.cpu().numpy(),
                    each.classes.cpu()[kept].numpy(),
                    each.scores.cpu()[kept].numpy() if scored else None,
                )
            )
        return result
