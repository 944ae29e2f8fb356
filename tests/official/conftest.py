"""A small official network with random weights, its checkpoint under the release's names, and the reference runs."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from transfiner_refine.official import Architecture, OfficialNetwork
from transfiner_refine.official.checkpoint import release_names

sys.path.append(
    str(Path(__file__).parent)
)  # pytest's importlib mode does not find the modules beside the tests
from detector import DETECTOR_NAMES, Detector
from training_losses import TRAINING_NAMES, TrainingHeads

CHECKOUT = Path(__file__).resolve().parents[2]
SMALL = Architecture("resnet", (1, 1, 2, 1), 8, (False, True, True, True), 5, 32, 48, 2)
SMALL_SWIN = Architecture("swin", (2, 2, 2, 2), 32, classes=3, fpn_width=32, feedforward=48, layers=2)


def randomise(module: nn.Module, seed: int) -> None:
    """Weights and normalisation statistics that let signals through."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.state_dict().items():
        if name.endswith("relative_position_index"):
            continue
        if name.endswith("running_var"):
            value.uniform_(0.6, 1.4, generator=generator)
        elif value.ndim == 1 and name.endswith("weight"):
            value.uniform_(0.8, 1.2, generator=generator)
        elif value.ndim > 1:
            gain = (
                0.01 if name in ("backbone.conv1.weight", "backbone.features.0.0.weight") else 1.4
            )  # images reach 255
            value.normal_(0, gain / value[0].numel() ** 0.5, generator=generator)
        elif value.is_floating_point():
            value.normal_(0, 0.05, generator=generator)
        if name == "incoherence.classify.weight":
            value *= 0.2
        if name == "incoherence.classify.bias":
            value -= 3  # some nodes on every level, but not all cells: the tests take seconds


def official_tensors(architecture: Architecture, seed: int = 0) -> dict[str, Tensor]:
    """A whole checkpoint under the release's names, what refining does not read included."""
    network = OfficialNetwork(architecture)
    width = architecture.fpn_width
    tensors = {}
    for part, names in (
        (network, release_names(network)),
        (Detector(width, 24, architecture.classes), DETECTOR_NAMES),
        (TrainingHeads(width), TRAINING_NAMES),
    ):
        randomise(part, seed)
        state = part.state_dict()
        for name, ours in names.items():
            stacked = torch.cat([state[own] for own in ours])
            convolution = ".encoder.conv_" in name and name.endswith("weight")
            tensors[name] = stacked[:, :, None, None] if convolution else stacked
    return tensors


@pytest.fixture(scope="session")
def small() -> Architecture:
    return SMALL


@pytest.fixture(scope="session")
def small_swin() -> Architecture:
    return SMALL_SWIN


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    return official_tensors(SMALL)


@pytest.fixture(scope="session")
def make_tensors() -> Callable[..., dict[str, Tensor]]:
    return official_tensors


class Reference:
    """The release's own numbers; see README.md in their folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._maker = _module(folder / "fixtures" / "make_weights.py")

    def arrays(self, name: str) -> dict[str, Any]:
        with np.load(self.folder / "fixtures" / f"{name}.npz") as file:
            return dict(file)

    def keys(self, variant: str) -> dict[str, list[int]]:
        return json.loads((self.folder / f"keys_{variant}.json").read_text())

    @lru_cache(maxsize=1)  # noqa: B019 - one object a session; a variant's weights are up to 500 MB
    def weights(self, variant: str, classes: int) -> dict[str, Tensor]:
        keys = self.keys(variant)
        rows = {"mask_head.predictor.": classes, "cls_score.": classes + 1, "bbox_pred.": 4 * classes}
        for name, shape in keys.items():
            for part, count in rows.items():
                if part in name:
                    shape[0] = count
        return {name: torch.from_numpy(value) for name, value in self._maker.make_weights(keys).items()}

    def image(self, arrays: dict[str, Any], meta: dict[str, Any], i: int) -> np.ndarray[Any, Any]:
        """Image i of a run, RGB."""
        if f"image_{i}" in arrays:
            bgr = arrays[f"image_{i}"]
        else:
            file, name = meta["image_from"][i].split(":")
            bgr = self.arrays(file)[name]
        return np.ascontiguousarray(bgr[:, :, ::-1])


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def reference() -> Reference:
    beside = CHECKOUT.parent / "shared" / "reference" / "official"
    folder = Path(os.environ.get("TRANSFINER_REFERENCE", beside))
    if not (folder / "fixtures").is_dir():
        pytest.skip(f"the release's reference runs are not there ({folder}); set TRANSFINER_REFERENCE")
    return Reference(folder)
