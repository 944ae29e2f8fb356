"""New id maps for the instances of one image, which may overlap and may be more than a map has ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.formats.id_map import choose_ids, lay
from transfiner_refine.formats.id_map_folder import VOID
from transfiner_refine.formats.records import ImageRecord, Instance
from transfiner_refine.formats.writing import Conversion, by_importance

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
    items: tuple[tuple[int, Instance], ...]


def lay_with_void(conversion: Conversion, image: ImageRecord, size: tuple[int, int]) -> LaidImage:
    """The 8-bit map of an image in a format with void: instances 1 ... 254, crowds 255 where nobody else is."""
    background = np.zeros(size, np.uint8)
    for item in image.instances:
        if item.is_crowd:
            crowd = item.mask.decode().hard()
            crowd.of(background)[crowd.values] = VOID
    items = [item for item in image.instances if not item.is_crowd]
    return lay_image(conversion, image, items, background, _LARGEST_BELOW_VOID)


def lay_image(
    conversion: Conversion,
    image: ImageRecord,
    items: Sequence[Instance],
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
    held = {item.index for item in ranked[:largest]}
    in_order = [item for item in items if item.index in held]
    chosen = choose_ids([item.instance_id for item in in_order], largest)
    ids = {item.index: value for item, value in zip(in_order, chosen, strict=True)}
    order = [(ids[item.index], item) for item in ranked[:largest]]
    laid = lay(background, [(value, item.mask.decode().hard()) for value, item in order])
    conversion.overlap(laid.overlap_pixels, [order[position][1] for position in laid.covered])
    gone = set(laid.covered)
    return LaidImage(laid.values, tuple(pair for position, pair in enumerate(order) if position not in gone))
