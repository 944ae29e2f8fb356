"""Simulated errors that follow the image: a coarse mask is wrong by whole regions of even colour.

Networks of high resolution, classical segmentation and labelling by clicks err so: their outlines lie on edges of the
image, only on the wrong ones. Such a mask looks right to whoever judges by edges alone.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["Segments"]

Mask = NDArray[np.uint8]  # [h, w], 0 or 1
_SIDE = 144  # longer side of the picture that is segmented, pixels; regions need no more


class Segments:
    """A picture in regions: a watershed of its colours from seeds on a jittered grid.

    Args:
        pixels: [h, w, 3] uint8.
        rng: chooses the regions' size and the seeds.
    """

    def __init__(self, pixels: NDArray[np.uint8], rng: np.random.Generator) -> None:
        self.size = pixels.shape[1::-1]  # (width, height)
        scale = _SIDE / max(self.size)
        width, height = (max(4, round(s * scale)) for s in self.size)
        small = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
        spacing = rng.uniform(6.0, 24.0)
        rows, columns = max(2, int(height / spacing)), max(2, int(width / spacing))
        y, x = np.mgrid[:rows, :columns].astype(np.float64) + rng.uniform(0.1, 0.9, (2, rows, columns))
        seeds = np.zeros((height, width), np.int32)
        seeds[(y * height / rows).astype(int), (x * width / columns).astype(int)] = np.arange(
            1, rows * columns + 1
        ).reshape(rows, columns)
        labels = cv2.watershed(np.ascontiguousarray(small), seeds)
        # the lines between regions, and the rim, are -1: they fall to a neighbour
        grown = cv2.dilate(labels.astype(np.float32), np.ones((3, 3), np.uint8))
        self.labels: NDArray[np.int64] = np.where(labels < 0, grown, labels).astype(np.int64).clip(0)

    def voted(self, mask: Mask, rng: np.random.Generator) -> Mask:
        """Every region goes to the side that holds most of it."""
        share = self._share(mask)
        return self._enlarged(share[self.labels] >= rng.uniform(0.35, 0.65))

    def swapped(self, mask: Mask, rng: np.random.Generator) -> Mask:
        """One to three regions at the outline are lost, or added, as a whole."""
        small = self._reduced(mask) >= 0.5
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7))
        near = cv2.morphologyEx(small.astype(np.uint8), cv2.MORPH_GRADIENT, disc)
        touched = np.unique(self.labels[near > 0])
        if len(touched) == 0:
            return mask
        out, share = mask.copy(), self._share(mask)
        for region in rng.choice(touched, size=min(len(touched), int(rng.integers(1, 4))), replace=False):
            area = self._enlarged(self.labels == region)
            # what is mostly outside can only be added, what is mostly inside only lost
            if rng.random() < share[region]:
                out &= 1 - area
            else:
                out |= area
        return out

    def _share(self, mask: Mask) -> NDArray[np.float64]:
        """Of each region, the share inside the mask."""
        labels = self.labels.ravel()
        inside = np.bincount(labels, self._reduced(mask).ravel())
        shares: NDArray[np.float64] = inside / np.maximum(np.bincount(labels), 1)
        return shares

    def _reduced(self, mask: Mask) -> NDArray[np.float32]:
        reduced: NDArray[np.float32] = cv2.resize(
            mask.astype(np.float32), self.labels.shape[::-1], interpolation=cv2.INTER_AREA
        )
        return reduced

    def _enlarged(self, region: NDArray[np.bool_]) -> Mask:
        return (
            cv2.resize(region.astype(np.float32), self.size, interpolation=cv2.INTER_LINEAR) >= 0.5
        ).astype(np.uint8)
