"""Random images with instances, as a source that any format can be written from, and what to compare of sources."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from transfiner_refine.formats import Mask, RecordFault, Source, Written
from transfiner_refine.formats.records import ImageRecord, Instance, OpenOptions
from transfiner_refine.masks import MaskWindow

CATEGORIES = {1: "person", 2: "a cup", 7: "Löffel"}


@dataclass(frozen=True)
class SceneSource:
    """Records in memory. It knows no file to write again, so it is only for writing other formats from."""

    records: tuple[ImageRecord, ...]
    categories: Mapping[int, str]
    options: OpenOptions = field(default_factory=OpenOptions)
    notes: tuple[str, ...] = ()

    @property
    def num_images(self) -> int:
        return sum(bool(record.instances) for record in self.records)

    @property
    def num_instances(self) -> int:
        return sum(len(record.instances) for record in self.records)

    def __iter__(self) -> Iterator[ImageRecord | RecordFault]:
        return iter(self.records)

    def write(
        self,
        output: Path,  # noqa: ARG002
        results: Mapping[int, Mask],  # noqa: ARG002
        *,
        keep_boxes: bool = False,  # noqa: ARG002
        overwrite: bool = False,  # noqa: ARG002
    ) -> Written:
        raise AssertionError("these records come from no file")


@st.composite
def scenes(
    draw: st.DrawFn,
    *,
    overlapping: bool = True,
    scores: bool = True,
    categories: bool = True,
    crowds: bool = True,
    image_ids: bool = True,
    empty_images: bool = True,
    mask: Callable[[tuple[int, int]], st.SearchStrategy[NDArray[np.bool_]]] | None = None,
) -> SceneSource:
    """One to four small images with up to four instances each; no mask is empty.

    Args:
        draw: hypothesis's.
        overlapping: instances may share pixels.
        scores: instances have one.
        categories: instances have one.
        crowds: some instances are crowds.
        image_ids: the images have ids.
        empty_images: some images have no instance.
        mask: gives a strategy for [H, W] masks of a size; None for unions and differences of boxes.
    """
    records: list[ImageRecord] = []
    number = 0
    for place in range(draw(st.integers(1, 4))):
        size = (draw(st.integers(3, 20)), draw(st.integers(3, 20)))
        taken = np.zeros(size, bool)
        instances = []
        for _ in range(draw(st.integers(0 if empty_images else 1, 4))):
            pixels = draw((mask or _boxes)(size))
            if not overlapping:
                pixels = pixels & ~taken
                taken |= pixels
            if not pixels.any():
                continue
            instances.append(
                Instance(
                    number,
                    Mask.from_window(MaskWindow(pixels, 0, 0, size)),
                    f"instance {number}",
                    category_id=draw(st.sampled_from(sorted(CATEGORIES))) if categories else None,
                    score=draw(st.floats(0, 1)) if scores else None,
                    is_crowd=crowds and draw(st.integers(0, 4)) == 4,
                )
            )
            number += 1
        if not instances and not empty_images:
            continue
        name = draw(st.sampled_from(["street", "a b", "Größe", "x.y", "0007"])) + f"_{place}.jpg"
        image_id = 3 * place + draw(st.integers(1, 3)) if image_ids else None
        records.append(ImageRecord(None, name, tuple(instances), size, image_id, name))
    return SceneSource(tuple(records), CATEGORIES if categories else {})


@st.composite
def _boxes(draw: st.DrawFn, size: tuple[int, int]) -> NDArray[np.bool_]:
    """A box, with another one added or cut out."""
    pixels = np.zeros(size, bool)
    for value in (True, draw(st.booleans())):
        y0, x0 = draw(st.integers(0, size[0] - 1)), draw(st.integers(0, size[1] - 1))
        y1, x1 = draw(st.integers(y0 + 1, size[0])), draw(st.integers(x0 + 1, size[1]))
        pixels[y0:y1, x0:x1] = value
    return pixels


def held(source: Source, *fields: str, image: tuple[str, ...] = ("file_name",), empty: bool = False) -> Any:
    """What there is to compare of a source: its images in any order, their instances in theirs.

    Args:
        source: must be without faults.
        fields: of each instance, beside its mask.
        image: fields of each image.
        empty: images without instances count, too.
    """
    found = []
    for item in source:
        assert isinstance(item, ImageRecord), item.error
        instances = [
            (Mask.from_window(instance.mask.decode()), *(getattr(instance, field) for field in fields))
            for instance in item.instances
        ]
        if instances or empty:
            found.append((tuple(getattr(item, field) for field in image), instances))
    return sorted(found, key=lambda entry: repr(entry[0]))
