"""COCO files as files: long ones, packed ones, one record a line, LVIS's, and damaged ones."""

from __future__ import annotations

import gzip
import json
import os
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_scenes import (
    NEW,
    NEW_VALUE,
    faults_of,
    instances_of,
    make_images,
    records_of,
    result,
    written,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from transfiner_refine.errors import InputError
from transfiner_refine.formats import Mask, RecordFault, json_stream, open_source, text_file
from transfiner_refine.formats.records import ImageRecord
from transfiner_refine.formats.registry import recognise
from transfiner_refine.masks import MaskWindow

UGLY = """ [
  {"image_id" : 1,"score":0.10,  "segmentation": {"counts":[10,5,33],"size":[6,8]}, "bbox":[1,2,3,4], "x": 1E5},
  {"score":1.0e0, "note": "zwölf \\u00e9 \\n", "image_id": 2, "segmentation" :{"size":[6,8],"counts":[48]} }

] \n"""


def test_bytes_that_are_not_a_refined_mask_or_its_box_are_never_touched(tmp_path: Path) -> None:
    source = open_source(written(tmp_path, UGLY))
    source.write(tmp_path / "same.json", {})
    assert (tmp_path / "same.json").read_bytes() == UGLY.encode()
    source.write(tmp_path / "out.json", {0: NEW})
    expected = UGLY.replace('{"counts":[10,5,33],"size":[6,8]}', json.dumps(NEW_VALUE, separators=(",", ":")))
    expected = expected.replace("[1,2,3,4]", "[4.0,1.0,3.0,2.0]")
    assert (tmp_path / "out.json").read_bytes() == expected.encode()


def test_polygons_stay_polygons_that_people_can_edit(tmp_path: Path) -> None:
    size = (200, 300)
    disc = np.hypot(*(np.indices(size) - np.array([[[90]], [[120]]]))) < 71
    disc &= np.hypot(*(np.indices(size) - np.array([[[90]], [[120]]]))) > 30
    disc[150:190, 250:290] = True
    mask = Mask.from_window(MaskWindow(disc, 0, 0, size))
    image = {"id": 1, "file_name": "a.jpg", "height": 200, "width": 300}
    text = json.dumps({"images": [image], "annotations": [
        {"id": 7, "image_id": 1, "segmentation": [[10.5, 10, 90, 10, 90, 90.25]], "area": 3.5, "bbox": [1, 2, 3, 4]},
        {"id": 8, "image_id": 1, "segmentation": [[10.5, 10, 90, 10, 90, 90.25]]},
        {"id": 9, "image_id": 1, "segmentation": {"size": [200, 300], "counts": [0, 600, 59400]}},
    ]}, indent=1)  # fmt: skip
    path = written(tmp_path, text)
    for tolerance, points in ((0, 900), (0.5, 90)):
        out = tmp_path / f"out{tolerance}.json"
        source = open_source(path, polygon_tolerance=tolerance)
        source.write(out, {0: mask, 2: mask})
        after = json.loads(out.read_text())["annotations"]
        assert [len(after[0]["segmentation"]), type(after[2]["segmentation"])] == [2, dict]  # two parts
        assert sum(map(len, after[0]["segmentation"])) < 2 * points
        assert after[1] == json.loads(text)["annotations"][1]
        drawn, _, rle = (instance.mask for instance in instances_of(open_source(out)))
        assert rle == mask
        assert drawn.differing(mask) <= (0.01 * mask.area if tolerance else 0)
        x0, y0, x1, y1 = drawn.box
        assert (after[0]["area"], after[0]["bbox"]) == (drawn.area, [x0, y0, x1 - x0, y1 - y0])
    open_source(path, polygons="rle").write(tmp_path / "rle.json", {0: mask})
    assert json.loads((tmp_path / "rle.json").read_text())["annotations"][0]["segmentation"] == {
        "size": [200, 300],
        "counts": mask.counts,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("split")


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.dictionaries(st.text(max_size=3), st.text(max_size=4) | st.floats() | st.integers(), max_size=3),
        max_size=8,
    ),
    st.integers(1, 40),
    st.booleans(),
    st.sampled_from([None, 1]),
)
def test_a_text_is_split_where_the_json_module_would_split_it_whatever_the_window(
    folder: Path, records: list[Any], window: int, ascii_only: bool, indent: int | None
) -> None:
    text = json.dumps(records, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "surrogatepass")
    try:
        text.decode()
    except UnicodeDecodeError:
        return
    path = folder / "split.json"
    path.write_bytes(text)
    piece, text_file.PIECE = text_file.PIECE, window
    try:
        (entries,) = (list(found) for _, found in json_stream.sections(text_file.TextFile(path)))
        parts = [(value, text[start:end]) for value, start, end in entries]
    finally:
        text_file.PIECE = piece
    assert repr([value for value, _ in parts]) == repr(records)
    assert repr([json.loads(part) for _, part in parts]) == repr(records)


@pytest.mark.parametrize("kind", ["results", "lines", "annotations"])
def test_memory_does_not_grow_with_the_length_of_the_records(tmp_path: Path, kind: str) -> None:
    """15 MB of records that nothing reads: offsets are held, and one image at a time."""
    path = tmp_path / "long.json"
    start, between, end = {
        "results": ("[", ",", "]"),
        "lines": ("", "\n", ""),
        "annotations": (f'{{"images":[{LISTED}],"annotations":[', ",", "]}"),
    }[kind]
    with path.open("w") as file:
        for index in range(250):
            file.write(between if index else start)
            file.write(json.dumps(result(index % 50, filler="x" * 60_000)))
        file.write(end)
    tracemalloc.start()
    try:
        source = open_source(path)
        assert len(instances_of(source)) == 250
        for item in source:
            assert isinstance(item, ImageRecord)
        source.write(tmp_path / "out.json", {5: NEW})
        assert tracemalloc.get_traced_memory()[1] < 8e6
    finally:
        tracemalloc.stop()


LISTED = ",".join(json.dumps({"id": n, "file_name": f"{n}.jpg", "height": 6, "width": 8}) for n in range(50))


def test_json_lines_are_recognised_and_come_out_line_for_line(tmp_path: Path) -> None:
    lines = [json.dumps(result(2)), "", json.dumps(result(1, score=0.25)), "  " + json.dumps(result(2))]
    source = open_source(written(tmp_path, "\n".join(lines), "detections.txt"))
    assert recognise(tmp_path / "detections.txt").name == "coco-results-jsonl"
    assert [(instance.index, instance.label) for instance in instances_of(source)] == [
        (0, "line 1"), (2, "line 4"), (1, "line 3"),
    ]  # fmt: skip
    source.write(tmp_path / "out.txt", {1: NEW})
    out = (tmp_path / "out.txt").read_text().split("\n")
    assert out[:2] == lines[:2]
    assert out[3] == lines[3]
    assert json.loads(out[2]) == {**result(1, score=0.25), "segmentation": NEW_VALUE}


def test_a_line_that_is_no_json_is_named_and_passes_through(tmp_path: Path) -> None:
    lines = [
        json.dumps(result()).encode(),
        b'{"image_id": 1, ',
        b'"\xff"',
        b"17",
        json.dumps(result()).encode(),
    ]
    source = open_source(written(tmp_path, b"\n".join(lines)))
    assert [fault.split("masks.json: ")[1].split(";")[0] for fault in faults_of(source)] == [
        "line 2: is not valid JSON: Expecting property name enclosed in double quotes at character 16",
        "line 3: is not valid JSON: not UTF-8 (invalid start byte)",
        "line 4: is no JSON object",
    ]
    assert len(instances_of(source)) == 2
    source.write(tmp_path / "out.json", {0: NEW})
    assert (tmp_path / "out.json").read_bytes().split(b"\n")[1:] == lines[1:]


def test_windows_line_endings_stay(tmp_path: Path) -> None:
    text = f"{json.dumps(result())}\r\n{json.dumps(result())}\r\n"
    source = open_source(written(tmp_path, text))
    source.write(tmp_path / "out.json", {0: NEW})
    assert (tmp_path / "out.json").read_bytes().count(b"}\r\n") == 2


def test_gzip_is_told_by_content_and_written_by_name(tmp_path: Path) -> None:
    text = json.dumps([result(), result(2)]).encode()
    source = open_source(written(tmp_path, gzip.compress(text), "masks.json"))
    assert source.num_instances == 2
    source.write(tmp_path / "plain.json", {})
    assert (tmp_path / "plain.json").read_bytes() == text
    source.write(tmp_path / "packed.json.gz", {})
    source.write(tmp_path / "again.json.gz", {})
    assert gzip.decompress((tmp_path / "packed.json.gz").read_bytes()) == text
    assert (tmp_path / "packed.json.gz").read_bytes() == (tmp_path / "again.json.gz").read_bytes()
    assert open_source(tmp_path / "packed.json.gz").num_instances == 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: data[:-12], "is a damaged gzip file"),
        (lambda data: data[:30] + bytes(20) + data[50:], "is a damaged gzip file"),
        (lambda data: data + b"more", "is a damaged gzip file"),
    ],
)
def test_a_damaged_gzip_file_is_refused_in_one_line(tmp_path: Path, change: Any, reason: str) -> None:
    data = gzip.compress(json.dumps([result(note=str(index)) for index in range(50)]).encode())
    with pytest.raises(InputError, match=reason) as caught:
        open_source(written(tmp_path, change(data)), format="coco-results")
    assert "\n" not in str(caught.value)


def test_a_gzip_bomb_is_stopped_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_file, "MAX_UNPACKED", 1 << 25)
    path = tmp_path / "bomb.json.gz"
    path.write_bytes(gzip.compress(b"[" + b" " * (1 << 20)) * 40)
    with pytest.raises(InputError, match=r"holds more than 0\.03125 GiB of text; unpack it"):
        open_source(path)


def test_a_value_too_long_to_be_a_record_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "MAX_VALUE", 1 << 20)
    with pytest.raises(InputError, match="has a value of more than 1 MiB"):
        open_source(written(tmp_path, json.dumps([result(), result(note="x" * (4 << 20))])))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[{"image_id": 1}, ', "line 1 column 19: is not valid JSON: Expecting value"),
        ('[{"image_id": 1}', "is not valid JSON: Expecting ',' delimiter"),
        (
            '[\n{"image_id": 1}\n{"image_id": 2}]',
            "line 3 column 1: is not valid JSON: Expecting ',' delimiter",
        ),
        ('[{"image_id": 1},]', "is not valid JSON"),
        ('[{"image_id": 1}] more', "line 1 column 19: is not valid JSON: Extra data"),
        ('{"images": [], "annotations": [], "images": []}', "has the key 'images' twice"),
        ('{"images": [], "annotations": [}', "is not valid JSON: Expecting value"),
        ('{"images": [], annotations', "Expecting property name enclosed in double quotes"),
    ],
)
def test_broken_json_is_refused_with_its_place(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(InputError) as caught:
        open_source(written(tmp_path, text))
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_text_that_is_not_utf_8_is_refused_with_its_place(tmp_path: Path) -> None:
    text = json.dumps([result()]).encode().replace(b"score", b"sc\xffre")
    with pytest.raises(
        InputError, match=r"line 1 column \d+: is not valid JSON: not UTF-8 \(invalid start byte\)"
    ):
        open_source(written(tmp_path, text))


def test_a_record_with_a_key_twice_is_named_for_readers_differ_in_which_they_take(tmp_path: Path) -> None:
    double = json.dumps(result()).replace('"score": 0.5', '"score": 0.5, "score": 0.9')
    source = open_source(written(tmp_path, f"[{json.dumps(result())}, {double}]"))
    assert "record 1: has the key 'score' twice" in faults_of(source)[0]
    assert len(instances_of(source)) == 1


@pytest.mark.parametrize("score", ["NaN", "-Infinity", "1e999", "1" + "0" * 400, "[1]", '"0.5"'])
def test_a_score_that_is_no_finite_number_is_named(tmp_path: Path, score: str) -> None:
    text = json.dumps([result()]).replace("0.5", score)
    source = open_source(written(tmp_path, text))
    assert "record 0: score is" in faults_of(source)[0]
    source.write(tmp_path / "out.json", {})
    assert (tmp_path / "out.json").read_text() == text


def test_an_image_that_is_listed_twice_is_at_fault_as_a_whole(tmp_path: Path) -> None:
    images = [
        {"id": 1, "file_name": "a.jpg"},
        {"id": 1, "file_name": "b.jpg"},
        {"id": 2, "file_name": "c.jpg"},
    ]
    annotations = [{"id": 4, **result(1)}, {"id": 5, **result(1)}, {"id": 6, **result(2)}]
    source = open_source(written(tmp_path, json.dumps({"images": images, "annotations": annotations})))
    (fault,) = [item for item in source if isinstance(item, RecordFault)]
    assert (fault.instances, fault.whole_image) == (2, True)
    assert "image id 1 is listed twice; keep one of the two" in str(fault.error)


def test_an_image_without_annotations_needs_no_photo_but_one_entry(tmp_path: Path) -> None:
    make_images(tmp_path / "images", "a.jpg")
    names = {1: "a.jpg", 2: "missing.jpg", 3: "c.jpg"}
    images = [{"id": n, "file_name": names[n]} for n in (1, 2, 3, 3)]
    document = {"images": images, "annotations": [{"id": 5, **result(1)}]}
    source = open_source(written(tmp_path, json.dumps(document)), tmp_path / "images")
    assert [item.name for item in source if isinstance(item, ImageRecord)] == ["a.jpg", "missing.jpg"]
    (fault,) = [item for item in source if isinstance(item, RecordFault)]
    assert (str(fault.error).count("image id 3 is listed twice"), fault.instances) == (1, 0)


def test_annotation_files_give_their_images_in_order_and_those_without_annotations(tmp_path: Path) -> None:
    images = [{"id": n, "file_name": f"{n}.jpg", "height": 6, "width": 8} for n in (3, 1, 2)]
    document = {"images": images, "annotations": [{"id": 5, **result(1)}, {"id": 9, **result(3)}]}
    source = open_source(written(tmp_path, json.dumps(document)))
    records = records_of(source)
    assert [(record.image_id, len(record.instances)) for record in records] == [(3, 1), (1, 1), (2, 0)]
    assert [instance.instance_id for instance in instances_of(source)] == [9, 5]
    assert (source.num_images, source.num_instances) == (2, 2)


def test_polygons_without_photos_need_a_stated_size(tmp_path: Path) -> None:
    source = open_source(written(tmp_path, json.dumps([result(segmentation=[[1, 1, 5, 1, 5, 4]])])))
    assert "its polygons do not say how large the image is; give the photos" in faults_of(source)[0]


def test_a_file_that_changes_during_the_run_is_noticed(tmp_path: Path) -> None:
    path = written(tmp_path, json.dumps([result()] * 3))
    source = open_source(path)
    path.write_text(json.dumps([result()]))
    with pytest.raises(InputError, match="has changed while it was read"):
        source.write(tmp_path / "out.json", {})
    assert not (tmp_path / "out.json").exists()


def test_a_file_that_is_replaced_during_the_run_does_no_harm(tmp_path: Path) -> None:
    path = written(tmp_path, json.dumps([result()] * 3))
    source = open_source(path)
    written(tmp_path, "[]", "new.json").replace(path)
    source.write(tmp_path / "out.json", {})
    assert json.loads((tmp_path / "out.json").read_text()) == [result()] * 3


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is no file"):
        open_source(tmp_path / "pipe", format="coco-results")


LVIS = {
    "info": {"version": "v1"},
    "images": [
        {
            "id": 397133,
            "coco_url": "http://images.cocodataset.org/val2017/000000397133.jpg",
            "height": 6,
            "width": 8,
            "neg_category_ids": [],
            "not_exhaustive_category_ids": [],
        }
    ],
    "annotations": [{"id": 1, "image_id": 397133, "category_id": 1203, "segmentation": [[1, 1, 5, 1, 5, 4]],
         "area": 6}],
    "categories": [{"id": 1203, "name": "zucchini", "synset": "zucchini.n.02", "frequency": "c"}],
}  # fmt: skip


@pytest.mark.parametrize("place", ["val2017/000000397133.jpg", "000000397133.jpg"])
def test_lvis_results_are_coco_results_with_lvis_annotations_as_image_info(
    tmp_path: Path, place: str
) -> None:
    photo = make_images(tmp_path / "images", place) / place
    records = [result(397133, category_id=1 + index % 1203) for index in range(300)]
    info = written(tmp_path, json.dumps(LVIS), "lvis_v1_val.json")
    source = open_source(written(tmp_path, json.dumps(records)), tmp_path / "images", image_info=info)
    (record,) = source
    assert isinstance(record, ImageRecord)
    assert (record.path, record.file_name) == (photo, "val2017/000000397133.jpg")
    assert len(record.instances) == 300
    assert source.categories == {1203: "zucchini"}


def test_lvis_annotations_are_coco_annotations(tmp_path: Path) -> None:
    source = open_source(written(tmp_path, json.dumps(LVIS), "lvis.json"))
    assert [instance.category_id for instance in instances_of(source)] == [1203]
    source.write(tmp_path / "out.json", {0: NEW})
    out = json.loads((tmp_path / "out.json").read_text())
    assert out["annotations"][0]["area"] == 6
    assert {**out, "annotations": []} == {**LVIS, "annotations": []}
