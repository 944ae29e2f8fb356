"""Refine mode: an official network on masks of any detector, as the pipeline asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from transfiner_refine.device import choose_device, choose_precision
from transfiner_refine.model.official.checkpoint import load_official_network
from transfiner_refine.model.official.config import NODE_GRIDS, Preparation, RefineOptions
from transfiner_refine.model.official.images import Batch, prepare
from transfiner_refine.model.official.network import ImageFeatures, OfficialNetwork
from transfiner_refine.model.official.nodes import select_nodes
from transfiner_refine.model.official.read import read_tensors
from transfiner_refine.model.official.regions import Regions
from transfiner_refine.model.paste import paste_into_roi
from transfiner_refine.model.propagate import halvings, propagate
from transfiner_refine.model.roi import Roi, read_mask, resample, roi_around
from transfiner_refine.refiner import Refiner
from transfiner_refine.types import InputError, MaskWindow

__all__ = ["OfficialRefiner", "load_official_refiner"]

_DEFAULT_BATCH = 32
_FINEST, _COARSEST = NODE_GRIDS[-1], NODE_GRIDS[0]


def load_official_refiner(
    path: Path, *, device: str = "auto", precision: str = "auto", batch_size: int | None = None
) -> OfficialRefiner:
    """A refiner from one of the authors' checkpoints; arguments as in ``load_refiner``.

    Raises:
        CheckpointError: the file is damaged or holds something else.
        DeviceError: the device or the precision is not available.
    """
    network = load_official_network(read_tensors(path))
    return OfficialRefiner(network, device=device, precision=precision, batch_size=batch_size)


class OfficialRefiner(Refiner):
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
        # not the base's: that one prepares a native network
        if batch_size is not None and batch_size < 1:
            raise InputError(f"batch size {batch_size}", remedy="it must be at least 1")
        self.device = choose_device(device)
        self.precision = choose_precision(precision, self.device)
        self.batch_size = batch_size or _DEFAULT_BATCH
        self.options = options or RefineOptions()
        self.preparation = preparation or Preparation.of(official.architecture)
        self.official = official.eval().to(self.device)
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
        result = [mask if soft else _harden(mask) for mask in masks]
        waiting: dict[int, list[int]] = {}
        for i, (mask, image) in enumerate(zip(masks, image_index, strict=True)):
            if mask.area:
                waiting.setdefault(image, []).append(i)
        # On a CPU one instance at a time is as fast, and the result cannot depend on its neighbours.
        step = 1 if self.device.type == "cpu" else self.batch_size
        for image, members in waiting.items():
            for first in range(0, len(members), step):
                group = members[first : first + step]
                refined = self._refine(images[image], [masks[i] for i in group], [classes[i] for i in group])
                for i, window in zip(group, refined, strict=True):
                    result[i] = window if soft else _harden(window)
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
        for i, (mask, index) in enumerate(zip(masks, image_index, strict=True)):
            image = images[index]
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
                raise InputError(
                    f"an image of shape {image.shape} and type {image.dtype}",
                    remedy="expected H×W×3 uint8 RGB",
                )
            if mask.image_size != image.shape[:2]:
                raise InputError(
                    f"mask {i} is for an image of {mask.image_size}, its image is {image.shape[:2]}"
                )
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
            batch = prepare([image], self.preparation, self.device)
            self._last = (digest, batch, self.official.features(batch.input))
        return self._last[1], self._last[2]

    @torch.inference_mode()
    def _refine(
        self, image: NDArray[np.uint8], masks: list[MaskWindow], classes: list[int]
    ) -> list[MaskWindow]:
        """Probabilities of some instances of one image, each in its RoI."""
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            batch, features = self._features(image)
            rois = [roi_around(mask, self.options) for mask in masks]
            boxes = torch.tensor([[roi.x0, roi.y0, roi.x1, roi.y1] for roi in rois], dtype=torch.float32)
            boxes = (boxes * batch.to_network(0)).to(self.device)
            regions = Regions.of(
                features.table, boxes, torch.zeros(len(rois), dtype=torch.long, device=self.device)
            )
            values = [_on_grid(mask, roi) for mask, roi in zip(masks, rois, strict=True)]
            given = halvings(torch.from_numpy(np.stack(values)).to(self.device)[:, None], _COARSEST)
            coarse = given[_COARSEST][:, 0]  # [n, 28, 28]
            context = regions.context()
            hidden = self.official.coarse.hidden(context)
            incoherence = torch.sigmoid(self.official.incoherence(context, hidden))
            always = None
            if self.options.visit_disagreement:
                own = self._own_mask(hidden, coarse, torch.tensor(classes, device=self.device))
                always = (own >= 0.5) != (coarse >= 0.5)
            levels = select_nodes(incoherence, always=always, thresholds=self.options.thresholds)
            labels = self.official.label(regions, context, coarse, levels)
        finest = propagate(given, levels, labels)[-1]
        probability, refined = finest.probability.cpu().numpy(), finest.refined.cpu().numpy()
        return [
            MaskWindow(paste_into_roi(p, r, mask, roi), roi.x0, roi.y0, mask.image_size)
            for p, r, mask, roi in zip(probability, refined, masks, rois, strict=True)
        ]

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


def _harden(mask: MaskWindow) -> MaskWindow:
    """The mask cut at 0.5."""
    if mask.values.dtype == bool:
        return mask
    return MaskWindow(mask.values >= 0.5, mask.x, mask.y, mask.image_size)
