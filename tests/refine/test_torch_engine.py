"""The refine step in PyTorch: what it takes from its caller, and leaves as it was."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from transfiner_refine import Refiner
from transfiner_refine.model.checkpoint import load_network, save_network
from transfiner_refine.model.config import RefinerConfig
from transfiner_refine.model.network import MaskTransfiner
from transfiner_refine.refine.engine import SizeClass
from transfiner_refine.refine.torch_engine import TorchEngine

SMALL = RefinerConfig(
    backbone="lite0",
    pyramid_width=16,
    incoherence_width=8,
    dense_widths=(16, 8, 8),
    width=16,
    heads=2,
    feedforward=16,
)


@pytest.fixture
def network() -> MaskTransfiner:
    torch.manual_seed(0)
    return MaskTransfiner(SMALL).eval()


@pytest.fixture
def threads() -> Iterator[int]:
    """A number of threads that nobody else would choose."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield 3
    torch.set_num_threads(before)


def scene() -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    image = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    masks = np.zeros((4, 60, 80), bool)
    for i, mask in enumerate(masks):
        mask[10 : 40 + 2 * i, 15 + 5 * i : 50] = True
    return image, masks


def in_a_new_thread() -> int:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.get_num_threads).result()


def test_refining_leaves_the_number_of_threads_as_it_was_here_and_in_new_threads(
    network: MaskTransfiner, threads: int
) -> None:
    refiner = Refiner(TorchEngine(network, "cpu"))
    refiner.refine(*scene())
    assert (torch.get_num_threads(), in_a_new_thread()) == (threads, threads)


def test_a_number_that_is_changed_between_calls_stays_as_well(network: MaskTransfiner, threads: int) -> None:
    refiner = Refiner(TorchEngine(network, "cpu"))
    first = refiner.refine(*scene(), soft=True)
    torch.set_num_threads(threads + 2)
    second = refiner.refine(*scene(), soft=True)
    assert (torch.get_num_threads(), in_a_new_thread()) == (threads + 2, threads + 2)
    Refiner(TorchEngine(network, "cpu")).refine(*scene())
    assert (torch.get_num_threads(), in_a_new_thread()) == (threads + 2, threads + 2)
    assert np.array_equal(first, second)


def test_a_thread_that_refines_computes_on_one_core(network: MaskTransfiner, threads: int) -> None:
    engine = TorchEngine(network, "cpu")
    with ThreadPoolExecutor(1, initializer=engine.prepare_thread) as pool:
        assert pool.submit(torch.get_num_threads).result() == 1
    assert torch.get_num_threads() == threads


def test_threads_that_begin_at_the_same_time_do_not_leave_each_others_number(
    network: MaskTransfiner, threads: int
) -> None:
    engine = TorchEngine(network, "cpu")
    number = 8
    for _ in range(10):
        together = Barrier(number)

        def begin(_: int, together: Barrier = together) -> int:
            together.wait()
            engine.prepare_thread()
            return torch.get_num_threads()

        with ThreadPoolExecutor(number) as pool:
            assert set(pool.map(begin, range(number))) == {1}
        assert (torch.get_num_threads(), in_a_new_thread()) == (threads, threads)


@pytest.mark.parametrize("training", [False, True])
def test_the_callers_network_is_left_as_it_was(network: MaskTransfiner, training: bool) -> None:
    network.train(training)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    modules = [type(module) for module in network.modules()]
    modes = [module.training for module in network.modules()]
    TorchEngine(network, "cpu", "bf16")
    Refiner(TorchEngine(network, "cpu")).refine(*scene())
    assert [type(module) for module in network.modules()] == modules
    assert torch.nn.BatchNorm2d in modules  # folded in the engine's copy alone
    assert [module.training for module in network.modules()] == modes
    state = network.state_dict()
    assert state.keys() == before.keys()
    for name, value in state.items():
        assert value.dtype == before[name].dtype
        assert value.device == before[name].device
        assert torch.equal(value, before[name]), name
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_the_callers_network_can_be_saved_trained_and_used_again(
    network: MaskTransfiner, tmp_path: Path
) -> None:
    first = TorchEngine(network, "cpu")
    size, inputs = a_step(network)
    expected = first.step(size, *inputs)
    save_network(network, tmp_path / "small.safetensors", dtype=torch.float32)
    again = TorchEngine(load_network(tmp_path / "small.safetensors"), "cpu").step(size, *inputs)
    for one, other in zip(expected, again, strict=True):
        assert np.array_equal(one, other)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.5)
    for one, other in zip(expected, first.step(size, *inputs), strict=True):
        assert np.array_equal(one, other)  # the engine has weights of its own


def a_step(network: MaskTransfiner) -> tuple[SizeClass, tuple[NDArray[np.uint8], NDArray[np.float32]]]:
    side = network.config.crop_side
    rng = np.random.default_rng(1)
    coarse = np.zeros((2, 1, side, side), np.float32)
    coarse[:, :, side // 4 : -side // 4, side // 4 : -side // 4] = 1
    return SizeClass(3, True), (rng.integers(0, 255, (2, 3, side, side), np.uint8), coarse)


def test_what_it_is_and_in_which_precision_it_computes(network: MaskTransfiner) -> None:
    engine = TorchEngine(network, "cpu")
    assert (engine.name, engine.device, engine.precision) == ("torch", "cpu", "fp32")
    assert TorchEngine(network, "cpu", "bf16").precision == "bf16"
    size, inputs = a_step(network)
    probability, relabelled = engine.step(size, *inputs)
    assert probability.shape == (2, 112, 112)
    assert relabelled.shape == (2, 28, 28)
    assert (probability.dtype, relabelled.dtype) == (np.float32, bool)
