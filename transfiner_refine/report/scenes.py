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
from typing import Any

from tqdm import tqdm

from transfiner_refine.errors import InputError
from transfiner_refine.evaluation.coco_files import load_annotations, load_results
from transfiner_refine.evaluation.matched import SIZES, mask_scores, match_detections
from transfiner_refine.evaluation.overlap import as_window, common_window, crop_iou
from transfiner_refine.formats.records import ImageRecord, Instance, RecordFault, Source
from transfiner_refine.masks import MaskWindow

_REMEDY = "give the masks before and after of one run of refine"


@dataclass(frozen=True)
class Scene:
    """One image of the report.

    Attributes:
        path: the image.
        size: (height, width), pixels, in the frame of its masks.
        instances: by their index in the input and in its order, empty masks and crowds left out: ``label`` (how a
            person finds it in its file), ``category`` (the name, "" where there is none), ``score`` (None where
            there is none), ``size`` (COCO's class, by the true area if known), ``changed`` (pixels that differ /
            pixels in either mask), and with a true mask ``iou`` and ``boundary`` (IoU), each [before, after].
    """

    path: Path
    size: tuple[int, int]
    instances: dict[int, dict[str, Any]]


class Comparison:
    """The masks of two inputs, paired, and scored where the truth is given.

    Attributes:
        scenes: images that have at least one instance to show, in the order of the input.
        faults: what had to be left out, and why.
        passed_over: number of crowd regions and empty masks, which refining leaves as they are.
    """

    def __init__(
        self,
        before: Path,
        after: Path,
        opened: Callable[[Path], Source],
        *,
        annotations: Path | None = None,
        match: str | Path | None = None,
        progress: bool = False,
    ) -> None:
        """Reads and compares everything.

        Args:
            before: coarse masks, in any format.
            after: the refined ones, in the same format and order.
            opened: opens either of them, and a folder of true masks.
            annotations: the truth: for JSON a COCO annotation file, for folders a folder of the same names.
            match: for JSON: which annotation each record belongs to (see ``evaluation.coco_files.load_match``).
            progress: a bar on stderr, if that is a terminal.

        Raises:
            InputError: an input cannot be used at all, or the two do not hold the same instances.
        """
        self._before, self._after, self._file = opened(before), opened(after), after
        total, other_total = self._before.num_instances, self._after.num_instances
        if total != other_total:
            reason = f"{other_total} masks, but {total} in {before}"
            raise InputError(reason, file=after, remedy=_REMEDY)
        self.truth, names = _truth(annotations, before, match, opened)
        self._categories = {**names, **self._before.categories}
        self.scenes: list[Scene] = []
        self.faults: list[InputError] = []
        self.passed_over = 0
        later_faults: list[InputError] = []
        shown = tqdm(
            _paired(self._before, self._after, self.faults, later_faults),
            desc="comparing masks",
            unit=" images",
            total=self._before.num_images,
            file=sys.stderr,
            disable=None if progress else True,
        )
        lost = 0
        for record, others in shown:
            lost += len(record.instances) - len(others)
            self._compare(record, others)
        if lost:  # else the faults after are those before
            said = {str(fault) for fault in self.faults}
            self.faults += [fault for fault in later_faults if str(fault) not in said]
        if lost and not later_faults:
            self.faults.append(
                InputError(f"has no masks for {lost} of the instances", file=after, remedy=_REMEDY)
            )

    def pairs(self, scenes: Sequence[Scene]) -> Iterator[list[tuple[Instance, Instance]]]:
        """The instances of some of the images, in their order, before and after; read again.

        Raises:
            InputError: the inputs have changed since they were compared.
        """
        wanted = {next(iter(scene.instances)): scene for scene in scenes}
        for record, others in _paired(self._before, self._after, [], []):
            scene = next((wanted.pop(index) for index in record.indexes if index in wanted), None)
            if scene is not None:
                chosen = [
                    each for each in record.instances if each.index in scene.instances.keys() & others.keys()
                ]
                if len(chosen) < len(scene.instances):
                    break
                yield [(each, others[each.index][1]) for each in chosen]
        else:
            if not wanted:
                return
        raise InputError("the masks have changed while the report was made", remedy="make it again")

    def _compare(self, record: ImageRecord, others: dict[int, tuple[Path | None, Instance]]) -> None:
        """Adds the image to the scenes."""
        shown, size = {}, (0, 0)
        for instance in record.instances:
            if instance.index not in others:
                continue
            path, other = others[instance.index]
            _check_same(record.path, instance, path, other, self._file)
            try:
                entry = None if instance.is_crowd else self._entry(instance, other)
            except InputError as error:
                self.faults.append(error)
                continue
            if entry is None:
                self.passed_over += 1
            else:
                shown[instance.index] = entry
                size = instance.mask.size
        if shown:
            assert record.path is not None  # both sources know the images
            self.scenes.append(Scene(record.path, size, shown))

    def _entry(self, instance: Instance, other: Instance) -> dict[str, Any] | None:
        """What is said of an instance; None where both masks are empty."""
        coarse, sharp = window_of(instance), window_of(other)
        if coarse.area == 0 and sharp.area == 0:
            return None
        if coarse.image_size != sharp.image_size:
            reason = f"is for an image of {sharp.image_size}, before of {coarse.image_size}"
            raise InputError(reason, file=self._file, record=other.label)
        real, category = self.truth(instance), instance.category_id
        area = (real or coarse).area
        entry: dict[str, Any] = {
            "label": instance.label,
            "category": "" if category is None else self._categories.get(category, f"class {category}"),
            "score": instance.score,
            "size": next(name for name, (low, high) in SIZES.items() if name != "all" and low <= area < high),
            "changed": 1 - crop_iou(*common_window(coarse, sharp)),
        }
        if real is not None:
            scores = mask_scores(real, coarse), mask_scores(real, sharp)
            entry["iou"] = [score.iou for score in scores]
            entry["boundary"] = [score.boundary_iou for score in scores]
        return entry


def choose(scenes: Sequence[Scene], limit: int, *, seed: int = 0) -> tuple[list[Scene], str]:
    """At most ``limit`` images (0 for all), in the order they came, and a sentence that says how they were chosen.

    With truth a third are those with the largest gains, a third those with the largest losses, and the rest
    random; without, half are those that changed most. What is random keeps the choice honest.
    """
    if limit == 0 or len(scenes) <= limit:
        return list(scenes), ""
    numbers = range(len(scenes))
    entries = [scene.instances.values() for scene in scenes]
    gains = {
        n: [entry["iou"][1] - entry["iou"][0] for entry in entries[n] if "iou" in entry] for n in numbers
    }
    known = [n for n in numbers if gains[n]]
    if known:
        share = limit // 3
        chosen = set(sorted(known, key=lambda n: -max(gains[n]))[:share])
        chosen |= set(sorted(known, key=lambda n: min(gains[n]))[:share])
        how = f"{share} with the largest gains, {share} with the largest losses, the others at random"
    else:
        changed = [max(entry["changed"] for entry in entries[n]) for n in numbers]
        chosen = set(sorted(numbers, key=lambda n: -changed[n])[: limit // 2])
        how = f"{limit // 2} that changed most, the others at random"
    rest = [n for n in numbers if n not in chosen]
    chosen |= set(random.Random(seed).sample(rest, limit - len(chosen)))
    return [scenes[n] for n in sorted(chosen)], f"{limit} of {len(scenes)} images: {how}."


def window_of(instance: Instance) -> MaskWindow:
    """The instance's mask, tight and bool."""
    return as_window(instance.mask.decode())


def _truth(
    annotations: Path | None, before: Path, match: str | Path | None, opened: Callable[[Path], Source]
) -> tuple[Callable[[Instance], MaskWindow | None], Mapping[int, str]]:
    """What gives the true mask of an instance where it is known, and the names of the truth's categories by id."""
    if annotations is None:
        return lambda _: None, {}
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
    later, seen = _sound(after, later_faults), set[tuple[Any, ...]]()
    for record in _sound(before, faults):
        # both are in the same order, so little has to wait
        image = record.path, record.name, record.image_id
        while image not in seen and not waiting.keys() >= set(record.indexes):
            other = next(later, None)
            if other is None:
                break
            seen.add((other.path, other.name, other.image_id))
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


def _check_same(
    path: Path | None, instance: Instance, other_path: Path | None, other: Instance, after: Path
) -> None:
    """Raises InputError where two instances are of different images or classes; a folder may have lost its classes."""
    classes = instance.category_id, other.category_id
    if path != other_path or (None not in classes and classes[0] != classes[1]):
        assert path is not None
        assert other_path is not None
        reason = (
            f"is of {other_path.name}, class {other.category_id}, but of {path.name}, class "
            f"{instance.category_id} before"
        )
        raise InputError(reason, file=after, record=other.label, remedy=_REMEDY)
