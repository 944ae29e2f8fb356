"""What a refiner is handed and may give: runs or windows, all at once or one by one, with the same result."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from transfiner_refine.errors import InputError
from transfiner_refine.formats import Mask, open_source
from transfiner_refine.masks import MaskWindow
from transfiner_refine.pipeline import refine_files, refine_source
from transfiner_refine.pipeline.batches import BatchItem, ImageToRefine, refine_masks
from transfiner_refine.pipeline.run import changed_share

SHAPE = (9, 13)
bitmaps = arrays(bool, SHAPE)
soft_masks = arrays(np.float32, SHAPE, elements=st.floats(0, 1, width=32))


def of_masks(quick_run: Any) -> Any:
    """``Stripes`` as a refiner of masks, which gives them one by one and remembers what it was handed."""

    class Stripes:
        batch_size = 4

        def __init__(self) -> None:
            self.seen: list[Mask | MaskWindow] = []

        def refine_masks(
            self,
            images: Sequence[NDArray[np.uint8]],
            masks: Sequence[Mask | MaskWindow],
            image_index: Sequence[int],
        ) -> Iterator[Mask]:
            self.seen += masks
            for mask, index in zip(masks, image_index, strict=True):
                window = mask.decode() if isinstance(mask, Mask) else mask
                (refined,) = quick_run.Stripes().refine_windows([images[index]], [window], [0])
                yield Mask.from_window(refined)

    return Stripes()


@given(st.lists(bitmaps.filter(np.any), min_size=1, max_size=4), arrays(np.uint8, (*SHAPE, 3)))
def test_a_refiner_of_windows_gives_the_runs_of_its_windows(
    quick_run: Any, masks: list[NDArray[np.bool_]], image: NDArray[np.uint8]
) -> None:
    windows = [MaskWindow(mask, 0, 0, SHAPE).tight() for mask in masks]
    owners = [0] * len(masks)
    expected = quick_run.Stripes().refine_windows([image], windows, owners)
    coarse = [Mask.from_window(window) for window in windows]
    of = ImageToRefine(0, None, 0, False, image, ())
    batch = [BatchItem(of, number, "", mask) for number, mask in enumerate(coarse)]
    found = list(refine_masks(quick_run.Stripes(), batch))
    assert found == [Mask.from_window(window) for window in expected]
    assert found == list(of_masks(quick_run).refine_masks([image], coarse, owners))


@given(bitmaps.filter(np.any), bitmaps, st.booleans())
def test_the_changed_share_is_that_of_the_pixels(
    coarse: NDArray[np.bool_], refined: NDArray[np.bool_], as_soft: bool
) -> None:
    rows, columns = np.flatnonzero(coarse.any(1)), np.flatnonzero(coarse.any(0))
    box = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
    before = MaskWindow(np.where(coarse, 0.5, 0.4375).astype(np.float32) if as_soft else coarse, 0, 0, SHAPE)
    given_mask = before if as_soft else Mask.from_window(before)
    found = changed_share(given_mask, Mask.from_window(MaskWindow(refined, 0, 0, SHAPE)))
    assert found == int(np.count_nonzero(coarse != refined)) / int(box)


@pytest.mark.parametrize("workers", [0, 1])
def test_runs_or_windows_are_written_byte_for_byte_alike(job: Any, quick_run: Any, workers: int) -> None:
    job.spoil()
    wanted, summary, _ = job.whole()
    refiner = of_masks(quick_run)
    found = refine_files(
        job.folder / "images", job.folder / "masks.json", job.output, refiner=refiner, workers=workers
    )
    assert job.output.read_bytes() == wanted
    assert found.lines()[1:] == summary[1:]
    assert {type(mask) for mask in refiner.seen} == {Mask}


@pytest.mark.parametrize("workers", [0, 1])
def test_only_soft_masks_come_as_windows(tmp_path: Path, quick_run: Any, workers: int) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (400, 300)).save(tmp_path / "images" / "1.png")
    soft = (np.add.outer(np.arange(300), np.arange(400)) % 256).astype(np.uint8)
    Image.fromarray(soft).save(tmp_path / "masks" / "1_0.png")
    Image.fromarray(np.where(soft > 99, 255, 0).astype(np.uint8)).save(tmp_path / "masks" / "1_1.png")
    refiner = of_masks(quick_run)
    refine_files(tmp_path / "images", tmp_path / "masks", tmp_path / "out", refiner=refiner, workers=workers)
    window, mask = refiner.seen
    assert isinstance(window, MaskWindow)
    assert np.array_equal(window.paste(), soft.astype(np.float32) / 255)
    assert mask == Mask.from_window(MaskWindow(soft > 99, 0, 0, (300, 400)))


def test_a_refiner_of_masks_that_refuses_one_keeps_the_others(job: Any, quick_run: Any) -> None:
    refiner = of_masks(quick_run)
    original = refiner.refine_masks

    def refuse(images: Any, masks: Any, image_index: Any) -> Iterator[Mask]:
        for mask, refined in zip(masks, original(images, masks, image_index), strict=True):
            if mask == first:
                raise InputError("is too thin")
            yield refined

    source = open_source(job.folder / "masks.json", job.folder / "images")
    first = next(iter(source)).instances[2].mask  # type: ignore[union-attr]
    refiner.refine_masks = refuse
    summary = refine_source(source, refiner, workers=0).summary
    assert (summary.refined, summary.failed) == (20, 1)
    assert str(summary.errors[0]).endswith("1.png: record 2: is too thin")


def test_polygons_are_drawn_by_the_workers_as_here(job: Any, quick_run: Any) -> None:
    polygon = [5.5, 4, 50, 8.25, 30, 35]
    document = {
        "images": [{"id": number, "file_name": f"{number}.png"} for number in range(1, 8)],
        "annotations": [
            {"id": 10 * number, "image_id": number, "category_id": 1, "segmentation": [polygon]}
            for number in range(1, 8)
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }
    document["annotations"][3]["segmentation"] = [[1, 2]]  # type: ignore[index]
    (job.folder / "masks.json").write_text(json.dumps(document))
    found = []
    for workers in (0, 2):
        source = open_source(job.folder / "masks.json", job.folder / "images")
        outcome = refine_source(source, quick_run.Stripes(), workers=workers)
        found.append((dict(outcome.masks), [str(error) for error in outcome.summary.errors]))
    assert found[0] == found[1]
    assert len(found[0][0]) == 6
    assert "masks.json: annotation id 40: polygon 0 is [1, 2]" in found[0][1][0]


def test_the_rate_of_progress_is_that_of_refining(
    job: Any, quick_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.spoil()
    bars: list[tqdm[None]] = []

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def bar(*arguments: Any, **keywords: Any) -> tqdm[None]:
        bars.append(tqdm(*arguments, **{**keywords, "file": Terminal()}))
        return bars[0]

    monkeypatch.setattr("transfiner_refine.pipeline.run.tqdm", bar)
    source = open_source(job.folder / "masks.json", job.folder / "images")
    summary = refine_source(source, quick_run.Stripes(), workers=0, progress=True).summary
    assert (bars[0].n, bars[0].total) == (21, 21)
    assert bars[0].initial == 21 - summary.refined  # what took no time
