"""Refine mode: an official network on masks of any detector, as the pipeline asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from transfiner_refine.device import choose_device, choose_precision, precision_name
from transfiner_refine.errors import DeviceError, InputError
from transfiner_refine.masks import MaskWindow
from transfiner_refine.model.propagate import LevelMap, halvings
from transfiner_refine.official.checkpoint import load_official_network
from transfiner_refine.official.config import NODE_GRIDS, Preparation, RefineOptions
from transfiner_refine.official.images import Batch, prepare
from transfiner_refine.official.network import ImageFeatures, OfficialNetwork
from transfiner_refine.official.nodes import select_nodes
from transfiner_refine.official.quadtree import QuadtreeLevel, propagate
from transfiner_refine.official.read import read_tensors
from transfiner_refine.official.regions import Regions
from transfiner_refine.refine.base import BaseRefiner, check_masks
from transfiner_refine.refine.instance import harden
from transfiner_refine.refine.roi import Roi, paste_into_roi, read_mask, resample, roi_around
from transfiner_refine.trace import Trace, TraceLevel, TracePass, as_array

__all__ = ["OfficialRefiner", "load_official_refiner"]

_DEFAULT_BATCH = 32
_FINEST, _COARSEST = NODE_GRIDS[-1], NODE_GRIDS[0]


def load_official_refiner(
    path: Path,
    *,
    device: str = "auto",
    engine: str = "auto",
    precision: str = "auto",
    batch_size: int | None = None,
) -> OfficialRefiner:
    """A refiner from one of the authors' checkpoints; arguments as in ``load_refiner``.

    Raises:
        CheckpointError: the file is damaged or holds something else.
        DeviceError: the device, the engine or the precision is not available.
    """
    if engine == "onnx":
        raise DeviceError("the authors' networks run in PyTorch only", remedy="leave --engine out")
    network = load_official_network(read_tensors(path))
    return OfficialRefiner(network, device=device, precision=precision, batch_size=batch_size)


@dataclass(frozen=True)
class _Stages:
    """Instances of one image on their way through the network.

    Attributes:
        rois: their rectangles.
        coarse: grid → [n, 1, grid, grid], the given masks.
        incoherence: [n, 28, 28] probabilities.
        levels, labels: the nodes of each level and their foreground probabilities.
        maps: the mask on each level.
    """

    rois: list[Roi]
    coarse: dict[int, Tensor]
    incoherence: Tensor
    levels: list[QuadtreeLevel]
    labels: list[Tensor]
    maps: list[LevelMap]


class OfficialRefiner(BaseRefiner):
    """Refines masks of any detector with the authors' network.

    The given mask takes the place of the network's own coarse mask. Every instance is refined, each by itself:
    images are prepared one by one, and boxes share nothing but their image's features.

    Args:
        official: from ``load_official_network``.
        device, precision, batch_size: as in ``load_refiner``.
        options: margins, thresholds.
        preparation: size of the network's input, None for the release's.
    """

    def __init__(
        self,
        official: OfficialNetwork,
        *,
        device: str = "auto",
        precision: str = "auto",
        batch_size: int | None = None,
        options: RefineOptions | None = None,
        preparation: Preparation | None = None,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise InputError(f"batch size {batch_size}", remedy="it must be at least 1")
        self._device = choose_device(device)
        self._dtype = choose_precision(precision, self._device)
        self.device, self.engine, self.precision = str(self._device), "torch", precision_name(self._dtype)
        self.batch_size = batch_size or _DEFAULT_BATCH
        self.options = options or RefineOptions()
        self.preparation = preparation or Preparation.of(official.architecture)
        self.official = official.eval().to(self._device)
        self.official.sequence.pack()
        self._last: tuple[bytes, Batch, ImageFeatures] | None = None

    def refine_windows(
        self,
        images: Sequence[NDArray[np.uint8]],
        masks: Sequence[MaskWindow],
        image_index: Sequence[int],
        *,
        soft: bool = False,
        class_ids: Sequence[int | None] | None = None,
    ) -> list[MaskWindow]:
        """Refines instances of one or several images.

        Args:
            images: H×W×3 uint8 RGB each.
            masks: coarse masks, bool or float in [0, 1].
            image_index: for each mask, the image it belongs to.
            soft: return probabilities.
            class_ids: for each mask its class in the order of training, 0 … K - 1, or None. Where the class is
                not known, the one whose coarse mask fits the given mask best stands in.

        Returns:
            one window per mask, in order: the RoI, bool (float32 with ``soft``). Masks without a pixel ≥ 0.5 come
            back as they are.

        Raises:
            InputError: a mask belongs to an image of another size, or a class is unknown to the network.
        """
        classes = self._check(images, masks, image_index, class_ids)
        result = [mask if soft else harden(mask) for mask in masks]
        waiting: dict[int, list[int]] = {}
        for i, (mask, image) in enumerate(zip(masks, image_index, strict=True)):
            if mask.area:
                waiting.setdefault(image, []).append(i)
        # On a CPU one instance at a time is as fast, and the result cannot depend on its neighbours.
        step = 1 if self._device.type == "cpu" else self.batch_size
        for image, members in waiting.items():
            for first in range(0, len(members), step):
                group = members[first : first + step]
                refined = self._refine(images[image], [masks[i] for i in group], [classes[i] for i in group])
                for i, window in zip(group, refined, strict=True):
                    result[i] = window if soft else harden(window)
        return result

    def _check(
        self,
        images: Sequence[NDArray[np.uint8]],
        masks: Sequence[MaskWindow],
        image_index: Sequence[int],
        class_ids: Sequence[int | None] | None,
    ) -> list[int]:
        """The class of each mask, -1 where it is not known."""
        known = self.official.architecture.classes
        check_masks(images, masks, image_index)
        classes = [-1 if c is None else c for c in class_ids or [None] * len(masks)]
        if len(classes) != len(masks):
            raise InputError(f"{len(classes)} classes for {len(masks)} masks")
        for given in class_ids or ():
            if given is not None and not 0 <= given < known:
                raise InputError(f"class {given}", remedy=f"this network knows the classes 0 to {known - 1}")
        return classes

    def _features(self, image: NDArray[np.uint8]) -> tuple[Batch, ImageFeatures]:
        """The image's features; the last image's are kept, as the pipeline may hand one image over twice."""
        # by content, because callers may read the next image into the same array
        digest = (
            blake2b(np.ascontiguousarray(image).data, digest_size=16).digest() + repr(image.shape).encode()
        )
        if self._last is None or self._last[0] != digest:
            self._last = None  # free before allocating
            batch = prepare([image], self.preparation, self._device)
            self._last = (digest, batch, self.official.features(batch.input))
        return self._last[1], self._last[2]

    def _refine(
        self, image: NDArray[np.uint8], masks: list[MaskWindow], classes: list[int]
    ) -> list[MaskWindow]:
        """Probabilities of some instances of one image, each in its RoI."""
        stages = self._stages(image, masks, classes)
        finest = stages.maps[-1]
        probability, refined = finest.probability.cpu().numpy(), finest.refined.cpu().numpy()
        return [
            MaskWindow(paste_into_roi(p, r, mask, roi), roi.x0, roi.y0, mask.image_size)
            for p, r, mask, roi in zip(probability, refined, masks, stages.rois, strict=True)
        ]

    def trace(self, image: NDArray[np.uint8], mask: MaskWindow) -> Trace:
        """Refines one mask and keeps what happened on the way; see ``transfiner_refine.trace``."""
        (unknown,) = self._check([image], [mask], [0], None)
        stages = self._stages(image, [mask], [unknown])
        levels = []
        for nodes, label, level in zip(stages.levels, stages.labels, stages.maps, strict=True):
            repeat = nodes.grid // _COARSEST
            wrong = np.kron(as_array(stages.incoherence[0]), np.ones((repeat, repeat), np.float32))
            y, x, parent = (each.cpu().numpy() for each in (nodes.y, nodes.x, nodes.parent))
            given = as_array(stages.coarse[nodes.grid][0, 0])
            levels.append(
                TraceLevel(
                    nodes.grid, y, x, parent, as_array(label), wrong, given, as_array(level.probability[0])
                )
            )
        (refined,) = self._refine(image, [mask], [unknown])
        relabelled = stages.maps[0].refined[0].cpu().numpy()
        incoherent = as_array(stages.incoherence[0])
        step = TracePass(stages.rois[0], mask, tuple(levels), incoherent, relabelled, refined.values)
        return Trace(mask, (step,), (), harden(refined))

    @torch.inference_mode()
    def _stages(self, image: NDArray[np.uint8], masks: list[MaskWindow], classes: list[int]) -> _Stages:
        """Some instances of one image through the network."""
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32):
            batch, features = self._features(image)
            rois = [roi_around(mask, self.options) for mask in masks]
            boxes = torch.tensor([[roi.x0, roi.y0, roi.x1, roi.y1] for roi in rois], dtype=torch.float32)
            boxes = (boxes * batch.to_network(0)).to(self._device)
            regions = Regions.of(
                features.table, boxes, torch.zeros(len(rois), dtype=torch.long, device=self._device)
            )
            values = [_on_grid(mask, roi) for mask, roi in zip(masks, rois, strict=True)]
            given = halvings(torch.from_numpy(np.stack(values)).to(self._device)[:, None], _COARSEST)
            coarse = given[_COARSEST][:, 0]  # [n, 28, 28]
            context = regions.context()
            hidden = self.official.coarse.hidden(context)
            incoherence = torch.sigmoid(self.official.incoherence(context, hidden))
            always = None
            if self.options.visit_disagreement:
                own = self._own_mask(hidden, coarse, torch.tensor(classes, device=self._device))
                always = (own >= 0.5) != (coarse >= 0.5)
            levels = select_nodes(incoherence, always=always, thresholds=self.options.thresholds)
            labels = self.official.label(regions, context, coarse, levels)
        return _Stages(rois, given, incoherence, levels, labels, propagate(given, levels, labels))

    def _own_mask(self, hidden: Tensor, coarse: Tensor, classes: Tensor) -> Tensor:
        """The network's own coarse probability [n, 28, 28], of the given class (-1: of the best fitting one)."""
        all_classes = torch.sigmoid(self.official.coarse.all_logits(hidden))  # [n, K, 28, 28]
        common = torch.einsum("nkyx,nyx->nk", all_classes, coarse)
        either = all_classes.sum((2, 3)) + coarse.sum((1, 2))[:, None] - common
        chosen = torch.where(classes >= 0, classes, (common / either).argmax(1))
        return all_classes[torch.arange(len(chosen), device=chosen.device), chosen]


def _on_grid(mask: MaskWindow, roi: Roi) -> NDArray[np.float32]:
    """The mask inside the RoI as [112, 112] float32."""
    values: NDArray[np.float32] = resample(read_mask(mask, roi), _FINEST, _FINEST)
    return values
