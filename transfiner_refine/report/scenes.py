"""What a report shows: each image with its instances before and after, and their scores where the truth is given.

Masks are read twice: once to compare them, after which only numbers are kept, and once to draw those of the images
that were chosen. So memory does not grow with the masks of images that are not shown.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from tqdm import tqdm

from transfiner_refine.errors import InputError
from transfiner_refine.evaluation.inputs import ANY_CLASS, read_inputs, sound
from transfiner_refine.evaluation.matched import match_detections, size_class
from transfiner_refine.evaluation.overlap import as_window, common_window, crop_iou, mask_fit
from transfiner_refine.formats.records import ImageRecord, Instance, Source
from transfiner_refine.masks import MaskWindow

_REMEDY = "give the masks before and after of one run of refine"


Pair: TypeAlias = tuple[Instance, Instance]
"""An instance before and after."""


class Scene(NamedTuple):
    """One image of the report.

    Attributes:
        path: the image.
        size: (height, width), pixels, in the frame of its masks.
        instances: by their index in the input and in its order, empty masks and crowds left out: ``label`` (how a
            person finds it in its file), ``category`` (the name, "" where there is none), ``score`` (None where
            there is none), ``area`` and ``size`` (pixels and COCO's class, of the true mask if known), ``changed``
            (pixels that differ / pixels in either mask), and with a true mask ``iou`` and ``boundary`` (IoU), each
            [before, after].
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
        truth: gives the true mask of an instance; None where it is not known.
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
        """Reads and compares everything; the arguments are as for ``build_report``, ``opened`` opens any of them.

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
        self.passed_over = lost = 0
        later_faults: list[InputError] = []
        paired, disable = self._paired(self.faults, later_faults), None if progress else True
        for record, pairs in tqdm(
            paired, "comparing masks", self._before.num_images, unit=" images", disable=disable
        ):
            lost += len(record.instances) - len(pairs)
            shown = {before.index: entry for before, after in pairs if (entry := self._entry(before, after))}
            if shown:
                assert record.path is not None  # both sources know the images
                size = next(before.mask.size for before, _ in reversed(pairs) if before.index in shown)
                self.scenes.append(Scene(record.path, size, shown))
        if lost:  # else the faults after are those before
            said = {str(fault) for fault in self.faults}
            self.faults += [fault for fault in later_faults if str(fault) not in said]
        if lost and not later_faults:
            reason = f"has no masks for {lost} of the instances"
            self.faults.append(InputError(reason, file=after, remedy=_REMEDY))

    def pairs(self, scenes: Sequence[Scene]) -> Iterator[list[Pair]]:
        """The instances of some of the images, in their order, before and after; read again.

        Raises:
            InputError: the inputs have changed since they were compared.
        """
        wanted = {next(iter(scene.instances)): scene for scene in scenes}
        for record, pairs in self._paired([], []):
            scene = next((wanted.pop(index) for index in record.indexes if index in wanted), None)
            if scene is not None:
                chosen = [pair for pair in pairs if pair[0].index in scene.instances]
                if len(chosen) < len(scene.instances):
                    break
                yield chosen
        else:
            if not wanted:
                return
        raise InputError("the masks have changed while the report was made", remedy="make it again")

    def _paired(
        self, faults: list[InputError], later_faults: list[InputError]
    ) -> Iterator[tuple[ImageRecord, list[Pair]]]:
        """Each image before, with those of its instances that are there after too; the lists take the faults of both.

        Raises InputError where two instances are of different images or classes; a folder may have lost its classes.
        """
        waiting: dict[int, tuple[Path | None, Instance]] = {}
        later, seen = sound(self._after, later_faults), set[tuple[Any, ...]]()
        for record in sound(self._before, faults):
            # both are in the same order, so little has to wait
            image = record.path, record.name, record.image_id
            while image not in seen and not waiting.keys() >= set(record.indexes):
                other = next(later, None)
                if other is None:
                    break
                seen.add((other.path, other.name, other.image_id))
                waiting |= {instance.index: (other.path, instance) for instance in other.instances}
            there = {index: waiting.pop(index) for index in record.indexes if index in waiting}
            pairs = []
            for one in record.instances:
                if one.index not in there:
                    continue
                path, two = there[one.index]
                classes = one.category_id, two.category_id
                if record.path != path or (None not in classes and classes[0] != classes[1]):
                    assert record.path is not None
                    assert path is not None
                    was = f"of {record.path.name}, class {one.category_id} before"
                    reason = f"is of {path.name}, class {two.category_id}, but {was}"
                    raise InputError(reason, file=self._file, record=two.label, remedy=_REMEDY)
                pairs.append((one, two))
            yield record, pairs
        for _ in later:  # for its faults
            pass

    def _entry(self, instance: Instance, other: Instance) -> dict[str, Any] | None:
        """What is said of an instance; None where it cannot be shown, which is kept or counted."""
        try:
            masks = [] if instance.is_crowd else [window_of(instance), window_of(other)]
            if not any(mask.area for mask in masks):
                self.passed_over += 1
                return None
            coarse, sharp = masks
            if coarse.image_size != sharp.image_size:
                reason = f"is for an image of {sharp.image_size}, before of {coarse.image_size}"
                raise InputError(reason, file=self._file, record=other.label)
            real, category = self.truth(instance), instance.category_id
            entry: dict[str, Any] = {
                "label": instance.label,
                "category": "" if category is None else self._categories.get(category, f"class {category}"),
                "score": instance.score,
                "size": size_class((real or coarse).area),
                "area": (real or coarse).area,
                "changed": 1 - crop_iou(*common_window(coarse, sharp)),
            }
            if real is not None:
                fits = mask_fit(real, coarse), mask_fit(real, sharp)
                entry["iou"], entry["boundary"] = map(list, zip(*fits, strict=True))
            return entry
        except InputError as error:
            self.faults.append(error)
            return None


def choose(scenes: Sequence[Scene], limit: int, *, seed: int = 0) -> tuple[list[Scene], str]:
    """At most ``limit`` images (0 for all), in the order they came, and a sentence that says how they were chosen.

    With truth a third are those with the largest gains, a third those with the largest losses, and the rest
    random; without, half are those that changed most. What is random keeps the choice honest.
    """
    if limit == 0 or len(scenes) <= limit:
        return list(scenes), ""
    numbers = range(len(scenes))
    entries = [scene.instances.values() for scene in scenes]
    gains = [[entry["iou"][1] - entry["iou"][0] for entry in each if "iou" in entry] for each in entries]
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
    truth, (detections,) = read_inputs(annotations, [before], opened, tolerant=True)
    matches, _ = match_detections(truth, detections, before, match)
    masks = {detections[number].index: truth.instances[index].mask for index, number in matches}
    names = {} if truth.categories == ANY_CLASS else truth.categories
    return lambda one: masks[one.index].decode() if one.index in masks else None, names
