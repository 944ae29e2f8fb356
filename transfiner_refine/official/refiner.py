"""Refine mode: an official network on masks of any detector, as the pipeline asks for it."""

from __future__ import annotations

import copy
import math
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
from transfiner_refine.model.propagate import area_pyramid
from transfiner_refine.official.checkpoint import load_official_network
from transfiner_refine.official.features import ImageFeatures, Preparation, prepare, tokens_of
from transfiner_refine.official.network import OfficialNetwork
from transfiner_refine.official.nodes import NODE_GRIDS, NODE_THRESHOLDS, propagate, select_nodes
from transfiner_refine.official.read import read_tensors
from transfiner_refine.refine.instance import harden
from transfiner_refine.refine.roi import paste_into_roi, read_mask, resample, roi_around
from transfiner_refine.refiner import BaseRefiner, check_masks
from transfiner_refine.trace import Trace, TraceLevel, TracePass, as_array

_DEFAULT_BATCH = 32
_FINEST, _COARSEST = NODE_GRIDS[-1], NODE_GRIDS[0]


@dataclass(frozen=True)
class RefineOptions:
    """Refining foreign masks with an official network."""

    # width and height added to the mask's box, as a share of its side (both edges together): the network was trained
    # on detector boxes that fit about this well
    roi_margin: float = 0.1
    roi_min_margin: int = 2  # the least margin on each edge, pixels
    roi_max_aspect: float = math.inf  # the release never widens the short side of a box
    thresholds: tuple[float, float, float] = NODE_THRESHOLDS  # least incoherence of a node on each level
    # cells where the given mask and the network's own coarse mask differ are nodes, whatever the incoherence says: the
    # detector was trained to find borders, not foreign errors
    visit_disagreement: bool = True

    def margin(self, _: float) -> float:
        """As ``roi_margin``, whatever the side of the box."""
        return self.roi_margin


def load_official_refiner(
    path: Path,
    *,
    device: str = "auto",
    engine: str = "auto",
    precision: str = "auto",
    batch_size: int | None = None,
) -> OfficialRefiner:
    """A refiner from one of the authors' checkpoints; arguments and errors as in ``load_refiner``."""
    if engine == "onnx":
        raise DeviceError("the authors' networks run in PyTorch only", remedy="leave --engine out")
    network = load_official_network(read_tensors(path))
    return OfficialRefiner(network, device=device, precision=precision, batch_size=batch_size)


class OfficialRefiner(BaseRefiner):
    """Refines masks of any detector with the authors' network.

    The given mask takes the place of the network's own coarse mask. Every instance is refined, each by itself:
    images are prepared one by one, and boxes share nothing but their image's features.

    Args:
        official: from ``load_official_network``; a copy of it is used.
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
        self.official = copy.deepcopy(official).eval().to(self._device)
        if self._device.type == "cpu" and self._dtype == torch.float32:
            self.official.transformer.pack()
        self._last: tuple[bytes, Tensor, ImageFeatures] | None = None

    def refine_windows(
        self,
        images: Sequence[NDArray[np.uint8]],
        masks: Sequence[MaskWindow],
        image_index: Sequence[int],
        *,
        soft: bool = False,
        class_ids: Sequence[int | None] | None = None,
    ) -> list[MaskWindow]:
        """See ``BaseRefiner``. ``class_ids`` are the masks' classes in the order of training, 0 … K - 1.

        Where one is None, the class whose coarse mask fits the given mask best stands in; InputError where the network
        does not know one.
        """
        check_masks(images, masks, image_index)
        known = self.official.architecture.classes
        classes = list(class_ids or [None] * len(masks))
        if len(classes) != len(masks):
            raise InputError(f"{len(classes)} classes for {len(masks)} masks")
        for given in classes:
            if given is not None and not 0 <= given < known:
                raise InputError(f"class {given}", remedy=f"this network knows the classes 0 to {known - 1}")
        result = list(masks)
        for i in sorted(range(len(masks)), key=image_index.__getitem__):  # one image after the other
            if masks[i].area:
                result[i], _ = self._run(images[image_index[i]], masks[i], classes[i])
        return result if soft else [harden(mask) for mask in result]

    def trace(self, image: NDArray[np.uint8], mask: MaskWindow) -> Trace:
        """See ``BaseRefiner``."""
        check_masks([image], [mask], [0])
        refined, step = self._run(image, mask, None)
        return Trace(mask, (step,), (), harden(refined))

    def _features(self, image: NDArray[np.uint8]) -> tuple[Tensor, ImageFeatures]:
        """The factors of its boxes, and the image's features; the last image's are kept."""
        # by content, because callers may read the next image into the same array
        digest = blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()
        digest += repr(image.shape).encode()
        if self._last is None or self._last[0] != digest:
            self._last = None  # free before allocating
            pixels, scale = prepare(image, self.preparation, self._device)
            self._last = (digest, scale, self.official.features(pixels))
        return self._last[1:]

    @torch.inference_mode()
    def _run(
        self, image: NDArray[np.uint8], mask: MaskWindow, class_id: int | None
    ) -> tuple[MaskWindow, TracePass]:
        """One instance through the network: foreground probability in the RoI, and the stages.

        By itself, so its mask cannot depend on others.
        """
        roi = roi_around(mask, self.options)
        values = torch.from_numpy(resample(read_mask(mask, roi), _FINEST, _FINEST)).to(self._device)
        given = {grid: each[0, 0] for grid, each in area_pyramid(values[None, None], _COARSEST).items()}
        coarse = given[_COARSEST]
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32):
            scale, features = self._features(image)
            corners = torch.tensor([roi.x0, roi.y0, roi.x1, roi.y1], dtype=torch.float32)
            box = corners.to(self._device) * scale
            context = features.pooled(box)
            hidden = self.official.coarse.hidden(context)
            incoherence = torch.sigmoid(self.official.incoherence(context, hidden))[0]
            always = None
            if self.options.visit_disagreement:
                always = (self._own_mask(hidden, coarse, class_id) >= 0.5) != (coarse >= 0.5)
            nodes = select_nodes(incoherence, always, thresholds=self.options.thresholds)
            tokens, position = tokens_of(features, box, context[0], coarse, nodes)
            labels = torch.sigmoid(self.official.transformer(tokens, position))
        split = torch.split(labels, [len(level) for level in nodes])
        maps = propagate(given, nodes, split)
        probability, relabelled = as_array(maps[-1][0]), maps[-1][1].cpu().numpy()
        pasted = paste_into_roi(probability, relabelled, mask, roi)
        refined = MaskWindow(pasted, roi.x0, roi.y0, mask.image_size)
        wrong, levels = as_array(incoherence), []
        for level, label, (after, _) in zip(nodes, split, maps, strict=True):
            y, x, parent = (each.cpu().numpy() for each in (level.y, level.x, level.parent))
            judged = np.kron(wrong, np.ones((level.grid // _COARSEST,) * 2, np.float32))
            before, written = as_array(given[level.grid]), as_array(after)
            levels.append(TraceLevel(level.grid, y, x, parent, as_array(label), judged, before, written))
        roots = maps[0][1].cpu().numpy()
        return refined, TracePass(roi, mask, tuple(levels), wrong, roots, refined.values)

    def _own_mask(self, hidden: Tensor, coarse: Tensor, class_id: int | None) -> Tensor:
        """The network's own coarse probability [28, 28], of the given class (None: of the best fitting one)."""
        every = torch.sigmoid(self.official.coarse(hidden))[0]  # [K, 28, 28]
        if class_id is not None:
            return every[class_id]
        common = torch.einsum("kyx,yx->k", every, coarse)
        return every[(common / (every.sum((1, 2)) + coarse.sum() - common)).argmax()]
