"""One image file that is a mask, or a label map, of one image: read in any usual kind, written as it came.

A mask is binary, soft, or the alpha channel of a cut-out. A PNG of one channel is written again with its bit depth,
palette and text; all else becomes grey of 8 bits. From other formats, one instance is 0 and 255, several are a map of
ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.errors import InputError
from transfiner_refine.formats.label_map_folders import new_map
from transfiner_refine.formats.label_map_formats import LABEL_MAPS
from transfiner_refine.formats.png import MaskPixels, read_pixels, write_png
from transfiner_refine.formats.records import Format, ImageRecord, Instance, OpenOptions, Source, Written
from transfiner_refine.formats.writing import Conversion
from transfiner_refine.image_folders import ImageTree
from transfiner_refine.images import opened
from transfiner_refine.inputs import MaskFile, mask_file
from transfiner_refine.masks import Mask, MaskWindow
from transfiner_refine.output import atomic_binary_file

_WHITE = 255


@dataclass(frozen=True)
class MaskImage:
    """The masks of one image file, and the image that they belong to."""

    path: Path
    image: Path | None
    options: OpenOptions
    found: MaskFile
    pixels: MaskPixels | None  # of a PNG of one channel, to be written with all but the pixels as it was

    num_images, notes = 1, ()

    @property
    def num_instances(self) -> int:
        return len(self.found.ids)

    @property
    def categories(self) -> Mapping[int, str]:
        return {}

    def __iter__(self) -> Iterator[ImageRecord]:
        def kept(mask: MaskWindow) -> Mask | MaskWindow:
            return Mask.from_window(mask) if mask.values.dtype == bool else mask

        is_map = self.found.foreground is None
        instances = [
            Instance(index, kept(mask), f"id {each}" if is_map else self.path.name, instance_id=each or None)
            for index, (each, mask) in enumerate(self.found.ids.items())
        ]
        name = (self.image or self.path).name
        yield ImageRecord(self.image, name, tuple(instances), self.found.size, file_name=name)

    def write(
        self,
        output: Path,
        results: Mapping[int, Mask],
        *,
        keep_boxes: bool = False,  # noqa: ARG002  it has none
        overwrite: bool = False,  # noqa: ARG002  checked before
    ) -> Written:
        ids = list(self.found.ids)
        if not results:
            with atomic_binary_file(output) as file:
                file.write(self.path.read_bytes())
            return Written()
        overlap_pixels, covered = 0, tuple[int, ...]()
        values: NDArray[Any]
        if self.found.foreground is None:
            base = np.zeros(self.found.size, np.uint16)
            for each, mask in self.found.ids.items():
                mask.of(base)[mask.values] = each
            before = base if self.pixels is None else self.pixels.values
            merged = LABEL_MAPS.update(before, [(ids[index], mask) for index, mask in results.items()])
            values, overlap_pixels = merged.values, merged.overlap_pixels
            covered = tuple(ids.index(each) for each in merged.covered)
        else:
            values = np.where(results[0].decode().paste(), self.found.foreground, 0).astype(np.uint16)
        if self.pixels is not None:
            self.pixels.write(values, output)
        else:
            write_png(output, values.astype(np.uint8 if values.max(initial=0) <= _WHITE else np.uint16))
        return Written(overlap_pixels, covered)


def _open(path: Path, options: OpenOptions) -> MaskImage:
    found, image = mask_file(path, options.max_image_pixels), None
    if options.images is not None and options.images.is_file():
        image = options.images
    elif options.images is not None:
        tree = ImageTree(options.images, without=[path])
        if (name := tree.find(PurePosixPath(path.stem))) is None:
            reason = f"no image in {options.images} has that name"
            raise InputError(reason, file=path, remedy="give the image itself")
        image = options.images / name
    pixels = None
    with suppress(InputError):  # another kind of file, or of several channels
        pixels = read_pixels(path, options.max_image_pixels)
        if found.foreground is not None and found.foreground > pixels.white:
            pixels = None
    return MaskImage(path, image, options, found, pixels)


def _recognise(path: Path) -> bool:
    with suppress(InputError), opened(path, None):
        return True
    return False


def _check(source: Source) -> None:
    if source.num_images != 1:
        reason = f"one image file holds the masks of one image, and there are {source.num_images}"
        raise InputError(
            reason, remedy="give a name without a suffix for a folder, and --to label-maps or png"
        )


def _write(output: Path, source: Source, results: Mapping[int, Mask]) -> Written:
    conversion = Conversion(source, results)
    for _, size, image in conversion:
        if len(image.instances) == 1:
            shades = np.rint(image.instances[0].mask.decode().paste() * float(_WHITE))
            write_png(output, shades.astype(np.uint8))
        else:
            values, _ = new_map(LABEL_MAPS, conversion, image, size, {})
            write_png(output, values.astype(np.uint8) if values.max(initial=0) <= _WHITE else values)
    return conversion.written()


MASK_IMAGE = Format("mask-image", False, _recognise, _open, _write, check=_check, suffixes=(".png",))
