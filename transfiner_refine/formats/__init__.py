"""Masks in and out: one file a format, all giving the same records."""

from transfiner_refine.formats.detect import open_source
from transfiner_refine.formats.images import DecodedImage, read_image
from transfiner_refine.formats.png_pixels import PngKind
from transfiner_refine.formats.rle import RleMask, mask_from_segmentation
from transfiner_refine.formats.source import RecordFault, Source, Written

__all__ = [
    "DecodedImage",
    "PngKind",
    "RecordFault",
    "RleMask",
    "Source",
    "Written",
    "mask_from_segmentation",
    "open_source",
    "read_image",
]
