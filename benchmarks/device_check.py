"""Checks the device path on a machine in one command: are its masks the CPU's, how fast is it, where does time go.

    python benchmarks/device_check.py --json check.json           the GPU if there is one, else the CPU
    python benchmarks/device_check.py --host                      host time with the device's work left out

Checks: masks against the CPU, speed by stage, variants of the queue, the whole run on files, the kernels that take most
time, peak memory, host time; with ``--graphs`` and ``--compile`` what CUDA graphs and ``torch.compile`` would save.
Every check prints as it goes and is guarded: its error is one line, and the others run all the same, in a new process
where the device or the check itself no longer answers. What does not fit into ``--minutes`` is skipped by name. Photos
and masks are generated, but for the example photos in the comparison with the CPU.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from device_inputs import CLASSES, SIZES, Session, examples, make_scene, one_line, prepared_batch
from device_stages import check_host, check_memory, check_stages, check_variants

from transfiner_refine import load_refiner
from transfiner_refine.device import choose_device
from transfiner_refine.masks import Mask
from transfiner_refine.refine.device_pass import Group, GroupResult, refine_group
from transfiner_refine.refine.device_queue import BatchedPasses
from transfiner_refine.refine.engine import SizeClass
from transfiner_refine.refine.instance import harden

GRACE = 20.0  # seconds beyond its share after which a check counts as hanging
ALLOWED = {"fp32": 0.1, "bf16": 0.5, "fp16": 0.5}  # mean of the pixels that may differ from the CPU, %


def check_masks(run: Session) -> Any:
    """Masks of the device against fp32 on the CPU, one instance at a time."""
    drawn = make_scene((240, 320), 1, 2, (50, 80), drawn=True)
    scenes = {"generated": drawn}
    if not run.small:
        large = make_scene((1080, 1920), 2, 8, (60, 800), drawn=True)
        scenes = {"examples": examples(), "generated 480p": make_scene(SIZES["480p"], 3, 8, drawn=True)}
        scenes["generated 1080p"] = large
    reference = load_refiner(run.weights, device="cpu", engine="torch", precision="fp32")
    found: dict[str, Any] = {}
    beyond = []
    head = ("masks", "changed by refining", "differ, mean", "differ, worst", "IoU, mean", "IoU, worst")
    click.echo(f"  pixels in % of the mask's box\n{'':28}" + "".join(f"{each:>20}" for each in head))
    for label, scene in scenes.items():
        if not run.has_time(label):
            break
        windows = [mask.decode() for mask in scene.masks]
        expected = [mask.paste() for mask in reference.refine_windows(scene.images, windows, scene.owner)]
        for precision in ("fp32", "bf16", "fp16"):
            try:
                passes = BatchedPasses(run.engine(precision), 64, tiles=True)
                refined = passes.refine(scene.images, scene.masks, scene.owner)
            except Exception as error:
                click.echo(f"{label + ', ' + precision:26}{one_line(error)}")
                continue
            apart, ious, changed = [], [], []
            for mask, true, given in zip(refined, expected, windows, strict=True):
                there = (mask.decode() if isinstance(mask, Mask) else harden(mask)).paste()
                different = np.count_nonzero(there != true)
                box_area = max(1, np.count_nonzero(true.any(0)) * np.count_nonzero(true.any(1)))
                apart.append(100 * different / box_area)
                changed.append(100 * np.count_nonzero(true != given.paste()) / box_area)
                ious.append(1 - different / max(1, np.count_nonzero(there | true)))
            values = (np.mean(changed), np.mean(apart), max(apart), np.mean(ious), min(ious))
            numbers = [float(each) for each in values]
            found[f"{label}, {precision}"] = dict(zip(head[1:], numbers, strict=True))
            click.echo(
                f"{label + ', ' + precision:28}{len(apart):20}" + "".join(f"{n:20.4f}" for n in numbers)
            )
            if numbers[1] > ALLOWED[precision]:
                beyond.append(f"{label}, {precision}: {numbers[1]:.3f} %, allowed {ALLOWED[precision]} %")
    if beyond:
        click.echo("  MASKS DIFFER: " + "; ".join(beyond))
        found["failed"] = beyond
    return found


def check_run(run: Session) -> Any:
    """The whole run on files: COCO results over 640×480 JPEGs, decoding processes, journal and output."""
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from pipeline import make_input

    from transfiner_refine.pipeline import refine_files

    inputs = [(2, 2)] if run.small else [(400, 10), (60, 100)]
    refiner = load_refiner(run.weights, device=str(run.device), engine="torch")
    found: dict[str, Any] = {}
    for images, masks in inputs:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make_input(folder, images, masks)
            for attempt in range(1 if run.small else 2):  # the first warms up
                label = f"{images} images × {masks}, run {attempt + 1}"
                if not run.has_time(label):
                    break
                wall, cpu = time.perf_counter(), time.process_time()
                summary = refine_files(
                    folder / "images",
                    folder / "masks.json",
                    folder / "out.json",
                    refiner=refiner,
                    overwrite=True,
                )
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                found[label] = {"instances": summary.refined / wall, "images a second": images / wall,
                                "cpu ms": 1e3 * cpu / summary.instances, "failed": summary.failed}  # fmt: skip
                click.echo(
                    f"  {label}: {summary.refined / wall:.0f} instances/s, {images / wall:.1f} images/s, "
                    f"{1e3 * cpu / summary.instances:.3f} ms CPU an instance in the main process, "
                    f"{summary.failed} failed"
                )
    return found


def time_of(run: Session, function: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Milliseconds of a call once warm: until its end on the device, and until it returned on the host."""
    for _ in range(2):
        function()
    run.synchronise()
    start, returned = time.perf_counter(), 0.0
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        returned += time.perf_counter() - begin
    run.synchronise()
    return 1e3 * (time.perf_counter() - start) / repeats, 1e3 * returned / repeats


@torch.inference_mode()
def check_profile(run: Session) -> Any:
    """The operators or kernels that take most of a batch's time."""
    from torch.profiler import ProfilerActivity, profile

    engine, found = run.engine(), {}
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if run.is_cuda else [])
    for label, group, side in [CLASSES[0], CLASSES[3]][: 1 if run.small else None]:
        if not run.has_time(label):
            break
        count = 2 if run.small else 256 if group.window is None else 64
        arguments = prepared_batch(run, group, side, count)
        refine_group(engine, group, *arguments)
        run.synchronise()
        with profile(activities=activities) as profiled:
            start = time.perf_counter()
            refine_group(engine, group, *arguments)
            launched = time.perf_counter() - start
            run.synchronise()
            wall = time.perf_counter() - start
        rows = []
        for row in profiled.key_averages():
            spent = getattr(row, "self_device_time_total", 0.0) if run.is_cuda else row.self_cpu_time_total
            is_kernel = not run.is_cuda or str(row.device_type).endswith("CUDA")
            if is_kernel and spent:
                rows.append((spent / 1e3, row.count, row.key))
        rows.sort(reverse=True)
        operators = sorted(
            ((getattr(row, "self_device_time_total", 0.0) / 1e3, row.count, row.key)
             for row in profiled.key_averages() if row.key.startswith("aten::")), reverse=True,
        )[: 10 if run.is_cuda else 0]  # fmt: skip
        total, calls = sum(spent for spent, *_ in rows), sum(count for _, count, _ in rows)
        click.echo(
            f"  {label}, {count} RoIs, {engine.precision}: {wall * 1e3:.1f} ms with the profiler, "
            f"{launched * 1e3:.1f} until launched, {total:.1f} in {calls} kernels"
        )
        for spent, times, key in (*rows[:15], *operators):
            click.echo(
                f"    {spent:8.2f} ms {100 * spent / max(total, 1e-9):5.1f} % {times:6} ×  {_short(key)}"
            )
        found[label] = {"wall ms": 1e3 * wall, "launch ms": 1e3 * launched, "kernels ms": total,
                        "kernels": calls, "top": rows[:30], "operators": operators}  # fmt: skip
    return found


def _short(kernel: str) -> str:
    """A kernel's name without what all of them have."""
    for part in ("void ", "at::native::", "(anonymous namespace)::"):
        kernel = kernel.replace(part, "")
    return kernel[:100]


@torch.inference_mode()
def check_graphs(run: Session) -> Any:
    """Each size class' batch launched operator by operator, and replayed as a CUDA graph."""
    engine, found = run.engine(), {}
    counts = (2,) if run.small else (16, 128)
    click.echo(f"  {engine.precision}; ms a batch: eager, of which launching, as a graph, capturing it")
    for count, (label, group, side) in product(counts, CLASSES[: 1 if run.small else None]):
        count = max(1, count // (1 if group.window is None else 4))
        name = f"{label}, {count} RoIs"
        if not run.has_time(name):
            break
        arguments = prepared_batch(run, group, side, count)

        def batch(group: Group = group, arguments: tuple[Any, ...] = arguments) -> GroupResult:
            return refine_group(engine, group, *arguments)

        eager, launch = time_of(run, batch, 1 if run.small else 5)
        text = f"  {name:28}{eager:10.2f}{launch:10.2f}"
        found[name] = {"eager ms": eager, "launch ms": launch}
        try:
            start = time.perf_counter()
            replay, result = _captured(run, batch)
            capturing = 1e3 * (time.perf_counter() - start)
            graph, _ = time_of(run, replay, 5)
            expected = batch()
            same = torch.equal(expected.numbers, result.numbers)
            found[name] |= {"graph ms": graph, "capture ms": capturing, "same": same}
            text += f"{graph:10.2f}{capturing:10.0f}  {'same' if same else 'OTHER'} numbers"
            del replay, result
        except Exception as error:
            text += f"  no graph: {one_line(error)}"
        click.echo(text)
    return found


def _captured(run: Session, batch: Callable[[], GroupResult]) -> tuple[Callable[[], None], GroupResult]:
    """A CUDA graph of a batch: its replay, and the tensors that this fills."""
    if not run.is_cuda:
        raise RuntimeError("CUDA graphs need CUDA")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        batch()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = batch()
    return graph.replay, result


@torch.inference_mode()
def check_compile(run: Session) -> Any:
    """The step of a size class through ``torch.compile``."""
    engine, found = run.engine(), {}
    for label, group, _ in (CLASSES[0], CLASSES[4], CLASSES[3]):
        if not run.has_time(label):
            break
        count, side = (2 if run.small else 64), group.size.side(engine.config)
        pixels = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, device=run.device)
        coarse = torch.rand(count, 1, side, side, device=run.device).round()

        def step(size: SizeClass = group.size, pixels: Any = pixels, coarse: Any = coarse) -> object:
            return engine.run(size, pixels, coarse)

        eager, _ = time_of(run, step, 5)
        start = time.perf_counter()
        engine._steps[group.size].compile(dynamic=False)
        step()
        run.synchronise()
        seconds = time.perf_counter() - start
        compiled, _ = time_of(run, step, 5)
        found[label] = {"eager ms": eager, "compiled ms": compiled, "compile s": seconds}
        click.echo(
            f"  {label}, {count} RoIs: {eager:.2f} ms eager, {compiled:.2f} compiled, in {seconds:.0f} s"
        )
    return found


# seconds of eight minutes that each check may take, in the order in which they run
CHECKS: dict[str, tuple[Callable[[Session], Any], float]] = {
    "masks": (check_masks, 80),
    "stages": (check_stages, 110),
    "run": (check_run, 60),
    "variants": (check_variants, 40),
    "profile": (check_profile, 40),
    "memory": (check_memory, 40),
    "graphs": (check_graphs, 60),
    "host": (check_host, 20),
    "compile": (check_compile, 120),
}


def run_checks(run: Session, names: Sequence[str], scale: float) -> None:
    """Runs checks, each guarded."""
    for position, name in enumerate(names):
        rest, (check, share) = names[position + 1 :], CHECKS[name]
        now = time.monotonic()
        run.until = min(run.deadline, now + scale * share)
        click.echo(f"\n== {name}: {(check.__doc__ or '').splitlines()[0]}")
        if not run.has_time(name):
            run.keep(name, {"skipped": "time"})
            continue
        watch = threading.Timer(run.until + GRACE - now, _go_on, (run, name, rest, "took too long"))
        watch.daemon = True
        watch.start()
        try:
            run.keep(name, check(run))
            run.synchronise()
        except Exception as error:
            click.echo(f"  failed: {one_line(error)}")
            run.keep(name, {"failed": one_line(error)})
        finally:
            watch.cancel()
            watch.join()  # a thread that ends while the interpreter does can abort the process
        try:
            run.synchronise()
        except Exception as error:  # after an illegal access nothing works in this process any more
            _go_on(run, name, rest, one_line(error))
        click.echo(f"  ({time.monotonic() - now:.0f} s)")


def _go_on(run: Session, name: str, rest: Sequence[str], reason: str) -> None:
    """Leaves this process, which is of no more use, for one that runs the other checks."""
    click.echo(f"  {name} given up: {reason}")
    run.keep(name, run.results.get(name) or {"failed": reason})
    sys.stdout.flush()
    left = (run.deadline - time.monotonic()) / 60
    if not rest or left <= 0:
        os._exit(1)
    options = [f"--device={run.device}", f"--weights={run.weights}", f"--minutes={left:.2f}", "--resumed"]
    options += ["--small"] * run.small + [f"--only={each}" for each in rest]
    options += [] if run.json_path is None else [f"--json={run.json_path}"]
    os.execv(sys.executable, [sys.executable, __file__, *options])


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--weights", default="lite", show_default=True)
@click.option("--device", default="auto", show_default=True)
@click.option("--minutes", default=8.0, show_default=True, help="Checks that do not fit are skipped.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Written after each check.")
@click.option("--only", multiple=True, type=click.Choice(list(CHECKS)), help="These checks; may be repeated.")
@click.option("--graphs", is_flag=True, help="Try CUDA graphs too.")
@click.option("--compile", "compiled", is_flag=True, help="Try torch.compile too.")
@click.option("--host", is_flag=True, help="As --only host.")
@click.option("--small", is_flag=True, help="Few and small inputs; always so on a CPU, but for --host.")
@click.option("--resumed", is_flag=True, hidden=True)
def main(
    weights: str, device: str, minutes: float, json_path: Path | None, only: tuple[str, ...],
    graphs: bool, compiled: bool, host: bool, small: bool, resumed: bool,
) -> None:  # fmt: skip
    """Compare a device with the CPU and time its stages."""
    begin = time.monotonic()
    target = choose_device(device)
    left_out = {"graphs": not graphs, "compile": not compiled}
    names = ("host",) if host else only or tuple(name for name in CHECKS if not left_out.get(name))
    names = tuple(name for name in CHECKS if name in names)
    is_host_only = names == ("host",)
    run = Session(
        target,
        weights,
        small or (target.type == "cpu" and not is_host_only),
        begin + 60 * minutes - GRACE,
        json_path,
    )
    if resumed and json_path is not None and json_path.exists():
        run.results = json.loads(json_path.read_text())
    card = f"{torch.get_num_threads()} threads"
    if target.type == "cuda":
        capability = torch.cuda.get_device_properties(target)
        card = f"{capability.name}, {capability.total_memory / 2**30:.0f} GiB"
    machine = f"{target} ({card}), {os.cpu_count()} cores, torch {torch.__version__}, weights {weights}"
    click.echo(machine)
    run.keep("machine", machine)
    run_checks(run, names, minutes / 8 if not resumed else 1.0)
    raise SystemExit(int(any("failed" in found for found in run.results.values())))


if __name__ == "__main__":
    main()
