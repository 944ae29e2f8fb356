"""Domain randomisation: colours, textures and shapes of no data set, so that the network learns to follow outlines.

After Tobin et al., IROS 2017. None of it is in the default recipe: its shares in ``Augmentation`` are zero.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from transfiner_refine.masks import MaskWindow

__all__ = ["recolour", "rescale", "retexture", "synthetic_sample", "texture"]

Image = NDArray[np.uint8]  # [H, W, 3] RGB
_SIDES = (160, 480)  # of a synthetic image, pixels
_AREA = (0.02, 0.5)  # least and most share of it that a synthetic object covers


def texture(size: tuple[int, int], rng: np.random.Generator) -> Image:
    """Noise or stripes between two random colours, with grain; size (height, width) → [height, width, 3]."""
    h, w = size
    values = _noise(size, int(rng.integers(2, 40)), rng) + 0.5 * _noise(size, int(rng.integers(2, 40)), rng)
    if rng.random() < 0.4:
        angle, period = rng.uniform(0, np.pi), rng.uniform(4, 60)
        x, y = np.arange(w, dtype=np.float32)[None], np.arange(h, dtype=np.float32)[:, None]
        values = np.sin((2 * np.pi / period) * (np.cos(angle) * x + np.sin(angle) * y) + 2 * values)
    values = (float(rng.uniform(0.5, 3)) * values + 0.5).clip(0, 1)
    first, second = rng.uniform(0, 255, (2, 3))
    if rng.random() < 0.5:  # colours alike, as of one material
        second = first + rng.uniform(-50, 50, 3)
    grain = rng.standard_normal(size, np.float32) * float(rng.uniform(0, 12))
    channels = [
        float(low) + float(high - low) * values + grain for low, high in zip(first, second, strict=True)
    ]
    return np.stack(channels, 2).clip(0, 255).astype(np.uint8)


def synthetic_sample(rng: np.random.Generator) -> tuple[Image, MaskWindow]:
    """A shape with a texture of its own before another texture, with its mask; distractors lie behind it."""
    h, w = (int(side) for side in rng.integers(*_SIDES, 2))
    image = texture((h, w), rng)
    for _ in range(rng.integers(0, 4)):
        image = _painted(image, _shape((h, w), rng), rng)
    shape = _shape((h, w), rng)
    return _painted(image, shape, rng), MaskWindow(shape, 0, 0, (h, w)).tight()


def retexture(image: Image, truth: MaskWindow, rng: np.random.Generator) -> Image:
    """Another texture on an object or on all around it, more or less opaque."""
    inside = truth.paste()
    return _painted(image, inside if rng.random() < 0.5 else ~inside, rng, rng.uniform(0.4, 1.0))


def recolour(image: Image, rng: np.random.Generator) -> Image:
    """Channels exchanged and mixed, inverted, grey or of one hue, with another gamma."""
    mix = np.eye(3)[rng.permutation(3)] + rng.uniform(-0.3, 0.3, (3, 3))
    kind = rng.random()
    if kind < 0.25:
        mix = np.outer(np.ones(3), (0.3, 0.6, 0.1))
    elif kind < 0.45:
        mix = np.outer(rng.uniform(0.2, 1.0, 3), (0.3, 0.6, 0.1))
    levels = (image / 255 @ mix.T).clip(0, 1) ** np.exp(rng.uniform(-0.7, 0.7))
    levels = 1 - levels if rng.random() < 0.3 else levels
    return (255 * levels).astype(np.uint8)


def rescale(pixels: Image, rng: np.random.Generator) -> Image:
    """As a small image enlarged: down by up to 6 and up again, to the same size."""
    h, w = pixels.shape[:2]
    factor = np.exp(rng.uniform(0.3, np.log(6)))
    small = cv2.resize(
        pixels, (max(4, int(w / factor)), max(4, int(h / factor))), interpolation=cv2.INTER_AREA
    )
    ways = (cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_CUBIC)
    return np.asarray(cv2.resize(small, (w, h), interpolation=ways[rng.integers(3)]), np.uint8)


def _painted(image: Image, where: NDArray[np.bool_], rng: np.random.Generator, opacity: float = 1.0) -> Image:
    """A copy of an image with a texture where a mask [H, W] is; its edge is as soft as a camera's."""
    alpha = cv2.GaussianBlur(where.astype(np.float32), (0, 0), rng.uniform(0.3, 1.0))[:, :, None] * opacity
    return np.rint(image * (1 - alpha) + texture(where.shape, rng) * alpha).astype(np.uint8)


def _shape(size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.bool_]:
    """A blob, a polygon with holes, or thin curved branches: [h, w] bool."""
    h, w = size
    for _ in range(8):
        mask = np.zeros(size, np.uint8)
        kind, middle = rng.random(), rng.uniform(0.25, 0.75, 2) * (w, h)
        if kind < 0.4:
            reach = np.hypot(np.arange(w)[None] - middle[0], np.arange(h)[:, None] - middle[1]) / max(h, w)
            mask = (
                _noise(size, int(rng.integers(3, 14)), rng) * 0.15 + rng.uniform(0.1, 0.35) > reach
            ).astype(np.uint8)
        elif kind < 0.8:
            angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 15)))
            radii = rng.uniform(0.1, 0.45, (len(angles), 1)) * (w, h)
            corners = middle + radii * np.stack((np.cos(angles), np.sin(angles)), 1)
            cv2.fillPoly(mask, [corners.astype(np.int32)], 1)
            for hole in rng.choice(corners, rng.integers(0, 3)):
                cv2.circle(mask, ((hole + middle) / 2).astype(int).tolist(), int(rng.uniform(3, 20)), 0, -1)
        else:
            for _ in range(rng.integers(2, 7)):
                steps = rng.normal(0, 1, (8, 2)).cumsum(0) * rng.uniform(4, 20) + middle
                cv2.polylines(mask, [steps.astype(np.int32)], False, 1, int(rng.integers(2, 12)))
        if _AREA[0] <= mask.mean() <= _AREA[1]:
            return mask > 0
    return cv2.circle(mask * 0, (w // 2, h // 2), min(h, w) // 4, 1, -1) > 0


def _noise(size: tuple[int, int], cells: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Smooth noise of unit size with features of a ``cells``-th of the side: [h, w]."""
    noise = rng.standard_normal((cells, cells)).astype(np.float32)
    return np.asarray(cv2.resize(noise, size[::-1], interpolation=cv2.INTER_CUBIC), np.float32)
