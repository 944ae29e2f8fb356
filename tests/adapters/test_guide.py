"""The guide to predictions in Python: its functions are defined and called."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "guides" / "from_python.md"


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """What the guide's blocks define."""
    found: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL):
        exec(compile(block, "from_python.md", "exec"), found)
    return found


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    image = Image.open(ROOT / "examples" / "images" / "coffee.jpg")
    return np.asarray(image.resize((image.width // 2, image.height // 2)))


@pytest.fixture(scope="module")
def output(photo: np.ndarray) -> dict[str, torch.Tensor]:
    height, width = photo.shape[:2]
    mask = Image.open(ROOT / "examples" / "masks" / "coffee_spoon.png").resize((width, height))
    masks = torch.from_numpy(np.asarray(mask) > 0).float()[None, None]
    return {"masks": masks, "boxes": torch.zeros(1, 4), "scores": torch.ones(1), "labels": torch.ones(1)}


def test_all_of_its_functions_refine(names: dict[str, Any], photo: np.ndarray, output: Any) -> None:
    """One prediction in four forms, of which ultralytics' is an object with its attributes."""
    refined = names["refine_torchvision"](photo, output)["masks"]
    assert refined.shape == output["masks"].shape
    assert not torch.equal(refined, output["masks"])
    large = names["refine_large_ones"](photo, output)["masks"]
    assert torch.equal(large, refined)
    same = names["refine_large_ones"](photo, output, least_pixels=10**9)
    assert same is output

    class Results(SimpleNamespace):
        def update(self, boxes: Any, masks: Any) -> None:  # noqa: ARG002
            self.masks = SimpleNamespace(data=masks)

    result = Results(
        orig_img=photo[:, :, ::-1],
        orig_shape=photo.shape[:2],
        masks=SimpleNamespace(data=output["masks"][0]),
        boxes=None,
    )
    assert torch.equal(names["refine_ultralytics"](result).masks.data, refined[0])
