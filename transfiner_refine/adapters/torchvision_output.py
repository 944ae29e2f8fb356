"""torchvision: a detector's output for one image, a dict of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.adapters.arrays import check_masks, like, tight_boxes, to_numpy
from transfiner_refine.errors import InputError

__all__ = ["from_torchvision", "is_torchvision", "with_torchvision_masks"]


def is_torchvision(predictions: object) -> bool:
    """Whether it is a dict with masks and boxes."""
    return isinstance(predictions, Mapping) and "masks" in predictions and "boxes" in predictions


def from_torchvision(output: Mapping[str, Any]) -> NDArray[np.float32]:
    """The soft masks of a torchvision detector: [N, H, W] float32 in [0, 1].

    Raises:
        InputError: there are no masks, or not of shape [N, 1, H, W].
    """
    masks = output.get("masks")
    if masks is None:
        raise InputError("the output has no masks", remedy="use a detector with masks, such as Mask R-CNN")
    values = to_numpy(masks)
    if values.ndim != 4 or values.shape[1] != 1:
        raise InputError(
            f"masks of shape {values.shape}", remedy="give torchvision's own output, masks of N×1×H×W"
        )
    return values[:, 0].astype(np.float32)


def with_torchvision_masks(output: Mapping[str, Any], masks: NDArray[Any]) -> dict[str, Any]:
    """The output with other masks, [N, 1, H, W] in its own type, and their boxes.

    Args:
        output: torchvision's output; not changed.
        masks: [N, H, W], bool or soft.

    Raises:
        InputError: the number of masks is another one.
    """
    check_masks(masks, len(output["boxes"]))
    boxes = tight_boxes(masks, to_numpy(output["boxes"]))
    return {
        **output,
        "masks": like(masks[:, None], output["masks"]),
        "boxes": like(boxes, output["boxes"]),
    }
