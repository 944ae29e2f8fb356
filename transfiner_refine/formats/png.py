"""Folders of mask PNGs. The same files, names and pixel types come out as went in.

Layouts, which may be mixed in one folder; IMAGE_STEM is a photo's name without its extension:

* ``IMAGE_STEM.png``: one mask, or a map of ids (``png_pixels.kind_of`` tells which; ``png_kind`` overrules
  it);
* ``IMAGE_STEM_*.png``: one mask each; where several stems fit (``a`` and ``a_1`` for ``a_1_2.png``), the
  longest;
* ``IMAGE_STEM/*.png``: one mask each.

Photos in subfolders have their masks in the same subfolders. Without photos, folders and maps are called as their
images are; ``a_1.png`` alone could be the mask of ``a_1`` or one of several of ``a``, and is refused.

One mask is binary (0 and one other value) or soft (0 ... 255 as confidence). In a map each value is an
instance and 0 is background; 255 in a palette is "void" by the convention of Pascal VOC, and left as it is.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.errors import InputError
from transfiner_refine.formats.folders import ImageTree, files_in
from transfiner_refine.formats.id_map import IdMap, IdMask, ids_in, paint
from transfiner_refine.formats.png_owners import Owner, owner_by_name, owner_by_photos
from transfiner_refine.formats.png_pixels import (
    MaskPixels,
    kind_of,
    png_size,
    read_pixels,
    read_values,
    write_like,
)
from transfiner_refine.formats.records import ImageRecord, Instance, PngKind, RecordFault, Written
from transfiner_refine.images import MAX_IMAGE_PIXELS
from transfiner_refine.masks import Mask, MaskWindow
from transfiner_refine.output import atomic_folder, check_output_folder

__all__ = ["PngFileMask", "PngFolderSource"]

_VOID = 255
_READERS = 4  # threads that look into mask files; zlib lets go of the interpreter lock


@dataclass(frozen=True)
class PngFileMask:
    """A whole PNG file as the mask of one instance, read where its pixels are needed.

    Attributes:
        path: the file.
        max_pixels: the largest height × width that is decoded.
        any_value: any pixel but 0 belongs to the mask, as Cityscapes has it; no file is soft.
    """

    path: Path
    max_pixels: int = MAX_IMAGE_PIXELS
    any_value: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(height, width), pixels, from the file's header."""
        return png_size(self.path)

    def decode(self) -> MaskWindow:
        """The mask inside its bounding box: bool, or float32 in [0, 1] where the file is soft.

        Raises:
            InputError: the file is damaged, or has a palette and several values.
        """
        pixels = read_pixels(self.path, self.max_pixels)
        values = pixels.values
        foreground = values != 0
        window = MaskWindow(foreground, 0, 0, (values.shape[0], values.shape[1])).tight()
        (height, width), x, y = window.values.shape, window.x, window.y
        if height == 0 or self.any_value or _is_binary(values):
            return window
        if pixels.palette:
            raise InputError(
                "holds several palette indexes, but its name says one instance",
                file=self.path,
                remedy="save one mask a file, or give --png-kind id-map",
            )
        soft = values[y : y + height, x : x + width].astype(np.float32) / pixels.white
        return MaskWindow(soft, x, y, window.image_size)


@dataclass(frozen=True)
class _MaskFile:
    """One PNG of the folder.

    Attributes:
        path: the file.
        name: its path inside the folder, with "/".
        ids: the instance ids where it is a map, None where it is one mask.
        has_palette: it is a map with a palette.
        size: (height, width) where it is a map.
        error: why it cannot be used.
    """

    path: Path
    name: str
    ids: tuple[int, ...] | None = None
    has_palette: bool = False
    size: tuple[int, int] = (0, 0)
    error: InputError | None = None

    @property
    def count(self) -> int:
        """Number of instances in it."""
        return 1 if self.ids is None else len(self.ids)


class PngFolderSource:
    """A folder of mask PNGs and the photos they belong to."""

    def __init__(
        self,
        folder: Path,
        images: Path | None,
        *,
        png_kind: PngKind | Literal["auto"] = "auto",
        max_pixels: int = MAX_IMAGE_PIXELS,
    ) -> None:
        """Finds the masks and their photos, and reads the files that are or may be maps, to know their ids.

        Args:
            folder: the mask folder.
            images: the folder of the photos; may be the same. None to do without them.
            png_kind: what the files are. "auto": ``IMAGE_STEM.png`` by its pixels, all others one mask each.
            max_pixels: the largest mask image that is decoded.

        Raises:
            InputError: no such folder, no PNG in it, or none of them belongs to a photo.
        """
        self._folder, self._images, self._max_pixels = folder, images, max_pixels
        names = [name for name in files_in(folder, remedy="check --masks") if name.suffix.lower() == ".png"]
        if not names:
            raise InputError(
                "holds no PNG masks", file=folder, remedy="give COCO JSON or a folder of PNG masks"
            )
        by_image: dict[PurePosixPath, list[tuple[PurePosixPath, bool]]] = {}
        self._strays: list[_MaskFile] = []
        for name, owner in _owners(folder, images, names, png_kind, max_pixels):
            if isinstance(owner, Owner):
                by_image.setdefault(owner.image, []).append((name, owner.alone))
            else:
                self._strays.append(_MaskFile(folder / name, name.as_posix(), error=owner))
        if not by_image:
            first = self._strays[0].error
            if images is None and first is not None:
                raise first
            raise InputError(
                f"none of the {len(self._strays)} masks belongs to a photo (first: {self._strays[0].name})",
                file=folder,
                remedy=f"name them after the photos in {images}: STEM.png, STEM_*.png or STEM/*.png",
            )
        with ThreadPoolExecutor(_READERS) as pool:
            look = partial(self._look, png_kind=png_kind)
            self._groups = [(image, tuple(pool.map(look, files))) for image, files in by_image.items()]

    @property
    def num_images(self) -> int:
        return len(self._groups)

    @property
    def num_instances(self) -> int:
        return len(self._strays) + sum(file.count for _, files in self._groups for file in files)

    @property
    def categories(self) -> Mapping[int, str]:
        return {}

    def __iter__(self) -> Iterator[ImageRecord | RecordFault]:
        for stray in self._strays:
            assert stray.error is not None
            yield RecordFault(stray.error)
        index = 0
        for image, files in self._groups:
            instances: list[Instance] = []
            for file in files:
                if file.error is not None:
                    yield RecordFault(file.error)
                else:
                    instances += _instances(file, index, self._max_pixels)
                index += file.count
            photo = None if self._images is None else self._images / image
            yield ImageRecord(
                photo,
                image.as_posix(),
                tuple(instances),
                size=next((file.size for file in files if file.ids is not None), None),
                image_id=(image if photo is None else image.with_suffix("")).as_posix(),
                file_name=None if photo is None else image.as_posix(),
            )

    def check_output(self, output: Path, *, overwrite: bool) -> None:
        inputs = [self._folder] if self._images is None else [self._folder, self._images]
        check_output_folder(output, inputs, overwrite=overwrite)

    def write(
        self,
        output: Path,
        results: Mapping[int, Mask],
        *,
        keep_boxes: bool = False,  # noqa: ARG002  PNGs have no boxes
        overwrite: bool = False,
    ) -> Written:
        self.check_output(output, overwrite=overwrite)
        overlap_pixels, covered, first = 0, list[int](), 0
        with atomic_folder(output) as draft:
            for stray in self._strays:
                _copy(stray.path, draft / stray.name)
            for file in (file for _, files in self._groups for file in files):
                masks = {
                    position: results[first + position]
                    for position in range(file.count)
                    if first + position in results
                }
                overlaps, kept_coarse = _write_file(file, draft / file.name, masks, self._max_pixels)
                overlap_pixels += overlaps
                covered += [first + position for position in kept_coarse]
                first += file.count
        return Written(overlap_pixels, tuple(covered))

    def _look(self, file: tuple[PurePosixPath, bool], png_kind: PngKind | Literal["auto"]) -> _MaskFile:
        """What there is in a file; ``file`` is (name, whether it is its image's only mask by its name)."""
        inside, alone = file
        path, name = self._folder / inside, inside.as_posix()
        if png_kind == "binary" or (png_kind == "auto" and not alone):
            return _MaskFile(path, name)
        try:
            pixels = read_pixels(path, self._max_pixels)
        except InputError as error:
            return _MaskFile(path, name, error=error)
        if png_kind == "auto" and kind_of(pixels) == "binary":
            return _MaskFile(path, name)
        height, width = pixels.values.shape
        return _MaskFile(path, name, ids_in(pixels.values), pixels.palette, (height, width))


def _owners(
    folder: Path,
    images: Path | None,
    names: list[PurePosixPath],
    png_kind: PngKind | Literal["auto"],
    max_pixels: int,
) -> Iterator[tuple[PurePosixPath, Owner | InputError]]:
    """Each mask with its image, or why it has none."""
    photos = None
    if images is not None:
        # where masks and photos share a folder, its PNGs are the masks
        shared = [folder / name for name in names] if images.resolve() == folder.resolve() else []
        photos = ImageTree(images, without=shared)
    for name in names:
        try:
            if photos is None:
                yield name, owner_by_name(folder, name, png_kind, max_pixels)
            else:
                yield name, owner_by_photos(name, photos) or _no_photo(folder, name, photos.root)
        except InputError as error:
            yield name, error


def _no_photo(folder: Path, name: PurePosixPath, images: Path) -> InputError:
    record = None if name.parent == PurePosixPath() else name.as_posix()
    return InputError(f"no photo in {images} has that name", file=folder / name, record=record)


def _instances(file: _MaskFile, first: int, max_pixels: int) -> list[Instance]:
    if file.ids is None:
        return [Instance(first, PngFileMask(file.path, max_pixels), file.name)]
    id_map = IdMap(partial(read_values, file.path, max_pixels))
    return [
        Instance(
            first + position,
            IdMask(id_map, instance_id, file.size),
            f"{file.name} id {instance_id}",
            is_crowd=file.has_palette and instance_id == _VOID,
            instance_id=instance_id,
        )
        for position, instance_id in enumerate(file.ids)
    ]


def _write_file(
    file: _MaskFile, target: Path, masks: Mapping[int, Mask], max_pixels: int
) -> tuple[int, list[int]]:
    """Writes one PNG with refined masks by their position in it.

    Gives the pixels that were claimed twice, and the positions that had to keep their coarse mask.
    """
    if not masks:
        _copy(file.path, target)
        return 0, []
    target.parent.mkdir(parents=True, exist_ok=True)
    pixels = read_pixels(file.path, max_pixels)
    if file.ids is None:
        write_like(file.path, np.where(masks[0].decode().paste(), _white(pixels), 0), target)
        return 0, []
    painted = paint(pixels.values, [(file.ids[position], mask) for position, mask in sorted(masks.items())])
    write_like(file.path, painted.values, target)
    return painted.overlap_pixels, [file.ids.index(instance_id) for instance_id in painted.covered]


def _white(pixels: MaskPixels) -> int:
    """The value of foreground in the refined file: that of the coarse one, full white where it was soft."""
    return int(pixels.values.max()) if _is_binary(pixels.values) else pixels.white


def _is_binary(values: NDArray[Any]) -> bool:
    """At most one value besides 0."""
    return bool(((values == 0) | (values == values.max())).all())


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
