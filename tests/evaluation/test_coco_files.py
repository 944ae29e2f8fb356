"""Reading annotation, results and match files, and what is said of damaged ones."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as codec
from scenes import HEIGHT, WIDTH, scenes, write

from transfiner_refine.errors import InputError
from transfiner_refine.evaluation.coco_files import load_annotations, load_match, load_results


def with_change(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with one entry replaced; ``...`` as value removes it."""
    content = copy.deepcopy(content)
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return content


def test_polygons_and_run_lists_are_read_like_compressed_masks(tmp_path: Path) -> None:
    truth, _ = scenes(0)
    polygon = [[10.0, 10.0, 60.0, 12.0, 40.0, 90.0]]
    expected = codec.decode(codec.merge(codec.frPyObjects(polygon, HEIGHT, WIDTH)))
    flat = expected.ravel("F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *edges, len(flat)]).tolist()
    truth["annotations"][0]["segmentation"] = polygon
    truth["annotations"][1]["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": runs}
    for annotation in truth["annotations"][:2]:
        del annotation["bbox"], annotation["area"]
    first, second, *_ = load_annotations(write(tmp_path, "truth.json", truth)).instances
    assert (first.mask.decode().paste() == expected).all()
    assert (second.mask.decode().paste() == expected).all()


def test_a_missing_area_is_counted_from_the_pixels(tmp_path: Path) -> None:
    truth, _ = scenes(0)
    expected = truth["annotations"][0].pop("area")
    assert load_annotations(write(tmp_path, "truth.json", truth)).instances[0].area == expected


def test_an_annotation_file_serves_as_results_without_its_crowds(tmp_path: Path) -> None:
    truth, _ = scenes(0)
    path = write(tmp_path, "truth.json", truth)
    annotations = load_annotations(path)
    detections = load_results(path, annotations)
    assert len(detections) == sum(not entry["iscrowd"] for entry in truth["annotations"])
    assert all(detection.score is None for detection in detections)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("categories",), ..., "not an annotation file: no categories"),
        (("images", 2, "height"), ..., "3.jpg: no height or width"),
        (("annotations", 3, "image_id"), 99, "annotation 3: image id 99 is not among the images"),
        (
            ("annotations", 3, "category_id"),
            99,
            "annotation id 3: category id 99 is not among the categories",
        ),
        (("annotations", 3, "segmentation"), "mask", "annotation id 3: the segmentation is 'mask'"),
        (("annotations", 3, "segmentation", "counts"), "x", "annotation id 3: the RLE.s counts have .x."),
        (
            ("annotations", 3, "segmentation"),
            {"size": [5, 5], "counts": [25]},
            r"annotation id 3: mask of size \[5, 5\]",
        ),
    ],
)
def test_a_damaged_annotation_is_named(
    tmp_path: Path, path: tuple[Any, ...], value: Any, message: str
) -> None:
    truth, _ = scenes(0)
    file = write(tmp_path, "truth.json", with_change(truth, path, value))
    with pytest.raises(InputError, match=f"truth.json: .*{message}"):
        load_annotations(file)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ((5, "image_id"), 99, "image id 99 is not among the images of truth.json"),
        ((5, "category_id"), ..., "has no category_id that is a number"),
        ((5, "segmentation"), ..., "the segmentation is missing"),
        ((5, "segmentation", "counts"), 17, "counts"),
        ((5, "segmentation", "counts"), "1:", "runs add up to 11 pixels"),
        ((5, "score"), float("nan"), "score is nan"),
        ((5, "score"), "high", "score is .high."),
        ((5,), "text", "is no JSON object"),
    ],
)
def test_a_damaged_result_is_named(tmp_path: Path, path: tuple[Any, ...], value: Any, message: str) -> None:
    truth, results = scenes(0)
    annotations = load_annotations(write(tmp_path, "truth.json", truth))
    file = write(tmp_path, "results.json", with_change(results, path, value))
    with pytest.raises(InputError, match=f"results.json: record 5: .*{message}"):
        load_results(file, annotations)


@pytest.mark.parametrize("content", ["", "[{", '{"images": 1}', "3", "\xff"])
def test_files_of_another_kind_are_refused_in_one_line(tmp_path: Path, content: str) -> None:
    truth, _ = scenes(0)
    annotations = load_annotations(write(tmp_path, "truth.json", truth))
    file = tmp_path / "odd.json"
    file.write_text(content, encoding="latin-1")
    for read in (
        load_annotations,
        lambda path: load_results(path, annotations),
        lambda path: load_match(path, 3),
    ):
        with pytest.raises(InputError, match=r"odd\.json: ") as caught:
            read(file)
        assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere.json: cannot be read \(No such file"):
        load_annotations(tmp_path / "nowhere.json")


def test_a_match_file_holds_ids_or_records_and_null_for_none(tmp_path: Path) -> None:
    file = tmp_path / "match.json"
    file.write_text(json.dumps([{"annotation_id": 7}, 8, None, {"annotation_id": None}]))
    assert load_match(file, 4) == [7, 8, None, None]
    with pytest.raises(InputError, match="4 entries for 5 results"):
        load_match(file, 5)
