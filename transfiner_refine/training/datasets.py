"""COCO-format data sets as a source of training samples."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_api

from transfiner_refine.errors import InputError
from transfiner_refine.formats.segmentation import mask_from_segmentation
from transfiner_refine.images import opened
from transfiner_refine.masks import Mask

__all__ = ["TrainingInstance", "TrainingSet", "load_training_set", "open_dataset"]

_LEAST_AREA = 200  # pixels; smaller objects teach the outline of the polygon tool
_MATCH_IOU = 0.4  # a coarse mask worse than this is another object, or hopeless


@dataclass(frozen=True)
class TrainingInstance:
    """One true mask, its photo and, where a detector's output is at hand, the matched coarse masks.

    Attributes:
        image: index into the set's ``images``.
        truth: the true mask.
        coarse: real coarse masks matched to it; may be empty.
    """

    image: int
    truth: Mask
    coarse: tuple[Mask, ...] = ()


@dataclass
class TrainingSet:
    """A data set with its photos decoded on first use and kept.

    Attributes:
        name: the folder's name, for messages.
        images: image files.
        instances: the training instances.
        weight: how often the set is drawn, relative to the others.
    """

    name: str
    images: list[Path]
    instances: list[TrainingInstance]
    weight: float = 1.0
    _decoded: dict[int, NDArray[np.uint8]] = field(default_factory=dict, repr=False)

    def photo(self, index: int) -> NDArray[np.uint8]:
        """The photo, H×W×3 uint8 RGB.

        Raises:
            InputError: the file cannot be read.
        """
        if index not in self._decoded:
            with opened(self.images[index]):  # says what is wrong where OpenCV would not, and refuses giants
                path = str(self.images[index])
                image = cv2.imread(path, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
            if image is None:
                raise InputError("cannot be read as an image", file=self.images[index])
            self._decoded[index] = np.ascontiguousarray(image[:, :, ::-1])
        return self._decoded[index]


def open_dataset(folder: Path, weight: float = 1.0) -> TrainingSet:
    """A data folder: ``images/``, ``annotations.json`` and any number of detectors' results ``coarse*.json``.

    Raises:
        InputError: a part is missing or damaged.
    """
    images, annotations = folder / "images", folder / "annotations.json"
    if not images.is_dir() or not annotations.is_file():
        raise InputError(
            "not a data folder",
            file=folder,
            remedy="expected images/, annotations.json and optional coarse*.json",
        )
    coarse = [file for file in sorted(folder.glob("coarse*.json")) if not file.stem.endswith("_match")]
    return replace(load_training_set(images, annotations, coarse, weight=weight), name=folder.name)


def load_training_set(
    images: Path, annotations: Path, coarse: list[Path] | None = None, *, weight: float = 1.0
) -> TrainingSet:
    """Reads a COCO annotation file and any results files of detectors on the same photos.

    Each coarse mask is matched to the true mask of the same image and class it overlaps most, at IoU ≥ 0.4.
    Crowds and objects under 200 pixels are left out.

    Raises:
        InputError: a file is missing or is not of that format.
    """
    content = _read_json(annotations)
    try:
        listed = content["images"]
        position = {image["id"]: i for i, image in enumerate(listed)}
        paths = [images / image["file_name"] for image in listed]
        truths: dict[tuple[int, int], list[Mask]] = defaultdict(list)
        for annotation in content["annotations"]:
            if annotation.get("iscrowd"):
                continue
            image = listed[position[annotation["image_id"]]]
            label = f"annotation id {annotation.get('id')}"
            mask = _checked_mask(annotation, (image["height"], image["width"]), annotations, label)
            if mask.area >= _LEAST_AREA:
                truths[annotation["image_id"], annotation["category_id"]].append(mask)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"not a COCO annotation file ({error!r} is missing or of another type)", file=annotations
        ) from error
    matched: dict[int, list[Mask]] = defaultdict(list)  # by id() of the truth
    for file in coarse or []:
        try:
            for index, record in enumerate(_read_json(file)):
                candidates = truths.get((record["image_id"], record["category_id"]), [])
                if not candidates:
                    continue
                mask = _checked_mask(record, candidates[0].size, file, f"record {index}")
                if mask.area == 0:
                    continue
                overlap = mask_api.iou([_rle(mask)], list(map(_rle, candidates)), [0] * len(candidates))[0]
                if overlap.max() >= _MATCH_IOU:
                    matched[id(candidates[int(overlap.argmax())])].append(mask)
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"not a COCO results file ({error!r} is missing or of another type)", file=file
            ) from error
    instances = [
        TrainingInstance(position[image_id], mask, tuple(matched.get(id(mask), ())))
        for (image_id, _), masks in truths.items()
        for mask in masks
    ]
    if not instances:
        raise InputError("no usable annotation (all are crowds, empty or tiny)", file=annotations)
    return TrainingSet(images.parent.name or str(images), paths, instances, weight)


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=file) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"not valid JSON ({error})", file=file) from error


def _rle(mask: Mask) -> dict[str, Any]:
    return {"size": list(mask.size), "counts": mask.counts}


def _checked_mask(record: Any, size: tuple[int, int], file: Path, label: str) -> Mask:
    """A record's mask, checked: pycocotools would crash on a damaged one."""
    try:
        mask = mask_from_segmentation(record["segmentation"], lambda: size)
        if mask.size != size:
            raise InputError(f"the mask is {mask.size}, its image {size} (height, width)")
    except InputError as error:
        raise InputError(error.reason, file=file, record=label, remedy=error.remedy) from error
    return mask
