"""One image file that is a mask, or a label map, of one image: read in any usual kind, written as PNG.

A mask is binary, soft, or the alpha channel of a cut-out. A PNG is written again with its bit depth, palette and text.
From other formats, one instance is 0 and 255, several are a map of ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from transfiner_refine.errors import InputError
from transfiner_refine.formats.label_map_folders import MaskFiles, new_map
from transfiner_refine.formats.label_map_formats import LABEL_MAPS
from transfiner_refine.formats.label_maps import kind_of
from transfiner_refine.formats.png import MaskPixels, read_pixels, write_png
from transfiner_refine.formats.records import Format, OpenOptions, Source, Written
from transfiner_refine.formats.writing import Conversion
from transfiner_refine.image_folders import ImageTree
from transfiner_refine.images import opened
from transfiner_refine.masks import Mask, MaskWindow

_WHITE = 255


class MaskImage(MaskFiles):
    """The masks of one image file, and the image that they belong to."""

    def __init__(self, path: Path, options: OpenOptions) -> None:
        """Reads the file; raises InputError where it cannot be used, or has no image."""
        super().__init__(LABEL_MAPS, path, options)
        (name,), image = self.files, None
        (file,) = self.look_at_all({name: options.png_kind}).values()
        if file.error is not None:
            raise file.error
        if options.images is not None:
            tree = ImageTree(options.images, without=[path])
            image = tree.images[0] if options.images.is_file() else tree.find(PurePosixPath(path.stem))
            if image is None:
                reason = f"no image in {options.images} has that name"
                raise InputError(reason, file=path, remedy="give the image itself")
        self.groups = [[file]]
        self.say_what_is_replaced()
        self.groups = [[replace(file, written=None)]]
        entry = self.entry(name, name.with_suffix(""), self.groups[0])
        self.entries = (replace(entry, image=image, usual_name=name.name),)

    def pixels_of(self, name: PurePosixPath) -> MaskPixels:
        pixels = super().pixels_of(name)  # TIFF and BMP become PNG, alpha becomes grey
        return replace(pixels, mode="", chunks=[] if pixels.colours else pixels.chunks)


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


MASK_IMAGE = Format("mask-image", False, _recognise, MaskImage, _write, check=_check, suffixes=(".png",))


def read_mask_image(path: Path, instance_id: int | None = None) -> MaskWindow:
    """One mask of a mask image.

    Args:
        path: a binary or soft mask, or a label map.
        instance_id: which id of a label map; None where there is but one.

    Raises:
        InputError: no PNG, no such id, or several ids and none was chosen.
    """
    pixels = read_pixels(path)
    values = pixels.values
    size = (values.shape[0], values.shape[1])
    present = [int(value) for value in np.unique(values) if value]
    if instance_id is None and kind_of(pixels) == "binary":
        soft = values.astype(np.float32) / pixels.white
        return MaskWindow(values != 0 if len(present) < 2 else soft, 0, 0, size)
    listed = ", ".join(map(str, present[:8])) + (", …" if len(present) > 8 else "") or "nothing"
    if instance_id is None and len(present) > 1:
        raise InputError(f"is a map of the ids {listed}", file=path, remedy="choose one with --id")
    chosen = present[0] if instance_id is None else instance_id
    if chosen not in present:
        raise InputError(f"has no id {chosen}, but {listed}", file=path, remedy="choose another --id")
    return MaskWindow(values == chosen, 0, 0, size)
