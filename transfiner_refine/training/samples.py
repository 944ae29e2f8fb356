"""Training samples: a photo's RoI with its coarse and its true mask, cut out, augmented and resized.

Sample number i is a function of the seed, i and the run's length alone, so an interrupted run continues with exactly
the samples it would have seen, whatever the number of worker processes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from transfiner_refine.masks import MaskWindow
from transfiner_refine.model.config import RefinerConfig
from transfiner_refine.refine.roi import Roi, crop_roi, read_mask, resample, roi_around
from transfiner_refine.training.composites import change_backdrop, occlude, paste_object, shorten
from transfiner_refine.training.datasets import TrainingInstance, TrainingSet
from transfiner_refine.training.simulate import simulate_coarse

__all__ = ["Augmentation", "RefinementSamples"]

_FULL_SIDE = 64  # square root of the area from which instances are drawn equally often, pixels
_LEAST_SHARE = 0.2  # of the smallest, compared with those


@dataclass(frozen=True)
class Augmentation:
    """How often and how far samples are changed.

    Attributes:
        real_coarse: share of samples with a detector's real mask, where the instance has one.
        follow_image: share of the simulated masks with errors that follow the image's regions.
        paste: share of samples whose object is pasted onto another photo.
        backdrop: share of samples whose object stays where it is while another photo takes the place of all the rest.
        occlude: share of samples where another photo's object hides a part of the object.
        shorten: share of samples whose object ends, in its true and in its coarse mask, where nothing in the photo
            shows it.
        join: share of samples in which two neighbours that the set knows as two objects count as one.
        warp: share of samples rotated by up to ``degrees``, stretched by up to ``stretch`` and sheared by up to
            ``shear``.
        degrees: largest rotation, degrees.
        stretch: largest change of the ratio of the sides, as a share.
        shear: largest shear, as a share of the side.
        degrade: share of samples whose pixels are blurred, recompressed, noisy or grey.
        margin: range of the RoI's margin, as a share of the box's side.
        finale: share of the run, at its end, in which what is pasted, warped, degraded and made to follow the image is
            halved: the last steps should see what users bring.
    """

    real_coarse: float = 0.4
    follow_image: float = 0.15
    paste: float = 0.15
    backdrop: float = 0.1
    occlude: float = 0.1
    shorten: float = 0.1
    join: float = 0.06
    warp: float = 0.5
    degrees: float = 20.0
    stretch: float = 0.2
    shear: float = 0.12
    degrade: float = 0.3
    margin: tuple[float, float] = (0.15, 0.45)
    finale: float = 0.1

    def at(self, progress: float) -> Augmentation:
        """The augmentation at a point of the run, 0 at its start and 1 at its end."""
        if progress < 1 - self.finale:
            return self
        return replace(
            self,
            follow_image=self.follow_image / 2,
            paste=self.paste / 2,
            backdrop=self.backdrop / 2,
            occlude=self.occlude / 2,
            warp=self.warp / 2,
            degrade=self.degrade / 2,
        )


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
        self.instance_share = [_shares(s) for s in sets]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        rng = np.random.default_rng((self.seed, index))
        augmentation = self.augmentation.at(index / self.count)
        image, truth, coarse = self._draw(augmentation, rng)
        roi = roi_around(coarse, self.config, rng.uniform(*augmentation.margin))
        side = self.config.detail_side
        pixels = crop_roi(image, roi, side)
        masks = np.stack([self._resized(mask, roi) for mask in (coarse, truth)], 2)
        pixels, masks = _augmented(pixels, masks, augmentation, rng)
        return (
            torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))),
            torch.from_numpy(np.ascontiguousarray(masks.transpose(2, 0, 1))),
            torch.tensor(roi.side, dtype=torch.float32),
        )

    def _resized(self, mask: MaskWindow, roi: Roi) -> NDArray[np.uint8]:
        side = self.config.detail_side
        return np.rint(resample(read_mask(mask, roi), side, side) * 255).astype(np.uint8)

    def _instance(self, rng: np.random.Generator) -> tuple[TrainingSet, TrainingInstance]:
        number = int(rng.choice(len(self.sets), p=self.share))
        chosen, share = self.sets[number], self.instance_share[number]
        return chosen, chosen.instances[int(rng.choice(len(share), p=share))]

    def _draw(
        self, augmentation: Augmentation, rng: np.random.Generator
    ) -> tuple[NDArray[np.uint8], MaskWindow, MaskWindow]:
        """A photo with a true and a coarse mask of one object in it."""
        chosen, instance = self._instance(rng)
        image, truth = chosen.photo(instance.image), instance.truth.decode()
        kind = rng.random()
        composed = augmentation.paste + augmentation.backdrop
        if kind < composed + augmentation.occlude:
            host, other = self._instance(rng)
            behind = host.photo(other.image)
            if kind < augmentation.paste:
                image, truth = paste_object(image, truth, behind, rng)
            elif kind < composed:
                image = change_backdrop(image, truth, behind, rng)
            else:
                image, truth = occlude(image, truth, behind, other.truth.decode(), rng)
        elif kind < composed + augmentation.occlude + augmentation.shorten:
            truth = shorten(truth, rng)
        elif kind < composed + augmentation.occlude + augmentation.shorten + augmentation.join:
            truth = _with_neighbour(chosen, instance, rng)
        elif instance.coarse and rng.random() < augmentation.real_coarse:
            return image, truth, instance.coarse[int(rng.integers(len(instance.coarse)))].decode()
        follows = rng.random() < augmentation.follow_image
        return image, truth, simulate_coarse(truth, rng, image if follows else None)


def _augmented(
    pixels: NDArray[np.uint8], masks: NDArray[np.uint8], augmentation: Augmentation, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Mirrored, warped and degraded at random: pixels [S, S, 3] and masks [S, S, 2]."""
    if rng.random() < 0.5:
        pixels, masks = pixels[:, ::-1], masks[:, ::-1]
    if rng.random() < augmentation.warp:
        matrix = _warp(pixels.shape[0], augmentation, rng)
        pixels, masks = (_warped(part, matrix) for part in (pixels, masks))
    if rng.random() < augmentation.degrade:
        pixels = _degrade_pixels(np.ascontiguousarray(pixels), rng)
    return pixels, masks


def _warp(side: int, reach: Augmentation, rng: np.random.Generator) -> NDArray[np.float64]:
    """A random affine map about the middle of a square: 2×3."""
    angle = np.deg2rad(rng.uniform(-reach.degrees, reach.degrees))
    stretch = np.exp(rng.uniform(-1, 1) * np.log1p(reach.stretch) / 2)
    shear = rng.uniform(-1, 1) * reach.shear
    linear = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = linear @ np.array([[stretch, shear], [0.0, 1 / stretch]])
    centre = np.full(2, side / 2 - 0.5)
    return np.hstack([linear, (centre - linear @ centre)[:, None]])


def _with_neighbour(data: TrainingSet, instance: TrainingInstance, rng: np.random.Generator) -> MaskWindow:
    """The true mask of an object and of another in the same photo whose box meets its own, if there is one."""
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


def _warped(part: NDArray[np.uint8], matrix: NDArray[np.float64]) -> NDArray[np.uint8]:
    h, w = part.shape[:2]
    warped: NDArray[np.uint8] = cv2.warpAffine(
        np.ascontiguousarray(part), matrix, (w, h), borderMode=cv2.BORDER_REFLECT_101
    )
    return warped


def _degrade_pixels(pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Out of focus, recompressed, noisy, grey: photos in the wild are worse than those of a data set."""
    kind = rng.random()
    if kind < 0.2:
        noise = np.empty(pixels.shape, np.int16)
        cv2.setRNGSeed(int(rng.integers(2**31)))
        cv2.randn(noise, 0, rng.uniform(3, 14))
        noisy: NDArray[np.uint8] = cv2.add(pixels, noise, dtype=cv2.CV_8U)
        return noisy
    if kind < 0.3:
        grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
        return np.repeat(grey[:, :, None], 3, 2)
    if kind < 0.65:
        blurred: NDArray[np.uint8] = cv2.GaussianBlur(pixels, (0, 0), rng.uniform(0.5, 2.0))
        return blurred
    ok, coded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(40, 90))])
    assert ok
    decoded = cv2.imdecode(coded, cv2.IMREAD_COLOR)
    assert decoded is not None
    return decoded
