"""Folders of mask PNGs: what goes in comes out, in the same files and the same pixel type."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transfiner_refine.errors import InputError, OutputError
from transfiner_refine.formats import Mask, RecordFault, Source, open_source
from transfiner_refine.formats.png import read_pixels
from transfiner_refine.formats.records import ImageRecord, Instance
from transfiner_refine.masks import MaskWindow

SIZE = (30, 40)
DISC = np.hypot(*(np.indices(SIZE) - np.array([[[14]], [[18]]]))) < 9
IDS = np.zeros(SIZE, np.uint8)
IDS[2:12, 3:15], IDS[15:28, 5:20], IDS[4:25, 25:38] = 1, 2, 5


def scene(
    tmp_path: Path, masks: dict[str, np.ndarray], photos: tuple[str, ...] = ("a.jpg", "a_1.jpg")
) -> Path:
    (tmp_path / "images").mkdir()
    for name in photos:
        Image.new("RGB", SIZE[::-1]).save(tmp_path / "images" / name)
    for name, values in masks.items():
        path = tmp_path / "masks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(path)
    return tmp_path / "masks"


def opened(tmp_path: Path, masks: dict[str, np.ndarray], **options: str) -> Source:
    return open_source(scene(tmp_path, masks), tmp_path / "images", **options)  # type: ignore[arg-type]


def instances_of(source: Source) -> dict[str, list[Instance]]:
    return {item.name: list(item.instances) for item in source if isinstance(item, ImageRecord)}


def labels_of(source: Source) -> dict[str, list[str]]:
    return {name: [instance.label for instance in found] for name, found in instances_of(source).items()}


def coarse_results(source: Source) -> dict[int, Mask]:
    found = [instance for instances in instances_of(source).values() for instance in instances]
    return {instance.index: Mask.from_window(instance.mask.decode()) for instance in found}


def binary(value: int = 255, dtype: type = np.uint8) -> np.ndarray:
    return np.where(DISC, value, 0).astype(dtype)


def test_the_three_layouts_are_told_by_name_and_the_longest_stem_wins(tmp_path: Path) -> None:
    names = ["a.png", "a_2.png", "a_1.png", "a_1_x.png", "a/person 0.png", "a/person 1.png"]
    source = opened(tmp_path, {name: binary() for name in names})
    assert labels_of(source) == {
        "a.jpg": ["a.png", "a/person 0.png", "a/person 1.png", "a_2.png"],
        "a_1.jpg": ["a_1.png", "a_1_x.png"],
    }
    assert (source.num_images, source.num_instances) == (2, 6)


@pytest.mark.parametrize("values", [binary(255), binary(1), binary(65535, np.uint16), DISC])
def test_a_binary_mask_comes_out_with_its_own_two_values(tmp_path: Path, values: np.ndarray) -> None:
    source = opened(tmp_path, {"a_0.png": values})
    (coarse,) = instances_of(source)["a.jpg"]
    assert np.array_equal(coarse.mask.decode().paste(), DISC)
    assert coarse.mask.size == SIZE
    refined = Mask.from_window(MaskWindow(np.ones((4, 5), bool), 7, 8, SIZE))
    source.write(tmp_path / "out", {0: refined})
    with (
        Image.open(tmp_path / "out" / "a_0.png") as image,
        Image.open(tmp_path / "masks" / "a_0.png") as before,
    ):
        assert image.mode == before.mode
        assert np.array_equal(np.asarray(image), np.where(refined.decode().paste(), values.max(), 0))


def test_a_soft_mask_stays_soft_and_is_refined_to_black_and_white(tmp_path: Path) -> None:
    soft = np.clip(np.hypot(*(np.indices(SIZE) - np.array([[[14]], [[18]]]))) * -20 + 300, 0, 255).astype(
        np.uint8
    )
    source = opened(tmp_path, {"a.png": soft})
    (coarse,) = instances_of(source)["a.jpg"]
    window = coarse.mask.decode()
    assert window.values.dtype == np.float32
    assert np.allclose(window.paste(), soft / 255)
    source.write(tmp_path / "out", coarse_results(source))
    with Image.open(tmp_path / "out" / "a.png") as image:
        assert image.mode == "L"
        assert np.array_equal(np.asarray(image), np.where(soft >= 128, 255, 0))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_an_label_map_gives_one_instance_an_id(tmp_path: Path, dtype: type) -> None:
    values = IDS.astype(dtype) * (1 if dtype == np.uint8 else 5000)
    source = opened(tmp_path, {"a.png": values})
    found = instances_of(source)["a.jpg"]
    assert [instance.label for instance in found] == [f"a.png id {value}" for value in np.unique(values)[1:]]
    for instance, value in zip(found, np.unique(values)[1:], strict=True):
        assert np.array_equal(instance.mask.decode().paste(), values == value)
    source.write(tmp_path / "out", coarse_results(source))
    assert np.array_equal(read_pixels(tmp_path / "out" / "a.png").values, values)


def test_a_palette_image_is_an_label_map_whose_void_is_never_refined(tmp_path: Path) -> None:
    scene(tmp_path, {})
    (tmp_path / "masks").mkdir()
    values = IDS.copy()
    values[0] = 255
    image = Image.frombytes("P", SIZE[::-1], values.tobytes())
    image.putpalette(bytes(range(256)) * 3)
    image.save(tmp_path / "masks" / "a.png")
    source = open_source(tmp_path / "masks", tmp_path / "images")
    assert [instance.is_crowd for instance in instances_of(source)["a.jpg"]] == [False, False, False, True]
    refined = Mask.from_window(MaskWindow(np.ones((6, 6), bool), 0, 0, SIZE))
    source.write(tmp_path / "out", {0: refined})
    with Image.open(tmp_path / "out" / "a.png") as out:
        assert out.mode == "P"
        assert out.getpalette() == image.getpalette()
        expected = np.where(IDS == 1, 0, values)
        expected[1:6, :6] = 1
        assert np.array_equal(np.asarray(out), expected)


def test_png_kind_overrules_the_pixels(tmp_path: Path) -> None:
    assert opened(tmp_path, {"a_1_map.png": IDS}, png_kind="label-map").num_instances == 3
    assert open_source(tmp_path / "masks", tmp_path / "images", png_kind="binary").num_instances == 1


def test_files_without_refined_masks_are_copied_byte_for_byte(tmp_path: Path) -> None:
    source = opened(tmp_path, {"a.png": IDS, "a_0.png": binary(), "nobody.png": binary()})
    source.write(tmp_path / "out", {})
    for name in ("a.png", "a_0.png", "nobody.png"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "masks" / name).read_bytes()


def test_masks_and_photos_may_share_a_folder(tmp_path: Path) -> None:
    scene(tmp_path, {})
    Image.fromarray(binary()).save(tmp_path / "images" / "a.png")
    source = open_source(tmp_path / "images", tmp_path / "images")
    assert labels_of(source) == {"a.jpg": ["a.png"]}
    with pytest.raises(OutputError, match="is an input"):
        source.write(tmp_path / "images", {}, overwrite=True)


def test_bad_files_are_named_and_the_others_go_on(tmp_path: Path) -> None:
    folder = scene(tmp_path, {"a_0.png": binary(), "nobody.png": binary()})
    (folder / "a.png").write_bytes(b"no image")
    Image.fromarray(binary()).save(folder / "a_1.png", format="JPEG")
    source = open_source(folder, tmp_path / "images")
    faults = [str(item.error) for item in source if isinstance(item, RecordFault)]
    assert len(faults) == 3
    assert "nobody.png: no image in" in faults[0]
    assert "a.png: is no image" in faults[1]
    assert "a_1.png: is a JPEG file; save masks as PNG" in faults[2]
    assert labels_of(source) == {"a.jpg": ["a_0.png"], "a_1.jpg": []}
    source.write(tmp_path / "out", coarse_results(source))
    assert (tmp_path / "out" / "a.png").read_bytes() == b"no image"


def test_masks_of_no_photo_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none of the 1 masks belongs to an image \(first: nobody\.png\)"):
        opened(tmp_path, {"nobody.png": binary()})
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no PNG masks"):
        open_source(tmp_path / "empty", tmp_path / "images")


def test_a_mask_in_colours_is_an_error_and_grey_rgb_is_not(tmp_path: Path) -> None:
    grey = binary()[..., None].repeat(3, 2)
    coloured = grey.copy()
    coloured[5, 5] = (1, 2, 3)
    source = opened(tmp_path, {"a_grey.png": grey, "a_red.png": coloured})
    fine, wrong = instances_of(source)["a.jpg"]
    assert np.array_equal(fine.mask.decode().paste(), DISC)
    with pytest.raises(InputError, match="in colours"):
        wrong.mask.decode()
    source.write(tmp_path / "out", {0: Mask.from_window(fine.mask.decode())})
    with Image.open(tmp_path / "out" / "a_grey.png") as image:
        assert image.mode == "RGB"
        assert np.array_equal(np.asarray(image), grey)


@pytest.mark.parametrize("name", ["a_mask.png", "a_label.png", "a/0.png", "a.png"])
def test_a_map_that_is_the_only_file_of_its_image_is_one_whatever_it_is_called(
    tmp_path: Path, name: str
) -> None:
    source = opened(tmp_path, {name: IDS * 40})
    assert [instance.instance_id for instance in instances_of(source)["a.jpg"]] == [40, 80, 200]
    source.write(tmp_path / "out", coarse_results(source))
    assert np.array_equal(read_pixels(tmp_path / "out" / name).values, IDS * 40)


def test_masks_that_are_no_pngs_are_named_and_kept(tmp_path: Path) -> None:
    folder = scene(
        tmp_path, {"a_0.png": binary(), "a_1.jpg": binary(), "a_1/x.tif": binary(), "sheet.jpg": binary()}
    )
    source = open_source(folder, tmp_path / "images")
    reasons = []
    for item in source:
        reasons += [str(item.error)] if isinstance(item, RecordFault) else []
        for instance in item.instances if isinstance(item, ImageRecord) else ():
            try:
                instance.mask.decode()
            except InputError as error:
                reasons.append(str(error))
    assert [reason.partition("masks/")[2] for reason in sorted(reasons)] == [
        "a_1.jpg: is a JPEG file; save masks as PNG, without loss",
        "a_1/x.tif: is a TIFF file; save masks as PNG, without loss",
    ]
    source.write(tmp_path / "out", {})
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.*")) == ["a_0.png", "a_1.jpg", "x.tif"]


def test_a_map_among_single_masks_is_named_and_left_as_it_is(tmp_path: Path) -> None:
    source = opened(tmp_path, {"a_0.png": binary(), "a_1.png": IDS * 40, "a_2.png": IDS})
    fine, *maps = instances_of(source)["a.jpg"]
    for instance in maps:
        with pytest.raises(
            InputError, match=r"holds several ids, but its name says one instance; .*--png-kind"
        ):
            instance.mask.decode()
    source.write(tmp_path / "out", {0: Mask.from_window(fine.mask.decode())})
    for name in ("a_1.png", "a_2.png"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "masks" / name).read_bytes()
    assert open_source(tmp_path / "masks", tmp_path / "images", png_kind="binary").num_instances == 3
