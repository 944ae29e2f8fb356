"""Which photo a COCO image id is, and what a file says of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from transfiner_refine.errors import InputError
from transfiner_refine.formats.json_scan import JsonValues, Scanner
from transfiner_refine.formats.text_file import TextFile
from transfiner_refine.images import ImageFolder

__all__ = [
    "ImageId",
    "ImageList",
    "Listing",
    "Photo",
    "check_any_found",
    "find_photo",
    "image_id_of",
    "pass_over",
    "read_listing",
    "scan_listing",
]

ImageId = int | str


@dataclass(frozen=True)
class Photo:
    """An image as far as it is known.

    Attributes:
        name: what to call it in messages.
        path: its file, None where no folder of photos was given.
        file_name: its name in the source or the folder, None where only its id is known.
        size: (height, width) that the source states, None where it states none.
    """

    name: str
    path: Path | None
    file_name: str | None
    size: tuple[int, int] | None


class ImageList:
    """The ``images`` of an annotation file: held as places in the text, parsed when asked for.

    Attributes:
        file: the annotation file.
    """

    def __init__(self, text: TextFile) -> None:
        self.file = text.path
        self._entries = JsonValues(text)
        self._places: dict[ImageId, int] = {}
        self._repeated: set[ImageId] = set()

    def add(self, entry: Any, start: int, end: int) -> None:
        """Takes one entry, at these bytes of the text; one without an id is no image."""
        image_id = image_id_of(entry, "id")
        if image_id is None:
            return
        if image_id in self._places:
            self._repeated.add(image_id)
        self._places[image_id] = len(self._entries)
        self._entries.add(start, end)

    def __iter__(self) -> Iterator[ImageId]:
        """The ids in the order of the file."""
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, image_id: ImageId) -> bool:
        return image_id in self._places

    def entry(self, image_id: ImageId) -> dict[str, Any]:
        """What the file says of an image.

        Raises:
            InputError: nothing, or it says so twice.
        """
        place = self._places.get(image_id)
        if place is None or image_id in self._repeated:
            raise InputError(
                f"image id {image_id} is {'not among the images' if place is None else 'listed twice'}",
                file=self.file,
                remedy="check that masks and images belong together"
                if place is None
                else "keep one of the two",
            )
        entry = self._entries.value(place)
        assert isinstance(entry, dict)
        return entry


@dataclass
class Listing:
    """What an annotation file says beside its annotations.

    Attributes:
        images: its images.
        categories: names by id.
        stuff: ids of categories that are no things (``isthing`` 0).
    """

    images: ImageList
    categories: dict[int, str] = field(default_factory=dict)
    stuff: set[int] = field(default_factory=set)


def scan_listing(listing: Listing, key: str, scanner: Scanner) -> bool:
    """Takes the value of a top-level key into the listing if it belongs there; False if it was not read.

    Raises:
        InputError: the text is not valid JSON.
    """
    if key not in ("images", "categories") or scanner.peek() != "[":
        return False
    for entry in scanner.elements():
        if key == "images":
            listing.images.add(entry, scanner.start, scanner.end)
        elif isinstance(entry, dict) and type(entry.get("id")) is int:
            if isinstance(entry.get("name"), str):
                listing.categories[entry["id"]] = entry["name"]
            if entry.get("isthing") in (0, False):
                listing.stuff.add(entry["id"])
    return True


def read_listing(path: Path) -> Listing:
    """The images and categories of an annotation file, whose annotations are passed over.

    Raises:
        InputError: it cannot be read, or is no annotation file.
    """
    text = TextFile(path)
    scanner, listing = Scanner(text), Listing(ImageList(text))
    found = False
    if scanner.peek() == "{":
        for key in scanner.members():
            read = scan_listing(listing, key, scanner)
            found |= read and key == "images"
            if not read:
                pass_over(scanner)
        scanner.finish()
    if not found:
        raise InputError("has no list of images", file=path, remedy="give a COCO annotation file")
    return listing


def pass_over(scanner: Scanner) -> None:
    """Walks over the value that comes next, element by element where it is a list.

    Raises:
        InputError: the text is not valid JSON.
    """
    if scanner.peek() == "[":
        for _ in scanner.elements():
            pass
    else:
        scanner.value()


def find_photo(
    image_id: ImageId, listing: Listing | None, own_name: str | None, folder: ImageFolder | None
) -> Photo:
    """The photo of an image id.

    Args:
        image_id: the id.
        listing: what an annotation file says; None without one.
        own_name: the file name that the records themselves state, looked at without ``listing``.
        folder: the photos; None where they do not matter.

    Raises:
        InputError: the listing does not have the id, or the photo is not in the folder.
    """
    if listing is None:
        name = own_name or f"image id {image_id}"
        if folder is None:
            return Photo(name, None, own_name, None)
        path = folder.with_id(image_id) if own_name is None else folder.named(own_name)
        return Photo(name, path, own_name or path.relative_to(folder.root).as_posix(), None)
    entry = listing.images.entry(image_id)
    file_name = _file_name(entry)
    name = file_name or f"image id {image_id}"
    if folder is None:
        return Photo(name, None, file_name, _stated_size(entry))
    path = folder.with_id(image_id) if file_name is None else folder.named(file_name)
    return Photo(name, path, file_name or path.relative_to(folder.root).as_posix(), _stated_size(entry))


def check_any_found(image_ids: Iterable[ImageId], find: Callable[[ImageId], Photo]) -> None:
    """Looks for photos until one is found: with none at all, something is wrong with the input as a whole.

    Raises:
        InputError: there are images, and ``find`` finds none of them.
    """
    first, count = None, 0
    for image_id in image_ids:
        try:
            find(image_id)
        except InputError as error:
            first, count = first or error, count + 1
        else:
            return
    if first is not None:
        reason = first.reason if count == 1 else f"none of the {count} images was found; {first.reason}"
        raise InputError(reason, file=first.file, record=first.record, remedy=first.remedy)


def image_id_of(record: Any, key: str) -> ImageId | None:
    """The image id under a key of a record; None where there is none or it is no number and no text."""
    value = record.get(key) if isinstance(record, dict) else None
    return value if type(value) is int or type(value) is str else None


def _file_name(entry: dict[str, Any]) -> str | None:
    """The photo's name; LVIS v1 has ``coco_url`` instead, whose last parts are COCO's folder and file."""
    file_name, url = entry.get("file_name"), entry.get("coco_url")
    if isinstance(file_name, str) and file_name:
        return file_name
    return "/".join(PurePosixPath(url).parts[-2:]) if isinstance(url, str) and url else None


def _stated_size(entry: dict[str, Any]) -> tuple[int, int] | None:
    height, width = entry.get("height"), entry.get("width")
    return (
        (height, width) if type(height) is int and type(width) is int and height > 0 and width > 0 else None
    )
