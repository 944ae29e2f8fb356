"""Folder formats, written from anything and read again: what they can hold comes back as it was."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folder_scenes import FOLDERS, REFINED, STREET, contents, flat, photos_of, two_images
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from mask_scenes import SceneSource, held, scenes

from transfiner_refine.formats import Mask, Source
from transfiner_refine.formats.cityscapes_results import CITYSCAPES_RESULTS
from transfiner_refine.formats.label_map_formats import CITYSCAPES_IDS, DAVIS, VOC
from transfiner_refine.formats.labelme import LABELME
from transfiner_refine.formats.mask_files import PLAIN_MAPS, PNG_FOLDER
from transfiner_refine.formats.records import Format, ImageRecord, OpenOptions, Written
from transfiner_refine.formats.registry import FORMATS
from transfiner_refine.formats.yolo import YOLO_SEG
from transfiner_refine.masks import MaskWindow

EXAMPLES = settings(max_examples=25, deadline=None)


def any_pixels(size: tuple[int, int]) -> st.SearchStrategy[np.ndarray]:
    """Masks of any shape at all: specks, rings, parts that touch at corners."""
    return arrays(bool, size)


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


@EXAMPLES
@given(scenes(crowds=False, mask=any_pixels))
def test_yolo_holds_every_mask_to_the_pixel_with_its_class_and_score(scene: SceneSource) -> None:
    if scene.num_instances:
        photos = photos_of(scene, Path(tempfile.mkdtemp()))
        back, written = through(scene, YOLO_SEG, photos)
        assert replace(written, notes=()) == Written()
        assert held(back, "score") == held(scene, "score")
        assert class_names(back) == class_names(scene)
        assert [*back.categories] == [0, 1, 2]


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
        if isinstance(item, ImageRecord) and item.instances
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
@given(scenes(overlapping=False, crowds=False, mask=any_pixels), st.sampled_from([DAVIS, VOC, PLAIN_MAPS]))
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
@given(scenes(crowds=False), st.sampled_from([DAVIS, VOC, PLAIN_MAPS, CITYSCAPES_IDS]))
def test_overlaps_go_to_the_higher_score_and_are_counted(scene: SceneSource, entry: Format) -> None:
    if not scene.num_instances:
        return
    scene = named(scene, STREET)
    back, written = through(scene, entry, photos_of(scene, Path(tempfile.mkdtemp())))
    shared, covered, expected = 0, [], []
    for record in scene.records:
        ranked = sorted(record.instances, key=lambda instance: -(instance.score or 0))
        taken, twice = np.zeros(record.size or (0, 0), bool), np.zeros(record.size or (0, 0), bool)
        for instance in ranked:
            pixels = instance.mask.decode().paste()
            left = pixels & ~taken
            twice |= pixels & taken
            taken |= pixels
            if left.any():
                expected.append(Mask.from_window(MaskWindow(left, 0, 0, left.shape)).counts)
            else:
                covered.append(f"{record.name}, {instance.label}")
        shared += int(twice.sum())
    assert (written.overlap_pixels, written.covered) == (shared, ())
    assert sorted(str(fault.error.record) for fault in written.faults) == sorted(covered)
    assert sorted(mask[0].counts for _, masks in held(back) for mask in masks) == sorted(expected)


@EXAMPLES
@given(scenes(overlapping=False), st.permutations([YOLO_SEG, LABELME, PNG_FOLDER, PLAIN_MAPS, DAVIS, VOC]))
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
            assert replace(written, notes=()) == Written()
        assert [(image, set(masks)) for image, masks in held(back)] == [
            (image, set(masks)) for image, masks in held(scene)
        ]


# in place


@pytest.mark.parametrize("entry", FOLDERS, ids=lambda entry: entry.name)
def test_a_refined_mask_written_in_place_is_read_back_to_the_pixel(entry: Format, tmp_path: Path) -> None:
    source, photos = two_images(tmp_path)
    entry.write(tmp_path / "masks", source, {})
    (tmp_path / "masks" / "notes.md").write_text("mine")
    opened = entry.open(tmp_path / "masks", OpenOptions(images=photos))
    assert (opened.num_images, opened.num_instances) == (2, 3)
    done = opened.write(tmp_path / "out", {1: Mask.from_window(MaskWindow(REFINED, 0, 0, REFINED.shape))})
    assert done.faults == ()
    again = entry.open(tmp_path / "out", OpenOptions(images=photos))
    before, after = flat(opened), flat(again)
    assert after[1] == Mask.from_window(MaskWindow(REFINED, 0, 0, REFINED.shape))
    assert [after[0], after[2]] == [before[0], before[2]]
    assert (tmp_path / "out" / "notes.md").exists() == (entry not in (PNG_FOLDER, PLAIN_MAPS))


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
    assert found is (PNG_FOLDER if entry is PLAIN_MAPS else entry)


@pytest.mark.parametrize("entry", FOLDERS, ids=lambda entry: entry.name)
def test_a_photo_that_is_missing_is_named_and_the_others_go_on(entry: Format, tmp_path: Path) -> None:
    source, photos = two_images(tmp_path)
    entry.write(tmp_path / "masks", source, {})
    (photos / "bear" / "00001.jpg").unlink()
    found = list(entry.open(tmp_path / "masks", OpenOptions(images=photos)))
    faults = [item.error for item in found if not isinstance(item, ImageRecord)]
    assert len(faults) == 1
    assert "00001" in str(faults[0])
    assert "of that name" in str(faults[0]) or "has that name" in str(faults[0])
    assert sum(len(item.instances) for item in found if isinstance(item, ImageRecord)) == 2
