"""The report as files: pairing, scores, photos, outlines, overlays."""

from __future__ import annotations

import gc
import json
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from transfiner_refine import load_refiner
from transfiner_refine.errors import InputError, OutputError
from transfiner_refine.formats import open_source
from transfiner_refine.masks import Mask
from transfiner_refine.report import build_report
from transfiner_refine.report.scenes import Comparison


def content(script: Path) -> Any:
    """The JSON in a data script."""
    match = re.fullmatch(r"report\.\w+\((.*)\);\n", script.read_text(), re.DOTALL)
    assert match is not None
    return json.loads(match[1])


def index(report: Path) -> Any:
    """What the page lists."""
    return content(report / "data" / "index.js")


def compared(job: Any, **changes: Path) -> Comparison:
    """The job's masks without the truth."""
    files = job.files | changes
    opened = partial(open_source, images=files["images"], image_info=files["annotations"])
    return Comparison(files["before"], files["after"], opened)


def test_instances_are_paired_and_scored_against_the_truth(job: Any, tmp_path: Path) -> None:
    build_report(**job.files, output=tmp_path / "report")
    images = index(tmp_path / "report")["images"]
    assert [image["name"] for image in images] == [f"photo_{n}.png" for n in range(6)]
    gains = [image["instances"][0]["iou"][1] - image["instances"][0]["iou"][0] for image in images]
    assert np.argmax(gains) == 1  # photo 1 is exact after
    plate, coin = images[1]["instances"]
    assert (plate["category"], plate["size"]) == ("plate", "medium")
    assert (coin["category"], coin["size"]) == ("coin <b>", "small")
    assert plate["iou"][1] == 1
    assert (plate["label"], plate["score"]) == ("record 2", 0.8)


def test_without_truth_there_is_the_share_of_changed_pixels(job: Any, tmp_path: Path) -> None:
    files = {key: path for key, path in job.files.items() if key != "annotations"}
    build_report(**files, image_info=job.files["annotations"], output=tmp_path / "report")
    first, *_, last = index(tmp_path / "report")["images"]
    assert last["instances"][0]["changed"] == 0  # off by 8 before and after
    assert first["instances"][0]["changed"] > 0.2
    assert "iou" not in first["instances"][0]
    assert index(tmp_path / "report")["truth"] is None


def test_the_folder_has_the_page_its_parts_and_a_script_for_each_image(job: Any, tmp_path: Path) -> None:
    built = build_report(**job.files, output=tmp_path / "report")
    assert (built.images, built.instances, built.faults) == (6, 12, ())
    page = tmp_path / "report"
    assert built.page == page / "index.html"
    index = content(page / "data" / "index.js")
    assert index["totals"]["scored"] == 12
    assert index["categories"] == [["plate", 6], ["coin <b>", 6]]
    for entry in index["images"]:
        assert Image.open(page / "images" / f"{entry['file']}.jpg").size == (220, 150)
        assert (page / "thumbnails" / f"{entry['file']}.jpg").is_file()
        outlines = content(page / "data" / f"{entry['file']}.js")
        assert [set(one) for one in outlines["instances"]] == [{"before", "after", "truth"}] * 2


def test_nothing_in_the_page_points_to_the_network(job: Any, tmp_path: Path) -> None:
    build_report(**job.files, output=tmp_path / "report")
    for file in (tmp_path / "report").rglob("*"):
        if file.suffix in {".html", ".css", ".js"}:
            text = file.read_text().replace("http://www.w3.org/2000/svg", "")  # a name, never fetched
            assert not re.search(r"https?:|//[a-z]+\.|@import", text), file.name


def test_photos_are_made_smaller_and_outlines_are_not(job: Any, tmp_path: Path) -> None:
    build_report(**job.files, output=tmp_path / "report", image_side=110)
    entry = content(tmp_path / "report" / "data" / "index.js")["images"][0]
    assert (entry["width"], entry["height"], entry["scale"]) == (220, 150, 0.5)
    assert Image.open(tmp_path / "report" / "images" / f"{entry['file']}.jpg").size == (110, 75)


def test_the_quadtree_is_stored_where_a_refiner_is_given(job: Any, tmp_path: Path) -> None:
    refiner = load_refiner(device="cpu", engine="torch")
    build_report(**job.files, output=tmp_path / "report", refiner=refiner, limit=1)
    index = content(tmp_path / "report" / "data" / "index.js")
    assert index["quadtrees"]
    tree = content(tmp_path / "report" / "data" / "00000.js")["instances"][0]["quadtree"]
    assert [level["grid"] for level in tree["levels"]][:2] == [28, 56]
    cells = np.cumsum(tree["levels"][0]["cells"])
    assert (np.diff(cells) > 0).all()
    assert cells[-1] < 28 * 28


def test_overlays_are_pngs_of_the_photos_size(job: Any, tmp_path: Path) -> None:
    built = build_report(**job.files, output=None, overlay=tmp_path / "overlays")
    assert built.page is None
    before, after = (
        Image.open(tmp_path / "overlays" / f"photo_1_{name}.png") for name in ("before", "after")
    )
    assert before.size == after.size == (220, 150)
    photo = np.asarray(Image.open(job.files["images"] / "photo_1.png"))
    changed = (np.asarray(after) != photo).any(2)
    mask = (job.truth[1, 0] + job.truth[1, 1]) > 0
    assert changed[mask].mean() > 0.99
    assert changed[~mask].mean() < 0.05  # the outline alone


def test_a_folder_of_pngs_can_be_shown_and_scored_as_well(job: Any, tmp_path: Path) -> None:
    for name, shift in (("before", 8), ("after", 1), ("truth", 0)):
        (tmp_path / name).mkdir()
        for (number, which), disc in job.truth.items():
            mask = Image.fromarray(np.roll(disc, shift, 1) * np.uint8(255))
            mask.save(tmp_path / name / f"photo_{number}_{which}.png")
    built = build_report(
        job.files["images"],
        tmp_path / "before",
        tmp_path / "after",
        tmp_path / "report",
        annotations=tmp_path / "truth",
    )
    assert built.instances == 12
    assert content(tmp_path / "report" / "data" / "index.js")["totals"]["better"] == 1


def test_an_unreadable_photo_is_named_and_the_others_are_shown(job: Any, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for photo in job.files["images"].iterdir():
        (images / photo.name).write_bytes(b"no photo" if photo.stem == "photo_2" else photo.read_bytes())
    built = build_report(**(job.files | {"images": images}), output=tmp_path / "report")
    assert built.images == 5
    assert [Path(fault.file or "").name for fault in built.faults] == ["photo_2.png"]


@pytest.mark.parametrize("change", ["fewer", "other class"])
def test_masks_of_another_run_are_refused(job: Any, tmp_path: Path, change: str) -> None:
    records = json.loads(job.files["after"].read_text())
    if change == "fewer":
        records.pop()
    else:
        records[3]["category_id"] = 1
    after = tmp_path / "after.json"
    after.write_text(json.dumps(records))
    with pytest.raises(InputError, match=r"after\.json"):
        build_report(**(job.files | {"after": after}), output=tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_a_folder_with_files_is_left_alone_unless_overwriting_is_asked_for(job: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        build_report(**job.files, output=tmp_path)
    build_report(**job.files, output=tmp_path, overwrite=True)
    assert not (tmp_path / "mine.txt").exists()
    assert (tmp_path / "index.html").is_file()


def test_two_images_never_share_an_overlay(job: Any, tmp_path: Path) -> None:
    names = ["a.png", "a.PNG", "s/a.png", "s_a.png", "b.jpg", "c.png"]
    images = tmp_path / "images"
    truth = json.loads(job.files["annotations"].read_text())
    for number, (entry, name) in enumerate(zip(truth["images"], names, strict=True)):
        (images / name).parent.mkdir(exist_ok=True, parents=True)
        shutil.copy(job.files["images"] / f"photo_{number}.png", images / name)
        entry["file_name"] = name
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    files = job.files | {"images": images, "annotations": tmp_path / "truth.json"}
    build_report(**files, output=None, overlay=tmp_path / "overlays")
    made = {path.name for path in (tmp_path / "overlays").iterdir()}
    assert {"a_before.png", "s_a_after.png", "s_a.png_after.png", "b_before.png"} <= made
    assert len({name.casefold() for name in made}) == 18


def test_two_image_ids_may_mean_one_file(job: Any, tmp_path: Path) -> None:
    truth = json.loads(job.files["annotations"].read_text())
    for image in truth["images"]:
        image["file_name"] = "photo_0.png"
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    built = build_report(**(job.files | {"annotations": tmp_path / "truth.json"}), output=tmp_path / "report")
    assert (built.instances, built.faults) == (12, ())


def test_masks_are_not_kept_while_images_are_chosen(job: Any) -> None:
    def masks() -> int:
        gc.collect()
        return sum(type(each) is Mask for each in gc.get_objects())

    before = masks()
    found = compared(job)
    assert sum(len(scene.instances) for scene in found.scenes) == 12
    assert masks() - before < 4


def test_classes_that_a_refined_folder_has_lost_are_no_difference(job: Any, tmp_path: Path) -> None:
    for kind in ("SegmentationObject", "SegmentationClass", "refined"):
        (tmp_path / kind).mkdir()
        value = 15 if kind == "SegmentationClass" else 1
        picture = Image.fromarray(job.truth[0, 0] * np.uint8(value), "P")
        picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0] + [64] * 3 * 253)
        picture.save(tmp_path / kind / "photo_0.png")
    built = build_report(
        job.files["images"],
        tmp_path / "SegmentationObject",
        tmp_path / "refined",
        tmp_path / "report",
        format="voc",
    )
    assert (built.images, built.instances, built.faults) == (1, 1, ())


def test_a_damaged_record_after_is_named_with_its_reason(job: Any, tmp_path: Path) -> None:
    records = json.loads(job.files["after"].read_text())
    records[3]["segmentation"]["counts"] = "1:"
    after = tmp_path / "after.json"
    after.write_text(json.dumps(records))
    files = {key: path for key, path in job.files.items() if key != "annotations"}
    built = build_report(
        **(files | {"after": after}), image_info=job.files["annotations"], output=tmp_path / "report"
    )
    assert built.instances == 11
    (fault,) = built.faults
    assert "after.json: record 3: " in str(fault)
    assert "add up to" in str(fault)


def test_where_no_image_is_left_the_reason_is_said(job: Any, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(6):
        (images / f"photo_{number}.png").write_bytes(b"no photo")
    with pytest.raises(InputError, match=r"no image is left to show \(.*photo_0\.png.*and 5 more"):
        build_report(**(job.files | {"images": images}), output=tmp_path / "report")
    crowds = json.loads(job.files["annotations"].read_text())
    for entry in crowds["annotations"]:
        entry["iscrowd"] = 1
    (tmp_path / "crowds.json").write_text(json.dumps(crowds))
    with pytest.raises(InputError, match=r"no image is left to show \(12 crowd regions or empty masks\)"):
        build_report(
            job.files["images"], tmp_path / "crowds.json", tmp_path / "crowds.json", tmp_path / "report"
        )
    assert not (tmp_path / "report").exists()


def test_masks_that_change_while_the_report_is_made_are_noticed(job: Any, tmp_path: Path) -> None:
    found = compared(job)
    shorter = tmp_path / "shorter.json"
    shorter.write_text(json.dumps(json.loads(job.files["before"].read_text())[:-1]))
    other = compared(job, before=shorter, after=shorter)
    with pytest.raises(InputError, match="have changed while the report was made"):
        list(other.pairs(found.scenes))


def test_images_of_too_many_pixels_are_left_out_and_named(job: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no image is left to show .*photo_0\.png"):
        build_report(**job.files, output=tmp_path / "report", max_image_pixels=1000)


def test_outputs_are_never_inputs_or_each_other(job: Any, tmp_path: Path) -> None:
    for place in (job.files["images"], job.files["images"] / "report", job.folder):
        with pytest.raises(OutputError, match="input of this run"):
            build_report(**job.files, output=place, overwrite=True)
    with pytest.raises(OutputError, match="a folder each"):
        build_report(**job.files, output=tmp_path / "report", overlay=tmp_path / "report" / "overlays")
    assert list(tmp_path.iterdir()) == []
