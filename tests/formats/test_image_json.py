"""A JSON file for each image: segment-anything's and MMDetection's, read and edited in place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_scenes import NEW, NEW_VALUE, SIZE, faults_of, instances_of, make_images, records_of
from pycocotools import mask as coco_mask

from transfiner_refine.errors import InputError
from transfiner_refine.formats import Source, open_source
from transfiner_refine.formats.convert import convert_masks
from transfiner_refine.formats.registry import recognise
from transfiner_refine.masks import Mask, MaskWindow

SQUARE = Mask.from_window(MaskWindow(np.ones((3, 2), bool), 2, 1, SIZE))
RLE = {"size": list(SIZE), "counts": SQUARE.counts}
SAM_RECORD = {
    "segmentation": RLE, "area": 6, "bbox": [2.0, 1.0, 2.0, 3.0], "predicted_iou": 0.93, "point_coords": [[2.5, 1.5]],
    "stability_score": 0.97, "crop_box": [0.0, 0.0, 8.0, 6.0],
}  # fmt: skip
SAM = {
    "image": {"image_id": 7, "width": 8, "height": 6, "file_name": "sa_7.jpg"},
    "annotations": [{**SAM_RECORD, "id": 41}, {**SAM_RECORD, "id": 42}],
}
MMDET = {
    "labels": [2, 0],
    "scores": [0.9, 0.4],
    "bboxes": [[2.0, 1.0, 4.0, 4.0], [0.0, 0.0, 8.0, 6.0]],
    "masks": [RLE, RLE],
    "panoptic_results": {"mine": "stays"},
}


def opened(tmp_path: Path, documents: dict[str, Any], **options: Any) -> Source:
    (tmp_path / "masks").mkdir(exist_ok=True)
    for name, document in documents.items():
        (tmp_path / "masks" / name).write_text(json.dumps(document, indent=1))
    images = [f"{Path(name).stem}.jpg" for name in documents]
    return open_source(tmp_path / "masks", make_images(tmp_path / "images", *images), **options)


def written(tmp_path: Path, source: Source, results: dict[int, Mask], **options: Any) -> Any:
    source.write(tmp_path / "out", results, overwrite=True, **options)
    return {path.name: json.loads(path.read_text()) for path in sorted((tmp_path / "out").iterdir())}


def test_files_of_sa_1b_are_read_with_ids_scores_and_sizes(tmp_path: Path) -> None:
    source = opened(tmp_path, {"sa_7.json": SAM})
    (record,) = records_of(source)
    assert recognise(tmp_path / "masks").name == "sam"
    assert (record.name, record.size) == ("sa_7.jpg", SIZE)
    assert [(each.mask, each.score, each.instance_id) for each in record.instances] == [
        (SQUARE, 0.93, 41),
        (SQUARE, 0.93, 42),
    ]


def test_of_a_refined_mask_rle_box_and_area_change_and_no_other_byte(tmp_path: Path) -> None:
    source = opened(tmp_path, {"sa_7.json": SAM, "list.json": [SAM_RECORD]})
    (tmp_path / "masks/notes.txt").write_text("mine")
    source = open_source(tmp_path / "masks", tmp_path / "images")
    source.write(tmp_path / "same", {})
    for path in (tmp_path / "masks").iterdir():
        assert (tmp_path / "same" / path.name).read_bytes() == path.read_bytes()
    source.write(tmp_path / "out", {2: NEW})
    assert (tmp_path / "out/list.json").read_bytes() == (tmp_path / "masks/list.json").read_bytes()
    after = json.loads((tmp_path / "out/sa_7.json").read_text())
    changed = {"segmentation": NEW_VALUE, "bbox": [4.0, 1.0, 3.0, 2.0], "area": 6}
    assert after == {**SAM, "annotations": [SAM["annotations"][0], {**SAM["annotations"][1], **changed}]}


def test_a_single_list_of_automatic_masks_is_a_file_of_its_image(tmp_path: Path) -> None:
    make_images(tmp_path / "images", "street.jpg", "other.jpg")
    (tmp_path / "street.json").write_text(json.dumps([SAM_RECORD]))
    source = open_source(tmp_path / "street.json", tmp_path / "images")
    (record,) = records_of(source)
    assert (recognise(tmp_path / "street.json").name, record.name) == ("sam", "street.jpg")
    source.write(tmp_path / "out.json", {0: NEW}, keep_boxes=True)
    assert json.loads((tmp_path / "out.json").read_text()) == [{**SAM_RECORD, "segmentation": NEW_VALUE}]


@pytest.mark.parametrize("key", ["image_id", "file_name"])
def test_results_that_name_their_images_stay_coco_results(tmp_path: Path, key: str) -> None:
    (tmp_path / "dt.json").write_text(json.dumps([{key: "1.jpg", "score": 1, **SAM_RECORD}]))
    assert recognise(tmp_path / "dt.json").name == "coco-results"


@pytest.mark.parametrize(("keep", "box"), [(False, [4.0, 1.0, 7.0, 3.0]), (True, [2.0, 1.0, 4.0, 4.0])])
def test_predictions_of_mmdetection_are_read_and_edited(tmp_path: Path, keep: bool, box: list[float]) -> None:
    source = opened(tmp_path, {"street.json": MMDET})
    assert recognise(tmp_path / "masks").name == "mmdetection"
    assert [(each.category_id, each.score) for each in instances_of(source)] == [(2, 0.9), (0, 0.4)]
    after = written(tmp_path, source, {0: NEW}, keep_boxes=keep)["street.json"]
    assert after == {**MMDET, "masks": [NEW_VALUE, RLE], "bboxes": [box, MMDET["bboxes"][1]]}
    assert coco_mask.area(after["masks"][0]) == 6


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({**MMDET, "scores": [0.9]}, "has 2 masks, but lists of 1 beside them"),
        ({"labels": [1], "scores": [1], "bboxes": [[0, 0, 1, 1]]}, "has no list of masks"),
        ({**SAM, "annotations": {}}, "has no list of annotations"),
        ({**SAM, "annotations": [{**SAM_RECORD, "segmentation": None}]}, "boxes alone cannot be refined"),
        (
            {**SAM, "annotations": [{**SAM_RECORD, "segmentation": {"size": [6, 8], "counts": "?"}}]},
            "runs add up to 15 pixels",
        ),
        ({**SAM, "annotations": [5]}, "mask 0: is no JSON object"),
    ],
)
def test_what_cannot_be_used_is_named_with_file_and_mask(tmp_path: Path, document: Any, reason: str) -> None:
    name = "mmdetection" if "labels" in document else "sam"
    sound = MMDET if name == "mmdetection" else SAM
    source = opened(tmp_path, {"a.json": document, "b.json": sound}, format=name)
    (fault,) = faults_of(source)
    assert reason in fault
    assert "a.json" in fault
    assert len(instances_of(source)) == 2


@pytest.mark.parametrize("to", ["sam", "mmdetection"])
def test_conversions_there_and_back_keep_masks_classes_and_scores(tmp_path: Path, to: str) -> None:
    results = [{"image_id": n, "category_id": n, "segmentation": RLE, "score": n / 4} for n in (1, 2)]
    (tmp_path / "dt.json").write_text(json.dumps(results))
    images = make_images(tmp_path / "images", "1.jpg", "2.jpg")
    assert convert_masks(tmp_path / "dt.json", tmp_path / "out", to=to, images=images).exit_code == 0
    convert_masks(tmp_path / "out", tmp_path / "back.json", to="coco-results", images=images)
    back = json.loads((tmp_path / "back.json").read_text())
    assert [{key: record[key] for key in results[0]} for record in back] == results


def test_crowds_and_masks_without_a_class_are_told_of_where_mmdetection_cannot_hold_them(
    tmp_path: Path,
) -> None:
    results = [
        {"image_id": 1, "segmentation": RLE, "score": 1},
        {"image_id": 1, "segmentation": RLE, "iscrowd": 1},
    ]
    (tmp_path / "dt.json").write_text(json.dumps(results))
    converted = convert_masks(tmp_path / "dt.json", tmp_path / "out", to="mmdetection")
    assert ["crowd" in str(error) for error in converted.errors] == [True]
    assert "Masks without a class that have label 0 now: 1." in converted.lines()


@pytest.mark.parametrize("start", [b"\x80\x04\x95", b"PK\x03\x04" + bytes(30) + b"archive/data.pkl"])
def test_pickles_are_refused_with_the_way_out(tmp_path: Path, start: bytes) -> None:
    (tmp_path / "instances_predictions.pth").write_bytes(start)
    with pytest.raises(InputError, match=r"is a pickle.*coco_instances_results\.json"):
        recognise(tmp_path / "instances_predictions.pth")
