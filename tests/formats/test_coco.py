"""COCO files: nothing is lost or rebuilt, everything wrong is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_scenes import (
    NEW,
    NEW_VALUE,
    RLE,
    SIZE,
    faults_of,
    instances_of,
    make_images,
    records_of,
    result,
    written,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from transfiner_refine.errors import InputError, OutputError
from transfiner_refine.formats import RecordFault, Source, open_source
from transfiner_refine.formats.records import ImageRecord


def opened(
    tmp_path: Path, document: Any, names: tuple[str, ...] = ("1.jpg", "2.jpg"), **options: Any
) -> Source:
    return open_source(written(tmp_path, document), make_images(tmp_path / "images", *names), **options)


def test_a_results_list_gives_images_in_the_order_in_which_they_first_occur(tmp_path: Path) -> None:
    source = opened(tmp_path, [result(2), result(1), result(2, score=1)])
    records = records_of(source)
    assert [record.path.name for record in records] == ["2.jpg", "1.jpg"]
    assert [[instance.index for instance in record.instances] for record in records] == [[0, 2], [1]]
    assert (source.num_images, source.num_instances) == (2, 3)
    assert [instance.score for instance in instances_of(source)] == [0.5, 1.0, 0.5]


def test_an_annotation_file_names_its_images_categories_and_crowds(tmp_path: Path) -> None:
    document = {
        "info": {"year": 2017},
        "images": [{"id": 7, "file_name": "val/street.jpg", "height": 6, "width": 8}],
        "annotations": [{"id": 9, "image_id": 7, "category_id": 3, "iscrowd": 1, "segmentation": RLE}],
        "categories": [{"id": 3, "name": "cat"}],
    }
    source = opened(tmp_path, document, ("street.jpg",))
    (record,) = source
    assert isinstance(record, ImageRecord)
    assert (record.path.name, record.name, record.size) == ("street.jpg", "val/street.jpg", SIZE)
    assert (record.instances[0].label, record.instances[0].is_crowd) == ("annotation id 9", True)
    assert source.categories == {3: "cat"}


def test_image_info_says_which_id_is_which_photo(tmp_path: Path) -> None:
    info = written(tmp_path, {"images": [{"id": 1, "file_name": "street.png"}]}, "info.json")
    source = opened(tmp_path, [result(1)], ("street.png",), image_info=info)
    assert [item.path.name for item in source if isinstance(item, ImageRecord)] == ["street.png"]


def test_polygons_without_a_stated_size_take_that_of_the_photo(tmp_path: Path) -> None:
    source = opened(tmp_path, [result(segmentation=[[1, 1, 5, 1, 5, 4]])])
    assert instances_of(source)[0].mask.size == SIZE


@pytest.mark.parametrize("piece", [[], [1, 1], [1, 1, 5, 5]])
def test_pieces_of_fewer_than_three_points_are_passed_over(tmp_path: Path, piece: list[float]) -> None:
    sound = [1, 1, 5, 1, 5, 4]
    pieces = [result(segmentation=each) for each in ([sound], [piece, sound], [sound, piece], [piece])]
    source = opened(tmp_path, pieces)
    (fault,) = [item for item in source if isinstance(item, RecordFault)]
    assert "three or more points" in str(fault.error)
    masks = [instance.mask for instance in instances_of(source)]
    assert masks == masks[:1] * 3


def test_what_was_not_refined_is_written_exactly_as_it_was(tmp_path: Path) -> None:
    records = [
        result(score=0.12345678901234567, extra={"b": [1, None, "ü"], "a": 1e-7}),
        result(segmentation=[[1, 1, 5, 1, 5.5, 4]], score=1, bbox=[1, 2, 3.5, 4]),
        {"segmentation": None, "image_id": 1},
        "not even an object",
    ]
    source = opened(tmp_path, records)
    source.write(tmp_path / "out.json", {})
    assert (tmp_path / "out.json").read_bytes() == (tmp_path / "masks.json").read_bytes()


def test_a_refined_record_keeps_its_keys_in_order_and_gets_mask_box_and_area(tmp_path: Path) -> None:
    record = {"id": 5, "area": 7.5, "score": 0.25, "bbox": [0, 0, 1, 1], **result(), "mine": "kept"}
    opened(tmp_path, [record, result()]).write(tmp_path / "out.json", {0: NEW, 1: NEW})
    first, second = json.loads((tmp_path / "out.json").read_text())
    assert list(first) == list(record)
    assert first["segmentation"] == {"size": [6, 8], "counts": NEW.counts}
    assert (first["bbox"], first["area"], first["mine"]) == ([4.0, 1.0, 3.0, 2.0], 6.0, "kept")
    assert first["bbox"] == coco_mask.toBbox(first["segmentation"]).tolist()
    assert "bbox" not in second
    assert "area" not in second


def test_keep_boxes_leaves_box_and_area(tmp_path: Path) -> None:
    source = opened(tmp_path, [result(bbox=[0, 0, 1, 1], area=1)])
    source.write(tmp_path / "out.json", {0: NEW}, keep_boxes=True)
    (written,) = json.loads((tmp_path / "out.json").read_text())
    assert (written["bbox"], written["area"]) == ([0, 0, 1, 1], 1)


def test_an_annotation_file_comes_out_whole_and_pycocotools_loads_it(tmp_path: Path) -> None:
    document = {
        "info": {"description": "mine"},
        "images": [{"id": 1, "file_name": "1.jpg", "height": 6, "width": 8, "license": 2}],
        "annotations": [
            {"id": 9, "iscrowd": 0, "area": 5, **result(1)},
            {"id": 4, "iscrowd": 1, **result(1)},
        ],
        "categories": [{"id": 3, "name": "cat"}],
        "licenses": [],
    }
    opened(tmp_path, document).write(tmp_path / "out.json", {0: NEW})
    written = json.loads((tmp_path / "out.json").read_text())
    assert list(written) == list(document)
    assert {**written, "annotations": written["annotations"][1:]} == {
        **document,
        "annotations": document["annotations"][1:],
    }
    assert np.array_equal(
        COCO(tmp_path / "out.json").annToMask(written["annotations"][0]), NEW.decode().paste()
    )


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(st.text(min_size=1), json_values, max_size=4), min_size=1, max_size=5))
def test_unknown_keys_survive_whatever_they_hold(tmp_path: Path, extras: list[dict[str, Any]]) -> None:
    records = [{**extra, **result()} for extra in extras]
    source = opened(tmp_path, records)
    source.write(tmp_path / "out.json", {0: NEW}, overwrite=True)
    written = json.loads((tmp_path / "out.json").read_text())
    assert written[1:] == records[1:]
    assert list(written[0]) == list(records[0])


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (result(99), "image id 99 is not there (tried 000000000099,"),
        (result(None), "masks.json: record 1: image_id is missing"),
        (result(True), "masks.json: record 1: image_id is True"),
        (17, "masks.json: record 1: is no JSON object"),
        (result(score=float("nan")), "masks.json: record 1: score is nan; write a finite number"),
        (result(score="high"), "masks.json: record 1: score is 'high'"),
        (
            result(segmentation={"size": [6, 8], "counts": [1]}),
            "masks.json: record 1: the RLE's runs add up to 1",
        ),
        ({"image_id": 1, "bbox": [1, 2, 3, 4]}, "masks.json: record 1: the segmentation is missing"),
    ],
)
def test_one_bad_record_is_named_and_the_others_go_on(tmp_path: Path, record: Any, reason: str) -> None:
    source = opened(tmp_path, [result(), record, result()])
    (fault,) = faults_of(source)
    assert reason in fault
    assert "\n" not in fault
    assert [instance.index for instance in instances_of(source)] == [0, 2]


def test_an_annotation_of_an_unlisted_image_is_named(tmp_path: Path) -> None:
    images = [{"id": 1, "file_name": "1.jpg"}]
    annotations = [{"id": 5, **result(1)}, {"id": 6, **result(2)}]
    source = opened(tmp_path, {"images": images, "annotations": annotations})
    assert "masks.json: annotation 1: image id 2 is not among the images" in faults_of(source)[0]


def test_where_no_photo_is_found_at_all_nothing_is_tried(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none of the 2 images was found; .*tried 000000000008,"):
        opened(tmp_path, [result(8), result(9)])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        ("# masks", "is in no known format"),
        ("[]", "holds no records"),
        ('{"images": [], "annotations": []}', "holds no annotations"),
        ('{"images": []}', "has no list of annotations"),
        ('{"a": 1}', "neither a list of results nor an object with images and annotations"),
        ('[{"image_id": 1,', "line 1 column 17: is not valid JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("[" + "9" * 10_000 + "]", "is not valid JSON"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_one_line(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "masks.json").write_text(text)
    with pytest.raises(InputError) as caught:
        open_source(tmp_path / "masks.json", make_images(tmp_path / "images", "1.jpg"))
    assert reason in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "masks.json"))


def test_missing_masks_and_missing_images_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="check --masks"):
        open_source(tmp_path / "none.json", make_images(tmp_path / "images", "1.jpg"))
    with pytest.raises(InputError, match="give the folder of the images"):
        open_source(written(tmp_path, [result()]), tmp_path / "nowhere")


def test_the_output_is_never_an_input_nor_an_existing_file_unasked(tmp_path: Path) -> None:
    source = opened(tmp_path, [result()])
    with pytest.raises(OutputError, match="is an input of this run"):
        source.write(tmp_path / "images" / ".." / "masks.json", {}, overwrite=True)
    (tmp_path / "out.json").write_text("mine")
    with pytest.raises(OutputError, match="exists already; give another --output, or --overwrite"):
        source.write(tmp_path / "out.json", {})
    assert (tmp_path / "out.json").read_text() == "mine"
    source.write(tmp_path / "out.json", {}, overwrite=True)
    assert json.loads((tmp_path / "out.json").read_text()) == [result()]


def test_pieces_without_area_are_dropped_and_counted(tmp_path: Path) -> None:
    sound = [1, 1, 5, 1, 5, 4]
    pieces = [[0, 0, 1, 1], [2, 2, 4, 4, 6, 6], [3, 3, 3, 3, 3, 3, 3, 3]]
    source = opened(tmp_path, [result(segmentation=[sound]), result(segmentation=[sound, *pieces])])
    first, second = instances_of(source)
    assert first.mask == second.mask
    assert source.notes == [
        "Dropped, for they hold no pixel: 3 polygon pieces of fewer than three points or without area."
    ]


@pytest.mark.parametrize(
    ("value", "crowd"),
    [(0, False), ("0", False), (False, False), ("", False), (1, True), ("1", True), (1.0, True)],
)
def test_whether_a_record_is_a_crowd_is_read_however_json_has_it(
    tmp_path: Path, value: Any, crowd: bool
) -> None:
    (instance,) = instances_of(opened(tmp_path, [result(iscrowd=value)]))
    assert instance.is_crowd == crowd
    (instance,) = instances_of(opened(tmp_path, [result(iscrowd=value)], refine_crowds=True))
    assert not instance.is_crowd


@pytest.mark.parametrize(
    "keys", [{"iscrowd": "no"}, {"iscrowd": 2}, {"category_id": "cup"}, {"category_id": 1.5}]
)
def test_what_is_no_number_is_named_and_never_taken_for_another(tmp_path: Path, keys: dict[str, Any]) -> None:
    (fault,) = faults_of(opened(tmp_path, [result(**keys), result()]))
    ((key, value),) = keys.items()
    assert f"record 0: {key} is {value!r}" in fault


def test_masks_of_another_size_are_fitted_to_their_image(tmp_path: Path) -> None:
    half = {"size": [3, 4], "counts": [4, 1, 7]}
    record = result(segmentation=half)
    (plain,) = instances_of(opened(tmp_path, [record]))
    (fitted,) = instances_of(opened(tmp_path, [record], fit_masks=True))
    assert (plain.mask.size, fitted.mask.size) == ((3, 4), SIZE)
    assert fitted.mask.box == (2, 2, 4, 4)


def test_an_image_is_found_by_its_address_where_its_name_is_not_there(tmp_path: Path) -> None:
    image = {"id": 1, "file_name": "a.jpg", "coco_url": "http://images.cocodataset.org/val2017/1.jpg"}
    document = {"images": [image], "annotations": [result(1)], "categories": []}
    (record,) = records_of(opened(tmp_path, document))
    assert record.path is not None
    assert record.path.name == "1.jpg"


def test_a_refined_crowd_keeps_its_runs_as_a_list(tmp_path: Path) -> None:
    source = opened(tmp_path, [result(iscrowd=1), result()], refine_crowds=True)
    source.write(tmp_path / "out.json", {0: NEW, 1: NEW})
    crowd, other = json.loads((tmp_path / "out.json").read_text())
    assert (crowd["iscrowd"], crowd["segmentation"]["counts"]) == (1, NEW.runs.tolist())
    assert other["segmentation"]["counts"] == NEW.counts


def test_polygons_of_another_size_than_their_image_become_runs_of_its_size(tmp_path: Path) -> None:
    image = {"id": 1, "file_name": "1.jpg", "height": 3, "width": 4}
    polygon = result(1, segmentation=[[1, 1, 3, 1, 3, 2, 1, 2]])
    document = {"images": [image], "annotations": [polygon], "categories": []}
    source = opened(tmp_path, document, fit_masks=True)
    (instance,) = instances_of(source)
    assert instance.mask.size == SIZE
    source.write(tmp_path / "out.json", {0: NEW})
    (annotation,) = json.loads((tmp_path / "out.json").read_text())["annotations"]
    assert annotation["segmentation"] == NEW_VALUE


def test_categories_that_are_not_listed_are_told_of(tmp_path: Path) -> None:
    image = {"id": 1, "file_name": "1.jpg", "height": 6, "width": 8}
    annotations = [result(1, category_id=number) for number in (3, "9", 7.0, 3)]
    document = {"images": [image], "annotations": annotations, "categories": [{"id": "3", "name": "cup"}]}
    source = opened(tmp_path, document)
    assert source.notes == ["Category ids that are not among the categories: 2 (7, 9)."]
    assert len(instances_of(source)) == 4


def test_coco_stuff_is_read_as_annotations_and_as_results(tmp_path: Path) -> None:
    stuff = {
        "id": 10_000_001,
        "image_id": 1,
        "category_id": 106,
        "iscrowd": 0,
        "area": 5,
        "segmentation": RLE,
    }
    document = {
        "images": [{"id": 1, "file_name": "1.jpg", "height": 6, "width": 8}],
        "annotations": [{**stuff, "bbox": [1, 4, 1, 2]}],
        "categories": [{"id": 106, "name": "clouds", "supercategory": "sky"}],
    }
    (instance,) = instances_of(opened(tmp_path, document))
    assert (instance.category_id, instance.instance_id, instance.is_stuff) == (106, 10_000_001, False)
    del stuff["id"], stuff["iscrowd"], stuff["area"]
    (instance,) = instances_of(opened(tmp_path, [stuff]))
    assert (instance.category_id, instance.score) == (106, None)
