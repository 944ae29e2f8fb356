"""The formats this package knows: one entry each, for recognising, reading and writing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transfiner_refine.formats.image_file import MAX_IMAGE_PIXELS
from transfiner_refine.formats.png_pixels import PngKind
from transfiner_refine.formats.records import Source, Written
from transfiner_refine.masks import Mask

__all__ = ["Format", "OpenOptions"]


@dataclass(frozen=True)
class OpenOptions:
    """What a reader may be told beside the path of the masks.

    Attributes:
        images: the folder of the photos; None to read masks alone, as converting does. Readers that cannot do
            without (relative coordinates need the photo's size) say so as an ``InputError``.
        image_info: a COCO annotation file that says which image id is which photo and names the categories.
        png_kind: for plain PNG folders: what the files are, where their pixels should not decide.
        class_names: a text file with one class name a line (YOLO ``names``, VOC), first line = class 0.
        max_image_pixels: the largest height × width of a mask image that is decoded.
    """

    images: Path | None = None
    image_info: Path | None = None
    png_kind: PngKind | Literal["auto"] = "auto"
    class_names: Path | None = None
    max_image_pixels: int = MAX_IMAGE_PIXELS


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        name: what ``--from`` and ``--to`` take, such as ``coco-results``.
        title: what people call it, such as "COCO results (JSON)".
        is_folder: it is a folder of files, not one file.
        recognise: whether a path holds this format, from a cheap look at its content; never raises on bad input.
        open: reads it; raises InputError where the input cannot be used at all.
        write: writes what any source holds, with the refined masks of ``results`` in the place of the coarse ones,
            in this format, at a path that does not exist yet or may be overwritten; never half of it. Instances
            that the format cannot hold are never dropped silently: ``Written`` counts them.
        beside: the folder that ``write`` fills beside its file, for an output path; None where it fills none.
    """

    name: str
    title: str
    is_folder: bool
    recognise: Callable[[Path], bool]
    open: Callable[[Path, OpenOptions], Source]
    write: Callable[[Path, Source, Mapping[int, Mask]], Written]
    beside: Callable[[Path], Path] | None = None
