"""supervision: ``Detections``, with dense or compact masks."""

from __future__ import annotations

from dataclasses import is_dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.adapters.arrays import check_masks, hard, tight_boxes
from transfiner_refine.errors import InputError

__all__ = ["from_supervision", "is_supervision", "with_supervision_masks"]


def is_supervision(predictions: object) -> bool:
    """Whether it is ``Detections``."""
    return is_dataclass(predictions) and hasattr(predictions, "xyxy") and hasattr(predictions, "mask")


def from_supervision(detections: Any) -> NDArray[np.bool_]:
    """The masks of ``Detections``: [N, H, W] bool; [0, 0, 0] where nothing was detected.

    Raises:
        InputError: there are detections, but no masks.
    """
    if detections.mask is None:
        if len(detections.xyxy):
            raise InputError("the detections have boxes, but no masks", remedy="use a model with masks")
        return np.zeros((0, 0, 0), bool)
    return hard(np.asarray(detections.mask))  # compact masks become dense here


def with_supervision_masks(detections: Any, masks: NDArray[Any]) -> Any:
    """The detections with other masks, compact if theirs were, and their boxes, which end at the last pixel.

    Args:
        detections: ``Detections``; not changed.
        masks: [N, H, W], cut at 0.5.

    Raises:
        InputError: the number of masks is another one.
    """
    check_masks(masks, len(detections.xyxy))
    if detections.mask is None:
        return detections
    cut = hard(masks)
    boxes = tight_boxes(cut, detections.xyxy, inclusive=True).astype(detections.xyxy.dtype)
    kind = type(detections.mask)
    new_masks = cut if kind is np.ndarray else kind.from_dense(cut, boxes, image_shape=cut.shape[1:])
    return replace(detections, mask=new_masks, xyxy=boxes)
