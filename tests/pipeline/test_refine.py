"""From files to files: what is refined, what passes through, what fails, and what the summary says of it."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from transfiner_refine.errors import InputError, OutputError
from transfiner_refine.formats import open_source
from transfiner_refine.masks import MaskWindow
from transfiner_refine.pipeline import Selection, Summary, refine_files, refine_source

SIZE = (40, 60)


class FillBox:
    """Refines a mask to its whole box, and remembers how it was called."""

    def __init__(self, batch_size: int = 4) -> None:
        self.batch_size = batch_size
        self.calls: list[list[int]] = []
        self.seen: list[tuple[NDArray[np.uint8], MaskWindow]] = []

    def refine_windows(
        self, images: Sequence[NDArray[np.uint8]], masks: Sequence[MaskWindow], image_index: Sequence[int]
    ) -> list[MaskWindow]:
        self.calls.append(list(image_index))
        self.seen += [(images[i], mask) for i, mask in zip(image_index, masks, strict=True)]
        return [
            MaskWindow(np.ones(mask.values.shape, bool), mask.x, mask.y, mask.image_size) for mask in masks
        ]


class Nothing(FillBox):
    """Refines every mask away."""

    def refine_windows(self, *arguments: Any) -> list[MaskWindow]:
        return [
            MaskWindow(np.zeros_like(mask.values), mask.x, mask.y, mask.image_size)
            for mask in super().refine_windows(*arguments)
        ]


class Interrupted(FillBox):
    """Somebody presses Ctrl-C in the second batch."""

    def refine_windows(self, *arguments: Any) -> list[MaskWindow]:
        if self.calls:
            raise KeyboardInterrupt
        return super().refine_windows(*arguments)


def rle(rows: slice, columns: slice, size: tuple[int, int] = SIZE) -> dict[str, Any]:
    """An L: the box without its lower right quarter."""
    bitmap = np.zeros(size, np.uint8)
    bitmap[rows, columns] = 1
    bitmap[(rows.start + rows.stop) // 2 : rows.stop, (columns.start + columns.stop) // 2 : columns.stop] = 0
    encoded = coco_mask.encode(np.asfortranarray(bitmap))
    return {"size": list(size), "counts": encoded["counts"].decode()}


BOXED = rle(slice(10, 30), slice(20, 40))


def photos(tmp_path: Path, count: int) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(1, count + 1):
        Image.new("RGB", SIZE[::-1], (number, 0, 0)).save(folder / f"{number}.png")
    return folder


def results_file(tmp_path: Path, records: Any) -> Path:
    (tmp_path / "masks.json").write_text(json.dumps(records))
    return tmp_path / "masks.json"


def record(image_id: int = 1, **keys: Any) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": 1, "segmentation": BOXED, "score": 0.5, **keys}


def refined(
    tmp_path: Path, records: Any, refiner: FillBox | None = None, **options: Any
) -> tuple[Summary, Any]:
    count = options.pop("photo_count", 3)
    options = {"workers": 0, **options}
    summary = refine_files(
        photos(tmp_path, count),
        results_file(tmp_path, records),
        tmp_path / "out.json",
        refiner=refiner or FillBox(),
        **options,
    )
    return summary, json.loads((tmp_path / "out.json").read_text())


def test_every_mask_is_refined_on_its_own_image_and_goes_back_to_its_record(tmp_path: Path) -> None:
    refiner = FillBox()
    records = [
        record(image_id, segmentation=rle(slice(2, 6 + i), slice(3, 9)))
        for i, image_id in enumerate([2, 1, 3, 2])
    ]
    summary, written = refined(tmp_path, records, refiner)
    assert (summary.refined, summary.images, summary.exit_code) == (4, 3, 0)
    assert [int(image[0, 0, 0]) for image, _ in refiner.seen] == [2, 2, 1, 3]
    assert [int(coco_mask.area(each["segmentation"])) for each in written] == [6 * (4 + i) for i in range(4)]
    assert all(isinstance(each["segmentation"]["counts"], str) for each in written)


def test_batches_are_full_across_images(tmp_path: Path) -> None:
    refiner = FillBox(batch_size=4)
    refined(tmp_path, [record(image_id) for image_id in (1, 1, 1, 2, 2, 3, 3, 3, 3)], refiner)
    assert refiner.calls == [[0, 0, 0, 1], [0, 1, 1, 1], [0]]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_output_does_not_depend_on_the_batch_size(tmp_path: Path, batch_size: int) -> None:
    records = [record(1 + i % 3, segmentation=rle(slice(i, i + 9), slice(0, 7 + i))) for i in range(11)]
    _, written = refined(tmp_path, records, FillBox(batch_size))
    assert [int(coco_mask.area(each["segmentation"])) for each in written] == [9 * (7 + i) for i in range(11)]


def test_what_is_not_to_be_refined_passes_through_and_is_counted_by_reason(tmp_path: Path) -> None:
    empty = {"size": list(SIZE), "counts": [SIZE[0] * SIZE[1]]}
    records = [
        record(),
        record(iscrowd=1),
        record(segmentation=empty),
        record(segmentation=rle(slice(0, 2), slice(0, 2))),
        record(score=0.1),
        record(category_id=2),
        {key: value for key, value in record().items() if key != "score"},
    ]
    summary, written = refined(tmp_path, records, min_area=10, score_threshold=0.3, categories=["1"])
    assert summary.refined == 2
    assert dict(summary.passed_through) == {
        "crowd or void region": 1,
        "empty mask": 1,
        "area below 10 pixels": 1,
        "score below 0.3": 1,
        "category not chosen": 1,
    }
    assert written[1:6] == records[1:6]
    assert summary.exit_code == 0


def test_categories_are_chosen_by_name_where_the_file_has_names(tmp_path: Path) -> None:
    document = {
        "images": [{"id": 1, "file_name": "1.png"}],
        "annotations": [record(), record(category_id=2)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    summary, _ = refined(tmp_path, document, categories=["dog"])
    assert (summary.refined, summary.passed_through["category not chosen"]) == (1, 1)


def test_an_unknown_category_is_an_error_that_lists_the_known_ones(tmp_path: Path) -> None:
    document = {
        "images": [{"id": 1, "file_name": "1.png"}],
        "annotations": [record()],
        "categories": [{"id": 1, "name": "cat"}],
    }
    with pytest.raises(InputError, match="has no category 'cow'; choose among 1 cat"):
        refined(tmp_path, document, categories=["cow"])


def test_a_mask_that_comes_out_empty_stays_coarse_and_is_counted(tmp_path: Path) -> None:
    summary, written = refined(tmp_path, [record()], Nothing())
    assert written == [record()]
    assert dict(summary.passed_through) == {"refined mask came out empty, coarse mask kept": 1}


def test_one_bad_image_or_record_does_not_stop_the_others(tmp_path: Path) -> None:
    folder = photos(tmp_path, 5)
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:60])
    (folder / "3.png").unlink()
    records = [
        record(1),
        record(2),
        record(2),
        record(3),
        record(4, segmentation=rle(slice(0, 5), slice(0, 5), (9, 9))),
        record(5, segmentation=rle(slice(0, 5), slice(0, 5), (9, 9))),
        record(5),
        record(5, score=float("nan")),
    ]
    masks = results_file(tmp_path, records)
    summary = refine_files(folder, masks, tmp_path / "out.json", refiner=FillBox(), workers=0)
    assert (summary.refined, summary.failed, summary.images, summary.images_failed) == (2, 6, 5, 3)
    assert summary.exit_code == 1
    texts = [str(error) for error in summary.errors]
    assert ["2.png: " in texts[0], "tried 000000000003," in texts[1]] == [True, True]
    assert "4.png: the image is 40×60 (height × width), its masks are 9×9" in texts[2]
    assert "record 7: score is nan" in texts[3]
    assert "5.png: record 5: the mask is 9×9 (height × width), but the image" in texts[4]
    assert len(texts) == 5
    written = json.loads((tmp_path / "out.json").read_text())
    assert json.dumps(written[1:6] + written[7:]) == json.dumps(records[1:6] + records[7:])
    assert written[0] != records[0]
    assert written[6] != records[6]


def test_the_share_of_changed_pixels_is_that_of_the_coarse_box(tmp_path: Path) -> None:
    summary, _ = refined(tmp_path, [record()])
    assert summary.mean_changed_share == pytest.approx(0.25)  # the missing quarter of the box


def test_masks_decide_whether_a_photo_is_turned(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("1.jpg", "2.jpg"):
        Image.new("RGB", (60, 40)).save(folder / name, exif=exif)
    upright, stored = rle(slice(0, 5), slice(0, 5), (60, 40)), rle(slice(0, 5), slice(0, 5), (40, 60))
    masks = results_file(tmp_path, [record(1, segmentation=upright), record(2, segmentation=stored)])
    refiner = FillBox()
    summary = refine_files(folder, masks, tmp_path / "out.json", refiner=refiner, workers=0)
    assert [image.shape for image, _ in refiner.seen] == [(60, 40, 3), (40, 60, 3)]
    assert (summary.images_turned, summary.exit_code) == (1, 0)


def test_a_dry_run_checks_everything_and_writes_nothing(tmp_path: Path) -> None:
    folder = photos(tmp_path, 2)
    (folder / "2.png").write_bytes(b"")
    masks = results_file(tmp_path, [record(1), record(1, iscrowd=1), record(2)])
    summary = refine_files(folder, masks, tmp_path / "out.json", dry_run=True, workers=0)
    assert (summary.refined, summary.passed_through.total(), summary.failed) == (1, 1, 1)
    assert summary.lines()[0] == "Would refine 1 of 3 instances in 2 images."
    assert summary.exit_code == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "masks.json"]


def test_an_output_that_exists_is_known_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "out.json").write_text("mine")
    refiner = FillBox()
    with pytest.raises(OutputError, match="--overwrite"):
        refined(tmp_path, [record()], refiner)
    assert refiner.calls == []
    assert (tmp_path / "out.json").read_text() == "mine"


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("images/out.json", "lies inside an input of this run, .*images"),
        ("images/1.png", "lies inside an input"),
        ("masks.json", "is an input"),
        ("linked/../../images/out.json", "lies inside an input"),
        ("info.json", "is an input"),
    ],
)
def test_an_output_over_or_inside_an_input_is_refused_before_the_work(
    tmp_path: Path, output: str, reason: str
) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "linked").symlink_to("deep/er")
    (tmp_path / "info.json").write_text(json.dumps({"images": [{"id": 1, "file_name": "1.png"}]}))
    folder, masks = photos(tmp_path, 1), results_file(tmp_path, [record()])
    refiner = FillBox()
    with pytest.raises(OutputError, match=reason):
        refine_files(
            folder,
            masks,
            tmp_path / output,
            image_info=tmp_path / "info.json",
            refiner=refiner,
            overwrite=True,
        )
    assert refiner.calls == []
    assert sorted(path.name for path in folder.iterdir()) == ["1.png"]


@pytest.mark.parametrize("output", ["masks/out", "masks", ".", "images", "photos"])
def test_an_output_folder_that_is_holds_or_lies_inside_an_input_is_refused(
    tmp_path: Path, output: str
) -> None:
    photos(tmp_path, 1)
    (tmp_path / "photos").symlink_to("images")
    (tmp_path / "masks").mkdir()
    Image.new("L", SIZE[::-1], 255).save(tmp_path / "masks" / "1.png")
    with pytest.raises(OutputError, match="an input of this run"):
        refine_files(
            tmp_path / "images", tmp_path / "masks", tmp_path / output, refiner=FillBox(), overwrite=True
        )
    assert [path.name for path in (tmp_path / "masks").iterdir()] == ["1.png"]


def test_overwriting_a_folder_leaves_nothing_of_the_earlier_run(tmp_path: Path) -> None:
    folder = photos(tmp_path, 2)
    (tmp_path / "masks").mkdir()
    for number in (1, 2):
        Image.new("L", SIZE[::-1], 255).save(tmp_path / "masks" / f"{number}.png")
    where = (folder, tmp_path / "masks", tmp_path / "out")
    refine_files(*where, refiner=FillBox(), workers=0)
    (tmp_path / "masks" / "2.png").unlink()
    refine_files(*where, refiner=FillBox(), workers=0, overwrite=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["1.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "masks", "out"]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_interruption_writes_no_output_and_leaves_no_thread(tmp_path: Path, workers: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        refined(tmp_path, [record(1 + i % 3) for i in range(30)], Interrupted(), workers=workers)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.json.journal", "images", "masks.json"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("transfiner-")]


def test_png_masks_covered_by_others_in_an_label_map_stay_coarse_and_are_counted(tmp_path: Path) -> None:
    ids = np.zeros(SIZE, np.uint8)
    ids[5:30, 5], ids[30, 5:50] = 1, 1  # an L whose box holds the square
    ids[10:20, 20:30] = 2
    ids[11:19, 21:29] = 0
    (tmp_path / "masks").mkdir()
    Image.fromarray(ids).save(tmp_path / "masks" / "1.png")
    summary = refine_files(
        photos(tmp_path, 1),
        tmp_path / "masks",
        tmp_path / "out",
        refiner=FillBox(),
        png_kind="label-map",
        workers=0,
    )
    assert (summary.refined, summary.overlap_pixels) == (1, 100)
    assert "lies entirely under others" in next(iter(summary.passed_through))
    with Image.open(tmp_path / "out" / "1.png") as image:
        written = np.asarray(image)
    assert ((written == 2) == (ids == 2)).all()
    assert np.count_nonzero(written == 1) == 26 * 45 - 36


def test_a_mask_that_comes_back_as_it_was_leaves_its_record_byte_for_byte(tmp_path: Path) -> None:
    square = [[10, 10, 30, 10, 30, 20, 10, 20]]  # with a box and an area that are not quite its
    corner = [[40, 30, 50, 30, 40, 38]]
    text = json.dumps(
        [
            {
                "image_id": 1,
                "category_id": 1,
                "score": 0.5,
                "segmentation": each,
                "bbox": [9, 8, 45, 31],
                "area": 5,
            }
            for each in (square, corner)
        ]
    )
    (tmp_path / "masks.json").write_text(text)
    summary = refine_files(
        photos(tmp_path, 1), tmp_path / "masks.json", tmp_path / "out.json", refiner=FillBox(), workers=0
    )
    assert summary.refined == 2
    before, after = (json.loads((tmp_path / name).read_text()) for name in ("masks.json", "out.json"))
    assert before[0] == after[0]
    assert before[1] != after[1]


def test_soft_masks_reach_the_refiner_soft(tmp_path: Path) -> None:
    soft = (np.add.outer(np.arange(40), np.arange(60)) * 2).astype(np.uint8)
    (tmp_path / "masks").mkdir()
    Image.fromarray(soft).save(tmp_path / "masks" / "1_0.png")
    refiner = FillBox()
    refine_files(photos(tmp_path, 1), tmp_path / "masks", tmp_path / "out", refiner=refiner, workers=0)
    ((_, coarse_mask),) = refiner.seen
    assert coarse_mask.values.dtype == np.float32
    assert np.allclose(coarse_mask.paste(), soft / 255)


def test_what_files_do_can_be_done_in_steps(tmp_path: Path) -> None:
    source = open_source(results_file(tmp_path, [record()]), photos(tmp_path, 1))
    outcome = refine_source(source, FillBox(), Selection(min_area=4), workers=0)
    source.write(tmp_path / "out.json", outcome.masks)
    assert outcome.masks[0].box == (20, 10, 40, 30)
    assert dict(outcome.masks) == {0: outcome.masks[0]}
    assert np.int64(0) in outcome.masks
    assert 1 not in outcome.masks
    assert outcome.changed_shares.tolist() == [pytest.approx(0.25)]
    assert (
        json.loads((tmp_path / "out.json").read_text())[0]["segmentation"]["counts"]
        == outcome.masks[0].counts
    )


def test_only_a_few_images_are_ever_in_flight(tmp_path: Path) -> None:
    class Counting:
        """A source of many images that counts how far it was read."""

        def __init__(self) -> None:
            self.inner = open_source(
                results_file(tmp_path, [record(i) for i in range(1, 41)]), photos(tmp_path, 40)
            )
            self.given = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def __iter__(self) -> Any:
            for item in self.inner:
                self.given += 1
                yield item

    source = Counting()
    lead: list[int] = []

    class Watching(FillBox):
        def refine_windows(self, *arguments: Any) -> list[MaskWindow]:
            lead.append(source.given - len(self.seen))
            return super().refine_windows(*arguments)

    refine_source(source, Watching(batch_size=1), workers=0)  # type: ignore[arg-type]
    assert max(lead) <= 12
