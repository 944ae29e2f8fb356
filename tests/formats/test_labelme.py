"""labelme: shapes that somebody drew, a JSON file a photo."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mask_scenes import SceneSource
from PIL import Image, ImageDraw

from transfiner_refine.errors import InputError
from transfiner_refine.formats import Mask, RecordFault, Source, open_source
from transfiner_refine.formats.labelme import LABELME
from transfiner_refine.formats.records import ImageRecord, Instance
from transfiner_refine.formats.registry import recognise
from transfiner_refine.masks import MaskWindow

SIZE = (30, 40)


def shape(kind: str, points: list[list[float]], label: str = "cup", **others: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}} | others


def document(*shapes: dict[str, Any], **others: Any) -> dict[str, Any]:
    return {
        "version": "5.4.1",
        "flags": {"checked": True},
        "shapes": list(shapes),
        "imagePath": "..\\photos\\street.jpg",
        "imageData": "aGVsbG8=",
        "imageHeight": SIZE[0],
        "imageWidth": SIZE[1],
        "Größe": 1.50,
    } | others


def written(tmp_path: Path, *documents: dict[str, Any]) -> Path:
    folder = tmp_path / "labels"
    folder.mkdir(exist_ok=True)
    for number, content in enumerate(documents):
        (folder / f"{number}.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    return folder


def instances_of(source: Source) -> list[Instance]:
    return [i for item in source if isinstance(item, ImageRecord) for i in item.instances]


def mask_of(instance: Instance) -> np.ndarray:
    return instance.mask.decode().paste()


def box(y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def full(mask: np.ndarray) -> Mask:
    return Mask.from_window(MaskWindow(mask, 0, 0, mask.shape))


def picture(mask: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


BOX = [[5.0, 4.0], [15.0, 4.0], [15.0, 12.0], [5.0, 12.0]]


def test_every_kind_of_area_is_read(tmp_path: Path) -> None:
    ring = box(2, 9, 3, 12) & ~box(4, 7, 5, 10)
    folder = written(
        tmp_path,
        document(
            shape("polygon", BOX),
            shape("rectangle", [[15, 12], [5, 4]], "plate"),
            shape("circle", [[20, 15], [26, 15]]),
            shape("mask", [[3, 2], [11, 8]], mask=picture(ring[2:9, 3:12])),
            {"label": "old", "points": BOX},  # before there were types
        ),
    )
    assert recognise(folder).name == "labelme"
    source = open_source(folder)
    polygon, rectangle, circle, mask, old = instances_of(source)
    for instance in (polygon, rectangle, old):
        assert np.array_equal(mask_of(instance), box(4, 12, 5, 15))
    rows, columns = np.indices(SIZE) + 0.5
    assert np.array_equal(mask_of(circle), np.hypot(rows - 15, columns - 20) < 6)
    assert np.array_equal(mask_of(mask), ring)
    assert [source.categories[i.category_id or 0] for i in (polygon, rectangle, old)] == [
        "cup",
        "plate",
        "old",
    ]
    assert rectangle.label == "0.json shape 1 (plate)"


def test_shapes_of_one_label_and_group_are_one_instance(tmp_path: Path) -> None:
    folder = written(
        tmp_path,
        document(
            shape("rectangle", [[0, 0], [3, 3]], group_id=4),
            shape("rectangle", [[0, 0], [9, 9]], "plate", group_id=4),
            shape("rectangle", [[2, 0], [6, 3]], group_id=4),
            shape("rectangle", [[0, 0], [1, 1]]),
        ),
    )
    grouped, plate, alone = instances_of(open_source(folder))
    assert np.array_equal(mask_of(grouped), box(0, 3, 0, 6))
    assert (plate.mask.decode().area, alone.mask.decode().area) == (81, 1)


def test_a_refined_instance_stands_in_its_place_and_all_else_stays(tmp_path: Path) -> None:
    before = document(
        shape("line", [[1, 1], [5, 5]], "edge"),
        shape("polygon", BOX, description="by hand", flags={"hard": True}, mine=[1, 2.0]),
        shape("point", [[7, 7]], "tip"),
        shape("rectangle", [[20, 1], [30, 9]], group_id=2),
        shape("rectangle", [[20, 10], [30, 12]], group_id=2),
    )
    folder = written(tmp_path, before)
    two_parts = box(4, 10, 6, 14) | box(20, 25, 6, 9)
    open_source(folder).write(tmp_path / "out", {0: full(two_parts), 1: full(box(1, 12, 21, 31))})
    after = json.loads((tmp_path / "out" / "0.json").read_text(encoding="utf-8"))
    assert {key: value for key, value in after.items() if key != "shapes"} == {
        key: value for key, value in before.items() if key != "shapes"
    }
    line, first, second, point, rest = after["shapes"]
    assert (line, point) == (before["shapes"][0], before["shapes"][2])
    for part in (first, second):
        assert part | {"points": []} == before["shapes"][1] | {"points": [], "group_id": 3}
    assert rest["points"] == [[21.25, 1.25], [21.25, 11.75], [30.75, 11.75], [30.75, 1.25]]
    assert (rest["group_id"], rest["shape_type"]) == (2, "polygon")
    refined, other = instances_of(open_source(tmp_path / "out"))
    assert np.array_equal(mask_of(refined), two_parts)
    assert np.array_equal(mask_of(other), box(1, 12, 21, 31))


def test_a_polygon_stays_a_polygon_and_a_mask_a_mask(tmp_path: Path) -> None:
    folder = written(
        tmp_path,
        document(shape("polygon", BOX), shape("mask", [[0, 0], [1, 1]], mask=picture(np.ones((2, 2), bool)))),
    )
    ring = box(4, 12, 5, 15) & ~box(6, 9, 7, 11)
    open_source(folder).write(tmp_path / "out", {0: full(ring), 1: full(box(0, 3, 0, 3))})
    first, second = json.loads((tmp_path / "out" / "0.json").read_text())["shapes"]
    assert (first["shape_type"], len(first["points"])) == ("polygon", 10)  # with a bridge to the hole
    assert (second["shape_type"], second["points"]) == ("mask", [[0, 0], [2, 2]])
    holed, whole = instances_of(open_source(tmp_path / "out"))
    assert np.array_equal(mask_of(holed), ring)
    assert np.array_equal(mask_of(whole), box(0, 3, 0, 3))


def test_refined_polygons_have_points_that_people_can_move(tmp_path: Path) -> None:
    size = (300, 400)
    disc = np.hypot(*(np.indices(size) - np.array([[[140]], [[180]]]))) < 93
    folder = written(tmp_path, document(shape("polygon", BOX), imageHeight=300, imageWidth=400))
    found = {}
    for tolerance in (0, 0.75):
        out = tmp_path / f"out{tolerance}"
        open_source(folder, polygon_tolerance=tolerance).write(out, {0: full(disc)})
        (only,) = json.loads((out / "0.json").read_text())["shapes"]
        (instance,) = instances_of(open_source(out))
        found[tolerance] = len(only["points"]), np.count_nonzero(mask_of(instance) ^ disc) / disc.sum()
    assert found[0][1] == 0
    assert found[0.75][0] < 40 < found[0][0] / 10
    assert found[0.75][1] < 0.01


def test_pillow_paints_our_polygons_as_they_were_meant(tmp_path: Path) -> None:
    """labelme's own export is Pillow's ``ImageDraw.polygon`` with fill and outline."""
    disc = np.hypot(*(np.indices(SIZE) - np.array([[[14]], [[18]]]))) < 9.3
    folder = written(tmp_path, document(shape("polygon", BOX)))
    open_source(folder).write(tmp_path / "out", {0: full(disc)})
    (only,) = json.loads((tmp_path / "out" / "0.json").read_text())["shapes"]
    painted = Image.new("1", SIZE[::-1])
    ImageDraw.Draw(painted).polygon([tuple(point) for point in only["points"]], outline=1, fill=1)
    assert np.array_equal(np.asarray(painted), disc)


def test_photos_are_found_by_the_name_in_the_file_then_by_its_own(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for name in ("street.jpg", "1.jpg"):
        Image.new("RGB", SIZE[::-1]).save(tmp_path / "photos" / name)
    folder = written(
        tmp_path, document(shape("polygon", BOX)), document(shape("polygon", BOX), imagePath="x.jpg")
    )
    (folder / "0.json").rename(folder / "a.json")
    found = {
        item.file_name for item in open_source(folder, tmp_path / "photos") if isinstance(item, ImageRecord)
    }
    assert found == {"street.jpg", "1.jpg"}


def test_files_that_nobody_refined_are_copied_byte_for_byte(tmp_path: Path) -> None:
    folder = written(
        tmp_path, document(shape("polygon", BOX)), document(shape("polygon", BOX), imagePath="b.jpg")
    )
    (folder / "0.jpg").write_bytes(b"a photo")
    open_source(folder).write(tmp_path / "out", {0: full(box(0, 4, 0, 4))})
    for name in ("1.json", "0.jpg"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()


def test_sizes_come_from_the_photo_where_the_file_has_none(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (17, 13)).save(tmp_path / "photos" / "street.jpg")
    folder = written(tmp_path, document(shape("polygon", BOX), imageHeight=None, imageWidth="?"))
    (instance,) = instances_of(open_source(folder, tmp_path / "photos"))
    assert instance.mask.size == (13, 17)
    (fault,) = open_source(folder)
    assert isinstance(fault, RecordFault)


@pytest.mark.parametrize(
    "bad",
    [
        shape("polygon", [[1, 1], [2, 2]]),
        shape("polygon", [[1, 1], [2, 2], [3, float("nan")]]),
        shape("polygon", [[1, 1], [2, 2], ["x", 3]]),
        shape("polygon", [[1, 1], [2, 2], 3]),  # type: ignore[list-item]
        shape("polygon", [[1, 1], [2, 2], [10**400, 3]]),
        shape("polygon", [[1, 1], [2, 2], [1e300, 3]]),
        shape("circle", [[1, 1], [1e300, 2]]),
        shape("circle", [[1, 1]]),
        shape("mask", [[1, 1], [2, 2]]),
        shape("mask", [[1, 1], [2, 2]], mask="no picture"),
        shape("mask", [[1, 1], [2, 2]], mask=picture(np.ones((2000, 3), bool))),
        shape("rectangle", None),  # type: ignore[arg-type]
    ],
)
def test_a_bad_shape_is_named_and_the_others_go_on(tmp_path: Path, bad: dict[str, Any]) -> None:
    source = open_source(written(tmp_path, document(bad, shape("polygon", BOX))))
    errors = [str(item.error) for item in source if isinstance(item, RecordFault)]
    for instance in instances_of(source):
        try:
            instance.mask.decode()
        except InputError as error:
            errors.append(str(error))
    (error,) = errors
    assert "0.json: shape 0 (cup): " in error
    source.write(tmp_path / "out", {1: full(box(0, 4, 0, 4))})
    kept = json.loads((tmp_path / "out" / "0.json").read_text())["shapes"]
    assert len(kept) == 2
    assert json.dumps(kept[0]) == json.dumps(bad)


@pytest.mark.parametrize("text", ["{", "[1]", '{"shapes": 3}', "\xff\xfe", "[" * 100_000])
def test_a_file_that_is_not_labelmes_is_named_and_copied(tmp_path: Path, text: str) -> None:
    folder = written(tmp_path, document(shape("polygon", BOX)))
    (folder / "bad.json").write_text(text, encoding="latin-1")
    source = open_source(folder)
    (fault,) = [str(item.error) for item in source if isinstance(item, RecordFault)]
    assert "bad.json: " in fault
    source.write(tmp_path / "out", {0: full(box(0, 4, 0, 4))})
    assert (tmp_path / "out" / "bad.json").read_bytes() == (folder / "bad.json").read_bytes()


def test_every_byte_but_the_mask_stays_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "labels"
    folder.mkdir()
    before = """\ufeff{"version": "5.5.0", "size_mm": 0.10, "big": 1e999, "exact": 0.1234567890123456789,\r
  "shapes": [\r
    {"label": "\\ud83d", "x": 0.10, "points": [[5, 4], [15, 4], [15, 12]], "shape_type": "polygon", "n": NaN},\r
    {"label": "gone", "group_id": 1.0, "points": [[0, 0], [4, 4]], "shape_type": "rectangle"},\r
    {"label": "gone", "group_id": 1, "points": [[8, 8], [9, 9]], "shape_type": "rectangle"},\r
    {"label": "kept",   "points": [[0, 0], [4, 4]], "shape_type": "rectangle", "text": "\\u00e9"}\r
  ], "imageHeight": 30, "imageWidth": 40, "imagePath": "street.jpg"}\r\n"""
    (folder / "0.json").write_bytes(before.encode())
    open_source(folder).write(tmp_path / "out", {0: full(box(0, 2, 0, 3)), 1: full(box(3, 9, 3, 9))})
    after = (tmp_path / "out" / "0.json").read_bytes().decode()
    first = "[[0.25, 0.25], [0.25, 1.75], [2.75, 1.75], [2.75, 0.25]]"
    second = "[[3.25, 3.25], [3.25, 8.75], [8.75, 8.75], [8.75, 3.25]]"
    expected = before.replace("[[5, 4], [15, 4], [15, 12]]", first).replace("[[0, 0], [4, 4]]", second, 1)
    lines = expected.replace('"shape_type": "rectangle"', '"shape_type": "polygon"', 1).split("\r\n")
    assert after.split("\r\n") == lines[:4] + lines[5:]


@pytest.mark.parametrize(
    "group_ids", [(1, 1), ("1", "1"), (1.0, 1.0), ("left cup", "left cup"), (1, "1"), (1.0, "1")]
)
def test_group_ids_may_be_of_any_type(tmp_path: Path, group_ids: tuple[Any, Any]) -> None:
    halves = [
        shape("rectangle", [[x, 0], [x + 3, 3]], group_id=group_id)
        for x, group_id in zip((0, 9), group_ids, strict=True)
    ]
    (instance,) = instances_of(open_source(written(tmp_path, document(*halves))))
    assert np.array_equal(mask_of(instance), box(0, 3, 0, 3) | box(0, 3, 9, 12))


@pytest.mark.parametrize("key", ["shapes", "version"])
def test_a_file_with_a_key_twice_is_named_and_not_guessed_at(tmp_path: Path, key: str) -> None:
    folder = written(tmp_path, document(shape("polygon", BOX)), document(shape("polygon", BOX)))
    text = (folder / "0.json").read_text().replace("{", f'{{"{key}": [], ', 1)
    (folder / "0.json").write_text(text)
    source = open_source(folder)
    (fault,) = [str(item.error) for item in source if isinstance(item, RecordFault)]
    assert fault.endswith(f"0.json: has the key '{key}' twice; keep one of them")
    source.write(tmp_path / "out", {1: full(box(0, 4, 0, 4))})
    assert (tmp_path / "out" / "0.json").read_text() == text
    twice = json.dumps(document(shape("polygon", BOX)))
    twice = twice.replace('"label"', '"points": 3, "label"', 1)
    (folder / "0.json").write_text(twice)
    (fault,) = [str(item.error) for item in open_source(folder) if isinstance(item, RecordFault)]
    assert "0.json: shape 0 (cup): has the key 'points' twice" in fault


def test_half_a_pair_of_characters_is_written_as_it_came_in(tmp_path: Path) -> None:
    folder = written(tmp_path, document(shape("polygon", BOX, "\ud83d"), shape("polygon", BOX, "Größe")))
    source = open_source(folder)
    LABELME.write(tmp_path / "out", source, {})
    text = (tmp_path / "out" / "street.json").read_text(encoding="utf-8")
    assert '"label": "\\ud83d"' in text
    assert '"label": "Größe"' in text
    assert open_source(tmp_path / "out").categories == source.categories


def test_a_category_without_a_name_gets_none_that_another_has(tmp_path: Path) -> None:
    (first,) = instances_of(open_source(written(tmp_path, document(shape("polygon", BOX)))))
    instances = tuple(replace(first, index=n, category_id=number) for n, number in enumerate((5, 7, None)))
    record = ImageRecord(None, "a.jpg", instances, SIZE, None, "a.jpg")
    LABELME.write(tmp_path / "out", SceneSource((record,), {5: "object", 6: "7"}), {})
    shapes = json.loads((tmp_path / "out" / "a.json").read_text())["shapes"]
    assert [shape["label"] for shape in shapes] == ["object", "7 (no name)", "object (no name)"]
