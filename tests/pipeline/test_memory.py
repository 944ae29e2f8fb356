"""Too little memory: batches become smaller, masks stay the same."""

from __future__ import annotations

import subprocess
import sys
import weakref
from typing import Any

import pytest
import torch

from transfiner_refine.errors import InputError
from transfiner_refine.formats import open_source
from transfiner_refine.masks import MaskWindow
from transfiner_refine.pipeline import refine_source

CUDA = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried ..."
)
CUBLAS = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


def limited(quick_run: Any, most: int, error: Exception, batch_size: int = 8, giant: int = -1) -> Any:
    """A refiner on a device that holds ``most`` instances at a time, and of mask number ``giant`` not even one."""

    class Limited(quick_run.Stripes):  # type: ignore[misc]
        def refine_windows(self, images: Any, masks: Any, image_index: Any) -> list[MaskWindow]:
            self.sizes.append(len(masks))
            if len(masks) > most or any(mask.values.size == giant for mask in masks):
                raise error
            refined: list[MaskWindow] = super().refine_windows(images, masks, image_index)
            return refined

    refiner = Limited(batch_size)
    refiner.sizes = []
    return refiner


def source(job: Any) -> Any:
    return open_source(job.folder / "masks.json", job.folder / "images")


@pytest.mark.parametrize("error", [CUDA, CPU, CUBLAS, MemoryError()])
def test_a_batch_that_does_not_fit_is_halved_once_and_for_all(
    job: Any, quick_run: Any, error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = dict(refine_source(source(job), quick_run.Stripes(8), workers=0).masks)
    refiner = limited(quick_run, 3, error)
    outcome = refine_source(source(job), refiner, workers=0)
    assert dict(outcome.masks) == expected
    assert refiner.sizes == [8, 4, 2, 2, 4, 2, 2] + [2] * 6 + [1]
    assert capsys.readouterr().err == (
        "transfiner-refine: 8 masks at a time do not fit into memory; going on with fewer (same result)\n"
    )


def test_an_instance_that_does_not_fit_even_alone_is_named_and_keeps_its_mask(
    job: Any, quick_run: Any
) -> None:
    giant = next(iter(source(job))).instances[1].mask.decode().values.size
    refiner = limited(quick_run, 100, CUDA, giant=giant)
    outcome = refine_source(source(job), refiner, workers=0)
    assert sorted(set(range(21)) - set(outcome.masks)) == [1]
    assert outcome.summary.failed == 1
    assert "1.png: record 1: does not fit into the memory even alone" in str(outcome.summary.errors[0])
    assert refiner.sizes[-2:] == [8, 5]  # the others are not made to suffer


def test_what_a_refiner_refuses_is_a_fault_of_that_instance(job: Any, quick_run: Any) -> None:
    giant = next(iter(source(job))).instances[1].mask.decode().values.size
    refiner = limited(quick_run, 100, InputError("is too thin", remedy="draw it thicker"), giant=giant)
    summary = refine_source(source(job), refiner, workers=0).summary
    assert (summary.refined, summary.failed) == (20, 1)
    assert str(summary.errors[0]).endswith("1.png: record 1: is too thin; draw it thicker")


def test_any_other_error_of_a_refiner_is_not_hidden(job: Any, quick_run: Any) -> None:
    with pytest.raises(RuntimeError, match="device-side assert"):
        refine_source(source(job), limited(quick_run, 3, RuntimeError("device-side assert")), workers=0)


def test_memory_of_a_failed_attempt_is_free_before_the_next_one(job: Any, quick_run: Any) -> None:
    alive: list[Any] = []

    class Holding(quick_run.Stripes):  # type: ignore[misc]
        def refine_windows(self, images: Any, masks: Any, image_index: Any) -> list[MaskWindow]:
            assert not [each for each in alive if each() is not None]
            activations = torch.zeros(10)
            alive.append(weakref.ref(activations))
            if len(masks) > 2:
                raise torch.cuda.OutOfMemoryError
            refined: list[MaskWindow] = super().refine_windows(images, masks, image_index)
            return refined

    assert refine_source(source(job), Holding(8), workers=0).summary.refined == 21


def test_neither_the_pipeline_nor_a_worker_loads_pytorch() -> None:
    code = "import sys, transfiner_refine.pipeline.workers; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
