"""From the finest level's map back to image pixels; thresholding comes last."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from transfiner_refine.model.roi import Roi, read_mask, resample
from transfiner_refine.types import MaskWindow

__all__ = ["drop_remnants", "paste_into_roi"]

_REMNANT_RIM = 0.25  # share of a fragment's rim that must have been relabelled before it counts as cut off
_AROUND = np.ones((3, 3), np.uint8)


def drop_remnants(
    probability: NDArray[np.float32], refined: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Removes what refining cut off from the coarse mask: slivers and pinholes that no node ever looked at.

    Where a bump of the coarse mask was relabelled, cells at its rim that hold few wrong pixels may not have been
    roots. What is left of the bump in them is a fragment of its own: a connected piece of one label, without a
    single refined cell, a good part of whose rim was given the other label. It gets that label too.

    Args:
        probability: [grid, grid] from the finest level.
        refined: [grid, grid], cells inside the quadtree.

    Returns:
        both, with the fragments relabelled and counted as refined.
    """
    probability, refined = probability.copy(), refined.copy()
    foreground = probability >= 0.5
    for label in (True, False):
        same = foreground == label
        count, pieces = cv2.connectedComponents(same.view(np.uint8), connectivity=8)
        if count <= 2:  # the other label and one piece: nothing is cut off
            continue
        looked_at = np.bincount(pieces[refined], minlength=count) > 0
        sizes = np.bincount(pieces.ravel(), minlength=count)
        relabelled = cv2.dilate((refined & ~same).view(np.uint8), _AROUND).astype(bool)
        rim = same & cv2.dilate((~same).view(np.uint8), _AROUND).astype(bool)
        lengths = np.bincount(pieces[rim], minlength=count)
        touched = np.bincount(pieces[rim & relabelled], minlength=count)
        cut_off = ~looked_at & (touched >= _REMNANT_RIM * np.maximum(lengths, 1)) & (sizes < sizes[1:].max())
        cut_off[0] = False
        fragments = cut_off[pieces]
        probability[fragments] = 0.0 if label else 1.0
        refined |= fragments
    return probability, refined


def paste_into_roi(
    probability: NDArray[np.float32], refined: NDArray[np.bool_], coarse_mask: MaskWindow, roi: Roi
) -> NDArray[np.float32]:
    """The refined probability at the image's resolution inside the RoI.

    Args:
        probability: [grid, grid] from the finest level.
        refined: [grid, grid], cells inside the quadtree; all other pixels keep the coarse mask's value.
        coarse_mask: the mask that was refined.
        roi: where the grid lies in the image.

    Returns:
        [roi.height, roi.width] float32 in [0, 1].
    """
    probability, refined = drop_remnants(probability, refined)
    values = resample(probability, roi.width, roi.height)
    inside = cv2.resize(
        refined.view(np.uint8), (roi.width, roi.height), interpolation=cv2.INTER_NEAREST_EXACT
    )
    return np.where(inside.astype(bool), values, read_mask(coarse_mask, roi))
