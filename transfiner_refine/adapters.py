"""Predictions of other libraries, in memory: their masks out, refined masks back in, nothing of theirs imported."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.errors import InputError

Predictions = TypeVar("Predictions")


class MaskRefiner(Protocol):
    """What ``refine_predictions`` asks of a refiner; ``transfiner_refine.Refiner`` is one."""

    def refine(self, image: NDArray[np.uint8], masks: NDArray[Any]) -> NDArray[Any]:
        """[N, H, W] refined masks of one image, in order."""


def masks_of(predictions: object) -> NDArray[Any]:
    """The masks of one image's predictions: [N, H, W] at the image's size, bool, or float32 in [0, 1] if soft.

    Args:
        predictions: torchvision's output dict, detectron2's ``Instances`` (or a dict with them), supervision's
            ``Detections`` or ultralytics' ``Results``.

    Raises:
        InputError: it is none of these, or has no masks.
    """
    _, get, _ = _library(predictions)
    return get(predictions)


def with_masks(predictions: Predictions, refined: NDArray[Any]) -> Predictions:
    """The same kind of predictions with other masks. Boxes follow the masks; all else stays, and so does the argument.

    Args:
        predictions: as for ``masks_of``.
        refined: [N, H, W] masks in their order, bool or float in [0, 1].

    Raises:
        InputError: it is of no known kind, or the number of masks is another one.
    """
    _, _, put = _library(predictions)
    changed: Predictions = put(predictions, np.asarray(refined))
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


# torchvision: a detector's output for one image, a dict of tensors


def _is_torchvision(predictions: object) -> bool:
    return isinstance(predictions, Mapping) and "masks" in predictions and "boxes" in predictions


def from_torchvision(output: Mapping[str, Any]) -> NDArray[np.float32]:
    """The soft masks of a torchvision detector: [N, H, W] float32 in [0, 1]; InputError where there are none."""
    if output.get("masks") is None:
        raise InputError("the output has no masks", remedy="use a detector with masks, such as Mask R-CNN")
    values = _to_numpy(output["masks"])
    if values.ndim != 4 or values.shape[1] != 1:
        raise InputError(
            f"masks of shape {values.shape}", remedy="give torchvision's own output, masks of N×1×H×W"
        )
    return values[:, 0].astype(np.float32)


def _with_torchvision_masks(output: Mapping[str, Any], masks: NDArray[Any]) -> dict[str, Any]:
    _check(masks, len(output["boxes"]))
    boxes = _tight_boxes(masks, _to_numpy(output["boxes"]))
    return {
        **output,
        "masks": _like(masks[:, None], output["masks"]),
        "boxes": _like(boxes, output["boxes"]),
    }


# detectron2: Instances, as a predictor gives them alone or as {"instances": ...}


def _is_detectron2(predictions: object) -> bool:
    if isinstance(predictions, Mapping):
        return "instances" in predictions and _is_detectron2(predictions["instances"])
    return hasattr(predictions, "get_fields") and hasattr(predictions, "image_size")


def from_detectron2(instances: Any) -> NDArray[np.bool_]:
    """The masks of ``Instances``, or of a dict with them: [N, H, W] bool; InputError unless of the image's size."""
    if isinstance(instances, Mapping):
        instances = instances["instances"]
    if not instances.has("pred_masks"):
        raise InputError("the instances have no pred_masks", remedy="use a model with masks")
    masks = instances.pred_masks
    values = _to_numpy(getattr(masks, "tensor", masks))  # BitMasks hold a tensor
    if values.ndim != 3 or values.shape[1:] != tuple(instances.image_size):
        height, width = instances.image_size
        raise InputError(
            f"masks of shape {values.shape} for an image of {height}×{width}",
            remedy="give the instances as the predictor does, with masks pasted into the image",
        )
    return _hard(values)


def _with_detectron2_masks(instances: Any, masks: NDArray[Any]) -> Any:
    if isinstance(instances, Mapping):
        return {**instances, "instances": _with_detectron2_masks(instances["instances"], masks)}
    _check(masks, len(instances))
    fields = dict(instances.get_fields())
    old, cut = fields["pred_masks"], _hard(masks)
    fields["pred_masks"] = type(old)(_like(cut, old.tensor)) if hasattr(old, "tensor") else _like(cut, old)
    if "pred_boxes" in fields:
        boxes = fields["pred_boxes"]
        tight = _tight_boxes(masks, _to_numpy(boxes.tensor))
        fields["pred_boxes"] = type(boxes)(_like(tight, boxes.tensor))
    return type(instances)(instances.image_size, **fields)


# supervision: Detections, with dense or compact masks


def _is_supervision(predictions: object) -> bool:
    return is_dataclass(predictions) and hasattr(predictions, "xyxy") and hasattr(predictions, "mask")


def from_supervision(detections: Any) -> NDArray[np.bool_]:
    """The masks of ``Detections``: [N, H, W] bool, [0, 0, 0] for no detections; InputError for boxes without masks."""
    if detections.mask is None:
        if len(detections.xyxy):
            raise InputError("the detections have boxes, but no masks", remedy="use a model with masks")
        return np.zeros((0, 0, 0), bool)
    return _hard(np.asarray(detections.mask))  # compact masks become dense here


def _with_supervision_masks(detections: Any, masks: NDArray[Any]) -> Any:
    _check(masks, len(detections.xyxy))
    if detections.mask is None:
        return detections
    cut = _hard(masks)
    # x1 and y1 are the last pixel here, not the edge behind it
    boxes = _tight_boxes(cut, detections.xyxy, behind=0).astype(detections.xyxy.dtype)
    kind = type(detections.mask)
    new_masks = cut if kind is np.ndarray else kind.from_dense(cut, boxes, image_shape=cut.shape[1:])
    return replace(detections, mask=new_masks, xyxy=boxes)


# ultralytics: Results of one image. masks.data has the size of the network's input, with the image in the middle and a
# border around it; masks are taken from there to the image's size as ultralytics' own scale_masks does.


def _is_ultralytics(predictions: object) -> bool:
    return all(hasattr(predictions, name) for name in ("orig_shape", "masks", "boxes", "update"))


def from_ultralytics(result: Any) -> NDArray[np.bool_]:
    """The masks of ``Results`` at the size of ``orig_img``: [N, H, W] bool; InputError for boxes without masks."""
    height, width = int(result.orig_shape[0]), int(result.orig_shape[1])
    if result.masks is None and result.boxes is not None and len(result.boxes):
        raise InputError("the results have boxes, but no masks", remedy='use a "-seg" model')
    if result.masks is None or len(result.masks.data) == 0:
        return np.zeros((0, height, width), bool)
    masks = _to_numpy(result.masks.data)
    rows, columns = masks.shape[1:]
    if (rows, columns) == (height, width):
        return _hard(masks)
    import torch  # here, because masks of the image's size need none
    from torch.nn.functional import interpolate

    gain = min(rows / height, columns / width)
    inner_rows, inner_columns = max(round(height * gain), 1), max(round(width * gain), 1)
    top, left = round((rows - inner_rows) / 2 - 0.1), round((columns - inner_columns) / 2 - 0.1)
    inner = masks[:, top : top + inner_rows, left : left + inner_columns].astype(np.float32)
    scaled = np.empty((len(masks), height, width), bool)
    for number, mask in enumerate(inner):  # one by one: all at once as floats would be four times the result
        soft = interpolate(torch.from_numpy(mask)[None, None], (height, width), mode="bilinear")
        scaled[number] = soft[0, 0].numpy() >= 0.5
    return scaled


def _with_ultralytics_masks(result: Any, masks: NDArray[Any]) -> Any:
    _check(masks, 0 if result.masks is None else len(result.masks.data))
    if result.masks is None:
        return result
    changed, boxes = copy.copy(result), None
    if result.boxes is not None:
        boxes = _to_numpy(result.boxes.data).copy()  # [N, x0 y0 x1 y1, track id?, score, class]
        boxes[:, :4] = _tight_boxes(masks, boxes[:, :4])
        boxes = _like(boxes, result.boxes.data)
    changed.update(boxes=boxes, masks=_like(_hard(masks), result.masks.data))
    return changed


# recognise, get, put; ``put`` takes [N, H, W] masks, checks their number and does not change its argument
_Library = tuple[Callable[[object], bool], Callable[[Any], NDArray[Any]], Callable[[Any, NDArray[Any]], Any]]
_LIBRARIES: tuple[_Library, ...] = (
    (_is_torchvision, from_torchvision, _with_torchvision_masks),
    (_is_detectron2, from_detectron2, _with_detectron2_masks),
    (_is_supervision, from_supervision, _with_supervision_masks),
    (_is_ultralytics, from_ultralytics, _with_ultralytics_masks),
)


def _library(predictions: object) -> _Library:
    for library in _LIBRARIES:
        if library[0](predictions):
            return library
    if isinstance(predictions, (list, tuple)):
        raise InputError(
            f"a {type(predictions).__name__} of predictions", remedy="give those of one image at a time"
        )
    raise InputError(
        f"predictions of type {type(predictions).__module__}.{type(predictions).__qualname__}",
        remedy="give torchvision's output, or Instances, Detections or Results; or N×H×W masks to Refiner.refine",
    )


def _check(masks: NDArray[Any], count: int) -> None:
    if masks.ndim != 3 or len(masks) != count:
        raise InputError(
            f"masks of shape {masks.shape} for {count} predictions",
            remedy="give one H×W mask for each, in order",
        )


def _to_numpy(values: Any) -> NDArray[Any]:
    """A torch tensor on any device, or an array, as a numpy array."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = (
            values.float() if values.dtype.is_floating_point else values
        ).numpy()  # no bfloat16 in numpy
    return np.asarray(values)


def _like(values: NDArray[Any], original: Any) -> Any:
    """Numbers in the kind, type and place of ``original``: a tensor on its device, or an array."""
    if hasattr(original, "detach"):
        import torch  # here, because an array needs none

        return torch.from_numpy(np.ascontiguousarray(values)).to(original.device, original.dtype)
    return values.astype(np.asarray(original).dtype)


def _hard(masks: NDArray[Any]) -> NDArray[np.bool_]:
    """[N, H, W] masks cut at 0.5."""
    return masks if masks.dtype == bool else masks >= 0.5


def _tight_boxes(masks: NDArray[Any], before: NDArray[Any], *, behind: int = 1) -> NDArray[np.float32]:
    """[N, 4] boxes x0, y0, last x + ``behind``, last y + ``behind`` of masks; an empty mask keeps the box it had."""
    boxes = np.array(before, np.float32)
    for mask, box in zip(_hard(masks), boxes, strict=True):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if len(rows):
            box[:] = columns[0], rows[0], columns[-1] + behind, rows[-1] + behind
    return boxes
