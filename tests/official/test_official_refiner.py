"""Refine mode: an official network behind the package's own interface, on masks of any origin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from detector import load_detector
from faithful import FaithfulOptions, OfficialPredictor
from numpy.typing import NDArray
from torch import Tensor

from transfiner_refine import load_refiner
from transfiner_refine.errors import CheckpointError, DeviceError, InputError
from transfiner_refine.evaluation.error_analysis import analyse_errors, instance_errors
from transfiner_refine.explain import Names, explain
from transfiner_refine.masks import MaskWindow
from transfiner_refine.official import (
    Architecture,
    OfficialNetwork,
    OfficialRefiner,
    Preparation,
    RefineOptions,
    convert_weights,
    load_official_network,
)
from transfiner_refine.official.read import TensorFile
from transfiner_refine.pipeline import WindowRefiner
from transfiner_refine.refiner import BaseRefiner, window_of
from transfiner_refine.trace import trace

HEIGHT, WIDTH = 90, 120


@pytest.fixture(scope="module")
def network(small: Architecture, make_tensors: Callable[..., dict[str, Tensor]]) -> OfficialNetwork:
    return load_official_network(TensorFile(Path("memory.pth"), "PyTorch checkpoint", make_tensors(small, 3)))


def preparation(network: OfficialNetwork) -> Preparation:
    return replace(Preparation.of(network.architecture), short_side=128, max_side=200)


@pytest.fixture(scope="module")
def refiner(network: OfficialNetwork) -> OfficialRefiner:
    # the masks of these tests are noise, so the network's own mask disagrees with most of their cells
    options = RefineOptions(visit_disagreement=False)
    return OfficialRefiner(network, device="cpu", options=options, preparation=preparation(network))


@pytest.fixture(scope="module")
def visiting(network: OfficialNetwork) -> OfficialRefiner:
    """One that visits the cells of disagreement, as is the default."""
    return OfficialRefiner(network, device="cpu", preparation=preparation(network))


def scene(seed: int) -> tuple[NDArray[np.uint8], list[MaskWindow]]:
    """A noisy image and masks of several sizes, one at the image's corner."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    windows = []
    for x0, y0, w, h in ((10, 12, 40, 30), (60, 5, 50, 80), (0, 50, 25, 40), (80, 70, 6, 5)):
        mask = np.zeros((HEIGHT, WIDTH), bool)
        mask[y0 : y0 + h, x0 : x0 + w] = rng.random((h, w)) < 0.8
        windows.append(window_of(mask))
    return image, windows


def same(a: MaskWindow, b: MaskWindow) -> bool:
    return (a.x, a.y, a.image_size) == (b.x, b.y, b.image_size) and np.array_equal(a.values, b.values)


def test_it_is_what_the_pipeline_asks_for(refiner: OfficialRefiner) -> None:
    stands_in: WindowRefiner = refiner
    assert stands_in.batch_size == 32
    assert isinstance(refiner, BaseRefiner)
    assert (refiner.device, refiner.engine, refiner.precision) == ("cpu", "torch", "fp32")


def test_every_instance_is_refined_by_itself(refiner: OfficialRefiner) -> None:
    images, windows, owner = [], [], []
    for i in range(2):
        image, masks = scene(i)
        images.append(image)
        windows += masks
        owner += [i] * len(masks)
    order = [5, 0, 7, 2, 1, 4, 3, 6]
    together = refiner.refine_windows(images, [windows[i] for i in order], [owner[i] for i in order])
    assert len(together) == len(windows)
    for i, refined in zip(order, together, strict=True):
        (alone,) = refiner.refine_windows([images[owner[i]]], [windows[i]], [0])
        assert same(refined, alone)
        assert refined.values.dtype == bool


def test_the_given_mask_replaces_the_networks_own(refiner: OfficialRefiner) -> None:
    image, windows = scene(0)
    full = replace(windows[0], values=np.ones_like(windows[0].values))
    a, b = refiner.refine_windows([image] * 2, [windows[0], full], [0, 1], soft=True)
    assert a.values.shape == b.values.shape
    assert not np.allclose(a.values, b.values, atol=1e-3)


def test_where_nothing_is_questioned_the_given_mask_stays(
    network: OfficialNetwork, refiner: OfficialRefiner
) -> None:
    never = RefineOptions(thresholds=(2.0, 2.0, 2.0), visit_disagreement=False)
    calm = OfficialRefiner(network, device="cpu", options=never, preparation=refiner.preparation)
    image, windows = scene(0)
    for mask, refined in zip(windows, calm.refine_windows([image], windows, [0] * 4), strict=True):
        assert np.array_equal(refined.paste(), mask.paste())
    visiting = OfficialRefiner(
        network,
        device="cpu",
        options=replace(never, visit_disagreement=True),
        preparation=refiner.preparation,
    )
    (changed,) = visiting.refine_windows([image], windows[:1], [0])
    assert not np.array_equal(changed.paste(), windows[0].paste())


def test_the_network_that_it_is_given_stays_as_it_is(network: OfficialNetwork) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert network.train().training
    OfficialRefiner(network, device="cpu")
    assert network.training
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    network.eval()


def test_empty_and_soft_masks(refiner: OfficialRefiner) -> None:
    image, windows = scene(0)
    empty = MaskWindow(np.zeros((0, 0), bool), 0, 0, (HEIGHT, WIDTH))
    soft = replace(windows[0], values=windows[0].values.astype(np.float32))
    a, b, c = refiner.refine_windows([image], [empty, soft, windows[0]], [0, 0, 0])
    assert a.values.size == 0
    assert same(b, c)
    pasted = refiner.refine(image, np.stack([w.paste() for w in windows]))
    assert pasted.shape == (4, HEIGHT, WIDTH)
    assert np.array_equal(pasted[0], c.paste())


def test_a_class_may_be_given(visiting: OfficialRefiner, monkeypatch: pytest.MonkeyPatch) -> None:
    image, windows = scene(0)
    seen: list[Tensor] = []
    own = visiting._own_mask

    def watched(hidden: Tensor, coarse: Tensor, classes: int | None) -> Tensor:
        seen.append(own(hidden, coarse, classes))
        return coarse  # agrees everywhere, which keeps the test short

    monkeypatch.setattr(visiting, "_own_mask", watched)
    for given in (0, 4, None):
        visiting.refine_windows([image], windows[3:], [0], class_ids=[given])
    assert not torch.equal(seen[0], seen[1])
    with pytest.raises(InputError, match="this network knows the classes 0 to 4"):
        visiting.refine_windows([image], windows[:1], [0], class_ids=[5])


def test_a_buffer_that_holds_another_image_gives_that_images_masks(refiner: OfficialRefiner) -> None:
    (first, windows), (second, _) = scene(0), scene(1)
    (expected,) = refiner.refine_windows([second], windows[:1], [0], soft=True)
    buffer = first.copy()
    refiner.refine_windows([buffer], windows[:1], [0])
    buffer[:] = second
    (found,) = refiner.refine_windows([buffer], windows[:1], [0], soft=True)
    assert same(found, expected)


def test_masks_of_another_image_are_refused(refiner: OfficialRefiner) -> None:
    image, windows = scene(0)
    with pytest.raises(InputError, match="mask 0 is for an image of"):
        refiner.refine_windows([image[:50]], windows[:1], [0])


def test_load_refiner_tells_the_authors_files_from_its_own(
    small: Architecture, make_tensors: Callable[..., dict[str, Tensor]], tmp_path: Path
) -> None:
    original, converted = tmp_path / "a.pth", tmp_path / "b.safetensors"
    torch.save({"model": make_tensors(small)}, original)
    convert_weights(original, converted)
    image, windows = scene(0)
    results = []
    for path in (original, converted):
        loaded = load_refiner(path, device="cpu", batch_size=3)
        assert isinstance(loaded, OfficialRefiner)
        assert loaded.batch_size == 3
        loaded.preparation = preparation(loaded.official)
        loaded.options = RefineOptions(visit_disagreement=False)
        results.append(loaded.refine_windows([image], windows[3:], [0]))
    assert all(same(a, b) for a, b in zip(*results, strict=True))
    with pytest.raises(CheckpointError, match="not a weights file"):
        load_refiner(__file__, device="cpu")


def test_the_onnx_engine_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"model": {}}, path)
    with pytest.raises(DeviceError, match="the authors' networks run in PyTorch only"):
        load_refiner(path, device="cpu", engine="onnx")


@pytest.mark.parametrize("number", range(4))
def test_a_trace_ends_in_the_mask_that_refine_gives(refiner: OfficialRefiner, number: int) -> None:
    image, windows = scene(0)
    mask = windows[number]
    traced = trace(refiner, image, mask.paste())
    assert np.array_equal(traced.result.paste(), refiner.refine(image, mask.paste()[None])[0])
    (soft,) = refiner.refine_windows([image], [mask], [0], soft=True)
    (step,) = traced.passes
    assert np.array_equal(step.probability, soft.values)
    assert (step.roi.x0, step.roi.y0) == (soft.x, soft.y)
    assert not traced.tiles
    changed = traced.result.paste() != mask.paste()
    assert not (changed & ~traced.relabelled_pixels.paste()).any()


def test_a_trace_has_the_three_levels_of_the_tree(refiner: OfficialRefiner) -> None:
    image, windows = scene(0)
    (step,) = trace(refiner, image, windows[1]).passes
    assert [level.grid for level in step.levels] == [28, 56, 112]
    assert len(step.levels[0]) > 0
    assert np.array_equal(step.levels[0].cells, step.relabelled)
    assert (step.levels[0].parent == -1).all()
    for above, level in pairwise(step.levels):
        assert np.array_equal(level.y // 2, above.y[level.parent])
        assert np.array_equal(level.x // 2, above.x[level.parent])
    for level in step.levels:
        assert (
            level.coarse.shape
            == level.mask.shape
            == level.wrong_probability.shape
            == (level.grid, level.grid)
        )
        for values in (level.label, level.mask, level.coarse, level.wrong_probability):
            assert values.dtype == np.float32
            assert 0 <= values.min(initial=0) <= values.max(initial=0) <= 1
        assert np.array_equal(level.mask[level.y, level.x], level.label)


def test_where_nothing_is_questioned_a_trace_has_no_nodes(
    network: OfficialNetwork, refiner: OfficialRefiner
) -> None:
    never = RefineOptions(thresholds=(2.0, 2.0, 2.0), visit_disagreement=False)
    calm = OfficialRefiner(network, device="cpu", options=never, preparation=refiner.preparation)
    image, windows = scene(0)
    traced = trace(calm, image, windows[0])
    assert np.array_equal(traced.result.paste(), windows[0].paste())
    assert not traced.relabelled_pixels.values.any()
    assert explain(image, traced, Names("photo", "mask", "small")).width == 2400


def test_an_empty_mask_cannot_be_traced(refiner: OfficialRefiner) -> None:
    with pytest.raises(InputError, match="the mask is empty"):
        trace(refiner, scene(0)[0], np.zeros((HEIGHT, WIDTH), bool))


@pytest.mark.parametrize("number", [0, 3])
def test_the_sheet_is_drawn_for_the_authors_networks_too(refiner: OfficialRefiner, number: int) -> None:
    image, windows = scene(0)
    sheet = explain(
        image, trace(refiner, image, windows[number]), Names("photo", "mask", "small"), windows[0]
    )
    assert sheet.width == 2400
    assert (np.asarray(sheet)[:, -40:] == 255).all()


def test_errors_of_the_authors_networks_are_analysed(refiner: OfficialRefiner) -> None:
    image, windows = scene(0)
    truth, coarse = np.roll(windows[1].paste(), 3, 1), windows[1].paste()
    row = instance_errors(refiner, image, truth, coarse)
    refined = refiner.refine(image, coarse[None])[0]
    assert row.wrong - row.fixed + row.broken == np.count_nonzero(refined != truth)
    assert [level.grid for level in row.levels] == [28, 56, 112]
    assert max(row.before.iou, row.after.iou) <= row.oracle.iou <= 1
    found = analyse_errors(refiner, [(image, truth, coarse)], weights="small")
    assert found.rows == (row,)
    assert [level.grid for level in found.levels] == [28, 56, 112]


def test_faithful_mode_does_not_depend_on_the_batch_unless_the_releases_limits_are_on(
    network: OfficialNetwork,
) -> None:
    image, _ = scene(0)
    boxes = np.array([[5, 5, 60, 70], [40, 10, 110, 85], [70, 50, 90, 60]], np.float32)
    classes = np.array([0, 4, 2])
    free = OfficialPredictor(network, preparation=preparation(network))
    (together,) = free.masks([image], [boxes], [classes])
    assert together.masks.shape == (3, HEIGHT, WIDTH)
    for i in range(3):
        (alone,) = free.masks([image], [boxes[i : i + 1]], [classes[i : i + 1]])
        assert np.array_equal(alone.masks[0], together.masks[i])
    limited = OfficialPredictor(network, options=FaithfulOptions(limit=1), preparation=preparation(network))
    (few,) = limited.masks([image], [boxes], [classes])
    assert np.array_equal(few.masks[0], together.masks[0])
    assert not np.array_equal(few.masks[1:], together.masks[1:])
    (none,) = free.masks([image], [boxes[:0]], [classes[:0]])
    assert none.masks.shape == (0, HEIGHT, WIDTH)


def test_boxes_outside_the_image_give_no_mask(network: OfficialNetwork) -> None:
    image, _ = scene(0)
    boxes = np.array([[-50, -50, -10, -10], [100, 60, 150, 120]], np.float32)
    (found,) = OfficialPredictor(network, preparation=preparation(network)).masks(
        [image], [boxes], [np.array([1, 2])]
    )
    assert found.index.tolist() == [1]
    assert found.classes.tolist() == [2]
    assert found.boxes.tolist() == [[100, 60, WIDTH, HEIGHT]]


def test_the_whole_pipeline_finds_boxes_by_itself(
    small: Architecture, make_tensors: Callable[..., dict[str, Tensor]]
) -> None:
    file = TensorFile(Path("memory.pth"), "PyTorch checkpoint", make_tensors(small))
    network = load_official_network(file)
    predictor = OfficialPredictor(
        network, load_detector(file), options=FaithfulOptions(limit=2), preparation=preparation(network)
    )
    image, _ = scene(0)
    first, second = predictor.detect([image, image[:60]])
    for found, height in ((first, HEIGHT), (second, 60)):
        assert 0 < len(found.masks) <= 100
        assert found.masks.shape[1:] == (height, WIDTH)
        assert found.scores is not None
        assert (np.diff(found.scores) <= 0).all()
        assert found.classes.max() < small.classes
    with pytest.raises(CheckpointError, match="no RPN and box head"):
        OfficialPredictor(network).detect([image])
