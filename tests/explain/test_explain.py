"""The picture that explains one instance."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from transfiner_refine import Refiner, load_refiner
from transfiner_refine.errors import InputError
from transfiner_refine.explain import Names, explain
from transfiner_refine.explain.canvas import Canvas, paragraph_height
from transfiner_refine.explain.files import read_mask_png
from transfiner_refine.masks import MaskWindow
from transfiner_refine.trace import trace

NAMES = Names("photo.jpg", "mask.png", "lite")


@pytest.fixture(scope="module")
def refiner() -> Refiner:
    refiner = load_refiner(device="cpu", engine="torch")
    assert isinstance(refiner, Refiner)
    return refiner


def disc(height: int, width: int, radius: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A photo of a disc, and its mask moved by a fifth of the radius."""
    image = np.full((height, width, 3), 60, np.uint8)
    cv2.circle(image, (width // 2, height // 2), radius, (220, 180, 90), -1)
    mask = np.zeros((height, width), np.uint8)
    cv2.circle(mask, (width // 2 + radius // 5, height // 2), radius, 1, -1)
    return image, mask > 0


@pytest.mark.parametrize(("height", "width", "radius"), [(120, 300, 40), (900, 700, 300), (20, 20, 4)])
def test_the_sheet_is_drawn_for_objects_of_every_size(
    refiner: Refiner, height: int, width: int, radius: int
) -> None:
    image, mask = disc(height, width, radius)
    sheet = explain(image, trace(refiner, image, mask), NAMES)
    assert sheet.mode == "RGB"
    assert sheet.width == 2400
    assert 1200 < sheet.height < 4000
    pixels = np.asarray(sheet)
    assert (pixels[:, :40] == 255).all()  # nothing runs over the margins
    assert (pixels[:, -40:] == 255).all()
    assert (pixels[-40:] == 255).all()


def test_truth_changes_what_is_said_of_the_result(refiner: Refiner) -> None:
    image, mask = disc(120, 300, 40)
    truth = np.zeros_like(mask)
    truth[:, :] = np.roll(mask, -8, 1)
    traced = trace(refiner, image, mask)
    without = np.asarray(explain(image, traced, NAMES))
    scored = np.asarray(explain(image, traced, NAMES, MaskWindow(truth, 0, 0, truth.shape)))
    assert (without != scored).any()


def test_text_is_broken_at_spaces_to_the_width() -> None:
    one = paragraph_height("word", 400, 20)
    assert paragraph_height("word " * 60, 400, 20) > 5 * one
    assert paragraph_height("8.3\u00a0%", 10, 20) == one  # a no-break space is none to break at
    canvas = Canvas(300, 200)
    assert canvas.paragraph(10, 10, 280, "word " * 10, 20) > 10 + one
    assert (np.asarray(canvas.image)[:, 292:] == 255).all()


def test_a_mask_png_is_read_binary_soft_or_by_its_id(tmp_path: Path) -> None:
    values = np.zeros((20, 30), np.uint8)
    values[2:10, 3:12], values[12:18, 15:25] = 1, 2
    path = tmp_path / "map.png"
    Image.fromarray(values).save(path)
    assert read_mask_png(path, 2).area == 60
    with pytest.raises(InputError, match="map of the ids 1, 2; choose one with --id"):
        read_mask_png(path)
    with pytest.raises(InputError, match="has no id 7, but 1, 2"):
        read_mask_png(path, 7)
    Image.fromarray((values == 1) * np.uint8(255)).save(path)
    assert read_mask_png(path).values.dtype == bool
    ramp = np.linspace(0, 255, 600).reshape(20, 30).astype(np.uint8)
    Image.fromarray(ramp).save(path)
    soft = read_mask_png(path)
    assert soft.values.dtype == np.float32
    assert soft.values.max() == 1
