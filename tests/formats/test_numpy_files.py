"""Masks as NumPy arrays: every layout is told from the image and the lists beside it, and comes back as it was."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from transfiner_refine.errors import InputError
from transfiner_refine.formats import Mask, RecordFault, Source, open_source
from transfiner_refine.formats.convert import convert_masks
from transfiner_refine.formats.records import ImageRecord, Instance
from transfiner_refine.formats.registry import recognise
from transfiner_refine.masks import MaskWindow

SIZE = (30, 40)
BOXES = np.zeros((3, *SIZE), bool)
for number in range(3):
    BOXES[number, 3 + 4 * number : 15 + 4 * number, 5 + 3 * number : 20 + 4 * number] = True
REFINED = Mask.from_window(MaskWindow(np.ones((4, 5), bool), 7, 8, SIZE))
MAP = np.zeros(SIZE, np.int64)
MAP[2:12, 3:15], MAP[15:28, 5:20], MAP[4:25, 25:38] = 1, 2, 70_000


def images(folder: Path, *names: str) -> Path:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", SIZE[::-1]).save(folder / "images" / name)
    return folder / "images"


def found(source: Source) -> list[Instance]:
    return [instance for item in source if isinstance(item, ImageRecord) for instance in item.instances]


def masks_of(source: Source) -> list[Mask]:
    return [Mask.from_window(each.mask.decode()) for each in found(source)]


def whole(bitmap: np.ndarray) -> Mask:
    return Mask.from_window(MaskWindow(bitmap, 0, 0, SIZE))


def test_keys_of_detectron2_are_read_and_all_others_stay_byte_for_byte(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    path = tmp_path / "masks" / "a.npz"
    np.savez_compressed(
        path,
        pred_masks=BOXES,
        scores=np.array([0.9, 0.5, 0.25], np.float32),
        pred_classes=[17, 0, 4],
        pred_boxes=np.arange(12.0).reshape(3, 4),
        names=np.array([{"any": "object"}]),
    )
    assert recognise(tmp_path / "masks").name == "numpy"
    source = open_source(tmp_path / "masks", images(tmp_path, "a.jpg"))
    assert [(each.category_id, each.score) for each in found(source)] == [
        (17, pytest.approx(0.9)),
        (0, 0.5),
        (4, 0.25),
    ]
    assert masks_of(source) == [whole(box) for box in BOXES]
    source.write(tmp_path / "out", {1: REFINED})
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "out" / "a.npz") as new:
        assert new.namelist() == old.namelist()
        for name in old.namelist():
            assert (new.read(name) == old.read(name)) == (name != "pred_masks.npy")
            assert new.getinfo(name).compress_type == old.getinfo(name).compress_type
    with np.load(tmp_path / "out" / "a.npz") as arrays:
        assert np.array_equal(arrays["pred_masks"], [BOXES[0], REFINED.decode().paste(), BOXES[2]])


@pytest.mark.parametrize(
    "array",
    [
        BOXES,
        BOXES.astype(np.uint8) * 255,
        BOXES.astype(np.int32),
        BOXES * 0.75,
        (BOXES * 255.0).astype(np.float16),
        np.asfortranarray(BOXES),
        BOXES.astype(">i2"),
        BOXES[:, None],
        BOXES[..., None],
        np.moveaxis(BOXES, 0, -1),
        np.moveaxis(BOXES, 0, -1)[None].astype(np.uint8),
    ],
    ids=lambda array: f"{array.dtype.str} {array.shape}",
)
@pytest.mark.parametrize("with_images", [True, False])
def test_stacks_of_every_type_and_order_come_back_as_they_were(
    tmp_path: Path, array: np.ndarray, with_images: bool
) -> None:
    (tmp_path / "masks").mkdir()
    np.save(tmp_path / "masks" / "a.npy", array)
    folder = images(tmp_path, "a.jpg")
    source = open_source(tmp_path / "masks", folder if with_images else None)
    assert masks_of(source) == [whole(box) for box in BOXES]
    source.write(tmp_path / "out", {0: REFINED})
    after = np.load(tmp_path / "out" / "a.npy")
    assert (after.dtype, after.shape, after.flags.f_contiguous) == (
        array.dtype,
        array.shape,
        array.flags.f_contiguous,
    )
    again = open_source(tmp_path / "out", folder if with_images else None)
    assert masks_of(again) == [REFINED, whole(BOXES[1]), whole(BOXES[2])]
    assert set(np.unique(after)) <= {*np.unique(array), 1}


@pytest.mark.parametrize("background", [0, 255])
def test_a_plane_of_whole_numbers_is_a_label_map(tmp_path: Path, background: int) -> None:
    np.save(tmp_path / "a.npy", np.where(MAP == 0, background, MAP - (background == 255) * (MAP == 1)))
    source = open_source(tmp_path / "a.npy", images(tmp_path, "a.jpg"), background=background)
    ids = [each.instance_id for each in found(source)]
    assert sorted(ids) == [0 if background else 1, 2, 70_000]
    at = ids.index(70_000)
    refined = np.pad(np.ones((9, 22), bool), ((20, 1), (10, 8)))
    source.write(tmp_path / "out.npy", {at: whole(refined)})
    after = np.load(tmp_path / "out.npy")
    assert np.array_equal(after == 2, MAP == 2)
    assert after.dtype == MAP.dtype
    assert np.array_equal(after == 70_000, refined & (MAP != 1) & (MAP != 2))


def test_one_file_finds_its_image_by_its_name_or_by_being_the_only_one(tmp_path: Path) -> None:
    np.savez(tmp_path / "coffee_masks.npz", masks=BOXES)
    np.savez(tmp_path / "output.npz", BOXES)
    only = images(tmp_path / "one", "x.jpg")
    for name, folder in (("coffee_masks", images(tmp_path, "coffee.png", "b.jpg")), ("output", only)):
        source = open_source(tmp_path / f"{name}.npz", folder)
        assert len(found(source)) == 3
        source.write(tmp_path / f"{name}_out.npz", {2: REFINED})
        assert (
            masks_of(open_source(tmp_path / f"{name}_out.npz", images(tmp_path / "..", "x.jpg")))[2]
            == REFINED
        )


def test_one_file_may_hold_several_images(tmp_path: Path) -> None:
    folder = images(tmp_path, "a.jpg", "b.jpg")
    np.savez(tmp_path / "all.npz", **{"a": BOXES, "b.jpg": BOXES[:2]})  # type: ignore[arg-type]
    source = open_source(tmp_path / "all.npz", folder)
    counts = {item.name: len(item.instances) for item in source if isinstance(item, ImageRecord)}
    assert counts == {"a.jpg": 3, "b.jpg": 2}
    source.write(tmp_path / "out.npz", {0: REFINED, 4: REFINED})
    rest = [whole(each) for each in BOXES[[1, 2, 0]]]
    assert masks_of(open_source(tmp_path / "out.npz", folder)) == [REFINED, *rest, REFINED]
    convert_masks(tmp_path / "all.npz", tmp_path / "written.npz", images=folder, to="numpy-file")
    convert_masks(tmp_path / "all.npz", tmp_path / "again", images=folder, to="numpy")
    for name in ("written.npz", "again"):
        assert masks_of(open_source(tmp_path / name, folder)) == masks_of(source)


def test_stacks_of_another_size_are_stretched_over_their_image(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", masks=BOXES[:, ::2, ::2])
    source = open_source(tmp_path / "a.npz", images(tmp_path, "a.jpg"), fit_masks=True)
    assert {mask.size for mask in masks_of(source)} == {SIZE}
    source.write(tmp_path / "out.npz", {1: REFINED})
    after = masks_of(open_source(tmp_path / "out.npz", tmp_path / "images"))
    assert [after[1], len(after), after[0].size] == [REFINED, 3, SIZE]


class Evil:
    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit(99)",)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"pred_masks": np.array([Evil()], dtype=object)}, "Python objects, which are never loaded"),
        (np.array({"masks": Evil()}, dtype=object), "Python objects, which are never loaded"),
        ({"pred_masks": BOXES * 9.0 - 4}, "values outside .0, 1.; pass probabilities"),
        (
            {"pred_masks": BOXES * np.array([[[1]], [[2]], [[3]]]) + BOXES[1]},
            "masks of type int64 with values beyond 0 and 1",
        ),
        ({"pred_masks": np.full((1, *SIZE), np.nan)}, "values outside"),
        ({"boxes": np.zeros(4)}, r"holds no masks \(arrays: boxes \[4\]\)"),
        ({"masks": np.zeros((2, 2, *SIZE))}, r"of the shape \[2, 2, 30, 40\]"),
        (MAP - 1, "has ids from -1 to 69999"),
        (b"PK nothing", "cannot be read as NumPy arrays"),
        (b"\x93NUMPY\x01\x00v\x00{}", "cannot be read as NumPy arrays"),
    ],
)
def test_what_is_no_mask_is_named_and_copied(tmp_path: Path, content: Any, reason: str) -> None:
    (tmp_path / "masks").mkdir()
    buffer = io.BytesIO()
    if isinstance(content, dict):
        np.savez(buffer, **content)
    elif isinstance(content, np.ndarray):
        np.save(buffer, content)
    path = tmp_path / "masks" / "a.npz"
    path.write_bytes(content if isinstance(content, bytes) else buffer.getvalue())
    np.savez(tmp_path / "masks" / "b.npz", masks=BOXES)
    source = open_source(tmp_path / "masks", images(tmp_path, "a.jpg", "b.jpg"))
    errors = []
    for item in source:
        errors += [str(item.error)] if isinstance(item, RecordFault) else []
        for each in () if isinstance(item, RecordFault) else item.instances:
            try:
                each.mask.decode()
            except InputError as error:
                errors.append(str(error))
    assert errors
    assert all(re.search(reason, error) for error in errors), errors
    source.write(tmp_path / "out", {})
    assert (tmp_path / "out" / "a.npz").read_bytes() == path.read_bytes()
