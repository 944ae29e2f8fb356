"""One call for all of them: predictions in, the same kind of predictions with refined masks out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.adapters.detectron2_instances import (
    from_detectron2,
    is_detectron2,
    with_detectron2_masks,
)
from transfiner_refine.adapters.supervision_detections import (
    from_supervision,
    is_supervision,
    with_supervision_masks,
)
from transfiner_refine.adapters.torchvision_output import (
    from_torchvision,
    is_torchvision,
    with_torchvision_masks,
)
from transfiner_refine.adapters.ultralytics_results import (
    from_ultralytics,
    is_ultralytics,
    with_ultralytics_masks,
)
from transfiner_refine.errors import InputError

__all__ = ["MaskRefiner", "masks_of", "refine_predictions", "with_masks"]

Predictions = TypeVar("Predictions")


class MaskRefiner(Protocol):
    """What ``refine_predictions`` asks of a refiner; ``transfiner_refine.Refiner`` is one."""

    def refine(self, image: NDArray[np.uint8], masks: NDArray[Any]) -> NDArray[Any]:
        """[N, H, W] refined masks of one image, in order."""


@dataclass(frozen=True)
class _Library:
    """How to deal with one library's predictions."""

    recognise: Callable[[object], bool]
    masks: Callable[[Any], NDArray[Any]]
    with_masks: Callable[[Any, NDArray[Any]], Any]


_LIBRARIES = (
    _Library(is_torchvision, from_torchvision, with_torchvision_masks),
    _Library(is_detectron2, from_detectron2, with_detectron2_masks),
    _Library(is_supervision, from_supervision, with_supervision_masks),
    _Library(is_ultralytics, from_ultralytics, with_ultralytics_masks),
)


def masks_of(predictions: object) -> NDArray[Any]:
    """The masks of one image's predictions: [N, H, W] at the image's size, bool, or float32 in [0, 1] if soft.

    Args:
        predictions: torchvision's output dict, detectron2's ``Instances`` (or a dict with them), supervision's
            ``Detections`` or ultralytics' ``Results``.

    Raises:
        InputError: it is none of these, or has no masks.
    """
    return _library(predictions).masks(predictions)


def with_masks(predictions: Predictions, refined: NDArray[Any]) -> Predictions:
    """The same kind of predictions with other masks. Boxes follow the masks; all else stays, and so does the argument.

    Args:
        predictions: as for ``masks_of``.
        refined: [N, H, W] masks in their order, bool or float in [0, 1].

    Raises:
        InputError: it is of no known kind, or the number of masks is another one.
    """
    changed: Predictions = _library(predictions).with_masks(predictions, np.asarray(refined))
    return changed


def refine_predictions(
    refiner: MaskRefiner, image: NDArray[np.uint8], predictions: Predictions
) -> Predictions:
    """Refines the masks of one image's predictions.

    Args:
        refiner: from ``load_refiner``.
        image: H×W×3 uint8 RGB, the image that the predictions are of. (OpenCV, detectron2 and ultralytics'
            ``orig_img`` have BGR; turn it with ``image[:, :, ::-1]``.)
        predictions: as for ``masks_of``; not changed.

    Returns:
        The same kind of object, in the same order, with the same scores and classes, with refined masks and
        their boxes.

    Raises:
        InputError: the predictions are of no known kind, have no masks, or are not of this image's size.
    """
    masks = masks_of(predictions)
    if len(masks) == 0:
        return predictions
    return with_masks(predictions, refiner.refine(np.ascontiguousarray(image), masks))


def _library(predictions: object) -> _Library:
    for library in _LIBRARIES:
        if library.recognise(predictions):
            return library
    if isinstance(predictions, (list, tuple)):
        raise InputError(
            f"a {type(predictions).__name__} of predictions", remedy="give those of one image at a time"
        )
    raise InputError(
        f"predictions of type {type(predictions).__module__}.{type(predictions).__qualname__}",
        remedy="give torchvision's output, or Instances, Detections or Results; or N×H×W masks to Refiner.refine",
    )
