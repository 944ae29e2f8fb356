"""The formats, and opening masks without being told which of them it is."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections import Counter
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Literal

from transfiner_refine.errors import InputError
from transfiner_refine.formats.cityscapes_results import CITYSCAPES_RESULTS
from transfiner_refine.formats.coco_write import COCO_ANNOTATIONS, COCO_LINES, COCO_RESULTS
from transfiner_refine.formats.cvat import CVAT
from transfiner_refine.formats.folders import read_file
from transfiner_refine.formats.image_json import MMDETECTION, SAM, SINGLE_FILES
from transfiner_refine.formats.label_map_formats import CITYSCAPES_IDS, DAVIS, VOC
from transfiner_refine.formats.label_studio import LABEL_STUDIO
from transfiner_refine.formats.labelme import LABELME
from transfiner_refine.formats.mask_files import PLAIN_MAPS, PNG_FOLDER
from transfiner_refine.formats.mask_image import MASK_IMAGE
from transfiner_refine.formats.numpy_files import NUMPY, NUMPY_FILE
from transfiner_refine.formats.panoptic import COCO_PANOPTIC
from transfiner_refine.formats.records import Format, OpenOptions, PngKind, Polygons, Source
from transfiner_refine.formats.supervisely import SUPERVISELY
from transfiner_refine.formats.via import VIA, VIA_CSV
from transfiner_refine.formats.video_folders import SAM2_VIDEO
from transfiner_refine.formats.yolo import YOLO_SEG
from transfiner_refine.image_folders import files_in
from transfiner_refine.images import MAX_IMAGE_PIXELS, SUFFIXES, Orientation
from transfiner_refine.remote import place
from transfiner_refine.renamed import current

# in the order in which they are tried: what looks for more comes before what takes nearly anything
FORMATS: tuple[Format, ...] = (
    MASK_IMAGE,
    CVAT,
    LABEL_STUDIO,
    VIA,
    VIA_CSV,
    COCO_RESULTS,
    COCO_LINES,
    COCO_PANOPTIC,
    COCO_ANNOTATIONS,
    SAM,
    MMDETECTION,
    CITYSCAPES_RESULTS,
    CITYSCAPES_IDS,
    YOLO_SEG,
    SUPERVISELY,
    LABELME,
    NUMPY_FILE,
    NUMPY,
    VOC,
    SAM2_VIDEO,
    DAVIS,
    PLAIN_MAPS,
    PNG_FOLDER,
)


_KINDS_LISTED = 5
_NEAREST = {
    ".json": "labelme",
    ".txt": "yolo-seg",
    ".npz": "numpy",
    ".npy": "numpy",
    **dict.fromkeys(SUFFIXES, "png"),
}

_RENAMED = {
    "id-map": "label-map",
    "id-maps": "label-maps",
}  # old: new; the old names work until the next version


def format_named(name: str) -> Format:
    """The format of a name; raises InputError where there is none."""
    name = current(name, _RENAMED)
    for entry in FORMATS:
        if entry.name == name:
            return entry
    names = ", ".join(entry.name for entry in FORMATS)
    raise InputError(f"there is no format {name!r}", remedy=f"give one of {names}")


def recognise(path: str | Path, format: str = "auto") -> Format:  # noqa: A002  the option's name
    """The format of a file or folder, told by what is in it; one that is given by its name is not questioned.

    Raises:
        InputError: nothing there, an unknown format, or no format of that name.
    """
    path = Path(path)
    if format != "auto":
        named = format_named(format)
        return next((each for each in SINGLE_FILES if each.name == named.name and path.is_file()), named)
    for entry in (*SINGLE_FILES, *FORMATS):
        if path.is_dir() == entry.is_folder and entry.recognise(path):
            return entry
    if path.is_dir():
        raise _unknown_folder(path)
    remedy = "give --from if you know what it is"
    start = read_file(path, "check --masks", 1024)
    if start.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")) or b"/data.pkl" in start:
        remedy = "give JSON; detectron2 writes coco_instances_results.json beside instances_predictions.pth"
        raise InputError("is a pickle, which can run any program when it is read", file=path, remedy=remedy)
    is_empty = not start.removeprefix(BOM_UTF8).strip()
    raise InputError("is empty" if is_empty else "is in no known format", file=path, remedy=remedy)


def format_for(output: Path, to: str | None, read_as: Format) -> Format:
    """The format an output is written in: ``to``; else what its name says; else that of the masks.

    Raises InputError where the name of the output contradicts the format.
    """
    target = read_as if to is None else format_named(to)
    if to is not None and target.is_folder:
        return target  # a folder may be called anything
    named = {suffix: entry for entry in reversed(FORMATS) for suffix in entry.suffixes if not entry.is_folder}
    known = (*named, *SUFFIXES, ".txt")
    suffix = PurePath(output.name.lower().removesuffix(".gz")).suffix
    suffix = suffix if suffix in known else ""
    allowed = () if target.is_folder else target.suffixes
    if to is None and suffix in named and suffix not in allowed:
        return COCO_ANNOTATIONS if suffix == ".json" else named[suffix]
    if (suffix and suffix not in allowed) or (target is MASK_IMAGE and not suffix):
        kind = "a folder" if target.is_folder else f"a file whose name ends in {' or '.join(allowed)}"
        raise InputError(
            f"{target.name} is {kind}", file=output, remedy="give another --output, or another --to"
        )
    return target


def _unknown_folder(folder: Path) -> InputError:
    """What there is in a folder of no known format, and what to do with it."""
    names = files_in(folder, remedy="give the folder of the masks")
    kinds = Counter(name.suffix.lower() or "without ending" for name in names).most_common()
    if not kinds:
        return InputError("is empty", file=folder, remedy="give the folder of the masks")
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds[:_KINDS_LISTED])
    more = f" and {len(kinds) - _KINDS_LISTED} other kinds" if len(kinds) > _KINDS_LISTED else ""
    remedy = "give COCO JSON or a folder of mask images"
    for path in (
        folder / name for name in names if name.suffix.lower() in (".json", ".gz", ".jsonl", ".xml")
    ):
        with suppress(InputError):
            remedy = f"give the file itself, which is {recognise(path).name}: --masks {path}"
            break
    else:
        if nearest := next((_NEAREST[kind] for kind, _ in kinds if kind in _NEAREST), None):
            remedy = f"the nearest is {nearest}: give --from {nearest} if it is that"
    return InputError(f"holds no masks of a known format ({listed}{more})", file=folder, remedy=remedy)


def open_source(
    masks: str | Path,
    images: str | Path | None = None,
    *,
    format: str = "auto",  # noqa: A002  the option's name
    image_info: str | Path | None = None,
    png_kind: PngKind | Literal["auto"] = "auto",
    class_names: str | Path | None = None,
    fit_masks: bool = False,
    background: int | Literal["none"] = 0,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
    polygon_tolerance: float = 0,
    polygons: Polygons = "keep",
    orientation: Orientation = "auto",
    refine_crowds: bool = False,
) -> Source:
    """Opens masks of any known format.

    Args:
        masks: a file or a folder.
        images: the folder of the images; None where only the masks matter, as in converting.
        format: a format's name, "auto" to tell it by what is in the file or folder.
        image_info: for COCO results: an annotation file that says which image id is which image.
        png_kind: for plain PNG folders: what the files are, where their pixels should not decide.
        class_names: a text file with one class name a line, for formats that number their classes.
        fit_masks: masks of image files and of NumPy arrays that have another size than their image are stretched
            over it, if they have its shape.
        background: the value of label maps that is no instance; "none" where every value is one.
        max_image_pixels: mask images with more pixels are not decoded.
        polygon_tolerance: pixels that lines of written polygons may be off; 0 writes masks to the pixel.
        polygons: "keep" writes refined polygons of COCO records as polygons, "rle" as RLE.
        orientation: "upright" (by EXIF) or "stored": how images are turned, where the size of their masks misleads.
        refine_crowds: take COCO's crowd regions for instances.

    Raises:
        InputError: nothing there, an unknown format, or an input that cannot be used at all. Single bad
            records do not raise; they come out of the iteration as ``RecordFault``.
    """
    options = OpenOptions(
        None if images is None else place(images),
        None if image_info is None else Path(image_info),
        current(png_kind, _RENAMED),  # type: ignore[arg-type]
        None if class_names is None else Path(class_names),
        max_image_pixels,
        polygon_tolerance,
        polygons,
        fit_masks,
        None if background == "none" else background,
        orientation=orientation,
        refine_crowds=refine_crowds,
    )
    return recognise(masks, format).open(Path(masks), options)
