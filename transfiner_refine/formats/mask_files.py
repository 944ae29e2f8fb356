"""Folders of mask PNGs. The same files, names and pixel types come out as went in.

IMAGE_STEM is the name of an image without its suffix. Layouts may be mixed in one folder:

* ``IMAGE_STEM.png``: one mask, or a map of ids;
* ``IMAGE_STEM_*.png``: one mask each; where several stems fit (``a`` and ``a_1`` for ``a_1_2.png``), the longest;
* ``IMAGE_STEM/*.png``: one mask each.

Images in subfolders have their masks in the same subfolders. Without images, folders and maps are called as their
images are; ``a_1.png`` alone could be the mask of ``a_1`` or one of several of ``a``, and is refused.

One mask is binary (0 and one other value) or soft (0 ... 255 as confidence). In a map each value is an instance and 0
is background; 255 in a palette is "void" by the convention of Pascal VOC, and left as it is. ``kind_of`` tells them
apart by their pixels, whatever the name: a map that is the only file of its image is read as one, among several it
is refused, and nothing is taken for a mask that holds several ids. The option ``png_kind`` overrules that.

Written from other formats, a mask is ``IMAGE_STEM/0001.png`` and on, 0 and 255 (soft masks that nobody refined stay
soft), and may overlap others. There is a folder for each image, for ``a_1_0001.png`` could be one of ``a`` or of
``a_1``. Classes, scores, and what is a crowd have no place.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.errors import InputError
from transfiner_refine.formats.folders import FolderEntry, FolderSource, ImageTree
from transfiner_refine.formats.label_maps import LabelMap, LabelMask, ids_in, kind_of, repaint
from transfiner_refine.formats.png import MaskPixels, png_size, read_pixels, read_values, write_png
from transfiner_refine.formats.records import (
    Format,
    Instance,
    OpenOptions,
    RecordFault,
    Source,
    Written,
)
from transfiner_refine.formats.writing import Conversion
from transfiner_refine.images import MAX_IMAGE_PIXELS
from transfiner_refine.masks import Mask, MaskWindow
from transfiner_refine.output import atomic_folder

__all__ = ["PNG_FOLDER", "MaskFolder", "PngFileMask", "open_label_maps"]

_VOID = _WHITE = 255
_READERS = 4  # threads that look into files; zlib lets go of the interpreter lock


@dataclass(frozen=True)
class PngFileMask:
    """A whole PNG file as the mask of one instance, read where its pixels are needed.

    Attributes:
        path: the file.
        max_pixels: the largest height × width that is decoded.
        kind: "binary" takes several values for a confidence; "auto" does so where they cannot be ids; with
            "any" every pixel but 0 belongs to the mask, as Cityscapes has it.
    """

    path: Path
    max_pixels: int = MAX_IMAGE_PIXELS
    kind: Literal["auto", "binary", "any"] = "auto"

    @property
    def size(self) -> tuple[int, int]:
        """(height, width), pixels, from the file's header."""
        return png_size(self.path)

    def decode(self) -> MaskWindow:
        """The mask inside its bounding box: bool, or float32 in [0, 1] where the file is soft.

        Raises:
            InputError: the file is damaged, or holds several ids.
        """
        pixels = read_pixels(self.path, self.max_pixels)
        values = pixels.values
        window = MaskWindow(values != 0, 0, 0, (values.shape[0], values.shape[1])).tight()
        if window.values.size == 0 or self.kind == "any" or _is_binary(values):
            return window
        if pixels.palette or (self.kind == "auto" and kind_of(pixels) == "id-map"):
            raise InputError(
                "holds several ids, but its name says one instance",
                file=self.path,
                remedy="save one mask a file, or give --png-kind id-map",
            )
        return replace(window, values=window.of(values).astype(np.float32) / pixels.white)


@dataclass(frozen=True)
class _MaskFile:
    """One PNG of the folder.

    Attributes:
        name: its path inside the folder.
        ids: the instance ids where it is a map, None where it is one mask.
        has_palette: it is a map with a palette.
        size: (height, width) where it is a map.
        error: why it cannot be used.
    """

    name: PurePosixPath
    ids: tuple[int, ...] | None = None
    has_palette: bool = False
    size: tuple[int, int] = (0, 0)
    error: InputError | None = None

    @property
    def count(self) -> int:
        """Number of instances in it."""
        return 1 if self.ids is None else len(self.ids)


class MaskFolder(FolderSource):
    """A folder of mask PNGs. Only they are written again, for images may lie between them."""

    def __init__(self, folder: Path, options: OpenOptions) -> None:
        """Finds the masks and their images, and reads the files that may be maps, to know their ids.

        Args:
            folder: the mask folder.
            options: ``images`` may be the same folder.

        Raises:
            InputError: no such folder, no PNG in it, or none of them belongs to an image.
        """
        super().__init__(folder, options.images)
        self._max_pixels, self._kind = options.max_image_pixels, options.png_kind
        self.files = [name for name in self.files if name.suffix.lower() == ".png"]
        if not self.files:
            raise InputError(
                "holds no PNG masks", file=folder, remedy="give COCO JSON or a folder of PNG masks"
            )
        groups: dict[PurePosixPath, list[tuple[PurePosixPath, bool]]] = {}
        self._strays: list[InputError] = []
        owner_of = self._owner_by_name if options.images is None else self._owners_by_image(options.images)
        for name in self.files:
            try:
                image, is_alone = owner_of(name)
                groups.setdefault(image, []).append((name, is_alone))
            except InputError as error:
                if name not in self.no_files:
                    self._strays.append(error)
        if not groups:
            if options.images is None:
                raise next(iter(self._strays), InputError("holds nothing but broken links", file=folder))
            raise InputError(
                f"none of the {len(self.files)} masks belongs to an image (first: {self.files[0]})",
                file=folder,
                remedy=f"name them after the images in {options.images}: STEM.png, STEM_*.png or STEM/*.png",
            )
        with ThreadPoolExecutor(_READERS) as pool:
            self._groups = [
                list(pool.map(self._look, [(name, is_alone or len(files) == 1) for name, is_alone in files]))
                for files in groups.values()
            ]
        self.entries = tuple(
            FolderEntry(
                files[0].name,
                image if options.images is None else image.with_suffix(""),
                sum(file.count for file in files),
                None if options.images is None else image,
            )
            for image, files in zip(groups, self._groups, strict=True)
        )

    @property
    def num_instances(self) -> int:
        return super().num_instances + len(self._strays)

    def __iter__(self) -> Iterator[Any]:
        yield from (RecordFault(error) for error in self._strays)
        yield from super().__iter__()

    def instances_of(
        self,
        position: int,
        size: Callable[[], tuple[int, int]],  # noqa: ARG002  masks have sizes of their own
    ) -> Iterator[Instance | RecordFault]:
        index = 0
        for file in self._groups[position]:
            path, label = self.folder / file.name, file.name.as_posix()
            if file.error is not None:
                yield RecordFault(file.error)
            elif file.ids is None:
                kind: Literal["auto", "binary"] = "binary" if self._kind == "binary" else "auto"
                yield Instance(index, PngFileMask(path, self._max_pixels, kind), label)
            else:
                label_map = LabelMap(partial(read_values, path, self._max_pixels))
                for number, value in enumerate(file.ids, index):
                    yield Instance(
                        number,
                        LabelMask(label_map, value, file.size),
                        f"{label} id {value}",
                        is_crowd=file.has_palette and value == _VOID,
                        instance_id=value,
                    )
            index += file.count

    def files_of(self, position: int) -> Collection[PurePosixPath]:
        return [file.name for file in self._groups[position]]

    def stated_size(self, position: int) -> tuple[int, int] | None:
        return next((file.size for file in self._groups[position] if file.ids is not None), None)

    def write_image(self, position: int, masks: Mapping[int, Mask], draft: Path) -> Written:
        overlap_pixels, covered, first = 0, list[int](), 0
        for file in self._groups[position]:
            own = {number: masks[first + number] for number in range(file.count) if first + number in masks}
            if own:
                self.read(file.name)  # which must be as it was
                pixels = read_pixels(self.folder / file.name, self._max_pixels)
                values = pixels.values
                if file.ids is None:
                    pixels.write(np.where(own[0].decode().paste(), _white(pixels), 0), draft / file.name)
                else:
                    refined = [(file.ids[number], mask) for number, mask in own.items()]
                    laid = repaint(values, refined, values == 0)
                    pixels.write(laid.values, draft / file.name)
                    overlap_pixels += laid.overlap_pixels
                    covered += [first + file.ids.index(value) for value in laid.covered]
            first += file.count
        return Written(overlap_pixels, tuple(covered))

    def _look(self, file: tuple[PurePosixPath, bool]) -> _MaskFile:
        """What there is in a file; ``file`` is (name, whether it may be a map)."""
        name, may_be_map = file
        try:
            self.read(name)
            if self._kind == "binary" or (self._kind == "auto" and not may_be_map):
                return _MaskFile(name)
            pixels = read_pixels(self.folder / name, self._max_pixels)
        except InputError as error:
            return _MaskFile(name, error=error)
        if self._kind == "auto" and kind_of(pixels) == "binary":
            return _MaskFile(name)
        height, width = pixels.values.shape
        return _MaskFile(name, ids_in(pixels.values), pixels.palette, (height, width))

    def _owners_by_image(self, images: Path) -> Callable[[PurePosixPath], tuple[PurePosixPath, bool]]:
        """Finds the image of a mask, relative to ``images``, and whether its name says that it is the only one."""
        # where masks and images share a folder, its PNGs are the masks
        shared = (
            [self.folder / name for name in self.files] if images.resolve() == self.folder.resolve() else []
        )
        tree = ImageTree(images, without=shared)

        def owner_of(name: PurePosixPath) -> tuple[PurePosixPath, bool]:
            if name.parent.name and (image := tree.find(name.parent)) is not None:
                return image, False
            stem = name.stem
            while stem:
                if (image := tree.find(name.with_name(stem))) is not None:
                    return image, stem == name.stem
                stem = stem.rpartition("_")[0]
            record = None if name.parent == PurePosixPath() else name.as_posix()
            raise InputError(f"no image in {images} has that name", file=self.folder / name, record=record)

        return owner_of

    def _owner_by_name(self, name: PurePosixPath) -> tuple[PurePosixPath, bool]:
        """What the image of a mask is called, where there are no images, and whether the mask is the only one."""
        if self._kind != "id-map":
            if name.parent.name:
                return name.parent, False
            before, _, _ = name.stem.rpartition("_")
            path = self.folder / name
            if "_" in name.stem and (
                self._kind == "binary" or kind_of(read_pixels(path, self._max_pixels)) == "binary"
            ):
                raise InputError(
                    f"could be the mask of {name.stem} or one of several of {before}",
                    file=path,
                    remedy="give the folder of the images with --images",
                )
        return name.with_suffix(""), True


def open_masks(path: Path, options: OpenOptions) -> MaskFolder:
    """Reads a folder of masks and maps.

    Raises:
        InputError: no such folder, no PNG in it, or none of them belongs to an image.
    """
    if options.image_info is not None:
        raise InputError("PNG masks find their images by name", file=path, remedy="leave --image-info out")
    return MaskFolder(path, options)


def open_label_maps(path: Path, options: OpenOptions) -> MaskFolder:
    """Reads a folder whose PNGs are all maps.

    Raises:
        InputError: as for ``open_masks``.
    """
    return open_masks(path, replace(options, png_kind="id-map"))


def write_masks(output: Path, source: Source, results: Mapping[int, Mask]) -> Written:
    """Writes one PNG an instance.

    Raises:
        OutputError: the disk refused.
    """
    conversion = Conversion(source, results)
    with atomic_folder(output) as draft:
        for stem, _, image in conversion:
            for number, instance in enumerate(image.instances, 1):
                shades = np.rint(instance.mask.decode().paste() * float(_WHITE)).astype(np.uint8)
                write_png(draft / stem / f"{number:04d}.png", shades)
    return conversion.written()


def _white(pixels: MaskPixels) -> int:
    """The value of foreground in the refined file: that of the coarse one, full white where it was soft."""
    return int(pixels.values.max()) if _is_binary(pixels.values) else pixels.white


def _is_binary(values: NDArray[Any]) -> bool:
    """At most one value besides 0."""
    return bool(((values == 0) | (values == values.max())).all())


# any folder, so this format comes last; one without PNGs is then refused by the reader, which says why
PNG_FOLDER = Format("png", "PNG masks or label maps", True, Path.is_dir, open_masks, write_masks)
