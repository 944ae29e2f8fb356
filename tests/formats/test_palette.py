"""The colours of VOC and DAVIS."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transfiner_refine.formats.png import (
    DAVIS_PALETTE,
    VOC_PALETTE,
    palette_of,
    write_png,
)


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
