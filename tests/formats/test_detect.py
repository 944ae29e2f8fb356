"""Formats are told by what is in a file, whatever it is called."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from transfiner_refine.cli.options import FORMAT_NAMES
from transfiner_refine.errors import InputError
from transfiner_refine.formats import open_source
from transfiner_refine.formats.registry import FORMATS, format_named, recognise

RECORD = {"image_id": 1, "category_id": 1, "score": 1.0, "segmentation": {"size": [2, 2], "counts": [0, 4]}}
ANNOTATIONS = {"images": [{"id": 1}], "annotations": [{"id": 1, **RECORD}], "categories": []}
PANOPTIC = {
    "images": [{"id": n, "file_name": "x" * 200} for n in range(10_000)],
    "annotations": [{"image_id": 1, "file_name": "1.png", "segments_info": []}],
    "categories": [],
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf", b" \r\n\t "])
@pytest.mark.parametrize(
    ("text", "name"),
    [
        (json.dumps([RECORD]), "coco-results"),
        (json.dumps([RECORD], indent=1), "coco-results"),
        ("[]", "coco-results"),
        (json.dumps(RECORD), "coco-results-jsonl"),
        (json.dumps(RECORD) + "\n" + json.dumps(RECORD) + "\n", "coco-results-jsonl"),
        (json.dumps(ANNOTATIONS), "coco-annotations"),
        (json.dumps(ANNOTATIONS, indent=2), "coco-annotations"),
        (json.dumps(PANOPTIC), "coco-panoptic"),
        (json.dumps(PANOPTIC, indent=2), "coco-panoptic"),
    ],
)
def test_json_files_are_told_apart(tmp_path: Path, text: str, name: str, start: bytes, packed: bool) -> None:
    data = start + text.encode()
    path = tmp_path / "masks"
    path.write_bytes(gzip.compress(data, 1) if packed else data)
    assert recognise(path).name == name


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b" \n ", "is empty"),
        (b"image,x,y", "is in no known format; give --from"),
        (gzip.compress(b"nothing"), "is in no known format"),
        (gzip.compress(json.dumps([RECORD]).encode())[:9], "is in no known format"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "masks"
    path.write_bytes(data)
    with pytest.raises(InputError, match=reason) as caught:
        recognise(path)
    assert str(caught.value).startswith(str(path))


def test_a_missing_file_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be read \(No such file or directory\); check --masks"):
        recognise(tmp_path / "none.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError):
        open_source(tmp_path / "empty", tmp_path / "empty")


@pytest.mark.parametrize(
    ("files", "text"),
    [
        ({}, "is empty; give the folder of the masks"),
        (
            {"a.xml": "<annotation/>", "b.xml": "<annotation/>", "c.mat": "x", "photo.jpg": "x"},
            r"holds no masks of a known format \(2 .xml, 1 .mat, 1 .jpg\); the nearest is png: give --from png",
        ),
        (
            {"a.txt": "nothing", "README": ""},
            r"\(1 without ending, 1 .txt\); the nearest is yolo-seg: give --from yolo",
        ),
        (
            {"annotations/val.json": json.dumps(PANOPTIC)},
            "give the file itself, which is coco-panoptic: --masks .*val.json",
        ),
        ({"a.json": "{"}, r"\(1 .json\); give the file itself|the nearest is labelme: give --from labelme"),
        (
            {f"a.{kind}": "x" for kind in "abcdefg"},
            r"1 \.e and 2 other kinds\); give COCO JSON or a folder of mask",
        ),
    ],
)
def test_a_folder_of_no_known_format_is_listed_and_the_nearest_is_named(
    tmp_path: Path, files: dict[str, str], text: str
) -> None:
    (tmp_path / "m").mkdir()
    for name, content in files.items():
        (tmp_path / "m" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "m" / name).write_text(content)
    with pytest.raises(InputError, match=text):
        open_source(tmp_path / "m", tmp_path)


def test_a_format_that_is_given_is_not_questioned(tmp_path: Path) -> None:
    path = tmp_path / "masks.json"
    path.write_text(json.dumps([RECORD]))
    assert open_source(path, format="coco-results").num_instances == 1
    with pytest.raises(InputError, match="is a list, not an annotation file"):
        open_source(path, format="coco-annotations")
    with pytest.raises(InputError, match="there is no format 'coco'; give one of mask-image, cvat, "):
        open_source(path, format="coco")


def test_every_format_has_a_name_of_its_own_that_the_command_line_knows() -> None:
    names = [entry.name for entry in FORMATS]
    assert len(set(names)) == len(names)
    assert set(FORMAT_NAMES) == set(names)
    for name in names:
        assert format_named(name).name == name


def test_the_page_on_formats_names_every_one() -> None:
    page = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
    rows = [line.split("|")[1].strip().strip("`") for line in page.splitlines() if line.startswith("| `")]
    assert {entry.name for entry in FORMATS} <= set(rows)


@pytest.mark.parametrize(
    "content", [b"\x00\xff" * 100, b"{" * 100_000, b'{"a', b"\x1f\x8b\x08junk", b'{"annotations":[']
)
def test_recognising_never_fails_on_what_it_is_shown(tmp_path: Path, content: Any) -> None:
    (tmp_path / "file").write_bytes(content)
    for entry in FORMATS:
        for path in (tmp_path / "file", tmp_path / "none", tmp_path):
            assert entry.recognise(path) in (True, False)


def test_former_names_of_formats_and_kinds_work_with_a_warning(tmp_path: Path) -> None:
    Image.fromarray(np.eye(4, dtype=np.uint8)).save(tmp_path / "1.png")
    for options in ({"format": "id-maps"}, {"format": "png", "png_kind": "id-map"}):
        with pytest.warns(DeprecationWarning, match="is now called label-map"):
            source = open_source(tmp_path, **options)  # type: ignore[arg-type]
        assert source.num_instances == 1
