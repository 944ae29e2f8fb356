"""Video folders of SAM 2: VIDEO/OBJECT/FRAME.png."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transfiner_refine.errors import InputError
from transfiner_refine.formats import Mask, RecordFault, open_source
from transfiner_refine.formats.convert import convert_masks
from transfiner_refine.formats.png import DAVIS_PALETTE, read_pixels, write_png
from transfiner_refine.formats.records import ImageRecord
from transfiner_refine.formats.registry import recognise
from transfiner_refine.masks import MaskWindow

SIZE = (12, 15)
BOX = np.pad(np.ones((5, 6), np.uint8), ((3, 4), (4, 5)))


def video(folder: Path, *, objects: tuple[str, ...] = ("000", "007"), value: int = 1) -> tuple[Path, Path]:
    for frame in ("00000", "00005"):
        (folder / "images" / "bear").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE[::-1]).save(folder / "images" / "bear" / f"{frame}.jpg")
        for number, name in enumerate(objects):
            mask = np.roll(BOX, number, 1) * value
            write_png(folder / "masks" / "bear" / name / f"{frame}.png", mask, DAVIS_PALETTE)
    return folder / "masks", folder / "images"


def test_objects_keep_their_numbers_values_and_palettes(tmp_path: Path) -> None:
    masks, images = video(tmp_path)
    (masks / "bear" / "scores.json").write_text("{}")
    assert recognise(masks).name == "sam2-video"
    source = open_source(masks, images)
    found = [item for item in source if isinstance(item, ImageRecord)]
    assert [item.name for item in found] == ["bear/00000.jpg", "bear/00005.jpg"]
    assert [[each.instance_id for each in item.instances] for item in found] == [[0, 7], [0, 7]]
    refined = Mask.from_window(MaskWindow(np.ones((4, 5), bool), 7, 8, SIZE))
    source.write(tmp_path / "out", {1: refined})
    with Image.open(tmp_path / "out/bear/007/00000.png") as image:
        assert image.mode == "P"
        assert np.array_equal(np.asarray(image), refined.decode().paste())
    for name in ("bear/000/00000.png", "bear/007/00005.png", "bear/scores.json"):
        assert (tmp_path / "out" / name).read_bytes() == (masks / name).read_bytes()


def test_one_video_of_one_object_may_be_given_alone(tmp_path: Path) -> None:
    masks, images = video(tmp_path, objects=("1",), value=255)
    for given in (images, images / "bear"):
        source = open_source(masks / "bear", given, format="sam2-video")
        assert [len(item.instances) for item in source if isinstance(item, ImageRecord)] == [1, 1]


def test_objects_that_are_taken_for_videos_are_told_how_to_be_read(tmp_path: Path) -> None:
    masks, images = video(tmp_path, objects=("1", "2"))
    with pytest.raises(
        InputError, match=r"the same image 00000\.jpg; .*, or --from sam2-video where these are"
    ):
        open_source(masks / "bear", images / "bear")


def test_one_video_is_recognised_by_the_three_digits_of_its_objects(tmp_path: Path) -> None:
    masks, images = video(tmp_path)
    assert recognise(masks / "bear").name == "sam2-video"
    source = open_source(masks / "bear", images / "bear")
    assert [len(item.instances) for item in source if isinstance(item, ImageRecord)] == [2, 2]


def test_videos_of_davis_and_of_sam_2_turn_into_each_other(tmp_path: Path) -> None:
    masks, images = video(tmp_path, objects=("001", "009"))
    for name in ("00000", "00005"):  # DAVIS has one id a pixel
        write_png(masks / "bear" / "009" / f"{name}.png", np.roll(BOX, 7, 0), DAVIS_PALETTE)
    convert_masks(masks, tmp_path / "davis", images=images, to="davis")
    values = read_pixels(tmp_path / "davis/bear/00000.png").values
    assert [int(value) for value in np.unique(values)] == [0, 1, 9]
    convert_masks(tmp_path / "davis", tmp_path / "again", images=images, to="sam2-video")
    for path in masks.rglob("*.png"):
        written = read_pixels(tmp_path / "again" / path.relative_to(masks))
        assert np.array_equal(written.values, read_pixels(path).values)


def test_a_map_among_the_masks_of_objects_is_named(tmp_path: Path) -> None:
    masks, images = video(tmp_path)
    write_png(masks / "bear" / "007" / "00005.png", BOX + 2 * np.roll(BOX, 7, 1), DAVIS_PALETTE)
    source = open_source(masks, images, format="sam2-video")
    assert not [item for item in source if isinstance(item, RecordFault)]
    summary = convert_masks(masks, tmp_path / "out.json", format="sam2-video", to="coco-annotations")
    (error,) = summary.errors
    assert "00005.png: holds several ids, but its name says one instance" in str(error)
