"""Cityscapes' label ids (not train ids), and the names of its files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from transfiner_refine.formats.folders import ImageTree

__all__ = ["LABELS", "THINGS", "base_of", "cityscapes_photos", "label_id", "photo_of"]

# the names by label id; -1 is Cityscapes' license plate
_NAMES = (
    "unlabeled,ego vehicle,rectification border,out of roi,static,dynamic,ground,road,sidewalk,parking,"
    "rail track,building,wall,fence,guard rail,bridge,tunnel,pole,polegroup,traffic light,traffic sign,"
    "vegetation,terrain,sky,person,rider,car,truck,bus,caravan,trailer,train,motorcycle,bicycle"
)
LABELS: Mapping[int, str] = dict(enumerate(_NAMES.split(",")))
THINGS = range(24, 34)  # labels with instances; a pixel that has the bare label belongs to a group of them

_PHOTO_ENDING = "_leftImg8bit"
_IDS_ENDING = re.compile(r"(_gt(Fine|Coarse))?_instanceIds$")


def label_id(category_id: int | None, categories: Mapping[int, str]) -> int | None:
    """The label id of another source's category: that of the same name, or the number itself where that source
    names no categories; None where there is no such label.

    A category number of COCO is some other class in Cityscapes, so where names are known they decide alone.
    """
    if category_id is None:
        return None
    if not categories:
        return category_id if category_id in LABELS else None
    name = categories.get(category_id)
    return next((label for label, known in LABELS.items() if known == name), None)


def base_of(stem: PurePosixPath) -> PurePosixPath:
    """``aachen/aachen_000000_000019`` from the stem of a photo or of an id map."""
    return stem.with_name(_IDS_ENDING.sub("", stem.name.removesuffix(_PHOTO_ENDING)) or stem.name)


def photo_of(base: PurePosixPath) -> str:
    """What the photo is called by the custom of the data set."""
    return f"{base}{_PHOTO_ENDING}.png"


def cityscapes_photos(images: Path, without: list[Path]) -> ImageTree:
    """The photos, to be found with or without ``_leftImg8bit``."""
    return ImageTree(images, without=without, key=lambda stem: stem.removesuffix(_PHOTO_ENDING) or stem)
