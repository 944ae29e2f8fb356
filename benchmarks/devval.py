"""The table every change is judged by: dev-val sets and kinds of coarse masks, before → after refining.

    python benchmarks/devval.py --data DEVVAL                     the shipped weights
    python benchmarks/devval.py --data DEVVAL --weights run.safetensors --controls
    python benchmarks/devval.py --data DEVVAL --yardstick unet.safetensors
    python benchmarks/devval.py --data DEVVAL --refined DIR       masks some other program refined

DEVVAL has a folder for each set (ccp, davis, coco …) with ``images/``, ``annotations.json`` and, for each
kind of coarse mask, ``coarse_KIND.json`` with ``coarse_KIND_match.json``. DIR has ``SET_KIND.json``, the coarse
file's records in its order with other masks; ``--save`` writes such a folder.

Counted are instances of at least 1024 px whose coarse IoU is at least 0.5; AP is over all records. "worse" is
the share of the counted instances that lost more than half a point of IoU.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from controls import CONTROLS
from numpy.typing import NDArray
from tqdm import tqdm

from transfiner_refine import __version__
from transfiner_refine.evaluation.average_precision import OVERLAPS, Overlap, average_precision
from transfiner_refine.evaluation.coco_files import (
    Annotations,
    Detection,
    decode,
    load_annotations,
    load_match,
    load_results,
)
from transfiner_refine.evaluation.matched import MIN_AREA, SizeSummary, matched_scores
from transfiner_refine.evaluation.matching import check_same_detections, match_by_ids
from transfiner_refine.evaluation.tables import Table, before_after
from transfiner_refine.formats.images import ImageFolder, read_image
from transfiner_refine.formats.rle import RleMask
from transfiner_refine.types import InputError, MaskRefineError, MaskWindow

Refine = Callable[[NDArray[np.uint8], list[MaskWindow]], list[MaskWindow]]
"""From an image and its coarse masks to the refined ones."""

_UNTOUCHED = 0.99  # mean IoU that true masks must keep (issue 11)


@dataclass(frozen=True)
class DevSet:
    """One set of photos with true masks, and its kinds of coarse masks.

    Attributes:
        name: of its folder.
        folder: where it lies.
        whole: its annotation file.
        annotations: the same, or its first images alone.
    """

    name: str
    folder: Path
    whole: Annotations
    annotations: Annotations

    def kinds(self) -> list[str]:
        """The kinds of coarse masks it has, by name."""
        files = self.folder.glob("coarse_*_match.json")
        return sorted(file.name.removeprefix("coarse_").removesuffix("_match.json") for file in files)

    def detections(self, file: Path) -> list[Detection]:
        """The records of a results file that are of this set's images."""
        return [
            entry for entry in load_results(file, self.whole) if entry.image_id in self.annotations.images
        ]

    def true_masks(self) -> tuple[list[int], list[MaskWindow]]:
        """The annotations that are large enough to count: their image ids and their masks."""
        entries = [
            (entry.image_id, decode(entry.mask)) for entry in self.annotations.instances if not entry.is_crowd
        ]
        large = [(image_id, mask) for image_id, mask in entries if mask.area >= MIN_AREA]
        return [image_id for image_id, _ in large], [mask for _, mask in large]

    def photo(self, image_id: int) -> NDArray[np.uint8]:
        """[H, W, 3] uint8 RGB."""
        image = self.annotations.images[image_id]
        path = ImageFolder(self.folder / "images").named(image.file_name)
        return read_image(path, [image.size]).pixels


@dataclass(frozen=True)
class Row:
    """One line of the main table."""

    name: str
    matched: SizeSummary
    ap: dict[Overlap, tuple[float, float]]
    seconds: float | None

    def cells(self) -> list[str]:
        assert self.matched.after is not None
        assert self.matched.worse is not None
        return [
            self.name,
            str(self.matched.count),
            before_after(self.matched.before.iou, self.matched.after.iou),
            before_after(self.matched.before.boundary_iou, self.matched.after.boundary_iou),
            "–" if math.isnan(self.matched.worse) else f"{100 * self.matched.worse:.0f} %",
            before_after(*self.ap["mask"]),
            before_after(*self.ap["boundary"]),
            "–" if self.seconds is None else f"{self.seconds:.3f}",
        ]


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, help=__doc__.split("\n")[0])
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option(
    "--weights", help="Name of shipped weights, or path of a checkpoint.  [default: the shipped ones]"
)
@click.option(
    "--yardstick",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Score a plain U-Net that unet.py trained, instead of the refiner.",
)
@click.option("--device", default="auto", show_default=True)
@click.option(
    "--refined", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Score these instead."
)
@click.option("--save", type=click.Path(file_okay=False, path_type=Path), help="Keep the refined masks here.")
@click.option("--set", "sets", multiple=True, help="Only this set; may be given several times.")
@click.option(
    "--kind", "kinds", multiple=True, help="Only this kind of coarse mask; may be given several times."
)
@click.option("--images", type=click.IntRange(1), help="Only the first images of each set, for a quick look.")
@click.option("--controls", is_flag=True, help="Refine true and spoilt masks too.")
@click.option(
    "--markdown", type=click.Path(dir_okay=False, path_type=Path), help="Write the tables here as well."
)
def main(
    data: Path,
    weights: str | None,
    yardstick: Path | None,
    device: str,
    refined: Path | None,
    save: Path | None,
    sets: Sequence[str],
    kinds: Sequence[str],
    images: int | None,
    controls: bool,
    markdown: Path | None,
) -> None:
    try:
        dev_sets = list(_dev_sets(data, sets, images))
        if refined is None:
            refine, headline = _refiner(weights, yardstick, device)
        elif controls:
            raise click.UsageError("--controls needs a refiner, not --refined")
        else:
            refine, headline = None, f"masks of {refined}"
        tables = _main_tables(dev_sets, kinds, refine, refined, save)
        if controls and refine is not None:
            tables.append(_control_table(dev_sets, refine))
    except MaskRefineError as error:
        raise click.ClickException(str(error)) from error
    for one in dev_sets:
        size = f"{len(one.annotations.images)} images, {len(one.annotations.instances)} annotations"
        headline += f"\n{one.name}: {one.annotations.file.name} ({size})"
    click.echo("\n\n".join([headline, *(table.text() for table in tables)]))
    if markdown is not None:
        text = "\n\n".join([headline.replace("\n", "  \n"), *(table.markdown() for table in tables)])
        markdown.write_text(text + "\n", encoding="utf-8")


def _dev_sets(data: Path, names: Sequence[str], images: int | None) -> Iterator[DevSet]:
    """The sets in the folder, perhaps only some, perhaps only the start of each."""
    found = {file.parent.name: file for file in sorted(data.glob("*/annotations.json"))}
    unknown = sorted(set(names) - set(found))
    if not found or unknown:
        wanted = ", ".join(unknown) or "*"
        raise InputError(
            f"no set {wanted} here",
            file=data,
            remedy="--data is the folder with ccp/annotations.json and so on",
        )
    for name in names or found:
        annotations = whole = load_annotations(found[name])
        if images is not None:
            kept = dict(list(annotations.images.items())[:images])
            annotations = dataclasses.replace(
                annotations,
                images=kept,
                instances=[entry for entry in annotations.instances if entry.image_id in kept],
            )
        yield DevSet(name, found[name].parent, whole, annotations)


def _refiner(weights: str | None, yardstick: Path | None, device: str) -> tuple[Refine, str]:
    """The refiner, warmed up, and one line that says which and where."""
    import torch
    from unet import UNetRefiner

    from transfiner_refine import load_refiner
    from transfiner_refine.device import choose_device

    refiner: Any
    if yardstick is not None:
        refiner, name, where = UNetRefiner(yardstick), f"yardstick {yardstick}", torch.device("cpu")
    else:
        refiner, name = load_refiner(weights or "lite", device=device), f"weights {weights or 'shipped'}"
        where = choose_device(device)

    def refine(image: NDArray[np.uint8], masks: list[MaskWindow]) -> list[MaskWindow]:
        windows: list[MaskWindow] = refiner.refine_windows([image], masks, [0] * len(masks))
        return windows

    square = MaskWindow(np.ones((40, 40), bool), 10, 10, (64, 64))
    refine(np.zeros((64, 64, 3), np.uint8), [square])  # so that the first photo does not pay for the start
    return refine, (
        f"transfiner-refine {__version__}, {name}, device {where}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    )


def _main_tables(
    dev_sets: Sequence[DevSet],
    kinds: Sequence[str],
    refine: Refine | None,
    refined: Path | None,
    save: Path | None,
) -> list[Table]:
    """One table for each kind of coarse mask, a row for each set that has it."""
    rows: dict[str, list[Row]] = defaultdict(list)
    for dev_set in dev_sets:
        for kind in kinds or dev_set.kinds():
            file = dev_set.folder / f"coarse_{kind}.json"
            coarse = dev_set.detections(file)
            if refine is None:
                assert refined is not None
                other = refined / f"{dev_set.name}_{kind}.json"
                after, seconds = dev_set.detections(other), None
                check_same_detections(coarse, after, (file, other))
            else:
                after, seconds = _refine_detections(dev_set, kind, coarse, refine)
            if save is not None:
                _save(save / f"{dev_set.name}_{kind}.json", after)
            rows[kind].append(_row(dev_set, kind, coarse, after, seconds))
    headers = ["", "n", "IoU", "bIoU", "worse", "AP", "bAP", "s"]
    legend = "mean over n; b: boundary; s: seconds an instance"
    return [Table(f"coarse_{kind} ({legend})", headers, [row.cells() for row in rows[kind]]) for kind in rows]


def _refine_detections(
    dev_set: DevSet, kind: str, coarse: Sequence[Detection], refine: Refine
) -> tuple[list[Detection], float]:
    """The same detections with refined masks, and the wall-clock seconds that took for each."""
    masks = [decode(detection.mask) for detection in coarse]
    windows, seconds = _refine_windows(
        dev_set, f"{dev_set.name} {kind}", [detection.image_id for detection in coarse], masks, refine
    )
    after = []
    for detection, window in zip(coarse, windows, strict=True):
        mask = RleMask.from_window(window)
        encoded = {"size": list(mask.size), "counts": mask.counts}
        after.append(dataclasses.replace(detection, mask=encoded, area=mask.area))
    return after, seconds / max(len(masks), 1)


def _refine_windows(
    dev_set: DevSet, label: str, image_ids: Sequence[int], masks: Sequence[MaskWindow], refine: Refine
) -> tuple[list[MaskWindow], float]:
    """Refines masks image by image; the seconds are those of refining alone, without reading the photos."""
    of_image: dict[int, list[int]] = defaultdict(list)
    for index, image_id in enumerate(image_ids):
        of_image[image_id].append(index)
    result = list(masks)
    seconds = 0.0
    for image_id, indices in tqdm(of_image.items(), label, unit="image", leave=False, disable=None):
        photo = dev_set.photo(image_id)
        start = time.perf_counter()
        windows = refine(photo, [masks[index] for index in indices])
        seconds += time.perf_counter() - start
        for index, window in zip(indices, windows, strict=True):
            result[index] = window
    return result, seconds


def _row(
    dev_set: DevSet, kind: str, coarse: Sequence[Detection], after: Sequence[Detection], seconds: float | None
) -> Row:
    """Scores of one set and kind."""
    match_file = dev_set.folder / f"coarse_{kind}_match.json"
    keys = load_match(match_file, len(json.loads((dev_set.folder / f"coarse_{kind}.json").read_text())))
    pairs = match_by_ids(dev_set.annotations, coarse, [keys[entry.record] for entry in coarse], match_file)
    scores = matched_scores(
        (decode(dev_set.annotations.instances[i].mask) for i, _ in pairs),
        (decode(coarse[j].mask) for _, j in pairs),
        (decode(after[j].mask) for _, j in pairs),
        images=(coarse[j].image_id for _, j in pairs),
    )
    old, new = (average_precision(dev_set.annotations, entries) for entries in (coarse, after))
    ap = {overlap: (old[overlap].scores["AP"], new[overlap].scores["AP"]) for overlap in OVERLAPS}
    return Row(dev_set.name, scores.summary["all"], ap, seconds)


def _control_table(dev_sets: Sequence[DevSet], refine: Refine) -> Table:
    """What becomes of masks whose right answer is known: a row for each control and set."""
    rows = []
    for name, spoil in CONTROLS.items():
        for dev_set in dev_sets:
            image_ids, truth = dev_set.true_masks()
            spoilt = [spoil(mask) for mask in truth]
            after, _ = _refine_windows(dev_set, f"{dev_set.name} {name}", image_ids, spoilt, refine)
            scores = matched_scores(truth, spoilt, after, images=image_ids, min_coarse_iou=0.0)
            rows.append([name, dev_set.name, *_control_cells(name, scores.summary["all"], after)])
    headers = ["control", "set", "count", "IoU", "boundary IoU", "worse", "passed"]
    return Table("Controls: true masks, and true masks spoilt in one way", headers, rows)


def _control_cells(name: str, summary: SizeSummary, after: Sequence[MaskWindow]) -> list[str]:
    """Cells of a control's row; passed: true masks keep IoU 99, empty ones stay empty, all others gain."""
    assert summary.after is not None
    if name == "empty":
        passed = not any(mask.area for mask in after)
        return [str(len(after)), "–", "–", "–", "yes" if passed else "NO"]
    needed = _UNTOUCHED if name == "true mask" else summary.before.iou
    return [
        str(summary.count),
        before_after(summary.before.iou, summary.after.iou),
        before_after(summary.before.boundary_iou, summary.after.boundary_iou),
        f"{100 * (summary.worse or 0):.0f} %",
        "yes" if summary.after.iou >= needed else "NO",
    ]


def _save(file: Path, detections: Sequence[Detection]) -> None:
    """Writes COCO results."""
    records: list[dict[str, Any]] = [
        {
            "image_id": entry.image_id,
            "category_id": entry.category_id,
            "segmentation": entry.mask,
            "score": entry.score,
        }
        for entry in detections
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(records), encoding="utf-8")


if __name__ == "__main__":
    main()
