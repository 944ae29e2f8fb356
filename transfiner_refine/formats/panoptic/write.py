"""What any source holds, written as COCO panoptic."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from transfiner_refine.formats.coco.ids import Ids
from transfiner_refine.formats.coco.records import compact
from transfiner_refine.formats.coco.write import write_list
from transfiner_refine.formats.id_map import choose_ids, lay
from transfiner_refine.formats.panoptic.pixels import LARGEST_ID, id_boxes, write_ids
from transfiner_refine.formats.panoptic.source import png_folder
from transfiner_refine.formats.records import ImageRecord, Instance, Source, Written
from transfiner_refine.formats.text_file import text_output
from transfiner_refine.formats.writing import Conversion, by_importance
from transfiner_refine.masks import Mask
from transfiner_refine.output import atomic_folder, remove_drafts

__all__ = ["write_panoptic"]

_MOST = (1 << 16) - 1  # segments of an image that are laid at a time; no image comes near it


def write_panoptic(output: Path, source: Source, results: Mapping[int, Mask]) -> Written:
    """Writes a panoptic JSON file and the folder of its PNGs beside it.

    A pixel that several instances claim goes to things before crowds before stuff, then to the higher score, then
    to the earlier. What no instance claims is unlabelled.

    Raises:
        OutputError: the disk refused.
    """
    ids = Ids(source)
    conversion = Conversion(source, results)
    images: list[str] = []
    remove_drafts(png_folder(output))
    with text_output(output) as file, atomic_folder(png_folder(output)) as draft:
        file.write(b'{"annotations":')
        write_list(file, _annotations(conversion, ids, draft, images))
        file.write(b',\n"images":')
        write_list(file, images)
        file.write(b',\n"categories":')
        write_list(file, (compact({**entry, "isthing": entry.get("isthing", 1)}) for entry in ids.categories))
        file.write(b"}\n")
        # the JSON gets its name after the PNGs: where there is one, all that it speaks of is there
        file.flush()
        output.unlink(missing_ok=True)
    return conversion.written()


def _annotations(conversion: Conversion, ids: Ids, draft: Path, images: list[str]) -> Iterator[str]:
    """Writes the PNGs; gives the annotations, and fills the list of images meanwhile."""
    for stem, (height, width), image in conversion:
        image_id = ids.image_id(image, len(images))
        name = f"{stem}.png"
        file_name = {} if image.file_name is None else {"file_name": image.file_name}
        images.append(compact({"id": image_id, **file_name, "width": width, "height": height}))
        segments = _lay(conversion, image, (height, width), ids, draft / name)
        yield compact({"image_id": image_id, "file_name": name, "segments_info": segments})


def _lay(
    conversion: Conversion, image: ImageRecord, size: tuple[int, int], ids: Ids, path: Path
) -> list[dict[str, Any]]:
    """Writes the PNG of an image; gives its segments in the order of the source."""
    chosen = choose_ids([item.instance_id for item in image.instances], LARGEST_ID)
    id_of = {item.index: segment_id for item, segment_id in zip(image.instances, chosen, strict=True)}
    ranked = sorted(by_importance(image.instances), key=_layer)
    for item in ranked[_MOST:]:
        conversion.leave_out(image, item, f"is one of {len(ranked)} segments", f"give at most {_MOST}")
    ranked = ranked[:_MOST]
    places = [(place, item.mask.decode().hard()) for place, item in enumerate(ranked, 1)]
    laid = lay(np.zeros(size, np.uint16), places)
    conversion.overlap(laid.overlap_pixels, [ranked[position] for position in laid.covered])
    table = np.array([0, *(id_of[item.index] for item in ranked)], np.uint32)
    values = table[laid.values]
    write_ids(path, values)
    found = id_boxes(values)
    return [
        _segment(item, id_of[item.index], ids, *found[id_of[item.index]])
        for item in image.instances
        if id_of[item.index] in found
    ]


def _segment(instance: Instance, segment_id: int, ids: Ids, area: int, box: list[int]) -> dict[str, Any]:
    entry = {
        "id": segment_id,
        "category_id": ids.category_id(instance),
        "area": area,
        "bbox": box,
        "iscrowd": int(instance.is_crowd),
    }
    return entry if instance.score is None else entry | {"score": instance.score}


def _layer(item: Instance) -> int:
    return 2 if item.is_stuff else int(item.is_crowd)
