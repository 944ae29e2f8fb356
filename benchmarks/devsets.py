"""Dev-val sets: their images, true and coarse masks, and the measures that every benchmark takes of them.

A folder of dev-val sets has one folder for each (ccp, davis, coco …) with ``images/``, ``annotations.json`` and, for
each kind of coarse mask, ``coarse_KIND.json`` with ``coarse_KIND_match.json``. An entry of a match file is null
where the coarse mask has no true instance; such masks take part in AP alone.
"""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from transfiner_refine import __version__
from transfiner_refine.errors import InputError
from transfiner_refine.evaluation.coco_files import (
    Annotations,
    Entry,
    load_annotations,
    load_match,
    load_results,
)
from transfiner_refine.evaluation.matched import MIN_AREA, Match, MatchedScores, match_by_ids, matched_scores
from transfiner_refine.image_folders import ImageFolder
from transfiner_refine.images import read_image
from transfiner_refine.masks import MaskWindow

__all__ = ["DevSet", "Refine", "check_kinds", "default_refiner", "load_dev_sets", "refine_windows", "warm_up"]

Refine = Callable[[NDArray[np.uint8], list[MaskWindow]], list[MaskWindow]]
"""From an image and its coarse masks to the refined ones."""


@dataclass(frozen=True)
class DevSet:
    """One set of images with true masks, and its kinds of coarse masks.

    Attributes:
        name: of its folder.
        folder: where it lies.
        whole: its annotation file.
        annotations: the same, or those of some of its images.
    """

    name: str
    folder: Path
    whole: Annotations
    annotations: Annotations

    def kinds(self, only: Sequence[str] = ()) -> list[str]:
        """The kinds of coarse masks it has, by name; of those asked for, if any are."""
        files = self.folder.glob("coarse_*_match.json")
        found = sorted(file.name.removeprefix("coarse_").removesuffix("_match.json") for file in files)
        return [kind for kind in only if kind in found] if only else found

    def coarse_file(self, kind: str) -> Path:
        """The file of one kind of coarse masks."""
        return self.folder / f"coarse_{kind}.json"

    def detections(self, file: Path) -> list[Entry]:
        """The records of a results file that are of this set's images."""
        return [entry for entry in self._records(file) if entry.image_id in self.annotations.images]

    def matches(self, kind: str, coarse: Sequence[Entry]) -> list[Match]:
        """The coarse masks that have a true instance, with it."""
        file = self.folder / f"coarse_{kind}_match.json"
        ids = load_match(file, len(self._records(self.coarse_file(kind))))
        return match_by_ids(self.annotations, coarse, [ids[entry.index] for entry in coarse], file)

    def scores(
        self, matches: Sequence[Match], coarse: Sequence[Entry], after: Sequence[MaskWindow] | None = None
    ) -> MatchedScores:
        """Scores of matched masks.

        Args:
            matches: from ``matches``.
            coarse: the coarse masks.
            after: the refined mask of each match, in their order.
        """
        return matched_scores(
            (self.annotations.instances[index].mask.decode() for index, _ in matches),
            (coarse[number].mask.decode() for _, number in matches),
            after,
            images=(coarse[number].image_id for _, number in matches),
        )

    def true_masks(self) -> tuple[list[int], list[MaskWindow]]:
        """The annotations that are large enough to count: their image ids and their masks."""
        entries = [
            (entry.image_id, entry.mask.decode())
            for entry in self.annotations.instances
            if not entry.is_crowd
        ]
        large = [(image_id, mask) for image_id, mask in entries if mask.area >= MIN_AREA]
        return [image_id for image_id, _ in large], [mask for _, mask in large]

    def image(self, image_id: int) -> NDArray[np.uint8]:
        """[H, W, 3] uint8 RGB."""
        record = self.annotations.images[image_id]
        path = ImageFolder(self.folder / "images").named(record.file_name)
        return read_image(path, [record.size])[0]

    def _records(self, file: Path) -> list[Entry]:
        return load_results(file, self.whole)


def load_dev_sets(data: Path, names: Sequence[str] = (), images: int | None = None) -> Iterator[DevSet]:
    """The sets in a folder.

    Args:
        data: the folder.
        names: only these sets.
        images: so many images of each set, evenly spaced through it: neighbours are alike.

    Raises:
        InputError: there is none, or none of a name.
    """
    found = {file.parent.name: file for file in sorted(data.glob("*/annotations.json"))}
    unknown = sorted(set(names) - set(found))
    if not found or unknown:
        wanted = ", ".join(unknown) or "*"
        raise InputError(
            f"no set {wanted} here",
            file=data,
            remedy="--data is the folder with ccp/annotations.json and so on",
        )
    for name in names or found:
        annotations = whole = load_annotations(found[name])
        if images is not None:
            ids = list(whole.images)
            chosen = {ids[(2 * i + 1) * len(ids) // (2 * images)] for i in range(images)}
            annotations = dataclasses.replace(
                whole,
                images={key: image for key, image in whole.images.items() if key in chosen},
                instances=[entry for entry in whole.instances if entry.image_id in chosen],
            )
        yield DevSet(name, found[name].parent, whole, annotations)


def check_kinds(sets: Sequence[DevSet], kinds: Sequence[str]) -> None:
    """Checks that at least one of the sets has each kind of coarse mask.

    Raises:
        InputError: none has.
    """
    known = sorted({kind for dev_set in sets for kind in dev_set.kinds()})
    for kind in kinds:
        if kind not in known:
            raise InputError(f"no set has coarse masks of kind {kind!r}", remedy=f"known: {', '.join(known)}")


def default_refiner(
    weights: str | None, yardstick: Path | None, device: str, precision: str = "auto"
) -> tuple[Refine, str]:
    """The refiner, warmed up, and one line that says which and where.

    Args:
        weights: name or path; None for the shipped ones.
        yardstick: a U-Net that unet.py trained, in place of the refiner.
        device, precision: as for ``load_refiner``.
    """
    import torch
    from unet import UNetRefiner

    from transfiner_refine import load_refiner
    from transfiner_refine.device import choose_device

    refiner: Any
    if yardstick is not None:
        refiner, name, where = UNetRefiner(yardstick), f"yardstick {yardstick}", torch.device("cpu")
    else:
        refiner = load_refiner(weights or "lite", device=device, precision=precision)
        name = f"weights {weights or 'shipped'}, {refiner.engine} in {refiner.precision}"
        where = choose_device(device)

    def refine(image: NDArray[np.uint8], masks: list[MaskWindow]) -> list[MaskWindow]:
        windows: list[MaskWindow] = refiner.refine_windows([image], masks, [0] * len(masks))
        return windows

    warm_up(refine)
    return refine, (
        f"transfiner-refine {__version__}, {name}, device {where}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    )


def warm_up(refine: Refine, sides: Sequence[int] = (40,)) -> None:
    """Refines a rectangle of each side in noise, so that the first image does not pay for the start."""
    image = np.random.default_rng(0).integers(0, 256, (640, 640, 3), np.uint8)
    for side in sides:
        refine(image, [MaskWindow(np.ones((side, side), bool), 20, 20, (640, 640))])


def refine_windows(
    dev_set: DevSet, label: str, image_ids: Sequence[int], masks: Sequence[MaskWindow], refine: Refine
) -> tuple[list[MaskWindow], float]:
    """Refines masks image by image; the wall-clock seconds are those of refining alone, without reading images."""
    of_image: dict[int, list[int]] = defaultdict(list)
    for index, image_id in enumerate(image_ids):
        of_image[image_id].append(index)
    result = list(masks)
    seconds = 0.0
    for image_id, indices in tqdm(of_image.items(), label, unit="image", leave=False, disable=None):
        image = dev_set.image(image_id)
        start = time.perf_counter()
        windows = refine(image, [masks[index] for index in indices])
        seconds += time.perf_counter() - start
        for index, window in zip(indices, windows, strict=True):
            result[index] = window
    return result, seconds
