"""What a report shows: each image with its instances before and after, and their scores where the truth is given.

Masks are read twice: once to compare them, after which only numbers are kept, and once to draw those of the images
that were chosen. So memory does not grow with the masks of images that are not shown.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from transfiner_refine.errors import InputError
from transfiner_refine.evaluation.coco_files import load_annotations, load_results
from transfiner_refine.evaluation.matched import SIZES, MaskScores, mask_scores, match_detections
from transfiner_refine.evaluation.overlap import as_window, common_window, crop_iou
from transfiner_refine.formats.records import ImageRecord, Instance, PngKind, RecordFault, Source
from transfiner_refine.formats.registry import open_source, recognise
from transfiner_refine.images import MAX_IMAGE_PIXELS
from transfiner_refine.masks import MaskWindow

__all__ = ["Scene", "Scenes", "Shown", "choose", "load_scenes", "window_of"]

_REMEDY = "give the masks before and after of one run of refine"
_TrueMask = Callable[[Instance], MaskWindow | None]


@dataclass(frozen=True)
class Shown:
    """One instance of the report.

    Attributes:
        index: its position in the input.
        label: how a person finds it in its file.
        category: name of its class, "" where the input has none.
        score: the detector's confidence, None where the input has none.
        area: of the true mask if it is known, else of the mask before, pixels.
        scores: of both masks against the truth, before and after; None without one.
        changed: pixels that differ between before and after / pixels in either of them, in [0, 1].
    """

    index: int
    label: str
    category: str
    score: float | None
    area: int
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
        path: the image.
        name: its path inside the folder of images, with "/".
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
        scenes: images that have at least one instance, in the order of the input.
        faults: what had to be left out, and why.
        passed_over: crowd regions and empty masks, which refining leaves as they are.
        sources: the masks before and after.
        truth: gives the true mask of an instance, None if it is not known; None where no truth was given.
    """

    scenes: tuple[Scene, ...]
    faults: tuple[InputError, ...]
    passed_over: int
    sources: tuple[Source, Source]
    truth: _TrueMask | None

    def pairs(self, scenes: Sequence[Scene]) -> Iterator[list[tuple[Instance, Instance]]]:
        """The instances of some of the images, in their order, before and after; read again.

        Raises:
            InputError: the inputs have changed since they were compared.
        """
        wanted = {scene.instances[0].index: scene for scene in scenes}
        for record, others in _paired(*self.sources, [], []):
            scene = next((wanted.pop(index) for index in record.indexes if index in wanted), None)
            if scene is not None:
                found = {
                    each.index: (each, others[each.index][1])
                    for each in record.instances
                    if each.index in others
                }
                if not found.keys() >= {shown.index for shown in scene.instances}:
                    break
                yield [found[shown.index] for shown in scene.instances]
        else:
            if not wanted:
                return
        raise InputError("the masks have changed while the report was made", remedy="make it again")


def load_scenes(
    images: str | Path,
    before: str | Path,
    after: str | Path,
    *,
    annotations: str | Path | None = None,
    match: str | Path | None = None,
    image_info: str | Path | None = None,
    format: str = "auto",  # noqa: A002  the option's name
    png_kind: PngKind | Literal["auto"] = "auto",
    class_names: str | Path | None = None,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
    progress: bool = False,
) -> Scenes:
    """Pairs the masks of two inputs and scores them.

    Args:
        images: folder of the images.
        before: coarse masks, in any format.
        after: the refined ones, in the same format and order.
        annotations: the truth: for JSON a COCO annotation file, for folders a folder of the same names.
        match: for JSON: which annotation each record belongs to (see ``evaluation.coco_files.load_match``).
        image_info: for COCO results: an annotation file that says which image id is which image; None takes
            ``annotations``.
        format, png_kind, class_names, max_image_pixels: how masks are read, as for ``open_source``.
        progress: a bar on stderr, if that is a terminal.

    Raises:
        InputError: an input cannot be used at all, or the two do not hold the same instances.
    """
    before, after = Path(before), Path(after)
    if image_info is None and annotations is not None and not Path(annotations).is_dir():
        image_info = annotations

    def opened(path: Path) -> Source:
        kind = recognise(path, format).name
        return open_source(
            path,
            images,
            format=kind,
            image_info=image_info
            if kind.startswith("coco-results")
            else None,  # the others name their images
            png_kind=png_kind,
            class_names=class_names,
            max_image_pixels=max_image_pixels,
        )

    sources = opened(before), opened(after)
    if sources[0].num_instances != sources[1].num_instances:
        reason = f"{sources[1].num_instances} masks, but {sources[0].num_instances} in {before}"
        raise InputError(reason, file=after, remedy=_REMEDY)
    truth: _TrueMask | None = None
    names: Mapping[int, str] = {}
    if annotations is not None:
        truth, names = _truth(Path(annotations), before, match, opened)
    categories = {**names, **sources[0].categories}
    faults: list[InputError] = []
    later_faults: list[InputError] = []
    scenes, passed_over, lost = [], 0, False
    bar = tqdm(
        total=sources[0].num_instances,
        desc="comparing masks",
        unit=" instances",
        file=sys.stderr,
        disable=None if progress else True,
    )
    with bar:
        for record, others in _paired(*sources, faults, later_faults):
            shown, size = [], (0, 0)
            for instance in record.instances:
                bar.update(1)
                if instance.index not in others:
                    lost = True
                    continue
                path, other = others[instance.index]
                _check_same(record.path, instance, path, other, after)
                try:
                    compared = _compared(instance, other, truth, categories, after)
                except InputError as error:
                    faults.append(error)
                    continue
                if compared is None:
                    passed_over += 1
                else:
                    shown.append(compared)
                    size = instance.mask.size
            if shown:
                assert record.path is not None  # both sources know the images
                name = record.path.relative_to(images).as_posix()
                scenes.append(Scene(record.path, name, size, tuple(shown)))
    if lost:  # else the faults after are those before
        said = {str(fault) for fault in faults}
        faults += [fault for fault in later_faults if str(fault) not in said]
    return Scenes(tuple(scenes), tuple(faults), passed_over, sources, truth)


def choose(scenes: Sequence[Scene], limit: int, *, seed: int = 0) -> tuple[list[Scene], str]:
    """At most ``limit`` images, in the order they came, and a sentence that says how they were chosen.

    With truth a third are those with the largest gains, a third those with the largest losses, and the rest
    random; without, half are those that changed most. What is random keeps the choice honest.

    Args:
        scenes: all images.
        limit: most images to show; 0 for all.
        seed: of the random ones.
    """
    if limit == 0 or len(scenes) <= limit:
        return list(scenes), ""
    numbers = range(len(scenes))
    gains = {n: [shown.gain for shown in scenes[n].instances if shown.gain is not None] for n in numbers}
    known = [n for n in numbers if gains[n]]
    if known:
        share = limit // 3
        chosen = set(sorted(known, key=lambda n: -max(gains[n]))[:share])
        chosen |= set(sorted(known, key=lambda n: min(gains[n]))[:share])
        how = f"{share} with the largest gains, {share} with the largest losses, the others at random"
    else:
        changed = [max(shown.changed for shown in scene.instances) for scene in scenes]
        chosen = set(sorted(numbers, key=lambda n: -changed[n])[: limit // 2])
        how = f"{limit // 2} that changed most, the others at random"
    rest = [n for n in numbers if n not in chosen]
    chosen |= set(random.Random(seed).sample(rest, limit - len(chosen)))
    return [scenes[n] for n in sorted(chosen)], f"{limit} of {len(scenes)} images: {how}."


def _truth(
    annotations: Path, before: Path, match: str | Path | None, opened: Callable[[Path], Source]
) -> tuple[_TrueMask, Mapping[int, str]]:
    """What gives the true mask of an instance, and the names of the truth's categories by id."""
    if annotations.is_dir() != before.is_dir():
        wanted = "a folder of PNGs" if before.is_dir() else "a COCO annotation file"
        reason, remedy = "is of another kind than the masks", f"give {wanted} as --annotations"
        raise InputError(reason, file=annotations, remedy=remedy)
    if annotations.is_dir():  # of the same file names and ids
        faults: list[InputError] = []
        records = list(_sound(opened(annotations), faults))
        if faults:
            raise faults[0]
        named = {instance.label: instance for record in records for instance in record.instances}
        return lambda instance: window_of(named[instance.label]) if instance.label in named else None, {}
    truth = load_annotations(annotations)
    detections = load_results(before, truth)
    matches, _ = match_detections(truth, detections, before, match)
    masks = {detections[number].record: truth.instances[index].mask for index, number in matches}
    return (
        lambda instance: masks[instance.index].decode() if instance.index in masks else None,
        truth.categories,
    )


def _paired(
    before: Source, after: Source, faults: list[InputError], later_faults: list[InputError]
) -> Iterator[tuple[ImageRecord, dict[int, tuple[Path | None, Instance]]]]:
    """Each image of ``before``, and the instances of ``after`` of the same indexes, with their image.

    The lists take the faults of both.
    """
    waiting: dict[int, tuple[Path | None, Instance]] = {}
    later, seen = _sound(after, later_faults), set[Path | None]()
    for record in _sound(before, faults):
        # both are in the same order, so little has to wait
        while record.path not in seen and not waiting.keys() >= set(record.indexes):
            other = next(later, None)
            if other is None:
                break
            seen.add(other.path)
            waiting |= {instance.index: (other.path, instance) for instance in other.instances}
        yield record, {index: waiting.pop(index) for index in record.indexes if index in waiting}
    for _ in later:  # for its faults
        pass


def _sound(source: Source, faults: list[InputError]) -> Iterator[ImageRecord]:
    """The images of a source; what is at fault goes into ``faults``."""
    for item in source:
        if isinstance(item, RecordFault):
            faults.append(item.error)
        else:
            yield item


def window_of(instance: Instance) -> MaskWindow:
    """The instance's mask, tight and bool."""
    return as_window(instance.mask.decode())


def _check_same(
    path: Path | None, instance: Instance, other_path: Path | None, other: Instance, after: Path
) -> None:
    """Raises InputError where two instances are of different images or classes; a folder may have lost its classes."""
    classes = instance.category_id, other.category_id
    if path != other_path or (None not in classes and classes[0] != classes[1]):
        assert path is not None
        assert other_path is not None
        raise InputError(
            f"is of {other_path.name}, class {other.category_id}, but of {path.name}, class "
            f"{instance.category_id} before",
            file=after,
            record=other.label,
            remedy=_REMEDY,
        )


def _compared(
    instance: Instance, other: Instance, truth: _TrueMask | None, categories: Mapping[int, str], after: Path
) -> Shown | None:
    """The instance with its numbers; None for crowds and empty masks."""
    if instance.is_crowd:
        return None
    coarse, sharp = window_of(instance), window_of(other)
    if coarse.area == 0 and sharp.area == 0:
        return None
    if coarse.image_size != sharp.image_size:
        raise InputError(
            f"is for an image of {sharp.image_size}, before of {coarse.image_size}",
            file=after,
            record=other.label,
        )
    real = None if truth is None else truth(instance)
    category = instance.category_id
    return Shown(
        index=instance.index,
        label=instance.label,
        category="" if category is None else categories.get(category, f"class {category}"),
        score=instance.score,
        area=coarse.area if real is None else real.area,
        scores=None if real is None else (mask_scores(real, coarse), mask_scores(real, sharp)),
        changed=1 - crop_iou(*common_window(coarse, sharp)),
    )
