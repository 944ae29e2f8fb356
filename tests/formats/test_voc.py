"""Pascal VOC: objects in palette PNGs, void around them, classes beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transfiner_refine.formats import Mask, RecordFault, Source, open_source
from transfiner_refine.formats.png import VOC_PALETTE, write_png
from transfiner_refine.formats.records import ImageRecord
from transfiner_refine.formats.registry import recognise
from transfiner_refine.masks import MaskWindow

SIZE = (20, 24)
OBJECTS = np.zeros(SIZE, np.uint8)
OBJECTS[3:12, 2:12] = 255  # void, around ...
OBJECTS[4:11, 3:11] = 1  # ... an object
OBJECTS[13:19, 10:20] = 2
CLASSES = np.choose(np.minimum(OBJECTS, 3), (0, 15, 7, 255)).astype(np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """VOCdevkit/VOC2012 with one image."""
    root = tmp_path / "VOC2012"
    write_png(root / "SegmentationObject" / "2007_000032.png", OBJECTS, VOC_PALETTE)
    write_png(root / "SegmentationClass" / "2007_000032.png", CLASSES, VOC_PALETTE)
    (root / "JPEGImages").mkdir()
    Image.new("RGB", SIZE[::-1]).save(root / "JPEGImages" / "2007_000032.jpg")
    return root


def record_of(source: Source) -> ImageRecord:
    (record,) = source
    assert isinstance(record, ImageRecord)
    return record


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == "P"
        assert bytes(image.getpalette() or []) == VOC_PALETTE
        return np.asarray(image)


def box(y0: int, y1: int, x0: int, x1: int) -> Mask:
    return Mask.from_window(MaskWindow(np.ones((y1 - y0, x1 - x0), bool), x0, y0, SIZE))


@pytest.mark.parametrize("folder", ["", "SegmentationObject"])
def test_objects_come_with_their_classes_and_void_is_none_of_them(root: Path, folder: str) -> None:
    assert recognise(root / folder).name == "voc"
    source = open_source(root / folder, root / "JPEGImages")
    record = record_of(source)
    assert (record.file_name, record.image_id, record.size) == ("2007_000032.jpg", "2007_000032", SIZE)
    assert record.path == root / "JPEGImages" / "2007_000032.jpg"
    assert [(i.instance_id, i.category_id, i.is_crowd) for i in record.instances] == [
        (1, 15, False),
        (2, 7, False),
    ]
    assert len(source.notes) == bool(folder)  # beside the folder, class maps are not written
    for instance in record.instances:
        assert np.array_equal(instance.mask.decode().paste(), instance.instance_id == OBJECTS)


def test_a_refined_mask_may_claim_void_and_what_it_leaves_of_it_stays(root: Path, tmp_path: Path) -> None:
    source = open_source(root / "SegmentationObject", root / "JPEGImages")
    source.write(tmp_path / "out", {0: box(3, 9, 2, 12)})
    expected = OBJECTS.copy()
    expected[4:11, 3:11] = 0  # given up: background, not void
    expected[3:9, 2:12] = 1  # claimed, void or not
    assert np.array_equal(pixels(tmp_path / "out" / "2007_000032.png"), expected)
    assert (expected == 255).any()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["2007_000032.png"]


def test_a_refined_mask_never_takes_pixels_of_one_that_is_not_refined(root: Path, tmp_path: Path) -> None:
    open_source(root / "SegmentationObject").write(tmp_path / "out", {0: box(4, 19, 3, 20)})
    assert np.array_equal(pixels(tmp_path / "out" / "2007_000032.png") == 2, OBJECTS == 2)


def test_class_maps_follow_their_objects_where_both_are_written(root: Path, tmp_path: Path) -> None:
    source = open_source(root, root / "JPEGImages")
    source.write(tmp_path / "out", {0: box(3, 9, 2, 12)})
    objects = pixels(tmp_path / "out" / "SegmentationObject" / "2007_000032.png")
    classes = pixels(tmp_path / "out" / "SegmentationClass" / "2007_000032.png")
    for value, category_id in ((0, 0), (1, 15), (2, 7), (255, 255)):
        assert set(classes[objects == value]) == {category_id}
    assert (tmp_path / "out" / "JPEGImages" / "2007_000032.jpg").is_file()


def test_class_names_come_from_a_file(root: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("background\n\n\n\n\n\n\ncar\n")
    assert open_source(root, class_names=names).categories == {0: "background", 7: "car"}


def test_maps_that_do_not_belong_together_are_named(root: Path) -> None:
    write_png(root / "SegmentationClass" / "2007_000032.png", CLASSES[1:], VOC_PALETTE)
    (fault,) = open_source(root)
    assert isinstance(fault, RecordFault)
    assert "is 19×24, the map of its objects is 20×24" in str(fault.error)


def test_a_flat_folder_in_other_colours_is_no_voc(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", OBJECTS, bytes(range(256)) * 3)
    assert recognise(tmp_path).name == "png"
    write_png(tmp_path / "a.png", OBJECTS, VOC_PALETTE)
    assert recognise(tmp_path).name == "voc"
