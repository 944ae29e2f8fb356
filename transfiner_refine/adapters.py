"""Predictions of other libraries, in memory: their masks out, refined masks back in, nothing of theirs imported."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.errors import InputError
from transfiner_refine.masks import MaskWindow

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
    _, _, get, _ = _library(predictions)
    return get(predictions)


def with_masks(predictions: Predictions, refined: NDArray[Any]) -> Predictions:
    """The same kind of predictions with other masks. Boxes follow the masks; all else stays, and so does the argument.

    Args:
        predictions: as for ``masks_of``.
        refined: [N, H, W] masks in their order, bool or float in [0, 1].

    Raises:
        InputError: it is of no known kind, or the number of masks is another one.
    """
    _, counted, _, put = _library(predictions)
    masks, count = np.asarray(refined), counted(predictions)
    if masks.ndim != 3 or len(masks) != count:
        remedy = "give one H×W mask for each, in order"
        raise InputError(f"masks of shape {masks.shape} for {count} predictions", remedy=remedy)
    changed: Predictions = put(predictions, masks)
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


def from_torchvision(output: Mapping[str, Any]) -> NDArray[np.float32]:
    """The soft masks of a torchvision detector: [N, H, W] float32 in [0, 1]; InputError where there are none."""
    if output.get("masks") is None:
        raise InputError("the output has no masks", remedy="use a detector with masks, such as Mask R-CNN")
    values = _to_numpy(output["masks"])
    if values.ndim != 4 or values.shape[1] != 1:
        remedy = "give torchvision's own output, masks of N×1×H×W"
        raise InputError(f"masks of shape {values.shape}", remedy=remedy)
    return values[:, 0].astype(np.float32)


def _with_torchvision_masks(output: Mapping[str, Any], masks: NDArray[Any]) -> dict[str, Any]:
    boxes = _like(_tight_boxes(masks, output["boxes"]), output["boxes"])
    return {**output, "masks": _like(masks[:, None], output["masks"]), "boxes": boxes}


# detectron2: Instances, as a predictor gives them alone or as {"instances": ...}


def _instances(predictions: Any) -> Any:
    return predictions.get("instances") if isinstance(predictions, Mapping) else predictions


def from_detectron2(instances: Any) -> NDArray[np.bool_]:
    """The masks of ``Instances``, or of a dict with them: [N, H, W] bool; InputError unless of the image's size."""
    instances = _instances(instances)
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
    fields = dict(instances.get_fields())
    old, cut = fields["pred_masks"], _hard(masks)
    fields["pred_masks"] = type(old)(_like(cut, old.tensor)) if hasattr(old, "tensor") else _like(cut, old)
    if (boxes := fields.get("pred_boxes")) is not None:
        fields["pred_boxes"] = type(boxes)(_like(_tight_boxes(masks, boxes.tensor), boxes.tensor))
    return type(instances)(instances.image_size, **fields)


# supervision: Detections, with dense or compact masks


def from_supervision(detections: Any) -> NDArray[np.bool_]:
    """The masks of ``Detections``: [N, H, W] bool, [0, 0, 0] for no detections; InputError for boxes without masks."""
    if detections.mask is None:
        if len(detections.xyxy):
            raise InputError("the detections have boxes, but no masks", remedy="use a model with masks")
        return np.zeros((0, 0, 0), bool)
    return _hard(np.asarray(detections.mask))  # compact masks become dense here


def _with_supervision_masks(detections: Any, masks: NDArray[Any]) -> Any:
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
        scaled[number] = _hard(soft[0].numpy())[0]
    return scaled


def _with_ultralytics_masks(result: Any, masks: NDArray[Any]) -> Any:
    if result.masks is None:
        return result
    changed, boxes = copy.copy(result), None
    if result.boxes is not None:
        boxes = _to_numpy(result.boxes.data).copy()  # [N, x0 y0 x1 y1, track id?, score, class]
        boxes[:, :4] = _tight_boxes(masks, boxes[:, :4])
        boxes = _like(boxes, result.boxes.data)
    changed.update(boxes=boxes, masks=_like(_hard(masks), result.masks.data))
    return changed


# recognise, count, get, put; ``put`` takes [N, H, W] masks of the right number and does not change its argument
_Put = Callable[[Any, NDArray[Any]], Any]
_Library = tuple[Callable[[Any], bool], Callable[[Any], int], Callable[[Any], NDArray[Any]], _Put]
_LIBRARIES: tuple[_Library, ...] = (
    (
        lambda output: isinstance(output, Mapping) and "masks" in output and "boxes" in output,
        lambda output: len(output["boxes"]),
        from_torchvision,
        _with_torchvision_masks,
    ),
    (
        lambda given: all(hasattr(_instances(given), name) for name in ("get_fields", "image_size")),
        lambda given: len(_instances(given)),
        from_detectron2,
        _with_detectron2_masks,
    ),
    (
        lambda given: is_dataclass(given) and hasattr(given, "xyxy") and hasattr(given, "mask"),
        lambda detections: len(detections.xyxy),
        from_supervision,
        _with_supervision_masks,
    ),
    (
        lambda given: all(hasattr(given, name) for name in ("orig_shape", "masks", "boxes", "update")),
        lambda result: 0 if result.masks is None else len(result.masks.data),
        from_ultralytics,
        _with_ultralytics_masks,
    ),
)


def _library(predictions: object) -> _Library:
    for library in _LIBRARIES:
        if library[0](predictions):
            return library
    if isinstance(predictions, (list, tuple)):
        reason = f"a {type(predictions).__name__} of predictions"
        raise InputError(reason, remedy="give those of one image at a time")
    raise InputError(
        f"predictions of type {type(predictions).__module__}.{type(predictions).__qualname__}",
        remedy="give torchvision's output, or Instances, Detections or Results; or N×H×W masks to Refiner.refine",
    )


def _to_numpy(values: Any) -> NDArray[Any]:
    """A torch tensor on any device, or an array, as a numpy array."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if values.dtype.is_floating_point else values  # numpy has no bfloat16
    return np.asarray(values)


def _like(values: NDArray[Any], original: Any) -> Any:
    """Numbers in the kind, type and place of ``original``: a tensor on its device, or an array."""
    if hasattr(original, "detach"):
        import torch  # here, because an array needs none

        return torch.from_numpy(np.ascontiguousarray(values)).to(original.device, original.dtype)
    return values.astype(np.asarray(original).dtype)


def _hard(masks: NDArray[Any]) -> NDArray[np.bool_]:
    """[N, H, W] masks cut at 0.5."""
    height, width = masks.shape[-2:]
    return MaskWindow(masks, 0, 0, (height, width)).foreground


def _tight_boxes(masks: NDArray[Any], before: Any, *, behind: int = 1) -> NDArray[np.float32]:
    """[N, 4] boxes x0, y0, last x + ``behind``, last y + ``behind`` of masks; an empty mask keeps the box it had."""
    boxes = np.array(_to_numpy(before), np.float32)
    for mask, box in zip(_hard(masks), boxes, strict=True):
        window = MaskWindow(mask, 0, 0, (mask.shape[0], mask.shape[1]))
        if window.area:
            x0, y0, x1, y1 = window.box
            box[:] = x0, y0, x1 - 1 + behind, y1 - 1 + behind
    return boxes
