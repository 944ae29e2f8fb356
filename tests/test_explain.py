"""The picture that explains one instance."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from transfiner_refine import Refiner, load_refiner
from transfiner_refine import explain as explaining
from transfiner_refine.errors import InputError, OutputError
from transfiner_refine.explain import Names, explain, explain_files
from transfiner_refine.formats.mask_image import read_mask_image
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
    without = np.asarray(explain(image, traced, Names("a$_{$.jpg", "写真.png", "lite")))
    scored = np.asarray(explain(image, traced, NAMES, MaskWindow(truth, 0, 0, truth.shape)))
    assert (without != scored).any()


def test_a_mask_that_stays_and_captions_of_five_levels_are_drawn(refiner: Refiner) -> None:
    image, mask = disc(900, 700, 300)
    traced = trace(Refiner(refiner.runs, tiles=False), image, mask)
    stays = replace(traced, result=traced.coarse_mask, tiles=())
    assert len(traced.passes[0].levels) == 5
    sheets = [np.asarray(explain(image, each, NAMES)) for each in (traced, stays)]
    assert (sheets[0] != sheets[1]).any()


def test_without_matplotlib_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(explaining, "find_spec", lambda _: None)
    with pytest.raises(
        InputError, match=r'needs the package matplotlib; pip install "transfiner-refine\[explain\]"'
    ):
        explain_files("image.jpg", "mask.png", tmp_path / "out.png")


def test_the_picture_is_not_written_over_the_truth(tmp_path: Path) -> None:
    image, mask = disc(40, 60, 12)
    Image.fromarray(image).save(tmp_path / "image.png")
    for name in ("mask.png", "truth.png"):
        Image.fromarray(mask).save(tmp_path / name)
    truth = tmp_path / "truth.png"
    before = truth.read_bytes()
    with pytest.raises(OutputError):
        explain_files(tmp_path / "image.png", tmp_path / "mask.png", truth, truth=truth, overwrite=True)
    assert truth.read_bytes() == before


def test_a_mask_png_is_read_binary_soft_or_by_its_id(tmp_path: Path) -> None:
    values = np.zeros((20, 30), np.uint8)
    values[2:10, 3:12], values[12:18, 15:25] = 1, 2
    path = tmp_path / "map.png"
    Image.fromarray(values).save(path)
    assert read_mask_image(path, 2).area == 60
    with pytest.raises(InputError, match="map of the ids 1, 2; choose one with --id"):
        read_mask_image(path)
    with pytest.raises(InputError, match="has no id 7, but 1, 2"):
        read_mask_image(path, 7)
    Image.fromarray((values == 1) * np.uint8(255)).save(path)
    assert read_mask_image(path).values.dtype == bool
    ramp = np.linspace(0, 255, 600).reshape(20, 30).astype(np.uint8)
    Image.fromarray(ramp).save(path)
    soft = read_mask_image(path)
    assert soft.values.dtype == np.float32
    assert soft.values.max() == 1
