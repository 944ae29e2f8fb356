"""With the shipped weights: no mask depends on batch size, workers, or the order and company of images."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from transfiner_refine.pipeline import refine_files
from transfiner_refine.refiner import load_refiner

EXAMPLES = Path(__file__).parents[2] / "examples"
RECORDS = json.loads((EXAMPLES / "detections.json").read_text())


@pytest.fixture(scope="module")
def refined(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Refines records of the example photos; gives the bytes of the output."""
    folder = tmp_path_factory.mktemp("refined")

    def run(records: list[Any], batch_size: int, workers: int) -> bytes:
        (folder / "masks.json").write_text(json.dumps(records))
        refine_files(
            EXAMPLES / "images", folder / "masks.json", folder / "out.json",
            image_info=EXAMPLES / "image_info.json", overwrite=True, workers=workers,
            refiner=load_refiner(device="cpu", batch_size=batch_size),
        )  # fmt: skip
        return (folder / "out.json").read_bytes()

    return run


@pytest.fixture(scope="module")
def expected(refined: Any) -> bytes:
    content: bytes = refined(RECORDS, 1, 0)
    return content


def test_batch_size_and_workers_change_no_byte(refined: Any, expected: bytes) -> None:
    assert expected != json.dumps(RECORDS).encode()
    assert refined(RECORDS, 4, 1) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("batch_size", "workers"), [(2, 0), (5, 2), (32, 3)])
def test_no_batch_size_and_no_number_of_workers_changes_a_byte(
    refined: Any, expected: bytes, batch_size: int, workers: int
) -> None:
    assert refined(RECORDS, batch_size, workers) == expected


def test_order_and_company_of_images_change_no_mask(refined: Any, expected: bytes) -> None:
    masks = {index: record["segmentation"] for index, record in enumerate(json.loads(expected))}
    order = list(range(len(RECORDS)))
    random.Random(1).shuffle(order)
    for chosen in (order[:3], order[3:5]):
        written = json.loads(refined([RECORDS[index] for index in chosen], 3, 0))
        assert [record["segmentation"] for record in written] == [masks[index] for index in chosen]
