"""Predictions made of dicts, arrays and tensors: SAM's, those of ``transformers``, and plain stacks of masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from transfiner_refine.formats.label_map_formats import LABEL_MAPS
from transfiner_refine.formats.segmentation import mask_from_segmentation
from transfiner_refine.inputs import as_masks, to_numpy
from transfiner_refine.masks import Mask, MaskWindow

# segment-anything's automatic masks, and the image-segmentation pipeline of transformers: a list of dicts


def from_dicts(records: Sequence[Mapping[str, Any]]) -> NDArray[Any]:
    """The masks of dicts with ``segmentation`` (array or RLE) or ``mask`` (array or Pillow image): [N, H, W]."""
    found = [_mask_in(record) for record in records]
    return np.stack(found) if found else np.zeros((0, 0, 0), bool)


def _mask_in(record: Mapping[str, Any]) -> NDArray[Any]:
    value = record["segmentation"] if "segmentation" in record else record["mask"]
    if isinstance(value, Mapping):
        return mask_from_segmentation(dict(value), lambda: (0, 0)).decode().paste()
    return as_masks(value).values[0]


def with_masks_in_dicts(records: Sequence[Mapping[str, Any]], masks: NDArray[Any]) -> list[dict[str, Any]]:
    cut, changed = hard(masks), []
    for record, mask in zip(records, cut, strict=True):
        name = "segmentation" if "segmentation" in record else "mask"
        old, encoded = record[name], Mask.from_window(MaskWindow(mask, 0, 0, (mask.shape[0], mask.shape[1])))
        new: Any
        if isinstance(old, Mapping):
            counts = old["counts"]
            is_text = isinstance(counts, (str, bytes))
            text: Any = encoded.counts.encode() if isinstance(counts, bytes) else encoded.counts
            new = {**old, "counts": text if is_text else encoded.runs.tolist()}
        elif isinstance(old, Image.Image):
            new = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))
        else:
            new = like_original(mask, old)
        facts = dict(record)
        if "area" in record:
            facts["area"] = encoded.area
        if "bbox" in record and encoded.area:
            x0, y0, x1, y1 = encoded.box
            facts["bbox"] = [x0, y0, x1 - x0, y1 - y0]
        changed.append({**facts, name: new})
    return changed


# transformers: post_process_instance_segmentation and post_process_panoptic_segmentation (Mask2Former, MaskFormer,
# OneFormer, DETR …), a map of ids or a stack of masks; the mask-generation pipeline; SAM's post_process_masks, a tensor


def from_segments(output: Mapping[str, Any]) -> NDArray[np.bool_]:
    """The masks of ``segmentation`` (a map of ids, or a stack) in the order of ``segments_info``: [N, H, W] bool."""
    if output["segmentation"] is None or not output["segments_info"]:
        return np.zeros((0, 0, 0), bool)
    values = to_numpy(output["segmentation"])
    if values.ndim == 3:
        return values.astype(bool)
    return np.stack([values == segment["id"] for segment in output["segments_info"]])


def with_segments(output: Mapping[str, Any], masks: NDArray[Any]) -> dict[str, Any]:
    """In a map of ids, a pixel that several claim goes to the highest score; no segment vanishes."""
    old, cut = output["segmentation"], hard(masks)
    values = to_numpy(old)
    if values.ndim == 2:
        ids = [segment["id"] for segment in output["segments_info"]]
        lowest = int(values.min())  # ids may start at 0, with -1 as background
        order = sorted(range(len(ids)), key=lambda n: -output["segments_info"][n].get("score", 0))
        windows = [MaskWindow(mask, 0, 0, (mask.shape[0], mask.shape[1])) for mask in cut]
        refined = [(ids[n] - lowest, Mask.from_window(windows[n])) for n in order]
        shifted = np.where(np.isin(values, ids), values - lowest, 0).astype(np.uint16)
        new = LABEL_MAPS.update(shifted, refined).values.astype(np.int64) + lowest
        return {**output, "segmentation": like_original(new, old)}
    return {**output, "segmentation": like_original(cut, old)}


def from_stack(masks: Any) -> NDArray[Any]:
    """The masks of an array, a tensor or a list of them, with any number of leading axes: [N, H, W]."""
    if isinstance(masks, Mapping):
        masks = masks["masks"]
    if isinstance(masks, (list, tuple)):
        return as_masks(masks).values
    values = to_numpy(masks)
    return as_masks(values.reshape(-1, *values.shape[-2:])).values


def with_stack(given: Any, masks: NDArray[Any]) -> Any:
    if isinstance(given, Mapping):
        return {**given, "masks": with_stack(given["masks"], masks)}
    if isinstance(given, (list, tuple)):
        return [like_original(mask, old) for mask, old in zip(hard(masks), given, strict=True)]
    return like_original(hard(masks).reshape(to_numpy(given).shape), given)


def is_record(value: object) -> bool:
    return isinstance(value, Mapping) and ("segmentation" in value or "mask" in value)


def is_stack(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return bool(value) and all(getattr(mask, "ndim", 0) == 2 for mask in value)
    return getattr(value, "ndim", 0) >= 2


def like_original(values: NDArray[Any], original: Any) -> Any:
    """Numbers in the kind, type and place of ``original``: a tensor on its device, or an array."""
    if hasattr(original, "detach"):
        import torch  # here, because an array needs none

        return torch.from_numpy(np.ascontiguousarray(values)).to(original.device, original.dtype)
    return values.astype(np.asarray(original).dtype)


def hard(masks: NDArray[Any]) -> NDArray[np.bool_]:
    """[N, H, W] masks cut at 0.5."""
    height, width = masks.shape[-2:]
    return MaskWindow(masks, 0, 0, (height, width)).foreground
