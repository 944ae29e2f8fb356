"""Video folders as SAM 2 writes them: a folder for each object of a video, with a mask of each frame.

    masks/bear/001/00000.png               images/bear/00000.jpg

The folder of one video may be given alone. A mask is 0 and one other value, with a palette or without. Other files are
copied. Written from other formats, objects have the numbers of the source where it has such, and else are counted in
each frame.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path, PurePosixPath

import numpy as np

from transfiner_refine.errors import InputError
from transfiner_refine.formats.label_map_folders import MapFile, MaskFiles
from transfiner_refine.formats.label_map_formats import LABEL_MAPS
from transfiner_refine.formats.label_maps import new_ids
from transfiner_refine.formats.png import DAVIS_PALETTE, read_pixels, write_png
from transfiner_refine.formats.records import Format, OpenOptions, Source, Written
from transfiner_refine.formats.writing import Conversion
from transfiner_refine.image_folders import ImageTree
from transfiner_refine.images import SUFFIXES
from transfiner_refine.masks import Mask
from transfiner_refine.output import atomic_folder

_ROW = replace(LABEL_MAPS, image_name="{}.jpg")
_LOOKED_AT = 4  # masks
_FRAME, _OBJECT, _PADDED = re.compile("[0-9]{5,}"), re.compile("[0-9]{1,4}"), re.compile("[0-9]{3}")
_IDS = range(1, 1 << 24)


class VideoFolder(MaskFiles):
    """The masks of a folder of videos."""

    def __init__(self, folder: Path, options: OpenOptions) -> None:
        """Looks at the names, and decodes no mask yet; raises InputError where there is none, or no image for any."""
        super().__init__(_ROW, folder, options)
        frames: dict[PurePosixPath, list[PurePosixPath]] = {}
        for name in self.files:
            if name.suffix.lower() in SUFFIXES and name.parent.name.isdecimal():
                frames.setdefault(name.parent.parent / name.stem, []).append(name)
        if not frames:
            remedy = "give a folder of VIDEO/OBJECT/FRAME.png"
            raise InputError("holds no masks in folders of objects", file=folder, remedy=remedy)
        found = self.look_at_all(
            dict.fromkeys((each for names in frames.values() for each in names), "binary")
        )
        self.groups = [[_of_object(found[name]) for name in names] for names in frames.values()]
        self.say_what_is_replaced()
        self.entries = tuple(
            self.entry(group[0].name, stem, group) for stem, group in zip(frames, self.groups, strict=True)
        )
        self.find_images(None if options.images is None else ImageTree(options.images))


def _of_object(file: MapFile) -> MapFile:
    instance = file.instance
    return (
        file
        if instance is None
        else replace(file, instance=replace(instance, instance_id=int(file.name.parent.name)))
    )


def _recognise(path: Path) -> bool:
    """Folders in folders, or those of one video, with PNGs of one value that are called as frames of objects are."""
    try:
        for depth, called in (("*/*/*.png", _OBJECT), ("*/*.png", _PADDED)):
            if found := list(islice(path.glob(depth), _LOOKED_AT)):
                names = all(
                    _FRAME.fullmatch(each.stem) and called.fullmatch(each.parent.name) for each in found
                )
                return names and all(read_pixels(each).is_binary for each in found)
        return False
    except (InputError, OSError):
        return False


def _write(output: Path, source: Source, results: Mapping[int, Mask]) -> Written:
    """Writes a PNG an instance, 0 and 1 in the colours of DAVIS."""
    conversion = Conversion(source, results)
    with atomic_folder(output) as draft:
        for stem, _, image in conversion:
            ids = new_ids(image.instances, _IDS)
            for instance in image.instances:
                mask = instance.mask.decode().hard().paste().astype(np.uint8)
                write_png(
                    draft / stem.parent / f"{ids[instance.index]:03d}" / f"{stem.name}.png",
                    mask,
                    DAVIS_PALETTE,
                )
    return conversion.written()


SAM2_VIDEO = Format("sam2-video", True, _recognise, VideoFolder, _write)
