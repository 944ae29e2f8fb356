"""Masks in and out: one file a format, all giving the same records."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from transfiner_refine.formats.records import PngKind, RecordFault, Source, Written
from transfiner_refine.masks import Mask

if TYPE_CHECKING:
    from transfiner_refine.formats.registry import open_source
    from transfiner_refine.formats.segmentation import mask_from_segmentation

__all__ = [
    "Mask",
    "PngKind",
    "RecordFault",
    "Source",
    "Written",
    "mask_from_segmentation",
    "open_source",
]
_LATE = {"mask_from_segmentation": "segmentation", "open_source": "registry"}


def __getattr__(name: str) -> Any:
    if name in _LATE:  # because a process that decodes imports this package too, and needs one format at most
        return getattr(import_module(f"{__name__}.{_LATE[name]}"), name)
    raise AttributeError(name)
