"""Hostile COCO files: records, documents and their text."""

from __future__ import annotations

import copy
import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hostile_masks import Verdict, hostile_number, hostile_segmentation, nested, pick, sound_segmentation
from law import Case, load_json, require
from pycocotools import mask as coco_mask
from scene import CATEGORIES, Bitmap, Photo, draw_scene, eroded, rle, write_photos

from transfiner_refine.pipeline import Summary


def results(
    photos: list[Photo], rng: np.random.Generator, category_ids: Sequence[int] = (1, 2, 9)
) -> tuple[list[dict[str, Any]], list[Bitmap]]:
    """Sound results, in any order, and their bitmaps."""
    records, bitmaps = [], []
    for photo in photos:
        for bitmap in photo.bitmaps:
            record = {
                "image_id": photo.image_id,
                "category_id": pick(rng, list(category_ids)),
                "segmentation": sound_segmentation(rng, bitmap),
                "score": float(rng.random()),
            }
            if rng.random() < 0.5:
                record["bbox"] = coco_mask.toBbox(rle(bitmap)).tolist()
            records.append(record)
            bitmaps.append(bitmap)
    order = rng.permutation(len(records)).tolist()
    return [records[i] for i in order], [bitmaps[i] for i in order]


def annotations(records: list[dict[str, Any]], photos: list[Photo]) -> dict[str, Any]:
    """The records as an annotation file."""
    listed = [
        {"id": photo.image_id, "file_name": photo.file_name, "height": photo.size[0], "width": photo.size[1]}
        for photo in photos
    ]
    numbered = [{"id": 100 + i, "iscrowd": 0, "area": 1, **record} for i, record in enumerate(records)]
    return {"info": {"year": 2020}, "images": listed, "annotations": numbered, "categories": CATEGORIES}


def records_case(folder: Path, rng: np.random.Generator) -> Case:
    """Single records are broken; all others must be refined."""
    photos = draw_scene(rng)
    write_photos(photos, folder / "images", rng)
    records, bitmaps = results(photos, rng)
    is_list = rng.random() < 0.6
    document: Any = records if is_list else annotations(records, photos)
    listed: list[Any] = document if is_list else document["annotations"]
    verdicts: list[Verdict] = ["sound"] * len(listed)
    done = []
    for index in range(len(listed)):
        if rng.random() < 0.5:
            what, listed[index], verdicts[index] = _broken(rng, listed[index], bitmaps[index])
            done.append(f"record {index}: {what}")
    as_lines = is_list and rng.random() < 0.2
    masks = folder / ("masks.jsonl" if as_lines else "masks.json")
    if as_lines:
        masks.write_text("".join(json.dumps(record) + "\n" for record in listed))
    else:
        masks.write_text(json.dumps(document, indent=pick(rng, [None, 1])))
    return Case(
        "; ".join(done),
        folder / "images",
        masks,
        check=lambda output, summary: _check_records(masks, output, summary, verdicts, bitmaps),
        # where no image can be found for any record, or no line is one, that is said once
        may_be_refused="sound" not in verdicts or (as_lines and verdicts[0] != "sound"),
    )


def _broken(rng: np.random.Generator, record: dict[str, Any], bitmap: Bitmap) -> tuple[str, Any, Verdict]:
    record = copy.deepcopy(record)
    kind = int(rng.integers(13))
    if kind < 6:
        what, record["segmentation"], verdict = hostile_segmentation(rng, bitmap)
        return what, record, verdict
    if kind == 6:
        del record[pick(rng, [key for key in record if key not in ("bbox", "area", "id", "iscrowd")])]
        missing = {"image_id", "segmentation"} - record.keys()
        return f"keys {list(record)}", record, "unsound" if missing else "sound"
    if kind == 7:
        record["image_id"] = pick(
            rng, [77, 1.0, None, True, [], {}, "../1", "/etc/passwd", 10**50, -1, "\ud800"]
        )
        return f"image_id {record['image_id']!r}", record, "either"
    if kind == 8:
        record["score"] = hostile_number(rng)
        return f"score {record['score']!r}"[:60], record, "either"
    if kind == 9:
        key = pick(rng, ["category_id", "bbox", "area", "id", "iscrowd", "extra"])
        record[key] = hostile_number(rng)
        verdict = "either" if key in ("iscrowd", "category_id", "area") else "sound"
        return f"{key} {record[key]!r}"[:60], record, verdict
    if kind == 10:
        record["ключ\n"] = pick(rng, [nested(150), "\0", "\ud800", {"segmentation": 1}, "x" * 5000, 10**1000])
        return "an odd key", record, "sound"
    if kind == 11:  # of another mask
        record["bbox"] = [bitmap.shape[1] + 9, float(rng.integers(-99, 99)), 5, 7.5]
        is_told = bitmap.sum() >= 16  # smaller masks say little
        return f"bbox {record['bbox']}", record, "unsound" if is_told else "either"
    broken = pick(rng, [None, [], 5, "x", {}, [[record]], True, nested(300)])  # [record] is a whole file
    return f"the record is {broken}"[:60], broken, "unsound"


def _check_records(
    masks: Path, output: Path, summary: Summary, verdicts: list[Verdict], bitmaps: list[Bitmap]
) -> None:
    before, after = _records(masks), _records(output)
    require(len(before) == len(after), "records were lost")
    for index, verdict in enumerate(verdicts):
        if verdict == "unsound":
            same = json.dumps(before[index]) == json.dumps(after[index])
            require(
                same, f"record {index} cannot be sound, but was changed: {before[index]} -> {after[index]}"
            )
        elif verdict == "sound" and bitmaps[index].any():
            found = pixels_of(after[index]["segmentation"], bitmaps[index].shape)
            require(
                np.array_equal(found, eroded(bitmaps[index])), f"record {index} is sound, but was not refined"
            )
    unsound = verdicts.count("unsound")
    require(summary.failed >= unsound, f"{unsound} records are broken, {summary.failed} are said to be")
    _check_others(masks, output)


def pixels_of(segmentation: Any, shape: tuple[int, int]) -> Bitmap:
    """What pycocotools draws of a segmentation of any kind: a mask that comes back as it was stays as it was spelt."""
    if isinstance(segmentation, list):
        segmentation = coco_mask.merge(coco_mask.frPyObjects(segmentation, *shape)) if segmentation else None
    elif isinstance(segmentation["counts"], list):
        segmentation = coco_mask.frPyObjects({**segmentation, "size": list(shape)}, *shape)
    else:
        segmentation = {**segmentation, "size": list(shape)}
    found: Bitmap = (
        np.zeros(shape, bool) if segmentation is None else coco_mask.decode(segmentation).astype(bool)
    )
    return found


def _check_others(masks: Path, output: Path) -> None:
    """All that is no mask stays; so do the other keys of a record, and their order."""
    before, after = _records(masks), _records(output)
    changing = ("segmentation", "bbox", "area")
    for old, new in zip(before, after, strict=True):
        if isinstance(old, dict):
            require(list(old) == list(new), f"keys {list(old)} became {list(new)}")
            old = {key: value for key, value in old.items() if key not in changing}
            new = {key: value for key, value in new.items() if key not in changing}
        require(json.dumps(old) == json.dumps(new), f"{old} became {new}")
    if masks.suffix == ".json":
        old, new = load_json(masks), load_json(output)
        if isinstance(old, dict):
            del old["annotations"], new["annotations"]
            require(json.dumps(old) == json.dumps(new), "what is around the annotations was changed")


def _records(path: Path) -> list[Any]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    document = load_json(path)
    records: list[Any] = document if isinstance(document, list) else document["annotations"]
    return records


def document_case(folder: Path, rng: np.random.Generator) -> Case:
    """What is around the records is broken: images, categories, ids, the keys of the document."""
    photos = draw_scene(rng)
    write_photos(photos, folder / "images", rng)
    records, _ = results(photos, rng)
    document: Any = annotations(records, photos)
    info = rng.random() < 0.3
    what = []
    for _ in range(int(rng.integers(1, 4))):
        change: Callable[[np.random.Generator, Any], str] = pick(
            rng, [_image_entry, _image_entry, _image_list, _category, _keys, _ids]
        )
        what.append(change(rng, document))
    masks, options = folder / "masks.json", {}
    if info:
        masks.write_text(json.dumps(records))
        (folder / "info.json").write_text(json.dumps(document))
        options = {"image_info": folder / "info.json"}
    else:
        masks.write_text(json.dumps(document))
    return Case(
        "; ".join(what) + (" (as --image-info)" if info else ""),
        folder / "images",
        masks,
        options,
        check=lambda output, _: _check_others(masks, output),
    )


def _image_entry(rng: np.random.Generator, document: Any) -> str:
    images = document.get("images")
    if not isinstance(images, list) or not images or not isinstance(images[0], dict):
        return "nothing"
    image = pick(rng, images)
    if not isinstance(image, dict):
        return "nothing"
    key = pick(rng, ["id", "file_name", "file_name", "height", "width", "coco_url"])
    names: list[Any] = [
        "../1.png", "/1.png", "//x/1.png", "C:\\1.png", "a/../../1.png", "\0", "1.png\n", " 1.png", "1.png ",
        "x" * 300, "x/" * 3000, "é.png", "e\u0301.png", "\ud800.png", "sub/1.png", ".", "..", "", "~/1.png",
        "%2e%2e/1.png",
    ]  # fmt: skip
    image[key] = (
        pick(rng, names) if key in ("file_name", "coco_url") and rng.random() < 0.8 else hostile_number(rng)
    )
    return f"image {key} {image[key]!r}"[:60]


def _image_list(rng: np.random.Generator, document: Any) -> str:
    images = document.get("images")
    if not isinstance(images, list) or not images:
        return "nothing"
    kind = int(rng.integers(5))
    if kind == 0:
        images.append(copy.deepcopy(pick(rng, images)))
        return "an image twice"
    if kind == 1:
        del images[int(rng.integers(len(images)))]
        return "an image missing"
    if kind == 2:
        images.insert(0, pick(rng, [None, 5, "x", [], {}, {"id": []}, nested(100)]))
        return f"an image {images[0]}"[:60]
    if kind == 3:
        images.append({"id": 99, "file_name": "99.png", "height": 3, "width": 4})
        return "an image without annotations"
    document["images"] = pick(rng, [None, {}, 5, "x", []])
    return f"images {document['images']}"


def _category(rng: np.random.Generator, document: Any) -> str:
    entry = {"id": 1, "name": "cat"}
    entry[pick(rng, ["id", "name"])] = hostile_number(rng)
    document["categories"] = pick(
        rng, [None, 5, {}, "x", [entry], [entry, entry], [None], [[]], [CATEGORIES[0]] * 2]
    )
    return f"categories {document['categories']}"[:60]


def _keys(rng: np.random.Generator, document: Any) -> str:
    key = pick(rng, ["images", "annotations", "categories", "info"])
    kind = int(rng.integers(3))
    if kind == 0:
        document.pop(key, None)
        return f"no {key}"
    if kind == 1:
        document[key] = hostile_number(rng)
        return f"{key} {document[key]!r}"[:60]
    document["extra"] = pick(
        rng, [nested(900), "\ud800", {"": {"": []}}, 10**1000, float("nan"), "x" * 100_000]
    )
    return "an extra key"


def _ids(rng: np.random.Generator, document: Any) -> str:
    listed = document.get("annotations")
    if not isinstance(listed, list) or not listed:
        return "nothing"
    value = hostile_number(rng)
    for record in listed:
        if rng.random() < 0.5:
            record["id"] = value
    return f"annotation ids {value!r}"[:60]


def text_case(folder: Path, rng: np.random.Generator) -> Case:
    """The bytes of the file are broken."""
    photos = draw_scene(rng)
    write_photos(photos, folder / "images", rng)
    records, _ = results(photos, rng)
    document: Any = pick(rng, [records, annotations(records, photos)])
    text = json.dumps(document, indent=pick(rng, [None, 2]), ensure_ascii=bool(rng.random() < 0.5)).encode()
    at = int(rng.integers(len(text) + 1))
    kind = int(rng.integers(10))
    if kind == 0:
        text = text[:at]
    elif kind == 1:
        flipped = bytearray(text)
        for _ in range(int(rng.integers(1, 4))):
            flipped[int(rng.integers(len(text)))] ^= 1 << int(rng.integers(8))
        text = bytes(flipped)
    elif kind == 2:
        text = text[:at] + rng.bytes(int(rng.integers(1, 9))) + text[at:]
    elif kind == 3:
        text = (
            text[:at]
            + pick(rng, [b"[" * 100_000, b'{"a":' * 5000, b"0" * 5000, b'"', b",", b"]", b"\0"])
            + text[at:]
        )
    elif kind == 4:
        text = text.decode().encode(pick(rng, ["utf-16", "utf-32", "utf-8-sig", "cp037", "utf-16-be"]))
    elif kind == 5:
        text = pick(
            rng, [text + text, text + b"x", b" " * 70_000 + text, text[1:], text[:-1], b"[" + text + b"]"]
        )
    elif kind == 6:
        text = gzip.compress(text)[: at if rng.random() < 0.5 else None]
    elif kind == 7:
        text = text.replace(
            b'"segmentation"', pick(rng, [b'"image_id"', b'"segmentation":5,"segmentation"']), 1
        )
    elif kind == 8:
        text = gzip.compress(gzip.compress(text))
    else:
        text = pick(
            rng,
            [
                b"",
                b"\n",
                b"null",
                b"5",
                b"[]",
                b"{}",
                b"[[]]",
                b"[null]",
                b"NaN",
                b"\xef\xbb\xbf",
                b"\x1f\x8b",
            ],
        )
    masks = folder / "masks.json"
    masks.write_bytes(text)
    return Case(f"text {kind} at byte {at}", folder / "images", masks)
