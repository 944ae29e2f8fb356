"""Faithful mode: the release's masks from given boxes and classes, or from the image alone.

No command does this; it is what the reference runs are compared with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detector import Detections, Detector
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from writing import blur, clip_boxes, paste_masks, write_back

from transfiner_refine.errors import CheckpointError
from transfiner_refine.official import OfficialNetwork, Preparation
from transfiner_refine.official.features import ImageFeatures, network_size, prepare, tokens_of
from transfiner_refine.official.nodes import NODE_GRIDS, Nodes, select_nodes

__all__ = [
    "LIMIT",
    "FaithfulMasks",
    "FaithfulOptions",
    "HeadOutput",
    "OfficialPredictor",
    "dilated",
    "prepare_batch",
    "run_head",
]

#: Boxes of a batch that the release refines at inference; the others keep their coarse mask.
LIMIT = 10


@dataclass(frozen=True)
class FaithfulOptions:
    """Peculiarities of the release that change masks; all off is the method itself.

    Attributes:
        limit: boxes of the batch that are refined, the rest keep their coarse mask; None for all
            (the release: ``LIMIT``).
        skip_empty_level: leave out the step at the 56 level if no box of the batch has a node there. In the
            release a box without such nodes gets other values when a neighbour has one; off, every box takes
            its own decision, so it does not depend on its neighbours.
        demo: the demo's dilation of the 112-level nodes and its blur, which darkens the RoI's border.
    """

    limit: int | None = None
    skip_empty_level: bool = False
    demo: bool = False


@dataclass(frozen=True)
class HeadOutput:
    """What the mask branch says of N boxes, of which the first n are refined.

    Attributes:
        coarse_logits: [N, 28, 28] of each box's class.
        incoherence: [n, 28, 28] probabilities.
        levels: the nodes of each of the n boxes on each level.
        labels: [m] foreground probability of each level's nodes, likewise.
        probability: [N, 112, 112], final.
    """

    coarse_logits: Tensor
    incoherence: Tensor
    levels: list[list[Nodes]]
    labels: list[list[Tensor]]
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


def prepare_batch(
    images: Sequence[NDArray[np.uint8]], preparation: Preparation, device: torch.device | None = None
) -> tuple[list[Tensor], Tensor]:
    """The inputs [1, 3, H, W] of images, padded to one size as the release pads a batch; factors of boxes [B, 4]."""
    inputs, scales = zip(*(prepare(image, preparation, device) for image in images), strict=True)
    height, width = (max(each.shape[axis] for each in inputs) for axis in (2, 3))
    padded = [F.pad(each, (0, width - each.shape[3], 0, height - each.shape[2])) for each in inputs]
    return padded, torch.stack(scales)


def dilated(levels: list[Nodes]) -> list[Nodes]:
    """The demo's: a 112-level cell is a node too if one of its eight neighbours is."""
    finest = levels[-1]
    selected = torch.zeros(1, finest.grid, finest.grid, device=finest.cell.device)
    selected.view(-1)[finest.cell] = 1
    cell = F.max_pool2d(selected, 3, 1, 1).flatten().nonzero().squeeze(1)
    return [*levels[:-1], Nodes(finest.grid, cell, torch.full_like(cell, -1))]


def run_head(
    network: OfficialNetwork,
    images: Sequence[ImageFeatures],
    boxes: Sequence[Tensor],
    classes: Tensor,
    options: FaithfulOptions,
) -> HeadOutput:
    """The mask branch on boxes of a batch, image after image.

    Args:
        network: the network.
        images: features of each image.
        boxes: of each image [n, 4] XYXY, pixels of the resized image.
        classes: [N] int64, class index of each box of all images.
        options: the release's peculiarities.
    """
    owners = [image for image, own in zip(images, boxes, strict=True) for _ in range(len(own))]
    flat = torch.cat(list(boxes))
    context = torch.cat(
        [flat.new_zeros(0, *images[0].maps[0].shape[1:2], 14, 14)]
        + [image.pooled(box) for image, box in zip(owners, flat, strict=True)]
    )
    hidden = network.coarse.hidden(context)
    logits = network.coarse(hidden)[torch.arange(len(classes)), classes]
    count = len(flat) if options.limit is None else min(options.limit, len(flat))
    u = torch.sigmoid(network.incoherence(context[:count], hidden[:count]))
    coarse = torch.sigmoid(logits)
    levels, labels = [], []
    for i in range(count):
        nodes = select_nodes(u[i])
        levels.append(dilated(nodes) if options.demo else nodes)
        tokens, position = tokens_of(owners[i], flat[i], context[i], coarse[i], levels[i])
        probability = torch.sigmoid(network.transformer(tokens, position))
        labels.append(list(torch.split(probability, [len(level) for level in levels[i]])))
    refined = write_back(coarse[:count], levels, labels, skip_empty_level=options.skip_empty_level)
    if options.demo:
        refined = blur(refined)
    size = (NODE_GRIDS[-1], NODE_GRIDS[-1])
    rest = coarse[count:, None]
    rest = F.interpolate(rest, size, mode="bilinear") if len(rest) else rest.new_zeros(0, 1, *size)
    return HeadOutput(logits, u, levels, labels, torch.cat((refined, rest[:, 0])))


class OfficialPredictor:
    """The release's inference.

    Args:
        network: from ``load_official_network``; it is packed for a CPU.
        detector: from ``load_detector``; needed only where no boxes are given.
        options: peculiarities of the release, all off by default.
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
        network.transformer.pack()

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
        inputs, scales = prepare_batch(images, self.preparation, self.device)
        features = [self.network.features(each) for each in inputs]
        scaled = [
            torch.as_tensor(each, dtype=torch.float32).reshape(-1, 4) * scale
            for each, scale in zip(boxes, scales, strict=True)
        ]
        labels = [torch.as_tensor(each, dtype=torch.int64).reshape(-1) for each in classes]
        found = [Detections(box, box.new_zeros(0), label) for box, label in zip(scaled, labels, strict=True)]
        return self._paste(features, found, images, scored=False)

    @torch.inference_mode()
    def detect(self, images: Sequence[NDArray[np.uint8]]) -> list[FaithfulMasks]:
        """Objects and their masks from images alone, best score first; the images are one batch.

        Raises:
            CheckpointError: there is no detector.
        """
        if self.detector is None:
            raise CheckpointError("no RPN and box head to find boxes with", remedy="pass load_detector(...)")
        inputs, _ = prepare_batch(images, self.preparation, self.device)
        features = [self.network.features(each) for each in inputs]
        sizes = [network_size(*image.shape[:2], self.preparation) for image in images]
        found = []
        for each, size in zip(features, sizes, strict=True):
            (proposals,) = self.detector.rpn.propose(each.maps, [size])
            found.append(self.detector.box.detect(each, proposals.boxes, size))
        return self._paste(features, found, images, scored=True)

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return next(self.network.parameters()).device

    def _paste(
        self,
        features: list[ImageFeatures],
        found: list[Detections],
        images: Sequence[NDArray[np.uint8]],
        *,
        scored: bool,
    ) -> list[FaithfulMasks]:
        """Runs the mask branch on all images' boxes in one row and pastes image by image."""
        boxes = [each.boxes.to(self.device) for each in found]
        classes = torch.cat([each.classes for each in found]).to(self.device)
        output = run_head(self.network, features, boxes, classes, self.options)
        result = []
        probabilities = torch.split(output.probability, [len(each) for each in boxes])
        for each, probability, image in zip(found, probabilities, images, strict=True):
            height, width = image.shape[:2]
            size = network_size(height, width, self.preparation)
            factor = torch.tensor([width / size[1], height / size[0]] * 2, device=self.device)
            clipped, kept = clip_boxes(each.boxes.to(self.device) * factor, height, width)
            masks = paste_masks(probability[kept], clipped[kept], height, width)
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
