"""Refined masks with what there is to say of each: how much it changed, how far to trust it, boxes and polygons."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.formats.polygons import outlines
from transfiner_refine.masks import MaskWindow

# A logistic regression of the IoU with the truth, fitted to dev-val by benchmarks/confidence.py: intercept, and the
# coefficients of what ``regressors`` gives.
_COEFFICIENTS = np.array((-0.696, 1.163, 0.319, -0.260, -2.934))


@dataclass(frozen=True)
class Refined:
    """The refined masks of one image, in the order in which they were given.

    Attributes:
        masks: [N, H, W] bool.
        probabilities: [N, H, W] float32 in [0, 1]; a mask that was kept as it was has its own values.
        change: [N] float32, 1 - IoU of the given and the refined mask: 0 where nothing changed.
        confidence: [N] float32, the IoU with the truth that is to be expected, as calibrated for the built-in weights;
            0 for an empty mask.
        boxes: [N, 4] int64, x0, y0, x1, y1 in pixels, x1 and y1 exclusive; 0 for an empty mask.
    """

    masks: NDArray[np.bool_]
    probabilities: NDArray[np.float32]
    change: NDArray[np.float32]
    confidence: NDArray[np.float32]
    boxes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.masks)

    @property
    def polygons(self) -> list[list[NDArray[np.int64]]]:
        """For each mask its outlines along the edges of pixels, [points, xy] each; holes are outlines, too."""
        return [
            [loop.points for loop in outlines(MaskWindow(mask, 0, 0, (mask.shape[0], mask.shape[1])))]
            for mask in self.masks
        ]

    @classmethod
    def of(cls, given: NDArray[np.bool_ | np.float32], probabilities: NDArray[np.float32]) -> Refined:
        """From masks as they were given and as they came back, [N, H, W] both."""
        masks = probabilities >= 0.5
        pairs = zip(given, probabilities, strict=True)
        features = np.array([confidence_features(*each) for each in pairs], float).reshape(-1, 3)
        boxes = [
            MaskWindow(mask, 0, 0, (mask.shape[0], mask.shape[1])).box if mask.any() else (0, 0, 0, 0)
            for mask in masks
        ]
        change = (1 - features[:, 1]).astype(np.float32)
        boxes_array = np.array(boxes, np.int64).reshape(-1, 4)
        return cls(masks, probabilities, change, _confidence(features), boxes_array)


def confidence_features(
    given: NDArray[np.bool_ | np.float32], probability: NDArray[np.float32]
) -> tuple[float, float, float]:
    """What tells of a mask's quality: [H, W] as it was given, and its probability after refining.

    Returns:
        the IoU that the probability expects of its own mask; the IoU of given and refined mask; the side of the
        refined mask in pixels, as the root of its area (0 for an empty one).
    """
    mask, before = probability >= 0.5, given >= 0.5
    inside, area = float(probability[mask].sum()), int(np.count_nonzero(mask))
    either = np.count_nonzero(mask | before)
    expected = inside / (area + float(probability.sum()) - inside) if area else 0.0
    return expected, np.count_nonzero(mask & before) / either if either else 1.0, area**0.5


def regressors(features: NDArray[np.float64]) -> NDArray[np.float64]:
    """[N, 5] from [N, 3] features: 1, log odds of the two IoUs, log of the side, whether nothing changed at all."""
    expected, unchanged, side = features.T
    odds = [np.log((share + 0.01) / (1.01 - share)) for share in (expected, unchanged)]
    kept = (unchanged == 1) & (expected == 1)
    return np.stack((np.ones(len(features)), *odds, np.log(np.maximum(side, 1)), kept), axis=1)


def _confidence(features: NDArray[np.float64]) -> NDArray[np.float32]:
    """[N] from [N, 3] features."""
    expected = 1 / (1 + np.exp(-regressors(features) @ _COEFFICIENTS))
    return np.where(features[:, 2] > 0, expected, 0).astype(np.float32)
