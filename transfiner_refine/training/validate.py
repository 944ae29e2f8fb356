"""Scores of a checkpoint on held-out sets while it trains."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from transfiner_refine.evaluation.overlap import boundary_iou, mask_iou
from transfiner_refine.masks import MaskWindow
from transfiner_refine.refiner import load_refiner
from transfiner_refine.training.datasets import TrainingSet
from transfiner_refine.training.simulate import simulate_coarse

__all__ = ["Validation"]

_LEAST_IOU = 0.5
_LEAST_AREA = 1024  # pixels


class Validation:
    """Mean gain in IoU and boundary IoU on some sets, in points.

    Instances with a detector's mask are scored on it, the others on a simulated one. As in ``evaluate``, only
    instances of 1024 pixels or more with a coarse IoU of 0.5 or more count.

    Args:
        sets: held-out data.
        limit: instances drawn from each set, always the same ones.
        device: where to run.
    """

    def __init__(self, sets: list[TrainingSet], limit: int, device: str = "auto") -> None:
        self.sets, self.device = sets, device
        self.chosen = [self._choose(s, limit) for s in sets]

    def _choose(self, data: TrainingSet, limit: int) -> list[tuple[int, MaskWindow, MaskWindow]]:
        rng = np.random.default_rng(zlib.crc32(data.name.encode()))
        chosen = []
        for index in rng.permutation(len(data.instances)):
            instance = data.instances[int(index)]
            truth = instance.truth.decode()
            coarse = instance.coarse[0].decode() if instance.coarse else simulate_coarse(truth, rng)
            if truth.area >= _LEAST_AREA and mask_iou(coarse, truth) >= _LEAST_IOU:
                chosen.append((instance.image, truth, coarse))
            if len(chosen) == limit:
                break
        return chosen

    def __call__(self, weights: Path) -> dict[str, float]:
        """Name → gain in points, for the checkpoint ``weights``."""
        refiner = load_refiner(weights, device=self.device, engine="torch")
        scores: dict[str, float] = {}
        for data, chosen in zip(self.sets, self.chosen, strict=True):
            gains = []
            for image, truth, coarse in chosen:
                refined = refiner.refine_windows([data.photo(image)], [coarse], [0])[0]
                gains.append(
                    (
                        mask_iou(refined, truth) - mask_iou(coarse, truth),
                        boundary_iou(refined, truth) - boundary_iou(coarse, truth),
                    )
                )
            mean = 100 * np.mean(gains, 0) if gains else np.zeros(2)
            scores[f"{data.name} IoU"] = round(float(mean[0]), 3)
            scores[f"{data.name} boundary IoU"] = round(float(mean[1]), 3)
        return scores
