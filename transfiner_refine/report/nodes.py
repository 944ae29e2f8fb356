"""The quadtree of an instance as the page draws it: cells by level, as short lists of whole numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.masks import MaskWindow
from transfiner_refine.refiner import BaseRefiner
from transfiner_refine.trace import trace

__all__ = ["quadtree_data"]


def quadtree_data(refiner: BaseRefiner, image: NDArray[np.uint8], mask: MaskWindow) -> dict[str, Any]:
    """The quadtree of the first pass over an instance.

    Args:
        refiner: a loaded refiner.
        image: [H, W, 3] uint8 RGB.
        mask: the coarse mask, not empty.

    Returns:
        ``roi``: [x0, y0, x1, y1], pixels of the image. ``levels``: for each level its ``grid`` (cells a side of
        the RoI) and ``cells``, where row · grid + column of each node ascends and is stored as the difference to
        the one before.
    """
    step = trace(refiner, image, mask).passes[0]
    levels = []
    for level in step.levels:
        cells = np.sort(level.y * level.grid + level.x)
        levels.append({"grid": level.grid, "cells": np.diff(cells, prepend=0).tolist()})
    return {"roi": [step.roi.x0, step.roi.y0, step.roi.x1, step.roi.y1], "levels": levels}
