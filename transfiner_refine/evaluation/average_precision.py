"""Mask AP and boundary AP, COCO's and LVIS's, by faster-coco-eval (extra ``eval``).

Boundary AP takes the smaller of mask IoU and boundary IoU for each pair (Cheng et al. 2021, §6). The boundary
is looked at only where it can matter: below the lowest threshold a pair stays unmatched whatever its outline,
so most of a detector's hundred masks an image never need one. The result is the same to the bit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from transfiner_refine.errors import InputError
from transfiner_refine.evaluation.coco_files import Annotations, Entry, rle_of
from transfiner_refine.evaluation.overlap import (
    BOUNDARY_RATIO,
    boundary,
    boundary_width,
    common_window,
    crop_iou,
)
from transfiner_refine.masks import Mask, MaskWindow

Overlap = Literal["mask", "boundary"]
OVERLAPS: tuple[Overlap, ...] = ("mask", "boundary")

_LVIS_DETECTIONS = 300  # detections an image that LVIS scores, all categories together (lvis-api, results.py)
_AREAS = {"s": 1, "m": 2, "l": 3}  # index of COCO's size classes in the evaluator's tables; 0 is all sizes


@dataclass(frozen=True)
class AveragePrecision:
    """AP and AR in [0, 1], nan where the truth has nothing to find.

    Attributes:
        scores: AP, AP50, AP75, APs, APm, APl, and AR1, AR10, AR100, ARs, ARm, ARl for COCO; APr, APc, APf and
            AR300, ARs, ARm, ARl for LVIS.
        classes: AP by category id.
    """

    scores: dict[str, float]
    classes: dict[int, float]


Precisions: TypeAlias = dict[Overlap, AveragePrecision]


def average_precision(
    annotations: Annotations,
    detections: Sequence[Entry],
    overlaps: Sequence[Overlap] = OVERLAPS,
    *,
    boundary_ratio: float = BOUNDARY_RATIO,
    progress: str | None = None,
) -> Precisions:
    """AP and AR of detections, for each kind of overlap; federated (LVIS) for LVIS annotations.

    Args:
        annotations: the truth.
        detections: with scores.
        overlaps: what two masks must have in common.
        boundary_ratio: width of the boundary band as a share of the image's diagonal; 0.005 for Cityscapes.
        progress: show bars of this name on stderr, over the pairs of image and category to compare.

    Raises:
        InputError: a detection without a score, or faster-coco-eval is not installed.
    """
    for detection in detections:
        if detection.score is None:
            raise InputError("no score, which AP needs", record=detection.label)
    evaluator, boundary_overlap = _evaluator(annotations, detections, boundary_ratio)
    evaluator.rle_iou_max_workers = 1  # two threads of Python code wait for each other, measured 1.6 × slower
    compare = {"mask": evaluator.computeIoU, "boundary": boundary_overlap}
    pairs = {(entry.image_id, entry.category_id) for entry in annotations.instances}
    pairs &= {(entry.image_id, entry.category_id) for entry in detections}
    results: Precisions = {}
    for overlap in overlaps:
        title = f"{overlap} AP {progress or ''}".strip()
        with tqdm(total=len(pairs), desc=title, unit="pair", disable=progress is None, leave=False) as bar:

            def compare_and_tell(image_id: int, category_id: int) -> Any:
                ious = compare[overlap](image_id, category_id)  # noqa: B023  called within this turn
                bar.update()
                return ious

            evaluator.computeIoU = compare_and_tell
            evaluator.evaluate()
        evaluator.accumulate()
        evaluator._prepare = lambda: None  # its tables of records serve the next overlap as they are
        results[overlap] = _scores(evaluator, annotations)
    return results


def by_overlap(of: Precisions | None, kind: Literal["scores", "classes"], key: Any) -> dict[Overlap, float]:
    """One of the scores, or the AP of one class, for each kind of overlap; nothing of None."""
    return {overlap: getattr(of[overlap], kind)[key] for overlap in OVERLAPS} if of else {}


def _evaluator(
    annotations: Annotations, detections: Sequence[Entry], boundary_ratio: float
) -> tuple[Any, _BoundaryOverlap]:
    """A ``COCOeval_faster`` of the truth and the detections, nothing computed yet, and its boundary overlap."""
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as error:
        remedy = "pip install 'transfiner-refine[eval]'"
        raise InputError("average precision needs faster-coco-eval", remedy=remedy) from error
    images = [
        {
            "id": key,
            "height": image.size[0],
            "width": image.size[1],
            "neg_category_ids": list(image.absent),
            "not_exhaustive_category_ids": list(image.incomplete),
        }
        for key, image in annotations.images.items()
    ]
    categories = [
        {"id": key, "name": name, "frequency": annotations.frequencies.get(key, "f")}
        for key, name in annotations.categories.items()
    ]

    def table(entries: Sequence[Entry], more: list[dict[str, Any]]) -> Any:
        records = [
            {
                "id": number,  # 0 means "unmatched" to the evaluator
                "image_id": entry.image_id,
                "category_id": entry.category_id,
                "segmentation": rle_of(entry.mask),
                **rest,
            }
            for number, (entry, rest) in enumerate(zip(entries, more, strict=True), 1)
        ]
        made = COCO()
        made.dataset = {"images": images, "categories": categories, "annotations": records}
        made.createIndex()
        return made

    scored = list(detections)
    if annotations.is_lvis:
        # the best 300 of each image, and of these the ones of categories that were looked for in it
        best: dict[int, list[Entry]] = defaultdict(list)
        for entry in sorted(detections, key=lambda entry: -(entry.score or 0)):
            best[entry.image_id].append(entry)
        looked_for = {(entry.image_id, entry.category_id) for entry in annotations.instances}
        looked_for |= {(key, absent) for key, image in annotations.images.items() for absent in image.absent}
        scored = [entry for entries in best.values() for entry in entries[:_LVIS_DETECTIONS]]
        scored = [entry for entry in scored if (entry.image_id, entry.category_id) in looked_for]
    truth = [{"area": entry.area, "iscrowd": int(entry.is_crowd)} for entry in annotations.instances]
    found = [{"area": entry.mask.area, "iscrowd": 0, "score": entry.score} for entry in scored]
    tables = table(annotations.instances, truth), table(scored, found)
    evaluator = COCOeval_faster(*tables, "segm", lvis_style=annotations.is_lvis)
    if annotations.is_lvis:
        evaluator.params.maxDets = [_LVIS_DETECTIONS]
    masks = [entry.mask for entry in annotations.instances], [entry.mask for entry in scored]
    return evaluator, _BoundaryOverlap(evaluator, *masks, boundary_ratio)


class _BoundaryOverlap:
    """min(mask IoU, boundary IoU) of the detections and true masks of one image and category.

    Stands in for the evaluator's own comparison, which makes the boundary of every mask at full image size. A
    boundary that cannot change which pairs match at which threshold is never made, and the mask IoU stands in
    its place.
    """

    def __init__(self, evaluator: Any, truth: list[Mask], found: list[Mask], ratio: float) -> None:
        self.evaluator, self.truth, self.found, self.ratio = evaluator, truth, found, ratio
        self.mask_ious = evaluator.computeIoU
        self.thresholds = np.asarray(evaluator.params.iouThrs)  # rising

    def __call__(self, image_id: int, category_id: int) -> NDArray[np.float64]:
        """[detections, true masks], detections by falling score as the evaluator sorts them."""
        ious: NDArray[np.float64] = self.mask_ious(image_id, category_id)
        if len(ious) == 0:
            return ious
        truths, found = (  # in the order of the evaluator's tables
            table.get_instances([image_id], [category_id], True)[0][0]
            for table in (self.evaluator.gt_dataset, self.evaluator.dt_dataset)
        )
        found = [found[i] for i in np.argsort([-entry["score"] for entry in found], kind="stable")]
        # detections choose by falling score, so a true mask that an earlier one overlaps by v, and that one
        # overlaps nothing else, is gone for the later ones at every threshold up to v
        gone = np.zeros(len(truths))  # [true masks], that v
        highest = np.searchsorted(self.thresholds, ious, side="right") - 1  # threshold reached by mask IoU
        outlines: dict[int, MaskWindow] = {}  # of true masks, by column
        for row in np.flatnonzero((highest >= 0).any(1)):
            (columns,) = np.nonzero(highest[row] >= 0)
            outline = None
            for column in columns.tolist():
                if truths[column]["iscrowd"]:  # a crowd's outline means nothing
                    continue
                if self.thresholds[highest[row, column]] <= gone[column]:
                    continue
                if column not in outlines:
                    outlines[column] = self._outline(self.truth[truths[column]["id"] - 1])
                outline = outline or self._outline(self.found[found[row]["id"] - 1])
                crops = common_window(outline, outlines[column])
                ious[row, column] = min(ious[row, column], crop_iou(*crops))
                if len(columns) == 1:
                    gone[column] = max(gone[column], ious[row, column])
        return ious

    def _outline(self, mask: Mask) -> MaskWindow:
        window = mask.decode()
        width = boundary_width(window.image_size, self.ratio)
        values = boundary(window.values.astype(np.uint8), width).astype(bool)
        return MaskWindow(values, window.x, window.y, window.image_size)


def _scores(evaluator: Any, annotations: Annotations) -> AveragePrecision:
    """Averages the evaluator's tables as COCO and LVIS do; they hold −1 where there is no truth."""
    params = evaluator.params
    # [IoU thresholds, recall thresholds, categories, size classes, detection limits]
    precision: NDArray[np.float64] = evaluator.eval["precision"]
    recall: NDArray[np.float64] = evaluator.eval["recall"]  # the same without recall thresholds
    at = {round(float(threshold), 2): index for index, threshold in enumerate(params.iouThrs)}
    scores = {
        "AP": _mean(precision[:, :, :, 0, -1]),
        "AP50": _mean(precision[at[0.5], :, :, 0, -1]),
        "AP75": _mean(precision[at[0.75], :, :, 0, -1]),
    }
    scores |= {f"AP{name}": _mean(precision[:, :, :, area, -1]) for name, area in _AREAS.items()}
    if annotations.is_lvis:
        frequency = np.array([annotations.frequencies.get(int(key), "") for key in params.catIds])
        scores |= {f"AP{name}": _mean(precision[:, :, frequency == name, 0, -1]) for name in "rcf"}
    scores |= {f"AR{limit}": _mean(recall[:, :, 0, index]) for index, limit in enumerate(params.maxDets)}
    scores |= {f"AR{name}": _mean(recall[:, :, area, -1]) for name, area in _AREAS.items()}
    classes = {int(key): _mean(precision[:, :, k, 0, -1]) for k, key in enumerate(params.catIds)}
    return AveragePrecision(scores, classes)


def _mean(values: NDArray[np.float64]) -> float:
    """Mean of the entries that have truth; nan if none has."""
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else float("nan")
