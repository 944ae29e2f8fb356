"""CVAT, Label Studio, VIA and Supervisely: read, edited in place, and written from other formats."""

from __future__ import annotations

import base64
import csv
import io
import json
import pickle
import tempfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from folder_scenes import photos_of
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_scenes import SceneSource, held, scenes
from PIL import Image

from transfiner_refine.errors import InputError
from transfiner_refine.formats import Mask, RecordFault, Source, Written, open_source
from transfiner_refine.formats.convert import convert_masks
from transfiner_refine.formats.cvat import CVAT
from transfiner_refine.formats.label_studio import LABEL_STUDIO
from transfiner_refine.formats.records import Format, ImageRecord, Instance, OpenOptions
from transfiner_refine.formats.registry import recognise
from transfiner_refine.formats.supervisely import SUPERVISELY
from transfiner_refine.formats.via import VIA, VIA_CSV
from transfiner_refine.masks import MaskWindow

SIZE = (30, 40)
TOOLS = [CVAT, LABEL_STUDIO, VIA, VIA_CSV, SUPERVISELY]
HOLDS_SCORES = [LABEL_STUDIO, VIA, VIA_CSV]


def box(y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[y0:y1, x0:x1] = True
    return mask


RING = box(4, 20, 5, 30) & ~box(8, 12, 9, 20)
TWO_PARTS = box(2, 9, 3, 12) | box(15, 25, 20, 35)


def full(mask: np.ndarray) -> Mask:
    return Mask.from_window(MaskWindow(mask, 0, 0, mask.shape))


def instances_of(source: Source) -> list[Instance]:
    return [i for item in source if isinstance(item, ImageRecord) for i in item.instances]


def mask_of(instance: Instance) -> np.ndarray:
    return instance.mask.decode().paste()


def faults_of(source: Source) -> list[str]:
    errors = [item.error for item in source if isinstance(item, RecordFault)]
    for instance in instances_of(source):
        try:
            instance.mask.decode()
        except InputError as error:
            errors.append(error)
    return [str(error) for error in errors]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "photos" / "street.jpg")
    return tmp_path / "photos"


SQUARE = [[5, 4], [15, 4], [15, 12], [5, 12]]
SQUARE_MASK = box(4, 12, 5, 15)

CVAT_TEXT = """<?xml version="1.0" encoding="utf-8"?>\r
<annotations><version>1.1</version><meta><task><name>Größe &amp; 1</name></task></meta>
  <image id="7" name="set/street.jpg" width="40" height="30">
    <box label="cup" xtl="1" ytl="2" xbr="3" ybr="4"/>
    <polygon label="a &gt; points='1,1'" source="manual" points="5.00,4.00;15.00,4.00;15.00,12.00;5.00,12.00">
      <attribute name="color">r\u00f6t</attribute>
    </polygon>
    <mask label="cup" rle="2, 3, 1" left="5" top="4" width="3" height="2" z_order="1"/>
    <polygon label="cup" group_id="3" points="1,1;4,1;4,4"></polygon>
    <polygon label="cup" group_id="3" points="8,1;11,1;11,4"/>
  </image>
</annotations>
"""


def cvat(tmp_path: Path, text: str = CVAT_TEXT) -> Path:
    path = tmp_path / "annotations.xml"
    path.write_bytes(text.encode())
    return path


def test_cvat_reads_polygons_masks_and_groups(tmp_path: Path, photos: Path) -> None:
    assert recognise(cvat(tmp_path)).name == "cvat"
    source = open_source(cvat(tmp_path), photos)
    (record,) = [item for item in source if isinstance(item, ImageRecord)]
    assert (record.file_name, record.size) == ("street.jpg", SIZE)
    square, mask, group = record.instances
    assert [source.categories[i.category_id or 0] for i in record.instances] == [
        "a > points='1,1'",
        "cup",
        "cup",
    ]
    assert np.array_equal(mask_of(square), SQUARE_MASK)
    expected = box(4, 5, 7, 8) | box(5, 6, 5, 7)
    assert np.array_equal(mask_of(mask), expected)
    assert mask_of(group).sum() == 12
    assert square.label == "image set/street.jpg, polygon 0 (a > points='1,1')"
    pickle.loads(pickle.dumps(square)).mask.decode()


def test_cvat_changes_only_what_was_refined(tmp_path: Path) -> None:
    path = cvat(tmp_path)
    open_source(path).write(tmp_path / "same.xml", {})
    assert (tmp_path / "same.xml").read_bytes() == CVAT_TEXT.encode()
    results = {0: full(TWO_PARTS), 1: full(RING), 2: full(box(1, 9, 1, 9))}
    open_source(path).write(tmp_path / "out.xml", results)
    after, before = (tmp_path / "out.xml").read_bytes().decode(), CVAT_TEXT
    assert after[: after.index("<polygon")] == before[: before.index("<polygon")]
    assert after.count('<attribute name="color">r\u00f6t</attribute>') == 2  # a polygon each part
    assert after.count('group_id="4"') == 2
    assert after.count('group_id="3"') == 1
    assert after.endswith("</image>\n</annotations>\n")
    refined = instances_of(open_source(tmp_path / "out.xml"))
    for instance, mask in zip(refined, (TWO_PARTS, RING, box(1, 9, 1, 9)), strict=True):
        assert np.array_equal(mask_of(instance), mask)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("5.00,4.00;15.00,4.00;", "", "a polygon needs 3 points or more"),
        ("5.00,4.00", "x,4.00", "its points are no numbers"),
        ("5.00,4.00", "nan,4.00", "not a finite number"),
        ("5.00,4.00", "5e9,4.00", "far outside"),
        ('rle="2, 3, 1"', 'rle="2, 3, 2"', "its runs are of 7 pixels, and its box of 3×2"),
        ('rle="2, 3, 1"', 'rle="-2, 3, 5"', "its runs are of 6 pixels"),
        ('rle="2, 3, 1"', 'rle=""', "left, top, width, height and rle are"),
        (' left="5"', "", "left, top, width, height and rle are"),
        ('width="3" height="2"', 'width="99999999" height="99999999"', "its runs are of 6 pixels"),
    ],
)
def test_a_bad_shape_of_cvat_is_named_and_stays(tmp_path: Path, old: str, new: str, reason: str) -> None:
    text = CVAT_TEXT.replace(old, new, 1)
    source = open_source(cvat(tmp_path, text))
    (fault,) = faults_of(source)
    assert "annotations.xml: image set/street.jpg, " in fault
    assert reason in fault
    source.write(tmp_path / "out.xml", {2: full(box(1, 9, 1, 9))})
    after = (tmp_path / "out.xml").read_bytes().decode()
    assert text[: text.index('<polygon label="cup"')] in after


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<annotations>", "is no XML that can be read"),
        ("<!DOCTYPE a [<!ENTITY x 'y'>]><annotations>&x;</annotations>", "is no XML that can be read"),
        ("<annotations><meta/></annotations>", "has no images"),
        ("<annotations><track id='0'/></annotations>", "is of CVAT for video"),
    ],
)
def test_xml_that_is_not_for_images_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        open_source(cvat(tmp_path, text))


def brush(mask: np.ndarray) -> list[int]:
    """A brush as Label Studio's editor writes it, one value at a time where a run is short."""
    bits = f"{mask.size * 4:032b}" + f"{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    for value in np.repeat(mask.ravel(), 4):
        bits += "0" + "00" + "000" + f"{200 * value:08b}"
    bits += "0" * (-len(bits) % 8)
    return [int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)]


def region(value: dict[str, Any], **keys: Any) -> dict[str, Any]:
    kind = "brushlabels" if "rle" in value else "polygonlabels"
    size = {"original_width": SIZE[1], "original_height": SIZE[0], "image_rotation": 0}
    return {"id": "x1", "type": kind, "value": value | {kind: ["cup"]}, **size, **keys}


PERCENT = [[x / 0.4, y / 0.3] for x, y in SQUARE]


def tasks(*result: Any, **keys: Any) -> list[Any]:
    address = "/data/upload/1/0a1b2c3d-street.jpg?x=1"
    return [{"id": 1, "data": {"image": address}, "annotations": [{"id": 5, "result": list(result)}], **keys}]


def label_studio(tmp_path: Path, document: Any) -> Path:
    path = tmp_path / "project.json"
    path.write_text(json.dumps(document, indent=1))
    return path


def test_label_studio_reads_brushes_and_polygons_of_annotations_and_predictions(
    tmp_path: Path, photos: Path
) -> None:
    document = tasks(
        region({"format": "rle", "rle": brush(RING)}),
        region({"points": PERCENT, "closed": True}, id="x2"),
        {"id": "b", "type": "rectanglelabels", "value": {"x": 1, "rectanglelabels": ["cup"]}},
        predictions=[7, {"result": [region({"points": PERCENT}, score=0.5)]}],
    )
    path = label_studio(tmp_path, document)
    assert recognise(path).name == "label-studio"
    source = open_source(path, photos)
    ring, square, guess = instances_of(source)
    assert np.array_equal(mask_of(ring), RING)
    assert np.array_equal(mask_of(square), SQUARE_MASK)
    assert (guess.score, ring.score) == (0.5, None)
    assert source.categories == {1: "cup"}
    source.write(tmp_path / "out.json", {0: full(TWO_PARTS), 1: full(TWO_PARTS), 2: full(RING)})
    again = instances_of(open_source(tmp_path / "out.json", photos))
    for instance, mask in zip(again, (TWO_PARTS, TWO_PARTS, RING), strict=True):
        assert np.array_equal(mask_of(instance), mask)
    after = json.loads((tmp_path / "out.json").read_text())
    for where in (after[0]["annotations"][0]["result"][:2], after[0]["predictions"][1]["result"]):
        for entry in where:
            entry["value"].pop("rle", entry["value"].pop("points", None))
    assert after[0]["annotations"][0]["result"][2] == document[0]["annotations"][0]["result"][2]
    assert "rle" not in after[0]["annotations"][0]["result"][1]["value"]
    open_source(path).write(tmp_path / "same.json", {})
    assert (tmp_path / "same.json").read_bytes() == path.read_bytes()


def test_a_region_of_label_studio_whose_class_is_a_result_of_its_own_is_one(tmp_path: Path) -> None:
    shape = region({"format": "rle", "rle": brush(RING)}, type="brush")
    del shape["value"]["brushlabels"]
    labels = region({"format": "rle", "rle": brush(RING)}, type="labels")
    labels["value"] = {"format": "rle", "rle": brush(RING), "labels": ["plate"]}
    source = open_source(label_studio(tmp_path, tasks(shape, labels)))
    assert (source.num_instances, dict(source.categories)) == (1, {1: "plate"})
    source.write(tmp_path / "out.json", {0: full(TWO_PARTS)})
    first, second = json.loads((tmp_path / "out.json").read_text())[0]["annotations"][0]["result"]
    assert first["value"]["rle"] == second["value"]["rle"] != shape["value"]["rle"]
    assert second["value"]["labels"] == ["plate"]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (region({"rle": brush(RING)[:60]}), "its rle is damaged"),
        (region({"rle": []}), "is not that of an image of 40×30"),
        (region({"rle": [256]}), "is no list of bytes"),
        (region({"rle": "abc"}), "is no list of bytes"),
        (region({"rle": brush(RING[:10])}), "is not that of an image of 40×30"),
        (region({"points": PERCENT[:2]}), "a polygon needs 3 points or more"),
        (region({"points": [[1, 2], [3, 4], [1e9, 5]]}), "far outside"),
        (region({"points": PERCENT}, original_width=None), "its original_width and original_height are"),
        (region({"points": PERCENT}, original_width=41), "its image is 41×30, and 40×30 in other regions"),
        (region({"points": PERCENT}, image_rotation=90), "was turned by 90 degrees"),
    ],
)
def test_a_bad_region_of_label_studio_is_named_and_stays(
    tmp_path: Path, bad: dict[str, Any], reason: str
) -> None:
    good = region({"points": PERCENT}, id="good")
    path = label_studio(tmp_path, tasks(good, bad))
    source = open_source(path)
    (fault,) = faults_of(source)
    assert "project.json: image /data/upload/1/" in fault
    assert "annotation 0, region 'x1'" in fault
    assert reason in fault
    source.write(tmp_path / "out.json", {0: full(RING)})
    assert json.loads((tmp_path / "out.json").read_text())[0]["annotations"][0]["result"][1] == bad


def test_a_task_that_is_none_is_named_and_the_others_go_on(tmp_path: Path, photos: Path) -> None:
    document = [
        *tasks(region({"points": PERCENT})),
        7,
        {"data": 3},
        {"data": {}, "annotations": {"result": []}},
    ]
    source = open_source(label_studio(tmp_path, document), photos)
    assert len(instances_of(source)) == 1
    assert [fault.split(": ")[1] for fault in faults_of(source)] == ["task 1", "task 2", "task 3"]


def via(regions: Any, name: Any = "street.jpg") -> dict[str, Any]:
    metadata = {
        "street.jpg4523": {"filename": name, "size": 4523, "regions": regions, "file_attributes": {"a": 1.50}}
    }
    return {"_via_settings": {"ui": {}}, "_via_img_metadata": metadata, "_via_attributes": {}}


def shape(points: list[list[Any]], **others: Any) -> dict[str, Any]:
    xs, ys = zip(*points, strict=True)
    attributes = {"name": "polygon", "all_points_x": list(xs), "all_points_y": list(ys)}
    return {"shape_attributes": attributes, "region_attributes": {"label": "cup", "note": "x"}} | others


@pytest.mark.parametrize("as_object", [False, True])
def test_via_reads_every_kind_of_area(tmp_path: Path, photos: Path, as_object: bool) -> None:
    regions: Any = [
        shape(SQUARE),
        {
            "shape_attributes": {"name": "rect", "x": 5, "y": 4, "width": 10, "height": 8},
            "region_attributes": {"kind": "plate"},
        },
        {"shape_attributes": {"name": "circle", "cx": 20, "cy": 15, "r": 6}, "region_attributes": {}},
        {
            "shape_attributes": {"name": "ellipse", "cx": 20, "cy": 15, "rx": 8, "ry": 4},
            "region_attributes": {},
        },
        {"shape_attributes": {"name": "point", "cx": 20, "cy": 15}, "region_attributes": {}},
    ]
    document = via({str(n): each for n, each in enumerate(regions)} if as_object else regions)
    document = document["_via_img_metadata"] if as_object else document
    path = label_studio(tmp_path, document)
    assert recognise(path).name == "via"
    source = open_source(path, photos)
    polygon, rectangle, circle, ellipse = instances_of(source)
    assert np.array_equal(mask_of(polygon), SQUARE_MASK)
    assert np.array_equal(mask_of(rectangle), SQUARE_MASK)
    rows, columns = np.indices(SIZE) + 0.5
    assert np.array_equal(mask_of(circle), np.hypot(rows - 15, columns - 20) < 6)
    assert np.array_equal(mask_of(ellipse), np.hypot((rows - 15) / 4, (columns - 20) / 8) < 1)
    assert dict(source.categories) == {1: "cup", 2: "plate"}
    assert (circle.category_id, rectangle.category_id) == (None, 2)
    source.write(tmp_path / "out.json", {1: full(TWO_PARTS), 3: full(RING)})
    after = json.loads((tmp_path / "out.json").read_text())
    both = (after, document) if as_object else (after["_via_img_metadata"], document["_via_img_metadata"])
    new, old = (
        list(
            next(iter(each.values()))["regions"].values()
            if as_object
            else next(iter(each.values()))["regions"]
        )
        for each in both
    )
    assert (new[0], new[2], new[4]) == (old[0], old[2], old[4])
    assert new[1]["region_attributes"] == old[1]["region_attributes"]
    again = instances_of(open_source(tmp_path / "out.json", photos))
    assert np.array_equal(mask_of(again[1]), TWO_PARTS)
    assert np.array_equal(mask_of(again[3]), RING)
    assert "x" not in new[1]["shape_attributes"]


def test_via_csv_changes_only_the_field_of_a_refined_shape(tmp_path: Path, photos: Path) -> None:
    square = json.dumps(shape(SQUARE)["shape_attributes"])
    rows = [
        ["street.jpg", "1", '{"a": "x, ""y"" \n z"}', "2", str(n), square, '{"label":"cup"}']
        for n in range(2)
    ]
    text = io.StringIO(newline="")
    text.write(
        "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes\r\n"
    )
    csv.writer(text).writerows([*rows, ["other.jpg", "1", "{}", "0", "0", "{}", "{}"]])
    path = tmp_path / "via.csv"
    path.write_bytes(text.getvalue().encode())
    Image.new("RGB", SIZE[::-1]).save(photos / "other.jpg")
    assert recognise(path).name == "via-csv"
    source = open_source(path, photos)
    assert [source.categories[i.category_id or 0] for i in instances_of(source)] == ["cup", "cup"]
    source.write(tmp_path / "out.csv", {1: full(RING)})
    with (tmp_path / "out.csv").open(newline="") as file:
        after = list(csv.reader(file))[1:]
    assert after[0] == rows[0]
    assert [*after[1][:5], after[1][6]] == [*rows[1][:5], rows[1][6]]
    assert np.array_equal(mask_of(instances_of(open_source(tmp_path / "out.csv", photos))[1]), RING)
    source.write(tmp_path / "same.csv", {})
    assert (tmp_path / "same.csv").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (shape(SQUARE[:2]), "a polygon needs 3 points or more"),
        (shape(SQUARE, shape_attributes={"name": "polygon", "all_points_x": [1, 2, 3]}), "as many x as y"),
        (
            shape(SQUARE, shape_attributes={"name": "circle", "cx": 3, "cy": "4", "r": 1}),
            "a circle needs 1 points",
        ),
        (shape([*SQUARE, [1e300, 5]]), "far outside"),
        (shape(SQUARE, shape_attributes=3), "has 3 where it needs an object"),
        (3, "has 3 where it needs an object"),
    ],
)
def test_a_bad_region_of_via_is_named_and_stays(tmp_path: Path, photos: Path, bad: Any, reason: str) -> None:
    source = open_source(label_studio(tmp_path, via([bad, shape(SQUARE)])), photos)
    (fault,) = faults_of(source)
    assert "project.json: image street.jpg, region 0: " in fault
    assert reason in fault
    source.write(tmp_path / "out.json", {1: full(RING)})
    after = json.loads((tmp_path / "out.json").read_text())["_via_img_metadata"]["street.jpg4523"]["regions"]
    assert json.dumps(after[0]) == json.dumps(bad)


def bitmap(mask: np.ndarray, channels: int) -> dict[str, Any]:
    _, picture = cv2.imencode(".png", np.repeat(mask.astype(np.uint8)[..., None] * 255, channels, 2))
    return {"data": base64.b64encode(zlib.compress(picture.tobytes())).decode(), "origin": [5, 4]}


def supervisely(tmp_path: Path, *objects: Any) -> Path:
    folder = tmp_path / "project" / "ds" / "ann"
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "description": "",
        "size": {"height": SIZE[0], "width": SIZE[1]},
        "tags": [],
        "objects": list(objects),
    }
    (folder / "street.jpg.json").write_text(json.dumps(document, indent=2))
    (tmp_path / "project" / "meta.json").write_text('{"classes": []}')
    return tmp_path / "project"


def test_supervisely_reads_bitmaps_and_polygons_as_its_own_reader_does(tmp_path: Path, photos: Path) -> None:
    points = {"exterior": [[5, 4], [20, 6], [14, 18]], "interior": [[[10, 8], [14, 8], [12, 12]]]}
    cut = RING[4:20, 5:30]
    folder = supervisely(
        tmp_path,
        {"id": 1, "classTitle": "cup", "geometryType": "bitmap", "bitmap": bitmap(cut, 4)},
        {"id": 2, "classTitle": "cup", "geometryType": "bitmap", "bitmap": bitmap(cut, 1)},
        {"id": 3, "classTitle": "plate", "geometryType": "polygon", "points": points},
        {"id": 4, "classTitle": "cup", "geometryType": "rectangle", "points": {"exterior": [[1, 1], [3, 3]]}},
    )
    for path in (folder, folder / "ds", folder / "ds" / "ann"):
        assert recognise(path).name == "supervisely"
        four, one, polygon = instances_of(open_source(path, photos))
    assert np.array_equal(mask_of(four), RING)
    assert np.array_equal(mask_of(one), RING)
    expected = np.zeros(SIZE, np.uint8)
    cv2.fillPoly(expected, [np.array(points["exterior"])], 1)
    cv2.fillPoly(expected, [np.array(points["interior"][0])], 0)
    assert np.array_equal(mask_of(polygon), expected.astype(bool))
    source = open_source(folder, photos)
    source.write(tmp_path / "out", {0: full(TWO_PARTS), 2: full(RING)})
    assert (tmp_path / "out" / "meta.json").exists()
    after = json.loads((tmp_path / "out" / "ds" / "ann" / "street.jpg.json").read_text())["objects"]
    assert [each["geometryType"] for each in after] == ["bitmap", "bitmap", "polygon", "rectangle"]
    again = instances_of(open_source(tmp_path / "out", photos))
    assert np.array_equal(mask_of(again[0]), TWO_PARTS)
    assert np.array_equal(mask_of(again[2]), RING)
    source.write(tmp_path / "out2", {2: full(TWO_PARTS)})
    assert np.array_equal(mask_of(instances_of(open_source(tmp_path / "out2", photos))[2]), TWO_PARTS)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"geometryType": "bitmap"}, "where it needs an object"),
        ({"geometryType": "bitmap", "bitmap": {"data": 3, "origin": [1, 2]}}, "its bitmap has no data"),
        ({"geometryType": "bitmap", "bitmap": {"data": "eJzz", "origin": [1, 2]}}, "is no PNG"),
        ({"geometryType": "bitmap", "bitmap": {"data": "ab", "origin": [1, 2]}}, "its bitmap is damaged"),
        ({"geometryType": "bitmap", "bitmap": {"data": "", "origin": [1]}}, "a bitmap needs 1 points"),
        ({"geometryType": "polygon", "points": {"exterior": [[1, 2]]}}, "a polygon needs 3 points"),
        ({"geometryType": "polygon", "points": {"exterior": [[1, 2], [3, 4], [1e9, 3]]}}, "far outside"),
    ],
)
def test_a_bad_object_of_supervisely_is_named_and_stays(
    tmp_path: Path, photos: Path, bad: dict[str, Any], reason: str
) -> None:
    good = {"classTitle": "cup", "geometryType": "polygon", "points": {"exterior": SQUARE, "interior": []}}
    source = open_source(supervisely(tmp_path, good, bad), photos)
    (fault,) = faults_of(source)
    assert "street.jpg.json: object 1 (None): " in fault
    assert reason in fault
    source.write(tmp_path / "out", {0: full(RING)})
    after = json.loads((tmp_path / "out" / "ds" / "ann" / "street.jpg.json").read_text())["objects"]
    assert after[1] == bad


def written(entry: Format, scene: SceneSource, tolerance: float = 0) -> tuple[Source, Written]:
    """A scene written in a format and opened again."""
    folder = Path(tempfile.mkdtemp())
    photos = photos_of(scene, folder / "photos")
    path = folder / ("masks" if entry.is_folder else f"masks{entry.suffixes[0]}")
    done = entry.write(path, replace(scene, options=OpenOptions(polygon_tolerance=tolerance)), {})
    assert recognise(path).name == entry.name
    return entry.open(path, OpenOptions(photos)), done


@settings(max_examples=25, deadline=None)
@given(scenes(crowds=False), st.sampled_from(TOOLS), st.sampled_from([0, 0.5]))
def test_what_is_written_comes_back(scene: SceneSource, entry: Format, tolerance: float) -> None:
    if scene.num_instances:
        fields = ("score",) if entry in HOLDS_SCORES else ()
        back, done = written(entry, scene, tolerance)
        assert done == Written()
        for (name, found), (same, expected) in zip(held(back, *fields), held(scene, *fields), strict=True):
            assert name == same
            for (mask, *values), (truth, *others) in zip(found, expected, strict=True):
                assert mask.differing(truth) <= (0.01 * truth.area if tolerance else 0)
                assert values == others
        names = [
            sorted((item.file_name, [source.categories[i.category_id] for i in item.instances])
                   for item in source if isinstance(item, ImageRecord) and item.instances)
            for source in (back, scene)
        ]  # fmt: skip
        assert names[0] == names[1]


@pytest.mark.parametrize("entry", TOOLS)
def test_crowds_have_no_place_and_are_named(entry: Format) -> None:
    instance = Instance(0, full(RING), "instance 0", 1, is_crowd=True)
    scene = SceneSource((ImageRecord(None, "a.jpg", (instance,), SIZE, None, "a.jpg"),), {1: "cup"})
    _, done = written(entry, scene)
    (fault,) = done.faults
    assert "it is a crowd; write another format" in str(fault.error)


@pytest.mark.parametrize("entry", TOOLS)
def test_large_masks_become_polygons_of_few_points_where_a_tolerance_is_given(entry: Format) -> None:
    size = (300, 400)
    disc = np.hypot(*(np.indices(size) - np.array([[[140]], [[180]]]))) < 93
    instance = Instance(0, full(disc), "instance 0", 1)
    scene = SceneSource((ImageRecord(None, "a.jpg", (instance,), size, None, "a.jpg"),), {1: "cup"})
    back, _ = written(entry, scene, 0.5)
    (again,) = instances_of(back)
    assert np.count_nonzero(mask_of(again) ^ disc) < 0.01 * disc.sum()


def test_names_that_no_xml_holds_are_refused_before_the_work() -> None:
    assert CVAT.check is not None
    with pytest.raises(InputError, match=r"category 1: 'a\\x01' has '\\x01', which no XML can hold"):
        CVAT.check(SceneSource((), {1: "a\x01"}))


def test_a_bad_region_of_an_image_without_a_size_counts_once(tmp_path: Path) -> None:
    path = label_studio(tmp_path, via([shape(SQUARE[:2]), shape(SQUARE)]))
    converted = convert_masks(path, tmp_path / "out", to="supervisely")
    assert (converted.instances, converted.instances_read, len(converted.errors)) == (0, 2, 2)
