"""The public API: load a refiner, hand it an image and coarse masks, get sharp masks back."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from transfiner_refine.device import choose_device, choose_precision
from transfiner_refine.model.agreement import patches_if_agreed
from transfiner_refine.model.checkpoint import is_native, load_network
from transfiner_refine.model.close_up import blend_close_ups, close_up_windows
from transfiner_refine.model.network import MaskTransfiner, TreeOutput
from transfiner_refine.model.paste import paste_into_roi
from transfiner_refine.model.quadtree import ThresholdSelector
from transfiner_refine.model.roi import Roi, crop_roi, read_mask, resample, roi_around, roi_of
from transfiner_refine.model.weights import DEFAULT_WEIGHTS, find_weights
from transfiner_refine.types import InputError, MaskWindow

__all__ = ["Refiner", "load_refiner"]

_DEFAULT_BATCH = 32


def load_refiner(
    weights: str | Path = DEFAULT_WEIGHTS,
    *,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int | None = None,
    close_ups: bool = True,
) -> Refiner:
    """Loads a refiner.

    Args:
        weights: name of a built-in model, or a path to a checkpoint: of this package, or of the authors
            (``.pth``, ``.pkl`` or converted), told apart by content.
        device: ``auto`` (CUDA, then MPS, then the CPU), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        precision: ``auto``, ``fp32``, ``bf16`` or ``fp16``; ``auto`` is half precision on a GPU that has it and
            fp32 elsewhere.
        batch_size: instances handed to the device at once; masks do not depend on it.
        close_ups: look at large objects once more, part by part. Sharper, and they take about two and a half times
            as long. The authors' networks have no close-ups.

    Raises:
        CheckpointError: the weights are missing, damaged or of another kind.
        DeviceError: the device or the precision is not available.
    """
    path = find_weights(weights)
    if not is_native(path):
        from transfiner_refine.model.official import (
            load_official_refiner,  # here, because it builds on this module
        )

        return load_official_refiner(path, device=device, precision=precision, batch_size=batch_size)
    return Refiner(
        load_network(path), device=device, precision=precision, batch_size=batch_size, close_ups=close_ups
    )


class Refiner:
    """Refines coarse instance masks (Mask Transfiner, CVPR 2022, applied after the fact).

    Args:
        network: a native refiner network.
        device, precision, batch_size, close_ups: as in ``load_refiner``.
    """

    def __init__(
        self,
        network: MaskTransfiner,
        *,
        device: str = "auto",
        precision: str = "auto",
        batch_size: int | None = None,
        close_ups: bool = True,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise InputError(f"batch size {batch_size}", remedy="it must be at least 1")
        self.device = choose_device(device)
        self.precision = choose_precision(precision, self.device)
        self.batch_size = batch_size or _DEFAULT_BATCH
        self.close_ups = close_ups
        self.config = network.config
        self._threads = torch.get_num_threads()
        network.backbone.fuse()
        self.network = network.eval().to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def refine(self, image: NDArray[np.uint8], masks: NDArray[Any], *, soft: bool = False) -> NDArray[Any]:
        """Refines all masks of one image.

        Args:
            image: H×W×3 uint8 RGB.
            masks: N×H×W bool, or float in [0, 1] where the detector's masks are soft.
            soft: return probabilities instead of thresholding them at 0.5.

        Returns:
            N×H×W bool, or float32 in [0, 1] with ``soft``. Empty masks stay empty.

        Raises:
            InputError: shapes or types do not fit.
        """
        image, masks = np.asarray(image), np.asarray(masks)
        if masks.ndim != 3:
            raise InputError(
                f"masks of shape {masks.shape}", remedy="expected N×H×W; use masks[None] for one mask"
            )
        _check_image(image)
        if masks.shape[1:] != image.shape[:2]:
            raise InputError(
                f"masks of {masks.shape[1]}×{masks.shape[2]} pixels for an image of "
                f"{image.shape[0]}×{image.shape[1]} (height × width)"
            )
        windows = [window_of(mask) for mask in masks]
        refined = self.refine_windows([image], windows, [0] * len(windows), soft=soft)
        result = np.zeros(masks.shape, np.float32 if soft else bool)
        for i, window in enumerate(refined):
            result[i] = window.paste()
        return result

    def refine_windows(
        self,
        images: Sequence[NDArray[np.uint8]],
        masks: Sequence[MaskWindow],
        image_index: Sequence[int],
        *,
        soft: bool = False,
    ) -> list[MaskWindow]:
        """Refines instances of one or several images.

        Args:
            images: H×W×3 uint8 RGB each.
            masks: coarse masks, bool or float in [0, 1].
            image_index: for each mask, the image it belongs to.
            soft: return probabilities.

        Returns:
            one window per mask, in order: the RoI, bool (float32 with ``soft``). Masks without a pixel ≥ 0.5 come
            back as they are.

        Raises:
            InputError: a mask belongs to an image of another size.
        """
        result = list(masks)
        waiting: list[int] = []
        for i, (mask, index) in enumerate(zip(masks, image_index, strict=True)):
            _check_image(images[index])
            if mask.image_size != images[index].shape[:2]:
                raise InputError(
                    f"mask {i} is for an image of {mask.image_size}, its image is {images[index].shape[:2]}"
                )
            if mask.area == 0:
                result[i] = mask if soft else _harden(mask)
            else:
                waiting.append(i)
        latest: dict[int, MaskWindow] = {}
        for number in range(self.config.passes):
            inputs = [_harden(latest[i]) for i in waiting] if number else [masks[i] for i in waiting]
            changed = []
            rois = [roi_around(mask, self.config) for mask in inputs]
            refined = self._refine_once([images[image_index[i]] for i in waiting], inputs, rois)
            for i, before, after in zip(waiting, inputs, refined, strict=True):
                values = read_mask(before, roi_of(after))
                given, new = values >= 0.5, after.values >= 0.5
                patches = patches_if_agreed(given, new, self.config) if number == 0 else None
                if patches is not None:
                    mixed = np.where(patches, after.values, values)
                    kept = replace(after, values=mixed) if patches.any() else masks[i]
                    result[i] = kept if soft else _harden(kept)
                    continue
                latest[i] = after
                if after.area and np.count_nonzero(given != new) >= self.config.repeat_share * masks[i].area:
                    changed.append(i)
            waiting = changed
        if self.close_ups:
            large = [
                i
                for i, after in latest.items()
                if after.area and roi_of(after).side >= self.config.close_up_from
            ]
            sharper = self._look_closer([images[image_index[i]] for i in large], [latest[i] for i in large])
            latest.update(zip(large, sharper, strict=True))
        for i, after in latest.items():
            result[i] = after if soft else _harden(after)
        return result

    def _look_closer(self, images: list[NDArray[np.uint8]], refined: list[MaskWindow]) -> list[MaskWindow]:
        """Refined masks, probabilities in their RoIs, after close-ups of the parts that hold a piece of the outline."""
        masks = [_harden(window) for window in refined]
        windows = [close_up_windows(roi_of(window)) for window in refined]
        parts = [
            (number, part)
            for number, each in enumerate(windows)
            for part in each
            if _has_outline(read_mask(masks[number], part))
        ]
        looked_at = self._refine_once(
            [images[number] for number, _ in parts],
            [masks[number] for number, _ in parts],
            [part for _, part in parts],
            at_once=len(refined),  # who hands over few instances may have room for few
        )
        found = {part: label.values for part, label in zip(parts, looked_at, strict=True)}
        sharper = []
        for number, before in enumerate(refined):
            labels = [found.get((number, part)) for part in windows[number]]
            values = blend_close_ups(roi_of(before), before.values, windows[number], labels)
            sharper.append(replace(before, values=values))
        return sharper

    def _refine_once(
        self,
        images: list[NDArray[np.uint8]],
        masks: list[MaskWindow],
        rois: list[Roi],
        at_once: int | None = None,
    ) -> list[MaskWindow]:
        """One pass over any number of RoIs, at most so many at once: probabilities in each."""
        if self.device.type == "cpu":
            batches = self._one_by_one(images, masks, rois)
        else:
            size = min(self.batch_size, at_once or self.batch_size)
            parts = [slice(i, i + size) for i in range(0, len(masks), size)]
            batches = [self._refine_batch(images[part], masks[part], rois[part]) for part in parts]
        probabilities = [each for batch in batches for each in batch]
        return [
            MaskWindow(probability, roi.x0, roi.y0, mask.image_size)
            for probability, mask, roi in zip(probabilities, masks, rois, strict=True)
        ]

    def _one_by_one(
        self, images: list[NDArray[np.uint8]], masks: list[MaskWindow], rois: list[Roi]
    ) -> list[list[NDArray[np.float32]]]:
        """Each instance in a pass of its own, one on each core.

        That keeps the cores busier than one pass on all of them, for an instance's tensors are small. And an
        instance that is alone in its pass cannot depend on its neighbours, not even by rounding.
        """

        def alone(image: NDArray[np.uint8], mask: MaskWindow, roi: Roi) -> list[NDArray[np.float32]]:
            torch.set_num_threads(1)  # some builds of PyTorch keep this number for each thread
            return self._refine_batch([image], [mask], [roi])

        try:
            with ThreadPoolExecutor(self._threads, "transfiner-cpu") as workers:
                return list(workers.map(alone, images, masks, rois))
        finally:
            torch.set_num_threads(self._threads)  # and some one for all

    @torch.inference_mode()
    def _refine_batch(
        self, images: list[NDArray[np.uint8]], masks: list[MaskWindow], rois: list[Roi]
    ) -> list[NDArray[np.float32]]:
        """One pass: the refined probability in each RoI, [height, width]."""
        side = self.config.detail_side
        pixels = np.stack([crop_roi(image, roi, side) for image, roi in zip(images, rois, strict=True)])
        soft = np.stack(
            [resample(read_mask(mask, roi), side, side) for mask, roi in zip(masks, rois, strict=True)]
        )
        depths = [self.config.depth(roi.side) for roi in rois]
        coarse = torch.from_numpy(soft).to(self.device)[:, None]
        output = self.run(
            torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2).float(), coarse, depths
        )
        maps = self.network.maps(output, coarse, self.config)
        refined = []
        for i, (mask, roi, depth) in enumerate(zip(masks, rois, depths, strict=True)):
            finest = maps[depth - 1]
            refined.append(
                paste_into_roi(
                    finest.probability[i].cpu().numpy(), finest.refined[i].cpu().numpy(), mask, roi
                )
            )
        return refined

    def run(self, image: torch.Tensor, coarse: torch.Tensor, depths: list[int]) -> TreeOutput:
        """The network on prepared RoIs: image [B, 3, S, S] in [0, 255], coarse [B, 1, S, S] in [0, 1]."""
        selector = ThresholdSelector(
            torch.tensor(depths, device=self.device),
            self.config.relabel_threshold,
            self.config.root_threshold,
            self.config.child_threshold,
            28,
        )
        image = image.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            output: TreeOutput = self.network(image, coarse, selector, max(depths))
        return output


def _has_outline(mask: NDArray[np.float32]) -> bool:
    """Whether there is foreground as well as background in a part of a mask."""
    return bool(mask.min() < mask.max())


def _harden(mask: MaskWindow) -> MaskWindow:
    """The mask cut at 0.5."""
    return mask if mask.values.dtype == bool else replace(mask, values=mask.values >= 0.5)


def window_of(mask: NDArray[Any]) -> MaskWindow:
    """A full-size mask [H, W] as a window around its values above zero."""
    if mask.dtype != bool and not np.issubdtype(mask.dtype, np.floating):
        if mask.size and not np.isin(mask, (0, 1)).all():
            raise InputError(
                f"masks of type {mask.dtype} with values beyond 0 and 1",
                remedy="pass bool or floats in [0, 1]",
            )
        mask = mask.astype(bool)
    if mask.dtype != bool:
        if mask.size and not (np.isfinite(mask).all() and mask.min() >= 0 and mask.max() <= 1):
            raise InputError("soft masks with values outside [0, 1]", remedy="pass probabilities, not logits")
        mask = mask.astype(np.float32)
    rows, columns = np.flatnonzero((mask > 0).any(1)), np.flatnonzero((mask > 0).any(0))
    if len(rows) == 0:
        return MaskWindow(mask[:0, :0], 0, 0, (mask.shape[0], mask.shape[1]))
    y0, y1, x0, x1 = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    return MaskWindow(mask[y0:y1, x0:x1], x0, y0, (mask.shape[0], mask.shape[1]))


def _check_image(image: NDArray[Any]) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise InputError(
            f"an image of shape {image.shape} and type {image.dtype}", remedy="expected H×W×3 uint8 RGB"
        )
