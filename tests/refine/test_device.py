"""Instances refined in batches on a device against the same instances one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from transfiner_refine.masks import Mask, MaskWindow
from transfiner_refine.model.checkpoint import load_network
from transfiner_refine.model.weights import find_weights
from transfiner_refine.refine.device_pass import Group, refine_group
from transfiner_refine.refine.device_queue import BatchedPasses
from transfiner_refine.refine.engine import SizeClass
from transfiner_refine.refine.instance import harden, refine_instance
from transfiner_refine.refine.torch_engine import TorchEngine

SYNCHRONISING = ("_local_scalar_dense", "nonzero", "masked_select", "item", "equal", "is_nonzero")
GROUPS = [
    Group(SizeClass(3, True), 128, True, None, False),
    Group(SizeClass(5, True), 512, True, None, False),
    Group(SizeClass(5, True), 512, True, SizeClass(4, False), False),
    Group(SizeClass(4, False), 256, False, None, True),
]


@pytest.fixture(scope="module")
def engine() -> TorchEngine:
    return TorchEngine(load_network(find_weights("lite")), "cpu", "fp32")


def scene(seed: int, scale: float) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A bright wavy blob on a dark ground, and a coarse mask of it: a polygon of nine corners."""
    rng = np.random.default_rng(seed)
    height, width = round(160 * scale), round(220 * scale)
    angles = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    radius = scale * (45 + 9 * np.sin(5 * angles + rng.uniform(0, 6)))
    outline = np.stack((110 * scale + radius * np.cos(angles), 80 * scale + radius * np.sin(angles)), 1)
    image = rng.integers(20, 70, (height, width, 3)).astype(np.uint8)
    cv2.fillPoly(image, [outline.round().astype(np.int32)], rng.integers(120, 230, 3).tolist())
    coarse = cv2.fillPoly(np.zeros((height, width), np.uint8), [outline[::10].round().astype(np.int32)], 1)
    return cv2.GaussianBlur(image, (3, 3), 0), coarse > 0


def as_window(mask: NDArray[Any]) -> MaskWindow:
    return MaskWindow(mask, 0, 0, (mask.shape[0], mask.shape[1]))


def test_masks_are_those_of_one_instance_at_a_time_but_for_few_pixels(engine: TorchEngine) -> None:
    scenes = [scene(seed, scale) for seed, scale in enumerate((0.5, 0.8, 1.2, 2.0, 3.1, 0.5))]
    given: list[Mask | MaskWindow] = [Mask.from_window(as_window(mask)) for _, mask in scenes[:-1]]
    soft = cv2.GaussianBlur(scenes[-1][1].astype(np.float32), (7, 7), 0)
    given.append(as_window(soft))
    images = [image for image, _ in scenes]
    refined = BatchedPasses(engine, 4, tiles=True).refine(images, given, range(6))
    for image, mask, result in zip(images, given, refined, strict=True):
        window = mask.decode() if isinstance(mask, Mask) else mask
        expected = harden(refine_instance(engine, image, window)).paste()
        found = (result.decode() if isinstance(result, Mask) else harden(result)).paste()
        assert np.count_nonzero(found != expected) <= 0.004 * np.count_nonzero(expected)
        assert np.count_nonzero(found != (window.paste() >= 0.5)) > 0


@pytest.mark.slow
def test_probabilities_can_be_had_and_masks_with_many_runs_need_no_more_than_another_try(
    engine: TorchEngine,
) -> None:
    image, mask = scene(3, 0.6)
    rng = np.random.default_rng(0)
    speckled = mask ^ (rng.random(mask.shape) < 0.3)
    given = [Mask.from_window(as_window(each)) for each in (mask, speckled)]
    passes = BatchedPasses(engine, 4, tiles=False)
    hard, probable = (passes.refine([image], given, [0, 0], soft=soft) for soft in (False, True))
    for one, other in zip(hard, probable, strict=True):
        assert isinstance(other, MaskWindow)
        assert isinstance(one, Mask)
        assert np.array_equal(other.paste() >= 0.5, one.decode().paste())


class Launches(TorchDispatchMode):
    """Counts the operators that compute something, by name; views and casts to the same type do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if torch.is_tensor(x)}
        made = [x.untyped_storage()._cdata for x in tree_leaves(result) if torch.is_tensor(x)]
        if func.namespace == "prim":  # asks for a property
            return result
        if func._schema.is_mutable or not made or set(made) - given:
            self.seen[func._schema.name.removeprefix("aten::")] += 1
        return result


@pytest.fixture
def fake_card(engine: TorchEngine) -> Iterator[TorchEngine]:
    """The engine on a CUDA device that only keeps shapes and devices, and refuses operators on two devices."""
    fake = TorchEngine(engine.network, "cpu", "fp32")
    fake.torch_device = torch.device("cuda")
    with FakeTensorMode():
        for module in fake.network.modules():
            for name, value in module._parameters.items():
                if value is not None:
                    there = torch.empty(value.shape, device="cuda")
                    module._parameters[name] = torch.nn.Parameter(there, requires_grad=False)
        yield fake


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: f"{group.size.label}-{group.canvas}")
def test_a_batch_waits_for_nothing_and_launches_the_same_few_operators_whatever_its_size(
    fake_card: TorchEngine, group: Group
) -> None:
    counts = []
    for instances in (2, 256):
        made = {"device": "cuda", "dtype": torch.int64}
        pixels = torch.empty(1_000_000, 3, dtype=torch.uint8, device="cuda")
        table, edges = torch.empty(instances, 23, **made), torch.empty(instances, 256, **made)
        soft = torch.empty(instances, group.canvas, group.canvas, device="cuda") if group.soft else None
        with torch.no_grad(), Launches() as launches:
            result = refine_group(fake_card, group, pixels, table, edges, soft, 6)
        assert {each.device.type for each in result} == {"cuda"}
        assert not [name for name in launches.seen if name in SYNCHRONISING]
        counts.append(sum(launches.seen.values()))
    looks = 1 if group.window is None else 2
    assert counts[0] == counts[1] <= 1500 * looks
