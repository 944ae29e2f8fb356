"""One image file of masks beside one image: read in every usual kind, written as it came or as its name says."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from transfiner_refine import refine_files
from transfiner_refine.errors import InputError, MaskRefineError
from transfiner_refine.formats.convert import convert_masks
from transfiner_refine.formats.registry import open_source, recognise
from transfiner_refine.masks import MaskWindow

SIZE = (40, 60)


class Growing:
    """A refiner that adds a pixel all around."""

    batch_size = 4

    def refine_windows(self, _: object, masks: list[MaskWindow], __: object) -> list[MaskWindow]:
        grown = [cv2.dilate(mask.hard().paste().astype(np.uint8), np.ones((3, 3))) > 0 for mask in masks]
        return [MaskWindow(mask, 0, 0, mask.shape) for mask in grown]


@pytest.fixture
def job(tmp_path: Path) -> Path:
    Image.fromarray(np.full((*SIZE, 3), 90, np.uint8)).save(tmp_path / "photo.jpg")
    return tmp_path


def disc(x: int, y: int, radius: int) -> np.ndarray:
    return cv2.circle(np.zeros(SIZE, np.uint8), (x, y), radius, 1, -1)


def refined(job: Path, mask: str, output: str, **options: object) -> np.ndarray:
    refine_files(job / "photo.jpg", job / mask, job / output, refiner=Growing(), **options)
    return np.asarray(Image.open(job / output))


GROWN = cv2.dilate(disc(20, 20, 10), np.ones((3, 3)))


@pytest.mark.parametrize("white", [1, 255, 200])
def test_a_mask_comes_back_in_its_own_white(job: Path, white: int) -> None:
    Image.fromarray(disc(20, 20, 10) * np.uint8(white)).save(job / "mask.png")
    assert np.array_equal(refined(job, "mask.png", "out.png"), GROWN * white)


@pytest.mark.parametrize(
    "name", ["mask.tif", "mask.bmp", "mask.jpg", "rgb.png", "cut.png", "grey-alpha.png", "one.png"]
)
def test_masks_of_other_kinds_come_back_as_one_channel(job: Path, name: str) -> None:
    shades = disc(20, 20, 10) * np.uint8(255)
    kinds = {
        "rgb.png": np.dstack((shades,) * 3),
        "cut.png": np.dstack((np.full((*SIZE, 3), 60, np.uint8), shades)),
        "grey-alpha.png": np.dstack((np.full(SIZE, 60, np.uint8), shades)),
        "one.png": shades > 0,
    }
    Image.fromarray(kinds.get(name, shades)).save(job / name)
    values = refined(job, name, "out.png")
    assert np.array_equal((values if values.ndim == 2 else values[..., 0]) > 0, GROWN > 0)


def test_a_label_map_keeps_its_ids_and_its_palette(job: Path) -> None:
    ids = disc(15, 15, 9) * np.uint8(7) + disc(42, 24, 9) * np.uint8(3)
    given = Image.fromarray(ids, "P")
    given.putpalette([value for index in range(256) for value in (index, 0, 255 - index)])
    given.save(job / "ids.png")
    values = refined(job, "ids.png", "out.png")
    assert sorted(np.unique(values)) == [0, 3, 7]
    assert np.array_equal(values == 3, cv2.dilate(disc(42, 24, 9), np.ones((3, 3))) > 0)
    assert Image.open(job / "out.png").getpalette() == given.getpalette()


def test_progress_may_be_a_function(job: Path) -> None:
    Image.fromarray(disc(20, 20, 10) * np.uint8(255)).save(job / "mask.png")
    calls: list[tuple[int, int]] = []
    refined(job, "mask.png", "out.png", progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (1, 1)


def test_names_in_json_give_coco(job: Path) -> None:
    Image.fromarray(disc(20, 20, 10) * np.uint8(255)).save(job / "mask.png")
    refine_files(job / "photo.jpg", job / "mask.png", job / "out.json", refiner=Growing())
    written = json.loads((job / "out.json").read_text())
    assert written["images"][0]["file_name"] == "photo.jpg"
    (record,) = written["annotations"]
    assert record["area"] == np.count_nonzero(GROWN)
    # and back again, though the one image is called otherwise
    (job / "photo.jpg").rename(job / "other.jpg")
    convert_masks(job / "out.json", job / "back.png", images=job / "other.jpg")
    assert np.array_equal(np.asarray(Image.open(job / "back.png")), GROWN * 255)


def test_several_instances_in_one_png_are_a_label_map_of_their_ids(job: Path) -> None:
    ids = disc(15, 15, 9) * np.uint8(7) + disc(42, 24, 9) * np.uint8(3)
    Image.fromarray(ids).save(job / "ids.png")
    convert_masks(job / "ids.png", job / "masks.json", images=job / "photo.jpg")
    convert_masks(job / "masks.json", job / "again.png")
    assert sorted(np.unique(np.asarray(Image.open(job / "again.png")))) == [0, 3, 7]


@pytest.mark.parametrize(
    ("output", "to", "reason"),
    [
        (
            "out",
            None,
            "out: mask-image is a file whose name ends in .png; give another --output, or another --to",
        ),
        ("out.jpg", None, "mask-image is a file whose name ends in .png"),
        ("out.json", "mask-image", "mask-image is a file whose name ends in .png"),
        ("out.png", "coco-results", "coco-results is a file whose name ends in .json"),
    ],
)
def test_a_name_that_contradicts_the_format_is_an_error_before_the_work(
    job: Path, output: str, to: str | None, reason: str
) -> None:
    Image.fromarray(disc(20, 20, 10) * np.uint8(255)).save(job / "mask.png")
    with pytest.raises(MaskRefineError) as error:
        refine_files(job / "photo.jpg", job / "mask.png", job / output, to=to, refiner=Growing())
    assert reason in str(error.value)
    assert not (job / output).exists()


def test_one_png_does_not_hold_two_images(job: Path) -> None:
    rle = {"size": list(SIZE), "counts": [0, 5, 2395]}
    records = [{"image_id": i, "category_id": 1, "segmentation": rle, "score": 0.5} for i in (1, 2)]
    (job / "masks.json").write_text(json.dumps(records))
    with pytest.raises(InputError, match="one image file holds the masks of one image, and there are 2"):
        convert_masks(job / "masks.json", job / "out.png")


def test_of_several_images_one_file_stands_for_the_one_of_its_name(job: Path) -> None:
    (job / "photo.jpg").rename(job / "2.jpg")
    rle = {"size": list(SIZE), "counts": [0, 5, 2395]}
    records = [{"image_id": i, "category_id": 1, "segmentation": rle, "score": 0.5} for i in (1, 2)]
    (job / "masks.json").write_text(json.dumps(records))
    summary = refine_files(job / "2.jpg", job / "masks.json", job / "out.json", refiner=Growing())
    assert (summary.refined, summary.failed) == (1, 1)
    assert "the file of image id 1 is not there" in str(summary.errors[0])


def test_a_folder_of_images_has_the_one_of_the_same_stem(job: Path) -> None:
    Image.fromarray(disc(20, 20, 10) * np.uint8(255)).save(job / "photo.png")
    (record,) = open_source(job / "photo.png", job)
    assert record.path == job / "photo.jpg"  # type: ignore[union-attr]
    Image.fromarray(disc(20, 20, 10) * np.uint8(255)).save(job / "mask.png")
    with pytest.raises(InputError, match="has that name; give the image itself"):
        open_source(job / "mask.png", job)
    assert recognise(job / "mask.png").name == "mask-image"


def test_damage_is_one_line(job: Path) -> None:
    (job / "mask.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(InputError, match=r"mask\.png"):
        refine_files(job / "photo.jpg", job / "mask.png", job / "out.png", refiner=Growing())
