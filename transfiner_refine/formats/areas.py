"""Shapes of annotation tools drawn as masks."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from transfiner_refine.errors import InputError
from transfiner_refine.masks import MAX_PIXELS, MaskWindow, check_size, union

Area: TypeAlias = Callable[[tuple[int, int]], MaskWindow]
"""Draws one shape into an image of (height, width); can be sent to another process. Raises InputError."""


@dataclass(frozen=True)
class AreasMask:
    """The areas of one instance as one mask; ``file`` and ``record`` are for messages."""

    areas: tuple[Area, ...]
    file: Path = Path()
    record: str = ""
    size: tuple[int, int] = (0, 0)  # where the file states none, known once the image has been looked at

    def decode(self) -> MaskWindow:
        """All pixels that are in any of the areas, inside their bounding box, bool."""
        try:
            check_size(self.size)
            return union([draw(self.size) for draw in self.areas], self.size)
        except InputError as error:
            raise error.at(self.file, self.record) from error


def points_of(points: Any, least: int, kind: str) -> NDArray[np.float64]:
    """[points, xy] of a list of [x, y]; raises InputError where it is none, or has fewer than ``least``."""
    if (
        not isinstance(points, list)
        or len(points) < least
        or not all(isinstance(point, list) and len(point) == 2 for point in points)
        or any(type(number) not in (int, float) for point in points for number in point)
    ):
        reason = f"a {kind} needs {least} points or more, [x, y] each"
        raise InputError(reason, remedy="draw the shape again")
    try:
        found = np.array(points, np.float64)
    except OverflowError:
        raise InputError("has a coordinate without end", remedy="draw the shape again") from None
    if not np.isfinite(found).all():
        raise InputError("has a coordinate that is not a finite number", remedy="draw the shape again")
    return found


def ellipse(
    centre: NDArray[np.float64], radii: NDArray[np.float64], angle: float, size: tuple[int, int]
) -> MaskWindow:
    """The pixels whose centres are inside an ellipse: centre and half axes, xy, pixels; its angle, radians."""
    (x, y), (a, b), (height, width) = centre, radii, size
    radius = max(a, b)
    if not max(abs(x), abs(y), radius) <= 3 * max(size):
        raise InputError(f"the circle at ({x:g}, {y:g}) lies far outside of its {width}×{height} image")
    if min(a, b) <= 0:
        return union([], size)
    x0, y0 = max(0, math.floor(x - radius)), max(0, math.floor(y - radius))
    columns = np.arange(x0, max(x0, min(width, math.ceil(x + radius))))[None] + 0.5 - x
    rows = np.arange(y0, max(y0, min(height, math.ceil(y + radius))))[:, None] + 0.5 - y
    cos, sin = math.cos(angle), math.sin(angle)
    inside = np.hypot((columns * cos + rows * sin) / a, (rows * cos - columns * sin) / b) < 1
    return MaskWindow(inside, x0, y0, size).tight()


def pasted_png(data: bytes, corner: NDArray[np.float64], size: tuple[int, int]) -> MaskWindow:
    """The pixels of a PNG, its upper left one at ``corner``, xy, that are neither 0 nor transparent; or InputError."""
    height, width = size
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.width * image.height > height * width:
                raise InputError(f"its mask is {image.height}×{image.width}, larger than its image")
            pixels = np.asarray(image)
    except InputError:
        raise
    except Exception as error:  # Pillow's decoders raise what they like on damaged files
        raise InputError(f"its mask is no PNG ({error})", remedy="draw the shape again") from None
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4) and not pixels[..., -1].all():
        pixels = pixels[..., -1]  # what is transparent somewhere has its mask there
    values: NDArray[np.bool_] = np.any(pixels.reshape(*pixels.shape[:2], -1), axis=2)
    return pasted(values, corner, size)


def pasted(values: NDArray[np.bool_], corner: NDArray[np.float64], size: tuple[int, int]) -> MaskWindow:
    """What lies in the image of [h, w] pixels, with the upper left one at ``corner``, xy."""
    height, width = size
    x, y = (int(at) for at in np.clip(corner, -MAX_PIXELS, MAX_PIXELS))
    left, top = max(0, -x), max(0, -y)
    inside = values[top : max(top, height - y), left : max(left, width - x)]
    return MaskWindow(inside, x + left, y + top, size).tight() if inside.size else union([], size)


def png_of(mask: MaskWindow) -> bytes:
    """The foreground of a tight mask as a PNG of 1 bit."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(mask.foreground)).save(buffer, format="PNG")
    return buffer.getvalue()
