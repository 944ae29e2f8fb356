"""Folders of mask PNGs. The same files, names and pixel types come out as went in.

Layouts, which may be mixed in one folder; IMAGE_STEM is a photo's name without its extension:

* ``IMAGE_STEM.png``: one mask, or a map of ids (``png_pixels.kind_of`` tells which; ``png_kind`` overrules
  it);
* ``IMAGE_STEM_*.png``: one mask each; where several stems fit (``a`` and ``a_1`` for ``a_1_2.png``), the
  longest;
* ``IMAGE_STEM/*.png``: one mask each.

One mask is binary (0 and one other value) or soft (0 ... 255 as confidence). In a map each value is an
instance and 0 is background; 255 in a palette is "void" by the convention of Pascal VOC, and left as it is.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.formats.id_map import IdMap, IdMask, ids_in, paint
from transfiner_refine.formats.images import ImageFolder
from transfiner_refine.formats.output import atomic_folder, check_output_folder
from transfiner_refine.formats.png_pixels import (
    MaskPixels,
    PngKind,
    kind_of,
    png_size,
    read_pixels,
    write_like,
)
from transfiner_refine.formats.rle import RleMask
from transfiner_refine.formats.source import RecordFault, Written
from transfiner_refine.types import ImageRecord, InputError, Instance, MaskWindow

__all__ = ["PngFileMask", "PngFolderSource"]

_VOID = 255
_READERS = 4  # threads that look into mask files; zlib lets go of the interpreter lock


@dataclass(frozen=True)
class PngFileMask:
    """A whole PNG file as the mask of one instance, read where its pixels are needed.

    Attributes:
        path: the file.
    """

    path: Path

    @property
    def size(self) -> tuple[int, int]:
        """(height, width), pixels, from the file's header."""
        return png_size(self.path)

    def decode(self) -> MaskWindow:
        """The mask inside its bounding box: bool, or float32 in [0, 1] where the file is soft.

        Raises:
            InputError: the file is damaged, or has a palette and several values.
        """
        pixels = read_pixels(self.path)
        values = pixels.values
        foreground = values != 0
        window = MaskWindow(foreground, 0, 0, (values.shape[0], values.shape[1])).tight()
        (height, width), x, y = window.values.shape, window.x, window.y
        if height == 0 or _is_binary(values):
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

    def __init__(self, folder: Path, images: Path, *, png_kind: PngKind | Literal["auto"] = "auto") -> None:
        """Finds the masks and their photos, and reads the files that are or may be maps, to know their ids.

        Args:
            folder: the mask folder.
            images: the folder of the photos; may be the same.
            png_kind: what the files are. "auto": ``IMAGE_STEM.png`` by its pixels, all others one mask each.

        Raises:
            InputError: no such folder, no PNG in it, or none of them belongs to a photo.
        """
        self._folder, self._images = folder, images
        found = sorted(_listed(folder), key=lambda path: path.relative_to(folder).as_posix())
        if not found:
            raise InputError(
                "holds no PNG masks", file=folder, remedy="give COCO JSON or a folder of PNG masks"
            )
        # where masks and photos share a folder, its PNGs are the masks
        shared = {path.name for path in found} if images.resolve() == folder.resolve() else set[str]()
        photos = ImageFolder(images, without=shared)
        by_photo: dict[Path, list[tuple[Path, bool]]] = {}
        strays: list[Path] = []
        for path in found:
            photo, alone = _owner(path, folder, photos)
            if photo is None:
                strays.append(path)
            else:
                by_photo.setdefault(photo, []).append((path, alone))
        if not by_photo:
            raise InputError(
                f"none of the {len(strays)} masks belongs to a photo (first: {strays[0].name})",
                file=folder,
                remedy=f"name them after the photos in {images}: STEM.png, STEM_*.png or STEM/*.png",
            )
        self._strays = [
            _MaskFile(path, self._name(path), error=_no_photo(path, self._name(path), images))
            for path in strays
        ]
        with ThreadPoolExecutor(_READERS) as pool:
            look = partial(self._look, png_kind=png_kind)
            self._groups = [(photo, tuple(pool.map(look, files))) for photo, files in by_photo.items()]

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
        for photo, files in self._groups:
            instances: list[Instance] = []
            for file in files:
                if file.error is not None:
                    yield RecordFault(file.error)
                else:
                    instances += _instances(file, index)
                index += file.count
            yield ImageRecord(photo, photo.name, tuple(instances))

    def check_output(self, output: Path, *, overwrite: bool) -> None:
        check_output_folder(output, [self._folder, self._images], overwrite=overwrite)

    def write(
        self,
        output: Path,
        results: Mapping[int, RleMask],
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
                overlaps, kept_coarse = _write_file(file, draft / file.name, masks)
                overlap_pixels += overlaps
                covered += [first + position for position in kept_coarse]
                first += file.count
        return Written(overlap_pixels, tuple(covered))

    def _name(self, path: Path) -> str:
        return path.relative_to(self._folder).as_posix()

    def _look(self, file: tuple[Path, bool], png_kind: PngKind | Literal["auto"]) -> _MaskFile:
        """What there is in a file; ``file`` is (path, whether it is its photo's only mask by its name)."""
        path, alone = file
        name = self._name(path)
        if png_kind == "binary" or (png_kind == "auto" and not alone):
            return _MaskFile(path, name)
        try:
            pixels = read_pixels(path)
        except InputError as error:
            return _MaskFile(path, name, error=error)
        if png_kind == "auto" and kind_of(pixels) == "binary":
            return _MaskFile(path, name)
        height, width = pixels.values.shape
        return _MaskFile(path, name, ids_in(pixels.values), pixels.palette, (height, width))


def _listed(folder: Path) -> Iterator[Path]:
    try:
        for path in folder.iterdir():
            if path.is_dir():
                yield from (inner for inner in path.iterdir() if _is_png(inner))
            elif _is_png(path):
                yield path
    except OSError as error:
        raise InputError(
            f"cannot be listed ({error.strerror})", file=folder, remedy="check --masks"
        ) from error


def _is_png(path: Path) -> bool:
    return path.suffix.lower() == ".png" and not path.name.startswith(".")


def _owner(path: Path, folder: Path, photos: ImageFolder) -> tuple[Path | None, bool]:
    """The photo a mask belongs to by its name, and whether the name is IMAGE_STEM.png."""
    if path.parent != folder:
        return photos.with_stem(path.parent.name), False
    stem = path.stem
    if (photo := photos.with_stem(stem)) is not None:
        return photo, True
    while "_" in stem:
        stem = stem.rpartition("_")[0]
        if (photo := photos.with_stem(stem)) is not None:
            return photo, False
    return None, False


def _no_photo(path: Path, name: str, images: Path) -> InputError:
    return InputError(
        f"no photo in {images} has that name", file=path, record=None if name == path.name else name
    )


def _instances(file: _MaskFile, first: int) -> list[Instance]:
    if file.ids is None:
        return [Instance(first, PngFileMask(file.path), file.name)]
    id_map = IdMap(lambda: read_pixels(file.path).values)
    return [
        Instance(
            first + position,
            IdMask(id_map, instance_id, file.size),
            f"{file.name} id {instance_id}",
            is_crowd=file.has_palette and instance_id == _VOID,
        )
        for position, instance_id in enumerate(file.ids)
    ]


def _write_file(file: _MaskFile, target: Path, masks: Mapping[int, RleMask]) -> tuple[int, list[int]]:
    """Writes one PNG with refined masks by their position in it.

    Gives the pixels that were claimed twice, and the positions that had to keep their coarse mask.
    """
    if not masks:
        _copy(file.path, target)
        return 0, []
    target.parent.mkdir(parents=True, exist_ok=True)
    pixels = read_pixels(file.path)
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
