"""Folder formats, written from anything and read again: what they can hold comes back as it was."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from mask_scenes import SceneSource, held, scenes
from PIL import Image

from transfiner_refine.formats import RecordFault, RleMask, Source
from transfiner_refine.formats.cityscapes_ids import CITYSCAPES_IDS
from transfiner_refine.formats.cityscapes_results import CITYSCAPES_RESULTS
from transfiner_refine.formats.coco import COCO_ANNOTATIONS
from transfiner_refine.formats.davis import DAVIS
from transfiner_refine.formats.detect import FORMATS
from transfiner_refine.formats.labelme import LABELME
from transfiner_refine.formats.png_formats import ID_MAPS, PNG_FOLDER
from transfiner_refine.formats.registry import Format, OpenOptions
from transfiner_refine.formats.source import Written
from transfiner_refine.formats.voc import VOC
from transfiner_refine.formats.yolo import YOLO_SEG
from transfiner_refine.types import ImageRecord, InputError, Instance, MaskWindow

EXAMPLES = settings(max_examples=25, deadline=None)
FOLDERS = [CITYSCAPES_RESULTS, CITYSCAPES_IDS, VOC, DAVIS, PNG_FOLDER, ID_MAPS, YOLO_SEG, LABELME]


def any_pixels(size: tuple[int, int]) -> st.SearchStrategy[np.ndarray]:
    """Masks of any shape at all: specks, rings, parts that touch at corners."""
    return arrays(bool, size)


def photos_of(source: SceneSource, folder: Path) -> Path:
    """Empty photos of the source's names and sizes."""
    for record in source.records:
        assert record.file_name is not None
        assert record.size is not None
        path = folder / record.file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", record.size[::-1]).save(path, quality=10)
    return folder


def through(source: Source, entry: Format, photos: Path | None = None) -> tuple[Source, Written]:
    path = Path(tempfile.mkdtemp()) / "out"
    written = entry.write(path, source, {})
    return entry.open(path, OpenOptions(images=photos)), written


def named(source: SceneSource, names: dict[int, str]) -> SceneSource:
    """The scene with its categories 1, 2, 7 replaced by others."""
    numbers = dict(zip(sorted(source.categories), names, strict=True))
    return SceneSource(
        tuple(
            replace(
                record,
                instances=tuple(replace(i, category_id=numbers[i.category_id]) for i in record.instances),
            )
            for record in source.records
        ),
        names,
    )


STREET = {24: "person", 26: "car", 33: "bicycle"}


@EXAMPLES
@given(scenes(crowds=False, mask=any_pixels))
def test_yolo_holds_every_mask_to_the_pixel_with_its_class_and_score(scene: SceneSource) -> None:
    if scene.num_instances:
        photos = photos_of(scene, Path(tempfile.mkdtemp()))
        back, written = through(scene, YOLO_SEG, photos)
        assert written == Written()
        assert held(back, "category_id", "score") == held(scene, "category_id", "score")
        assert {number: back.categories[number] for number in scene.categories} == scene.categories


@EXAMPLES
@given(scenes(mask=any_pixels))
def test_labelme_holds_masks_names_scores_and_crowds(scene: SceneSource) -> None:
    if scene.num_instances:
        back, written = through(scene, LABELME)
        assert written == Written()
        assert held(back, "score", "is_crowd", image=("file_name", "size"), empty=True) == held(
            scene, "score", "is_crowd", image=("file_name", "size"), empty=True
        )
        assert class_names(back) == class_names(scene)


def class_names(source: Source) -> list[Any]:
    return sorted(
        (item.file_name, [source.categories[i.category_id] for i in item.instances])
        for item in source
        if isinstance(item, ImageRecord)
    )


@EXAMPLES
@given(scenes(mask=any_pixels))
def test_a_png_each_instance_holds_every_mask_however_they_overlap(scene: SceneSource) -> None:
    if scene.num_instances:
        back, written = through(scene, PNG_FOLDER, photos_of(scene, Path(tempfile.mkdtemp())))
        assert written == Written()
        assert held(back) == held(scene)
        without_photos, _ = through(scene, PNG_FOLDER)
        assert [masks for _, masks in held(without_photos, image=("name",))] == [m for _, m in held(scene)]


@EXAMPLES
@given(scenes(crowds=False, mask=any_pixels))
def test_cityscapes_results_hold_masks_labels_and_scores(scene: SceneSource) -> None:
    if scene.num_instances:
        scene = named(scene, STREET)
        back, written = through(scene, CITYSCAPES_RESULTS, photos_of(scene, Path(tempfile.mkdtemp())))
        assert written == Written()
        assert held(back, "category_id", "score") == held(scene, "category_id", "score")


@EXAMPLES
@given(scenes(overlapping=False, crowds=False, mask=any_pixels), st.sampled_from([DAVIS, VOC, ID_MAPS]))
def test_maps_hold_masks_that_do_not_overlap(scene: SceneSource, entry: Format) -> None:
    if scene.num_instances:
        back, written = through(scene, entry, photos_of(scene, Path(tempfile.mkdtemp())))
        assert written == Written()
        fields = ("category_id",) if entry is VOC else ()
        assert held(back, *fields) == held(scene, *fields)
        again, _ = through(back, entry)
        assert [masks for _, masks in held(again, "instance_id", image=("name",))] == [
            masks for _, masks in held(back, "instance_id")
        ]


@EXAMPLES
@given(scenes(overlapping=False, crowds=False, mask=any_pixels))
def test_cityscapes_maps_hold_masks_and_labels(scene: SceneSource) -> None:
    if scene.num_instances:
        scene = named(scene, STREET)
        back, written = through(scene, CITYSCAPES_IDS, photos_of(scene, Path(tempfile.mkdtemp())))
        assert written == Written()
        # the instances come by label, then by order
        assert by_label(held(back, "category_id")) == by_label(held(scene, "category_id"))


def by_label(found: list[Any]) -> list[Any]:
    return [(image, sorted(masks, key=lambda mask: (mask[1], mask[0].counts))) for image, masks in found]


@EXAMPLES
@given(scenes(crowds=False), st.sampled_from([DAVIS, VOC, ID_MAPS, CITYSCAPES_IDS]))
def test_overlaps_go_to_the_higher_score_and_are_counted(scene: SceneSource, entry: Format) -> None:
    if not scene.num_instances:
        return
    scene = named(scene, STREET)
    back, written = through(scene, entry, photos_of(scene, Path(tempfile.mkdtemp())))
    shared, covered, expected = 0, set(), []
    for record in scene.records:
        ranked = sorted(record.instances, key=lambda instance: -(instance.score or 0))
        taken, twice = np.zeros(record.size or (0, 0), bool), np.zeros(record.size or (0, 0), bool)
        for instance in ranked:
            pixels = instance.mask.decode().paste()
            left = pixels & ~taken
            twice |= pixels & taken
            taken |= pixels
            if left.any():
                expected.append(RleMask.from_window(MaskWindow(left, 0, 0, left.shape)).counts)
            else:
                covered.add(instance.index)
        shared += int(twice.sum())
    assert (written.overlap_pixels, set(written.covered), written.faults) == (shared, covered, ())
    assert sorted(mask[0].counts for _, masks in held(back) for mask in masks) == sorted(expected)


@EXAMPLES
@given(scenes(overlapping=False), st.permutations([YOLO_SEG, LABELME, PNG_FOLDER, ID_MAPS, DAVIS, VOC]))
def test_masks_survive_a_walk_through_all_formats(scene: SceneSource, entries: list[Format]) -> None:
    plain = tuple(
        replace(record, instances=tuple(replace(i, is_crowd=False) for i in record.instances))
        for record in scene.records
    )
    scene = SceneSource(plain, scene.categories)
    if scene.num_instances:
        photos = photos_of(scene, Path(tempfile.mkdtemp()))
        back: Source = scene
        for entry in entries:
            back, written = through(back, entry, photos)
            assert written == Written()
        assert [(image, set(masks)) for image, masks in held(back)] == [
            (image, set(masks)) for image, masks in held(scene)
        ]


# in place


REFINED = np.zeros((12, 15), bool)
REFINED[5:11, 3:11], REFINED[7:9, 5:8], REFINED[1, 13] = True, False, True  # a hole, and a part of its own


@pytest.mark.parametrize("entry", FOLDERS, ids=lambda entry: entry.name)
def test_a_refined_mask_written_in_place_is_read_back_to_the_pixel(entry: Format, tmp_path: Path) -> None:
    source, photos = two_images(tmp_path)
    entry.write(tmp_path / "masks", source, {})
    (tmp_path / "masks" / "notes.md").write_text("mine")
    opened = entry.open(tmp_path / "masks", OpenOptions(images=photos))
    assert (opened.num_images, opened.num_instances) == (2, 3)
    done = opened.write(tmp_path / "out", {1: RleMask.from_window(MaskWindow(REFINED, 0, 0, REFINED.shape))})
    assert done.faults == ()
    again = entry.open(tmp_path / "out", OpenOptions(images=photos))
    before, after = flat(opened), flat(again)
    assert after[1] == RleMask.from_window(MaskWindow(REFINED, 0, 0, REFINED.shape))
    assert [after[0], after[2]] == [before[0], before[2]]
    assert (tmp_path / "out" / "notes.md").exists() == (entry not in (PNG_FOLDER, ID_MAPS))


@pytest.mark.parametrize("entry", FOLDERS, ids=lambda entry: entry.name)
def test_nothing_refined_is_a_copy_byte_for_byte(entry: Format, tmp_path: Path) -> None:
    source, photos = two_images(tmp_path)
    entry.write(tmp_path / "masks", source, {})
    entry.open(tmp_path / "masks", OpenOptions(images=photos)).write(tmp_path / "out", {})
    assert contents(tmp_path / "out") == contents(tmp_path / "masks")


@pytest.mark.parametrize("entry", FOLDERS, ids=lambda entry: entry.name)
def test_what_was_written_is_recognised(entry: Format, tmp_path: Path) -> None:
    source, _ = two_images(tmp_path)
    entry.write(tmp_path / "masks", source, {})
    found = next(known for known in FORMATS if known.is_folder and known.recognise(tmp_path / "masks"))
    assert found is (PNG_FOLDER if entry is ID_MAPS else entry)


@pytest.mark.parametrize("entry", FOLDERS, ids=lambda entry: entry.name)
def test_a_photo_that_is_missing_is_named_and_the_others_go_on(entry: Format, tmp_path: Path) -> None:
    source, photos = two_images(tmp_path)
    entry.write(tmp_path / "masks", source, {})
    (photos / "bear" / "00001.jpg").unlink()
    found = list(entry.open(tmp_path / "masks", OpenOptions(images=photos)))
    faults = [item.error for item in found if not isinstance(item, ImageRecord)]
    assert len(faults) == 1
    assert "00001" in str(faults[0])
    assert "photo" in str(faults[0])
    assert sum(len(item.instances) for item in found if isinstance(item, ImageRecord)) == 2


def two_images(folder: Path) -> tuple[SceneSource, Path]:
    """Two frames of a video, with two instances and one."""
    size = (12, 15)

    def box(index: int, y: int, x: int, category_id: int) -> Instance:
        pixels = np.zeros(size, bool)
        pixels[y : y + 5, x : x + 6] = True
        mask = RleMask.from_window(MaskWindow(pixels, 0, 0, size))
        return Instance(index, mask, f"instance {index}", category_id, score=0.5)

    first = (box(0, 0, 0, 24), box(1, 6, 2, 26))
    records = (
        ImageRecord(None, "bear/00000.jpg", first, size, None, "bear/00000.jpg"),
        ImageRecord(None, "bear/00001.jpg", (box(2, 1, 1, 24),), size, None, "bear/00001.jpg"),
    )
    source = SceneSource(records, STREET)
    return source, photos_of(source, folder / "images")


def flat(source: Source) -> list[RleMask]:
    return [
        RleMask.from_window(instance.mask.decode())
        for item in source
        if isinstance(item, ImageRecord)
        for instance in item.instances
    ]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


# what does not fit


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


def test_instances_without_a_place_in_the_format_are_named(tmp_path: Path) -> None:
    source, _ = two_images(tmp_path)
    crowd = replace(source.records[1].instances[0], is_crowd=True)
    odd = SceneSource((replace(source.records[1], instances=(crowd,)),), {24: "zebra"})
    for entry, reason in [
        (YOLO_SEG, "it is a crowd"),
        (CITYSCAPES_RESULTS, "it is a crowd"),
        (CITYSCAPES_IDS, "its category 24 is none of Cityscapes' classes"),
    ]:
        (fault,) = entry.write(tmp_path / entry.name, odd, {}).faults
        assert "bear/00001.jpg, instance 2" in str(fault.error)
        assert reason in str(fault.error)


def test_results_take_the_place_of_coarse_masks(tmp_path: Path) -> None:
    source, photos = two_images(tmp_path)
    refined = RleMask.from_window(MaskWindow(REFINED, 0, 0, REFINED.shape))
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
            Instance(number, RleMask.from_window(MaskWindow(mask, 0, 0, (1, count))), str(number))
            for number, mask in enumerate(masks)
        )
        return ImageRecord(None, f"{count}.jpg", instances, (1, count), None, f"{count}.jpg")

    ID_MAPS.write(tmp_path / "maps", SceneSource((row(255), row(256)), {}), {})
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
    assert "camel/00000.png: no photo in" in stray


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
        mask=RleMask.from_window(MaskWindow(np.ones((12, 15), bool), 0, 0, (12, 15))),
        category_id=7,
        is_stuff=True,
    )
    both = SceneSource((replace(record, instances=(record.instances[0], road)),), {7: "road", 24: "person"})
    assert CITYSCAPES_IDS.write(tmp_path / "out", both, {}) == Written()
    values = np.asarray(Image.open(tmp_path / "out/bear/00000_gtFine_instanceIds.png"))
    assert np.array_equal(values, np.where(record.instances[0].mask.decode().paste(), 24000, 7))


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
            RleMask.from_window(instance.mask.decode()) for item in sent for instance in item.instances
        ] == flat(opened)


@pytest.fixture
def pickled() -> Callable[[Any], Any]:
    import pickle

    return lambda item: pickle.loads(pickle.dumps(item))
