"""Quality and CPU time of our engines, of another checkout of this project and of other refiners, on the same masks.

    python benchmarks/speed.py --data DEVVAL --baseline CHECKOUT --json speed.json --plots speed/
    python benchmarks/speed.py --data DEVVAL --images 5 --kind sim --ours torch-fp32 --no-peers
    python benchmarks/speed.py --data DEVVAL --ours 'no tiles={"precision": "fp32", "tiles": false}'

Masks, measures and the instances that count are devval.py's; only those instances are refined, one at a time. Each is
refined by every method before the next, in random order, so that a busy machine slows all alike. Times are CPU
milliseconds of one thread without reading the image; on a shared machine their ratios count. With a load of five to
eight on two cores, the same code on both sides came to ratios of 0.93 to 1.14 over 22 to 138 instances; to tell
smaller differences, take more instances or a quiet machine.

Stages of our engines are timed on 24 instances more, each beside its floating-point operations and the time they take
at the measured peak.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
from devsets import DevSet, check_kinds, load_dev_sets
from methods import BASELINE, Method, Stages, commit_of, load_baseline, load_ours, load_peers
from numpy.typing import NDArray
from peers import PEERS, crop_box
from tqdm import tqdm

from transfiner_refine import __version__
from transfiner_refine.errors import MaskRefineError
from transfiner_refine.evaluation.tables import Table, points
from transfiner_refine.masks import MaskWindow

OURS = ("onnx-int8", "onnx-fp32", "torch-fp32")
KINDS = ("maskhead", "sim", "poly")
_DEFAULT_PEERS = tuple(name for name in PEERS if name != "joint bilateral")  # many times slower, no better
_STAGE_INSTANCES = 24  # that are refined once more to be timed by stage
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Instance:
    """One refined instance.

    Attributes:
        dev_set, kind, annotation_id: which.
        outline: length of the coarse mask's outline, pixels.
        roi_side: longer side of the coarse mask's box with its margin, pixels.
        ms: CPU milliseconds by method.
    """

    dev_set: str
    kind: str
    annotation_id: int
    outline: float
    roi_side: int
    ms: dict[str, float]


@dataclass(frozen=True)
class Score:
    """What one method makes of one kind of coarse mask of one set; shares in [0, 1].

    Attributes:
        iou, boundary_iou: means.
        worse: share of the instances that lost more than half a point of IoU; None for the coarse masks.
        ms: mean CPU milliseconds an instance; None for the coarse masks.
        ratio: of the baseline's milliseconds; None without a baseline.
    """

    iou: float
    boundary_iou: float
    worse: float | None = None
    ms: float | None = None
    ratio: float | None = None


@dataclass(frozen=True)
class Group:
    """Scores on one kind of coarse mask of one set, or their mean over several; methods by name."""

    name: str
    count: int
    coarse: Score
    methods: dict[str, Score]


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, help=__doc__.split("\n")[0])
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option(
    "--ours",
    multiple=True,
    default=OURS,
    show_default=True,
    help="ENGINE-PRECISION, PRECISION, or NAME={keyword arguments of load_refiner, JSON}.",
)
@click.option("--weights", help="Name or path, for ours.  [default: the shipped ones]")
@click.option(
    "--baseline",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Another checkout of this project.",
)
@click.option("--peer", "peers", type=click.Choice(list(PEERS)), multiple=True, default=_DEFAULT_PEERS)
@click.option("--no-peers", is_flag=True, help="No other refiners.")
@click.option("--set", "sets", multiple=True, help="Only this set; may be given several times.")
@click.option("--kind", "kinds", multiple=True, help=f"As --set.  [default: {', '.join(KINDS)}]")
@click.option("--images", type=click.IntRange(1), help="Only so many images of each set, evenly spaced.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Numbers.")
@click.option("--markdown", type=click.Path(dir_okay=False, path_type=Path), help="The tables.")
@click.option("--plots", type=click.Path(file_okay=False, path_type=Path), help="Folder for two plots.")
def main(
    data: Path,
    ours: Sequence[str],
    weights: str | None,
    baseline: Path | None,
    peers: Sequence[str],
    no_peers: bool,
    sets: Sequence[str],
    kinds: Sequence[str],
    images: int | None,
    json_file: Path | None,
    markdown: Path | None,
    plots: Path | None,
) -> None:
    cv2.setNumThreads(1)
    if hasattr(
        os, "sched_setaffinity"
    ):  # else each process keeps to a core of its own, one busier than the other
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    headline = _headline(baseline)
    with ExitStack() as stack:
        try:
            dev_sets = list(load_dev_sets(data, sets, images))
            check_kinds(dev_sets, kinds)
            kinds = kinds or KINDS
            methods = list(load_ours(ours, weights, stack))
            if baseline is not None:
                methods.append(load_baseline(baseline, stack))
            if not no_peers:
                methods += load_peers(peers)
            if not methods:
                raise click.ClickException("nothing to compare")
            groups, instances = [], []
            for dev_set in dev_sets:
                for kind in dev_set.kinds(kinds):
                    group, measured = _refined(dev_set, kind, methods)
                    groups += [group] if group.count else []
                    instances += measured
            stages = _stages(dev_sets, kinds, methods)
        except MaskRefineError as error:
            raise click.ClickException(str(error)) from error
    groups += _means(groups, kinds)
    peak = peak_flops()
    headline += f", {peak / 1e9:.0f} GFLOP/s in a float32 matrix product"
    tables = [_table(groups), *(_stage_table(name, each, peak) for name, each in stages.items())]
    click.echo("\n\n".join([headline, *(table.text() for table in tables)]))
    if markdown is not None:
        text = "\n\n".join([headline, *(table.markdown() for table in tables)])
        markdown.write_text(text + "\n", encoding="utf-8")
    if json_file is not None:
        content = {
            "headline": headline,
            "peak_flops": peak,
            "groups": [asdict(group) for group in groups],
            "stages": stages,
            "instances": [asdict(instance) for instance in instances],
        }
        json_file.write_text(json.dumps(content, indent=1), encoding="utf-8")
    if plots is not None:
        plots.mkdir(parents=True, exist_ok=True)
        shown = [method.name for method in methods if not method.is_peer]
        _plot(plots / "ms_by_outline.png", instances, shown, "outline", "outline of the coarse mask, px")
        _plot(plots / "ms_by_roi_side.png", instances, shown, "roi_side", "side of the RoI, px")


def peak_flops(side: int = 1024, rounds: int = 8) -> float:
    """Floating-point operations a second of one core: the best of several float32 matrix products."""
    matrix = np.random.default_rng(0).standard_normal((side, side), np.float32)
    seconds = []
    for _ in range(rounds):
        begin = time.process_time()
        matrix @ matrix
        seconds.append(time.process_time() - begin)
    return 2 * side**3 / min(seconds)


def _headline(baseline: Path | None) -> str:
    """Versions and the machine."""
    processor = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        names = [line for line in information.read_text().splitlines() if line.startswith("model name")]
        processor = names[0].partition(":")[2].strip() if names else processor
    here = Path(__file__).resolve().parent.parent
    other = "" if baseline is None else f", baseline {commit_of(baseline)}"
    return (
        f"transfiner-refine {__version__} {commit_of(here)}{other}, torch {version('torch')}\n"
        f"one thread of {processor}"
    )


def _counted(dev_set: DevSet, kind: str) -> tuple[list[Any], list[Any], Any]:
    """The coarse masks of a kind, those of them that count with their true instances, and their summary."""
    coarse = dev_set.detections(dev_set.coarse_file(kind))
    matches = dev_set.matches(kind, coarse)
    scores = dev_set.scores(matches, coarse)
    counted = [match for match, row in zip(matches, scores.rows, strict=True) if row.counted]
    return coarse, counted, scores.summary["all"].before


def _refined(dev_set: DevSet, kind: str, methods: Sequence[Method]) -> tuple[Group, list[Instance]]:
    """Refines the instances that count with every method."""
    coarse, matches, before = _counted(dev_set, kind)
    after: dict[str, list[MaskWindow]] = {method.name: [] for method in methods}
    instances = []
    for number, (index, image, mask) in enumerate(_inputs(dev_set, kind, coarse, matches)):
        ms = {}
        for turn in np.random.default_rng(number).permutation(len(methods)):
            method = methods[turn]
            window, seconds = method.refine(image, mask)
            after[method.name].append(window)
            ms[method.name] = 1000 * seconds
        x0, y0, x1, y1 = crop_box(mask)
        annotation_id = dev_set.annotations.instances[index].instance_id
        roi_side = max(x1 - x0, y1 - y0)
        instances.append(Instance(dev_set.name, kind, annotation_id, _outline(mask), roi_side, ms))
    scores = {}
    for method in methods:
        summary = dev_set.scores(matches, coarse, after[method.name]).summary["all"]
        assert summary.after is not None
        mean = float(np.mean([instance.ms[method.name] for instance in instances] or [np.nan]))
        scores[method.name] = Score(summary.after.iou, summary.after.boundary_iou, summary.worse, mean)
    first = Score(before.iou, before.boundary_iou)
    return Group(f"{dev_set.name} {kind}", len(instances), first, _with_ratios(scores)), instances


def _inputs(
    dev_set: DevSet, kind: str, coarse: Sequence[Any], matches: Sequence[Any]
) -> Iterator[tuple[int, NDArray[np.uint8], MaskWindow]]:
    """For each match the index of the true instance, the image and the coarse mask."""
    image_id, image = None, np.empty((0, 0, 3), np.uint8)
    label = f"{dev_set.name} {kind}"
    for index, number in tqdm(matches, label, unit="instance", leave=False, disable=None):
        if coarse[number].image_id != image_id:
            image_id = coarse[number].image_id
            image = dev_set.image(image_id)
        yield index, image, coarse[number].mask.decode()


def _outline(mask: MaskWindow) -> float:
    """Length of a mask's outline, pixels."""
    values = np.pad((mask.values >= 0.5).astype(np.uint8), 1)
    contours, _ = cv2.findContours(values, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return float(sum(cv2.arcLength(contour, True) for contour in contours))


def _with_ratios(scores: dict[str, Score]) -> dict[str, Score]:
    """The scores with their milliseconds as a ratio of the baseline's, where there is one."""
    base = scores[BASELINE].ms if BASELINE in scores else None
    return {
        name: Score(score.iou, score.boundary_iou, score.worse, score.ms, score.ms / base)
        if base and score.ms is not None
        else score
        for name, score in scores.items()
    }


def _means(groups: Sequence[Group], kinds: Sequence[str]) -> list[Group]:
    """The mean over the sets for each kind of coarse mask, and over all groups; each group counts once."""
    parts = {f"mean {kind}": [group for group in groups if group.name.endswith(f" {kind}")] for kind in kinds}
    parts = {name: part for name, part in parts.items() if len(part) > 1}
    if len(parts) > 1:
        parts["mean of all"] = list(groups)
    return [
        Group(
            name,
            sum(group.count for group in part),
            _mean([group.coarse for group in part]),
            _with_ratios(
                {method: _mean([group.methods[method] for group in part]) for method in part[0].methods}
            ),
        )
        for name, part in parts.items()
    ]


def _mean(scores: Sequence[Score]) -> Score:
    def mean(name: str) -> Any:
        values = [getattr(score, name) for score in scores]
        return None if None in values else float(np.mean(values))

    return Score(mean("iou"), mean("boundary_iou"), mean("worse"), mean("ms"))


def _stages(dev_sets: Sequence[DevSet], kinds: Sequence[str], methods: Sequence[Method]) -> dict[str, Stages]:
    """By method that offers it: CPU seconds and operations of each stage, an instance."""
    inputs: list[tuple[NDArray[np.uint8], MaskWindow]] = []
    per_set = max(_STAGE_INSTANCES // len(dev_sets), 1)
    for dev_set in dev_sets:
        for kind in dev_set.kinds(kinds)[:1]:
            coarse, matches, _ = _counted(dev_set, kind)
            chosen = matches[:: max(len(matches) // per_set, 1)][:per_set]
            inputs += [(image, mask) for _, image, mask in _inputs(dev_set, kind, coarse, chosen)]
    found = {method.name: method.stages(inputs) for method in methods}
    return {
        name: {
            stage: (seconds / len(inputs), None if flops is None else flops / len(inputs))
            for stage, (seconds, flops) in stages.items()
        }
        for name, stages in found.items()
        if stages is not None
    }


def _table(groups: Sequence[Group]) -> Table:
    """A block for each group: the coarse masks' scores, then those of each method."""
    rows = []
    for group in groups:
        rows.append([group.name, str(group.count), *_cells(group.coarse)])
        rows += [[f"  {name}", "", *_cells(score)] for name, score in group.methods.items()]
    legend = "b: boundary; ms: CPU an instance; ratio: of the baseline's ms"
    return Table(f"Before, and refined ({legend})", ["", "n", "IoU", "bIoU", "worse", "ms", "ratio"], rows)


def _cells(score: Score) -> list[str]:
    return [
        points(score.iou),
        points(score.boundary_iou),
        "" if score.worse is None else f"{100 * score.worse:.0f} %",
        "" if score.ms is None else f"{score.ms:.1f}",
        "" if score.ratio is None else f"{score.ratio:.2f}",
    ]


def _stage_table(name: str, stages: Stages, peak: float) -> Table:
    """Time of each stage, and what its operations would take at the float32 peak of the core."""
    rows = []
    for stage, (seconds, flops) in stages.items():
        limit = ["–", "–"] if flops is None else [f"{flops / 1e9:.3f}", f"{1000 * flops / peak:.2f}"]
        rows.append([stage, f"{1000 * seconds:.2f}", *limit])
    return Table(f"{name} by stage, an instance", ["stage", "ms", "GFLOP", "limit ms (fp32)"], rows)


def _plot(file: Path, instances: Sequence[Instance], methods: Sequence[str], by: str, label: str) -> None:
    """Milliseconds of each instance against one of its lengths, on logarithmic axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    lengths = [getattr(instance, by) for instance in instances]
    for name in methods:
        axes.scatter(lengths, [each.ms[name] for each in instances], s=8, alpha=0.5, lw=0, label=name)
    axes.set(xscale="log", yscale="log", xlabel=label, ylabel="CPU milliseconds")
    axes.grid(alpha=0.3, which="both")
    axes.legend(markerscale=2)
    FigureCanvasAgg(figure).print_png(file)


if __name__ == "__main__":
    if any(os.environ.get(name) != value for name, value in _ONE_THREAD.items()):
        os.environ.update(_ONE_THREAD)  # libraries read them when they are loaded
        os.execv(sys.executable, [sys.executable, *sys.argv])
    main()
