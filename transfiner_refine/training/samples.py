"""Training samples: a photo's RoI with its coarse and its true mask, cut out, augmented and resized.

Sample number i is a function of (seed, i) alone, so an interrupted run continues with exactly the samples it
would have seen, whatever the number of worker processes.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from transfiner_refine.model.config import RefinerConfig
from transfiner_refine.model.roi import Roi, crop_roi, read_mask, resample, roi_around
from transfiner_refine.training.datasets import TrainingInstance, TrainingSet, decode
from transfiner_refine.training.simulate import simulate_coarse
from transfiner_refine.types import MaskWindow

__all__ = ["Augmentation", "RefinementSamples"]


@dataclass(frozen=True)
class Augmentation:
    """How often and how far samples are changed.

    Attributes:
        real_coarse: share of samples with a detector's real mask, where the instance has one.
        paste: share of samples whose object is pasted onto another photo.
        rotate: share of samples rotated, by up to ``degrees``.
        degrees: largest rotation, degrees.
        degrade: share of samples whose pixels are blurred or recompressed.
        margin: range of the RoI's margin, as a share of the box's side.
    """

    real_coarse: float = 0.4
    paste: float = 0.12
    rotate: float = 0.3
    degrees: float = 15.0
    degrade: float = 0.2
    margin: tuple[float, float] = (0.15, 0.45)


class RefinementSamples(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Map-style data set of ``count`` samples drawn from several training sets.

    An item is (pixels [3, S, S] uint8, masks [2, S, S] uint8 coarse and true in 0…255, RoI side [] float32).
    """

    def __init__(
        self,
        sets: list[TrainingSet],
        config: RefinerConfig,
        *,
        count: int,
        seed: int,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.sets, self.config, self.count, self.seed = sets, config, count, seed
        self.augmentation = augmentation or Augmentation()
        weights = np.array([s.weight for s in sets], dtype=np.float64)
        self.share = weights / weights.sum()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        rng = np.random.default_rng((self.seed, index))
        image, truth, coarse = self._draw(rng)
        roi = roi_around(coarse, self.config, rng.uniform(*self.augmentation.margin))
        side = self.config.detail_side
        pixels = crop_roi(image, roi, side)
        masks = np.stack([self._resized(mask, roi) for mask in (coarse, truth)], 2)
        pixels, masks = self._augment(pixels, masks, rng)
        return (
            torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))),
            torch.from_numpy(np.ascontiguousarray(masks.transpose(2, 0, 1))),
            torch.tensor(roi.side, dtype=torch.float32),
        )

    def _resized(self, mask: MaskWindow, roi: Roi) -> NDArray[np.uint8]:
        side = self.config.detail_side
        return np.rint(resample(read_mask(mask, roi), side, side) * 255).astype(np.uint8)

    def _instance(self, rng: np.random.Generator) -> tuple[TrainingSet, TrainingInstance]:
        chosen = self.sets[int(rng.choice(len(self.sets), p=self.share))]
        return chosen, chosen.instances[int(rng.integers(len(chosen.instances)))]

    def _draw(self, rng: np.random.Generator) -> tuple[NDArray[np.uint8], MaskWindow, MaskWindow]:
        chosen, instance = self._instance(rng)
        image, truth = chosen.photo(instance.image), decode(instance.truth)
        if rng.random() < self.augmentation.paste:
            host, other = self._instance(rng)
            image, truth = paste_object(image, truth, host.photo(other.image), rng)
            return image, truth, simulate_coarse(truth, rng)
        if instance.coarse and rng.random() < self.augmentation.real_coarse:
            return image, truth, decode(instance.coarse[int(rng.integers(len(instance.coarse)))])
        return image, truth, simulate_coarse(truth, rng)

    def _augment(
        self, pixels: NDArray[np.uint8], masks: NDArray[np.uint8], rng: np.random.Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        if rng.random() < 0.5:
            pixels, masks = pixels[:, ::-1], masks[:, ::-1]
        if rng.random() < self.augmentation.rotate:
            side = pixels.shape[0]
            angle = rng.uniform(-self.augmentation.degrees, self.augmentation.degrees)
            matrix = cv2.getRotationMatrix2D((side / 2 - 0.5, side / 2 - 0.5), angle, 1.0)
            pixels = cv2.warpAffine(
                np.ascontiguousarray(pixels), matrix, (side, side), borderMode=cv2.BORDER_REFLECT_101
            )
            masks = cv2.warpAffine(
                np.ascontiguousarray(masks), matrix, (side, side), borderMode=cv2.BORDER_REFLECT_101
            )
        if rng.random() < self.augmentation.degrade:
            pixels = _degrade_pixels(np.ascontiguousarray(pixels), rng)
        return pixels, masks


def _degrade_pixels(pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Out of focus, or recompressed: photos in the wild are worse than those of a data set."""
    if rng.random() < 0.5:
        blurred: NDArray[np.uint8] = cv2.GaussianBlur(pixels, (0, 0), rng.uniform(0.5, 2.0))
        return blurred
    ok, coded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(40, 90))])
    assert ok
    decoded = cv2.imdecode(coded, cv2.IMREAD_COLOR)
    assert decoded is not None
    return decoded


def paste_object(
    image: NDArray[np.uint8], truth: MaskWindow, host: NDArray[np.uint8], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], MaskWindow]:
    """Cuts an object out and pastes it, scaled, somewhere on another photo.

    Returns:
        the new photo (H×W×3 uint8) and the object's mask in it.
    """
    tight = truth.tight()
    h, w = tight.values.shape
    height, width = host.shape[:2]
    scale = min(rng.uniform(0.5, 1.2), 0.95 * height / h, 0.95 * width / w)
    new_w, new_h = max(2, int(w * scale)), max(2, int(h * scale))
    cut = resample(image[tight.y : tight.y + h, tight.x : tight.x + w], new_w, new_h)
    alpha = resample(tight.values.astype(np.float32), new_w, new_h)
    if not (alpha >= 0.5).any():
        return image, truth
    x, y = int(rng.integers(width - new_w + 1)), int(rng.integers(height - new_h + 1))
    # the rim mixes with the new background as it would in a camera
    soft = cv2.GaussianBlur(alpha, (0, 0), rng.uniform(0.4, 1.2))[:, :, None]
    out = host.copy()
    spot = out[y : y + new_h, x : x + new_w]
    spot[:] = np.rint(cut * soft + spot * (1 - soft)).astype(np.uint8)
    return out, MaskWindow(alpha >= 0.5, x, y, (height, width))
