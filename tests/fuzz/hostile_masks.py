"""COCO segmentations, sound and hostile, with what must become of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from scene import Bitmap, rle, runs

Verdict = Literal["sound", "unsound", "either"]

_NUMBERS: list[Any] = [
    -1,
    0,
    1,
    2**31,
    2**32,
    2**63,
    2**64,
    10**9,
    10**40,
    10**300,
    10**400,
    0.5,
    -0.0,
    1e300,
]
_NOTHINGS: list[Any] = [None, True, False, "", "x", [], {}, [[]], float("nan"), float("inf"), "9", [1], "NaN"]


def hostile_number(rng: np.random.Generator) -> Any:
    """Something that no careful writer would put in the place of a number."""
    return pick(rng, _NUMBERS + _NOTHINGS)


def pick(rng: np.random.Generator, choices: list[Any]) -> Any:
    return choices[int(rng.integers(len(choices)))]


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def sound_segmentation(rng: np.random.Generator, bitmap: Bitmap) -> Any:
    if rng.random() < 0.6:
        return rle(bitmap)
    return {"size": list(bitmap.shape), "counts": runs(bitmap)}


def hostile_segmentation(rng: np.random.Generator, bitmap: Bitmap) -> tuple[str, Any, Verdict]:
    """(what was done, the segmentation, what must become of its record)."""
    make: Callable[..., tuple[str, Any, Verdict]] = pick(
        rng, [_text, _text, _text, _run_list, _run_list, _size, _polygon, _polygon, _other]
    )
    return make(rng, bitmap)


def _text(rng: np.random.Generator, bitmap: Bitmap) -> tuple[str, Any, Verdict]:
    value = rle(bitmap)
    text = value["counts"]
    at = int(rng.integers(len(text)))
    kind = int(rng.integers(8))
    if kind == 0:
        text = text[:at]
    elif kind == 1:
        text = text[:at] + chr(int(rng.integers(48, 112))) + text[at + 1 :]
    elif kind == 2:
        text = text[:at] + pick(rng, list("!~\0 é\ud800\U0001f600")) + text[at:]
    elif kind == 3:
        text += chr(int(rng.integers(48, 112))) * int(rng.integers(1, 50))
    elif kind == 4:
        text = "".join(chr(code) for code in rng.integers(48, 112, int(rng.integers(0, 60))))
    elif kind == 5:
        text = "o" * int(rng.integers(1, 30)) + "0"
    elif kind == 6:
        text = wrapping_counts(bitmap.size) if rng.random() < 0.02 else "oooooo7" * int(rng.integers(1, 9))
    else:
        text = text[::-1]
    return f"RLE text {kind}", {**value, "counts": text}, "unsound" if kind in (2, 5) else "either"


def _run_list(rng: np.random.Generator, bitmap: Bitmap) -> tuple[str, Any, Verdict]:
    lengths: list[Any] = runs(bitmap)
    at = int(rng.integers(len(lengths)))
    kind = int(rng.integers(6))
    verdict: Verdict = "unsound"
    if kind == 0:
        lengths[at] += int(rng.integers(1, 9))
    elif kind == 1:
        lengths[at] = pick(rng, [value for value in _NUMBERS + _NOTHINGS if type(value) is not int])
    elif kind == 2:  # the sum stays what it was
        lengths += [2**40, -(2**40)]
    elif kind == 3:
        lengths = lengths * int(rng.integers(2, 5))
    elif kind == 4:
        lengths, verdict = [0, 0] * int(rng.integers(1, 2000)) + lengths, "sound"
    else:
        lengths = [float(length) for length in lengths]
    return f"run list {kind}", {"size": list(bitmap.shape), "counts": lengths}, verdict


def _size(rng: np.random.Generator, bitmap: Bitmap) -> tuple[str, Any, Verdict]:
    value = rle(bitmap)
    height, width = bitmap.shape
    if rng.random() < 0.15:  # whole numbers are numbers, however they are written
        size = pick(rng, [[float(height), float(width)], [str(height), str(width)], [height, float(width)]])
        return f"size {size}", {**value, "size": size}, "sound"
    whole = pick(rng, [10**9, 2**15, 2**16, 2**31, 2**62])
    size = pick(
        rng,
        [
            [0, 0],
            [-height, -width],
            [whole, whole],
            [height * width + 1, 1],
            [True, True],
            [height],
            [height, width, 1],
            f"{height}x{width}",
            None,
            {"height": height},
            [10**300, 10**300],
        ],
    )
    if rng.random() < 0.3 and isinstance(size, list) and size == [whole, whole]:
        return "a giant mask in few runs", {"size": size, "counts": [0, whole * whole]}, "unsound"
    return f"size {size}"[:60], {**value, "size": size}, "unsound"


def _polygon(rng: np.random.Generator, bitmap: Bitmap) -> tuple[str, Any, Verdict]:
    height, width = bitmap.shape
    triangle = [0.0, 0.0, float(width), 0.0, float(width), float(height)]
    at = int(rng.integers(len(triangle)))
    wild = [
        *triangle[:at],
        pick(rng, [value for value in _NUMBERS[3:] + _NOTHINGS if value != []]),
        *triangle[at + 1 :],
    ]
    kind = int(rng.integers(10))
    if kind == 0:
        return f"a polygon with {wild[at]!r}"[:60], [wild], "either" if wild[at] in (0.5, 0) else "unsound"
    if kind == 1:
        return "a polygon of one point", [triangle[:2]], "unsound"
    if kind == 2:
        return "a polygon of four numbers", [triangle[:4]], "unsound"
    if kind == 3:
        return "a polygon of seven numbers", [[*triangle, 1.0]], "unsound"
    if kind == 4:
        points = rng.normal(0.5, 1, (int(rng.integers(3, 200)), 2)) * (width, height)
        return "a polygon that crosses itself and the border", [points.ravel().tolist()], "either"
    if kind == 5:
        far = (rng.random(6) * 10.0 ** rng.integers(2, 300)).tolist()
        return "a polygon far outside", [far], "either"
    if kind == 6:
        return "a polygon of no area", [[1.0, 1.0] * int(rng.integers(3, 50))], "either"
    if kind == 7:
        many = [triangle] * int(rng.integers(2, 300))
        return "the same polygon many times", many, "either"
    if kind == 8:
        return (
            "polygons, one of them without enough points",
            [triangle, [1.0, 2.0, 3.0, 4.0][: 2 * int(rng.integers(3))]],
            "either",
        )
    return "polygons, one of them none", [triangle, pick(rng, [None, 5, "x", {}, [[1, 2]]])], "unsound"


def _other(rng: np.random.Generator, bitmap: Bitmap) -> tuple[str, Any, Verdict]:
    value: Any = pick(
        rng, [5, "x", None, {}, {"size": [1, 1]}, {"counts": "0"}, {"counts": []}, True, nested(200)]
    )
    if rng.random() < 0.2:
        return "other keys in the segmentation", {**rle(bitmap), "x": nested(20), "size ": None}, "sound"
    return f"segmentation {value}"[:60], value, "unsound"


def wrapping_counts(pixels: int) -> str:
    """Runs whose sum comes round to ``pixels`` in 64 bits, all of them positive."""
    step, odd, total = (1 << 29) - 1, 0, 0
    while total + (odd + 1) * step < 2**64:
        odd += 1
        total += odd * step
    rest = 2**64 + pixels - total
    even = rest // odd
    text, before = [_number(0)], 0
    for position in range(odd):
        value = even if position + 1 < odd else rest - even * (odd - 1)
        text += [_number(step), _number(value - before)]
        before = value
    return "".join(text)


def _number(value: int) -> str:
    characters = ""
    while True:
        low = value & 31
        value >>= 5
        more = value != (-1 if low & 16 else 0)
        characters += chr(low + 32 * more + 48)
        if not more:
            return characters
