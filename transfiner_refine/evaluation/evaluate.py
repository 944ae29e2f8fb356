"""The whole evaluation of one results file, alone or against the masks it was refined from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from transfiner_refine.errors import InputError
from transfiner_refine.evaluation.average_precision import Overlap, Precisions, average_precision, by_overlap
from transfiner_refine.evaluation.coco_files import Annotations, Entry
from transfiner_refine.evaluation.inputs import Opener, read_inputs
from transfiner_refine.evaluation.matched import (
    MIN_AREA,
    MIN_COARSE_IOU,
    InstanceScore,
    Match,
    MatchedScores,
    check_same_detections,
    match_detections,
    matched_scores,
)
from transfiner_refine.evaluation.overlap import BOUNDARY_RATIO
from transfiner_refine.formats.registry import open_source
from transfiner_refine.image_folders import ImageFolder
from transfiner_refine.images import read_image
from transfiner_refine.masks import Mask

if TYPE_CHECKING:
    from transfiner_refine.evaluation.error_analysis import ErrorAnalysis
    from transfiner_refine.refiner import BaseRefiner


@dataclass(frozen=True)
class Settings:
    """How an evaluation is done."""

    boundary_ratio: float = BOUNDARY_RATIO  # band as a share of the image's diagonal; 0.005 for Cityscapes
    min_area: int = MIN_AREA  # true area from which a matched instance is counted, pixels
    min_coarse_iou: float = MIN_COARSE_IOU  # coarse IoU from which it is
    seed: int = 0  # of the bootstrap


class Analysis(NamedTuple):
    """What the error analysis needs, which refines the coarse masks again."""

    images: Path  # folder of the images, named as the annotation file has it
    refiner: BaseRefiner
    weights: str  # the refiner's name, for the output


class ClassRow(NamedTuple):
    """One category: its instances (no crowds) and AP by overlap; ``before`` is None where there is none."""

    name: str
    instances: int
    before: dict[Overlap, float] | None
    after: dict[Overlap, float]


class InstanceRow(NamedTuple):
    """One matched mask, as a person finds it, and its scores."""

    image: str
    annotation_id: int | None  # of the true instance: its id, in formats without one its number
    annotation: str  # where it stands: "annotation id 7", "street_002.png"
    record: int  # the index of the mask in the results
    label: str  # where it stands
    category: str
    score: float | None
    scores: InstanceScore


class Evaluation(NamedTuple):
    """What came out, with all that is needed to know what it is of.

    AP is None where the detections have no scores. Where the results are scored alone, ``before`` and ``ap_before``
    are None, and the results' scores stand in ``matched`` as "before".
    """

    annotations: Path
    results: Path
    before: Path | None
    images: int
    instances: int  # with a mask, crowds aside
    crowds: int
    detections: int
    federated: bool  # LVIS's way of counting was used
    settings: Settings
    ap_before: Precisions | None
    ap_after: Precisions | None
    matched_by: str  # "match file", "annotation_id" or "best IoU"
    matched: MatchedScores
    instances_matched: tuple[InstanceRow, ...]  # of each row of matched
    classes: tuple[ClassRow, ...]  # of categories that have instances, by name
    errors: ErrorAnalysis | None  # of the counted instances; None where it was not asked for
    unused: tuple[str, ...]  # sentences that say what of the files could not be used


def evaluate(
    annotations: str | Path,
    results: str | Path,
    *,
    before: str | Path | None = None,
    match: str | Path | None = None,
    settings: Settings | None = None,
    analysis: Analysis | None = None,
    opened: Opener = open_source,
    progress: bool = False,
) -> Evaluation:
    """Mask AP, boundary AP and matched-instance scores of masks.

    Args:
        annotations: the truth: a COCO or LVIS annotation file, or masks in any format.
        results: the refined masks, in any format.
        before: the masks they were refined from: the same detections in the same order.
        match: which annotation each result belongs to (see ``load_match``); None takes the records'
            ``annotation_id`` if they have one, else the best IoU of the masks before, in image and category.
        settings: None for COCO's.
        analysis: adds the error analysis; None for none.
        opened: opens what is no COCO file; ``functools.partial`` gives ``open_source`` its options.
        progress: show bars on stderr.

    Raises:
        InputError: a file, a record or an image that cannot be used, or faster-coco-eval is not installed.
    """
    settings = settings or Settings()
    truth, (after, *rest) = read_inputs(
        annotations, [results] if before is None else [results, before], opened
    )
    coarse = rest[0] if rest else after
    if before is not None:
        check_same_detections(coarse, after, (before, results))
    matches, matched_by = match_detections(truth, coarse, results if before is None else before, match)
    kept = [entry for entry in truth.instances if entry.is_crowd or entry.mask.area]
    scored = replace(truth, instances=kept)
    ap_before = None if before is None else _precisions(scored, coarse, before, settings, progress)
    ap_after = _precisions(scored, after, results, settings, progress)
    bar = tqdm(matches, "matched instances", unit="mask", disable=not progress, leave=False)
    matched = matched_scores(
        (truth.instances[i].mask for i, _ in matches),
        (coarse[j].mask for _, j in matches),
        None if before is None else (after[j].mask for _, j in matches),
        images=(coarse[j].image_id for _, j in bar),
        dilation_ratio=settings.boundary_ratio,
        min_area=settings.min_area,
        min_coarse_iou=settings.min_coarse_iou,
        seed=settings.seed,
    )
    errors = None
    if analysis is not None:
        from transfiner_refine.evaluation import error_analysis  # here, because it imports torch

        counted = [pair for pair, row in zip(matches, matched.rows, strict=True) if row.counted]
        cases = _cases(truth, coarse, counted, analysis.images, progress)
        errors = error_analysis.analyse_errors(
            analysis.refiner, cases, weights=analysis.weights, dilation_ratio=settings.boundary_ratio
        )
    crowds = sum(instance.is_crowd for instance in scored.instances)
    return Evaluation(
        annotations=Path(annotations),
        results=Path(results),
        before=None if before is None else Path(before),
        images=len(truth.images),
        instances=len(scored.instances) - crowds,
        crowds=crowds,
        detections=len(after),
        federated=truth.is_lvis,
        settings=settings,
        ap_before=ap_before,
        ap_after=ap_after,
        matched_by=matched_by,
        matched=matched,
        instances_matched=tuple(
            _row(truth, truth.instances[i], after[j], scores)
            for (i, j), scores in zip(matches, matched.rows, strict=True)
        ),
        classes=_class_rows(scored, ap_before, ap_after),
        errors=errors,
        unused=tuple(_unused(truth, scored, after)),
    )


def _row(truth: Annotations, real: Entry, found: Entry, scores: InstanceScore) -> InstanceRow:
    image = truth.images[real.image_id]
    name, category = image.file_name or str(image.id), truth.categories.get(real.category_id, "")
    return InstanceRow(
        name, real.instance_id, real.label, found.index, found.label, category, found.score, scores
    )


def _unused(truth: Annotations, scored: Annotations, detections: Sequence[Entry]) -> Iterator[str]:
    """Sentences that say what of the files plays no part, and where the two have nothing in common."""
    yield from truth.notes
    total = len(truth.instances) + truth.without_mask
    crowds = sum(entry.is_crowd for entry in truth.instances)
    if missing := total - len(scored.instances):
        yield f"{missing} of {total} annotations have no mask and are not counted."
    if total and crowds == total:
        yield "All annotations are crowd regions: there is no instance to score against."
    unknown = [entry.category_id for entry in detections if entry.category_id not in truth.categories]
    if unknown:
        ids = sorted(set(unknown))
        listed = ", ".join(str(truth.others.get(key, key)) for key in ids[:5]) + (
            " …" if len(ids) > 5 else ""
        )
        yield f"{len(unknown)} of {len(detections)} detections are of categories that are not annotated: {listed}"
    instances = [entry for entry in scored.instances if not entry.is_crowd]
    for kind in ("category_id", "image_id"):
        there, found = ({getattr(entry, kind) for entry in entries} for entries in (instances, detections))
        if there and found and not there & found:
            yield f"No {kind} of the results has an annotated instance: do the files belong together?"


def _cases(
    truth: Annotations, coarse: Sequence[Entry], matches: Sequence[Match], images: Path, progress: bool
) -> Iterator[tuple[NDArray[np.uint8], Mask, Mask]]:
    """Pixels, true mask and coarse mask of matched instances, image by image."""
    folder = ImageFolder(images)
    by_image = sorted(matches, key=lambda pair: truth.instances[pair[0]].image_id)
    current, pixels = None, None
    for i, j in tqdm(by_image, "error analysis", unit="mask", disable=not progress, leave=False):
        instance = truth.instances[i]
        if pixels is None or instance.image_id != current:
            current, image = instance.image_id, truth.images[instance.image_id]
            path = folder.named(image.file_name) if image.file_name else folder.with_id(image.id)
            pixels, _ = read_image(path, {image.size})
        yield pixels, instance.mask, coarse[j].mask


def _precisions(
    truth: Annotations, detections: Sequence[Entry], file: str | Path, settings: Settings, progress: bool
) -> Precisions | None:
    """AP by overlap; None for detections that have no scores at all."""
    unscored = [detection.label for detection in detections if detection.score is None]
    if detections and len(unscored) == len(detections):
        return None
    if unscored:
        raise InputError("no score, though others have one", file=file, record=unscored[0])
    name = f"of {Path(file).name}" if progress else None
    return average_precision(truth, detections, boundary_ratio=settings.boundary_ratio, progress=name)


def _class_rows(
    truth: Annotations, before: Precisions | None, after: Precisions | None
) -> tuple[ClassRow, ...]:
    """One row for each category with instances, by name."""
    if after is None:
        return ()
    counts = Counter(instance.category_id for instance in truth.instances if not instance.is_crowd)
    rows = []
    for key, count in counts.items():
        ap_before, ap_after = by_overlap(before, "classes", key), by_overlap(after, "classes", key)
        rows.append(ClassRow(truth.categories[key], count, ap_before or None, ap_after))
    return tuple(sorted(rows, key=lambda row: row.name))
