"""YOLO segmentation: polygons in shares of the photo's size, a line an instance."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from mask_scenes import SceneSource
from PIL import Image

from transfiner_refine.errors import InputError
from transfiner_refine.formats import Mask, RecordFault, Source, open_source
from transfiner_refine.formats.coco_write import COCO_ANNOTATIONS, COCO_RESULTS
from transfiner_refine.formats.convert import convert_masks
from transfiner_refine.formats.records import ImageRecord, Instance
from transfiner_refine.formats.registry import recognise
from transfiner_refine.formats.yolo import YOLO_SEG
from transfiner_refine.masks import MaskWindow
from transfiner_refine.pipeline.refine import refine_files

SIZE = (30, 40)
SQUARE = "0.25 0.2 0.5 0.2 0.5 0.6 0.25 0.6"  # columns 10 ... 19, rows 6 ... 17
REFINED = np.zeros(SIZE, bool)
REFINED[5:20, 8:22], REFINED[9:12, 11:15], REFINED[25:28, 30:35] = True, False, True


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "images" / "train"
    folder.mkdir(parents=True)
    Image.new("RGB", SIZE[::-1]).save(folder / "street.jpg")
    return tmp_path / "images"


def labels(tmp_path: Path, text: str) -> Path:
    folder = tmp_path / "labels" / "train"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "street.txt").write_bytes(text.encode())
    return tmp_path / "labels"


def instances_of(source: Source) -> list[Instance]:
    return [i for item in source if isinstance(item, ImageRecord) for i in item.instances]


def test_lines_are_polygons_with_a_class_and_perhaps_a_confidence(tmp_path: Path, photos: Path) -> None:
    folder = labels(tmp_path, f"3 {SQUARE}\n0 {SQUARE} 0.875\n\n")
    (folder / "classes.txt").write_text("person\nbicycle\n\ncar\n")
    assert recognise(folder).name == "yolo-seg"
    source = open_source(folder, photos)
    first, second = instances_of(source)
    assert (first.category_id, first.score, first.label) == (3, None, "train/street.txt line 1")
    assert (second.category_id, second.score) == (0, 0.875)
    assert source.categories == {0: "person", 1: "bicycle", 3: "car"}
    expected = np.zeros(SIZE, bool)
    expected[6:18, 10:20] = True
    assert np.array_equal(first.mask.decode().paste(), expected)
    assert first.mask.size == SIZE


def test_refined_lines_keep_class_and_confidence_and_the_rest_its_bytes(tmp_path: Path, photos: Path) -> None:
    folder = labels(tmp_path, f"3 {SQUARE}\r\n00 {SQUARE} 0.8750\r\n\r\n7   {SQUARE}")
    refined = Mask.from_window(MaskWindow(REFINED, 0, 0, SIZE))
    open_source(folder, photos).write(tmp_path / "out", {1: refined})
    before = (folder / "train" / "street.txt").read_bytes().split(b"\r\n")
    after = (tmp_path / "out" / "train" / "street.txt").read_bytes().split(b"\r\n")
    assert after[0] == before[0]
    assert after[2:] == before[2:]
    fields = after[1].split()
    assert (fields[0], fields[-1]) == (b"00", b"0.8750")
    again = instances_of(open_source(tmp_path / "out", photos))
    assert np.array_equal(again[1].mask.decode().paste(), REFINED)


def test_contours_of_opencv_in_the_photos_own_pixels_are_read_to_the_pixel(
    tmp_path: Path, photos: Path
) -> None:
    disc = np.hypot(*(np.indices(SIZE) - np.array([[[14]], [[18]]]))) < 9.3
    (contour,), _ = cv2.findContours(disc.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    shares = contour.reshape(-1, 2) / np.array([SIZE[1], SIZE[0]])
    line = " ".join(f"{share:.6f}" for share in shares.ravel())
    (instance,) = instances_of(open_source(labels(tmp_path, f"0 {line}"), photos))
    assert np.array_equal(instance.mask.decode().paste(), disc)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("0 0.5 0.5 0.2 0.2", "is a box, not a mask; boxes alone cannot be refined"),
        ("0 0.5 0.5 0.2 0.2 0.9", "is a box"),
        ("0 0.5 0.5", "is no polygon"),
        ("0", "is no polygon"),
        ("car 0.1 0.1 0.2 0.2 0.3 0.1", "something that is no number"),
        ("0.5 0.1 0.1 0.2 0.2 0.3 0.1", "has class '0.5'"),
        ("0 0.1 nan 0.2 0.2 0.3 0.1", "not finite"),
        ("0 12 14 80 90 33 17", "has the coordinate 90, but these are shares"),
    ],
)
def test_a_bad_line_is_named_and_passes_through(tmp_path: Path, photos: Path, line: str, reason: str) -> None:
    folder = labels(tmp_path, f"0 {SQUARE}\n{line}\n")
    source = open_source(folder, photos, format="yolo-seg")
    (fault,) = [str(item.error) for item in source if isinstance(item, RecordFault)]
    assert "street.txt: line 2: " in fault
    assert reason in fault
    source.write(tmp_path / "out", {0: Mask.from_window(MaskWindow(REFINED, 0, 0, SIZE))})
    assert (tmp_path / "out" / "train" / "street.txt").read_text().splitlines()[1] == line


def test_without_photos_there_is_no_size_and_the_message_says_so(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="cannot be read without the images; give their folder with --images"
    ):
        open_source(labels(tmp_path, f"0 {SQUARE}"))


def test_files_without_lines_are_copied_and_no_fault(tmp_path: Path, photos: Path) -> None:
    Image.new("RGB", SIZE[::-1]).save(photos / "train" / "empty.jpg")
    folder = labels(tmp_path, f"0 {SQUARE}")
    (folder / "train" / "empty.txt").write_text("")
    source = open_source(folder, photos)
    assert (source.num_images, source.num_instances) == (1, 1)
    assert not [item for item in source if isinstance(item, RecordFault)]
    source.write(tmp_path / "out", {})
    assert (tmp_path / "out" / "train" / "empty.txt").read_text() == ""


def test_photos_that_lie_sideways_are_taken_upright(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    photo = Image.new("RGB", SIZE[::-1])
    exif = photo.getexif()
    exif[0x0112] = 6
    photo.save(tmp_path / "images" / "street.jpg", exif=exif)
    folder = labels(tmp_path, f"0 {SQUARE}")
    (instance,) = instances_of(open_source(folder / "train", tmp_path / "images"))
    assert instance.mask.size == SIZE[::-1]


def test_a_folder_of_boxes_is_not_taken_for_masks(tmp_path: Path) -> None:
    folder = labels(tmp_path, "0 0.5 0.5 0.2 0.2\n")
    with pytest.raises(InputError, match=r"no masks of a known format \(1 .txt\); the nearest is yolo-seg"):
        open_source(folder)


@pytest.mark.parametrize(
    ("endings", "scores"),
    [
        (["0.91 1", "0.8 2"], [0.91, 0.8]),  # confidence and track id
        (["1", "2"], [None, None]),  # a track id alone: 1 could be a confidence, 2 cannot
        (["1", "0.5"], [1.0, 0.5]),
    ],
)
def test_track_ids_are_neither_points_nor_confidences(
    tmp_path: Path, photos: Path, endings: list[str], scores: list[float | None]
) -> None:
    folder = labels(tmp_path, "".join(f"0 {SQUARE} {ending}\n" for ending in endings))
    source = open_source(folder, photos)
    assert [instance.score for instance in instances_of(source)] == scores
    refined = Mask.from_window(MaskWindow(REFINED, 0, 0, SIZE))
    source.write(tmp_path / "out", {0: refined, 1: refined})
    lines = (tmp_path / "out" / "train" / "street.txt").read_text().splitlines()
    assert all(line.endswith(f" {ending}") for line, ending in zip(lines, endings, strict=True))
    assert [i.mask.decode().area for i in instances_of(open_source(tmp_path / "out", photos))] == [
        REFINED.sum()
    ] * 2


def test_boxes_before_polygons_and_lists_of_images_do_not_hide_the_format(
    tmp_path: Path, photos: Path
) -> None:
    labels(tmp_path, f"0 0.5 0.5 0.2 0.2\n0 {SQUARE}\n")
    (tmp_path / "train.txt").write_text("data/images/train/street.jpg\n")
    (tmp_path / "data.yaml").write_text("names: [cup]\n")
    for root in (tmp_path / "labels", tmp_path):
        assert recognise(root).name == "yolo-seg"
        source = open_source(root, photos)
        assert (source.num_instances, len(instances_of(source))) == (2, 1)
    (tmp_path / "labels" / "train" / "street.txt").unlink()
    with pytest.raises(InputError, match=r"holds no label files; give a folder of STEM\.txt"):
        open_source(tmp_path, photos, format="yolo-seg")


def test_the_byte_order_mark_of_a_refined_line_stays(tmp_path: Path, photos: Path) -> None:
    folder = labels(tmp_path, f"\ufeff0 {SQUARE}\n")
    open_source(folder, photos).write(
        tmp_path / "out", {0: Mask.from_window(MaskWindow(REFINED, 0, 0, SIZE))}
    )
    assert (tmp_path / "out" / "train" / "street.txt").read_text(encoding="utf-8").startswith("\ufeff0 ")


def one_image(name: str) -> ImageRecord:
    mask = Mask.from_window(MaskWindow(REFINED, 0, 0, SIZE))
    return ImageRecord(None, name, (Instance(0, mask, "instance 0", 1),), SIZE, None, name)


def test_labels_never_take_the_name_of_the_file_of_classes(tmp_path: Path) -> None:
    written = YOLO_SEG.write(tmp_path / "out", SceneSource((one_image("a/classes.jpg"),), {1: "cup"}), {})
    assert "its labels would be in a/classes.txt, which is for class names" in str(written.faults[0].error)
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == ["classes.txt", "data.yaml"]


def test_a_name_that_no_text_file_holds_is_refused_before_the_work(tmp_path: Path, photos: Path) -> None:
    annotations = tmp_path / "a.json"
    COCO_ANNOTATIONS.write(annotations, SceneSource((one_image("street.jpg"),), {1: "\ud800"}), {})
    with pytest.raises(InputError, match=r"the name of category 1: has half of a pair of characters"):
        convert_masks(annotations, tmp_path / "out", to="yolo-seg")
    with pytest.raises(InputError, match=r"the name of category 1: has half of a pair of characters"):
        refine_files(photos / "train", annotations, tmp_path / "out", to="yolo-seg", dry_run=True)
    assert not (tmp_path / "out").exists()


def test_classes_may_be_called_by_numbers(tmp_path: Path, photos: Path) -> None:
    (tmp_path / "names").write_text("0\n1\n2\n")
    source = open_source(labels(tmp_path, f"0 {SQUARE}"), photos, class_names=tmp_path / "names")
    assert source.categories == {0: "0", 1: "1", 2: "2"}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("nc: 2\nnames: [cup, spoon]\n", {0: "cup", 1: "spoon"}),
        ("path: ../data\nnames:\n  0: cup\n  7: no\n", {0: "cup", 7: "no"}),
        ('["cup", "spoon"]', {0: "cup", 1: "spoon"}),
        ('{\n\t"1": "cup"\n}', {1: "cup"}),
        ('{"categories": [{"id": 3, "name": "cup"}]}', {3: "cup"}),
        ("0 cup\n1 big spoon\n", {0: "cup", 1: "big spoon"}),
        ("1: cup\n2: spoon\n", {1: "cup", 2: "spoon"}),
    ],
)
def test_class_names_come_from_yaml_json_and_numbered_lines(
    tmp_path: Path, photos: Path, text: str, names: dict[int, str]
) -> None:
    (tmp_path / "names").write_text(text)
    source = open_source(labels(tmp_path, f"0 {SQUARE}"), photos, class_names=tmp_path / "names")
    assert source.categories == names


@pytest.mark.parametrize("text", ["names: 3\n", "names: [cup\n", '{"a": "b"}', "[[1]]", "names:\n  0: [x]\n"])
def test_a_file_that_has_no_names_is_refused(tmp_path: Path, photos: Path, text: str) -> None:
    (tmp_path / "names").write_text(text)
    with pytest.raises(InputError, match=r"names: (has no list of names|is no YAML or JSON)"):
        open_source(labels(tmp_path, f"0 {SQUARE}"), photos, class_names=tmp_path / "names")


@pytest.mark.parametrize("as_root", [True, False])
def test_names_of_a_data_set_are_found_beside_its_labels(tmp_path: Path, photos: Path, as_root: bool) -> None:
    folder = labels(tmp_path, f"0 {SQUARE}")
    (tmp_path / "data.yaml").write_text("names: [cup]\n")
    assert open_source(tmp_path if as_root else folder, photos).categories == {0: "cup"}


def test_classes_of_other_formats_are_numbered_from_0_and_it_is_said(tmp_path: Path, photos: Path) -> None:
    mask = Mask.from_window(MaskWindow(REFINED, 0, 0, SIZE))
    instances = tuple(Instance(at, mask, "", number) for at, number in enumerate((2, 1, 9, None)))
    record = ImageRecord(None, "street.jpg", instances, SIZE, None, "train/street.jpg")
    written = YOLO_SEG.write(tmp_path / "out", SceneSource((record,), {1: "cup", 2: "no", 5: "x"}), {})
    lines = (tmp_path / "out" / "train" / "street.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["1", "0", "3", "4"]
    assert (tmp_path / "out" / "classes.txt").read_text() == "cup\nno\nx\nclass 9\nobject\n"
    (note,) = written.notes
    assert note.startswith(
        "Classes numbered from 0, as YOLO has them: 1 -> 0 cup, 2 -> 1 no, 5 -> 2 x, 9 -> 3 "
    )
    (tmp_path / "out" / "classes.txt").unlink()
    source = open_source(tmp_path / "out", photos)
    assert source.categories == {0: "cup", 1: "no", 2: "x", 3: "class 9", 4: "object"}
    same = YOLO_SEG.write(tmp_path / "again", SceneSource((record,), {}), {})
    assert same.notes  # 1, 2 and 9 are no classes of YOLO
    assert not YOLO_SEG.write(
        tmp_path / "third", SceneSource((replace(record, instances=()),), {0: "a"}), {}
    ).notes


def test_what_trails_is_told_by_all_lines_together(tmp_path: Path, photos: Path) -> None:
    """Ids of 0 and 1 could be points at the border, and a lone 1 a confidence."""
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    disc = " ".join(
        f"{share:g}" for share in (0.3 + 0.1 * np.stack((np.cos(angles), np.sin(angles)), 1)).ravel()
    )
    for text, scores, ids in (
        (f"0 {disc} 0.91 1\n", [0.91], [1]),
        (f"0 {disc} 1\n", [None], [1]),
        (f"0 {disc} 1\n0 {disc} 1\n", [1.0, 1.0], [None, None]),  # two objects have not one id
        (f"0 {disc} 0.5\n0 {disc} 1\n", [0.5, 1.0], [None, None]),
        (f"0 {SQUARE} 0.91 1\n", [None], [None]),  # a fifth point, as far as anybody can tell
        (f"0 {disc} 0.91 1\n0 {SQUARE}\n", [None, None], [None, None]),
        (f"0 {disc} 0.91 1\n0 {SQUARE} 0.5 7\n", [0.91, 0.5], [1, 7]),
    ):
        found = instances_of(open_source(labels(tmp_path, text), photos))
        assert [instance.score for instance in found] == scores, text
        assert [instance.instance_id for instance in found] == ids, text


@pytest.mark.parametrize(
    "lines",
    [
        ["0 0.5 0.5 0.4 0.6 0.4 0.3 2 0.6 0.4 1 0 0 0"],
        ["0 0.5 0.5 0.4 0.6 0.4 0.3 2.0 0.6 0.4 1.0 0 0 0 0.9 3"],
        [
            "0 0.5 0.5 0.4 0.6 " + "0.4 0.3 0.97 " * 5 + "0.9",
            "0 0.3 0.6 0.3 0.3 " + "0.31 0.6 0.9 " * 5 + "0.8",
        ],
    ],
)
def test_poses_are_named_and_not_taken_for_polygons(tmp_path: Path, photos: Path, lines: list[str]) -> None:
    source = open_source(labels(tmp_path, "\n".join(lines)), photos, format="yolo-seg")
    assert {item.error.reason for item in source if isinstance(item, RecordFault)} == {
        "is a box and key points of a pose, not a mask"
    }
    assert not instances_of(source)


def test_key_points_that_data_yaml_states_are_no_masks(tmp_path: Path, photos: Path) -> None:
    folder = labels(tmp_path, f"0 {SQUARE}")
    (tmp_path / "data.yaml").write_text("kpt_shape: [2, 2]\nnames: [person]\n")
    assert not instances_of(open_source(folder, photos))


@pytest.mark.parametrize("option", ["masks", "class_names", "image_info"])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path, photos: Path, option: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    masks = labels(tmp_path, f"0 {SQUARE}") if option == "class_names" else tmp_path / "results.json"
    if option == "image_info":
        COCO_RESULTS.write(masks, SceneSource((one_image("a.jpg"),), {}), {})
    with pytest.raises(InputError, match="pipe: is no file; give a plain file"):
        open_source(**{"masks": masks, "images": photos, option: tmp_path / "pipe"})


def test_shares_are_of_the_image_as_the_orientation_says(tmp_path: Path, photos: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", SIZE[::-1]).save(photos / "train" / "street.jpg", exif=exif)
    folder = labels(tmp_path, f"0 {SQUARE}\n")
    for orientation, size in (("auto", SIZE[::-1]), ("upright", SIZE[::-1]), ("stored", SIZE)):
        (record,) = open_source(folder, photos, orientation=orientation)
        assert isinstance(record, ImageRecord)
        assert (record.instances[0].mask.size, record.orientation) == (size, orientation)
