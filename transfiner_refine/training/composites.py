"""Photos made of two: an object pasted onto another photo, before another backdrop, or with another in front of it.

And objects that end where nothing in the photo shows it.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from transfiner_refine.masks import MaskWindow
from transfiner_refine.refine.roi import Roi, read_mask, resample, roi_of
from transfiner_refine.training.simulate import near_side, outline_point

__all__ = ["change_backdrop", "occlude", "paste_object", "shorten"]

_RIM = 4  # pixels around an object that a new backdrop mixes with
_LEAST_VISIBLE = 0.6  # of an object's area, when another hides the rest
_LARGEST_SCALE = 2.0  # beyond it an object is a blur


def paste_object(
    image: NDArray[np.uint8], truth: MaskWindow, host: NDArray[np.uint8], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], MaskWindow]:
    """Cuts an object out and pastes it, scaled, somewhere on another photo.

    Returns:
        the new photo (H×W×3 uint8) and the object's mask in it.
    """
    height, width = host.shape[:2]
    tight = truth.tight()
    h, w = tight.values.shape
    cut, alpha = _cut_out(image, tight, min(rng.uniform(0.5, 1.2), 0.95 * height / h, 0.95 * width / w))
    if not (alpha >= 0.5).any():
        return image, truth
    h, w = alpha.shape
    x, y = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
    out = host.copy()
    _blend(cut, alpha, out[y : y + h, x : x + w], rng)
    return out, MaskWindow(alpha >= 0.5, x, y, (height, width))


def change_backdrop(
    image: NDArray[np.uint8], truth: MaskWindow, host: NDArray[np.uint8], rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Puts another photo, mirrored at random, behind an object: H×W×3 uint8."""
    height, width = image.shape[:2]
    behind = cv2.resize(host, (width, height), interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.5:
        behind = behind[:, ::-1]
    tight = truth.tight()
    h, w = tight.values.shape
    y0, x0 = max(0, tight.y - _RIM), max(0, tight.x - _RIM)
    y1, x1 = min(height, tight.y + h + _RIM), min(width, tight.x + w + _RIM)
    alpha = read_mask(tight, Roi(x0, y0, x1, y1)).astype(np.float32)
    out = np.ascontiguousarray(behind)
    _blend(image[y0:y1, x0:x1], alpha, out[y0:y1, x0:x1], rng)
    return out


def occlude(
    image: NDArray[np.uint8],
    truth: MaskWindow,
    other_image: NDArray[np.uint8],
    other: MaskWindow,
    rng: np.random.Generator,
) -> tuple[NDArray[np.uint8], MaskWindow]:
    """Puts another photo's object on an object's outline, where it hides a part: neighbours touch, as in crowds.

    Returns:
        the new photo (H×W×3 uint8) and the mask of what is still seen of the object; both as they were if too
        little of it were.
    """
    tight, other = truth.tight(), other.tight()
    side, other_side = (float(np.sqrt(mask.values.size)) for mask in (tight, other))
    cut, alpha = _cut_out(other_image, other, min(rng.uniform(0.3, 1.0) * side / other_side, _LARGEST_SCALE))
    point = outline_point(np.pad(tight.values.astype(np.uint8), 1), rng)
    if point is None:
        return image, truth
    height, width = image.shape[:2]
    h, w = alpha.shape
    y, x = tight.y + point[0] - 1 - h // 2, tight.x + point[1] - 1 - w // 2  # point lies on the padded canvas
    y0, x0, y1, x1 = max(0, y), max(0, x), min(height, y + h), min(width, x + w)
    cut, alpha = cut[y0 - y : y1 - y, x0 - x : x1 - x], alpha[y0 - y : y1 - y, x0 - x : x1 - x]
    hidden = read_mask(MaskWindow(alpha >= 0.5, x0, y0, truth.image_size), roi_of(tight))
    seen = tight.values & ~(hidden >= 0.5)
    if np.count_nonzero(seen) < _LEAST_VISIBLE * tight.area:
        return image, truth
    out = image.copy()
    _blend(cut, alpha, out[y0:y1, x0:x1], rng)
    return out, MaskWindow(seen, tight.x, tight.y, truth.image_size)


def shorten(truth: MaskWindow, rng: np.random.Generator) -> MaskWindow:
    """The mask of a part of an object: all that lies on one side of a slightly bent line.

    Labels end so where a table meets the next one, or a slice its pizza: only whoever drew the mask knows where.
    """
    tight = truth.tight()
    part = tight.values & near_side(tight.values, rng, (_LEAST_VISIBLE, 0.95), bend=0.3)
    return MaskWindow(part, tight.x, tight.y, truth.image_size)


def _cut_out(
    image: NDArray[np.uint8], tight: MaskWindow, scale: float
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """A tight mask's box, scaled: pixels [h, w, 3] and the share of each that is the object [h, w]."""
    h, w = tight.values.shape
    width, height = max(2, int(w * scale)), max(2, int(h * scale))
    cut = resample(image[tight.y : tight.y + h, tight.x : tight.x + w], width, height)
    return cut, resample(tight.values.astype(np.float32), width, height)


def _blend(
    cut: NDArray[np.uint8], alpha: NDArray[np.float32], spot: NDArray[np.uint8], rng: np.random.Generator
) -> None:
    """Puts a cut-out over ``spot``, in place; its rim mixes with the background as it would in a camera."""
    soft = cv2.GaussianBlur(alpha, (0, 0), rng.uniform(0.4, 1.2))[:, :, None]
    spot[:] = np.rint(cut * soft + spot * (1 - soft)).astype(np.uint8)
