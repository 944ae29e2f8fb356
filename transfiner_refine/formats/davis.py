"""DAVIS: a folder for each video, a palette PNG for each frame, an index for each object in all its frames.

    Annotations/480p/bear/00000.png        the maps; give this folder or one above it
    JPEGImages/480p/bear/00000.jpg         the photos

Index 0 is background. Where 255 occurs (as in YouTube-VOS and in copies of VOC) it is void, by the rule of
``paint_over_void``. The palette's bytes stay as they are.

Written from other formats, an image ``bear/00000.jpg`` becomes ``bear/00000.png`` with DAVIS' colours. Ids are
kept if they are 1 ... 254. Crowds become void, since they are no objects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from numpy.typing import NDArray

from transfiner_refine.formats.folders import first_files
from transfiner_refine.formats.id_map import Painted
from transfiner_refine.formats.id_map_folder import (
    IdMapFolderSource,
    MapInstance,
    ids_but_void,
    paint_over_void,
)
from transfiner_refine.formats.id_map_writing import lay_with_void
from transfiner_refine.formats.palette import DAVIS_PALETTE, is_palette_png, write_indexed
from transfiner_refine.formats.records import Format, OpenOptions, Source, Written
from transfiner_refine.formats.writing import Conversion
from transfiner_refine.masks import Mask
from transfiner_refine.output import atomic_folder

__all__ = ["DAVIS", "DavisSource"]

_FRAME_DIGITS = 4  # a name of at least so many digits, and nothing else, is a frame's


class DavisSource(IdMapFolderSource):
    """The frames of one or several videos."""

    def instances_in(self, name: PurePosixPath, values: NDArray[Any]) -> Sequence[MapInstance]:  # noqa: ARG002
        return [MapInstance(value) for value in ids_but_void(values)]

    def repaint(self, values: NDArray[Any], refined: Sequence[tuple[int, Mask]]) -> Painted:
        return paint_over_void(values, refined)

    def usual_image_name(self, position: int) -> str | None:
        return f"{self.entries[position].stem}.jpg"


def recognise(path: Path) -> bool:
    """Folders of palette PNGs that are called as frames are: ``00000.png`` inside of a folder."""
    found = first_files(path, ".png")
    return bool(found) and all(
        file.parent != path and _is_frame(file.stem) and is_palette_png(file) for file in found
    )


def open_davis(path: Path, options: OpenOptions) -> DavisSource:
    """Reads the maps of all videos below a folder.

    Raises:
        InputError: no such folder, no map in it, or none that can be used.
    """
    return DavisSource(path, options.images, max_pixels=options.max_image_pixels)


def write(output: Path, source: Source, results: Mapping[int, Mask]) -> Written:
    """Writes one map an image; overlaps go to the higher score.

    Raises:
        OutputError: the disk refused.
    """
    conversion = Conversion(source, results)
    with atomic_folder(output) as draft:
        for stem, size, image in conversion:
            laid = lay_with_void(conversion, image, size)
            write_indexed(draft / f"{stem}.png", laid.values, DAVIS_PALETTE)
    return conversion.written()


def _is_frame(stem: str) -> bool:
    return len(stem) >= _FRAME_DIGITS and stem.isascii() and stem.isdigit()


DAVIS = Format("davis", "DAVIS palette PNGs (a folder for each video)", True, recognise, open_davis, write)
