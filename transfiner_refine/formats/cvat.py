"""CVAT for images 1.1: one XML file with the shapes of all images.

    <annotations><image id="0" name="street.jpg" width="640" height="480">
      <polygon label="cup" points="1.00,2.00;..." group_id="1" ...><attribute .../></polygon>
      <mask label="cup" rle="3, 4, 5" left="10" top="20" width="30" height="40" .../>
    </image></annotations>

Polygons and masks are areas; those of one label and one ``group_id`` are one instance, as in CVAT's own export to COCO.
Boxes and all other shapes pass through. The runs of a mask go along the rows of its box, background first.

A refined instance stands where its first shape stood and keeps that shape's other attributes: a mask stays a mask, and
polygons become one for each part, all in one group, with holes on bridges. Every other byte of the file stays.

Written from other formats: masks, or polygons with a tolerance. There is no place for scores and crowds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser, ParseError
from numpy.typing import NDArray

from transfiner_refine.errors import InputError, short
from transfiner_refine.formats.annotation_files import Drawn, NewInstance, Picture, Tool, areas_of, format_of
from transfiner_refine.formats.areas import Area, pasted, points_of
from transfiner_refine.formats.folders import start_of
from transfiner_refine.formats.json_stream import edited, whole
from transfiner_refine.formats.polygons import fill_polygons, joined, polygons_of
from transfiner_refine.masks import MAX_PIXELS, MaskWindow

_LOOKED_AT = 1 << 16  # bytes; CVAT writes what it knows of the task before the images
_ATTRIBUTE = re.compile(r"""\s+([^\s=]+)\s*=\s*("[^"]*"|'[^']*')""", re.ASCII)
_START_TAG = re.compile(rf"<[^\s/>]+(?:{_ATTRIBUTE.pattern})*", re.ASCII)
_GROUP = re.compile(r"""\sgroup_id\s*=\s*["'](\d{1,9})["']""", re.ASCII)
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class _Reader:
    """What expat calls; notes where shapes begin and end, in bytes."""

    def __init__(self) -> None:
        self.parser = DefusedXMLParser(target=self, encoding="utf-8", forbid_dtd=True)
        self.images: list[tuple[Mapping[str, str], list[_Shape]]] = []
        self._path: list[str] = []

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        self._path.append(tag)
        if self._path == ["annotations", "image"]:
            self.images.append((attributes, []))
        elif self._path[:2] == ["annotations", "track"]:
            remedy = "export the task as CVAT for images"
            raise InputError("is of CVAT for video, whose tracks are no masks of images", remedy=remedy)
        elif self._path[:-1] == ["annotations", "image"] and tag in ("polygon", "mask"):
            self.images[-1][1].append(_Shape(tag, attributes, self.parser.parser.CurrentByteIndex))

    def end(self, tag: str) -> None:
        if self._path[:-1] == ["annotations", "image"] and tag in ("polygon", "mask"):
            self.images[-1][1][-1].end = self.parser.parser.CurrentByteIndex
        self._path.pop()

    def close(self) -> None:
        if not self.images:
            raise InputError("has no images", remedy="export the task as CVAT for images")


class _Shape:
    def __init__(self, tag: str, attributes: Mapping[str, str], begin: int) -> None:
        self.tag, self.attributes, self.begin, self.end = tag, attributes, begin, begin

    @property
    def group(self) -> int | None:
        return whole(self.attributes.get("group_id"))


class _Cvat(Tool):
    name = "cvat"
    ending = ".xml"
    one_file = True
    holds_crowds = False

    def recognise(self, path: Path) -> bool:
        start = start_of(path, _LOOKED_AT).removeprefix(b"\xef\xbb\xbf").lstrip()
        return start.startswith(b"<") and b"<annotations" in start and b"<annotation>" not in start

    def pictures(self, text: str) -> list[Picture]:
        reader, data = _Reader(), text.encode()
        try:
            reader.parser.feed(data)
            reader.parser.close()
        except (ParseError, DefusedXmlException, ValueError) as error:
            raise InputError(f"is no XML that can be read ({error})", remedy="export it again") from None
        found = []
        for number, (image, shapes) in enumerate(reader.images):
            height, width = whole(image.get("height")) or 0, whole(image.get("width")) or 0
            size = (height, width) if height > 0 and width > 0 else None
            found.append(Picture(image.get("name", f"image {number}"), size, _instances_of(shapes, data)))
        return found

    def rewritten(self, text: str, refined: Sequence[tuple[Drawn, MaskWindow]], tolerance: float) -> str:
        letters = text.encode().decode("latin-1")  # a letter for each byte, so that places agree
        edits = []
        for group, (drawn, mask) in enumerate(refined, max(map(int, _GROUP.findall(text)), default=0) + 1):
            (begin, end), *others = drawn.places
            if mask.area == 0:
                continue
            edits.append((begin, end, _element(letters[begin:end], mask, tolerance, group)))
            for begin, end in others:
                while letters[begin - 1] in " \t\r\n":
                    begin -= 1
                edits.append((begin, end, ""))
        return edited(letters, sorted(edits)).encode("latin-1").decode()

    def new_image(
        self, name: str, size: tuple[int, int], found: Sequence[NewInstance], tolerance: float
    ) -> str:
        lines = [f'name={quoteattr(name)} width="{size[1]}" height="{size[0]}">']
        for group, instance in enumerate(found, 1):
            tag = "polygon" if tolerance else "mask"
            start = f'<{tag} label={quoteattr(instance.label)} source="auto" occluded="0" z_order="0"/>'
            lines.append("    " + _element(start, instance.mask, tolerance, group, "\n    "))
        return "\n".join([*lines, "  </image>"])

    def new_text(self, images: Sequence[str], labels: Sequence[str]) -> str:
        named = "".join(f"<label><name>{escape(label)}</name></label>" for label in labels)
        numbered = [f'  <image id="{number}" {image}\n' for number, image in enumerate(images)]
        return (
            f'<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n'
            f"  <meta><task><labels>{named}</labels></task></meta>\n{''.join(numbered)}</annotations>\n"
        )

    def check_text(self, text: str) -> None:
        if found := _NO_XML.search(text):
            reason = f"has {found[0]!r}, which no XML can hold"
            raise InputError(f"{short(text)} {reason}", remedy="rename it")


def _instances_of(shapes: Sequence[_Shape], data: bytes) -> list[Drawn]:
    groups: dict[tuple[str, str, int], list[int]] = {}
    for number, shape in enumerate(shapes):
        key = ("one", number) if shape.group is None or shape.group == 0 else ("group", shape.group)
        groups.setdefault((shape.attributes.get("label", ""), *key), []).append(number)
    instances = []
    for (label, *_), numbers in groups.items():
        areas = areas_of(_area, *(shapes[number] for number in numbers))
        places = []
        for shape in (shapes[number] for number in numbers):
            closes = data.startswith(f"</{shape.tag}".encode(), shape.end)
            places.append((shape.begin, data.index(b">", shape.end) + 1 if closes else shape.end))
        first = shapes[numbers[0]]
        instances.append(Drawn(f"{first.tag} {numbers[0]} ({label})", places, areas, label or None))
    return instances


def _area(shape: _Shape) -> Area:
    if shape.tag == "polygon":
        texts = [point.split(",") for point in shape.attributes.get("points", "").split(";")]
        try:
            points = [[float(number) for number in text] for text in texts]
        except ValueError:
            raise InputError("its points are no numbers", remedy="draw the shape again") from None
        return partial(fill_polygons, [points_of(points, 3, "polygon")])
    names = ("left", "top", "width", "height")
    left, top, width, height = numbers = [whole(shape.attributes.get(name, "")) for name in names]
    runs = [whole(run.strip()) for run in shape.attributes.get("rle", "").split(",")]
    if left is None or top is None or width is None or height is None or None in runs:
        raise InputError(
            f"left, top, width, height and rle are {numbers} and {short(runs)}", remedy="draw it again"
        )
    lengths = np.array(runs, np.int64)
    total = sum(lengths.tolist())
    if (
        min(width, height) < 1
        or width * height > MAX_PIXELS
        or (lengths < 0).any()
        or total != width * height
    ):
        reason = f"its runs are of {total} pixels, and its box of {width}×{height}"
        raise InputError(reason, remedy="draw the shape again")
    return partial(_runs_drawn, lengths, (height, width), np.array((left, top), np.float64))


def _runs_drawn(
    lengths: NDArray[np.int64], shape: tuple[int, int], corner: NDArray[np.float64], size: tuple[int, int]
) -> MaskWindow:
    if shape[0] > size[0] + 1 or shape[1] > size[1] + 1:
        raise InputError(f"its box is {shape[1]}×{shape[0]}, larger than its {size[1]}×{size[0]} image")
    values = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(shape)
    return pasted(values, corner, size)


def _element(text: str, mask: MaskWindow, tolerance: float, group: int, between: str = "") -> str:
    """The text of a shape with another mask; several parts become several shapes of one group."""
    found = _START_TAG.match(text)
    assert found is not None  # expat has read it
    start, rest = found[0], text[found.end() :]
    if start.startswith("<mask"):
        mask = mask.tight()
        flat = mask.foreground.ravel()
        edges = np.flatnonzero(np.diff(flat, prepend=False)).tolist()
        runs = np.diff([0, *edges, flat.size]).tolist()
        height, width = mask.values.shape
        values = {
            "rle": ", ".join(map(str, runs)),
            "left": mask.x,
            "top": mask.y,
            "width": width,
            "height": height,
        }
        return _with(start, values) + rest
    parts = polygons_of(mask, tolerance)
    has_group = dict(_ATTRIBUTE.findall(start)).get("group_id", '""')[1:-1] not in ("", "0")
    group_id: dict[str, object] = {} if has_group or len(parts) < 2 else {"group_id": group}
    rings = (";".join(f"{x:.2f},{y:.2f}" for x, y in joined(part).tolist()) for part in parts)
    return between.join(_with(start, {"points": ring} | group_id) + rest for ring in rings)


def _with(start: str, values: Mapping[str, object]) -> str:
    """A start tag, without its end, with other values of attributes."""
    missing = dict(values)

    def changed(found: re.Match[str]) -> str:
        if found[1] not in missing:
            return found[0]
        return f'{found[0][: found.start(2) - found.start()]}"{missing.pop(found[1])}"'

    text = _ATTRIBUTE.sub(changed, start)
    return text + "".join(f' {name}="{value}"' for name, value in missing.items())


CVAT = format_of(_Cvat())
