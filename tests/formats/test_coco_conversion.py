"""COCO files written from other formats: ids, classes, scores that a source has not; pycocotools reads the result."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from mask_scenes import CATEGORIES, SceneSource, held, scenes
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from transfiner_refine.errors import InputError
from transfiner_refine.formats import Mask, RecordFault, open_source
from transfiner_refine.formats.coco_write import COCO_ANNOTATIONS, COCO_LINES, COCO_RESULTS
from transfiner_refine.formats.records import ImageRecord, Instance
from transfiner_refine.masks import MaskWindow

SIZE = (4, 5)


def mask(x: int = 0, y: int = 0, height: int = 2, width: int = 3) -> Mask:
    return Mask.from_window(MaskWindow(np.ones((height, width), bool), x, y, SIZE))


def scene(*images: tuple[str, list[dict[str, Any]]], image_ids: Any = None) -> SceneSource:
    """Images by file name, each with the fields of its instances."""
    records, index = [], 0
    for place, (name, fields) in enumerate(images):
        instances = []
        for entry in fields:
            instances.append(Instance(index, entry.get("mask", mask()), f"instance {index}"))
            instances[-1] = replace(instances[-1], **{k: v for k, v in entry.items() if k != "mask"})
            index += 1
        image_id = None if image_ids is None else image_ids[place]
        records.append(ImageRecord(None, name, tuple(instances), SIZE, image_id, name))
    return SceneSource(tuple(records), {})


def results_of(tmp_path: Path, source: SceneSource, refined: Any = None) -> list[dict[str, Any]]:
    COCO_RESULTS.write(tmp_path / "out.json", source, refined or {})
    found: list[dict[str, Any]] = json.loads((tmp_path / "out.json").read_text())
    return found


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(scenes(scores=False))
def test_pycocotools_takes_annotations_and_results_of_any_source(tmp_path: Path, scene: SceneSource) -> None:
    if not scene.num_instances:
        return
    COCO_ANNOTATIONS.write(tmp_path / "annotations.json", scene, {})
    COCO_RESULTS.write(tmp_path / "results.json", scene, {})
    truth = COCO(tmp_path / "annotations.json")
    found = truth.loadRes(str(tmp_path / "results.json"))
    in_order = [instance for record in scene.records for instance in record.instances]
    for file in (truth, found):
        annotations = sorted(file.dataset["annotations"], key=lambda entry: entry["id"])
        for annotation, instance in zip(annotations, in_order, strict=True):
            pixels = instance.mask.decode().paste()
            assert np.array_equal(file.annToMask(annotation), pixels)
            assert annotation["area"] == pixels.sum()
            rle = file.annToRLE(annotation)
            assert list(annotation["bbox"]) == coco_mask.toBbox(rle).tolist()
            assert annotation["category_id"] == instance.category_id
    for annotation, instance in zip(truth.dataset["annotations"], in_order, strict=True):
        assert annotation["iscrowd"] == instance.is_crowd
        assert isinstance(annotation["segmentation"]["counts"], list) == instance.is_crowd
    assert {entry["id"]: entry["name"] for entry in truth.dataset["categories"]} == CATEGORIES


def test_refined_masks_take_the_place_of_the_coarse_ones(tmp_path: Path) -> None:
    source = scene(("a.jpg", [{}, {}]))
    records = results_of(tmp_path, source, {1: mask(2, 2, 1, 1)})
    assert [record["segmentation"]["counts"] for record in records] == [
        mask().counts,
        mask(2, 2, 1, 1).counts,
    ]


def test_what_a_source_has_not_gets_score_one_and_a_category_object(tmp_path: Path) -> None:
    records = results_of(tmp_path, scene(("a.jpg", [{}])))
    assert [(record["score"], record["category_id"]) for record in records] == [(1.0, 1)]
    COCO_ANNOTATIONS.write(tmp_path / "annotations.json", scene(("a.jpg", [{}])), {})
    assert json.loads((tmp_path / "annotations.json").read_text())["categories"] == [
        {"id": 1, "name": "object"}
    ]


def test_the_category_object_does_not_collide_with_others(tmp_path: Path) -> None:
    source = scene(("a.jpg", [{"category_id": 1}, {}]))
    COCO_ANNOTATIONS.write(tmp_path / "out.json", source, {})
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["categories"] == [{"id": 1, "name": "class 1"}, {"id": 2, "name": "object"}]
    assert [entry["category_id"] for entry in document["annotations"]] == [1, 2]


@pytest.mark.parametrize(
    ("names", "image_ids", "expected"),
    [
        (["b.jpg", "a.jpg"], [9, 4], [9, 4]),
        (["b.jpg", "a.jpg"], ["street/9", "4"], ["street/9", "4"]),
        (["0017.jpg", "x/12.png"], None, [17, 12]),
        (["0017.jpg", "17.png"], None, [1, 2]),
        (["17.jpg", "a.jpg"], None, [1, 2]),
        (["2007_000032.jpg", "2007_000033.jpg"], None, [1, 2]),
        (["b.jpg", "a.jpg"], [9, None], [1, 2]),
    ],
)
def test_image_ids_are_the_sources_else_the_names_numbers_else_counted(
    tmp_path: Path, names: list[str], image_ids: Any, expected: list[Any]
) -> None:
    records = results_of(tmp_path, scene(*((name, [{}]) for name in names), image_ids=image_ids))
    assert [record["image_id"] for record in records] == expected


def test_results_with_counted_image_ids_say_which_photo_is_meant(tmp_path: Path) -> None:
    source = scene(("b.jpg", [{}]), ("a.jpg", [{}, {}]))
    assert [record["file_name"] for record in results_of(tmp_path, source)] == ["b.jpg", "a.jpg", "a.jpg"]
    back = open_source(tmp_path / "out.json")
    assert held(back) == held(source)
    own = scene(("b.jpg", [{}]), image_ids=[4])
    assert "file_name" not in results_of(tmp_path, own)[0]


def test_instances_keep_ids_that_differ_in_the_whole_source(tmp_path: Path) -> None:
    for ids, expected in (([7, 3], [7, 3]), ([1, 1], [1, 2]), ([7, None], [1, 2])):
        fields = [{"instance_id": value} for value in ids]
        COCO_ANNOTATIONS.write(tmp_path / "out.json", scene(("a.jpg", fields[:1]), ("b.jpg", fields[1:])), {})
        document = json.loads((tmp_path / "out.json").read_text())
        assert [entry["id"] for entry in document["annotations"]] == expected


def test_stuff_stays_stuff(tmp_path: Path) -> None:
    source = scene(("a.jpg", [{"category_id": 3, "is_stuff": True}, {"category_id": 5}]))
    COCO_ANNOTATIONS.write(tmp_path / "out.json", source, {})
    back = open_source(tmp_path / "out.json")
    (record,) = back
    assert isinstance(record, ImageRecord)
    assert [instance.is_stuff for instance in record.instances] == [True, False]


def test_lists_and_lines_hand_their_records_over_with_all_keys_and_the_order(tmp_path: Path) -> None:
    rle = {"size": [4, 5], "counts": [0, 20]}
    segmentation = json.dumps(rle)
    first_record = f'{{"image_id": 2, "score":0.10, "x": {{"y": [1E5]}},\n "segmentation": {segmentation}}}'
    ugly = f'[{first_record},\n {{"image_id":1,"segmentation":{segmentation}}}]'
    (tmp_path / "list.json").write_text(ugly)
    written = COCO_LINES.write(tmp_path / "lines.jsonl", open_source(tmp_path / "list.json"), {1: mask()})
    assert written.faults == ()
    first, second = (tmp_path / "lines.jsonl").read_text().splitlines()
    assert first == first_record.replace("\n", " ")
    assert json.loads(second)["segmentation"]["counts"] == mask().counts
    COCO_RESULTS.write(tmp_path / "back.json", open_source(tmp_path / "lines.jsonl"), {})
    assert (tmp_path / "back.json").read_text() == f"[{first},\n{second}]\n"


def test_what_cannot_be_read_is_left_out_and_told(tmp_path: Path) -> None:
    good = json.dumps({"image_id": 1, "segmentation": {"size": [4, 5], "counts": [0, 20]}})
    (tmp_path / "lines.jsonl").write_text(f"{good}\nno json\n{good}\n")
    for entry in (COCO_RESULTS, COCO_ANNOTATIONS):
        source = open_source(tmp_path / "lines.jsonl", format="coco-results-jsonl")
        written = entry.write(tmp_path / "out.json", source, {})
        assert ["line 2: is not valid JSON" in str(fault.error) for fault in written.faults] == [True]
        assert open_source(tmp_path / "out.json").num_instances == 2


def test_a_mask_that_cannot_be_decoded_is_left_out_and_told(tmp_path: Path) -> None:
    class Damaged:
        size = SIZE

        def decode(self) -> MaskWindow:
            raise InputError("is damaged", file="mask.png")

    source = scene(("a.jpg", [{}, {"mask": Damaged()}, {}]))
    written = COCO_RESULTS.write(tmp_path / "out.json", source, {})
    (fault,) = written.faults
    assert isinstance(fault, RecordFault)
    assert "mask.png: instance 1: is damaged" in str(fault.error)
    assert len(json.loads((tmp_path / "out.json").read_text())) == 2


def test_soft_masks_are_cut_at_one_half(tmp_path: Path) -> None:
    class Soft:
        size = SIZE

        def decode(self) -> MaskWindow:
            return MaskWindow(np.array([[0.2, 0.5, 0.9]], np.float32), 1, 1, SIZE)

    (record,) = results_of(tmp_path, scene(("a.jpg", [{"mask": Soft()}])))
    assert record["segmentation"]["counts"] == mask(2, 1, 1, 2).counts


def test_names_that_end_in_gz_are_packed(tmp_path: Path) -> None:
    for entry in (COCO_RESULTS, COCO_LINES, COCO_ANNOTATIONS):
        entry.write(tmp_path / "out.json.gz", scene(("a.jpg", [{}])), {})
        assert json.loads(gzip.decompress((tmp_path / "out.json.gz").read_bytes()))


def test_an_image_whose_size_nothing_tells_is_listed_without_one(tmp_path: Path) -> None:
    records = (ImageRecord(None, "a.jpg", (), None, 1, "a.jpg"),)
    COCO_ANNOTATIONS.write(tmp_path / "out.json", SceneSource(records, {}), {})
    assert json.loads((tmp_path / "out.json").read_text())["images"] == [{"id": 1, "file_name": "a.jpg"}]
