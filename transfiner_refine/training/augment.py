"""Changes to a sample: images composed of two, shortened objects, geometry, image quality, colours."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from transfiner_refine.masks import MaskWindow
from transfiner_refine.refine.roi import Roi, read_mask, resample, roi_of
from transfiner_refine.training.simulate import near_side, outline_point

__all__ = ["change_backdrop", "degrade", "jitter_colours", "occlude", "paste_object", "shorten", "warp"]

Image = NDArray[np.uint8]  # [H, W, 3] RGB
_RIM = 4  # pixels around an object that a new backdrop mixes with
_LEAST_VISIBLE = 0.6  # of an object's area, when another hides the rest
_LARGEST_SCALE = 2.0  # beyond it an object is a blur


def paste_object(
    image: Image, truth: MaskWindow, host: Image, rng: np.random.Generator
) -> tuple[Image, MaskWindow]:
    """Cuts an object out and pastes it, scaled, somewhere on another image; gives that image and its mask there."""
    height, width = host.shape[:2]
    tight = truth.tight()
    h, w = tight.values.shape
    cut, alpha = _cut_out(image, tight, min(rng.uniform(0.5, 1.2), 0.95 * height / h, 0.95 * width / w))
    if not (alpha >= 0.5).any():
        return image, truth
    h, w = alpha.shape
    x, y = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
    return _blended(host, cut, alpha, x, y, rng), MaskWindow(alpha >= 0.5, x, y, (height, width))


def change_backdrop(image: Image, truth: MaskWindow, host: Image, rng: np.random.Generator) -> Image:
    """Puts another image, mirrored at random, behind an object."""
    height, width = image.shape[:2]
    behind = cv2.resize(host, (width, height), interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.5:
        behind = behind[:, ::-1]
    box = roi_of(truth.tight())
    box = Roi(
        max(0, box.x0 - _RIM), max(0, box.y0 - _RIM), min(width, box.x1 + _RIM), min(height, box.y1 + _RIM)
    )
    alpha = read_mask(truth, box).astype(np.float32)
    return _blended(behind, image[box.y0 : box.y1, box.x0 : box.x1], alpha, box.x0, box.y0, rng)


def occlude(
    image: Image, truth: MaskWindow, other_image: Image, other: MaskWindow, rng: np.random.Generator
) -> tuple[Image, MaskWindow]:
    """Puts another image's object on an object's outline, where it hides a part: neighbours touch, as in crowds.

    Returns:
        the new image and the mask of the object's visible part; both unchanged if too little would be visible.
    """
    tight, other = truth.tight(), other.tight()
    side, other_side = (float(np.sqrt(mask.values.size)) for mask in (tight, other))
    cut, alpha = _cut_out(other_image, other, min(rng.uniform(0.3, 1.0) * side / other_side, _LARGEST_SCALE))
    point = outline_point(np.pad(tight.values.astype(np.uint8), 1), rng)
    if point is None:
        return image, truth
    height, width = image.shape[:2]
    h, w = alpha.shape
    y, x = tight.y + point[0] - 1 - h // 2, tight.x + point[1] - 1 - w // 2  # point is on the padded mask
    y0, x0 = max(0, y), max(0, x)
    inside = np.s_[y0 - y : height - y, x0 - x : width - x]
    cut, alpha = cut[inside], alpha[inside]
    hidden = read_mask(MaskWindow(alpha >= 0.5, x0, y0, truth.image_size), roi_of(tight))
    visible = tight.values & ~(hidden >= 0.5)
    if np.count_nonzero(visible) < _LEAST_VISIBLE * tight.area:
        return image, truth
    return _blended(image, cut, alpha, x0, y0, rng), MaskWindow(visible, tight.x, tight.y, truth.image_size)


def shorten(truth: MaskWindow, rng: np.random.Generator) -> MaskWindow:
    """The mask of a part of an object: all on one side of a slightly bent line.

    Labels end so where a table meets the next one, or a slice its pizza: nothing in the image shows it.
    """
    tight = truth.tight()
    part = tight.values & near_side(tight.values, rng, (_LEAST_VISIBLE, 0.95), bend=0.3)
    return MaskWindow(part, tight.x, tight.y, truth.image_size)


def _cut_out(image: Image, tight: MaskWindow, scale: float) -> tuple[Image, NDArray[np.float32]]:
    """A tight mask's box, scaled: pixels [h, w, 3] and the share of each that is the object [h, w]."""
    h, w = tight.values.shape
    width, height = max(2, int(w * scale)), max(2, int(h * scale))
    cut = resample(image[tight.y : tight.y + h, tight.x : tight.x + w], width, height)
    return cut, resample(tight.values.astype(np.float32), width, height)


def _blended(
    image: Image, cut: Image, alpha: NDArray[np.float32], x: int, y: int, rng: np.random.Generator
) -> Image:
    """A copy of ``image`` with a cut-out at (x, y); its rim mixes with the background as it would in a camera."""
    soft = cv2.GaussianBlur(alpha, (0, 0), rng.uniform(0.4, 1.2))[:, :, None]
    out = image.copy()
    spot = out[y : y + cut.shape[0], x : x + cut.shape[1]]
    spot[:] = np.rint(cut * soft + spot * (1 - soft)).astype(np.uint8)
    return out


def warp(
    pixels: Image,
    masks: NDArray[np.uint8],
    reach: tuple[float, float, float],
    rng: np.random.Generator,
) -> tuple[Image, NDArray[np.uint8]]:
    """Rotates, stretches and shears square pixels [S, S, 3] and masks [S, S, 2] about their middle.

    Args:
        reach: largest rotation in degrees, largest change of the ratio of the sides, largest shear as a share.
    """
    degrees, stretch, shear = reach
    angle = np.deg2rad(rng.uniform(-degrees, degrees))
    ratio = np.exp(rng.uniform(-1, 1) * np.log1p(stretch) / 2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = turn @ np.array([[ratio, rng.uniform(-1, 1) * shear], [0.0, 1 / ratio]])
    centre = np.full(2, pixels.shape[0] / 2 - 0.5)
    matrix = np.column_stack((linear, centre - linear @ centre))
    size = pixels.shape[1::-1]
    warped = [
        cv2.warpAffine(np.ascontiguousarray(part), matrix, size, borderMode=cv2.BORDER_REFLECT_101)
        for part in (pixels, masks)
    ]
    return np.asarray(warped[0], np.uint8), np.asarray(warped[1], np.uint8)


def degrade(pixels: Image, rng: np.random.Generator) -> Image:
    """Noisy, grey, blurred or recompressed: users' images are worse than those of a data set."""
    kind = rng.random()
    if kind < 0.2:
        noise = rng.standard_normal(pixels.shape, np.float32) * rng.uniform(3, 14)
        return (pixels + noise).clip(0, 255).astype(np.uint8)
    if kind < 0.3:
        return np.repeat(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[:, :, None], 3, 2).astype(np.uint8)
    if kind < 0.65:
        return np.asarray(cv2.GaussianBlur(pixels, (0, 0), rng.uniform(0.5, 2.0)), np.uint8)
    _, coded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(40, 90))])
    return np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8)


def jitter_colours(image: Tensor) -> Tensor:
    """Random brightness, contrast, saturation and channel gains of each image: [B, 3, H, W] in [0, 255]."""
    batch = image.shape[0]

    def around_one(reach: float, *shape: int) -> Tensor:
        return 1 + reach * (2 * torch.rand(batch, *shape, device=image.device) - 1)

    gain = around_one(0.25, 1) * around_one(0.08, 3)  # [B, 3]
    contrast, saturation = around_one(0.25, 1), around_one(0.4, 1)  # [B, 1]
    # all of it is affine in the channels, so one matrix product does it in a single pass over the pixels
    mean = (image.mean((2, 3)) * gain).mean(1, keepdim=True)  # [B, 1], after the gains
    grey = (1 - saturation) / 3
    mix = grey[:, :, None] + torch.diag_embed(saturation.expand(-1, 3))  # [B, 3, 3]
    mix = mix * (contrast * gain)[:, None, :]
    offset = ((1 - contrast) * mean)[:, :, None].expand(-1, 3, 1)
    return torch.baddbmm(offset, mix, image.flatten(2)).clamp_(0, 255).view_as(image)
