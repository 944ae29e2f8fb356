"""COCO data sets as a source of training samples."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_api

from transfiner_refine.errors import InputError
from transfiner_refine.formats.coco import ImageId, refuse
from transfiner_refine.formats.coco_source import CocoSource, mask_values, sound_images
from transfiner_refine.formats.records import OpenOptions
from transfiner_refine.images import opened
from transfiner_refine.masks import Mask

__all__ = ["TrainingInstance", "TrainingSet", "load_training_set", "open_dataset"]

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

    def photo(self, index: int) -> NDArray[np.uint8]:
        """The image, [H, W, 3] uint8 RGB; those used last are kept decoded. Raises InputError if it is damaged."""
        path = self.images[index]
        if (pixels := _kept.pop(path, None)) is None:
            with opened(path):  # says what is wrong where OpenCV would not, and refuses giants
                image = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
            if image is None:
                raise InputError("cannot be read as an image", file=path)
            pixels = np.ascontiguousarray(image[:, :, ::-1])
            room = _KEPT_BYTES - pixels.nbytes - sum(each.nbytes for each in _kept.values())
            while _kept and room < 0:
                room += _kept.popitem(last=False)[1].nbytes
        _kept[path] = pixels
        return pixels


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
        InputError: a file is missing or of another format, or has records or names images that cannot be used.
    """
    source, faults = CocoSource(annotations, OpenOptions(images), "annotations"), list[InputError]()
    paths: list[Path] = []
    places: dict[ImageId | None, int] = {}
    found: list[tuple[int, tuple[int, int | None], Mask]] = []  # index, (image, category) and mask
    for image, instances in sound_images(source, faults):
        if instances:
            assert image.path is not None
            place = places[image.image_id] = len(paths)
            paths.append(image.path)
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
    return TrainingSet(images.parent.name or str(images), paths, training, weight)
