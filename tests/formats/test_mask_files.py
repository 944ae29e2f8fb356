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
    assert len(faults) == 2
    assert "nobody.png: no image in" in faults[0]
    assert "a.png: is no image" in faults[1]
    assert len(source.notes) == 1
    assert labels_of(source) == {"a.jpg": ["a_0.png"], "a_1.jpg": ["a_1.png"]}
    source.write(tmp_path / "out", coarse_results(source))
    assert (tmp_path / "out" / "a.png").read_bytes() == b"no image"


def test_masks_of_no_photo_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none of the 1 masks belongs to an image \(first: nobody\.png\)"):
        opened(tmp_path, {"nobody.png": binary()})
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no mask images"):
        open_source(tmp_path / "empty", tmp_path / "images", format="png")


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


def test_masks_of_every_kind_are_read_and_written_without_loss(tmp_path: Path) -> None:
    folder = scene(
        tmp_path, {"a_0.png": binary(), "a_1.jpg": binary(), "a_1/x.tif": binary(), "a_2.bmp": DISC}
    )
    Image.fromarray(IDS.astype(np.int32) * 70_000).save(
        folder / "b.tiff", compression="tiff_lzw", description="x"
    )
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "images" / "b.webp", lossless=True)
    source = open_source(folder, tmp_path / "images")
    assert labels_of(source) == {
        "a.jpg": ["a_0.png", "a_2.bmp"],
        "a_1.jpg": ["a_1.jpg", "a_1/x.tif"],
        "b.webp": [f"b.tiff id {value}" for value in (70_000, 140_000, 350_000)],
    }
    assert source.notes == [
        "JPEGs cut at the middle, and cut-outs, written as grey PNGs where refined: 1 mask (first: a_1.jpg)."
    ]
    before = coarse_results(source)
    assert len({before[number] for number in range(4)}) == 1
    refined = Mask.from_window(MaskWindow(np.ones((4, 5), bool), 7, 8, SIZE))
    source.write(tmp_path / "out", dict.fromkeys(range(5), refined))
    names = [path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")]
    assert sorted(names) == ["a_0.png", "a_1.png", "a_1/x.tif", "a_2.bmp", "b.tiff"]
    again = open_source(tmp_path / "out", tmp_path / "images")
    after = coarse_results(again)
    assert {after[number] for number in range(5)} == {refined}
    assert [after[number] for number in (5, 6)] == [before[number] for number in (5, 6)]
    for name in ("a_1/x.tif", "a_2.bmp", "b.tiff"):
        with Image.open(folder / name) as old, Image.open(tmp_path / "out" / name) as new:
            assert (old.format, old.mode, old.info.get("compression")) == (
                new.format,
                new.mode,
                new.info.get("compression"),
            )
            assert name != "b.tiff" or new.tag_v2[270] == "x"
    source.write(tmp_path / "copy", {})
    assert (tmp_path / "copy" / "a_1.jpg").read_bytes() == (folder / "a_1.jpg").read_bytes()


def test_a_cut_out_among_masks_is_read_by_its_alpha_and_said(tmp_path: Path) -> None:
    photo = np.indices(SIZE).transpose(1, 2, 0).repeat(2, 2)[..., :3].astype(np.uint8)
    source = opened(tmp_path, {"a.png": np.dstack((photo, binary())), "a_1.png": binary()})
    assert "cut-outs, written as grey PNGs where refined: 1 mask (first: a.png)" in source.notes[0]
    assert set(coarse_results(source).values()) == {Mask.from_window(MaskWindow(DISC, 0, 0, SIZE))}
    source.write(tmp_path / "out", coarse_results(source))
    for name in ("a.png", "a_1.png"):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / name)), binary())


def test_what_a_kind_cannot_hold_is_named(tmp_path: Path) -> None:
    folder = scene(
        tmp_path, {"a_0.jpg": IDS * 40, "a_1.png": binary(), "a_1.jpg": binary(), "a_3.jpg": binary()}
    )
    Image.fromarray(binary()).save(folder / "a_3.jpeg")
    Image.fromarray(IDS).save(folder / "a_4.tif", save_all=True, append_images=[Image.fromarray(IDS)])
    Image.fromarray(IDS.astype(np.float32) - 1).save(folder / "a_5.tif")
    source = open_source(folder, tmp_path / "images", png_kind="binary")
    reasons = []
    for item in source:
        reasons += [str(item.error)] if isinstance(item, RecordFault) else []
        for instance in item.instances if isinstance(item, ImageRecord) else ():
            try:
                instance.mask.decode()
            except InputError as error:
                reasons.append(str(error))
    assert [reason.partition("masks/")[2] for reason in sorted(reasons)] == [
        "a_0.jpg: has areas of greys between black and white, which JPEG does not keep apart; "
        "save masks as PNG, without loss",
        "a_1.jpg: its kind loses pixels, and a mask called a_1.png is there; rename one of them",
        "a_3.jpg: its kind loses pixels, and a mask called a_3.png is there; rename one of them",
        "a_4.tif: holds several images, and only one could be read; save each mask in a file of its own",
        "a_5.tif: has values from -1 to 4; save ids from 0 on, or confidences from 0 to 1",
    ]


@pytest.mark.parametrize("values", [IDS + 1, (IDS + 1) * 50, (IDS + 1).astype(np.uint16) * 900])
def test_a_map_without_background_gets_none(tmp_path: Path, values: np.ndarray) -> None:
    source = opened(tmp_path, {"a.png": values})
    small = Mask.from_window(MaskWindow(np.ones((4, 5), bool), 7, 8, SIZE))
    source.write(tmp_path / "out", dict.fromkeys(range(4), small))
    assert set(np.unique(read_pixels(tmp_path / "out" / "a.png").values)) == set(np.unique(values))


def test_the_background_of_a_map_may_be_any_value_or_none(tmp_path: Path) -> None:
    values = np.choose(IDS % 4, [255, 0, 7, 9]).astype(np.uint8)  # three ids, of which one is 0, on 255
    values[IDS == 5] = 9
    source = opened(tmp_path, {"a.png": values}, background=255)  # type: ignore[arg-type]
    found = {each.instance_id: Mask.from_window(each.mask.decode()) for each in instances_of(source)["a.jpg"]}
    assert found == {
        value: Mask.from_window(MaskWindow(values == value, 0, 0, SIZE)) for value in np.unique(values)[:-1]
    }
    grown = values == 0
    grown[0] = True
    zero = next(each for each in instances_of(source)["a.jpg"] if each.instance_id == 0)
    assert zero.label == "a.png id 0"
    source.write(tmp_path / "out", {zero.index: Mask.from_window(MaskWindow(grown, 0, 0, SIZE))})
    expected = values.copy()
    expected[0] = 0
    assert np.array_equal(read_pixels(tmp_path / "out" / "a.png").values, expected)
    every = open_source(tmp_path / "masks", tmp_path / "images", background="none")
    assert sorted(each.instance_id for each in instances_of(every)["a.jpg"]) == [0, 7, 9, 255]
    for background, taken in ((300, "holds values up to 255, and --background is 300"), (255, "")):
        one = open_source(tmp_path / "masks", tmp_path / "images", background=background)
        assert taken in "".join(str(item.error) for item in one if isinstance(item, RecordFault))
    every.write(tmp_path / "every", {0: Mask.from_window(MaskWindow(np.zeros((1, 1), bool), 0, 0, SIZE))})
    assert np.array_equal(read_pixels(tmp_path / "every" / "a.png").values, values)


def test_a_map_of_one_id_and_no_background_keeps_it(tmp_path: Path) -> None:
    source = opened(tmp_path, {"a.png": np.full(SIZE, 255, np.uint8)}, background="none")
    source.write(tmp_path / "out", {0: Mask.from_window(MaskWindow(DISC, 0, 0, SIZE))})
    assert (read_pixels(tmp_path / "out" / "a.png").values == 255).all()


@pytest.mark.parametrize("size", [(30, 39), (15, 20), (60, 80)])
@pytest.mark.parametrize("values", [binary(), IDS], ids=["mask", "map"])
def test_masks_of_another_size_are_stretched_over_their_image(
    tmp_path: Path, values: np.ndarray, size: tuple[int, int]
) -> None:
    small = np.asarray(Image.fromarray(values).resize(size[::-1], Image.Resampling.NEAREST))
    source = opened(tmp_path, {"a.png": small}, fit_masks=True)  # type: ignore[arg-type]
    coarse = coarse_results(source)
    for mask, value in zip(coarse.values(), np.unique(values)[1:], strict=True):
        true = values == value
        assert mask.size == SIZE
        both = mask.decode().paste()
        assert (both & true).sum() / (both | true).sum() > 0.8
    refined = Mask.from_window(MaskWindow(np.ones((4, 5), bool), 7, 8, SIZE))
    source.write(tmp_path / "out", {0: refined})
    again = open_source(tmp_path / "out", tmp_path / "images")
    assert coarse_results(again)[0].size == SIZE
    assert coarse_results(again)[0] == refined


def test_a_mask_of_another_shape_is_not_stretched(tmp_path: Path) -> None:
    source = opened(tmp_path, {"a.png": binary()[:20]}, fit_masks=True)  # type: ignore[arg-type]
    assert instances_of(source)["a.jpg"][0].mask.size == (20, 40)


def test_images_without_masks_and_of_one_name_are_said(tmp_path: Path) -> None:
    photos = ("a.jpg", "a.png", "a_1.jpg", "b.jpg")
    source = open_source(scene(tmp_path, {"a.png": binary()}, photos), tmp_path / "images")
    assert source.notes == [
        "Images of one name and several kinds, of which one is taken: 1 (a.png is left aside for a.jpg).",
        "Images without masks: 2 of 4 (first: a_1.jpg).",
    ]


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
