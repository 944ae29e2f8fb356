"""Outlines of masks as SVG paths."""

from __future__ import annotations

import re

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from transfiner_refine.masks import MaskWindow
from transfiner_refine.report.build import mask_path

masks = arrays.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))


def filled(path: str, height: int, width: int) -> NDArray[np.bool_]:
    """The pixels inside a path by the even-odd rule: each vertical edge turns everything right of it over."""
    pixels = np.zeros((height, width), bool)
    for x, y, steps in re.findall(r"M(-?\d+) (-?\d+)((?:[hv]-?\d+)*)z", path):
        at_x, at_y = int(x), int(y)
        for direction, step in re.findall(r"([hv])(-?\d+)", steps):
            if direction == "h":
                at_x += int(step)
            else:
                rows = slice(min(at_y, at_y + int(step)), max(at_y, at_y + int(step)))
                pixels[rows, at_x:] ^= True
                at_y += int(step)
        assert at_y == int(y)  # the closing edge is horizontal
    return pixels


@given(masks)
def test_a_filled_outline_is_the_mask(mask: NDArray[np.bool_]) -> None:
    height, width = mask.shape
    window = MaskWindow(mask, 3, 2, (height + 5, width + 7))
    assert np.array_equal(filled(mask_path(window), *window.image_size), window.paste())


@given(
    st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
        lambda s: st.tuples(*[arrays.arrays(bool, s)] * 2)
    )
)
def test_two_outlines_in_one_path_show_where_the_masks_differ(
    pair: tuple[NDArray[np.bool_], NDArray[np.bool_]],
) -> None:
    size = (pair[0].shape[0], pair[0].shape[1])
    paths = [mask_path(MaskWindow(mask, 0, 0, size)) for mask in pair]
    assert np.array_equal(filled("".join(paths), *size), pair[0] ^ pair[1])


def test_a_rectangle_is_one_short_loop_and_an_empty_mask_nothing() -> None:
    mask = np.zeros((9, 9), bool)
    assert mask_path(MaskWindow(mask, 0, 0, (9, 9))) == ""
    mask[2:5, 3:8] = True
    assert mask_path(MaskWindow(mask, 0, 0, (9, 9))) == "M3 2v3h5v-3z"
