"""benchmarks/devsets.py: which images of a set are taken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("images", "ids"), [(1, [5]), (3, [1, 5, 8]), (10, list(range(10))), (99, list(range(10)))]
)
def test_some_images_of_a_set_are_spread_through_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: int, ids: list[int]
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    from devsets import load_dev_sets

    (tmp_path / "one").mkdir()
    records = [{"id": key, "height": 4, "width": 4, "file_name": f"{key}.jpg"} for key in range(10)]
    content = {"images": records, "annotations": [], "categories": [{"id": 1, "name": "thing"}]}
    (tmp_path / "one" / "annotations.json").write_text(json.dumps(content))
    (found,) = load_dev_sets(tmp_path, images=images)
    assert list(found.annotations.images) == ids
