"""COCO panoptic: refined things, and still a partition in which every segment of the JSON has its pixels."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image

from transfiner_refine.errors import InputError, OutputError
from transfiner_refine.formats import Mask, RecordFault, Source, open_source
from transfiner_refine.formats.coco_write import COCO_RESULTS
from transfiner_refine.formats.label_maps import update_map
from transfiner_refine.formats.panoptic import COCO_PANOPTIC
from transfiner_refine.formats.records import ImageRecord, Instance, OpenOptions
from transfiner_refine.formats.registry import recognise
from transfiner_refine.masks import MaskWindow
from transfiner_refine.pipeline import Selection

CATEGORIES = [
    {"id": 1, "name": "car", "isthing": 1, "color": [0, 0, 142]},
    {"id": 2, "name": "road", "isthing": 0, "color": [128, 64, 128]},
]
CAR, BUS, ROAD, SKY = 300, 70_000, 5, 6
COARSE = np.array(
    [
        [SKY, SKY, SKY, SKY, SKY, SKY],
        [SKY, CAR, CAR, CAR, BUS, BUS],
        [SKY, CAR, CAR, CAR, BUS, BUS],
        [ROAD, CAR, CAR, ROAD, BUS, BUS],
        [ROAD, ROAD, ROAD, ROAD, 0, 0],
    ]
)


def segment(segment_id: int, category_id: int, **keys: Any) -> dict[str, Any]:
    return {
        "id": segment_id,
        "category_id": category_id,
        "area": 1,
        "bbox": [0, 0, 1, 1],
        "iscrowd": 0,
        **keys,
    }


SEGMENTS = [segment(SKY, 2), segment(CAR, 1), segment(ROAD, 2), segment(BUS, 1)]


def save_png(path: Path, ids: NDArray[Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.stack((ids % 256, ids // 256 % 256, ids // 65536), -1).astype(np.uint8)).save(path)


def read_png(path: Path) -> NDArray[Any]:
    return np.asarray(Image.open(path)).astype(int) @ (1, 256, 65536)


def panoptic(tmp_path: Path, ids: NDArray[Any] = COARSE, segments: Any = SEGMENTS, **keys: Any) -> Path:
    save_png(tmp_path / "panoptic" / "1.png", ids)
    document = {
        "images": [{"id": 1, "file_name": "1.jpg", "height": ids.shape[0], "width": ids.shape[1]}],
        "annotations": [{"segments_info": segments, "file_name": "1.png", "image_id": 1}],
        "categories": CATEGORIES,
        **keys,
    }
    path = tmp_path / "panoptic.json"
    path.write_text(json.dumps(document))
    return path


def mask(*rows: str) -> Mask:
    values = np.array([[letter == "x" for letter in row] for row in rows])
    return Mask.from_window(MaskWindow(values, 0, 0, (values.shape[0], values.shape[1])))


def instances_of(source: Source) -> list[Instance]:
    return [instance for item in source if isinstance(item, ImageRecord) for instance in item.instances]


def check_rules(path: Path) -> None:
    """What panopticapi's evaluation demands of a file."""
    document = json.loads(path.read_text())
    known = {category["id"] for category in document["categories"]}
    for annotation in document["annotations"]:
        ids = read_png(path.with_suffix("") / annotation["file_name"])
        segments = {entry["id"]: entry for entry in annotation["segments_info"]}
        assert len(segments) == len(annotation["segments_info"])
        assert set(np.unique(ids).tolist()) - {0} == set(segments)
        for entry in segments.values():
            rows, columns = np.nonzero(ids == entry["id"])
            x0, y0 = int(columns.min()), int(rows.min())
            assert entry["area"] == len(rows)
            assert entry["bbox"] == [x0, y0, int(columns.max()) + 1 - x0, int(rows.max()) + 1 - y0]
            assert entry["category_id"] in known
            assert entry["iscrowd"] in (0, 1)


def test_segments_are_instances_and_stuff_is_told_from_things(tmp_path: Path) -> None:
    path = panoptic(tmp_path)
    assert recognise(path).name == "coco-panoptic"
    source = open_source(path)
    (record,) = source
    assert isinstance(record, ImageRecord)
    assert (record.image_id, record.file_name, record.size) == (1, "1.jpg", (5, 6))
    found = [(instance.instance_id, instance.category_id, instance.is_stuff) for instance in record.instances]
    assert found == [(SKY, 2, True), (CAR, 1, False), (ROAD, 2, True), (BUS, 1, False)]
    assert [instance.mask.decode().area for instance in record.instances] == [8, 8, 6, 6]
    assert source.categories == {1: "car", 2: "road"}
    reasons = [Selection().reason_to_skip(instance) for instance in record.instances]
    assert reasons == ["stuff region", None, "stuff region", None]


def test_masks_travel_to_worker_processes(tmp_path: Path) -> None:
    copies = pickle.loads(pickle.dumps(instances_of(open_source(panoptic(tmp_path)))))
    assert [instance.mask.decode().area for instance in copies] == [8, 8, 6, 6]


def test_without_refined_masks_every_byte_stays(tmp_path: Path) -> None:
    path = panoptic(tmp_path)
    open_source(path).write(tmp_path / "out.json", {})
    assert (tmp_path / "out.json").read_bytes() == path.read_bytes()
    assert (tmp_path / "out" / "1.png").read_bytes() == (tmp_path / "panoptic" / "1.png").read_bytes()


def test_a_refined_thing_takes_pixels_from_stuff_and_void_and_gives_up_others_to_the_nearest_stuff(
    tmp_path: Path,
) -> None:
    path = panoptic(tmp_path)
    source = open_source(path)
    car = mask("......", ".xx...", ".xx...", ".xxx..", ".xxxx.")
    written = source.write(tmp_path / "out.json", {1: car})
    expected = np.array(
        [
            [SKY, SKY, SKY, SKY, SKY, SKY],
            [SKY, CAR, CAR, SKY, BUS, BUS],
            [SKY, CAR, CAR, SKY, BUS, BUS],
            [ROAD, CAR, CAR, CAR, BUS, BUS],
            [ROAD, CAR, CAR, CAR, CAR, 0],
        ]
    )
    got = read_png(tmp_path / "out" / "1.png")
    assert np.array_equal(got, expected)
    assert (written.overlap_pixels, written.covered) == (0, ())
    check_rules(tmp_path / "out.json")
    before, after = json.loads(path.read_text()), json.loads((tmp_path / "out.json").read_text())
    assert list(after) == list(before)
    assert after["categories"] == before["categories"]
    assert list(after["annotations"][0]) == list(before["annotations"][0])


def test_things_that_were_not_refined_keep_every_pixel(tmp_path: Path) -> None:
    everything = mask(*["xxxxxx"] * 5)
    written = open_source(panoptic(tmp_path)).write(tmp_path / "out.json", {1: everything})
    got = read_png(tmp_path / "out" / "1.png")
    assert np.array_equal(got == BUS, COARSE == BUS)
    assert written.overlap_pixels == 6 + 8 + 6
    # both stuff segments would have vanished, so they keep their pixels; the void gave way
    assert np.array_equal(got == SKY, COARSE == SKY)
    assert np.array_equal(got == ROAD, COARSE == ROAD)
    assert (got[4, 4:] == CAR).all()
    check_rules(tmp_path / "out.json")


def test_of_two_refined_things_the_higher_score_wins_then_the_earlier(tmp_path: Path) -> None:
    both = mask("......", "......", "..xxx.", "..xxx.", "......")
    open_source(panoptic(tmp_path)).write(tmp_path / "equal.json", {1: both, 3: both})
    equal = read_png(tmp_path / "equal" / "1.png")
    # the bus has no pixel left and gets its coarse mask back, on top
    assert np.array_equal(equal == BUS, COARSE == BUS)
    scored = [segment(SKY, 2), segment(CAR, 1, score=0.2), segment(ROAD, 2), segment(BUS, 1, score=0.9)]
    source = open_source(panoptic(tmp_path, segments=scored))
    assert [instance.score for instance in instances_of(source)] == [None, 0.2, None, 0.9]
    wider = mask("......", "......", ".xxxx.", ".xxxx.", "......")
    written = source.write(tmp_path / "scored.json", {1: wider, 3: both})
    scored_ids = read_png(tmp_path / "scored" / "1.png")
    assert (scored_ids[2:4, 2:5] == BUS).all()
    assert (scored_ids[2:4, 1] == CAR).all()
    assert (written.overlap_pixels, written.covered) == (6, ())


def test_keep_boxes_leaves_area_and_bbox(tmp_path: Path) -> None:
    path = panoptic(tmp_path)
    open_source(path).write(
        tmp_path / "out.json", {1: mask("......", ".x....", *["......"] * 3)}, keep_boxes=True
    )
    assert (tmp_path / "out.json").read_bytes() == path.read_bytes()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_is_refined_the_result_is_a_partition_with_every_segment_alive(data: st.DataObject) -> None:
    size = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    coarse = data.draw(hnp.arrays(np.uint32, size, elements=st.integers(0, 6)))
    present = set(np.unique(coarse).tolist()) - {0}
    refined_ids = data.draw(st.lists(st.sampled_from(sorted(present)), unique=True)) if present else []
    stuff = {value for value in present if value not in refined_ids and data.draw(st.booleans())}
    masks = {value: data.draw(hnp.arrays(bool, size)) for value in refined_ids}
    refined = [(value, Mask.from_window(MaskWindow(pixels, 0, 0, size))) for value, pixels in masks.items()]
    done = update_map(coarse, refined, np.isin(coarse, [0, *stuff]), freed="nearest left", kept=stuff)
    assert set(np.unique(done.values).tolist()) - {0} == present
    for value in present - set(refined_ids) - stuff:
        assert (done.values[coarse == value] == value).all()
    if refined_ids and (first := refined_ids[0]) not in done.covered:
        protected = ~np.isin(coarse, [0, *refined_ids, *stuff])
        if not done.covered and all((done.values == value).any() for value in stuff):
            # what nobody else may keep, the most important one has
            lost = masks[first] & ~protected & (done.values != first)
            assert np.isin(done.values[lost], list(stuff)).all()
    # what is not background stays in place or is taken, and the background takes what was given up, no more
    changed = done.values != coarse
    assert np.isin(done.values[changed], [0, *refined_ids, *stuff]).all()
    assert np.isin(coarse[changed & np.isin(done.values, [0, *stuff])], refined_ids).all()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"segments_info": None}, "annotation 0: has no file_name or no segments_info"),
        ({"file_name": "../1.png"}, "file_name '../1.png' is not in the folder of the PNGs"),
        ({"file_name": "/etc/passwd"}, "is not in the folder of the PNGs"),
        ({"file_name": "2.png"}, "2.png"),
        ({"image_id": None}, "annotation 0: image_id is missing"),
        ({"image_id": 9}, "image id 9 is not among the images"),
        ({"file_name": "b.png"}, "annotation 1: b.png is the PNG of another annotation"),
    ],
)
def test_a_bad_annotation_is_named_and_the_others_go_on(tmp_path: Path, change: Any, reason: str) -> None:
    annotation = {"segments_info": SEGMENTS, "file_name": "1.png", "image_id": 1}
    path = panoptic(tmp_path, annotations=[annotation | change, annotation | {"file_name": "b.png"}])
    save_png(tmp_path / "panoptic" / "b.png", COARSE)
    source = open_source(path)
    (fault,) = [item for item in source if isinstance(item, RecordFault)]
    assert reason in str(fault.error)
    assert fault.whole_image
    assert fault.instances + len(instances_of(source)) == source.num_instances
    source.write(tmp_path / "out.json", {})
    assert (tmp_path / "out.json").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (17, "1.jpg, segment 1: is no JSON object"),
        (segment(0, 1), "segment 1: id is 0, not a number from 1 to 16777215"),
        (segment(1 << 24, 1), "id is 16777216"),
        (segment(SKY, 1), "id 6 is that of another segment of the image"),
        (segment(CAR, 3), "category_id is 3, which is not among the categories"),
        (segment(CAR, 1, score="high"), "score is 'high'"),
    ],
)
def test_a_bad_segment_is_named_and_keeps_its_pixels(tmp_path: Path, entry: Any, reason: str) -> None:
    source = open_source(panoptic(tmp_path, segments=[SEGMENTS[0], entry, *SEGMENTS[2:]]))
    (fault,) = [str(item.error) for item in source if isinstance(item, RecordFault)]
    assert reason in fault
    assert [instance.instance_id for instance in instances_of(source)] == [SKY, ROAD, BUS]
    source.write(tmp_path / "out.json", {3: mask(*["......"] * 3, "....xx", "....xx")})
    assert np.array_equal(read_png(tmp_path / "out" / "1.png") == CAR, COARSE == CAR)


def test_a_png_that_holds_no_colours_is_named_where_it_is_read(tmp_path: Path) -> None:
    path = panoptic(tmp_path)
    Image.fromarray(COARSE.astype(np.uint8)).save(tmp_path / "panoptic" / "1.png")
    with pytest.raises(InputError, match="is no panoptic PNG"):
        instances_of(open_source(path))[0].mask.decode()


def test_predictions_without_images_and_categories_take_them_from_image_info(tmp_path: Path) -> None:
    info = panoptic(tmp_path).rename(tmp_path / "info.json")
    annotation = {"segments_info": SEGMENTS, "file_name": "1.png", "image_id": 1}
    path = tmp_path / "panoptic.json"
    path.write_text(json.dumps({"annotations": [annotation]}))
    with pytest.raises(InputError, match="does not say which categories are things; give --image-info"):
        open_source(path)
    source = open_source(path, image_info=info)
    assert [instance.is_stuff for instance in instances_of(source)] == [True, False, True, False]


def test_pngs_may_lie_beside_the_json(tmp_path: Path) -> None:
    path = panoptic(tmp_path)
    moved = path.rename(tmp_path / "panoptic" / "annotations.json")
    assert open_source(moved).num_instances == 4
    assert instances_of(open_source(moved))[1].mask.decode().area == 8


def test_neither_the_json_nor_its_folder_is_overwritten_unasked(tmp_path: Path) -> None:
    source = open_source(panoptic(tmp_path))
    with pytest.raises(OutputError, match="is an input of this run"):
        source.write(tmp_path / "panoptic.json", {}, overwrite=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="exists already and is not empty"):
        source.write(tmp_path / "out.json", {})
    source.write(tmp_path / "out.json", {}, overwrite=True)
    source.write(tmp_path / "out.json", {1: mask("......", ".x....", *["......"] * 3)}, overwrite=True)
    assert (read_png(tmp_path / "out" / "1.png") == CAR).sum() == 1
    assert not (tmp_path / "out" / "mine.txt").exists()


def test_overlaps_go_to_things_before_stuff_then_to_the_higher_score(tmp_path: Path) -> None:
    results = [
        {"image_id": 1, "category_id": 1, "score": 0.2, "segmentation": value(mask("xxx.", "xxx."))},
        {"image_id": 1, "category_id": 2, "score": 1.0, "segmentation": value(mask("xxxx", "xxxx"))},
        {"image_id": 1, "category_id": 1, "score": 0.7, "segmentation": value(mask(".xx.", ".xx."))},
        {"image_id": 1, "category_id": 1, "score": 0.1, "segmentation": value(mask(".x..", "...."))},
    ]
    (tmp_path / "results.json").write_text(json.dumps(results))
    info = panoptic(tmp_path)
    source = COCO_RESULTS.open(tmp_path / "results.json", OpenOptions(image_info=info))
    written = COCO_PANOPTIC.write(tmp_path / "out.json", source, {})
    ids = read_png(tmp_path / "out" / "1.png")
    assert ids.tolist() == [[1, 3, 3, 2], [1, 3, 3, 2]]
    (fault,) = written.faults
    assert (written.overlap_pixels, written.covered, fault.error.record) == (6, (), "1.jpg, record 3")
    assert "others cover it" in fault.error.reason
    check_rules(tmp_path / "out.json")
    categories = json.loads((tmp_path / "out.json").read_text())["categories"]
    assert [(category["name"], category["isthing"]) for category in categories] == [("car", 1), ("road", 0)]


def value(rle: Mask) -> dict[str, Any]:
    return {"size": list(rle.size), "counts": rle.counts}
