"""Which images are shown, and where to look in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from transfiner_refine.masks import MaskWindow
from transfiner_refine.refine.roi import focus
from transfiner_refine.report.scenes import Scene, choose


def scene(number: int, gain: float | None) -> Scene:
    scores = {} if gain is None else {"iou": [0.5, 0.5 + gain]}
    return Scene(Path(f"{number}.jpg"), (10, 10), {number: {"changed": number / 100, **scores}})


def test_all_images_are_shown_where_they_fit() -> None:
    scenes = [scene(n, 0.1) for n in range(5)]
    assert choose(scenes, 5) == (scenes, "")
    assert choose(scenes, 0) == (scenes, "")


def test_of_many_images_the_best_the_worst_and_random_ones_are_shown_in_their_order() -> None:
    scenes = [scene(n, (n - 30) / 100) for n in range(60)]
    chosen, how = choose(scenes, 9)
    numbers = [int(entry.path.stem) for entry in chosen]
    assert numbers == sorted(numbers)
    assert len(set(numbers)) == 9
    assert {0, 1, 2, 57, 58, 59} <= set(numbers)
    assert how == "9 of 60 images: 3 with the largest gains, 3 with the largest losses, the others at random."
    assert choose(scenes, 9) == (chosen, how)


def test_without_truth_those_that_changed_most_are_shown() -> None:
    chosen, how = choose([scene(n, None) for n in range(20)], 4)
    assert {18, 19} <= {int(entry.path.stem) for entry in chosen}
    assert "2 that changed most" in how


def test_the_focus_is_on_the_change_and_inside_the_image() -> None:
    before = MaskWindow(np.ones((100, 100), bool), 0, 0, (120, 200))
    after = before.values.copy()
    after[90:, 92:] = False
    x0, y0, x1, y1 = focus(before, MaskWindow(after, 0, 0, (120, 200)))
    assert x0 <= 92 <= 100 <= x1
    assert y0 <= 90 <= 100 <= y1 <= 120
    assert x1 - x0 == y1 - y0 < 60


@pytest.mark.parametrize("size", [(1, 1), (3, 80), (50, 50)])
def test_an_unchanged_mask_has_a_focus_too(size: tuple[int, int]) -> None:
    window = MaskWindow(np.ones(size, bool), 0, 0, size)
    x0, y0, x1, y1 = focus(window, window)
    assert 0 <= x0 < x1 <= size[1]
    assert 0 <= y0 < y1 <= size[0]
