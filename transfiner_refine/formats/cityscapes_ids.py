"""Cityscapes' ``*_instanceIds.png``: 16-bit maps, label id × 1000 + n for instances, bare label ids elsewhere.

    gtFine/val/frankfurt/frankfurt_000000_000294_gtFine_instanceIds.png
    leftImg8bit/val/frankfurt/frankfurt_000000_000294_leftImg8bit.png

Values below 1000 are no instances. A refined mask may claim stuff (road, sky ...) and unlabeled pixels. It never
claims groups (bare 24 ... 33: a crowd of people, a row of bicycles), the ego vehicle, or what lies outside of the
photo proper.

Pixels that an instance gives up must become *something*, and the map does not say what lies behind an object.
They get the label of the nearest pixel that is neither an instance nor a group nor outside: outlines move by a
few pixels, and there the neighbour is what the object stood out against. Label 0 (unlabeled) would ring every
refined object with pixels that evaluation ignores. It is used only where a map has nothing but instances.

Other files of the folder (``labelIds``, ``color``, ``polygons``) are copied and know nothing of the new outlines.

Written from other formats: one map an image, 0 where nothing is, crowds and stuff as bare labels below the instances.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.formats.cityscapes_labels import (
    LABELS,
    THINGS,
    base_of,
    cityscapes_photos,
    label_id,
    photo_of,
)
from transfiner_refine.formats.folders import ImageTree, first_files
from transfiner_refine.formats.id_map import Painted, ids_in, lay, paint
from transfiner_refine.formats.id_map_folder import IdMapFolderSource, MapInstance
from transfiner_refine.formats.palette import write_grey
from transfiner_refine.formats.records import Format, ImageRecord, Instance, OpenOptions, Source, Written
from transfiner_refine.formats.writing import Conversion, by_importance
from transfiner_refine.masks import Mask
from transfiner_refine.output import atomic_folder

__all__ = ["CITYSCAPES_IDS", "CityscapesIdsSource", "repaint"]

_STEP = 1000  # of label ids in the values of instances
_ENDING = "_instanceIds.png"
_OUTSIDE = (1, 2, 3)  # ego vehicle, rectification border, out of roi: of the camera, not of the scene


class CityscapesIdsSource(IdMapFolderSource):
    """The instance maps of a folder."""

    @property
    def categories(self) -> Mapping[int, str]:
        return LABELS

    def is_map(self, name: PurePosixPath) -> bool:
        return name.name.endswith(_ENDING)

    def stem_of_map(self, name: PurePosixPath) -> PurePosixPath:
        return base_of(name.with_suffix(""))

    def photo_tree(self, images: Path, maps: list[Path]) -> ImageTree:
        return cityscapes_photos(images, maps)

    def instances_in(self, name: PurePosixPath, values: NDArray[Any]) -> Sequence[MapInstance]:  # noqa: ARG002
        return [MapInstance(value, value // _STEP) for value in ids_in(values) if value >= _STEP]

    def repaint(self, values: NDArray[Any], refined: Sequence[tuple[int, Mask]]) -> Painted:
        return repaint(values, refined)

    def usual_image_name(self, position: int) -> str | None:
        return photo_of(self.entries[position].stem)


def repaint(values: NDArray[Any], refined: Sequence[tuple[int, Mask]]) -> Painted:
    """A map with refined masks, by the rules at the top of this module.

    Args:
        values: [H, W] values of an instance map.
        refined: (value, mask), the most important first.
    """
    fixed = np.isin(values, [*THINGS, *_OUTSIDE])
    claimable = (values < _STEP) & ~fixed
    painted = paint(np.where(claimable, 0, values), refined)
    free = painted.values == 0
    behind = _nearest(values, claimable) if claimable.any() else np.zeros_like(values)
    return Painted(np.where(free, behind, painted.values), painted.overlap_pixels, painted.covered)


def recognise(path: Path) -> bool:
    """A folder with ``*_instanceIds.png``."""
    return any(file.name.endswith(_ENDING) for file in first_files(path, _ENDING.lower()))


def open_cityscapes_ids(path: Path, options: OpenOptions) -> CityscapesIdsSource:
    """Reads the instance maps below a folder.

    Raises:
        InputError: no such folder, no map in it, or none that can be used.
    """
    return CityscapesIdsSource(path, options.images, max_pixels=options.max_image_pixels)


def write(output: Path, source: Source, results: Mapping[int, Mask]) -> Written:
    """Writes one map an image; overlaps go to the higher score.

    Raises:
        OutputError: the disk refused.
    """
    conversion = Conversion(source, results, base_of)
    with atomic_folder(output) as draft:
        for base, size, image in conversion:
            values = _new_map(conversion, image, size, source.categories)
            write_grey(draft / f"{base}_gtFine{_ENDING}", values)
    return conversion.written()


def _new_map(
    conversion: Conversion, image: ImageRecord, size: tuple[int, int], categories: Mapping[int, str]
) -> NDArray[np.uint16]:
    background = np.zeros(size, np.uint16)
    labelled: list[tuple[int, Instance]] = []
    for item in image.instances:
        label = label_id(item.category_id, categories)
        if label is None:
            conversion.leave_out(
                image,
                item,
                f"its category {item.category_id} is none of Cityscapes' classes",
                "write another format",
            )
        elif item.is_crowd or label not in THINGS:
            crowd = item.mask.decode().hard()
            crowd.of(background)[crowd.values] = label
        else:
            labelled.append((label, item))
    values = _values(conversion, image, labelled)
    order = [item for item in by_importance([item for _, item in labelled]) if item.index in values]
    laid = lay(background, [(values[item.index], item.mask.decode().hard()) for item in order])
    conversion.overlap(laid.overlap_pixels, [order[position] for position in laid.covered])
    return laid.values


def _values(
    conversion: Conversion, image: ImageRecord, labelled: Sequence[tuple[int, Instance]]
) -> dict[int, int]:
    """The value of each instance by its index: its own if it has one that fits, else the next free."""
    values: dict[int, int] = {}
    own = [item.instance_id for _, item in labelled]
    kept = {value for value in own if value is not None and own.count(value) == 1}
    for label, item in labelled:
        value = item.instance_id
        if value is not None and value in kept and value // _STEP == label:
            values[item.index] = value
    taken = set(values.values())
    free = {label: iter(range(label * _STEP, (label + 1) * _STEP)) for label in THINGS}
    for label, item in labelled:
        if item.index in values:
            continue
        found = next((value for value in free[label] if value not in taken), None)
        if found is None:
            conversion.leave_out(
                image, item, f"is one of more than {_STEP} instances of its class", "write another format"
            )
        else:
            values[item.index] = found
    return values


def _nearest(values: NDArray[Any], among: NDArray[np.bool_]) -> NDArray[Any]:
    """[H, W]: for every pixel the value of the nearest one that is ``among`` them."""
    import cv2  # here, because listing the formats must not wait for it

    distance_to = np.where(among, 0, 1).astype(np.uint8)
    _, nearest = cv2.distanceTransformWithLabels(
        distance_to, cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    of_label = np.zeros(int(nearest.max()) + 1, values.dtype)
    of_label[nearest[among]] = values[among]
    return of_label[nearest]


CITYSCAPES_IDS = Format(
    "cityscapes-ids",
    "Cityscapes instance maps (*_instanceIds.png)",
    True,
    recognise,
    open_cityscapes_ids,
    write,
)
