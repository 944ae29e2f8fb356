"""From a photo and a mask PNG to the picture that explains what became of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from transfiner_refine.errors import InputError
from transfiner_refine.explain.picture import Names, explain
from transfiner_refine.formats.png_pixels import kind_of, read_pixels
from transfiner_refine.images import read_image
from transfiner_refine.masks import MaskWindow
from transfiner_refine.output import atomic_binary_file, check_output_file
from transfiner_refine.refiner import load_refiner
from transfiner_refine.trace import trace

__all__ = ["explain_files", "read_mask_png"]


def explain_files(
    image: str | Path,
    mask: str | Path,
    output: str | Path,
    *,
    instance_id: int | None = None,
    truth: str | Path | None = None,
    weights: str | Path = "lite",
    device: str = "auto",
    overwrite: bool = False,
) -> None:
    """Refines one mask and draws how.

    Args:
        image: the photo.
        mask: its coarse mask, a PNG: binary, soft, or a map of ids.
        output: the PNG to write.
        instance_id: which instance of a map of ids.
        truth: the true mask, a PNG of the same kinds; None if it is not known.
        weights, device: as for ``load_refiner``.
        overwrite: the output may be replaced.

    Raises:
        InputError: an input cannot be used, or the mask is empty.
        OutputError: the output exists, is an input, or cannot be written.
        CheckpointError, DeviceError: from loading the weights.
    """
    image, mask, output = Path(image), Path(mask), Path(output)
    check_output_file(output, [image, mask], overwrite=overwrite)
    coarse = read_mask_png(mask, instance_id)
    real = None if truth is None else read_mask_png(Path(truth), instance_id)
    photo = read_image(image, {coarse.image_size}).pixels
    if real is not None and real.image_size != coarse.image_size:
        raise InputError(
            f"is {real.image_size[1]}×{real.image_size[0]}, the mask {coarse.image_size[1]}×{coarse.image_size[0]}",
            file=truth,
            remedy="give the truth of the same photo",
        )
    if coarse.area == 0:
        raise InputError("has no foreground", file=mask, remedy="an empty mask is never refined")
    refiner = load_refiner(weights, device=device, engine="torch")
    names = Names(image.name, mask.name, Path(weights).name)
    sheet = explain(photo, trace(refiner, photo, coarse), names, real)
    with atomic_binary_file(output) as file:
        sheet.save(file, format="PNG")


def read_mask_png(path: Path, instance_id: int | None = None) -> MaskWindow:
    """One mask of a PNG.

    Args:
        path: a binary or soft mask, or a map of ids.
        instance_id: which id of a map; None where there is but one.

    Raises:
        InputError: no PNG, no such id, or several ids and none was chosen.
    """
    pixels = read_pixels(path)
    size = (pixels.values.shape[0], pixels.values.shape[1])
    if instance_id is None and kind_of(pixels) == "binary":
        foreground = pixels.values[pixels.values != 0]
        flat = len(foreground) == 0 or bool((foreground == foreground[0]).all())
        soft = pixels.values.astype(np.float32) / pixels.white
        return MaskWindow(pixels.values != 0 if flat else soft, 0, 0, size)
    ids = [int(value) for value in np.unique(pixels.values) if value]
    if instance_id is None and len(ids) > 1:
        listed = ", ".join(map(str, ids[:8])) + (", …" if len(ids) > 8 else "")
        raise InputError(f"is a map of the ids {listed}", file=path, remedy="choose one with --id")
    chosen = ids[0] if instance_id is None else instance_id
    if chosen not in ids:
        listed = ", ".join(map(str, ids[:8])) + (", …" if len(ids) > 8 else "") or "nothing"
        raise InputError(f"has no id {chosen}, but {listed}", file=path, remedy="choose another --id")
    return MaskWindow(pixels.values == chosen, 0, 0, size)
