"""The release's small parts: positions, targets, crops, elementary losses, pasting; and its training losses."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from training_losses import (
    TRAINING_NAMES,
    TrainingHeads,
    TrainingTargets,
    dice_loss,
    training_losses,
)
from training_targets import (
    boundary_target,
    half_size_incoherence,
    incoherence_target,
    semantic_target,
    truth_from_bitmaps,
    truth_from_polygons,
)
from writing import paste_masks

from transfiner_refine.official import Preparation, load_official_network
from transfiner_refine.official.checkpoint import fill
from transfiner_refine.official.features import axis_embedding, prepare
from transfiner_refine.official.nodes import NODE_GRIDS
from transfiner_refine.official.read import TensorFile

GRIDS = (14, 28, 56, 112)


def unpacked(packed: NDArray[np.uint8], width: int) -> NDArray[np.bool_]:
    return np.unpackbits(packed, axis=-1)[..., :width].astype(bool)


@pytest.fixture(scope="module")
def units(reference: Any) -> dict[str, Any]:
    return reference.arrays("units")


@pytest.fixture(scope="module")
def masks(units: dict[str, Any]) -> torch.Tensor:
    return torch.from_numpy(unpacked(units["masks"], int(units["masks_shape"][-1])))


@pytest.mark.parametrize("grid", GRIDS)
def test_positions(units: dict[str, Any], grid: int) -> None:
    axis = axis_embedding(grid, 128)
    position = torch.cat((axis[:, None].expand(grid, grid, 128), axis[None].expand(grid, grid, 128)), 2)
    step = grid // 7
    theirs = torch.from_numpy(units[f"position_{grid}"])
    torch.testing.assert_close(position.permute(2, 0, 1)[:, ::step, ::step], theirs, atol=1e-6, rtol=0)


def test_incoherence_targets(units: dict[str, Any], masks: torch.Tensor) -> None:
    theirs = torch.from_numpy(units["incoherence_half"])
    torch.testing.assert_close(half_size_incoherence(masks), theirs, atol=1e-6, rtol=0)
    ours = incoherence_target(masks, torch.from_numpy(units["boxes"]), 28)
    assert torch.equal(ours, torch.from_numpy(units["incoherence_crop_28"]))


@pytest.mark.parametrize("grid", GRIDS)
def test_crops(units: dict[str, Any], masks: torch.Tensor, grid: int) -> None:
    ours = truth_from_bitmaps(masks, torch.from_numpy(units["boxes"]), grid)
    assert np.array_equal(ours.numpy(), unpacked(units[f"truth_crop_{grid}"], grid))


def test_elementary_losses(units: dict[str, Any]) -> None:
    probability, target = (torch.from_numpy(units[f"loss_{name}"]) for name in ("prob", "target"))
    assert float(dice_loss(probability, target)) == pytest.approx(float(units["loss_dice"]), abs=1e-6)
    bce = torch.nn.functional.binary_cross_entropy(probability, target)
    assert float(bce) == pytest.approx(float(units["loss_bce"]), abs=1e-6)
    assert float((probability - target).abs().mean()) == pytest.approx(float(units["loss_l1"]), abs=1e-6)


def test_pasting(units: dict[str, Any]) -> None:
    _, height, width = (int(side) for side in units["masks_shape"])
    probability, boxes = (torch.from_numpy(units[name]) for name in ("paste_prob", "boxes"))
    ours = paste_masks(probability, boxes, height, width)
    assert np.array_equal(ours.numpy(), unpacked(units["paste_mask"], width))


@pytest.fixture(scope="module")
def losses(reference: Any) -> dict[str, Any]:
    return reference.arrays("losses")


@pytest.fixture(scope="module")
def targets(losses: dict[str, Any]) -> TrainingTargets:
    owner = losses["polygon_owner"]
    shapes: list[list[NDArray[np.float64]]] = []
    for instance in losses["assigned"]:
        mine = owner[:, 0] == instance
        shapes.append([losses["polygon_xy"][mine & (owner[:, 1] == p)] for p in np.unique(owner[mine, 1])])
    boxes = torch.from_numpy(losses["proposals"])
    bitmaps = torch.from_numpy(unpacked(losses["masks"], int(losses["masks_shape"][-1])))
    own = bitmaps[torch.from_numpy(losses["assigned"])]
    truth = {grid: truth_from_polygons(shapes, losses["proposals"], grid) for grid in GRIDS}
    return TrainingTargets(
        {grid: torch.from_numpy(each).float() for grid, each in truth.items()},
        incoherence_target(own, boxes, 28).float(),
        boundary_target(torch.from_numpy(truth[28])).float(),
        semantic_target(own, *losses["semantic_logits_shape"][2:].tolist())[None],
    )


def test_training_targets(losses: dict[str, Any], targets: TrainingTargets) -> None:
    for grid in GRIDS:
        assert np.array_equal(
            targets.truth[grid].numpy() > 0, unpacked(losses[f"truth_polygon_{grid}"], grid)
        )
    for ours, name in ((targets.incoherence, "incoherence_target"), (targets.boundary, "boundary_target")):
        assert np.array_equal(ours.numpy() > 0, unpacked(losses[name], 28))
    semantic = targets.semantic[0].numpy() > 0
    assert np.array_equal(semantic, unpacked(losses["semantic_target"], semantic.shape[1]))


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["", "_none"])
def test_training_losses(
    reference: Any, losses: dict[str, Any], targets: TrainingTargets, suffix: str
) -> None:
    meta = json.loads(str(losses["meta"]))
    weights = dict(reference.weights(meta["variant"], meta["classes"]))
    bias = "roi_heads.mask_head.predictor_uncertain.bias"
    weights[bias] = weights[bias] + np.float32(losses[f"bias{suffix}"])
    network = load_official_network(TensorFile(reference.folder, "generated", weights))
    heads = TrainingHeads(network.architecture.fpn_width)
    fill(heads, weights, TRAINING_NAMES)
    preparation = replace(
        Preparation.of(network.architecture), short_side=meta["short_side"], max_side=meta["max_side"]
    )
    with torch.inference_mode():
        features = network.features(prepare(reference.image(losses, meta, 0), preparation)[0])
        boxes, classes = (torch.from_numpy(losses[name]) for name in ("proposals", "classes"))
        output = training_losses(network, heads, features, boxes, classes, targets, torch.arange)

    def close(ours: torch.Tensor, name: str) -> None:
        torch.testing.assert_close(ours, torch.from_numpy(losses[name]), atol=1e-4, rtol=0)

    for name, ours in output.losses.items():
        assert float(ours) == pytest.approx(float(losses[name + suffix]), abs=1e-5), name
    close(output.incoherence, f"incoherence{suffix}")
    if suffix:
        return
    close(output.mask_logits, "mask_logits")
    close(output.boundary_logits, "boundary_logits")
    close(output.semantic_logits[:, None], "semantic_logits")
    close(output.refined[:, ::5], "refined_tokens")
    for i, grid in enumerate(NODE_GRIDS):
        assert [len(levels[i]) for levels in output.levels] == losses[f"count_{grid}"].tolist()
