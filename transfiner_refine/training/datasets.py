"""COCO data sets as a source of training samples."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from zlib import crc32

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_api

from transfiner_refine.errors import InputError
from transfiner_refine.formats.coco import ImageId, refuse
from transfiner_refine.formats.coco_records import mask_values
from transfiner_refine.formats.coco_source import CocoSource, sound_images
from transfiner_refine.formats.records import OpenOptions
from transfiner_refine.images import opened, read_image, upright_size
from transfiner_refine.masks import Mask

__all__ = ["TrainingInstance", "TrainingSet", "held_out", "load_training_set", "open_dataset"]

_LEAST_AREA = 200  # pixels; smaller objects teach the outline of the polygon tool
_MATCH_IOU = 0.4  # a coarse mask worse than this is another object, or hopeless
_KEPT_BYTES = 1 << 29  # of decoded images in a process
_kept: OrderedDict[Path, NDArray[np.uint8]] = OrderedDict()  # the one used last at the end


@dataclass(frozen=True)
class TrainingInstance:
    """One true mask, its image and, where a detector's output is at hand, the matched coarse masks."""

    image: int  # index into the set's ``images``
    truth: Mask
    coarse: tuple[Mask, ...] = ()  # real coarse masks matched to it


@dataclass
class TrainingSet:
    """A data set."""

    name: str  # the folder's name, for messages
    images: list[Path]
    instances: list[TrainingInstance]
    weight: float = 1.0  # how often the set is drawn, relative to the others
    turned: Collection[int] = ()  # images whose masks are in the frame of their EXIF orientation

    def photo(self, index: int) -> NDArray[np.uint8]:
        """The image, [H, W, 3] uint8 RGB; those used last are kept decoded. Raises InputError if it is damaged."""
        path = self.images[index]
        if (pixels := _kept.pop(path, None)) is None:
            image = None
            with opened(path):  # says what is wrong where OpenCV would not, and refuses giants
                if index not in self.turned:
                    image = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
            pixels = read_image(path)[0] if image is None else np.ascontiguousarray(image[:, :, ::-1])
            room = _KEPT_BYTES - pixels.nbytes - sum(each.nbytes for each in _kept.values())
            while _kept and room < 0:
                room += _kept.popitem(last=False)[1].nbytes
        _kept[path] = pixels
        return pixels

    @property
    def facts(self) -> str:
        """What tells the set from others, wherever it lies."""
        digest = 0
        for each in self.instances:
            digest = crc32(self.images[each.image].name.encode("utf-8", "surrogateescape"), digest)
            for mask in (each.truth, *each.coarse):
                digest = crc32(mask.runs.tobytes(), digest)
        counts = f"{len(self.images)} images, {len(self.instances)} instances, {digest:08x}"
        return f"{self.name} × {self.weight:g} ({counts})"

    def part(self, images: Collection[int]) -> TrainingSet:
        """The set with some of its images alone, and their instances."""
        places = {image: place for place, image in enumerate(sorted(images))}
        instances = [
            replace(each, image=places[each.image]) for each in self.instances if each.image in places
        ]
        turned = {places[image] for image in self.turned if image in places}
        return replace(
            self, images=[self.images[image] for image in places], instances=instances, turned=turned
        )


def held_out(
    sets: Sequence[TrainingSet], share: float, *, most: int
) -> tuple[list[TrainingSet], list[TrainingSet]]:
    """The sets without a share of their images, at most ``most`` of each, and these; always the same ones."""
    rest, parts = [], []
    for data in sets:
        count = min(most, int(share * len(data.images) + 0.5))
        order = np.random.default_rng(crc32(data.name.encode())).permutation(len(data.images)).tolist()
        rest.append(data.part(order[count:]) if count else data)
        if count and (part := data.part(order[:count])).instances and rest[-1].instances:
            parts.append(part)
        else:
            rest[-1] = data
    return rest, parts


def open_dataset(folder: Path, weight: float = 1.0) -> TrainingSet:
    """A data folder: ``images/``, ``annotations.json`` and any number of detectors' results ``coarse*.json``.

    Raises InputError where a part is missing or damaged.
    """
    images, annotations = folder / "images", folder / "annotations.json"
    if not images.is_dir() or not annotations.is_file():
        remedy = "expected images/, annotations.json and optional coarse*.json"
        raise InputError("not a data folder", file=folder, remedy=remedy)
    coarse = [
        file
        for file in sorted(folder.glob("coarse*"))
        if file.name.endswith((".json", ".json.gz", ".jsonl")) and not file.stem.endswith("_match")
    ]
    return replace(load_training_set(images, annotations, coarse, weight=weight), name=folder.name)


def load_training_set(
    images: Path, annotations: Path, coarse: list[Path] | None = None, *, weight: float = 1.0
) -> TrainingSet:
    """Reads a COCO annotation file and any results files of detectors on the same images.

    Each coarse mask is matched to the true mask of the same image and class it overlaps most, at IoU ≥ 0.4.
    Crowds and objects under 200 pixels are left out.

    Raises:
        InputError: a file is missing or of another format, or has records that cannot be used, or names images that are
            not there, no images, or of another size than their masks.
    """
    source, faults = CocoSource(annotations, OpenOptions(images), "annotations"), list[InputError]()
    paths, turned = list[Path](), set[int]()
    places: dict[ImageId | None, int] = {}
    found: list[tuple[int, tuple[int, int | None], Mask]] = []  # index, (image, category) and mask
    for image, instances in sound_images(source, faults):
        if instances:
            assert image.path is not None
            assert image.size is not None
            place = places[image.image_id] = len(paths)
            paths.append(image.path)
            try:
                turned |= {place} if _is_turned(image.path, image.size) else set()
            except InputError as error:
                faults.append(error)
            usable = [each for each in instances if not each.is_crowd and each.mask.area >= _LEAST_AREA]
            found += [(each.index, (place, each.category_id), each.mask) for each in usable]
    refuse(faults)
    truths: dict[tuple[int, int | None], list[Mask]] = defaultdict(list)
    for _, key, mask in sorted(found, key=itemgetter(0)):
        truths[key].append(mask)
    matched: dict[int, list[Mask]] = defaultdict(list)  # by id() of the truth
    for results in coarse or []:
        detected = CocoSource(results, listing=source.file)
        for image, instances in sound_images(detected, faults, only_listed=True):
            for each in instances:
                candidates = truths.get((places.get(image.image_id, -1), each.category_id), [])
                if candidates and each.mask.area:
                    rles = [mask_values(candidate) for candidate in candidates]
                    overlap = mask_api.iou([mask_values(each.mask)], rles, [0] * len(rles))[0]
                    if overlap.max() >= _MATCH_IOU:
                        matched[id(candidates[int(overlap.argmax())])].append(each.mask)
        refuse(faults)
    training = [
        TrainingInstance(place, mask, tuple(matched.get(id(mask), ())))
        for (place, _), masks in truths.items()
        for mask in masks
    ]
    if not training:
        raise InputError("no usable annotation (all are crowds, empty or tiny)", file=annotations)
    return TrainingSet(images.parent.name or str(images), paths, training, weight, turned)


def _is_turned(path: Path, size: tuple[int, int]) -> bool:
    """Whether an image has the size of its masks only when its EXIF orientation is applied; reads its header alone.

    Raises InputError where it has another size, is missing, damaged or no image.
    """
    with opened(path) as image:
        stored = image.height, image.width
    if stored == size:
        return False
    if upright_size(path) == size:
        return True
    reason = f"the image is {stored[0]}×{stored[1]} (height × width), its masks are {size[0]}×{size[1]}"
    raise InputError(reason, file=path, remedy="give the images the masks were made on")
