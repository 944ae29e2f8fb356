"""The Python API on the shipped weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from transfiner_refine import Refiner, load_refiner
from transfiner_refine.device import choose_device, choose_precision
from transfiner_refine.errors import DeviceError, InputError
from transfiner_refine.masks import MaskWindow
from transfiner_refine.model.checkpoint import load_network
from transfiner_refine.model.weights import find_weights
from transfiner_refine.refine.engine import size_class
from transfiner_refine.refine.instance import step_input
from transfiner_refine.refine.roi import paste_into_roi, roi_around
from transfiner_refine.refine.torch_engine import TorchEngine
from transfiner_refine.refiner import window_of


def scene(seed: int, height: int = 240, width: int = 320) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A photo-like scene: textured blobs on a textured ground, with their true masks [N, H, W]."""
    rng = np.random.default_rng(seed)

    def texture(colour: NDArray[np.float64]) -> NDArray[np.float64]:
        noise = cv2.resize(rng.normal(0, 18, (30, 40, 3)), (width, height), interpolation=cv2.INTER_CUBIC)
        return colour + noise + rng.normal(0, 4, (height, width, 3))

    image = texture(rng.uniform(40, 90, 3))
    masks = []
    for _ in range(4):
        angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
        waves = (
            1 + 0.2 * np.sin(3 * angles + rng.uniform(0, 6)) + 0.1 * np.sin(7 * angles + rng.uniform(0, 6))
        )
        radius = rng.uniform(18, 70) * waves
        centre = rng.uniform((70, 70), (width - 70, height - 70))
        outline = np.stack((np.cos(angles), np.sin(angles)), 1) * radius[:, None] + centre
        mask = np.zeros((height, width), np.uint8)
        cv2.fillPoly(mask, [outline.round().astype(np.int32)], 1)
        image = np.where(mask[:, :, None] > 0, texture(rng.uniform(120, 230, 3)), image)
        masks = [m & (mask == 0) for m in masks] + [mask > 0]
    return image.clip(0, 255).astype(np.uint8), np.stack(masks)


def coarsen(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """What is left of a mask on a grid of 12-pixel cells."""
    h, w = mask.shape
    small = cv2.resize(mask.astype(np.float32), (w // 12, h // 12), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (w, h), interpolation=cv2.INTER_LINEAR) > 0.5


def iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float(np.count_nonzero(a & b) / max(1, np.count_nonzero(a | b)))


@pytest.fixture(scope="module")
def refiner() -> Refiner:
    """What ``load_refiner`` chooses for a CPU."""
    return native(load_refiner(device="cpu"))


@pytest.fixture(scope="module")
def in_torch() -> Refiner:
    return native(load_refiner(device="cpu", engine="torch"))


def native(loaded: object) -> Refiner:
    assert isinstance(loaded, Refiner)
    return loaded


def with_settings(**settings: object) -> Refiner:
    """The default model in PyTorch, with other thresholds and limits."""
    network = load_network(find_weights("lite"))
    network.config = replace(network.config, **settings)  # type: ignore[arg-type]
    return Refiner(TorchEngine(network, "cpu"))


def test_coarse_masks_come_back_closer_to_the_truth(refiner: Refiner) -> None:
    image, truth = scene(1)
    coarse = np.stack([coarsen(mask) for mask in truth])
    refined = refiner.refine(image, coarse)
    assert refined.shape == truth.shape
    assert refined.dtype == bool
    before = np.mean([iou(c, t) for c, t in zip(coarse, truth, strict=True)])
    after = np.mean([iou(r, t) for r, t in zip(refined, truth, strict=True)])
    assert after > before + 0.01


@pytest.fixture(scope="module")
def several() -> tuple[list[NDArray[np.uint8]], list[MaskWindow], list[int]]:
    """Images, coarse masks, and the image of each mask."""
    scenes = [scene(seed) for seed in range(2)]
    windows = [window_of(coarsen(mask)) for _, masks in scenes for mask in masks]
    return [image for image, _ in scenes], windows, [i for i, (_, masks) in enumerate(scenes) for _ in masks]


@pytest.fixture(scope="module")
def alone(
    in_torch: Refiner, several: tuple[list[NDArray[np.uint8]], list[MaskWindow], list[int]]
) -> list[MaskWindow]:
    """What each comes to by itself."""
    images, windows, index = several
    return [
        in_torch.refine_windows([images[i]], [window], [0], soft=True)[0]
        for window, i in zip(windows, index, strict=True)
    ]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_masks_do_not_depend_on_the_batch_size(
    in_torch: Refiner,
    several: tuple[list[NDArray[np.uint8]], list[MaskWindow], list[int]],
    alone: list[MaskWindow],
    batch_size: int,
) -> None:
    together = Refiner(in_torch.runs, batch_size=batch_size).refine_windows(*several, soft=True)
    for a, b in zip(alone, together, strict=True):
        assert (a.x, a.y) == (b.x, b.y)
        assert np.array_equal(a.values, b.values)


def test_masks_do_not_depend_on_their_order(
    in_torch: Refiner,
    several: tuple[list[NDArray[np.uint8]], list[MaskWindow], list[int]],
    alone: list[MaskWindow],
) -> None:
    images, windows, index = several
    turned = in_torch.refine_windows(images, windows[::-1], index[::-1], soft=True)
    for a, b in zip(alone, turned[::-1], strict=True):
        assert (a.x, a.y) == (b.x, b.y)
        assert np.array_equal(a.values, b.values)


def test_one_pass_over_several_instances_gives_what_each_gets_alone(in_torch: Refiner) -> None:
    # what a GPU does; on a CPU the refiner takes one instance at a time, so ask the engine directly
    image, masks = scene(5)
    windows = [window_of(coarsen(mask)) for mask in masks]
    rois = [roi_around(window, in_torch.config) for window in windows]
    size = size_class(in_torch.config, max(roi.side for roi in rois), nodes=True)
    side = size.side(in_torch.config)
    inputs = [step_input(image, window, roi, side) for window, roi in zip(windows, rois, strict=True)]
    pixels, coarse = (np.concatenate(parts) for parts in zip(*inputs, strict=True))
    batch = in_torch.runs.step(size, pixels, coarse)
    for i, (window, roi) in enumerate(zip(windows, rois, strict=True)):
        alone, together = (
            paste_into_roi(probability[j], relabelled[j], window, roi)
            for (probability, relabelled), j in ((in_torch.runs.step(size, *inputs[i]), 0), (batch, i))
        )
        assert np.mean((alone >= 0.5) != (together >= 0.5)) < 1e-3
        np.testing.assert_allclose(alone, together, atol=5e-3)


def test_tiles_sharpen_large_objects_and_leave_small_ones_to_the_passes(refiner: Refiner) -> None:
    without = load_refiner(device="cpu", tiles=False)
    image, truth = scene(1)
    coarse = np.stack([coarsen(mask) for mask in truth])
    small = image[::2, ::2], coarse[:, ::2, ::2]
    assert np.array_equal(refiner.refine(*small), without.refine(*small))
    image, truth, coarse = (
        cv2.resize(image, None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC),
        truth[2:],
        coarse[2:],
    )
    truth, coarse = (
        np.stack([cv2.resize(mask.astype(np.float32), None, fx=3, fy=3) >= 0.5 for mask in masks])
        for masks in (truth, coarse)
    )
    close, far = refiner.refine(image, coarse), without.refine(image, coarse)
    gain = [iou(c, t) - iou(f, t) for c, f, t in zip(close, far, truth, strict=True)]
    assert np.mean(gain) > 0.001


def test_soft_results_are_probabilities_whose_threshold_is_the_hard_result(refiner: Refiner) -> None:
    image, masks = scene(2)
    coarse = coarsen(masks[3])[None]
    soft = refiner.refine(image, coarse, soft=True)
    assert soft.dtype == np.float32
    assert soft.min() >= 0
    assert soft.max() <= 1
    assert np.array_equal(soft >= 0.5, refiner.refine(image, coarse))


def test_soft_masks_are_taken_as_they_are(refiner: Refiner) -> None:
    image, masks = scene(2)
    soft = cv2.GaussianBlur(masks[3].astype(np.float32), (0, 0), 4)[None].clip(0, 1)
    refined = refiner.refine(image, soft)
    assert iou(refined[0], masks[3]) >= iou(soft[0] >= 0.5, masks[3]) - 0.005


@pytest.mark.parametrize("seed", [0, 1])
def test_specks_vanish_from_a_mask_that_is_right_otherwise(refiner: Refiner, seed: int) -> None:
    image, masks = scene(3)
    good = masks[3]
    rng = np.random.default_rng(seed)
    near = cv2.dilate(good.view(np.uint8), np.ones((21, 21), np.uint8)).astype(bool)
    spoilt = good ^ (near & (rng.random(good.shape) < 0.08))
    refined = refiner.refine(image, spoilt[None])[0]
    assert iou(spoilt, good) < 0.9
    assert iou(refined, good) > 0.98
    areas = cv2.connectedComponentsWithStats(refined.view(np.uint8))[2][1:, cv2.CC_STAT_AREA]
    # one piece, but for a few stray pixels at its outline
    assert areas.sum() - areas.max() < 0.03 * np.count_nonzero(spoilt != good)


def test_an_island_vanishes_from_a_mask_whose_outline_is_kept(refiner: Refiner) -> None:
    image, masks = scene(3)
    good = refiner.refine(image, coarsen(masks[3])[None])[0]
    rows, columns = np.nonzero(good)
    side = int(np.sqrt(np.ptp(rows) * np.ptp(columns)))
    centre = (int(columns.min()) - side // 8, int(rows.min()) - side // 8)
    island = cv2.circle(np.zeros(good.shape, np.uint8), centre, side // 12, 1, -1).astype(bool)
    assert island.any()
    assert not (island & good).any()
    lenient = with_settings(keep_shift=0.05)  # so that this outline counts as agreed upon
    refined = lenient.refine(image, (good | island)[None])[0]
    assert not (refined & island).any()
    assert np.count_nonzero(refined != good) < 0.001 * np.count_nonzero(good)


def test_an_empty_mask_stays_empty_and_no_masks_give_no_masks(refiner: Refiner) -> None:
    image, masks = scene(1)
    stack = np.stack([np.zeros_like(masks[0]), coarsen(masks[3])])
    refined = refiner.refine(image, stack)
    assert not refined[0].any()
    assert refined[1].any()
    assert refiner.refine(image, masks[:0]).shape == (0, 240, 320)


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (3, 2), (40, 1)])
def test_tiny_images_are_refined_without_complaint(refiner: Refiner, shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), 128, np.uint8)
    assert refiner.refine(image, np.ones((1, *shape), bool)).shape == (1, *shape)


@pytest.mark.parametrize(
    ("image", "masks", "reason"),
    [
        (np.full((8, 8, 3), -1.0), np.zeros((1, 8, 8), bool), "undo the detector's normalisation"),
        (np.full((8, 8, 3), 300), np.zeros((1, 8, 8), bool), "give uint8 in 0 … 255"),
        (np.zeros((8, 8, 5), np.uint8), np.zeros((1, 8, 8), bool), "expected 1 to 4 channels"),
        (np.zeros((2, 3, 8, 8), np.uint8), np.zeros((1, 8, 8), bool), "give several images as a list"),
        (np.zeros((8, 8, 3), np.uint8), np.zeros((2, 3, 8, 8), bool), "expected H×W, N×H×W or N×1×H×W"),
        (np.zeros((8, 8, 3), np.uint8), np.repeat([[0, 1, 2, 3]], 8, 0).repeat(2, 1), "give one mask an id"),
        (np.zeros((8, 8, 3), np.uint8), np.zeros((1, 8, 9), bool), "masks of 8×9 pixels for an image of 8×8"),
        (np.zeros((8, 8, 3), np.uint8), np.full((1, 8, 8), -3.0), "pass probabilities, not logits"),
        (np.zeros((8, 8, 3), np.uint8), np.full((1, 8, 8), np.nan), "outside \\[0, 1\\]"),
    ],
)
def test_input_of_another_kind_is_refused_in_one_line(
    refiner: Refiner, image: NDArray[np.uint8], masks: NDArray[np.bool_], reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        refiner.refine(image, masks)


def test_a_window_of_another_image_size_is_refused(refiner: Refiner) -> None:
    image, _ = scene(1)
    with pytest.raises(InputError, match="is for an image of"):
        refiner.refine_windows([image], [MaskWindow(np.ones((2, 2), bool), 0, 0, (9, 9))], [0])


@pytest.mark.parametrize(
    ("relabel", "root", "child"),
    [(1.1, 0.2, 0.5), (0.15, 1.1, 0.5), (0.15, 0.2, 1.1), (0.0, 0.0, 0.5)],
)
def test_a_tree_may_end_on_any_level(relabel: float, root: float, child: float) -> None:
    image, masks = scene(4)
    coarse = np.stack([coarsen(mask) for mask in masks])
    no_margin = {"relabel_margin": 2.0} if relabel > 1 else {}
    cut = with_settings(relabel_threshold=relabel, root_threshold=root, child_threshold=child, **no_margin)
    refined = cut.refine(image, coarse)
    if relabel > 1:  # nothing is relabelled: nothing may change
        assert np.array_equal(refined, coarse)
    else:
        assert np.mean([iou(r, t) for r, t in zip(refined, masks, strict=True)]) > 0.75


def test_features_of_a_fine_level_are_narrow_and_the_finest_level_has_none(in_torch: Refiner) -> None:
    """Dense maps: at most half the channels on every next level, and none at 448×448 but one-channel masks."""
    image, masks = scene(4)
    seen: list[tuple[int, ...]] = []
    assert isinstance(in_torch.runs, TorchEngine)
    network = in_torch.runs.network
    inner = [m for name, m in network.named_modules() if name and not name.startswith("backbone")]
    hooks = [m.register_forward_hook(lambda _m, _i, out: seen.extend(shapes_of(out))) for m in inner]
    try:
        in_torch.refine(image, coarsen(masks[3])[None])
    finally:
        for hook in hooks:
            hook.remove()
    widest = {
        grid: max((s[1] for s in seen if len(s) == 4 and s[2] == grid), default=0)
        for grid in (56, 112, 224, 448)
    }
    assert all(0 <= widest[grid] <= 64 * 56 / grid for grid in (56, 112, 224))
    assert widest[56] > 0
    assert widest[448] == 0


def shapes_of(out: object) -> list[tuple[int, ...]]:
    tensors = out if isinstance(out, tuple) else (out,)
    return [tuple(t.shape) for t in tensors if isinstance(t, torch.Tensor)]


def test_the_default_model_is_small_enough_to_ship_and_says_what_it_is() -> None:
    file = Path(__file__).parent.parent / "weights" / "transfiner-lite.safetensors"
    assert file.stat().st_size < 16 * 2**20
    card = json.loads(file.with_suffix(".json").read_text())
    assert card["config"]["backbone"] == "lite2"


def test_unknown_devices_and_precisions_name_what_there_is() -> None:
    with pytest.raises(DeviceError, match=r"unknown device 'tpu'; available here: auto, cpu"):
        choose_device("tpu")
    with pytest.raises(DeviceError, match="this machine has no device 'cuda:99'"):
        choose_device("cuda:99")
    with pytest.raises(DeviceError, match="unknown precision 'int3'"):
        choose_precision("int3", torch.device("cpu"))
    with pytest.raises(DeviceError, match="unknown engine 'tensorflow'; known: auto, torch, onnx"):
        load_refiner(device="cpu", engine="tensorflow")
    with pytest.raises(DeviceError, match="PyTorch does not compute in int8"):
        load_refiner(device="cpu", engine="torch", precision="int8")
    assert choose_precision("auto", torch.device("cpu")) == torch.float32


@pytest.mark.parametrize(
    ("device", "dtype"), [("cuda", torch.float16), ("cuda:0", torch.float16), ("cuda:1", torch.bfloat16)]
)
def test_the_precision_is_chosen_for_the_card_that_is_used(
    device: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    cards = {None: (7, 5), 0: (7, 5), 1: (8, 0)}  # a T4 and an A100; there need be no card here
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device=None: cards[torch.device(device).index]
    )
    assert choose_precision("auto", torch.device(device)) == dtype
    assert choose_precision("fp32", torch.device(device)) == torch.float32


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize(("precision", "share"), [("fp32", 1e-4), ("bf16", 5e-3)])
def test_a_gpu_gives_the_masks_of_the_cpu(in_torch: Refiner, precision: str, share: float) -> None:
    image, masks = scene(6)
    coarse = np.stack([coarsen(mask) for mask in masks])
    on_gpu = load_refiner(device="cuda", precision=precision).refine(image, coarse)
    assert np.mean(on_gpu != in_torch.refine(image, coarse)) < share


def test_an_argument_s_former_name_works_with_a_warning() -> None:
    with pytest.warns(DeprecationWarning, match="close_ups is now called tiles"):
        refiner = load_refiner(close_ups=False)  # type: ignore[call-arg]
    assert isinstance(refiner, Refiner)
    assert not refiner.tiles
