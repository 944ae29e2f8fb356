"""The names that ``--from`` and ``--to`` take, without loading the formats: help must come at once."""

from __future__ import annotations

__all__ = ["FORMAT_NAMES"]

# those of formats.detect.FORMATS, for which a test stands
FORMAT_NAMES = (
    "coco-results",
    "coco-results-jsonl",
    "coco-annotations",
    "coco-panoptic",
    "cityscapes-results",
    "cityscapes-ids",
    "voc",
    "davis",
    "png",
    "id-maps",
    "yolo-seg",
    "labelme",
)
