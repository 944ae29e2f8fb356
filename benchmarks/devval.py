"""The table every change is judged by: dev-val sets and kinds of coarse masks, before → after refining.

    python benchmarks/devval.py --data DEVVAL                     the shipped weights
    python benchmarks/devval.py --data DEVVAL --weights run.safetensors --controls
    python benchmarks/devval.py --data DEVVAL --yardstick unet.safetensors
    python benchmarks/devval.py --data DEVVAL --refined DIR       masks some other program refined

DEVVAL is a folder of sets as devsets.py describes. DIR has ``SET_KIND.json``, the coarse file's records in its order
with other masks; ``--save`` writes such a folder.

Counted are instances of at least 1024 px whose coarse IoU is at least 0.5; AP is over all records. "worse" is
the share of the counted instances that lost more than half a point of IoU.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from controls import CONTROLS
from devsets import DevSet, Refine, check_kinds, default_refiner, load_dev_sets, refine_windows

from transfiner_refine.errors import MaskRefineError
from transfiner_refine.evaluation.average_precision import OVERLAPS, Overlap, average_precision
from transfiner_refine.evaluation.coco_files import Entry, rle_of
from transfiner_refine.evaluation.matched import SizeSummary, check_same_detections, matched_scores
from transfiner_refine.evaluation.tables import Table, before_after
from transfiner_refine.masks import Mask, MaskWindow

_UNTOUCHED = 0.99  # mean IoU that true masks must keep


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
@click.option("--precision", default="auto", show_default=True)
@click.option(
    "--refined", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Score these instead."
)
@click.option("--save", type=click.Path(file_okay=False, path_type=Path), help="Keep the refined masks here.")
@click.option("--set", "sets", multiple=True, help="Only this set; may be given several times.")
@click.option(
    "--kind", "kinds", multiple=True, help="Only this kind of coarse mask; may be given several times."
)
@click.option("--images", type=click.IntRange(1), help="Only so many images of each set, evenly spaced.")
@click.option("--controls", is_flag=True, help="Refine true and spoilt masks too.")
@click.option(
    "--markdown", type=click.Path(dir_okay=False, path_type=Path), help="Write the tables here as well."
)
def main(
    data: Path,
    weights: str | None,
    yardstick: Path | None,
    device: str,
    precision: str,
    refined: Path | None,
    save: Path | None,
    sets: Sequence[str],
    kinds: Sequence[str],
    images: int | None,
    controls: bool,
    markdown: Path | None,
) -> None:
    try:
        dev_sets = list(load_dev_sets(data, sets, images))
        check_kinds(dev_sets, kinds)
        if refined is None:
            refine, headline = default_refiner(weights, yardstick, device, precision)
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
        for kind in dev_set.kinds(kinds):
            file = dev_set.coarse_file(kind)
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
    dev_set: DevSet, kind: str, coarse: Sequence[Entry], refine: Refine
) -> tuple[list[Entry], float]:
    """The same detections with refined masks, and the wall-clock seconds that took for each."""
    masks = [detection.mask.decode() for detection in coarse]
    windows, seconds = refine_windows(
        dev_set, f"{dev_set.name} {kind}", [detection.image_id for detection in coarse], masks, refine
    )
    after = []
    for detection, window in zip(coarse, windows, strict=True):
        after.append(dataclasses.replace(detection, mask=Mask.from_window(window)))
    return after, seconds / max(len(masks), 1)


def _row(
    dev_set: DevSet, kind: str, coarse: Sequence[Entry], after: Sequence[Entry], seconds: float | None
) -> Row:
    """Scores of one set and kind."""
    matches = dev_set.matches(kind, coarse)
    scores = dev_set.scores(matches, coarse, [after[number].mask.decode() for _, number in matches])
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
            after, _ = refine_windows(dev_set, f"{dev_set.name} {name}", image_ids, spoilt, refine)
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


def _save(file: Path, detections: Sequence[Entry]) -> None:
    """Writes COCO results."""
    records: list[dict[str, Any]] = [
        {
            "image_id": entry.image_id,
            "category_id": entry.category_id,
            "segmentation": rle_of(entry.mask),
            "score": entry.score,
        }
        for entry in detections
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(records), encoding="utf-8")


if __name__ == "__main__":
    main()
