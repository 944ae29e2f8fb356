"""Mask PNGs: pixel types, palettes and text survive; damage is found."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, PngImagePlugin

from transfiner_refine.errors import InputError
from transfiner_refine.formats.png import DAVIS_PALETTE, VOC_PALETTE, palette_of, read_pixels, write_png

SIZE = (30, 40)
DISC = np.hypot(*(np.indices(SIZE) - np.array([[[14]], [[18]]]))) < 9


def test_sixteen_bit_rgb_stays_sixteen_bit_rgb(tmp_path: Path) -> None:
    samples = np.where(DISC, 65535, 0).astype(">u2")[..., None].repeat(3, 2).reshape(SIZE[0], -1)
    rows = b"".join(b"\0" + row.tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", SIZE[1], SIZE[0], 16, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    packed = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    ]
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
    values = read_pixels(tmp_path / "a.png").values
    assert np.array_equal(values != 0, DISC)
    read_pixels(tmp_path / "a.png").write(values, tmp_path / "b.png")
    assert chunks(tmp_path / "b.png")[b"IHDR"] == header
    assert np.array_equal(read_pixels(tmp_path / "b.png").values, values)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_opaque_grey_with_alpha_is_read_as_grey_and_written_with_alpha(tmp_path: Path, mode: str) -> None:
    grey = Image.fromarray(np.where(DISC, 255, 0).astype(np.uint8))
    grey.convert(mode).save(tmp_path / "a.png")
    pixels = read_pixels(tmp_path / "a.png")
    assert np.array_equal(pixels.values, np.asarray(grey))
    pixels.write(pixels.values[::-1], tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as image:
        assert image.mode == mode
        assert np.array_equal(np.asarray(image), np.asarray(grey.convert(mode))[::-1])
    see_through = Image.fromarray(np.indices(SIZE).sum(0).astype(np.uint8)).convert(mode)
    see_through.putalpha(200)
    see_through.save(tmp_path / "a.png")
    with pytest.raises(InputError, match="has pixels that are not opaque"):
        read_pixels(tmp_path / "a.png")


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
@pytest.mark.parametrize("shade", [0, 255])
def test_the_alpha_of_one_colour_is_the_mask(tmp_path: Path, mode: str, shade: int) -> None:
    shape = Image.new("L", SIZE[::-1], shade).convert(mode)
    shape.putalpha(Image.fromarray(np.where(DISC, 255, 0).astype(np.uint8)))
    shape.save(tmp_path / "a.png")
    pixels = read_pixels(tmp_path / "a.png")
    assert np.array_equal(pixels.values != 0, DISC)
    pixels.write(pixels.values[::-1], tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as image:
        assert np.array_equal(np.asarray(image), np.asarray(shape)[::-1])


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_bit_depth_palette_and_text_of_a_palette_png_survive(tmp_path: Path, depth: int) -> None:
    values = (np.arange(7 * 13).reshape(7, 13) % (1 << depth)).astype(np.uint8)
    image = Image.frombytes("P", (13, 7), values.tobytes())
    image.putpalette(bytes(range(3 << depth)) if depth < 8 else bytes(range(256)) * 3)
    text = PngImagePlugin.PngInfo()
    text.add_text("author", "me")
    image.save(tmp_path / "a.png", pnginfo=text, transparency=0)
    read_pixels(tmp_path / "a.png").write(values[::-1, ::-1], tmp_path / "b.png")
    before, after = chunks(tmp_path / "a.png"), chunks(tmp_path / "b.png")
    assert {name: data for name, data in after.items() if name != b"IDAT"} == {
        name: data for name, data in before.items() if name != b"IDAT"
    }
    with Image.open(tmp_path / "b.png") as out:
        assert np.array_equal(np.asarray(out), values[::-1, ::-1])


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([np.uint8, np.uint16, np.bool_]).flatmap(
        lambda dtype: arrays(dtype, st.tuples(st.integers(1, 9), st.integers(1, 19)))
    )
)
def test_any_pixels_are_read_back_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, values: np.ndarray
) -> None:
    folder = tmp_path_factory.mktemp("png")
    Image.fromarray(values).save(folder / "a.png")
    read = read_pixels(folder / "a.png")
    read.write(read.values[::-1], folder / "b.png")
    assert np.array_equal(read_pixels(folder / "b.png").values, values[::-1].astype(read.values.dtype))
    with Image.open(folder / "a.png") as before, Image.open(folder / "b.png") as after:
        assert before.mode == after.mode


def chunks(path: Path) -> dict[bytes, bytes]:
    data, at, found = path.read_bytes(), 8, {}
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        name, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", data, at + 8 + length)[0] == zlib.crc32(name + body)
        found[name] = body
        at += length + 12
    return found


# palettes


def colours(palette: bytes) -> list[tuple[int, ...]]:
    return [tuple(palette[3 * index : 3 * index + 3]) for index in range(len(palette) // 3)]


def test_the_colours_are_those_of_the_data_sets() -> None:
    voc, davis = colours(VOC_PALETTE), colours(DAVIS_PALETTE)
    # aeroplane, bicycle, ..., tv monitor, void of VOC's development kit
    assert [voc[index] for index in (0, 1, 2, 3, 9, 15, 20, 255)] == [
        (0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (192, 0, 0), (192, 128, 128), (0, 64, 128),
        (224, 224, 192),
    ]  # fmt: skip
    assert [davis[index] for index in (1, 8, 9, 21, 22, 255)] == [
        (128, 0, 0), (64, 0, 0), (191, 0, 0), (128, 64, 128), (22, 22, 22), (255, 255, 255),
    ]  # fmt: skip


@pytest.mark.parametrize("palette", [VOC_PALETTE, DAVIS_PALETTE])
def test_maps_keep_their_indexes_and_colours(palette: bytes, tmp_path: Path) -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    write_png(tmp_path / "a" / "b.png", values, palette)
    with Image.open(tmp_path / "a" / "b.png") as image:
        assert image.mode == "P"
        assert bytes(image.getpalette() or []) == palette
        assert np.array_equal(np.asarray(image), values)
    assert palette_of(tmp_path / "a" / "b.png") == palette


def test_other_files_have_no_palette_and_damaged_ones_none_that_is_known(tmp_path: Path) -> None:
    write_png(tmp_path / "grey.png", np.zeros((3, 4), np.uint16))
    write_png(tmp_path / "voc.png", np.zeros((3, 4), np.uint8), VOC_PALETTE)
    data = bytearray((tmp_path / "voc.png").read_bytes())
    (tmp_path / "cut.png").write_bytes(data[:60])
    data[data.index(b"PLTE") + 9] ^= 1
    (tmp_path / "flipped.png").write_bytes(data)
    assert palette_of(tmp_path / "grey.png") == b""
    assert [palette_of(tmp_path / name) for name in ("cut.png", "flipped.png", "none.png")] == [None] * 3
