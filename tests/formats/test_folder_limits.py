"""What folder formats cannot hold, and what else is theirs: it is named, never lost or written elsewhere."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folder_scenes import FOLDERS, REFINED, STREET, contents, flat, two_images
from mask_scenes import SceneSource
from PIL import Image

from transfiner_refine.errors import InputError
from transfiner_refine.formats import Mask, RecordFault
from transfiner_refine.formats.cityscapes_results import CITYSCAPES_RESULTS
from transfiner_refine.formats.coco_write import COCO_ANNOTATIONS
from transfiner_refine.formats.label_map_formats import CITYSCAPES_IDS, DAVIS, VOC
from transfiner_refine.formats.labelme import LABELME
from transfiner_refine.formats.mask_files import PLAIN_MAPS, PNG_FOLDER
from transfiner_refine.formats.records import Format, ImageRecord, Instance, OpenOptions, Written
from transfiner_refine.formats.yolo import YOLO_SEG
from transfiner_refine.masks import MaskWindow


@pytest.mark.parametrize(
    "name", ["../out.jpg", "/etc/passwd.jpg", "a/../../b.jpg", "a\nb.jpg", "C:x.jpg", "x" * 300]
)
@pytest.mark.parametrize("entry", FOLDERS, ids=lambda entry: entry.name)
def test_names_that_lead_out_of_the_folder_are_never_written(
    entry: Format, name: str, tmp_path: Path
) -> None:
    source, _ = two_images(tmp_path)
    bad = replace(source.records[0], name=name, file_name=name)
    written = entry.write(tmp_path / "a" / "out", SceneSource((bad, source.records[1]), STREET), {})
    assert [fault.instances for fault in written.faults] == [2]
    assert set(contents(tmp_path)) == {
        *(f"images/bear/{n}.jpg" for n in ("00000", "00001")),
        *(f"a/out/{inside}" for inside in contents(tmp_path / "a" / "out")),
    }


def test_two_images_of_one_name_do_not_overwrite_each_other(tmp_path: Path) -> None:
    source, _ = two_images(tmp_path)
    twin = replace(source.records[1], file_name="bear/00000.png", name="bear/00000.png")
    written = VOC.write(tmp_path / "out", SceneSource((source.records[0], twin), STREET), {})
    assert "bear/00000.png: is called bear/00000 like another image" in str(written.faults[0].error)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("entry", [YOLO_SEG, LABELME], ids=lambda entry: entry.name)
def test_a_file_that_would_be_a_folder_of_another_image_is_named(
    entry: Format, turned: bool, tmp_path: Path
) -> None:
    source, _ = two_images(tmp_path)
    ending = ".txt" if entry is YOLO_SEG else ".json"
    names = ["a.jpg", f"a{ending}/b.jpg"][:: -1 if turned else 1]
    records = [
        replace(record, name=name, file_name=name) for record, name in zip(source.records, names, strict=True)
    ]
    written = entry.write(tmp_path / "out", SceneSource(tuple(records), STREET), {})
    assert [fault.error.record for fault in written.faults] == names[1:]
    assert "would be file and folder of one name; rename one of them" in str(written.faults[0].error)
    assert names[0].replace(".jpg", ending) in contents(tmp_path / "out")


def test_instances_without_a_place_in_the_format_are_named(tmp_path: Path) -> None:
    source, _ = two_images(tmp_path)
    crowd = replace(source.records[1].instances[0], is_crowd=True)
    odd = SceneSource((replace(source.records[1], instances=(crowd,)),), {24: "zebra"})
    for entry, reason in [
        (YOLO_SEG, "it is a crowd"),
        (CITYSCAPES_RESULTS, "it is a crowd"),
        (CITYSCAPES_IDS, "its category 24 is none of the classes of cityscapes-ids"),
    ]:
        (fault,) = entry.write(tmp_path / entry.name, odd, {}).faults
        assert "bear/00001.jpg, instance 2" in str(fault.error)
        assert reason in str(fault.error)


def test_results_take_the_place_of_coarse_masks(tmp_path: Path) -> None:
    source, photos = two_images(tmp_path)
    refined = Mask.from_window(MaskWindow(REFINED, 0, 0, REFINED.shape))
    for entry in FOLDERS:
        entry.write(tmp_path / entry.name, source, {0: refined})
        assert refined in flat(entry.open(tmp_path / entry.name, OpenOptions(images=photos)))


def test_coco_categories_find_their_cityscapes_labels_by_name(tmp_path: Path) -> None:
    source, _ = two_images(tmp_path)
    coco = SceneSource(
        tuple(
            replace(record, instances=tuple(replace(i, category_id=3) for i in record.instances))
            for record in source.records
        ),
        {3: "car"},
    )
    COCO_ANNOTATIONS.write(tmp_path / "coco.json", coco, {})
    opened = COCO_ANNOTATIONS.open(tmp_path / "coco.json", OpenOptions())
    CITYSCAPES_RESULTS.write(tmp_path / "out", opened, {})
    lines = (tmp_path / "out" / "bear" / "00000.txt").read_text().splitlines()
    assert lines == ["00000_0000.png 26 0.5", "00000_0001.png 26 0.5"]


def test_soft_masks_stay_soft_in_png_masks(tmp_path: Path) -> None:
    shades = np.tile(np.arange(250, dtype=np.uint8), (4, 1))
    (tmp_path / "masks" / "a").mkdir(parents=True)
    Image.fromarray(shades).save(tmp_path / "masks" / "a" / "1.png")
    source = PNG_FOLDER.open(tmp_path / "masks", OpenOptions())
    PNG_FOLDER.write(tmp_path / "out", source, {})
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "a" / "0001.png")), shades)


def test_a_map_has_sixteen_bits_only_where_it_needs_them(tmp_path: Path) -> None:
    def row(count: int) -> ImageRecord:
        masks = [np.eye(1, count, number, dtype=bool) for number in range(count)]
        instances = tuple(
            Instance(number, Mask.from_window(MaskWindow(mask, 0, 0, (1, count))), str(number))
            for number, mask in enumerate(masks)
        )
        return ImageRecord(None, f"{count}.jpg", instances, (1, count), None, f"{count}.jpg")

    PLAIN_MAPS.write(tmp_path / "maps", SceneSource((row(255), row(256)), {}), {})
    assert Image.open(tmp_path / "maps" / "255.png").mode == "L"
    assert Image.open(tmp_path / "maps" / "256.png").mode.startswith("I")
    written = DAVIS.write(tmp_path / "davis", SceneSource((row(256),), {}), {})
    assert len(written.faults) == 2
    assert "a map has ids for 254" in str(written.faults[0].error)


def png(folder: Path, *names: str) -> Path:
    """Masks of half an image."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.tri(12, 15, dtype=np.uint8) * 255).save(folder / name)
    return folder


def test_png_masks_of_photos_in_subfolders_lie_in_the_same_subfolders(tmp_path: Path) -> None:
    _, photos = two_images(tmp_path)
    folder = png(
        tmp_path / "masks", "bear/00000.png", "bear/00000_1.png", "bear/00001/cup.png", "camel/00000.png"
    )
    found = list(PNG_FOLDER.open(folder, OpenOptions(images=photos)))
    assert {item.name: len(item.instances) for item in found if isinstance(item, ImageRecord)} == {
        "bear/00000.jpg": 2,
        "bear/00001.jpg": 1,
    }
    (stray,) = [str(item.error) for item in found if isinstance(item, RecordFault)]
    assert "camel/00000.png: no image in" in stray


def test_png_masks_without_photos_are_read_where_names_leave_no_doubt(tmp_path: Path) -> None:
    clear = PNG_FOLDER.open(png(tmp_path / "clear", "cup.png", "a_1/x.png", "a_1/y.png"), OpenOptions())
    assert {item.name: len(item.instances) for item in clear if isinstance(item, ImageRecord)} == {
        "cup": 1,
        "a_1": 2,
    }
    with pytest.raises(
        InputError, match=r"could be the mask of street_002 or one of several of street; .*--images"
    ):
        PNG_FOLDER.open(png(tmp_path / "doubtful", "street_002.png"), OpenOptions())


def test_stuff_lies_below_the_instances_of_cityscapes(tmp_path: Path) -> None:
    source, _ = two_images(tmp_path)
    record = source.records[0]
    road = replace(
        record.instances[1],
        mask=Mask.from_window(MaskWindow(np.ones((12, 15), bool), 0, 0, (12, 15))),
        category_id=7,
        is_stuff=True,
    )
    both = SceneSource((replace(record, instances=(record.instances[0], road)),), {7: "road", 24: "person"})
    assert CITYSCAPES_IDS.write(tmp_path / "out", both, {}) == Written()
    values = np.asarray(Image.open(tmp_path / "out/bear/00000_gtFine_instanceIds.png"))
    assert np.array_equal(values, np.where(record.instances[0].mask.decode().paste(), 24000, 7))


@pytest.mark.parametrize("kind", ["link to nothing", "pipe", "socket"])
@pytest.mark.parametrize("entry", FOLDERS, ids=lambda entry: entry.name)
def test_what_is_no_file_is_named_and_counted(entry: Format, kind: str, tmp_path: Path) -> None:
    source, photos = two_images(tmp_path)
    folder = tmp_path / "m"
    entry.write(folder, source, {})
    gone = entry.open(folder, OpenOptions(images=photos)).entries[-1].name
    named = sum(path.is_file() and path.suffix == gone.suffix for path in folder.rglob("*"))
    (folder / gone).unlink()
    if kind == "link to nothing":
        (folder / gone).symlink_to("nothing")
    elif kind == "pipe":
        os.mkfifo(folder / gone)
    else:
        os.mknod(folder / gone, stat.S_IFSOCK | 0o600)
    opened = entry.open(folder, OpenOptions(images=photos))
    errors = []
    for item in opened:
        errors += [item.error] if isinstance(item, RecordFault) else []
        for instance in () if isinstance(item, RecordFault) else item.instances:
            try:
                instance.mask.decode()
            except InputError as error:
                errors.append(error)
    assert len([error for error in errors if gone.name in str(error)]) == 1
    assert opened.num_images == 2
    opened.write(tmp_path / "out", {0: Mask.from_window(MaskWindow(REFINED, 0, 0, REFINED.shape))})
    assert (
        sum(path.is_file() and path.suffix == gone.suffix for path in (tmp_path / "out").rglob("*"))
        == named - 1
    )


def test_what_is_no_file_is_named_beside_an_image_that_is_missing(tmp_path: Path) -> None:
    source, photos = two_images(tmp_path)
    CITYSCAPES_RESULTS.write(tmp_path / "m", source, {})
    (photos / "bear" / "00000.jpg").unlink()
    (tmp_path / "m" / "bear" / "00000_0001.png").unlink()
    os.mkfifo(tmp_path / "m" / "bear" / "00000_0001.png")
    opened = CITYSCAPES_RESULTS.open(tmp_path / "m", OpenOptions(images=photos))
    missing, pipe = [item for item in opened if isinstance(item, RecordFault)]
    assert ("no image of that name" in str(missing.error), missing.instances) == (True, 2)
    assert ("00000_0001.png: is no file" in str(pipe.error), pipe.instances) == (True, 0)


@pytest.mark.parametrize("entry", FOLDERS, ids=lambda entry: entry.name)
def test_a_folder_that_changes_during_the_work_is_not_written(entry: Format, tmp_path: Path) -> None:
    source, photos = two_images(tmp_path)
    entry.write(tmp_path / "masks", source, {})
    opened = entry.open(tmp_path / "masks", OpenOptions(images=photos))
    with (tmp_path / "masks" / opened.entries[-1].name).open("ab") as file:
        file.write(b"\n")
    for position in range(3):
        with pytest.raises(InputError, match="has changed while it was read; run again when it is whole"):
            opened.write(
                tmp_path / "out", {position: Mask.from_window(MaskWindow(REFINED, 0, 0, REFINED.shape))}
            )
    assert not (tmp_path / "out").exists()


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    source, photos = two_images(tmp_path)
    DAVIS.write(tmp_path / "real", source, {})
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "bear").symlink_to(tmp_path / "real" / "bear")
    (tmp_path / "real" / "bear" / "again").symlink_to(tmp_path / "masks")
    opened = DAVIS.open(tmp_path / "masks", OpenOptions(images=photos))
    assert flat(opened) == flat(DAVIS.open(tmp_path / "real", OpenOptions(images=photos)))


def test_records_can_be_sent_to_another_process(tmp_path: Path, pickled: Callable[[Any], Any]) -> None:
    source, photos = two_images(tmp_path)
    for entry in FOLDERS:
        entry.write(tmp_path / entry.name, source, {})
        opened = entry.open(tmp_path / entry.name, OpenOptions(images=photos))
        sent = [pickled(item) for item in opened]
        assert [
            Mask.from_window(instance.mask.decode()) for item in sent for instance in item.instances
        ] == flat(opened)


@pytest.fixture
def pickled() -> Callable[[Any], Any]:
    import pickle

    return lambda item: pickle.loads(pickle.dumps(item))
