"""Cityscapes: results in text files and PNGs, and 16-bit maps of instances."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transfiner_refine.errors import InputError
from transfiner_refine.formats import Mask, RecordFault, Source, open_source
from transfiner_refine.formats.label_map_formats import CITYSCAPES_IDS, LABEL_MAP_FORMATS
from transfiner_refine.formats.png import write_png
from transfiner_refine.formats.records import ImageRecord, Instance
from transfiner_refine.formats.registry import recognise
from transfiner_refine.masks import MaskWindow

SIZE = (20, 30)
FRAME = "frankfurt_000000_000294"
DISC = np.hypot(*(np.indices(SIZE) - np.array([[[9]], [[12]]]))) < 6


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "leftImg8bit" / "val" / "frankfurt"
    folder.mkdir(parents=True)
    for frame in (FRAME, "frankfurt_000000_000576"):
        Image.new("RGB", SIZE[::-1]).save(folder / f"{frame}_leftImg8bit.png")
    return tmp_path / "leftImg8bit"


def results(tmp_path: Path, lines: str, name: str = f"{FRAME}_pred.txt") -> Path:
    folder = tmp_path / "results"
    (folder / "masks").mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(lines)
    write_png(folder / "masks" / "0.png", DISC.astype(np.uint8))  # 0 and 1, as some write them
    write_png(
        folder / "masks" / "1.png",
        np.where(DISC[::-1], 7, 0).astype(np.uint8) * (1 + np.indices(SIZE)[0] % 2).astype(np.uint8),
    )
    return folder


def instances_of(source: Source) -> list[Instance]:
    return [i for item in source if isinstance(item, ImageRecord) for i in item.instances]


def faults_of(source: Source) -> list[str]:
    return [str(item.error) for item in source if isinstance(item, RecordFault)]


# results


def test_lines_come_with_label_and_confidence_and_any_pixel_but_0_counts(
    tmp_path: Path, photos: Path
) -> None:
    folder = results(tmp_path, "masks/0.png 26 0.98\nmasks/1.png 24 1\n")
    assert recognise(folder).name == "cityscapes-results"
    source = open_source(folder, photos)
    (record,) = source
    assert isinstance(record, ImageRecord)
    assert record.file_name == f"val/frankfurt/{FRAME}_leftImg8bit.png"
    assert [(i.category_id, i.score) for i in record.instances] == [(26, 0.98), (24, 1.0)]
    assert source.categories[26] == "car"
    for instance, mask in zip(record.instances, (DISC, DISC[::-1]), strict=True):
        assert np.array_equal(instance.mask.decode().paste(), mask)
    assert record.instances[0].label == f"{FRAME}_pred.txt line 1"


@pytest.mark.parametrize("name", [f"{FRAME}.txt", f"{FRAME}_leftImg8bit.txt", f"{FRAME}_a_b.txt"])
def test_text_files_find_their_photo_by_how_their_names_begin(
    tmp_path: Path, photos: Path, name: str
) -> None:
    (record,) = open_source(results(tmp_path, "masks/0.png 26 0.5\n", name), photos)
    assert isinstance(record, ImageRecord)
    assert record.path == photos / "val" / "frankfurt" / f"{FRAME}_leftImg8bit.png"


def test_refined_masks_are_written_black_and_white_and_the_text_stays(tmp_path: Path, photos: Path) -> None:
    folder = results(tmp_path, "masks/0.png 26 0.98\r\nmasks/1.png 24 1\n")
    refined = Mask.from_window(MaskWindow(np.ones((3, 4), bool), 5, 6, SIZE))
    open_source(folder, photos).write(tmp_path / "out", {0: refined})
    values = np.asarray(Image.open(tmp_path / "out" / "masks" / "0.png"))
    assert np.array_equal(values, np.where(refined.decode().paste(), 255, 0))
    for name in (f"{FRAME}_pred.txt", "masks/1.png"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("../photo.png 26 0.5", "points outside of the folder: '../photo.png'"),
        ("masks/../../photo.png 26 0.5", "points outside of the folder"),
        ("/etc/passwd.png 26 0.5", "points outside of the folder"),
        ("masks/0.png  26 0.5", "has 4 fields"),
        ("my masks/0.png 26 0.5", "has 4 fields"),
        ("masks/0.png 26", "has 2 fields"),
        ("masks/0.png car 0.5", "has label id 'car'"),
        ("masks/0.png 26 nan", "confidence 'nan'"),
        ("masks/1.png 26 0.5", "names the mask of .* line 1 again"),
        (" 26 0.5", "points outside"),
    ],
)
def test_a_bad_line_is_named_and_the_others_go_on(
    tmp_path: Path, photos: Path, line: str, reason: str
) -> None:
    folder = results(tmp_path, f"masks/1.png 24 0.9\n{line}\n")
    source = open_source(folder, photos, format="cityscapes-results")
    (fault,) = faults_of(source)
    assert f"{FRAME}_pred.txt: line 2: " in fault
    with pytest.raises(InputError, match=reason):
        raise InputError(fault)
    assert (len(instances_of(source)), source.num_instances) == (1, 2)
    refined = Mask.from_window(MaskWindow(DISC, 0, 0, SIZE))
    source.write(tmp_path / "out", {0: refined})
    assert (tmp_path / "out" / f"{FRAME}_pred.txt").read_text() == f"masks/1.png 24 0.9\n{line}\n"


def test_one_damaged_line_does_not_change_what_a_folder_is_taken_for(tmp_path: Path, photos: Path) -> None:
    for at in range(3):
        lines = ["masks/0.png 26 0.98", "masks/1.png 24 1", "masks/2.png 24 1"]
        lines[at] = lines[at].replace(" ", "\t")
        folder = results(tmp_path, "\n".join(lines))
        write_png(folder / "masks" / "2.png", DISC.astype(np.uint8))
        assert recognise(folder).name == "cityscapes-results"
        source = open_source(folder, photos)
        assert (len(faults_of(source)), source.num_instances) == (1, 3)


def test_a_mask_that_is_missing_is_a_fault_of_its_own(tmp_path: Path, photos: Path) -> None:
    source = open_source(results(tmp_path, "masks/gone.png 24 0.9\nmasks/0.png 24 0.9\n"), photos)
    (fault,) = faults_of(source)
    assert "gone.png: frankfurt_000000_000294_pred.txt line 1: cannot be read" in fault
    (fine,) = instances_of(source)
    assert fine.mask.decode().area
    assert source.num_instances == 2


def test_two_text_files_for_one_photo_are_refused_as_the_evaluation_does(
    tmp_path: Path, photos: Path
) -> None:
    folder = results(tmp_path, "masks/0.png 26 0.5\n")
    results(tmp_path, "masks/1.png 26 0.5\n", f"{FRAME}_again.txt")
    with pytest.raises(
        InputError, match=f"{FRAME}_again.txt and {FRAME}_pred.txt would belong to the same image"
    ):
        open_source(folder, photos)


# maps

(update_map,) = (row.update for row in LABEL_MAP_FORMATS if row.name == "cityscapes-ids")
ROAD, SKY, PEOPLE, EGO = 7, 23, 24, 1
MAP = np.full(SIZE, SKY, np.uint16)
MAP[10:] = ROAD
MAP[18:] = EGO
MAP[6:14, 4:12] = 26001
MAP[6:14, 14:20] = PEOPLE  # a group of people
MAP[6:14, 22:28] = 24000


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    folder = tmp_path / "gtFine" / "val" / "frankfurt"
    write_png(folder / f"{FRAME}_gtFine_instanceIds.png", MAP)
    write_png(folder / f"{FRAME}_gtFine_labelIds.png", np.zeros(SIZE, np.uint8))
    return tmp_path / "gtFine"


def full(mask: np.ndarray) -> Mask:
    return Mask.from_window(MaskWindow(mask, 0, 0, mask.shape))


def box(y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_values_of_1000_and_more_are_instances(maps: Path, photos: Path) -> None:
    assert recognise(maps).name == "cityscapes-ids"
    source = open_source(maps, photos)
    (record,) = source
    assert isinstance(record, ImageRecord)
    assert record.file_name == f"val/frankfurt/{FRAME}_leftImg8bit.png"
    assert [(i.instance_id, i.category_id) for i in record.instances] == [(24000, 24), (26001, 26)]
    for instance in record.instances:
        assert np.array_equal(instance.mask.decode().paste(), instance.instance_id == MAP)


def test_refined_instances_claim_stuff_but_no_group_no_ego_vehicle_and_no_other_instance() -> None:
    everything = np.ones(SIZE, bool)
    merged = update_map(MAP, [(26001, full(everything))])
    expected = np.where(np.isin(MAP, [SKY, ROAD]), 26001, MAP)
    assert np.array_equal(merged.values, expected)
    assert merged.values.dtype == np.uint16


def test_pixels_that_an_instance_gives_up_get_the_nearest_stuff() -> None:
    merged = update_map(MAP, [(26001, full(box(8, 12, 6, 10)))])
    expected = MAP.copy()
    expected[6:10, 4:12], expected[10:14, 4:12] = SKY, ROAD
    expected[8:12, 6:10] = 26001
    changed = merged.values != expected
    assert not changed[:9].any()  # near the sky
    assert not changed[11:].any()  # near the road
    assert np.isin(merged.values[box(6, 14, 4, 12)], [SKY, ROAD, 26001]).all()
    assert np.array_equal(merged.values[:, 12:], MAP[:, 12:])


def test_a_map_of_nothing_but_instances_gets_unlabeled_pixels() -> None:
    values = np.full((4, 6), 26000, np.uint16)
    merged = update_map(values, [(26000, full(np.eye(4, 6, dtype=bool)))])
    assert np.array_equal(merged.values, np.where(np.eye(4, 6, dtype=bool), 26000, 0))


def test_a_map_is_written_in_place_with_sixteen_bits(maps: Path, photos: Path, tmp_path: Path) -> None:
    open_source(maps, photos).write(tmp_path / "out", {1: full(box(5, 14, 4, 12))})
    written = tmp_path / "out" / "val" / "frankfurt" / f"{FRAME}_gtFine_instanceIds.png"
    values = np.asarray(Image.open(written)).astype(np.uint16)
    assert np.array_equal(values, np.where(box(5, 14, 4, 12), 26001, MAP))
    assert (written.parent / f"{FRAME}_gtFine_labelIds.png").is_file()


def test_crowds_are_written_as_groups_and_own_values_are_kept(maps: Path, tmp_path: Path) -> None:
    CITYSCAPES_IDS.write(tmp_path / "out", open_source(maps), {})
    (written,) = (tmp_path / "out").rglob("*.png")
    values = np.asarray(Image.open(written)).astype(np.uint16)
    assert np.array_equal(values, np.where(MAP >= 1000, MAP, 0))
