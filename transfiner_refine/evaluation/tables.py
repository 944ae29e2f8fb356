"""An evaluation as text for a terminal, as Markdown for a pull request, as JSON for machines.

Tables show points (hundredths); JSON has the plain numbers in [0, 1], null where there is none.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from transfiner_refine.evaluation.average_precision import OVERLAPS, AveragePrecision
from transfiner_refine.evaluation.error_tables import error_json, error_notes, error_tables
from transfiner_refine.evaluation.evaluate import ClassRow, Evaluation
from transfiner_refine.evaluation.matched import CHANGE_THRESHOLD, Interval, SizeSummary
from transfiner_refine.evaluation.table import Table, before_after, points, signed_points

__all__ = ["Table", "as_json", "as_markdown", "as_text", "before_after", "points", "signed_points"]


def as_text(evaluation: Evaluation, *, per_class: bool = False) -> str:
    """The evaluation in at most 80 columns.

    Args:
        evaluation: what to show.
        per_class: add a row for each category.
    """
    parts = [
        _headline(evaluation),
        *(table.text() for table in _tables(evaluation, per_class)),
        *_notes(evaluation),
    ]
    return "\n\n".join(parts)


def as_markdown(evaluation: Evaluation, *, per_class: bool = False) -> str:
    """The evaluation as Markdown tables.

    Args:
        evaluation: what to show.
        per_class: add a row for each category.
    """
    headline = _headline(evaluation).replace("\n", "  \n")
    tables = (table.markdown() for table in _tables(evaluation, per_class))
    return "\n\n".join([headline, *tables, *_notes(evaluation)]) + "\n"


def as_json(evaluation: Evaluation, *, per_class: bool = False) -> dict[str, Any]:
    """The evaluation as JSON data: shares in [0, 1], areas in pixels, null where there is no number.

    Args:
        evaluation: what to show.
        per_class: add the categories.
    """

    def precision(scores: dict[Any, AveragePrecision] | None) -> dict[str, Any] | None:
        return None if scores is None else {overlap: dict(scores[overlap].scores) for overlap in OVERLAPS}

    summary = {size: dataclasses.asdict(entry) for size, entry in evaluation.matched.summary.items()}
    alone = evaluation.before is None
    if alone:  # the only masks there are, are the results
        for entry in summary.values():
            entry["after"], entry["before"] = entry["before"], None
    data: dict[str, Any] = {
        "annotations": str(evaluation.annotations),
        "results": str(evaluation.results),
        "before_results": None if alone else str(evaluation.before),
        "images": evaluation.images,
        "instances": evaluation.instances,
        "crowds": evaluation.crowds,
        "detections": evaluation.detections,
        "federated": evaluation.federated,
        "settings": dataclasses.asdict(evaluation.settings),
        "average_precision": {
            "before": precision(evaluation.ap_before),
            "after": precision(evaluation.ap_after),
        },
        "matched": {
            "by": evaluation.matched_by,
            "pairs": len(evaluation.matched.rows),
            "sizes": summary,
        },
    }
    if evaluation.errors is not None:
        data["error_analysis"] = error_json(evaluation.errors)
    if per_class:
        data["classes"] = [dataclasses.asdict(row) for row in evaluation.classes]
    cleaned: dict[str, Any] = _without_nan(data)
    return cleaned


def _headline(evaluation: Evaluation) -> str:
    """Which files, how much in them."""
    plural = "" if evaluation.crowds == 1 else "s"
    crowds = f" and {evaluation.crowds} crowd region{plural}" if evaluation.crowds else ""
    lines = [
        f"annotations: {evaluation.annotations.name} ({evaluation.images} images, "
        f"{evaluation.instances} instances{crowds}{', LVIS' if evaluation.federated else ''})",
        f"results:     {evaluation.results.name} ({evaluation.detections} detections)",
    ]
    if evaluation.before is not None:
        lines.append(f"before:      {evaluation.before.name}")
    return "\n".join(lines)


def _tables(evaluation: Evaluation, per_class: bool) -> list[Table]:
    """The tables of an evaluation, in the order they are shown."""
    tables = []
    if evaluation.ap_after is not None:
        tables.append(_precision_table(evaluation.ap_before, evaluation.ap_after))
    tables += _matched_tables(evaluation)
    if evaluation.errors is not None:
        tables += error_tables(evaluation.errors)
    if per_class and evaluation.classes:
        tables.append(_class_table(evaluation.classes))
    return tables


def _precision_table(before: dict[Any, AveragePrecision] | None, after: dict[Any, AveragePrecision]) -> Table:
    """AP and AR, a row for each, by mask and by boundary."""
    headers = ["", *_headers(before is not None)]
    rows = []
    for name in after["mask"].scores:
        row = [name]
        for overlap in OVERLAPS:
            new = after[overlap].scores[name]
            old = None if before is None else before[overlap].scores[name]
            row += _change_cells(old, new)
        rows.append(row)
    return Table("Average precision and recall, points", headers, rows)


def _matched_tables(evaluation: Evaluation) -> list[Table]:
    """Matched-instance scores by size: IoU and shares, then the boundary measures."""
    settings, summary = evaluation.settings, evaluation.matched.summary
    sizes = [entry for entry in summary.values() if entry.count or entry.size == "all"]
    when = "" if evaluation.before is None else " before"
    title = (
        f"Matched instances ({evaluation.matched_by}), at least {settings.min_area} px, "
        f"IoU{when} at least {settings.min_coarse_iou:g}"
    )
    if evaluation.before is None:
        headers = ["size", "count", "IoU", "boundary IoU", "mBA"]
        rows = [
            [entry.size, str(entry.count), *map(points, dataclasses.astuple(entry.before))] for entry in sizes
        ]
        return [Table(title, headers, rows)]
    headers = ["size", "count", "IoU", "change [95 %]", "better / same / worse"]
    rows = [
        [entry.size, str(entry.count), _pair(entry, "iou"), _interval(entry.iou_change), _shares(entry)]
        for entry in sizes
    ]
    boundary_headers = ["size", "count", "boundary IoU", "change [95 %]", "mBA"]
    boundary_rows = [
        [
            entry.size,
            str(entry.count),
            _pair(entry, "boundary_iou"),
            _interval(entry.boundary_iou_change),
            _pair(entry, "mba"),
        ]
        for entry in sizes
    ]
    band = f"Their boundaries (band {100 * settings.boundary_ratio:g} % of the image's diagonal)"
    return [Table(title, headers, rows), Table(band, boundary_headers, boundary_rows)]


def _class_table(classes: Sequence[ClassRow]) -> Table:
    """AP by category."""
    before = classes[0].before
    headers = ["class", "count", *_headers(before is not None)]
    rows = []
    for entry in classes:
        row = [entry.name, str(entry.instances)]
        for overlap in OVERLAPS:
            row += _change_cells(
                None if entry.before is None else entry.before[overlap], entry.after[overlap]
            )
        rows.append(row)
    return Table("AP by class, points", headers, rows)


def _notes(evaluation: Evaluation) -> list[str]:
    """What a reader must know to read the tables right."""
    notes = []
    if evaluation.ap_after is None:
        notes.append("No AP: the detections have no scores.")
    if evaluation.before is not None:
        notes.append(f"same: IoU changed by at most {100 * CHANGE_THRESHOLD:g} points.")
    if evaluation.errors is not None:
        notes += error_notes(evaluation.errors)
    return notes


def _headers(before: bool) -> list[str]:
    """Headers of the columns of both overlaps."""
    if not before:
        return list(OVERLAPS)
    return [header for overlap in OVERLAPS for header in (f"{overlap} before", "after", "change")]


def _change_cells(before: float | None, after: float) -> list[str]:
    """Cells of one overlap, under ``_headers``."""
    return (
        [points(after)] if before is None else [points(before), points(after), signed_points(after - before)]
    )


def _pair(entry: SizeSummary, name: str) -> str:
    """One measure before → after."""
    return before_after(getattr(entry.before, name), getattr(entry.after, name))


def _interval(interval: Interval | None) -> str:
    """ "+4.1 [+3.0, +5.2]"; without the ends where there are none."""
    if interval is None or math.isnan(interval.low):
        return signed_points(None if interval is None else interval.mean)
    return f"{signed_points(interval.mean)} [{signed_points(interval.low)}, {signed_points(interval.high)}]"


def _shares(entry: SizeSummary) -> str:
    """Shares of the instances that got better, stayed, got worse."""
    shares = (entry.better, entry.unchanged, entry.worse)
    return " / ".join(
        "–" if share is None or math.isnan(share) else f"{abs(100 * share):.0f} %" for share in shares
    )


def _without_nan(value: Any) -> Any:
    """The same data with nan as None: JSON knows no nan."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(entry) for entry in value]
    return value
