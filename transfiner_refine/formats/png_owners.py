"""Which image a mask PNG belongs to, by its name and place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from transfiner_refine.errors import InputError
from transfiner_refine.formats.folders import ImageTree
from transfiner_refine.formats.png_pixels import kind_of, read_pixels
from transfiner_refine.formats.records import PngKind

__all__ = ["Owner", "owner_by_name", "owner_by_photos"]


@dataclass(frozen=True)
class Owner:
    """The image of a mask PNG.

    Attributes:
        image: the photo relative to the folder of photos; without photos, its name without ending.
        alone: the file is called as the image is, so it may be a map.
    """

    image: PurePosixPath
    alone: bool


def owner_by_photos(name: PurePosixPath, photos: ImageTree) -> Owner | None:
    """The photo of ``IMAGE_STEM/*.png``, ``IMAGE_STEM.png`` or ``IMAGE_STEM_*.png``; None if there is none.

    Args:
        name: the mask, relative to its folder.
        photos: where to look.

    Raises:
        InputError: several photos fit equally well.
    """
    if name.parent.name and (photo := photos.find(name.parent)) is not None:
        return Owner(photo, alone=False)
    stem, alone = name.stem, True
    while True:
        if (photo := photos.find(name.with_name(stem))) is not None:
            return Owner(photo, alone)
        if not stem.rpartition("_")[0]:
            return None
        stem, alone = stem.rpartition("_")[0], False


def owner_by_name(folder: Path, name: PurePosixPath, png_kind: PngKind | str, max_pixels: int) -> Owner:
    """The image of a mask where there are no photos to go by.

    Raises:
        InputError: the name fits two readings, or the file is damaged.
    """
    if png_kind == "id-map":
        return Owner(name.with_suffix(""), alone=True)
    if name.parent.name:
        return Owner(name.parent, alone=False)
    if "_" in name.stem and (
        png_kind == "binary" or kind_of(read_pixels(folder / name, max_pixels)) == "binary"
    ):
        raise InputError(
            f"could be the mask of {name.stem} or one of several of {name.stem.rpartition('_')[0]}",
            file=folder / name,
            remedy="give the folder of the photos with --images",
        )
    return Owner(name.with_suffix(""), alone=True)
