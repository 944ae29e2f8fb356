"""COCO's JSON files: results, annotations and panoptic segmentations; LVIS's files are of the same kinds.

LVIS results are COCO results: the same list of the same keys. What differs is not in the file: ids run to
1203, up to 300 records an image are scored, and its annotation files name photos by ``coco_url``.
"""

from transfiner_refine.formats.coco.entries import COCO_ANNOTATIONS, COCO_LINES, COCO_RESULTS

__all__ = ["COCO_ANNOTATIONS", "COCO_LINES", "COCO_RESULTS"]
