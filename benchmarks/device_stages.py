"""The part of ``device_check.py`` that times the stages of the queue, on a device and with the device left out."""

from __future__ import annotations

import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any
from unittest import mock

import click
import numpy as np
import torch
from device_inputs import CLASSES, SIZES, Scene, Session, make_scene, one_line, prepared_batch

from transfiner_refine.masks import Mask
from transfiner_refine.refine import device_queue
from transfiner_refine.refine.device_pass import Group, GroupResult, refine_group
from transfiner_refine.refine.device_queue import BatchedPasses, fitting_batch
from transfiner_refine.refine.engine import SizeClass
from transfiner_refine.refine.torch_engine import TorchEngine

BATCH_PIXELS = 1 << 27  # of the images of one call, as in the pipeline
STAGES = ("upload", "queue", "tables", "launch", "read back", "wait", "results", "encode")


class StageClock:
    """Wall and CPU time of each stage on this thread, without that of stages inside it, and device time."""

    def __init__(self, run: Session) -> None:
        self.wall: dict[str, float] = defaultdict(float)
        self.cpu: dict[str, float] = defaultdict(float)
        self.batches: list[int] = []
        self._run, self._inner = run, [[0.0, 0.0]]
        self._events: list[tuple[Any, Any]] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._inner.append([0.0, 0.0])
        wall, cpu = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            wall, cpu = time.perf_counter() - wall, time.thread_time() - cpu
            inner = self._inner.pop()
            self.wall[name] += wall - inner[0]
            self.cpu[name] += cpu - inner[1]
            self._inner[-1][0] += wall
            self._inner[-1][1] += cpu

    @contextmanager
    def around_queue(self) -> Iterator[None]:
        """Times the stages of ``BatchedPasses`` while the block runs."""
        work, pending = device_queue._Work, device_queue._Pending
        named = [(work, "__init__", "upload"), (work, "launch", "tables"), (work, "finish", "results"),
                 (pending, "read", "wait"), (pending, "__init__", "read back")]  # fmt: skip
        patches = [
            mock.patch.object(owner, name, self._timed(getattr(owner, name), stage))
            for owner, name, stage in named
        ]
        patches.append(mock.patch.object(device_queue, "refine_group", self._launch))
        for patch in patches:
            patch.start()
        try:
            yield
        finally:
            for patch in patches:
                patch.stop()

    def _timed(self, function: Callable[..., Any], stage: str) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            with self.stage(stage):
                return function(*arguments, **options)

        return timed

    def _launch(self, engine: TorchEngine, group: Group, pixels: Any, table: Any, *rest: Any) -> GroupResult:
        self.batches.append(len(table))
        with self.stage("launch"):
            if not self._run.is_cuda:
                result = refine_group(engine, group, pixels, table, *rest)
                self._run.synchronise()
                return result
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record(torch.cuda.current_stream(self._run.device))
            result = refine_group(engine, group, pixels, table, *rest)
            stop.record(torch.cuda.current_stream(self._run.device))
            self._events.append((start, stop))
            return result

    @property
    def device(self) -> float:
        """Seconds between the first and the last operator of each batch on the device's stream."""
        self._run.synchronise()
        if not self._run.is_cuda:
            return self.wall["launch"]
        return sum(start.elapsed_time(stop) for start, stop in self._events) / 1e3


def check_stages(run: Session) -> Any:
    """Speed by stage for sizes of images and numbers of instances."""
    sizes, counts = SIZES, (1, 10, 100, 300)
    if run.small:
        sizes, counts = {"160p": (160, 220)}, (1, 4)
    engine = run.engine()
    batch_size = 4 if run.small else fitting_batch(run.device)
    passes = BatchedPasses(engine, batch_size, tiles=True)
    found: dict[str, Any] = {}
    _say_head(f"{engine.precision}, up to {batch_size} at a time")
    for count, (label, size) in product(counts, sizes.items()):
        name = f"{label} × {count}"
        if not run.has_time(name):
            break
        most = max(1, min(-(-batch_size // count), BATCH_PIXELS // (size[0] * size[1])))
        found[name] = _guarded(run, name, passes, make_scene(size, most, count))
    return found


def check_variants(run: Session) -> Any:
    """Settings of the queue at ten instances an image: batches, canvases, instances a call, cuDNN's search."""
    size, images = (SIZES["480p"], 52) if not run.small else ((160, 220), 1)
    usual = 512 if not run.small else 4
    found: dict[str, Any] = {}
    _say_head("as it is, then one setting changed")
    scene = make_scene(size, images, 10 if not run.small else 2)
    many = Scene(scene.images * 4, scene.masks * 4, [i + images * k for k in range(4) for i in scene.owner])
    engine, usually = run.engine(), {"_AHEAD": device_queue._AHEAD}
    variants: dict[str, tuple[dict[str, Any], int, Scene]] = {
        "as it is": (usually, usual, scene),
        "canvas 128": ({"_SMALLEST_CANVAS": 128}, usual, scene),
        "canvas 256": ({"_SMALLEST_CANVAS": 256}, usual, scene),
        "batch 128": (usually, usual // 4, scene),
        "batch 256": (usually, usual // 2, scene),
        "4 times a call": (usually, usual, many),
        "4 ahead": ({"_AHEAD": 4}, usual, scene),
        "cudnn.benchmark": (usually, usual, scene),
    }
    for name, (settings, batch_size, given) in list(variants.items())[: 2 if run.small else None]:
        if not run.has_time(name):
            break
        torch.backends.cudnn.benchmark = name == "cudnn.benchmark"
        try:
            with mock.patch.multiple(device_queue, **settings):
                passes = BatchedPasses(engine, batch_size, tiles=True)
                found[name] = _guarded(run, name, passes, given)
        finally:
            torch.backends.cudnn.benchmark = False
    return found


def _say_head(what: str) -> None:
    head = ("inst/s", "images/s", "batches", "device", *STAGES, "cpu")
    click.echo(f"  {what}; ms an instance: on the device, wall of each stage of the host, CPU of all threads")
    click.echo(f"{'':16}{'images':>7}{'masks':>7}" + "".join(f"{each:>10}" for each in head))


def _guarded(run: Session, name: str, passes: BatchedPasses, scene: Scene) -> dict[str, Any]:
    """``_timed_call``; what goes wrong is said and does not stop the others."""
    try:
        return _timed_call(run, name, passes, scene)
    except Exception as error:
        click.echo(f"{name:16}{one_line(error)}")
        run.synchronise()  # raises where the device no longer answers
        if run.is_cuda:
            torch.cuda.empty_cache()
        return {"error": one_line(error)}


def _timed_call(run: Session, name: str, passes: BatchedPasses, scene: Scene) -> dict[str, Any]:
    """Times calls of the queue by stage, once warm."""
    images, masks = len(scene.images), len(scene.masks)
    passes.refine(*scene)
    run.synchronise()
    clock, repeats = StageClock(run), 1 if run.small else 3
    wall, cpu = time.perf_counter(), time.process_time()
    with clock.around_queue():
        for _ in range(repeats):
            with clock.stage("queue"):
                refined = passes.refine(*scene)
            with clock.stage("encode"):
                Mask.encode([mask for mask in refined if isinstance(mask, Mask)])
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    done = repeats * masks
    each = {"device": 1e3 * clock.device / done} | {s: 1e3 * clock.wall[s] / done for s in STAGES}
    batches = clock.batches[: len(clock.batches) // repeats]
    cells = "".join(f"{value:10.3f}" for value in (*each.values(), 1e3 * cpu / done))
    rates = f"{done / wall:10.1f}{repeats * images / wall:10.2f}{len(batches):10}"
    click.echo(f"{name:16}{images:7}{masks:7}{rates}{cells}")
    return {
        "images": images, "masks": masks, "instances a second": done / wall,
        "images a second": repeats * images / wall, "batches": batches, "cpu ms": 1e3 * cpu / done,
        "ms": each, "host ms": {s: 1e3 * clock.cpu[s] / done for s in STAGES},
    }  # fmt: skip


@torch.inference_mode()
def check_memory(run: Session) -> Any:
    """Peak memory of one batch by size class and batch size."""
    batches = (2,) if run.small else (64, 128, 256, 512)
    engine, found = run.engine(), {}
    large = ("1024 canvas", Group(SizeClass(5, True), 1024, True, SizeClass(4, False), False), 900)
    click.echo(
        f"  {engine.precision}; GiB, MiB an RoI, bytes a pixel of canvas, ms a batch, of which launching"
    )
    for (label, group, side), count in product([*CLASSES, large][: 1 if run.small else None], batches):
        share = 1 if group.window is None else 4
        count //= share  # as the queue does
        name = f"{label}, {count} RoIs"
        if not run.has_time(name):
            break
        try:
            arguments = prepared_batch(run, group, side, count)
            refine_group(engine, group, *arguments)
            run.synchronise()
            before = 0
            if run.is_cuda:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(run.device)
                before = torch.cuda.memory_allocated(run.device)
            start = time.perf_counter()
            refine_group(engine, group, *arguments)
            launched = time.perf_counter() - start
            run.synchronise()
            total, used = time.perf_counter() - start, _peak_bytes(run) - before
        except Exception as error:
            click.echo(f"  {name:28}{one_line(error)}")
            if run.is_cuda:
                torch.cuda.empty_cache()
            continue
        found[name] = {"bytes": used, "ms": 1e3 * total, "launch ms": 1e3 * launched}
        click.echo(f"  {name:28}{used / 2**30:8.2f}{used / 2**20 / count:10.1f}{used / count / group.canvas**2:10.0f}"
                   f"{1e3 * total:10.1f}{1e3 * launched:10.1f}")  # fmt: skip
    return found


def _peak_bytes(run: Session) -> int:
    if run.is_cuda:
        return torch.cuda.max_memory_allocated(run.device)
    if run.device.type == "mps":
        return torch.mps.driver_allocated_memory()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def check_host(run: Session) -> Any:
    """Time of the feeding thread with the device's work left out: results are the given masks."""
    count, engine = (128 if run.small else 512), TorchEngine(run.network, "cpu", "fp32")
    spent, found = [0.0], {}
    height, width = SIZES["480p"]

    def given_masks(
        _engine: Any, group: Group, _pixels: Any, table: Any, edges: Any, _soft: Any, room: int
    ) -> GroupResult:
        start = time.thread_time()
        batch, is_edge = len(table), edges < height * width
        counts = is_edge.sum(1)
        ends = torch.zeros(2, group.canvas * room * batch, dtype=torch.int64)
        ends[:, : int(counts.sum())] = edges[is_edge]
        numbers = torch.zeros(batch, 9, dtype=torch.int64)
        if group.first and group.window is None:
            numbers[::5, 1] = height * width  # one in five goes through a second pass
        numbers[:, 2] = 1
        numbers[:, 3:5], numbers[:, 5:7] = table[:, 3:5] + 8, table[:, 3:5] + table[:, 5:7] - 8
        numbers[:, 7:] = counts[:, None]
        spent[0] += time.thread_time() - start
        return GroupResult(numbers, ends, torch.zeros(0))

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    click.echo("  one thread, 640×480, 10 instances an image, batches of 256; CPU ms an instance")
    for side, box in ((100, 72), (225, 180), (450, 350)):
        scene = make_scene((height, width), -(-count // 10), 10, (box, box))
        scene = Scene(scene.images, scene.masks[:count], scene.owner[:count])
        for mask in scene.masks:
            _ = mask.area, mask.box  # the processes that prepare images compute them
        with mock.patch.object(device_queue, "free_bytes", return_value=60 << 30):  # as on a GPU
            passes = BatchedPasses(engine, 256, tiles=True)
        totals, clocks = [], []
        for _ in range(2 if run.small else 7):
            clock = StageClock(run)
            with clock.around_queue(), mock.patch.object(device_queue, "refine_group", given_masks):
                spent[0], start = 0.0, time.thread_time()
                with clock.stage("queue"):
                    refined = passes.refine(*scene)
                totals.append(1e3 * (time.thread_time() - start - spent[0]) / count)
            clock.cpu["tables"] -= spent[0]
            clocks.append(clock)
        start = time.thread_time()
        Mask.encode([mask for mask in refined if isinstance(mask, Mask)])
        encode = 1e3 * (time.thread_time() - start) / count
        best = clocks[int(np.argmin(totals))]
        stages = {
            name: 1e3 * best.cpu[name] / count
            for name in ("upload", "queue", "tables", "read back", "results")
        }
        found[f"{side} px"] = {
            "feeding": min(totals),
            "median": float(np.median(totals)),
            "encode": encode,
            **stages,
        }
        click.echo(f"  RoI of {side} px: {min(totals):.3f} (median {np.median(totals):.3f}): "
                   + ", ".join(f"{name} {each:.3f}" for name, each in stages.items())
                   + f"; encoding {encode:.3f} on its own thread")  # fmt: skip
    torch.set_num_threads(threads)
    return found
