"""What all adapters need: tensors and arrays to numpy and back, and the boxes of masks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.errors import InputError

__all__ = ["check_masks", "hard", "like", "tight_boxes", "to_numpy"]


def to_numpy(values: Any) -> NDArray[Any]:
    """A torch tensor on any device, or an array, as a numpy array."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if not values.dtype.is_floating_point:
            return np.asarray(values.numpy())
        return np.asarray(values.float().numpy())  # numpy has no bfloat16
    return np.asarray(values)


def like(values: NDArray[Any], original: Any) -> Any:
    """Numbers in the kind, type and place of ``original``: a tensor on its device, or an array."""
    if hasattr(original, "detach"):
        import torch  # here, because an array needs none

        return torch.from_numpy(np.ascontiguousarray(values)).to(original.device, original.dtype)
    return values.astype(np.asarray(original).dtype)


def hard(masks: NDArray[Any]) -> NDArray[np.bool_]:
    """[N, H, W] masks cut at 0.5."""
    cut: NDArray[np.bool_] = masks if masks.dtype == bool else masks >= 0.5
    return cut


def check_masks(masks: NDArray[Any], count: int) -> None:
    """Raises InputError if ``masks`` is not [N, H, W] with one mask for each of ``count`` predictions."""
    if masks.ndim != 3 or len(masks) != count:
        raise InputError(
            f"masks of shape {masks.shape} for {count} predictions",
            remedy="give one H×W mask for each, in order",
        )


def tight_boxes(masks: NDArray[Any], before: NDArray[Any], *, inclusive: bool = False) -> NDArray[np.float32]:
    """[N, 4] boxes x0, y0, x1, y1 of masks, in pixels; an empty mask keeps the box it had.

    Args:
        masks: [N, H, W], cut at 0.5.
        before: [N, 4] boxes until now.
        inclusive: x1 and y1 are the last pixel (supervision), not the edge behind it.
    """
    boxes = np.array(before, np.float32)
    behind = 0 if inclusive else 1
    for mask, box in zip(hard(masks), boxes, strict=True):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if len(rows):
            box[:] = columns[0], rows[0], columns[-1] + behind, rows[-1] + behind
    return boxes
