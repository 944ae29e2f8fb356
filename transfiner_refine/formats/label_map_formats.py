"""The formats of label maps, a row each; a new one is another row here and its name in the registry.

Pascal VOC: a palette PNG an image, an index an object, 255 ("void") around each. Give ``SegmentationObject``, or
the folder above it: then class maps follow their objects.

    SegmentationObject/2007_000032.png     SegmentationClass/2007_000032.png     JPEGImages/2007_000032.jpg

DAVIS: a folder a video, a palette PNG a frame, an index an object in all its frames. Where 255 occurs (YouTube-VOS,
copies of VOC) it is void.

    Annotations/480p/bear/00000.png        JPEGImages/480p/bear/00000.jpg

Cityscapes' instance maps: 16 bits, label × 1000 + number for instances, bare labels elsewhere.

    gtFine/val/frankfurt/frankfurt_000000_000294_gtFine_instanceIds.png
    leftImg8bit/val/frankfurt/frankfurt_000000_000294_leftImg8bit.png

A pixel that an instance gives up must become something there: it gets the nearest label that is neither an instance
nor a group nor of the camera, for outlines move by a few pixels. Label 0 would ring every refined object with pixels
that evaluation ignores. Other files (``labelIds``, ``color``, ``polygons``) are copied, and do not follow.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from transfiner_refine.formats.folders import first_files
from transfiner_refine.formats.label_map_folders import VOID, LabelMapFormat, format_of
from transfiner_refine.formats.png import DAVIS_PALETTE, VOC_PALETTE, palette_of

# the names by label id; -1 is Cityscapes' license plate
_NAMES = (
    "unlabeled,ego vehicle,rectification border,out of roi,static,dynamic,ground,road,sidewalk,parking,"
    "rail track,building,wall,fence,guard rail,bridge,tunnel,pole,polegroup,traffic light,traffic sign,"
    "vegetation,terrain,sky,person,rider,car,truck,bus,caravan,trailer,train,motorcycle,bicycle"
)
LABELS: Mapping[int, str] = dict(enumerate(_NAMES.split(",")))
THINGS = range(24, 34)  # labels with instances; a pixel that has the bare label belongs to a group of them

_OF_THE_CAMERA = (1, 2, 3)  # ego vehicle, rectification border, out of roi: no part of the scene
_IMAGE_ENDING = "_leftImg8bit"
_IDS = "_instanceIds"
_IDS_ENDING = re.compile(rf"(_gt(Fine|Coarse))?{_IDS}$")
_COMPARED_BYTES = 8 * 3  # VOC's and DAVIS' colours are the same so far, and many tools store no more
_FRAME = re.compile("[0-9]{4,}")  # names of frames


def base_of(stem: PurePosixPath) -> PurePosixPath:
    """``aachen/aachen_000000_000019`` from the stem of an image or of an instance map."""
    return stem.with_name(_IDS_ENDING.sub("", image_key(stem.name)) or stem.name)


def image_key(stem: str) -> str:
    """What of an image's stem other files of the image begin with."""
    return stem.removesuffix(_IMAGE_ENDING) or stem


def _is_voc(path: Path) -> bool:
    """A folder that has or is ``SegmentationObject``, or one of PNGs in VOC's colours."""
    if first_files(path / "SegmentationObject", ".png"):
        return True
    found = first_files(path, ".png")
    if path.name == "SegmentationObject":
        return bool(found)
    return all(file.parent == path for file in found) and all(
        palette[:_COMPARED_BYTES] == VOC_PALETTE[:_COMPARED_BYTES] for palette in _palettes(found)
    )


def _is_davis(path: Path) -> bool:
    """Folders of palette PNGs that are called as frames are: ``00000.png`` inside of a folder."""
    found = first_files(path, ".png")
    return all(file.parent != path and _FRAME.fullmatch(file.stem) for file in found) and all(
        _palettes(found)
    )


def _palettes(files: list[Path]) -> list[bytes]:
    """Those of the sound files, for a damaged one does not change what the others are; one without colours at least."""
    return [palette for file in files if (palette := palette_of(file)) is not None] or [b""]


VOC_MAPS = LabelMapFormat(
    "voc",
    _is_voc,
    ids=range(1, VOID),
    void=VOID,
    map_name="SegmentationObject/{}.png",
    map_folder="SegmentationObject",
    class_folder="SegmentationClass",
    palette=VOC_PALETTE,
)
DAVIS_MAPS = LabelMapFormat(
    "davis",
    _is_davis,
    ids=range(1, VOID),
    void=VOID,
    palette=DAVIS_PALETTE,
)
CITYSCAPES_MAPS = LabelMapFormat(
    "cityscapes-ids",
    lambda path: any(file.name.endswith(f"{_IDS}.png") for file in first_files(path, f"{_IDS}.png".lower())),
    ids=range(1000, 1 << 16),
    ids_of_a_class=1000,
    labels=LABELS,
    things=THINGS,
    fixed=(*THINGS, *_OF_THE_CAMERA),
    freed="nearest",
    ending=_IDS,
    stem=base_of,
    image_key=image_key,
    image_name="{}_leftImg8bit.png",
    map_name="{}_gtFine_instanceIds.png",
)
LABEL_MAPS = LabelMapFormat(  # never recognised: its folders are taken for "png", which looks at each file
    "label-maps", lambda _: False, ids=range(1, 1 << 16), image_name=""
)
LABEL_MAP_FORMATS = (VOC_MAPS, DAVIS_MAPS, CITYSCAPES_MAPS, LABEL_MAPS)
VOC, DAVIS, CITYSCAPES_IDS = map(format_of, LABEL_MAP_FORMATS[:3])
