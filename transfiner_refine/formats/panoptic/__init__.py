"""COCO panoptic: things and stuff as a partition of the image, ids in the colours of PNGs."""

from transfiner_refine.formats.coco.recognise import is_panoptic
from transfiner_refine.formats.panoptic.source import PanopticSource, png_folder
from transfiner_refine.formats.panoptic.write import write_panoptic
from transfiner_refine.formats.records import Format

__all__ = ["COCO_PANOPTIC"]

COCO_PANOPTIC = Format(
    "coco-panoptic",
    "COCO panoptic: a JSON file and its folder of PNGs",
    is_folder=False,
    recognise=is_panoptic,
    open=PanopticSource,
    write=write_panoptic,
    beside=png_folder,
)
