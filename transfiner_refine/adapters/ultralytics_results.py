"""ultralytics: ``Results`` of one image.

``Results.masks.data`` has the size of the network's input, with the photo in the middle and a border around it. Masks
are taken from there to the photo's size as ultralytics' own ``scale_masks`` does.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.adapters.arrays import check_masks, hard, like, tight_boxes, to_numpy
from transfiner_refine.errors import InputError

__all__ = ["from_ultralytics", "is_ultralytics", "with_ultralytics_masks"]


def is_ultralytics(predictions: object) -> bool:
    """Whether it is ``Results``."""
    return all(hasattr(predictions, name) for name in ("orig_shape", "masks", "boxes", "update"))


def from_ultralytics(result: Any) -> NDArray[np.bool_]:
    """The masks of ``Results`` at the size of ``orig_img``: [N, H, W] bool.

    Raises:
        InputError: there are boxes, but no masks.
    """
    size = (int(result.orig_shape[0]), int(result.orig_shape[1]))
    if result.masks is None:
        if result.boxes is not None and len(result.boxes):
            raise InputError("the results have boxes, but no masks", remedy='use a "-seg" model')
        return np.zeros((0, *size), bool)
    return _at_size(to_numpy(result.masks.data), size)


def with_ultralytics_masks(result: Any, masks: NDArray[Any]) -> Any:
    """The results with other masks, at the size of ``orig_img``, and their boxes.

    Args:
        result: ``Results``; not changed.
        masks: [N, H, W], cut at 0.5.

    Raises:
        InputError: the number of masks is another one.
    """
    check_masks(masks, 0 if result.masks is None else len(result.masks.data))
    if result.masks is None:
        return result
    changed, boxes = copy.copy(result), None
    if result.boxes is not None:
        boxes = to_numpy(result.boxes.data).copy()  # [N, x0 y0 x1 y1, track id?, score, class]
        boxes[:, :4] = tight_boxes(masks, boxes[:, :4])
        boxes = like(boxes, result.boxes.data)
    changed.update(boxes=boxes, masks=like(hard(masks), result.masks.data))
    return changed


def _at_size(masks: NDArray[Any], size: tuple[int, int]) -> NDArray[np.bool_]:
    """[N, h, w] masks of the network's input at the photo's size, the border cut off."""
    (height, width), (rows, columns) = size, masks.shape[1:]
    if len(masks) == 0:
        return np.zeros((0, *size), bool)
    if (rows, columns) == size:
        return hard(masks)
    import torch  # here, because masks of the photo's size need none
    from torch.nn.functional import interpolate

    gain = min(rows / height, columns / width)
    inner_rows, inner_columns = max(round(height * gain), 1), max(round(width * gain), 1)
    top, left = round((rows - inner_rows) / 2 - 0.1), round((columns - inner_columns) / 2 - 0.1)
    inner = masks[:, top : top + inner_rows, left : left + inner_columns].astype(np.float32)
    scaled = np.empty((len(masks), *size), bool)
    for number, mask in enumerate(inner):  # one by one: all at once as floats would be four times the result
        soft = interpolate(torch.from_numpy(mask)[None, None], size, mode="bilinear")
        scaled[number] = soft[0, 0].numpy() >= 0.5
    return scaled
