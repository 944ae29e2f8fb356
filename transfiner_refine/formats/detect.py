"""Opening masks without being told their format."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from transfiner_refine.formats.coco import CocoSource
from transfiner_refine.formats.png import PngFolderSource
from transfiner_refine.formats.png_pixels import PngKind
from transfiner_refine.formats.source import Source
from transfiner_refine.types import InputError

__all__ = ["open_source"]

_JSON_STARTS = (b"[", b"{")


def open_source(
    masks: str | Path,
    images: str | Path,
    *,
    image_info: str | Path | None = None,
    png_kind: PngKind | Literal["auto"] = "auto",
) -> Source:
    """Opens masks of any known format, which is told by what is in the file or folder and not by its name.

    Args:
        masks: COCO results or annotations (JSON), or a folder of mask PNGs.
        images: the folder of the photos.
        image_info: for COCO results: an annotation file that says which image id is which photo.
        png_kind: for PNG folders: what the files are, where their pixels should not decide.

    Returns:
        The source, to iterate for its images and to write the refined masks with.

    Raises:
        InputError: nothing there, an unknown format, or an input that cannot be used at all. Single bad
            records do not raise; they come out of the iteration as ``RecordFault``.
    """
    masks, images = Path(masks), Path(images)
    if masks.is_dir():
        if image_info is not None:
            raise InputError(
                "PNG masks find their photos by name", file=masks, remedy="leave --image-info out"
            )
        return PngFolderSource(masks, images, png_kind=png_kind)
    try:
        with masks.open("rb") as file:
            start = file.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=masks, remedy="check --masks") from error
    if start in _JSON_STARTS:
        return CocoSource(masks, images, image_info=None if image_info is None else Path(image_info))
    what = "is empty" if not start else "is in no known format"
    raise InputError(what, file=masks, remedy="give COCO JSON or a folder of PNG masks")
