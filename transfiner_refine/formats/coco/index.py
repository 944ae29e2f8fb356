"""One walk over a COCO file: where each record is, and which image it belongs to."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from itertools import chain
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.errors import InputError
from transfiner_refine.formats.coco.photos import (
    ImageId,
    ImageList,
    Listing,
    image_id_of,
    pass_over,
    scan_listing,
)
from transfiner_refine.formats.json_scan import MAX_VALUE, JsonValues, Scanner, parse
from transfiner_refine.formats.text_file import TextFile

__all__ = ["Layout", "RecordIndex", "index_records"]

Layout = Literal["results", "lines", "annotations"]

_NO_IMAGE = -1


class RecordIndex:
    """The records of a file, by their place in it and by image; none of them is kept parsed.

    Attributes:
        values: the records in the order of the file.
        image_ids: the images that have records, in the order in which they first occur.
        own_names: file names that results records state for their images, by image id.
        line_numbers: for JSON Lines the line of each record, counted from 1; else empty.
    """

    def __init__(self, text: TextFile) -> None:
        self.values = JsonValues(text)
        self.image_ids: dict[ImageId, int] = {}
        self.own_names: dict[ImageId, str] = {}
        self.line_numbers = array("q")
        self._image_of = array("q")
        self._order: NDArray[np.int64] | None = None
        self._bounds: NDArray[np.int64] | None = None

    def add(self, record: Any, start: int, end: int) -> None:
        """Takes the next record, at these bytes of the text."""
        self.values.add(start, end)
        image_id = image_id_of(record, "image_id")
        if image_id is None:
            self._image_of.append(_NO_IMAGE)
            return
        self._image_of.append(self.image_ids.setdefault(image_id, len(self.image_ids)))
        file_name = record.get("file_name")
        if isinstance(file_name, str) and file_name:
            self.own_names.setdefault(image_id, file_name)

    def of_image(self, image_id: ImageId | None) -> list[int]:
        """The records of an image in the order of the file; for None those of no image at all."""
        if self._order is None or self._bounds is None:
            images = np.frombuffer(self._image_of, np.int64)
            self._order = np.argsort(images, kind="stable")
            self._bounds = np.searchsorted(images[self._order], np.arange(len(self.image_ids) + 1))
        image = _NO_IMAGE if image_id is None else self.image_ids.get(image_id)
        if image is None:
            return []
        first = 0 if image == _NO_IMAGE else self._bounds[image]
        found: list[int] = self._order[first : self._bounds[image + 1]].tolist()
        return found


def index_records(text: TextFile, layout: Layout) -> tuple[RecordIndex, Listing | None]:
    """Walks over the file.

    Args:
        text: the file.
        layout: a list of results, one result a line, or an annotation file.

    Returns:
        The records, and for an annotation file what else it says.

    Raises:
        InputError: the text is not valid JSON, or not of this layout.
    """
    index, listing = RecordIndex(text), None
    if layout == "lines":
        for record, start, end, number in _lines(text):
            index.add(record, start, end)
            index.line_numbers.append(number)
    elif layout == "results":
        scanner = Scanner(text)
        if scanner.peek() != "[":
            raise InputError(
                "is no list of results", file=text.path, remedy="leave --from out, or correct it"
            )
        for record in scanner.elements():
            index.add(record, scanner.start, scanner.end)
        scanner.finish()
    else:
        listing = _index_annotations(text, index)
    return index, listing


def _index_annotations(text: TextFile, index: RecordIndex) -> Listing:
    scanner, listing = Scanner(text), Listing(ImageList(text))
    found = set[str]()
    if scanner.peek() == "{":
        for key in scanner.members():
            is_list = scanner.peek() == "["
            if key == "annotations" and is_list:
                for record in scanner.elements():
                    index.add(record, scanner.start, scanner.end)
            elif not scan_listing(listing, key, scanner):
                pass_over(scanner)
            found |= {key} if is_list else set()
        scanner.finish()
    if "images" not in found:
        raise InputError(
            "is no COCO file: neither a list of results nor an object with images and annotations",
            file=text.path,
            remedy="give COCO results or annotations",
        )
    if "annotations" not in found:
        raise InputError("has no list of annotations", file=text.path, remedy="give results or annotations")
    return listing


def _lines(text: TextFile) -> Iterator[tuple[Any, int, int, int]]:
    """Each line that is not blank: its value (None if it is not valid JSON), start, end and number."""
    rest, at, number = b"", 0, 0
    for piece in chain(text.pieces(), (b"\n",)):
        lines = (rest + piece).split(b"\n")
        rest = lines.pop()
        if len(rest) > MAX_VALUE:
            where = f"line {number + len(lines) + 1}"
            raise InputError(f"is longer than {MAX_VALUE >> 20} MiB", file=text.path, record=where)
        for line in lines:
            number += 1
            if line.strip():
                yield _parsed(line), at, at + len(line.rstrip()), number
            at += len(line) + 1


def _parsed(line: bytes) -> Any:
    try:
        return parse(line.decode())
    except (InputError, UnicodeDecodeError):  # said when the records are read
        return None
