"""From one format to another and back: what the other format can hold comes back as it was."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_scenes import SceneSource, held, scenes

from transfiner_refine.formats import Source
from transfiner_refine.formats.coco_write import COCO_ANNOTATIONS, COCO_LINES, COCO_RESULTS
from transfiner_refine.formats.panoptic import COCO_PANOPTIC
from transfiner_refine.formats.records import Format, OpenOptions

EXAMPLES = settings(max_examples=15, deadline=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all examples; hypothesis has no fixture for each of them."""
    return tmp_path_factory.mktemp("round_trips")


def through(folder: Path, source: Source, *formats: Format) -> Source:
    """The source written in one format, opened, written in the next, and so on; the last one opened."""
    fresh = Path(tempfile.mkdtemp(dir=folder))
    for step, entry in enumerate(formats):
        path = fresh / f"{step}.json"
        written = entry.write(path, source, {})
        assert written.faults == ()
        assert written.covered == ()
        assert entry.recognise(path)
        source = entry.open(path, OpenOptions())
    return source


COCO_FIELDS = ("category_id", "score", "is_crowd")


@EXAMPLES
@given(scenes())
def test_coco_annotations_hold_everything(folder: Path, scene: SceneSource) -> None:
    if scene.num_instances:
        back = through(folder, scene, COCO_ANNOTATIONS)
        image = ("file_name", "size", "image_id")
        assert held(back, *COCO_FIELDS, image=image, empty=True) == held(
            scene, *COCO_FIELDS, image=image, empty=True
        )
        assert back.categories == scene.categories


@EXAMPLES
@given(scenes(), st.sampled_from([COCO_RESULTS, COCO_LINES]))
def test_coco_results_hold_all_instances(folder: Path, scene: SceneSource, entry: Format) -> None:
    if scene.num_instances:
        back = through(folder, scene, entry)
        assert held(back, *COCO_FIELDS, image=("image_id",)) == held(scene, *COCO_FIELDS, image=("image_id",))


@EXAMPLES
@given(scenes(image_ids=False, categories=False, scores=False))
def test_without_ids_of_images_results_hold_their_names(folder: Path, scene: SceneSource) -> None:
    if scene.num_instances:
        back = through(folder, scene, COCO_RESULTS, COCO_LINES, COCO_RESULTS, COCO_ANNOTATIONS)
        assert held(back, "is_crowd") == held(scene, "is_crowd")


@EXAMPLES
@given(scenes(), st.permutations([COCO_RESULTS, COCO_LINES, COCO_ANNOTATIONS]))
def test_coco_files_of_all_kinds_turn_into_each_other(
    folder: Path, scene: SceneSource, formats: list[Format]
) -> None:
    if scene.num_instances:
        back = through(folder, scene, *formats, *formats)
        assert held(back, *COCO_FIELDS, image=("image_id",)) == held(scene, *COCO_FIELDS, image=("image_id",))


@EXAMPLES
@given(scenes(overlapping=False))
def test_coco_panoptic_holds_everything_that_does_not_overlap(folder: Path, scene: SceneSource) -> None:
    if scene.num_instances:
        fields = (*COCO_FIELDS, "instance_id")
        first = through(folder, scene, COCO_PANOPTIC)
        image = ("file_name", "size", "image_id")
        assert held(first, *COCO_FIELDS, image=image, empty=True) == held(
            scene, *COCO_FIELDS, image=image, empty=True
        )
        back = through(folder, first, COCO_ANNOTATIONS, COCO_PANOPTIC)
        assert held(back, *fields[:3], image=image) == held(first, *fields[:3], image=image)
        assert back.categories == first.categories
