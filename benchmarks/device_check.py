"""Checks a machine in a few minutes: are its masks the CPU's, how fast is each stage, how much memory is used.

    python benchmarks/device_check.py                 the GPU if there is one, else the CPU
    python benchmarks/device_check.py --device cuda --instances 256

Runs on the photos and coarse masks in ``examples/``, repeated. Prints, for fp32 and for half precision where the
device has it: share of pixels that differ from fp32 on the CPU, instances per second, milliseconds per instance
by stage, peak memory. Exit code 1 if the masks differ by more than the stated share.
"""

from __future__ import annotations

import json
import resource
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray

from transfiner_refine import Refiner, load_refiner
from transfiner_refine.device import choose_device
from transfiner_refine.formats.images import read_image
from transfiner_refine.formats.rle import RleMask
from transfiner_refine.types import MaskWindow

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
ALLOWED = {"fp32": 1e-4, "bf16": 5e-3, "fp16": 5e-3}  # share of the RoI's pixels that may differ from the CPU
STAGES = ("backbone", "top_down", "detector.trunk", "dense", "encoders", "sequence", "inherit", "decoder")

Inputs = tuple[list[NDArray[np.uint8]], list[MaskWindow], list[int]]


def examples() -> Inputs:
    """Photos, coarse masks and the photo of each mask."""
    images: dict[str, int] = {}
    photos: list[NDArray[np.uint8]] = []
    windows, owners = [], []
    files = {
        i["id"]: i["file_name"] for i in json.loads((EXAMPLES / "image_info.json").read_text())["images"]
    }
    for record in json.loads((EXAMPLES / "detections.json").read_text()):
        name = files[record["image_id"]]
        if name not in images:
            images[name] = len(photos)
            photos.append(read_image(EXAMPLES / "images" / name).pixels)
        rle = record["segmentation"]
        windows.append(RleMask(tuple(rle["size"]), rle["counts"]).decode())
        owners.append(images[name])
    return photos, windows, owners


@contextmanager
def timed_stages(refiner: Refiner) -> Iterator[dict[str, float]]:
    """Seconds spent in each stage's modules while the block runs."""
    seconds: dict[str, float] = defaultdict(float)
    begun: dict[tuple[str, int], float] = {}  # by stage and thread: on a CPU several instances are under way
    hooks = []

    def now() -> float:
        if refiner.device.type == "cuda":
            torch.cuda.synchronize(refiner.device)
        return time.perf_counter()

    for stage in STAGES:
        top = refiner.network.get_submodule(stage)
        for module in top if isinstance(top, torch.nn.ModuleList) and stage != "sequence" else [top]:

            def before(*_: Any, stage: str = stage) -> None:
                begun[stage, threading.get_ident()] = now()

            def after(*_: Any, stage: str = stage) -> None:
                seconds[stage] += now() - begun[stage, threading.get_ident()]

            hooks += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        yield seconds
    finally:
        for hook in hooks:
            hook.remove()


def peak_memory(device: torch.device) -> str:
    """Most memory in use so far: of the GPU, or of this process."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 2**20:.0f} MiB on the GPU"
    scale = 2**20 if sys.platform == "darwin" else 2**10
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale:.0f} MiB in the process"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--weights", default="lite", show_default=True)
@click.option("--device", default="auto", show_default=True)
@click.option("--instances", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: PyTorch's]")
def main(weights: str, device: str, instances: int, batch_size: int, threads: int | None) -> None:
    """Compare a device with the CPU and time its stages."""
    if threads is not None:
        torch.set_num_threads(threads)
    target = choose_device(device)
    name = (
        torch.cuda.get_device_name(target)
        if target.type == "cuda"
        else f"{torch.get_num_threads()} CPU threads"
    )
    photos, windows, owners = examples()
    reference = load_refiner(weights, device="cpu", precision="fp32").refine_windows(photos, windows, owners)
    repeat = -(-instances // len(windows))
    many, many_owners = (windows * repeat)[:instances], (owners * repeat)[:instances]
    click.echo(f"{name}, torch {torch.__version__}, weights {weights}, {instances} instances")
    failed = False
    for precision in ("fp32", "bf16", "fp16") if target.type == "cuda" else ("fp32", "bf16"):
        refiner = load_refiner(weights, device=str(target), precision=precision, batch_size=batch_size)
        masks = refiner.refine_windows(photos, windows, owners)
        different = [np.mean(a.values != b.values) for a, b in zip(masks, reference, strict=True)]
        failed |= max(different) > ALLOWED[precision]
        begin = time.perf_counter()
        refiner.refine_windows(photos, many, many_owners)
        seconds = time.perf_counter() - begin
        with timed_stages(refiner) as stages:
            refiner.refine_windows(photos, many, many_owners)
        click.echo(
            f"\n{precision}: {instances / seconds:.1f} instances/s, peak {peak_memory(target)}\n"
            f"  pixels that differ from fp32 on the CPU: mean {100 * np.mean(different):.4f} %, "
            f"worst mask {100 * max(different):.4f} % (allowed {100 * ALLOWED[precision]:.2f} %)"
        )
        cores = torch.get_num_threads() if target.type == "cpu" else 1
        for stage, spent in [*stages.items(), ("the rest", cores * seconds - sum(stages.values()))]:
            click.echo(
                f"  {stage:<16}{1000 * spent / instances:8.2f} ms an instance{', on one core' * (cores > 1)}"
            )
    raise SystemExit(int(failed))


if __name__ == "__main__":
    main()
