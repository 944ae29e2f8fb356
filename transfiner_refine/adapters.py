"""Predictions of other libraries, in memory: their masks out, refined masks back in, nothing of theirs imported."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.errors import InputError
from transfiner_refine.inputs import as_image, to_numpy
from transfiner_refine.masks import MaskWindow
from transfiner_refine.plain_predictions import (
    from_dicts,
    from_segments,
    from_stack,
    hard,
    is_record,
    is_stack,
    like_original,
    with_masks_in_dicts,
    with_segments,
    with_stack,
)

Predictions = TypeVar("Predictions")


class MaskRefiner(Protocol):
    """What ``refine_predictions`` asks of a refiner; ``transfiner_refine.Refiner`` is one."""

    def refine(self, image: NDArray[np.uint8], masks: NDArray[Any]) -> NDArray[Any]:
        """[N, H, W] refined masks of one image, in order."""


def masks_of(predictions: object) -> NDArray[Any]:
    """The masks of one image's predictions: [N, H, W] at the image's size, bool, or float32 in [0, 1] if soft.

    Args:
        predictions: torchvision's output dict, detectron2's ``Instances`` (or a dict with them), supervision's
            ``Detections``, ultralytics' ``Results``, MMDetection's ``DetDataSample`` or ``InstanceData``, the list of
            dicts of SAM's automatic masks or of a ``transformers`` pipeline, or what Mask2Former, SAM and their like
            give after ``post_process_…`` in ``transformers``.

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
    refiner: MaskRefiner, image: Any, predictions: Predictions, *, bgr: bool = False
) -> Predictions:
    """Refines the masks of one image's predictions, or of several images'.

    Args:
        refiner: from ``load_refiner``.
        image: the image that the predictions are of, in any kind that ``Refiner.refine`` takes; or a list of images.
        predictions: as for ``masks_of``; not changed. For a list of images a list, those of each.
        bgr: blue comes first, as OpenCV, detectron2 and ultralytics' ``orig_img`` have it.

    Returns:
        The same kind of object, in the same order, with the same scores and classes, with refined masks and
        their boxes.

    Raises:
        InputError: the predictions are of no known kind, have no masks, or are not of this image's size.
    """
    if isinstance(image, (list, tuple)):
        if not isinstance(predictions, (list, tuple)) or len(predictions) != len(image):
            reason = f"{len(image)} images, and not as many predictions"
            raise InputError(reason, remedy="give a list with the predictions of each image")
        pairs = zip(image, predictions, strict=True)
        refined = [refine_predictions(refiner, *pair, bgr=bgr) for pair in pairs]
        return type(predictions)(refined)
    masks = masks_of(predictions)
    if len(masks) == 0:
        return predictions
    size = (masks.shape[1], masks.shape[2])
    return with_masks(predictions, refiner.refine(as_image(image, size, bgr=bgr), masks))


# torchvision: a detector's output for one image, a dict of tensors


def from_torchvision(output: Mapping[str, Any]) -> NDArray[np.float32]:
    """The soft masks of a torchvision detector: [N, H, W] float32 in [0, 1]; InputError where there are none."""
    if output.get("masks") is None:
        raise InputError("the output has no masks", remedy="use a detector with masks, such as Mask R-CNN")
    values = to_numpy(output["masks"])
    if values.ndim != 4 or values.shape[1] != 1:
        remedy = "give torchvision's own output, masks of N×1×H×W"
        raise InputError(f"masks of shape {values.shape}", remedy=remedy)
    return values[:, 0].astype(np.float32)


def _with_torchvision_masks(output: Mapping[str, Any], masks: NDArray[Any]) -> dict[str, Any]:
    boxes = like_original(_tight_boxes(masks, output["boxes"]), output["boxes"])
    return {**output, "masks": like_original(masks[:, None], output["masks"]), "boxes": boxes}


# detectron2: Instances, as a predictor gives them alone or as {"instances": ...}


def _instances(predictions: Any) -> Any:
    return predictions.get("instances") if isinstance(predictions, Mapping) else predictions


def from_detectron2(instances: Any) -> NDArray[np.bool_]:
    """The masks of ``Instances``, or of a dict with them: [N, H, W] bool; InputError unless of the image's size."""
    instances = _instances(instances)
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


def _with_detectron2_masks(instances: Any, masks: NDArray[Any]) -> Any:
    if isinstance(instances, Mapping):
        return {**instances, "instances": _with_detectron2_masks(instances["instances"], masks)}
    fields = dict(instances.get_fields())
    old, cut = fields["pred_masks"], hard(masks)
    fields["pred_masks"] = (
        type(old)(like_original(cut, old.tensor)) if hasattr(old, "tensor") else like_original(cut, old)
    )
    if (boxes := fields.get("pred_boxes")) is not None:
        fields["pred_boxes"] = type(boxes)(like_original(_tight_boxes(masks, boxes.tensor), boxes.tensor))
    return type(instances)(instances.image_size, **fields)


# supervision: Detections, with dense or compact masks


def from_supervision(detections: Any) -> NDArray[np.bool_]:
    """The masks of ``Detections``: [N, H, W] bool, [0, 0, 0] for no detections; InputError for boxes without masks."""
    if detections.mask is None:
        if len(detections.xyxy):
            raise InputError("the detections have boxes, but no masks", remedy="use a model with masks")
        return np.zeros((0, 0, 0), bool)
    return hard(np.asarray(detections.mask))  # compact masks become dense here


def _with_supervision_masks(detections: Any, masks: NDArray[Any]) -> Any:
    if detections.mask is None:
        return detections
    cut = hard(masks)
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
    masks = to_numpy(result.masks.data)
    rows, columns = masks.shape[1:]
    if (rows, columns) == (height, width):
        return hard(masks)
    import torch  # here, because masks of the image's size need none
    from torch.nn.functional import interpolate

    gain = min(rows / height, columns / width)
    inner_rows, inner_columns = max(round(height * gain), 1), max(round(width * gain), 1)
    top, left = round((rows - inner_rows) / 2 - 0.1), round((columns - inner_columns) / 2 - 0.1)
    inner = masks[:, top : top + inner_rows, left : left + inner_columns].astype(np.float32)
    scaled = np.empty((len(masks), height, width), bool)
    for number, mask in enumerate(inner):  # one by one: all at once as floats would be four times the result
        soft = interpolate(torch.from_numpy(mask)[None, None], (height, width), mode="bilinear")
        scaled[number] = hard(soft[0].numpy())[0]
    return scaled


def _with_ultralytics_masks(result: Any, masks: NDArray[Any]) -> Any:
    if result.masks is None:
        return result
    changed, boxes = copy.copy(result), None
    if result.boxes is not None:
        boxes = to_numpy(result.boxes.data).copy()  # [N, x0 y0 x1 y1, track id?, score, class]
        boxes[:, :4] = _tight_boxes(masks, boxes[:, :4])
        boxes = like_original(boxes, result.boxes.data)
    changed.update(boxes=boxes, masks=like_original(hard(masks), result.masks.data))
    return changed


# MMDetection: DetDataSample with InstanceData, or InstanceData alone


def _pred_instances(sample: Any) -> Any:
    return getattr(sample, "pred_instances", sample)


def from_mmdetection(sample: Any) -> NDArray[np.bool_]:
    """The masks of ``DetDataSample`` or ``InstanceData``: [N, H, W] bool; InputError where there are none."""
    masks = getattr(_pred_instances(sample), "masks", None)
    if masks is None:
        raise InputError("the instances have no masks", remedy="use a model with masks")
    return hard(to_numpy(getattr(masks, "masks", masks)))  # BitmapMasks hold an array


def _with_mmdetection_masks(sample: Any, masks: NDArray[Any]) -> Any:
    if hasattr(sample, "pred_instances"):
        changed = sample.clone()
        changed.pred_instances = _with_mmdetection_masks(sample.pred_instances, masks)
        return changed
    changed, old, cut = sample.clone(), sample.masks, hard(masks)
    is_bitmap = hasattr(old, "masks")
    changed.masks = (
        type(old)(cut.astype(old.masks.dtype), *cut.shape[1:]) if is_bitmap else like_original(cut, old)
    )
    if (boxes := getattr(sample, "bboxes", None)) is not None:
        changed.bboxes = like_original(_tight_boxes(masks, boxes), boxes)
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
    (
        lambda given: hasattr(_pred_instances(given), "metainfo_keys"),
        lambda given: len(_pred_instances(given)),
        from_mmdetection,
        _with_mmdetection_masks,
    ),
    (
        lambda given: isinstance(given, Mapping) and "segmentation" in given and "segments_info" in given,
        lambda output: len(output["segments_info"]),
        from_segments,
        with_segments,
    ),
    (
        lambda given: isinstance(given, list) and all(is_record(each) for each in given),
        len,
        from_dicts,
        with_masks_in_dicts,
    ),
    (
        lambda given: is_stack(given["masks"] if isinstance(given, Mapping) and "masks" in given else given),
        lambda given: len(from_stack(given)),
        from_stack,
        with_stack,
    ),
)


def _library(predictions: object) -> _Library:
    for library in _LIBRARIES:
        if library[0](predictions):
            return library
    if isinstance(predictions, (list, tuple)):
        reason = f"a {type(predictions).__name__} of predictions"
        raise InputError(reason, remedy="give those of one image, or lists of images and of predictions")
    raise InputError(
        f"predictions of type {type(predictions).__module__}.{type(predictions).__qualname__}",
        remedy="give one of the kinds of docs/guides/from_python.md, or N×H×W masks to Refiner.refine",
    )


def _tight_boxes(masks: NDArray[Any], before: Any, *, behind: int = 1) -> NDArray[np.float32]:
    """[N, 4] boxes x0, y0, last x + ``behind``, last y + ``behind`` of masks; an empty mask keeps the box it had."""
    boxes = np.array(to_numpy(before), np.float32)
    for mask, box in zip(hard(masks), boxes, strict=True):
        window = MaskWindow(mask, 0, 0, (mask.shape[0], mask.shape[1]))
        if window.area:
            x0, y0, x1, y1 = window.box
            box[:] = x0, y0, x1 - 1 + behind, y1 - 1 + behind
    return boxes
