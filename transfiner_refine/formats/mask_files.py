"""Folders of mask images. The same files, names and pixel types come out as went in.

IMAGE_STEM is the name of an image without its suffix. Layouts may be mixed in one folder:

* ``IMAGE_STEM.png``: one mask, or a map of ids;
* ``IMAGE_STEM_*.png``: one mask each; where several stems fit (``a`` and ``a_1`` for ``a_1_2.png``), the longest;
* ``IMAGE_STEM/*.png``: one mask each.

Images in subfolders have their masks in the same subfolders. Without images, folders and maps are called as their
images are; ``a_1.png`` alone could be the mask of ``a_1`` or one of several of ``a``, and is refused.

Masks may be PNG, TIFF, BMP, or of any kind that images may have. What loses pixels, such as JPEG, is cut at the middle
and written as PNG where it is refined.

One mask is binary (0 and one other value) or soft (0 ... 255 as confidence); ``kind_of`` tells it from a map, and the
option ``png_kind`` overrules that. Of several files of an image none is taken for a map. In a map 0 is background; 255
in a palette is "void", by the convention of Pascal VOC, and left as it is.

Written from other formats, a mask is ``IMAGE_STEM/0001.png`` and on, 0 and 255 (soft masks that nobody refined stay
soft), and may overlap others; ``a_1_0001.png`` could be one of ``a`` or of ``a_1``. Classes, scores, and what is a
crowd have no place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from transfiner_refine.errors import InputError
from transfiner_refine.formats.label_map_folders import MaskFiles, format_of
from transfiner_refine.formats.label_map_formats import LABEL_MAPS
from transfiner_refine.formats.label_maps import kind_of
from transfiner_refine.formats.png import read_pixels, write_png
from transfiner_refine.formats.records import Format, ImageRecord, OpenOptions, RecordFault, Source, Written
from transfiner_refine.formats.writing import Conversion
from transfiner_refine.image_folders import ImageTree, beginnings, files_in
from transfiner_refine.images import SUFFIXES
from transfiner_refine.masks import Mask
from transfiner_refine.output import atomic_folder

_WHITE = 255
_LOSSLESS = {".png", ".tif", ".tiff", ".bmp"}


class MaskFolder(MaskFiles):
    """A folder of mask images. Only they are written again, for images may lie between them."""

    def __init__(self, folder: Path, options: OpenOptions) -> None:
        """Finds the masks and their images, and reads the files that may be maps, to know their ids.

        Raises:
            InputError: no such folder, no picture in it, or none of them belongs to an image.
        """
        super().__init__(LABEL_MAPS, folder, options)
        images, self._tree = options.images, None
        listed = [name for name in self.files if name.suffix.lower() in SUFFIXES]
        if images is None:
            self.files = _without_photos(listed)
        else:
            root, here = images.resolve(), folder.resolve()
            # where masks and images share a folder, its PNGs are the masks
            inside = root == here or here in root.parents
            self.files = [
                name
                for name in listed
                if not inside
                or root not in (here / name, *(here / name).parents)
                or (root == here and _is_png(name))
            ]
            self._tree = ImageTree(images, without=[folder / name for name in self.files if root == here])
        if not self.files:
            remedy = "give COCO JSON or a folder of mask images"
            raise InputError("holds no mask images", file=folder, remedy=remedy)
        groups: dict[PurePosixPath, list[tuple[PurePosixPath, bool]]] = {}
        self._unowned: list[InputError] = []
        for name in self.files:
            try:
                image, is_alone = self._owner(name)
                groups.setdefault(image, []).append((name, is_alone))
            except InputError as error:
                if name not in self.no_files:  # those are named anyway
                    self._unowned.append(error)
        if not groups and images is None and self._unowned:
            raise self._unowned[0]
        if not groups:
            reason = f"none of the {len(self.files)} masks belongs to an image (first: {self.files[0]})"
            remedy = f"name them after the images in {images}: STEM.png, STEM_*.png or STEM/*.png"
            raise InputError(reason, file=folder, remedy=remedy)
        # of several files of an image none is a map, but for the one whose name says that it is the only one
        kinds = {
            name: "binary"
            if options.png_kind == "auto" and len(files) > 1 and not alone
            else options.png_kind
            for files in groups.values()
            for name, alone in files
        }
        found = self.look_at_all(kinds)
        self.groups = [[found[name] for name, _ in files] for files in groups.values()]
        self.say_what_is_replaced()
        self.entries = tuple(
            self.entry(files[0].name, image, files)
            if images is None
            else replace(self.entry(files[0].name, image.with_suffix(""), files), image=image)
            for image, files in zip(groups, self.groups, strict=True)
        )
        self.say_what_has_no_masks(self._tree, groups)

    @property
    def num_instances(self) -> int:
        return super().num_instances + len(self._unowned)

    def __iter__(self) -> Iterator[ImageRecord | RecordFault]:
        yield from (RecordFault(error) for error in self._unowned)
        yield from super().__iter__()

    def _owner(self, name: PurePosixPath) -> tuple[PurePosixPath, bool]:
        """The image of a mask (its stem, where there are no images), and whether the mask is its only one by name."""
        stem, kind, path = name.stem, self.options.png_kind, self.folder / name
        if self._tree is None:
            if kind != "label-map" and name.parent.name:
                return name.parent, False
            if (
                kind != "label-map"
                and "_" in stem
                and (
                    kind == "binary" or kind_of(read_pixels(path, self.options.max_image_pixels)) == "binary"
                )
            ):
                reason = f"could be the mask of {stem} or one of several of {stem.rpartition('_')[0]}"
                remedy = "give the folder of the images with --images"
                raise InputError(reason, file=path, remedy=remedy)
            return name.with_suffix(""), True
        if name.parent.name and (image := self._tree.find(name.parent)) is not None:
            return image, False
        for each in beginnings(stem):
            if (image := self._tree.find(name.with_name(each))) is not None:
                return image, each == stem
        record = None if name.parent == PurePosixPath() else name.as_posix()
        raise InputError(f"no image in {self._tree.root} has that name", file=path, record=record)


def _is_png(name: PurePosixPath) -> bool:
    return name.suffix.lower() == ".png"


def _without_photos(names: list[PurePosixPath]) -> list[PurePosixPath]:
    """Without the images that masks lie among: what is no PNG and has a PNG of its stem, or of one that goes on."""
    pngs = {name.with_suffix("") for name in names if _is_png(name)}
    owners = {stem.with_name(each) for stem in pngs for each in beginnings(stem.name)}
    owners |= {stem.parent for stem in pngs}
    return [name for name in names if _is_png(name) or name.with_suffix("") not in owners]


def _open(path: Path, options: OpenOptions) -> MaskFolder:
    if options.image_info is not None:
        raise InputError("mask images find their images by name", file=path, remedy="leave --image-info out")
    return MaskFolder(path, options)


def _write(output: Path, source: Source, results: Mapping[int, Mask]) -> Written:
    """Writes one PNG an instance."""
    conversion = Conversion(source, results)
    with atomic_folder(output) as draft:
        for stem, _, image in conversion:
            for number, instance in enumerate(image.instances, 1):
                shades = np.rint(instance.mask.decode().paste() * float(_WHITE)).astype(np.uint8)
                write_png(draft / stem / f"{number:04d}.png", shades)
    return conversion.written()


def _recognise(path: Path) -> bool:
    """A folder with pictures that lose nothing, or with nothing but pictures; so this format comes last."""
    with suppress(InputError):
        kinds = {name.suffix.lower() for name in files_in(path, remedy="give the folder of the masks")}
        return bool(kinds & _LOSSLESS) or (bool(kinds) and kinds <= {*SUFFIXES})
    return False


PLAIN_MAPS = replace(
    format_of(LABEL_MAPS), open=lambda path, options: _open(path, replace(options, png_kind="label-map"))
)
PNG_FOLDER = Format("png", True, _recognise, _open, _write)
