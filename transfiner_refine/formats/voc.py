"""Pascal VOC: a palette PNG for each image, with an index for each object and 255 for "void".

    SegmentationObject/2007_000032.png     the maps; give this folder, or the one above it (all of it is then copied)
    SegmentationClass/2007_000032.png      the class of each pixel, if there is such a folder
    JPEGImages/2007_000032.jpg             the photos

Void surrounds each object and is not an instance. Refined masks may claim its pixels (``paint_over_void``), what
they leave of it stays void. Where both folders are read (the one above them is given), the pixels of the class
maps follow their objects.

Written from other formats: ``SegmentationObject`` with VOC's colours, and ``SegmentationClass`` where all instances
have classes 1 ... 254. Ids are kept if they are 1 ... 254. Crowds become void, as VOC's own difficult regions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.errors import InputError
from transfiner_refine.formats.class_names import read_class_names
from transfiner_refine.formats.folders import first_files
from transfiner_refine.formats.id_map import Painted
from transfiner_refine.formats.id_map_folder import (
    VOID,
    IdMapFolderSource,
    MapInstance,
    ids_but_void,
    paint_over_void,
)
from transfiner_refine.formats.id_map_writing import lay_with_void
from transfiner_refine.formats.palette import VOC_PALETTE, has_voc_palette, write_indexed
from transfiner_refine.formats.png_pixels import read_values, write_like
from transfiner_refine.formats.records import Format, OpenOptions, Source, Written
from transfiner_refine.formats.writing import Conversion
from transfiner_refine.images import MAX_IMAGE_PIXELS
from transfiner_refine.masks import Mask
from transfiner_refine.output import atomic_folder

__all__ = ["VOC", "VocSource"]

_OBJECTS, _CLASSES = "SegmentationObject", "SegmentationClass"


class VocSource(IdMapFolderSource):
    """The object maps of a folder, with the class maps beside them."""

    def __init__(
        self,
        folder: Path,
        images: Path | None,
        class_names: Path | None = None,
        max_pixels: int = MAX_IMAGE_PIXELS,
    ) -> None:
        """Reads every map once.

        Args:
            folder: ``SegmentationObject``, or the folder that has it.
            images: the folder of the photos, None to do without them.
            class_names: a text file with the names of the classes, first line = class 0 = background.
            max_pixels: the largest map that is decoded.

        Raises:
            InputError: no such folder, no map in it, or none that can be used.
        """
        both = (folder / _OBJECTS).is_dir()
        self._objects = folder / _OBJECTS if both else folder
        classes = folder / _CLASSES if both else folder.parent / _CLASSES
        self._classes = classes if classes.is_dir() and classes.resolve() != self._objects.resolve() else None
        self._names = {} if class_names is None else read_class_names(class_names)
        super().__init__(folder, images, self._objects if both else None, max_pixels)

    @property
    def categories(self) -> Mapping[int, str]:
        return self._names

    def instances_in(self, name: PurePosixPath, values: NDArray[Any]) -> Sequence[MapInstance]:
        ids = ids_but_void(values)
        path = self._class_map(name)
        if path is None:
            return [MapInstance(value) for value in ids]
        classes = read_values(path, self.max_pixels)
        if classes.shape != values.shape:
            raise InputError(
                f"is {classes.shape[0]}×{classes.shape[1]}, the map of its objects is "
                f"{values.shape[0]}×{values.shape[1]} (height × width)",
                file=path,
                remedy="give maps that belong together",
            )
        return [MapInstance(value, _class_of(classes[values == value])) for value in ids]

    def repaint(self, values: NDArray[Any], refined: Sequence[tuple[int, Mask]]) -> Painted:
        return paint_over_void(values, refined)

    def map_written(self, position: int, before: NDArray[Any], after: NDArray[Any], draft: Path) -> None:
        name = self.entries[position].name
        path = self._class_map(name)
        if path is None or self.folder not in path.parents:
            return  # a class map beside the folder that is written is not part of it
        of_value = np.arange(256, dtype=np.uint8)  # background and void are so in both maps
        for item in self.instances_of_map(position):
            of_value[item.value] = 0 if item.category_id is None else item.category_id
        target = draft / path.relative_to(self.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_like(
            path, np.where(after == before, read_values(path, self.max_pixels), of_value[after]), target
        )

    def usual_image_name(self, position: int) -> str | None:
        return f"{self.entries[position].stem}.jpg"

    def _class_map(self, name: PurePosixPath) -> Path | None:
        if self._classes is None:
            return None
        path = self._classes / (self.folder / name).relative_to(self._objects)
        return path if path.is_file() else None


def recognise(path: Path) -> bool:
    """A folder that has or is ``SegmentationObject``, or one of PNGs in VOC's colours."""
    if first_files(path / _OBJECTS, ".png"):
        return True
    found = first_files(path, ".png")
    if path.name == _OBJECTS:
        return bool(found)
    return bool(found) and all(file.parent == path and has_voc_palette(file) for file in found)


def open_voc(path: Path, options: OpenOptions) -> VocSource:
    """Reads object maps, and class maps if there are any.

    Raises:
        InputError: no such folder, no map in it, or none that can be used.
    """
    return VocSource(path, options.images, options.class_names, options.max_image_pixels)


def write(output: Path, source: Source, results: Mapping[int, Mask]) -> Written:
    """Writes a map of objects, and one of classes, for each image; overlaps go to the higher score.

    Raises:
        OutputError: the disk refused.
    """
    conversion = Conversion(source, results)
    with atomic_folder(output) as draft:
        for stem, size, image in conversion:
            laid = lay_with_void(conversion, image, size)
            write_indexed(draft / _OBJECTS / f"{stem}.png", laid.values, VOC_PALETTE)
            of_value = np.zeros(256, np.uint8)
            of_value[VOID] = VOID
            for value, item in laid.items:
                if item.category_id is not None and 0 < item.category_id < VOID:
                    of_value[value] = item.category_id
            if laid.items and all(of_value[value] for value, _ in laid.items):
                write_indexed(draft / _CLASSES / f"{stem}.png", of_value[laid.values], VOC_PALETTE)
    return conversion.written()


def _class_of(classes: NDArray[Any]) -> int | None:
    """The most frequent class among an object's pixels, background and void left out."""
    known = classes[(classes != 0) & (classes != VOID)]
    return int(np.bincount(known).argmax()) if len(known) else None


VOC = Format("voc", "Pascal VOC palette PNGs (SegmentationObject)", True, recognise, open_voc, write)
