"""Refined masks as pictures: probabilities, cut-outs with a soft edge, and outlines before and after."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from transfiner_refine.errors import InputError
from transfiner_refine.formats.records import ImageRecord, Instance, RecordFault
from transfiner_refine.formats.registry import open_source
from transfiner_refine.formats.writing import stem_of
from transfiner_refine.images import MAX_IMAGE_PIXELS, read_image
from transfiner_refine.masks import Mask, MaskWindow
from transfiner_refine.output import atomic_binary_file, atomic_folder, check_output_file, check_output_folder
from transfiner_refine.pipeline.prepare import Selection, category_ids, prepare
from transfiner_refine.pipeline.run import changed_share
from transfiner_refine.pipeline.summary import Summary
from transfiner_refine.refiner import BaseRefiner
from transfiner_refine.report.overlay import outline_masks

Kind = Literal["soft", "soft16", "cutout", "overlay"]
_SUFFIXES = {
    "soft": (".png",),
    "soft16": (".png",),
    "cutout": (".png", ".webp"),
    "overlay": (".png", ".jpg", ".jpeg", ".webp"),
}
_BLURS = (91, 7)  # pixels, the paper's
_GAP = 4  # pixels between before and after
_EDGE = 0.8  # sigma in pixels that smooths the edge of a mask that the network left as it was


class _Picture(NamedTuple):
    """An image with its masks before and after; those that are not refined are the same in both."""

    record: ImageRecord
    pixels: NDArray[np.uint8]
    before: list[MaskWindow]
    after: list[MaskWindow]  # probabilities where they were refined
    labels: list[str]


def refine_pictures(
    images: str | Path,
    masks: str | Path,
    output: str | Path,
    kind: Kind,
    *,
    refiner: BaseRefiner,
    min_area: int = 0,
    score_threshold: float | None = None,
    categories: Sequence[int | str] = (),
    max_image_pixels: int = MAX_IMAGE_PIXELS,
    overwrite: bool = False,
    strict: bool = False,
    progress: bool = False,
    **reading: Any,
) -> Summary:
    """Refines masks of any format and writes pictures of them.

    Args:
        images, masks: as for ``refine_files``.
        output: for one image a file; or a folder, with IMAGE/0001.png and on for each mask, or IMAGE.jpg for overlays.
        kind: ``soft`` and ``soft16``, probabilities in 8 or 16 bits, one mask a file; ``cutout``, the object with its
            edge as alpha; ``overlay``,
            labelled outlines, before beside after.
        refiner: from ``load_refiner``.
        min_area, score_threshold, categories, max_image_pixels, overwrite, strict, progress: as for ``refine_files``.
        reading: what ``open_source`` takes beside the paths.

    Raises:
        InputError: the input cannot be used; for one file: it holds several images, or several masks for ``soft``.
        OutputError: the output exists, is an input, or cannot be written.
    """
    images, masks, output = Path(images), Path(masks), Path(output)
    is_file = bool(output.suffix)
    if is_file and output.suffix.lower() not in _SUFFIXES[kind]:
        possible = " or ".join(_SUFFIXES[kind])
        raise InputError(
            f"{kind} is written as {possible}", file=output, remedy="give a name in that, or of a folder"
        )
    (check_output_file if is_file else check_output_folder)(output, [images, masks], overwrite=overwrite)
    source = open_source(masks, images, max_image_pixels=max_image_pixels, **reading)
    if is_file and source.num_images != 1:
        reason = f"holds the masks of {source.num_images} images, and the output is one file"
        raise InputError(reason, file=masks, remedy="give a name without a suffix, for a folder")
    if is_file and kind.startswith("soft") and source.num_instances != 1:
        reason = f"holds {source.num_instances} masks, and one file has the probability of one"
        raise InputError(reason, file=masks, remedy="give a name without a suffix, for a folder")
    selection = Selection(min_area, score_threshold, category_ids(categories, source.categories, masks))
    summary, started, shares = Summary(images=source.num_images), time.monotonic(), list[float]()
    bar = tqdm(total=source.num_instances, unit="mask", desc="refining", disable=None if progress else True)
    with ExitStack() as stack:
        stack.enter_context(bar)
        draft = None if is_file else stack.enter_context(atomic_folder(output))
        for item in source:
            done = 1
            try:
                if isinstance(item, RecordFault):
                    done = item.instances
                    raise item.error
                done = len(item.instances)
                picture = _refined(
                    item, selection, max_image_pixels, refiner, source.categories, summary, shares
                )
                if draft is None:
                    with atomic_binary_file(output) as file:
                        _save(_whole(picture, kind), file, output.suffix.lower())
                else:
                    _save_all(picture, kind, draft)
            except InputError as error:
                if strict or is_file:
                    raise
                summary.errors.append(error)
                summary.failed += done
            bar.update(done)
    summary.mean_changed_share = float(np.mean(shares)) if shares else 0.0
    summary.seconds = time.monotonic() - started
    summary.network, summary.output = refiner.network, f"{output} ({kind})"
    return summary


def _refined(
    item: ImageRecord,
    selection: Selection,
    max_image_pixels: int,
    refiner: BaseRefiner,
    categories: Any,
    summary: Summary,
    shares: list[float],
) -> _Picture:
    """The masks of one image before and after; raises InputError where one of them is at fault."""
    found = prepare(item, selection, max_image_pixels)
    if found.faults:
        raise found.faults[0].error
    record, _ = item.read()
    for _, reason in found.kept:
        summary.passed_through[reason] += 1
    given = {each.index: each.mask.decode() for each in record.instances}
    pixels = found.pixels
    if pixels is None:
        assert record.path is not None
        pixels, _ = read_image(record.path, {mask.image_size for mask in given.values()}, max_image_pixels)
    chosen = [each.index for each in found.chosen]
    after = dict(given)
    if chosen:
        windows = refiner.refine_windows(
            [pixels], [given[index] for index in chosen], [0] * len(chosen), soft=True
        )
        after |= zip(chosen, windows, strict=True)
    summary.refined += len(chosen)
    summary.images_turned += found.turned
    shares += [changed_share(Mask.from_window(given[i]), Mask.from_window(after[i])) for i in chosen]
    labels = [_label(each, number, categories) for number, each in enumerate(record.instances, 1)]
    return _Picture(record, pixels, list(given.values()), list(after.values()), labels)


def _label(instance: Instance, number: int, categories: Any) -> str:
    name = categories.get(instance.category_id, "")
    return f"{number} {name}".strip()


def _whole(picture: _Picture, kind: Kind) -> NDArray[Any]:
    """All masks of an image in one picture."""
    if kind == "overlay":
        sides = [
            outline_masks(picture.pixels, [mask.hard() for mask in masks], picture.labels)
            for masks in (picture.before, picture.after)
        ]
        gap = np.full((len(picture.pixels), _GAP, 3), 255, np.uint8)
        return np.concatenate((sides[0], gap, sides[1]), axis=1)
    alpha = np.zeros(picture.pixels.shape[:2], np.float32)
    for mask in picture.after:
        part = mask.of(alpha)
        np.maximum(part, mask.values, out=part)
    if kind == "cutout":
        return cut_out(picture.pixels, alpha)
    most, dtype = (255, np.uint8) if kind == "soft" else (65535, np.uint16)
    return np.rint(alpha * np.float64(most)).astype(dtype)


def cut_out(image: NDArray[np.uint8], alpha: NDArray[np.float32]) -> NDArray[np.uint8]:
    """[H, W, 4]: an object with its edge as alpha, and without the background's colour in it.

    Args:
        image: [H, W, 3] RGB.
        alpha: [H, W] in [0, 1]; a hard mask gets an edge of about a pixel.
    """
    if ((alpha == 0) | (alpha == 1)).all():
        alpha = cv2.GaussianBlur(alpha, (0, 0), _EDGE)
    opacity = alpha[..., None]
    shades = image.astype(np.float32) / 255
    inside = outside = shades
    for side in _BLURS:  # Forte, "Approximate Fast Foreground Colour Estimation", 2021
        inside, outside = (
            cv2.blur(colours * weight, (side, side)) / (cv2.blur(weight, (side, side))[..., None] + 1e-5)
            for colours, weight in ((inside, opacity), (outside, 1 - opacity))
        )
        inside = np.clip(inside + opacity * (shades - opacity * inside - (1 - opacity) * outside), 0, 1)
    return np.rint(np.dstack((inside, alpha)) * 255).astype(np.uint8)


def _save_all(picture: _Picture, kind: Kind, folder: Path) -> None:
    stem = stem_of(picture.record)
    if kind == "overlay":
        parts: Iterator[tuple[Path, _Picture]] = iter([(folder / f"{stem}.jpg", picture)])
    else:
        parts = (
            (folder / stem / f"{number:04d}.png", picture._replace(after=[mask]))
            for number, mask in enumerate(picture.after, 1)
        )
    for path, part in parts:
        if path.exists():
            raise InputError(
                "is called like another image", record=picture.record.name, remedy="rename one of them"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            _save(_whole(part, kind), file, path.suffix)


def _save(values: NDArray[Any], file: Any, suffix: str) -> None:
    kind = {".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}.get(suffix, "PNG")
    Image.fromarray(values).save(file, format=kind, quality=92)
