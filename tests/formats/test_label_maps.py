"""Label maps: the laws that hold for every format of the table, and for one that is added to it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from folder_scenes import STREET, flat, two_images
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from mask_scenes import SceneSource
from PIL import Image, PngImagePlugin

from transfiner_refine.errors import InputError
from transfiner_refine.formats import Mask, RecordFault
from transfiner_refine.formats.cityscapes_results import CITYSCAPES_RESULTS
from transfiner_refine.formats.label_map_folders import LabelMapFormat, format_of
from transfiner_refine.formats.label_map_formats import (
    CITYSCAPES_MAPS,
    DAVIS_MAPS,
    LABEL_MAP_FORMATS,
    LABEL_MAPS,
    VOC_MAPS,
)
from transfiner_refine.formats.label_maps import kind_of, places_of, update_map
from transfiner_refine.formats.mask_files import PLAIN_MAPS, PNG_FOLDER
from transfiner_refine.formats.panoptic import COCO_PANOPTIC
from transfiner_refine.formats.png import VOC_PALETTE, read_pixels, write_png
from transfiner_refine.formats.records import Format, ImageRecord, OpenOptions
from transfiner_refine.masks import MaskWindow

# a format as somebody may add it: leaves of plants, 200 is soil that nobody labelled, 1 ... 9 are parts of the pot
PLANTS = LabelMapFormat(
    "plants",
    lambda path: any(path.glob("leaves/**/*_leaves.png")),
    ids=range(10, 200),
    void=200,
    fixed=(1, 2),
    freed="nearest",
    ending="_leaves",
    stem=lambda stem: stem.with_name(stem.name.removesuffix("_leaves")),
    image_name="{}.jpeg",
    map_name="leaves/{}_leaves.png",
    map_folder="leaves",
    palette=VOC_PALETTE,
)
ROWS = [*LABEL_MAP_FORMATS, PLANTS]
# values below the first id, and void
BACKGROUND = {
    "voc": [0, 255],
    "davis": [0, 255],
    "label-maps": [0],
    "cityscapes-ids": [0, 7, 23, 24, 1],
    "plants": [0, 1, 5, 200],
}

over_rows = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


def full(bitmap: np.ndarray) -> Mask:
    return Mask.from_window(MaskWindow(bitmap, 0, 0, bitmap.shape))


# masks into maps


@over_rows
@settings(max_examples=60)
@given(data=st.data())
def test_no_id_is_lost_and_nothing_else_is_touched(row: LabelMapFormat, data: st.DataObject) -> None:
    size = data.draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
    ids = [int(value) for value in row.ids[:4]]
    coarse = data.draw(arrays(np.uint16, size, elements=st.sampled_from([*ids, *BACKGROUND[row.name]])))
    present = [value for value in ids if (coarse == value).any()]
    chosen = data.draw(st.lists(st.sampled_from(present), unique=True)) if present else []
    masks = {value: data.draw(arrays(bool, size)) for value in chosen}
    merged = row.update(coarse, [(value, full(mask)) for value, mask in masks.items()])

    background = ~np.isin(coarse, ids)
    claimable = background & ~np.isin(coarse, list(row.fixed))
    assert set(present) <= set(np.unique(merged.values))
    assert merged.values.dtype == coarse.dtype
    for value in ids:
        if value not in chosen:
            assert np.array_equal(merged.values == value, coarse == value)
    assert np.array_equal(merged.values[background & ~claimable], coarse[background & ~claimable])
    uncovered = [mask for value, mask in masks.items() if value not in merged.covered]
    claimed = np.any(uncovered, axis=0) if uncovered else np.zeros(size, bool)
    restored = np.isin(coarse, merged.covered)
    assert np.array_equal(merged.values[claimable & ~claimed], coarse[claimable & ~claimed])
    for value in merged.covered:
        assert np.array_equal(merged.values == value, coarse == value)
    given_up = np.isin(coarse, chosen) & ~claimed & ~restored
    if row.freed == "nearest" and claimable.any():
        assert np.isin(merged.values[given_up], coarse[claimable]).all()
    elif (
        row.freed == "zero" and not claimable.any() and len(present) > 1
    ):  # a map without background gets none
        assert np.array_equal(merged.values[given_up], coarse[given_up])
    else:
        assert (merged.values[given_up] == 0).all()
    # the earlier wins what both claim and nobody else keeps
    free = (claimable | np.isin(coarse, chosen)) & ~restored
    for value, mask in masks.items():
        if value not in merged.covered:
            assert (merged.values[mask & free] == value).all()
            free &= ~mask
    locked = ~claimable & ~np.isin(coarse, chosen)
    assert merged.overlap_pixels == np.count_nonzero(sum([locked, *masks.values()], np.zeros(size, int)) > 1)


def test_overlaps_go_to_the_one_named_first_and_are_counted() -> None:
    coarse = np.array([[1, 1, 0, 2, 2]], np.uint8)
    one, two = np.array([[1, 1, 1, 1, 0]], bool), np.array([[0, 0, 1, 1, 1]], bool)
    assert update_map(coarse, [(1, full(one)), (2, full(two))], coarse == 0).values.tolist() == [
        [1, 1, 1, 1, 2]
    ]
    merged = update_map(coarse, [(2, full(two)), (1, full(one))], coarse == 0)
    assert (merged.values.tolist(), merged.overlap_pixels, merged.covered) == ([[1, 1, 2, 2, 2]], 2, ())


def test_an_id_that_would_vanish_under_others_keeps_its_coarse_mask() -> None:
    coarse = np.array([[1, 1, 0, 2, 2]], np.uint8)
    everything = full(np.ones((1, 5), bool))
    merged = update_map(coarse, [(1, everything), (2, everything)], coarse == 0)
    assert (merged.values.tolist(), merged.covered) == ([[1, 1, 1, 2, 2]], (2,))


@given(arrays(np.uint32, (9, 7), elements=st.sampled_from([0, 1, 2, 1 << 20])))
def test_areas_and_boxes_are_those_of_the_pixels(values: np.ndarray) -> None:
    found = places_of(values)
    assert sorted(found) == [value for value in np.unique(values).tolist() if value]
    for value, (area, x0, y0, x1, y1) in found.items():
        rows, columns = np.nonzero(values == value)
        assert area == len(rows)
        assert (x0, y0, x1, y1) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


# files


@over_rows
def test_a_row_is_enough_to_write_read_and_refine_a_format(row: LabelMapFormat, tmp_path: Path) -> None:
    source, photos = two_images(tmp_path)
    for path in list(photos.rglob("*.jpg")):
        path.rename(path.with_suffix(Path(row.image_name or "x.jpg").suffix))
    entry = PLAIN_MAPS if row is LABEL_MAPS else format_of(row)
    entry.write(tmp_path / "masks", source, {})
    assert entry.recognise(tmp_path / "masks") == (row is not LABEL_MAPS)
    opened = entry.open(tmp_path / "masks", OpenOptions(images=photos))
    assert flat(opened) == flat(source)
    refined = full(np.pad(np.ones((4, 5), bool), ((7, 1), (3, 7))))
    assert opened.write(tmp_path / "out", {1: refined}).faults == ()
    before, after = flat(opened), flat(entry.open(tmp_path / "out", OpenOptions(images=photos)))
    assert after == [before[0], refined, before[2]]


@over_rows
def test_palette_depth_and_text_of_a_map_stay(row: LabelMapFormat, tmp_path: Path) -> None:
    source, _ = two_images(tmp_path)
    entry = PLAIN_MAPS if row is LABEL_MAPS else format_of(row)
    entry.write(tmp_path / "masks", source, {})
    text = PngImagePlugin.PngInfo()
    text.add_text("author", "me")
    for path in (tmp_path / "masks").rglob("*.png"):
        with Image.open(path) as image:
            if image.mode == "P":
                image.putpalette(bytes(reversed(VOC_PALETTE)))
            image.save(path, pnginfo=text)
    opened = entry.open(tmp_path / "masks", OpenOptions())
    opened.write(tmp_path / "out", {0: full(np.ones((12, 15), bool))})
    for path in (tmp_path / "masks").rglob("*.png"):
        written = tmp_path / "out" / path.relative_to(tmp_path / "masks")
        with Image.open(path) as before, Image.open(written) as after:
            assert after.info == {"author": "me"}
            assert (after.mode, after.getpalette()) == (before.mode, before.getpalette())


CHANGES: dict[str, Callable[[Path], object]] = {
    "edited": lambda path: write_png(path, np.roll(read_pixels(path).values, 1)),
    "resized": lambda path: write_png(path, read_pixels(path).values[:-1]),
    "emptied": lambda path: path.write_bytes(b""),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "deleted": lambda path: path.unlink(),
}
PNG_FORMATS = [
    *(format_of(row) for row in ROWS if row is not LABEL_MAPS),
    PLAIN_MAPS,
    PNG_FOLDER,
    CITYSCAPES_RESULTS,
    COCO_PANOPTIC,
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("entry", PNG_FORMATS, ids=lambda entry: entry.name)
def test_a_png_that_changes_between_reading_and_writing_is_noticed(
    entry: Format, change: str, tmp_path: Path
) -> None:
    source, _ = two_images(tmp_path)
    masks = tmp_path / ("masks" if entry.is_folder else "masks.json")
    entry.write(masks, source, {})
    opened = entry.open(masks, OpenOptions())
    refined = {0: Mask.from_window(next(iter(flat(opened))).decode())}
    changed = sorted((tmp_path / "masks").rglob("*.png"))[0]
    stat = changed.stat()
    if entry is COCO_PANOPTIC and change in ("edited", "resized"):
        with Image.open(changed) as image:
            image.transpose(Image.Transpose.ROTATE_180).resize((15, 12 - (change == "resized"))).save(changed)
    else:
        CHANGES[change](changed)
    if changed.exists():
        os.utime(changed, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    output = tmp_path / ("out" if entry.is_folder else "out.json")
    reason = "cannot be read" if change == "deleted" else "has changed while it was read"
    with pytest.raises(InputError, match=f"{changed.name}: {reason}"):
        opened.write(output, refined)
    assert not output.exists()
    assert not (tmp_path / "out").exists()


def test_ids_beyond_eight_bits_keep_their_classes(tmp_path: Path) -> None:
    objects, classes = np.zeros((6, 8), np.uint16), np.zeros((6, 8), np.uint16)
    objects[1:3, 1:4], objects[4:, 4:], classes[1:3, 1:4], classes[4:, 4:] = 300, 40_000, 7, 1000
    write_png(tmp_path / "masks/SegmentationObject/a.png", objects)
    write_png(tmp_path / "masks/SegmentationClass/a.png", classes)
    opened = format_of(VOC_MAPS).open(tmp_path / "masks", OpenOptions())
    (record,) = opened
    assert isinstance(record, ImageRecord)
    assert [(each.instance_id, each.category_id) for each in record.instances] == [(300, 7), (40_000, 1000)]
    opened.write(tmp_path / "out", {1: full(np.pad(np.ones((2, 8), bool), ((4, 0), (0, 0))))})
    for folder, value in (("SegmentationObject", 40_000), ("SegmentationClass", 1000)):
        assert (read_pixels(tmp_path / "out" / folder / "a.png").values[4:] == value).all()


def test_damaged_maps_do_not_change_what_a_folder_is_taken_for(tmp_path: Path) -> None:
    source, _ = two_images(tmp_path)
    third = replace(source.records[1], name="bear/00002.jpg", file_name="bear/00002.jpg")
    both = SceneSource((*source.records, third), STREET)
    for row in (VOC_MAPS, DAVIS_MAPS, CITYSCAPES_MAPS):
        entry, folder = format_of(row), tmp_path / row.name
        entry.write(folder, both, {})
        if row is VOC_MAPS:
            folder = folder / "SegmentationObject" / "bear"
        first, second = sorted(folder.rglob("*.png"))[:2]
        first.write_bytes(b"")
        data = bytearray(second.read_bytes())
        data[45] ^= 1  # of the palette, where there is one
        second.write_bytes(data)
        assert entry.recognise(folder)
        found = list(entry.open(folder, OpenOptions()))
        assert [type(item) for item in found] == [RecordFault, RecordFault, ImageRecord]


def test_names_that_meet_in_cityscapes_are_refused(tmp_path: Path) -> None:
    source, _ = two_images(tmp_path)
    for entry, names in [
        (format_of(CITYSCAPES_MAPS), ("x.png", "x_leftImg8bit.png")),
        (format_of(CITYSCAPES_MAPS), ("x.png", "x_gtFine_instanceIds.png")),
        (CITYSCAPES_RESULTS, ("x.png", "x_leftImg8bit.png")),
        (CITYSCAPES_RESULTS, ("a b.png", "a_b.png")),
    ]:
        records = (
            replace(record, file_name=name, name=name)
            for record, name in zip(source.records, names, strict=True)
        )
        output = tmp_path / f"{entry.name} {names}"
        written = entry.write(output, SceneSource(tuple(records), STREET), {})
        (fault,) = written.faults
        assert f"{names[1]}: is called" in str(fault.error)
        assert "like another image; rename one of them" in str(fault.error)
        assert flat(entry.open(output, OpenOptions())) == flat(source)[:2]


# which PNG is a mask and which a map


def binary(value: int = 255) -> np.ndarray:
    return np.where(np.hypot(*(np.indices((30, 40)) - 15)) < 9, value, 0).astype(np.uint8)


def ramps() -> np.ndarray:
    """A 28×28 detector mask drawn large, smooth over many pixels: the one most like a label map."""
    coarse = Image.fromarray((np.random.default_rng(3).random((28, 28)) ** 2 * 255).astype(np.uint8))
    return np.asarray(coarse.resize((600, 400), Image.Resampling.BILINEAR))


PATCHES = np.kron(np.array([[1, 0, 2], [0, 5, 0]], np.uint8), np.ones((9, 9), np.uint8))


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (binary(255), "binary"),
        (binary(1), "binary"),
        (np.zeros((30, 40), np.uint8), "binary"),
        (ramps(), "binary"),
        (ramps() // 2, "binary"),
        (PATCHES, "label-map"),
        (PATCHES * 50, "label-map"),
        (np.arange(200, dtype=np.uint8).reshape(10, 20).repeat(4, 0).repeat(4, 1), "label-map"),
        ((PATCHES + 24000 * (PATCHES > 0)).astype(np.uint16), "label-map"),
        (
            np.where(np.indices((30, 40))[0] % 9 < 2, np.indices((30, 40))[0] // 9 * 60, 0).astype(np.uint8),
            "label-map",
        ),
    ],
)
def test_single_masks_and_label_maps_are_told_apart(tmp_path: Path, values: np.ndarray, kind: str) -> None:
    Image.fromarray(values).save(tmp_path / "a.png")
    assert kind_of(read_pixels(tmp_path / "a.png")) == kind


def test_an_antialiased_mask_is_no_label_map(tmp_path: Path) -> None:
    large = Image.fromarray(binary()).resize((400, 300), Image.Resampling.NEAREST)
    large.resize((133, 100), Image.Resampling.LANCZOS).save(tmp_path / "a.png")
    assert kind_of(read_pixels(tmp_path / "a.png")) == "binary"
