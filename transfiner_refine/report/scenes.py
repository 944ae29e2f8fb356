"""What the report shows: each image with its instances before and after, and their scores where truth is given."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from transfiner_refine.errors import InputError
from transfiner_refine.evaluation.matched import SIZES, MaskScores
from transfiner_refine.evaluation.overlap import as_window, common_window, crop_iou
from transfiner_refine.formats import PngKind, RecordFault, Source, open_source
from transfiner_refine.formats.records import EncodedMask, ImageRecord, Instance
from transfiner_refine.formats.registry import recognise
from transfiner_refine.report.truth import TrueMask, load_truth

__all__ = ["Scene", "Scenes", "Shown", "load_scenes"]

Kind = PngKind | Literal["auto"]


@dataclass(frozen=True)
class Shown:
    """One instance of the report.

    Attributes:
        label: how a person finds it in its file.
        category: name of its class, "" where the input has none.
        score: the detector's confidence, None where the input has none.
        area: of the true mask if it is known, else of the mask before, pixels.
        before, after, truth: the masks; ``truth`` is None where it is not known.
        scores: of both masks against the truth, before and after; None without one.
        changed: pixels that differ between before and after / pixels in either of them, in [0, 1].
    """

    label: str
    category: str
    score: float | None
    area: int
    before: EncodedMask
    after: EncodedMask
    truth: EncodedMask | None
    scores: tuple[MaskScores, MaskScores] | None
    changed: float

    @property
    def size(self) -> str:
        """COCO's size class: small, medium or large."""
        return next(name for name, (low, high) in SIZES.items() if name != "all" and low <= self.area < high)

    @property
    def gain(self) -> float | None:
        """IoU after minus before; None without truth."""
        return None if self.scores is None else self.scores[1].iou - self.scores[0].iou


@dataclass(frozen=True)
class Scene:
    """One image of the report.

    Attributes:
        path: the photo.
        name: its file name inside the image folder.
        size: (height, width), pixels, in the frame of its masks.
        instances: in the order of the input; empty masks and crowds are left out.
    """

    path: Path
    name: str
    size: tuple[int, int]
    instances: tuple[Shown, ...]


@dataclass(frozen=True)
class Scenes:
    """All there is to show.

    Attributes:
        scenes: images that have at least one instance.
        has_truth: truth was given.
        faults: what had to be left out, and why.
    """

    scenes: tuple[Scene, ...]
    has_truth: bool
    faults: tuple[InputError, ...]


def load_scenes(
    images: str | Path,
    before: str | Path,
    after: str | Path,
    *,
    annotations: str | Path | None = None,
    match: str | Path | None = None,
    image_info: str | Path | None = None,
    png_kind: Kind = "auto",
    progress: bool = False,
) -> Scenes:
    """Pairs the masks of two inputs and scores them.

    Args:
        images: folder of the photos.
        before: coarse masks: COCO results or annotations (JSON), or a folder of mask PNGs.
        after: the refined ones, in the same format and order.
        annotations: the truth: for JSON a COCO annotation file, for PNGs a folder with the same file names.
        match: for JSON: which annotation each record belongs to (see ``evaluation.coco_files.load_match``).
        image_info: for COCO results: an annotation file that says which image id is which photo; None takes
            ``annotations``.
        png_kind: for PNG folders: "binary" or "id-map" where the pixels should not decide.
        progress: a bar on stderr, if that is a terminal.

    Raises:
        InputError: an input cannot be used at all, or the two do not hold the same instances.
    """
    before, after = Path(before), Path(after)
    if image_info is None and annotations is not None and not Path(annotations).is_dir():
        image_info = annotations
    sources = [
        open_source(path, images, image_info=image_info if _is_list(path) else None, png_kind=png_kind)
        for path in (before, after)
    ]
    faults: list[InputError] = []
    refined = {
        instance.index: (record.path, instance)
        for record in _sound(sources[1], [])
        if record.path is not None  # always so: both sources know the photos
        for instance in record.instances
    }
    if sources[0].num_instances != sources[1].num_instances:
        raise InputError(
            f"{sources[1].num_instances} masks, but {sources[0].num_instances} in {before}",
            file=after,
            remedy="give the masks before and after of one run of refine",
        )
    truth = load_truth(annotations, before, after, match=match, images=images, png_kind=png_kind)
    categories = {**(truth.categories if truth else {}), **sources[0].categories}
    scenes = []
    bar = tqdm(
        total=sources[0].num_instances,
        desc="comparing masks",
        unit=" instances",
        file=sys.stderr,
        disable=None if progress else True,
    )
    with bar:
        for record in _sound(sources[0], faults):
            instances = []
            assert record.path is not None
            for instance in record.instances:
                bar.update(1)
                try:
                    shown = _shown(
                        record,
                        instance,
                        refined.get(instance.index),
                        categories,
                        truth.masks.get(instance.index) if truth else None,
                        after,
                    )
                except InputError as error:
                    faults.append(error)
                    continue
                if shown is not None:
                    instances.append(shown)
            if instances:
                name = record.path.relative_to(images).as_posix()
                scenes.append(Scene(record.path, name, instances[0].before.size, tuple(instances)))
    return Scenes(tuple(scenes), truth is not None, tuple(faults))


def _sound(source: Source, faults: list[InputError]) -> Iterator[ImageRecord]:
    """The images of a source; what is at fault goes into ``faults``."""
    for item in source:
        if isinstance(item, RecordFault):
            faults.append(item.error)
        else:
            yield item


def _shown(
    record: ImageRecord,
    instance: Instance,
    refined: tuple[Path, Instance] | None,
    categories: Mapping[int, str],
    truth: TrueMask | None,
    after: Path,
) -> Shown | None:
    """The instance with both its masks; None for crowds and empty masks."""
    if refined is None:  # that record of the second file is at fault
        raise InputError("has no sound mask", file=after, record=instance.label)
    path, other = refined
    assert record.path is not None
    if path != record.path or other.category_id != instance.category_id:
        raise InputError(
            f"is of {path.name}, class {other.category_id}, but of {record.path.name}, class "
            f"{instance.category_id} before",
            file=after,
            record=other.label,
            remedy="give the masks before and after of one run of refine",
        )
    if instance.is_crowd:
        return None
    coarse, sharp = as_window(instance.mask.decode()), as_window(other.mask.decode())
    if coarse.area == 0 and sharp.area == 0:
        return None
    if coarse.image_size != sharp.image_size:
        raise InputError(
            f"is for an image of {sharp.image_size}, before of {coarse.image_size}",
            file=after,
            record=other.label,
        )
    category = instance.category_id
    return Shown(
        label=instance.label,
        category="" if category is None else categories.get(category, f"class {category}"),
        score=instance.score,
        area=coarse.area if truth is None else truth.area,
        before=instance.mask,
        after=other.mask,
        truth=None if truth is None else truth.mask,
        scores=None if truth is None else truth.scores(coarse, sharp),
        changed=1 - crop_iou(*common_window(coarse, sharp)),
    )


def _is_list(path: Path) -> bool:
    """Whether a file is COCO results, which do not name their photos themselves."""
    return path.is_file() and recognise(path).name in ("coco-results", "coco-results-jsonl")
