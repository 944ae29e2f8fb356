"""Training samples: an image's RoI with its coarse and its true mask, cut out, augmented and resized.

Sample number i depends on the seed, i and the run's length alone, so an interrupted run continues with exactly the
samples it would have seen, whatever the number of worker processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from transfiner_refine.masks import MaskWindow
from transfiner_refine.model.config import RefinerConfig
from transfiner_refine.refine.roi import crop_roi, read_mask, resample, roi_around
from transfiner_refine.training.augment import change_backdrop, degrade, occlude, paste_object, shorten, warp
from transfiner_refine.training.datasets import TrainingInstance, TrainingSet
from transfiner_refine.training.randomise import recolour, rescale, retexture, synthetic_sample
from transfiner_refine.training.simulate import ERRORS, simulate_coarse

__all__ = ["Augmentation", "RefinementSamples"]

_FULL_SIDE = 64  # square root of the area from which instances are drawn equally often, pixels
_LEAST_SHARE = 0.2  # of the smallest, compared with those


@dataclass(frozen=True)
class Augmentation:
    """How often and how far samples are changed; shares of all samples unless noted."""

    real_coarse: float = 0.4  # with a detector's real mask, where the instance has one
    follow_image: float = 0.15  # of the simulated masks: errors that follow the image's regions
    paste: float = 0.15  # object pasted onto another image
    backdrop: float = 0.1  # another image in place of everything but the object
    occlude: float = 0.1  # another image's object hides a part of the object
    shorten: float = 0.1  # object ends, in both masks, where nothing in the image shows it
    join: float = 0.06  # two neighbours of a set count as one object
    leak: float = 0.0  # coarse mask holds what lies of a neighbour in a detector's box
    synthetic: float = 0.0  # made up: a shape with a texture before another
    retexture: float = 0.0  # made up texture on the object or on all around it
    recolour: float = 0.0  # channels exchanged, inverted, grey or of one hue
    rescale: float = 0.0  # shrunk and enlarged again
    errors: Mapping[str, float] = field(default_factory=lambda: dict(ERRORS))  # of the simulated masks
    warp: float = 0.5  # rotated, stretched and sheared
    reach: tuple[float, float, float] = (
        20.0,
        0.2,
        0.12,
    )  # of ``warp``: degrees, change of the sides' ratio, shear
    degrade: float = 0.3  # pixels blurred, recompressed, noisy or grey
    margin: tuple[float, float] = (0.15, 0.45)  # range of the RoI's margin, as a share of the box's side
    finale: float = (
        0.1  # share of the run, at its end, with milder changes: the last steps see what users bring
    )

    def at(self, progress: float) -> Augmentation:
        """The augmentation at a point of the run, 0 at its start and 1 at its end."""
        if progress < 1 - self.finale:
            return self
        halved = ("follow_image", "paste", "backdrop", "occlude", "warp", "degrade")
        return replace(self, **{name: getattr(self, name) / 2 for name in halved})

    def composition(self, rng: np.random.Generator) -> str:
        """Draws one of the ways to compose a sample, "" for none."""
        number = rng.random()
        for name in ("paste", "backdrop", "occlude", "shorten", "join", "leak", "synthetic", "retexture"):
            number -= getattr(self, name)
            if number < 0:
                return name
        return ""


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
        self.config, self.count, self.seed = config, count, seed
        self.augmentation = augmentation or Augmentation()
        self.pool = [(data, instance) for data in sets for instance in data.instances]
        shares = np.concatenate([data.weight * _shares(data) for data in sets])
        self.cumulative = shares.cumsum() / shares.sum()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        rng = np.random.default_rng((self.seed, index))
        augmentation = self.augmentation.at(index / self.count)
        image, truth, coarse = self._draw(augmentation, rng)
        roi = roi_around(coarse, self.config, rng.uniform(*augmentation.margin))
        side = self.config.detail_side
        pixels = crop_roi(image, roi, side)
        resized = [resample(read_mask(mask, roi), side, side) for mask in (coarse, truth)]
        masks = np.rint(np.stack(resized, 2) * 255).astype(np.uint8)
        if rng.random() < 0.5:
            pixels, masks = pixels[:, ::-1], masks[:, ::-1]
        if rng.random() < augmentation.warp:
            pixels, masks = warp(pixels, masks, augmentation.reach, rng)
        if rng.random() < augmentation.recolour:
            pixels = recolour(pixels, rng)
        if rng.random() < augmentation.rescale:
            pixels = rescale(pixels, rng)
        if rng.random() < augmentation.degrade:
            pixels = degrade(np.ascontiguousarray(pixels), rng)
        return (
            torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))),
            torch.from_numpy(np.ascontiguousarray(masks.transpose(2, 0, 1))),
            torch.tensor(roi.side, dtype=torch.float32),
        )

    def _instance(self, rng: np.random.Generator) -> tuple[TrainingSet, TrainingInstance]:
        return self.pool[int(np.searchsorted(self.cumulative[:-1], rng.random(), side="right"))]

    def _draw(
        self, augmentation: Augmentation, rng: np.random.Generator
    ) -> tuple[NDArray[np.uint8], MaskWindow, MaskWindow]:
        """An image with a true and a coarse mask of one object in it."""
        chosen, instance = self._instance(rng)
        image, truth = chosen.photo(instance.image), instance.truth.decode()
        composition = augmentation.composition(rng)
        if composition in ("paste", "backdrop", "occlude"):
            host, other = self._instance(rng)
            other_image = host.photo(other.image)
            if composition == "paste":
                image, truth = paste_object(image, truth, other_image, rng)
            elif composition == "backdrop":
                image = change_backdrop(image, truth, other_image, rng)
            else:
                image, truth = occlude(image, truth, other_image, other.truth.decode(), rng)
        elif composition == "synthetic":
            image, truth = synthetic_sample(rng)
        elif composition == "retexture":
            image = retexture(image, truth, rng)
        elif composition == "shorten":
            truth = shorten(truth, rng)
        elif composition == "join":
            truth = _with_neighbour(chosen, instance, rng)
        elif not composition and instance.coarse and rng.random() < augmentation.real_coarse:
            return image, truth, instance.coarse[int(rng.integers(len(instance.coarse)))].decode()
        meant = truth
        if composition == "leak":
            box = roi_around(truth, self.config, rng.uniform(0, 0.3))
            values = read_mask(_with_neighbour(chosen, instance, rng), box) >= 0.5
            meant = MaskWindow(values, box.x0, box.y0, truth.image_size)
        follows = rng.random() < augmentation.follow_image
        return image, truth, simulate_coarse(meant, rng, image if follows else None, augmentation.errors)


def _with_neighbour(data: TrainingSet, instance: TrainingInstance, rng: np.random.Generator) -> MaskWindow:
    """The true mask of an object and of another in the same image whose box meets its own, if there is one."""
    x0, y0, x1, y1 = instance.truth.box
    near = []
    for other in data.instances:
        if other.image == instance.image and other is not instance:
            left, top, right, bottom = other.truth.box
            if max(x0, left) <= min(x1, right) and max(y0, top) <= min(y1, bottom):
                near.append(other)
    if not near:
        return instance.truth.decode()
    joined = instance.truth.decode().paste()
    joined |= near[int(rng.integers(len(near)))].truth.decode().paste()
    return MaskWindow(joined, 0, 0, instance.truth.size).tight()


def _shares(data: TrainingSet) -> NDArray[np.float64]:
    """How often each instance of a set is drawn; small ones less, for a few pixels teach little about outlines."""
    areas = np.array([float(instance.truth.area) for instance in data.instances])
    shares = np.clip(np.sqrt(areas) / _FULL_SIDE, _LEAST_SHARE, 1.0)
    return np.asarray(shares / shares.sum())
