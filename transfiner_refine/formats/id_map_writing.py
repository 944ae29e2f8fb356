"""New id maps for the instances of one image, which may overlap and may be more than a map has ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.formats.conversion import Conversion, ConvertedImage, ConvertedInstance, by_importance
from transfiner_refine.formats.id_map import choose_ids, lay
from transfiner_refine.formats.id_map_folder import VOID

__all__ = ["LaidImage", "lay_image", "lay_with_void"]

_LARGEST_BELOW_VOID = VOID - 1


@dataclass(frozen=True)
class LaidImage:
    """The map of one image.

    Attributes:
        values: [H, W] ids.
        items: (id, instance) of those that have pixels in it.
    """

    values: NDArray[Any]
    items: tuple[tuple[int, ConvertedInstance], ...]


def lay_with_void(conversion: Conversion, image: ConvertedImage) -> LaidImage:
    """The 8-bit map of an image in a format with void: instances 1 ... 254, crowds 255 where nobody else is."""
    background = np.zeros(image.size, np.uint8)
    for item in image.instances:
        if item.instance.is_crowd:
            crowd = item.hard()
            h, w = crowd.values.shape
            background[crowd.y : crowd.y + h, crowd.x : crowd.x + w][crowd.values] = VOID
    items = [item for item in image.instances if not item.instance.is_crowd]
    return lay_image(conversion, image, items, background, _LARGEST_BELOW_VOID)


def lay_image(
    conversion: Conversion,
    image: ConvertedImage,
    items: Sequence[ConvertedInstance],
    background: NDArray[Any],
    largest: int,
) -> LaidImage:
    """Lays instances by their importance; tells ``conversion`` of overlaps and of what there is no id for."""
    ranked = by_importance(items)
    for item in ranked[largest:]:
        conversion.leave_out(
            image,
            item,
            f"is one of {len(ranked)} instances, and a map has ids for {largest}",
            "write another format",
        )
    held = {id(item) for item in ranked[:largest]}
    in_order = [item for item in items if id(item) in held]
    ids = dict(
        zip(map(id, in_order), choose_ids([i.instance.instance_id for i in in_order], largest), strict=True)
    )
    order = [(ids[id(item)], item) for item in ranked[:largest]]
    laid = lay(background, [(value, item.hard()) for value, item in order])
    conversion.overlap(laid.overlap_pixels, [order[position][1] for position in laid.covered])
    gone = set(laid.covered)
    return LaidImage(laid.values, tuple(pair for position, pair in enumerate(order) if position not in gone))
