"""detectron2: ``Instances``, as a predictor gives them alone or as ``{"instances": ...}``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.adapters.arrays import check_masks, hard, like, tight_boxes, to_numpy
from transfiner_refine.errors import InputError

__all__ = ["from_detectron2", "is_detectron2", "with_detectron2_masks"]


def is_detectron2(predictions: object) -> bool:
    """Whether it is ``Instances``, or a dict with them."""
    if isinstance(predictions, Mapping):
        return "instances" in predictions and is_detectron2(predictions["instances"])
    return hasattr(predictions, "get_fields") and hasattr(predictions, "image_size")


def from_detectron2(instances: Any) -> NDArray[np.bool_]:
    """The masks of ``Instances``, or of ``{"instances": Instances}``: [N, H, W] bool.

    Raises:
        InputError: there are no masks, or they are not of the image's size.
    """
    if isinstance(instances, Mapping):
        instances = instances["instances"]
    if not instances.has("pred_masks"):
        raise InputError("the instances have no pred_masks", remedy="use a model with masks")
    masks = instances.pred_masks
    values = to_numpy(getattr(masks, "tensor", masks))  # BitMasks hold a tensor
    if values.ndim != 3 or values.shape[1:] != tuple(instances.image_size):
        height, width = instances.image_size
        raise InputError(
            f"masks of shape {values.shape} for an image of {height}×{width}",
            remedy="give the instances as the predictor does, with masks pasted into the image",
        )
    return hard(values)


def with_detectron2_masks(instances: Any, masks: NDArray[Any]) -> Any:
    """The same kind of object with other masks and their boxes; fields of other names are shared.

    Args:
        instances: ``Instances``, or a dict with them; not changed.
        masks: [N, H, W], cut at 0.5.

    Raises:
        InputError: the number of masks is another one.
    """
    if isinstance(instances, Mapping):
        return {**instances, "instances": with_detectron2_masks(instances["instances"], masks)}
    check_masks(masks, len(instances))
    fields = dict(instances.get_fields())
    old = fields["pred_masks"]
    if hasattr(old, "tensor"):
        fields["pred_masks"] = type(old)(like(hard(masks), old.tensor))
    else:
        fields["pred_masks"] = like(hard(masks), old)
    if "pred_boxes" in fields:
        boxes = fields["pred_boxes"]
        fields["pred_boxes"] = type(boxes)(like(tight_boxes(masks, to_numpy(boxes.tensor)), boxes.tensor))
    return type(instances)(instances.image_size, **fields)
