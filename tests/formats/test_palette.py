"""The colours of VOC and DAVIS."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transfiner_refine.formats.palette import (
    DAVIS_PALETTE,
    VOC_PALETTE,
    has_voc_palette,
    is_palette_png,
    write_grey,
    write_indexed,
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
    write_indexed(tmp_path / "a" / "b.png", values, palette)
    with Image.open(tmp_path / "a" / "b.png") as image:
        assert image.mode == "P"
        assert bytes(image.getpalette() or []) == palette
        assert np.array_equal(np.asarray(image), values)
    assert is_palette_png(tmp_path / "a" / "b.png")
    assert has_voc_palette(tmp_path / "a" / "b.png")  # their first colours are the same


def test_other_files_have_no_palette(tmp_path: Path) -> None:
    write_grey(tmp_path / "grey.png", np.zeros((3, 4), np.uint16))
    (tmp_path / "cut.png").write_bytes((tmp_path / "grey.png").read_bytes()[:20])
    for name in ("grey.png", "cut.png", "none.png"):
        assert not is_palette_png(tmp_path / name)
        assert not has_voc_palette(tmp_path / name)
