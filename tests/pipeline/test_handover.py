"""Messages between processes: arrays in shared memory while somebody uses them, and through the pipe without it."""

from __future__ import annotations

import fcntl
import gc
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from transfiner_refine.formats import open_source
from transfiner_refine.images import read_image
from transfiner_refine.pipeline import Selection
from transfiner_refine.pipeline.decoding import DecodingPool
from transfiner_refine.pipeline.handover import SharedMemory, receive, send
from transfiner_refine.pipeline.prepare import Preparing

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory without a name is Linux's")

F_ADD_SEALS, F_SEAL_GROW = 1033, 4


def sent(memory: SharedMemory, message: Any) -> tuple[Any, int]:
    """A message after its way through a pipe and the shared memory, and the slot that it took."""
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb", buffering=0) as reader, os.fdopen(write_end, "wb", buffering=0) as writer:
        slot = memory.take()
        assert memory.descriptor is not None
        fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, 1 << 20)
        send(writer, message, (memory.descriptor, slot))
        return receive(reader, memory, slot), slot


def test_arrays_arrive_and_their_slot_is_taken_again_when_nobody_uses_them() -> None:
    memory = SharedMemory()
    large, small = np.arange(300_000).reshape(3, 100_000), np.arange(5)
    (first, other), slot = sent(memory, (large, small))
    view = first[1:]
    del first
    assert memory.take() != slot
    assert np.array_equal(view, large[1:])
    assert np.array_equal(other, small)
    del view, other
    gc.collect()
    assert memory.take() == slot


def test_several_arrays_lie_where_numbers_may_lie() -> None:
    arrays = [
        np.full(70_001, 7, np.uint8), np.arange(9), np.linspace(0, 1, 30_000), np.ones(65_537, bool),
        np.arange(20_003, dtype=np.float32),
    ]  # fmt: skip
    found, _ = sent(SharedMemory(), arrays)
    assert [array.flags.aligned for array in found] == [True] * 5
    for array, expected in zip(found, arrays, strict=True):
        assert np.array_equal(array, expected)


def test_a_message_without_large_arrays_takes_no_slot() -> None:
    memory = SharedMemory()
    message, slot = sent(memory, [np.arange(5), "text"])
    assert message[1] == "text"
    assert memory.take() == slot


def test_where_memory_is_refused_arrays_go_through_the_pipe() -> None:
    memory = SharedMemory()
    assert memory.descriptor is not None
    os.close(memory.descriptor)
    memory.descriptor = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    fcntl.fcntl(memory.descriptor, F_ADD_SEALS, F_SEAL_GROW)
    array, slot = sent(memory, np.arange(100_000))
    assert np.array_equal(array, np.arange(100_000))
    assert memory.take() == slot


def test_photos_that_are_held_on_to_stay_what_they_are(make_job: Any, tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", images=40)
    pool = DecodingPool(2, Preparing(Selection(), 10**6))
    with pool:
        images = list(open_source(job.folder / "masks.json", job.folder / "images").unread())  # type: ignore[attr-defined]
        held = [pool.submit(image).result().pixels for image in images]
    for image, pixels in zip(images, held, strict=True):
        assert np.array_equal(pixels, read_image(image.path).pixels)


def test_workers_load_neither_pytorch_nor_opencv(job: Any) -> None:
    images = list(open_source(job.folder / "masks.json", job.folder / "images").unread())  # type: ignore[attr-defined]
    with DecodingPool(1, Preparing(Selection(), 10**6)) as pool:
        assert len(pool.submit(images[0]).result().chosen) == 3
        (worker,) = pool.processes
        loaded = Path(f"/proc/{worker}/maps").read_text()
    assert "numpy" in loaded
    assert not [name for name in ("torch", "cv2", "pycocotools", "scipy") if f"/{name}" in loaded]
