"""What a COCO file says is the same to every command: refine, evaluate and train read it by one reader."""

from __future__ import annotations

import codecs
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_scenes import faults_of, instances_of, records_of
from PIL import Image

from transfiner_refine.errors import InputError
from transfiner_refine.evaluation.coco_files import load_annotations, load_match, load_results
from transfiner_refine.formats import Mask, open_source, text_file
from transfiner_refine.formats.json_stream import whole
from transfiner_refine.formats.records import ImageRecord
from transfiner_refine.masks import MaskWindow
from transfiner_refine.training import datasets
from transfiner_refine.training.datasets import load_training_set

SIZE = (30, 40)
SQUARE = Mask.from_window(MaskWindow(np.ones((20, 20), bool), 4, 5, SIZE))
RLE = {"size": [30, 40], "counts": SQUARE.counts}


def result(**keys: Any) -> dict[str, Any]:
    return {"image_id": 1, "category_id": 3, "segmentation": RLE, "score": 0.5, **keys}


def truth(**changes: Any) -> dict[str, Any]:
    """An annotation file of two images with an object each."""
    images = [{"id": n, "file_name": f"{n}.png", "height": 30, "width": 40} for n in (1, 2)]
    annotations = [{"id": 10 + n, "image_id": n, "category_id": 3, "segmentation": RLE} for n in (1, 2)]
    categories = [{"id": 3, "name": "tass\N{LATIN SMALL LETTER E WITH ACUTE}"}]
    return {"images": images, "annotations": annotations, "categories": categories, **changes}


def written(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for name in ("1.png", "2.png"):
        Image.new("RGB", SIZE[::-1]).save(tmp_path / "images" / name)
    return tmp_path / "images"


PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "byte order mark": lambda data: codecs.BOM_UTF8 + data,
    "both": lambda data: gzip.compress(codecs.BOM_UTF8 + data),
}


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("layout", ["list", "lines", "annotations"])
def test_every_command_reads_every_packing_and_layout(
    tmp_path: Path, images: Path, packing: str, layout: str
) -> None:
    annotations, results = tmp_path / "truth", tmp_path / "results"
    annotations.write_bytes(PACKINGS[packing](json.dumps(truth(), ensure_ascii=False).encode()))
    records = [result(image_id=2), result(image_id=1)]
    text = {
        "list": json.dumps(records),
        "lines": "".join(json.dumps(record) + "\n" for record in records),
        "annotations": json.dumps(truth()),
    }[layout]
    results.write_bytes(PACKINGS[packing](text.encode()))

    true = load_annotations(annotations)
    assert [(each.instance_id, each.image_id, each.mask) for each in true.instances] == [
        (11, 1, SQUARE),
        (12, 2, SQUARE),
    ]
    assert true.categories == {3: "tassé"}
    assert [each.image_id for each in load_results(results, true)] == (
        [1, 2] if layout == "annotations" else [2, 1]
    )
    found = load_training_set(images, annotations, [results])
    assert [(each.truth, each.coarse) for each in found.instances] == [(SQUARE, (SQUARE,))] * 2
    options = {} if layout == "annotations" else {"image_info": annotations}
    source = open_source(results, images, **options)
    assert [each.mask for each in instances_of(source)] == [SQUARE] * 2
    assert {item.size for item in records_of(source)} == {SIZE}


def test_match_files_are_read_packed_too(tmp_path: Path) -> None:
    (tmp_path / "match.json").write_bytes(gzip.compress(b'[7, {"annotation_id": 8.0}, null, "9"]'))
    assert load_match(tmp_path / "match.json", 4) == [7, 8, None, 9]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_other_encodings_are_refused_with_the_reason(tmp_path: Path, images: Path, encoding: str) -> None:
    path = tmp_path / "masks.json"
    path.write_bytes(json.dumps(truth()).encode(encoding))
    for read in (open_source, load_annotations, lambda path: load_training_set(images, path)):
        with pytest.raises(InputError, match=r"masks\.json: is text in UTF-16 or UTF-32; save it as UTF-8"):
            read(path)


@pytest.mark.parametrize(
    ("value", "number"),
    [
        *((600, 600), (600.0, 600), ("600", 600), ("-3", -3), (0.0, 0), (-0.0, 0), (1e15, 10**15)),
        *((value, None) for value in (True, None, 0.5, "0.5", "6e2", "", "-", "\u0663", " 1", [1])),
        *((value, None) for value in (float("inf"), float("nan"), 1e300)),
    ],
)
def test_a_whole_number_is_one_however_it_is_written(value: object, number: int | None) -> None:
    assert whole(value) == number


@pytest.mark.parametrize("kind", [float, str])
def test_ids_and_sizes_that_are_whole_are_numbers(
    tmp_path: Path, images: Path, kind: Callable[[int], Any]
) -> None:
    """pandas writes 1.0, other tools "1"; pycocotools takes them for 1."""
    document = truth()
    for image in document["images"]:
        image |= {"height": kind(30), "width": kind(40)}
    for record in document["annotations"]:
        record |= {"image_id": kind(record["image_id"]), "category_id": kind(3), "id": kind(record["id"])}
        record["segmentation"] = {"size": [kind(30), kind(40)], "counts": SQUARE.counts}
    document["categories"][0]["id"] = kind(3)
    path = written(tmp_path / "masks.json", document)
    source = open_source(path, images)
    assert [(each.category_id, each.instance_id) for each in instances_of(source)] == [(3, 11), (3, 12)]
    assert (faults_of(source), dict(source.categories), source.num_images) == ([], {3: "tassé"}, 2)
    records = records_of(source)
    assert [(item.image_id, item.size) for item in records] == [(1, SIZE), (2, SIZE)]
    source.write(tmp_path / "out.json", {})
    assert (tmp_path / "out.json").read_bytes() == path.read_bytes()
    true = load_annotations(path)
    assert [(each.instance_id, each.image_id, each.category_id) for each in true.instances] == [
        (11, 1, 3),
        (12, 2, 3),
    ]
    assert len(load_results(written(tmp_path / "results.json", [result(image_id=kind(2))]), true)) == 1
    assert len(load_training_set(images, path).instances) == 2


def test_crowds_and_stuff_may_be_marked_by_any_spelling_of_one_and_zero(tmp_path: Path) -> None:
    values = [1, 1.0, "1", True, 0, 0.0, "0", False, None]
    document = truth(categories=[{"id": n, "name": "x", "isthing": value} for n, value in enumerate(values)])
    document["annotations"] = [
        {"id": n, "image_id": 1, "category_id": n, "segmentation": RLE, "iscrowd": value}
        for n, value in enumerate(values)
    ]
    found = instances_of(open_source(written(tmp_path / "masks.json", document)))
    assert [each.is_crowd for each in found] == [True] * 4 + [False] * 5
    assert [each.is_stuff for each in found] == [False] * 4 + [True] * 4 + [False]


def test_ids_that_are_text_stay_text_and_are_named_with_their_type(tmp_path: Path) -> None:
    document = truth()
    document["annotations"] += [{**document["annotations"][0], "image_id": "7"}]
    (fault,) = faults_of(open_source(written(tmp_path / "masks.json", document)))
    assert 'image id "7" (text) is not among the images of masks.json, whose ids are numbers' in fault
    document["images"] += [{"id": "1", "file_name": "3.png", "height": 30, "width": 40}]
    document["annotations"][-1]["image_id"] = "1"
    records = [
        item
        for item in open_source(written(tmp_path / "masks.json", document))
        if isinstance(item, ImageRecord)
    ]
    assert [(item.image_id, len(item.instances)) for item in records] == [(1, 1), (2, 1), ("1", 1)]
    document["images"] += [document["images"][-1]]
    (fault,) = faults_of(open_source(written(tmp_path / "masks.json", document)))
    assert 'image id "1" (text) is listed twice' in fault


def test_categories_whose_ids_meet_as_number_and_text_are_refused(tmp_path: Path) -> None:
    document = truth(categories=[{"id": 3, "name": "cup"}, {"id": "3", "name": "plate"}])
    with pytest.raises(InputError, match="category id '3': is there as a number and as text; keep one"):
        open_source(written(tmp_path / "masks.json", document))


def test_text_ids_are_evaluated_and_trained_on(tmp_path: Path, images: Path) -> None:
    document = truth()
    for image, record, image_id in zip(
        document["images"], document["annotations"], ("a", "b/c"), strict=True
    ):
        image["id"] = record["image_id"] = image_id
    true = load_annotations(written(tmp_path / "truth.json", document))
    results = written(tmp_path / "results.json", [result(image_id="b/c"), result(image_id="a")])
    assert [true.images[each.image_id].id for each in load_results(results, true)] == ["b/c", "a"]
    found = load_training_set(images, tmp_path / "truth.json", [results])
    assert [len(each.coarse) for each in found.instances] == [1, 1]


def test_a_number_written_as_text_finds_its_padded_image(tmp_path: Path, images: Path) -> None:
    (images / "1.png").rename(images / "000000000139.png")
    source = open_source(written(tmp_path / "masks.json", [result(image_id="139")]), images)
    assert [item.path for item in records_of(source)] == [images / "000000000139.png"]
    with pytest.raises(InputError, match="image id 140 is not there"):
        open_source(written(tmp_path / "masks.json", [result(image_id="140")]), images)


@pytest.mark.parametrize("lines", [False, True])
def test_results_may_name_their_image_instead_of_its_id(tmp_path: Path, images: Path, lines: bool) -> None:
    records = [result(file_name=name) for name in ("datasets/x/2.png", "1.png", "datasets/x/2.png")]
    for record in records:
        del record["image_id"]
    text = "\n".join(map(json.dumps, records)) if lines else json.dumps(records)
    (tmp_path / "masks.json").write_text(text)
    source = open_source(tmp_path / "masks.json", images)
    found = records_of(source)
    assert [(item.path, item.image_id, item.indexes) for item in found] == [
        (images / "2.png", None, (0, 2)),
        (images / "1.png", None, (1,)),
    ]
    true = load_annotations(written(tmp_path / "truth.json", truth()))
    assert [each.image_id for each in load_results(tmp_path / "masks.json", true)] == [2, 1, 2]


def test_one_bad_line_does_not_change_the_format(tmp_path: Path) -> None:
    lines = ['{"image_id": 1, ', json.dumps(result()), json.dumps(result())]
    (tmp_path / "masks.jsonl").write_text("\n".join(lines))
    source = open_source(tmp_path / "masks.jsonl")
    assert ["line 1: is not valid JSON" in fault for fault in faults_of(source)] == [True]
    assert len(instances_of(source)) == 2


def test_what_needs_a_file_as_a_whole_names_all_bad_records_at_once(tmp_path: Path, images: Path) -> None:
    bad = [
        result(score="high"),
        result(image_id=9),
        result(segmentation={"size": [30, 40], "counts": "0"}),
        5,
        result(segmentation={"size": [3, 4], "counts": [12]}),
    ]
    results = written(tmp_path / "results.json", [result(), *bad, result()])
    true = load_annotations(written(tmp_path / "truth.json", truth()))
    with pytest.raises(InputError) as caught:
        load_results(results, true)
    for index, reason in enumerate(
        (
            "score is",
            "image id 9 is not among the images of truth.json",
            "add up to",
            "is no JSON",
            "size [3, 4]",
        ),
        1,
    ):
        assert f"record {index}: " in str(caught.value)
        assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    document = truth()
    document["annotations"] += [
        {**document["annotations"][0], "id": 20 + n, "segmentation": 5} for n in range(30)
    ]
    path = written(tmp_path / "truth.json", document)
    for read in (load_annotations, lambda path: load_training_set(images, path)):
        with pytest.raises(
            InputError, match=r"30 entries cannot be used: annotation id 20: .*39: .*; 10 more;"
        ):
            read(path)


def test_a_category_or_an_image_with_a_key_twice_is_refused(tmp_path: Path) -> None:
    text = json.dumps(truth())
    (tmp_path / "a.json").write_text(text.replace('"name": ', '"name": "cup", "name": ', 1))
    with pytest.raises(InputError, match="category id 3: has the key 'name' twice; keep one of them"):
        open_source(tmp_path / "a.json")
    (tmp_path / "b.json").write_text(text.replace('"height": 30', '"height": 30, "height": 31', 1))
    assert [
        "image id 1: has the key 'height' twice" in fault
        for fault in faults_of(open_source(tmp_path / "b.json"))
    ]
    with pytest.raises(InputError, match="image id 1: has the key 'height' twice"):
        load_annotations(tmp_path / "b.json")


def test_lone_surrogates_and_odd_numbers_are_written_as_they_were_read(tmp_path: Path) -> None:
    document = truth()
    document["annotations"][0] |= {"note": "\ud83d", "area": 3.5}
    document["categories"][0]["name"] = "\ud800"
    text = (
        json.dumps(document)
        .replace("3.5", "1e999")
        .replace('"note"', '"exact": 0.12345678901234567890, "note"')
    )
    (tmp_path / "masks.json").write_text(text)
    source = open_source(tmp_path / "masks.json")
    source.write(tmp_path / "out.json", {1: SQUARE})
    out = (tmp_path / "out.json").read_text()
    assert out[: text.index('"id": 12')] == text[: text.index('"id": 12')]
    (tmp_path / "truth.json").write_text(text.replace("1e999", "3.5"))
    assert load_annotations(tmp_path / "truth.json").categories == {3: "\\ud800"}  # tables can show it
    with pytest.raises(InputError, match="annotation id 11: area is inf"):
        load_annotations(tmp_path / "masks.json")


@pytest.mark.parametrize("touch", [True, False])
def test_a_file_edited_in_place_during_the_run_is_noticed(tmp_path: Path, touch: bool) -> None:
    """Even one of the same size and time, for a digest is compared."""
    path = written(tmp_path / "masks.json", [result(), result(score=0.25)])
    before = path.stat()
    source = open_source(path)
    path.write_text(path.read_text().replace("0.25", "0.75"))
    if not touch:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(InputError, match="has changed while it was read"):
        source.write(tmp_path / "out.json", {0: SQUARE})
    assert not (tmp_path / "out.json").exists()
    with pytest.raises(InputError, match="has changed while it was read"):
        list(source)


def test_training_images_are_looked_for_inside_their_folder_only(tmp_path: Path, images: Path) -> None:
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "outside.png")
    document = truth()
    document["images"][0]["file_name"] = "../outside.png"
    with pytest.raises(InputError, match=r"image '../outside.png' is not there"):
        load_training_set(images, written(tmp_path / "truth.json", document))


def test_decoded_training_images_are_kept_within_bounds(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = load_training_set(images, written(tmp_path / "truth.json", truth()))
    monkeypatch.setattr(datasets, "_KEPT_BYTES", 30 * 40 * 3)
    datasets._kept.clear()
    first = data.photo(0)
    assert data.photo(0) is first
    data.photo(1)
    assert list(datasets._kept) == [images / "2.png"]
    assert np.array_equal(data.photo(0), first)


def test_a_value_across_pieces_with_letters_of_several_bytes_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_file, "PIECE", 7)
    path = written(tmp_path / "masks.json", [result(note="żółw €"), result(file_name="ü.png")])
    source = open_source(path)
    assert [item.name for item in source if isinstance(item, ImageRecord)] == ["ü.png"]
    source.write(tmp_path / "out.json", {})
    assert (tmp_path / "out.json").read_bytes() == path.read_bytes()
