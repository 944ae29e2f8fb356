"""Hostile masks of any format, converted into any other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from coco_cases import document_case, records_case, text_case
from format_cases import format_case
from hostile_masks import pick
from law import MAX_PIXELS, Case, check_message, require
from png_cases import png_case

from transfiner_refine.errors import MaskRefineError
from transfiner_refine.formats import open_source
from transfiner_refine.formats.convert import convert_masks
from transfiner_refine.formats.registry import FORMATS


def conversion_trial(folder: Path, rng: np.random.Generator) -> str:
    """What is in the output can be read from it, and what is not is named."""
    make: Callable[..., Case] = pick(
        rng, [records_case, document_case, text_case, png_case, format_case, format_case, format_case]
    )
    case = make(folder, rng)
    entry = FORMATS[int(rng.integers(len(FORMATS)))]
    output = (
        folder
        / "output"
        / (
            "out"
            if entry.is_folder
            else f"out{pick(rng, [entry.suffixes[0], entry.suffixes[0] + '.gz' * (entry.suffixes[0] == '.json')])}"
        )
    )
    images = folder / "images" if rng.random() < 0.7 else None
    try:
        converted = convert_masks(
            case.masks, output, to=entry.name, images=images, max_image_pixels=MAX_PIXELS, **case.options
        )
    except MaskRefineError as error:
        check_message(str(error))
        require(not list(output.parent.iterdir()), f"refused, but left {list(output.parent.iterdir())}")
        return "refused"
    for each in converted.errors:
        check_message(str(each))
    require(
        (converted.instances < converted.instances_read) <= bool(converted.errors),
        f"{converted.instances_read} instances came in, {converted.instances} went out, and nothing is said of it",
    )
    # YOLO's files hold shares of photos whose names the conversion may have had no way to know, and in
    # Cityscapes' and VOC's maps stuff and crowds are no instances
    if not converted.instances or entry.name in (
        converted.source_format,
        "yolo-seg",
        "cityscapes-ids",
        "voc",
    ):
        return "refused"
    # a small map of hundreds of ids looks like a soft mask, so its reader has to be told
    is_map = entry.name == "mask-image" and converted.instances > 1
    again = open_source(output, format=entry.name, **({"png_kind": "label-map"} if is_map else {}))
    require(
        again.num_instances == converted.instances,
        f"{converted.instances} instances were written as {entry.name}, {again.num_instances} are read",
    )
    return "refined" if not converted.errors else "failed in part"
