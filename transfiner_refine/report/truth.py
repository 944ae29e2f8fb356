"""The true mask of each instance of a report, where truth is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transfiner_refine.errors import InputError
from transfiner_refine.evaluation.coco_files import load_annotations, load_results
from transfiner_refine.evaluation.matched import MaskScores, check_same_detections, mask_scores
from transfiner_refine.evaluation.matched import match as match_detections
from transfiner_refine.evaluation.overlap import as_window
from transfiner_refine.formats import PngKind, RecordFault, open_source
from transfiner_refine.formats.records import EncodedMask
from transfiner_refine.masks import MaskWindow

__all__ = ["TrueMask", "Truth", "load_truth"]


@dataclass(frozen=True)
class TrueMask:
    """A true mask and its foreground pixels."""

    mask: EncodedMask
    area: int

    def scores(self, before: MaskWindow, after: MaskWindow) -> tuple[MaskScores, MaskScores]:
        """How well the masks before and after fit it."""
        window = as_window(self.mask.decode())
        return mask_scores(window, before), mask_scores(window, after)


@dataclass(frozen=True)
class Truth:
    """True masks by ``Instance.index``, and the names of the categories by id."""

    masks: Mapping[int, TrueMask]
    categories: Mapping[int, str]


def load_truth(
    annotations: str | Path | None,
    before: Path,
    after: Path,
    *,
    match: str | Path | None = None,
    images: str | Path = ".",
    png_kind: PngKind | Literal["auto"] = "auto",
) -> Truth | None:
    """Which true mask each instance has; None if no truth is given.

    Args:
        annotations: a COCO annotation file for JSON, a folder of the same file names for PNGs.
        before: the masks before.
        after: the masks after.
        match: for JSON, a match file.
        images: folder of the photos, for PNGs.
        png_kind: for PNGs.

    Raises:
        InputError: the truth is of another kind than the masks, or cannot be used.
    """
    if annotations is None:
        return None
    annotations = Path(annotations)
    if annotations.is_dir() != before.is_dir():
        wanted = "a folder of PNGs" if before.is_dir() else "a COCO annotation file"
        raise InputError(
            "is of another kind than the masks", file=annotations, remedy=f"give {wanted} as --annotations"
        )
    if annotations.is_dir():
        return _from_pngs(annotations, before, images, png_kind)
    truth = load_annotations(annotations)
    coarse, refined = load_results(before, truth), load_results(after, truth)
    check_same_detections(coarse, refined, (before, after))
    matches, _ = match_detections(truth, coarse, before, match)
    masks = {}
    for i, j in matches:
        mask = truth.instances[i].mask
        masks[coarse[j].record] = TrueMask(mask, mask.area)
    return Truth(masks, truth.categories)


def _from_pngs(folder: Path, before: Path, images: str | Path, png_kind: PngKind | Literal["auto"]) -> Truth:
    """True masks that have the file name (and id) of the mask before."""
    index_of = {}
    for item in open_source(before, images, png_kind=png_kind):
        if not isinstance(item, RecordFault):
            index_of.update({instance.label: instance.index for instance in item.instances})
    masks = {}
    for item in open_source(folder, images, png_kind=png_kind):
        if isinstance(item, RecordFault):
            raise item.error
        for instance in item.instances:
            if instance.label in index_of:
                window = as_window(instance.mask.decode())
                masks[index_of[instance.label]] = TrueMask(instance.mask, window.area)
    return Truth(masks, {})
