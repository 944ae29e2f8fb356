"""DAVIS: a folder a video, a palette PNG a frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transfiner_refine.errors import InputError
from transfiner_refine.formats import Mask, RecordFault, open_source
from transfiner_refine.formats.png import DAVIS_PALETTE, write_png
from transfiner_refine.formats.records import ImageRecord
from transfiner_refine.formats.registry import recognise
from transfiner_refine.masks import MaskWindow

SIZE = (12, 16)
FRAME = np.zeros(SIZE, np.uint8)
FRAME[2:8, 2:8], FRAME[2:11, 9:15] = 1, 3


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """DAVIS with two videos, whose frames have the same names."""
    for video, frame in (("bear", FRAME), ("camel", FRAME[::-1])):
        for number in range(2):
            write_png(tmp_path / f"Annotations/480p/{video}/{number:05d}.png", frame, DAVIS_PALETTE)
            photo = tmp_path / f"JPEGImages/480p/{video}/{number:05d}.jpg"
            photo.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", SIZE[::-1]).save(photo)
    return tmp_path


@pytest.mark.parametrize(
    ("masks", "images"),
    [
        ("Annotations/480p", "JPEGImages/480p"),
        ("Annotations", "JPEGImages"),
        ("Annotations/480p", "JPEGImages"),
        ("Annotations", "JPEGImages/480p"),
    ],
)
def test_frames_find_their_photos_in_the_same_video(root: Path, masks: str, images: str) -> None:
    assert recognise(root / masks).name == "davis"
    source = open_source(root / masks, root / images)
    records = [item for item in source if isinstance(item, ImageRecord)]
    assert [str(record.path).rpartition("480p/")[2] for record in records] == [
        "bear/00000.jpg", "bear/00001.jpg", "camel/00000.jpg", "camel/00001.jpg",
    ]  # fmt: skip
    assert [instance.instance_id for instance in records[0].instances] == [1, 3]
    assert (source.num_images, source.num_instances) == (4, 8)


def test_photos_of_one_video_are_not_given_to_two(root: Path) -> None:
    with pytest.raises(
        InputError, match=r"bear/00000\.png and camel/00000\.png would belong to the same image"
    ):
        open_source(root / "Annotations" / "480p", root / "JPEGImages" / "480p" / "bear")


def test_photos_in_two_resolutions_are_refused_by_name(root: Path) -> None:
    photo = root / "JPEGImages" / "Full" / "bear" / "00000.jpg"
    photo.parent.mkdir(parents=True)
    Image.new("RGB", SIZE[::-1]).save(photo)
    (fault,) = [
        i for i in open_source(root / "Annotations/480p", root / "JPEGImages") if isinstance(i, RecordFault)
    ]
    assert "could be 480p/bear/00000.jpg or Full/bear/00000.jpg" in str(fault.error)


def test_colours_and_other_ids_stay_as_they_are(root: Path, tmp_path: Path) -> None:
    palette = bytes(reversed(DAVIS_PALETTE))
    write_png(root / "Annotations/480p/bear/00000.png", FRAME, palette)
    refined = MaskWindow(np.ones((5, 8), bool), 3, 3, SIZE)
    open_source(root / "Annotations").write(tmp_path / "out", {0: Mask.from_window(refined)})
    expected = np.where(FRAME == 1, 0, FRAME)
    expected[3:8, 3:9] = 1  # id 3 is in the way of the rest
    with Image.open(tmp_path / "out" / "480p" / "bear" / "00000.png") as image:
        assert bytes(image.getpalette() or []) == palette
        assert np.array_equal(np.asarray(image), expected)
    other = Path("480p/camel/00001.png")
    assert (tmp_path / "out" / other).read_bytes() == (root / "Annotations" / other).read_bytes()


def test_void_is_void_where_it_occurs(root: Path, tmp_path: Path) -> None:
    frame = FRAME.copy()
    frame[:2] = 255
    write_png(root / "Annotations/480p/bear/00000.png", frame, DAVIS_PALETTE)
    source = open_source(root / "Annotations/480p/bear", format="davis")
    assert [i.instance_id for item in source if isinstance(item, ImageRecord) for i in item.instances] == [
        1,
        3,
        1,
        3,
    ]
    refined = MaskWindow(np.ones((3, 4), bool), 2, 1, SIZE)
    source.write(tmp_path / "out", {0: Mask.from_window(refined)})
    values = np.asarray(Image.open(tmp_path / "out" / "00000.png"))
    assert (values[0] == 255).all()
    assert values[1].tolist() == [255, 255, 1, 1, 1, 1] + [255] * 10


def test_folders_of_single_masks_are_no_videos(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.fromarray(FRAME).save(tmp_path / "a" / "0001.png")
    assert recognise(tmp_path).name == "png"


def test_nothing_found_at_all_is_one_line(root: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"none of the 4 images can be used; the first: there is no image"):
        open_source(root / "Annotations", tmp_path / "empty")
