"""Masks in and out: one file a format, all giving the same records."""

from typing import TYPE_CHECKING, Any

from transfiner_refine.formats.records import PngKind, RecordFault, Source, Written
from transfiner_refine.formats.segmentation import mask_from_segmentation
from transfiner_refine.masks import Mask

if TYPE_CHECKING:
    from transfiner_refine.formats.registry import open_source

__all__ = [
    "Mask",
    "PngKind",
    "RecordFault",
    "Source",
    "Written",
    "mask_from_segmentation",
    "open_source",
]


def __getattr__(name: str) -> Any:
    if name == "open_source":  # late, because it imports every format, and a process that decodes needs one
        from transfiner_refine.formats.registry import open_source

        return open_source
    raise AttributeError(name)
