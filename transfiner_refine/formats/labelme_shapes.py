"""Shapes of labelme: which ones are areas, their pixels, and masks as shapes again."""

from __future__ import annotations

import base64
import binascii
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from transfiner_refine.errors import InputError
from transfiner_refine.formats.polygons import fill_polygons, inset_points, outlines
from transfiner_refine.masks import MAX_PIXELS, MaskWindow, union

__all__ = ["Shape", "ShapesMask", "is_area", "parse_shape", "shapes_of"]

_AREAS = ("polygon", "rectangle", "oriented_rectangle", "circle", "mask")
_FEWEST_POINTS = {"polygon": 3, "rectangle": 2, "oriented_rectangle": 4, "circle": 2, "mask": 2}


@dataclass(frozen=True)
class Shape:
    """One area that somebody drew.

    Attributes:
        kind: labelme's ``shape_type``.
        points: [points, xy], pixels.
        mask: base64 of a PNG, for kind "mask".
    """

    kind: str
    points: NDArray[np.float64]
    mask: str | None = None


@dataclass(frozen=True)
class ShapesMask:
    """The areas of one instance as one mask.

    Attributes:
        shapes: at least one.
        size: (height, width) of the photo, pixels.
        file: for messages.
        record: for messages.
    """

    shapes: tuple[Shape, ...]
    size: tuple[int, int]
    file: Path
    record: str

    def decode(self) -> MaskWindow:
        """All pixels that are in any of the shapes, inside their bounding box, bool.

        Raises:
            InputError: a shape cannot be drawn.
        """
        height, width = self.size
        try:
            if height * width > MAX_PIXELS:
                raise InputError(f"the image's size is {height}×{width} (height × width)")
            return union([_drawn(shape, self.size) for shape in self.shapes], self.size)
        except InputError as error:
            raise InputError(error.reason, file=self.file, record=self.record, remedy=error.remedy) from error


def is_area(shape: object) -> bool:
    """Whether a record of labelme is a shape with pixels; points and lines have none."""
    return isinstance(shape, dict) and _kind(shape) in _AREAS


def parse_shape(shape: dict[str, Any]) -> Shape:
    """A record of labelme, checked.

    Raises:
        InputError: points are missing or no numbers, or a mask has no picture.
    """
    kind, points, mask = _kind(shape), shape.get("points"), shape.get("mask")
    if (
        not isinstance(points, list)
        or len(points) < _FEWEST_POINTS[kind]
        or not all(isinstance(point, list) and len(point) == 2 for point in points)
        or any(type(number) not in (int, float) for point in points for number in point)
    ):
        raise InputError(
            f"a {kind} needs {_FEWEST_POINTS[kind]} points or more, [x, y] each",
            remedy="draw the shape again",
        )
    if kind == "mask" and not isinstance(mask, str):
        raise InputError("a shape of type mask has no mask", remedy="draw the shape again")
    try:
        corners = np.array(points, np.float64)
    except OverflowError:
        raise InputError("has a coordinate without end", remedy="draw the shape again") from None
    if not np.isfinite(corners).all():
        raise InputError("has a coordinate that is not a finite number", remedy="draw the shape again")
    return Shape(kind, corners, mask if kind == "mask" else None)


def shapes_of(
    mask: MaskWindow, like: dict[str, Any], group_id: int | None, free_group_id: int
) -> list[dict[str, Any]]:
    """Records of labelme for a mask: a polygon each part, or one mask where polygons cannot hold it.

    Polygons have no holes, so a mask with any becomes ``shape_type`` "mask" as a whole. Lines run a quarter of a pixel
    inside the edges of the pixels, so that labelme's own export paints these pixels and no more.

    Args:
        mask: bool, with at least one pixel.
        like: a record whose other keys are kept (label, flags, description, and those of other tools).
        group_id: the instance's group, None for none.
        free_group_id: the group for several parts that had none.
    """
    loops = outlines(mask.tight())
    if any(loop.is_hole for loop in loops):
        return [_record(like, "mask", *_picture(mask.tight()), group_id)]
    if len(loops) > 1 and group_id is None:
        group_id = free_group_id
    return [
        _record(like, "polygon", [list(point) for point in inset_points(loop)], None, group_id)
        for loop in loops
    ]


def _record(
    like: dict[str, Any], kind: str, points: list[list[float]], picture: str | None, group_id: int | None
) -> dict[str, Any]:
    record = {**like, "points": points, "group_id": group_id, "shape_type": kind}
    if picture is not None or "mask" in record:
        record["mask"] = picture
    return record


def _kind(shape: dict[str, Any]) -> str:
    kind = shape.get("shape_type", "polygon")  # the first versions had polygons only and did not say so
    return kind if isinstance(kind, str) else "polygon" if kind is None else ""


def _drawn(shape: Shape, size: tuple[int, int]) -> MaskWindow:
    if shape.kind == "mask":
        return _pasted(shape, size)
    if shape.kind == "circle":
        return _disc(shape.points, size)
    points = shape.points
    if shape.kind == "rectangle":
        (x0, y0), (x1, y1) = points[:2]
        points = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
    return fill_polygons([points], size)


def _disc(points: NDArray[np.float64], size: tuple[int, int]) -> MaskWindow:
    """The pixels whose centres are inside a circle, given by its centre and a point on it."""
    (x, y), edge = points[0], points[1]
    radius = math.hypot(*(edge - points[0]))
    height, width = size
    if not max(abs(x), abs(y), radius) <= 3 * max(size):
        raise InputError(f"the circle at ({x:g}, {y:g}) lies far outside of its {width}×{height} image")
    x0, y0 = max(0, math.floor(x - radius)), max(0, math.floor(y - radius))
    columns = np.arange(x0, max(x0, min(width, math.ceil(x + radius))))
    rows = np.arange(y0, max(y0, min(height, math.ceil(y + radius))))
    inside = np.hypot(columns[None] + 0.5 - x, rows[:, None] + 0.5 - y) < radius
    return MaskWindow(inside, x0, y0, size).tight()


def _pasted(shape: Shape, size: tuple[int, int]) -> MaskWindow:
    """The picture of a mask shape at its place: its first point is its upper left pixel."""
    height, width = size
    assert shape.mask is not None
    try:
        with Image.open(io.BytesIO(base64.b64decode(shape.mask)), formats=("PNG",)) as image:
            if image.width * image.height > height * width:
                raise InputError(f"its mask is {image.height}×{image.width}, larger than its image")
            picture = np.asarray(image)
    except InputError:
        raise
    except (binascii.Error, Exception) as error:  # Pillow's decoders raise what they like on damaged files
        raise InputError(f"its mask is no PNG ({error})", remedy="draw the shape again") from None
    values: NDArray[np.bool_] = np.any(picture.reshape(*picture.shape[:2], -1), axis=2)
    x, y = (int(corner) for corner in np.clip(shape.points[0], -MAX_PIXELS, MAX_PIXELS))
    left, top = max(0, -x), max(0, -y)
    inside = values[top : max(top, height - y), left : max(left, width - x)]
    if inside.size == 0:
        return MaskWindow(np.zeros((0, 0), bool), 0, 0, size)
    return MaskWindow(inside, x + left, y + top, size).tight()


def _picture(mask: MaskWindow) -> tuple[list[list[float]], str]:
    """The points (first and last pixel) and the base64 PNG of a mask shape."""
    height, width = mask.values.shape
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(mask.values)).save(buffer, format="PNG")
    corners = [[float(mask.x), float(mask.y)], [float(mask.x + width - 1), float(mask.y + height - 1)]]
    return corners, base64.b64encode(buffer.getvalue()).decode("ascii")
