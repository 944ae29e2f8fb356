"""Traces: the stages of the method for one instance."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from transfiner_refine import Refiner, load_refiner
from transfiner_refine.errors import DeviceError, InputError
from transfiner_refine.explain import Names, explain
from transfiner_refine.model.checkpoint import load_network
from transfiner_refine.model.config import RefinerConfig
from transfiner_refine.model.weights import find_weights
from transfiner_refine.refine.engine import SizeClass
from transfiner_refine.refine.torch_engine import TorchEngine
from transfiner_refine.trace import Trace, trace


@pytest.fixture(scope="module")
def refiner() -> Refiner:
    refiner = load_refiner(device="cpu", engine="torch")
    assert isinstance(refiner, Refiner)
    return refiner


@pytest.fixture(scope="module")
def scene() -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A bright ellipse on a dark ground, and a coarse mask of it: a polygon of nine corners."""
    generator = np.random.default_rng(3)
    image = generator.integers(20, 60, (220, 300, 3)).astype(np.uint8)
    cv2.ellipse(image, (150, 110), (90, 60), 20, 0, 360, (210, 190, 160), -1)
    angles = np.linspace(0, 2 * np.pi, 10)[:-1]
    corners = np.stack((150 + 85 * np.cos(angles), 105 + 70 * np.sin(angles)), 1)
    mask = cv2.fillPoly(np.zeros((220, 300), np.uint8), [corners.astype(np.int32)], 1)
    return image, mask > 0


@pytest.fixture(scope="module")
def traced(refiner: Refiner, scene: tuple[NDArray[np.uint8], NDArray[np.bool_]]) -> Trace:
    return trace(refiner, *scene)


def test_a_trace_ends_in_the_mask_that_refine_gives(
    refiner: Refiner, scene: tuple[NDArray[np.uint8], NDArray[np.bool_]], traced: Trace
) -> None:
    image, mask = scene
    assert np.array_equal(traced.result.paste(), refiner.refine(image, mask[None])[0])


def test_tiles_of_a_large_object_are_traced_apart_from_the_passes(
    refiner: Refiner, scene: tuple[NDArray[np.uint8], NDArray[np.bool_]]
) -> None:
    assert not trace(refiner, *(part[::2, ::2] for part in scene)).tiles
    image, mask = (np.repeat(np.repeat(part, 2, 0), 2, 1) for part in scene)
    large = trace(refiner, image, mask)
    assert np.array_equal(large.result.paste(), refiner.refine(image, mask[None])[0])
    assert len(large.tiles) == 4
    whole = large.passes[-1].roi
    for step in large.tiles:
        assert whole.x0 <= step.roi.x0 < step.roi.x1 <= whole.x1
        assert whole.y0 <= step.roi.y0 < step.roi.y1 <= whole.y1
        assert max(step.roi.width, step.roi.height) < 0.7 * whole.side


def test_children_lie_under_their_parents_and_were_judged(traced: Trace) -> None:
    levels = traced.passes[0].levels
    assert [level.grid for level in levels][:3] == [28, 56, 112]
    assert (levels[0].parent == -1).all()
    for above, level in pairwise(levels):
        assert np.array_equal(level.y // 2, above.y[level.parent])
        assert np.array_equal(level.x // 2, above.x[level.parent])
        judged = ~np.isnan(level.wrong_probability)
        assert judged[level.y, level.x].all()
        assert np.count_nonzero(judged) == 4 * len(above)


def test_boxes_of_nodes_cover_the_pixels_they_are_said_to(traced: Trace) -> None:
    step = traced.passes[0]
    for number in range(2):
        covered = step.covered(number).paste()
        drawn = np.zeros_like(covered)
        rows, columns = np.indices(covered.shape) + 0.5  # centres of pixels
        for x0, y0, x1, y1 in step.boxes(number):
            drawn |= (columns >= x0) & (columns < x1) & (rows >= y0) & (rows < y1)
        assert np.count_nonzero(drawn != covered) <= 0.002 * drawn.size  # rounding of centres on edges


def test_nearly_all_that_changes_was_relabelled(
    scene: tuple[NDArray[np.uint8], NDArray[np.bool_]], traced: Trace
) -> None:
    changed = traced.result.paste() != scene[1]
    assert changed.any()
    assert np.count_nonzero(changed & ~traced.relabelled_pixels.paste()) <= 0.02 * np.count_nonzero(changed)


def test_labels_and_maps_are_probabilities(traced: Trace) -> None:
    for level in traced.passes[0].levels:
        for values in (level.label, level.mask, level.coarse):
            assert values.dtype == np.float32
            assert values.min(initial=0) >= 0
            assert values.max(initial=0) <= 1


def test_an_empty_mask_cannot_be_traced(
    refiner: Refiner, scene: tuple[NDArray[np.uint8], NDArray[np.bool_]]
) -> None:
    with pytest.raises(InputError, match="the mask is empty"):
        trace(refiner, scene[0], np.zeros_like(scene[1]))


def test_a_trace_of_a_tree_without_nodes_can_be_drawn(
    scene: tuple[NDArray[np.uint8], NDArray[np.bool_]],
) -> None:
    network = load_network(find_weights("lite"))
    network.config = replace(network.config, root_threshold=1.1)
    image, mask = scene
    traced = trace(Refiner(TorchEngine(network, "cpu")), image, mask)
    (level,) = traced.passes[0].levels
    assert (level.grid, len(level)) == (28, 0)
    assert traced.passes[0].relabelled.any()  # by the dense decoder
    assert explain(image, traced, Names("photo", "mask", "lite")).width == 2400


class StepsAlone:
    """An engine that says nothing of how it came to its results."""

    name, device, precision = "steps alone", "cpu", "fp32"

    def __init__(self, engine: TorchEngine) -> None:
        self.engine: TorchEngine = engine
        self.config: RefinerConfig = engine.config

    def step(
        self, size: SizeClass, pixels: NDArray[np.uint8], coarse: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        return self.engine.step(size, pixels, coarse)

    def prepare_thread(self) -> None:
        self.engine.prepare_thread()


def test_an_engine_that_keeps_no_trace_is_refused_with_the_one_that_does(
    refiner: Refiner, scene: tuple[NDArray[np.uint8], NDArray[np.bool_]]
) -> None:
    assert isinstance(refiner.runs, TorchEngine)
    other = Refiner(StepsAlone(refiner.runs))
    with pytest.raises(
        DeviceError, match='steps alone engine keeps no trace; load the refiner with engine="torch"'
    ):
        trace(other, *scene)
    assert np.array_equal(other.refine(scene[0], scene[1][None]), refiner.refine(scene[0], scene[1][None]))
