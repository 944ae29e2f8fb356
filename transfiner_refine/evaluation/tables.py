"""An evaluation as text for a terminal, as Markdown for a pull request, as JSON and rows for machines.

Tables show points (hundredths); JSON and rows have the plain numbers in [0, 1], null where there is none.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transfiner_refine._version import __version__
from transfiner_refine.evaluation.average_precision import OVERLAPS, by_overlap
from transfiner_refine.evaluation.evaluate import Evaluation
from transfiner_refine.evaluation.matched import CHANGE_THRESHOLD, SizeSummary, size_class
from transfiner_refine.output import atomic_file

if TYPE_CHECKING:
    from transfiner_refine.evaluation.error_analysis import ErrorAnalysis

JSON_VERSION = 1
"""Of the layout of ``as_json``, which docs/evaluation.md describes; a change that breaks readers raises it."""

ROW = (
    *(
        "image",
        "annotation_id",
        "annotation",
        "record",
        "label",
        "category",
        "score",
        "area",
        "size",
        "counted",
    ),
    *(f"{name}_{when}" for when in ("before", "after") for name in ("iou", "boundary_iou", "mba")),
)
"""The columns of ``instance_rows``."""

_WIDTH = 80  # columns of a terminal

Column = tuple[str, "str | Callable[[Any], object]"]
"""A header, and where a row has the column's cell: an attribute ("before.iou") or a function. Shares are points."""

_SIZE: tuple[Column, Column] = ("size", "size"), ("count", "count")


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of cells under headers; the first column is text, the others are numbers."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]

    @classmethod
    def of(cls, title: str, rows: Iterable[Any], *columns: Column) -> Table:
        """A table from one object a row and one description a column."""

        def cell(row: Any, what: str | Callable[[Any], object]) -> str:
            value = attrgetter(what)(row) if isinstance(what, str) else what(row)
            return points(value) if value is None or isinstance(value, float) else str(value)

        headers = [header for header, _ in columns]
        return cls(title, headers, [[cell(row, what) for _, what in columns] for row in rows])

    def text(self) -> str:
        """Columns lined up by spaces; where they need more than 80, the first column's cells are cut."""
        lines = [self.headers, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.headers))]
        others = 2 + sum(2 + width for width in widths[1:])  # indent, gaps
        widths[0] = max(1, min(widths[0], _WIDTH - others))
        padded = []
        for first, *numbers in lines:
            cut = first if len(first) <= widths[0] else first[: widths[0] - 1] + "…"
            cells = [cut.ljust(widths[0])]
            cells += [cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True)]
            padded.append("  " + "  ".join(cells).rstrip())
        return "\n".join([self.title, *padded])

    def markdown(self) -> str:
        """A GitHub table under its title."""
        rule = ["---", *("---:" for _ in self.headers[1:])]
        rows = [self.headers, rule, *self.rows]
        return "\n".join([f"**{self.title}**", "", *("| " + " | ".join(row) + " |" for row in rows)])


def points(value: float | None, form: str = ".1f") -> str:
    """A share as points with one decimal: 0.7852 → "78.5"; "–" where there is none. A change takes ``form`` "+.1f"."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:{form}}"


def before_after(before: float, after: float | None) -> str:
    """ "74.0 → 78.1", or the first alone."""
    return points(before) if after is None else f"{points(before)} → {points(after)}"


def as_text(evaluation: Evaluation, *, per_class: bool = False) -> str:
    """The evaluation in at most 80 columns; ``per_class`` adds a row for each category."""
    tables = (table.text() for table in _tables(evaluation, per_class))
    return "\n\n".join([_headline(evaluation), *tables, *_notes(evaluation)])


def as_markdown(evaluation: Evaluation, *, per_class: bool = False) -> str:
    """The evaluation as Markdown tables; ``per_class`` adds a row for each category."""
    headline = _headline(evaluation).replace("\n", "  \n")
    tables = (table.markdown() for table in _tables(evaluation, per_class))
    return "\n\n".join([headline, *tables, *_notes(evaluation)]) + "\n"


def as_json(evaluation: Evaluation, *, per_class: bool = False) -> dict[str, Any]:
    """The evaluation as JSON data: shares in [0, 1], areas in pixels, null where there is no number.

    ``per_class`` adds the categories.
    """
    precisions = {"before": evaluation.ap_before, "after": evaluation.ap_after}
    sizes, alone = evaluation.matched.summary, evaluation.before is None
    if alone:  # the only masks there are, are the results
        sizes = {
            size: dataclasses.replace(row, before=None, after=row.before)  # type: ignore[arg-type]
            for size, row in sizes.items()
        }
    counts = ("images", "instances", "crowds", "detections", "federated", "settings")
    data: dict[str, Any] = {
        "version": JSON_VERSION,
        "program": f"transfiner-refine {__version__}",
        "annotations": str(evaluation.annotations),
        "results": str(evaluation.results),
        "before_results": None if alone else str(evaluation.before),
        **{name: getattr(evaluation, name) for name in counts},
        "average_precision": {
            when: None if of is None else {overlap: of[overlap].scores for overlap in OVERLAPS}
            for when, of in precisions.items()
        },
        "matched": {"by": evaluation.matched_by, "pairs": len(evaluation.matched.rows), "sizes": sizes},
    }
    data["instances_matched"] = instance_rows(evaluation)
    if evaluation.unused:
        data["unused"] = evaluation.unused
    if evaluation.errors is not None:
        data["error_analysis"] = evaluation.errors._asdict()
        del data["error_analysis"]["rows"]
    if per_class:
        data["classes"] = evaluation.classes
    plain: dict[str, Any] = _plain(data)
    return plain


def instance_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """A row for each matched mask, flat: where it stands, whether it is counted, its scores (None where there is none).

    Where the results are scored alone, their scores are those after.
    """
    rows = []
    for found in evaluation.instances_matched:
        row = found._asdict()
        scores = row.pop("scores")
        row |= {"area": scores.area, "size": size_class(scores.area), "counted": scores.counted}
        after = scores.before if evaluation.before is None else scores.after
        for when, of in (("before", None if evaluation.before is None else scores.before), ("after", after)):
            row |= {f"{name}_{when}": getattr(of, name, None) for name in ("iou", "boundary_iou", "mba")}
        rows.append({key: _plain(value) for key, value in row.items()})
    return rows


def write_json(evaluation: Evaluation, path: Path, *, per_class: bool = False) -> None:
    """Writes ``as_json``. Raises OutputError where the disk refuses."""
    with atomic_file(path) as file:
        json.dump(as_json(evaluation, per_class=per_class), file, indent=2)
        file.write("\n")


def write_csv(evaluation: Evaluation, path: Path) -> None:
    """Writes ``instance_rows`` with a header. Raises OutputError where the disk refuses."""
    rows = instance_rows(evaluation)
    with atomic_file(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(ROW)
        writer.writerows(row.values() for row in rows)


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
    tables, before, after = [], evaluation.ap_before, evaluation.ap_after
    if after is not None:
        names = after["mask"].scores
        rows = [([n], by_overlap(before, "scores", n), by_overlap(after, "scores", n)) for n in names]
        tables.append(_overlap_table("Average precision and recall, points", [""], rows))
    tables += _matched_tables(evaluation)
    if evaluation.errors is not None:
        tables += _error_tables(evaluation.errors)
    if per_class and evaluation.classes:
        classes = [([row.name, str(row.instances)], row.before, row.after) for row in evaluation.classes]
        tables.append(_overlap_table("AP by class, points", ["class", "count"], classes))
    return tables


def _overlap_table(title: str, names: list[str], rows: Sequence[tuple[list[str], Any, Any]]) -> Table:
    """A table of what each row is called, and its scores by overlap: before (or None) and after."""
    alone = not rows[0][1]
    headers, cells = [*names], [[*called] for called, _, _ in rows]
    for overlap in OVERLAPS:
        headers += [overlap] if alone else [f"{overlap} before", "after", "change"]
        for line, (_, before, after) in zip(cells, rows, strict=True):
            new, old = after[overlap], None if alone else before[overlap]
            line += [points(new)] if old is None else [points(old), points(new), points(new - old, "+.1f")]
    return Table(title, headers, cells)


def _matched_tables(evaluation: Evaluation) -> list[Table]:
    """Matched-instance scores by size: IoU and shares, then the boundary measures."""
    settings = evaluation.settings
    sizes = _filled(evaluation.matched.summary)
    when = "" if evaluation.before is None else " before"
    title = (
        f"Matched instances ({evaluation.matched_by}), at least {settings.min_area} px, "
        f"IoU{when} at least {settings.min_coarse_iou:g}"
    )
    if evaluation.before is None:
        columns = ("IoU", "before.iou"), ("boundary IoU", "before.boundary_iou"), ("mBA", "before.mba")
        return [Table.of(title, sizes, *_SIZE, *columns)]
    iou = _pair("IoU", "iou"), _change("iou_change"), ("better / same / worse", _shares)
    boundary = _pair("boundary IoU", "boundary_iou"), _change("boundary_iou_change"), _pair("mBA", "mba")
    band = f"Their boundaries (band {100 * settings.boundary_ratio:g} % of the image's diagonal)"
    return [Table.of(title, sizes, *_SIZE, *iou), Table.of(band, sizes, *_SIZE, *boundary)]


def _error_tables(errors: ErrorAnalysis) -> list[Table]:
    """By size: where the network looks, and what knowing the truth there would give; then by level."""
    sizes = _filled(errors.sizes)
    where = ("wrong, relabelled", "wrong_inside"), ("area relabelled", "area")
    what = ("fixed", "fixed"), ("broken", "broken")
    fits: list[Column] = []
    for kind, score in (("IoU", "iou"), ("boundary", "boundary_iou")):
        headers = {"before": f"{kind} before", "after": "after", "oracle": "oracle"}
        fits += [(header, f"{when}.{score}") for when, header in headers.items()]
    levels = ("grid", "grid"), ("reached by", "count"), ("nodes", lambda row: f"{row.nodes:.0f}")
    shares = ("wrong in nodes", "wrong_inside"), ("area of nodes", "area")
    oracle = "Refined again, and the oracle: the truth where relabelled"
    return [
        Table.of(f"Error analysis (weights {errors.weights}), % of pixels", sizes, *_SIZE, *where, *what),
        Table.of(oracle, sizes, _SIZE[0], *fits),
        Table.of("Quadtree by level, % of pixels", errors.levels, *levels, *shares),
    ]


def _filled(sizes: dict[str, Any]) -> list[Any]:
    """The rows of the size classes that have instances, and of all."""
    return [row for row in sizes.values() if row.count or row.size == "all"]


def _notes(evaluation: Evaluation) -> list[str]:
    """What a reader must know to read the tables right."""
    notes = [textwrap.fill(sentence, _WIDTH) for sentence in evaluation.unused]
    if evaluation.ap_after is None:
        notes.append("No AP: the detections have no scores.")
    if evaluation.before is not None:
        notes.append(f"same: IoU changed by at most {100 * CHANGE_THRESHOLD:g} points.")
    if evaluation.errors is not None and evaluation.errors.rows:
        notes.append(
            "wrong in nodes: share of the coarse masks' wrong pixels that lie inside the\n"
            "quadtree; area: share of the regions it covers; fixed, broken: wrong pixels set\n"
            "right and right ones set wrong, as shares of the wrong ones."
        )
    elif evaluation.errors is not None:
        notes.append("No error analysis: no matched instance is large and near enough.")
    return notes


def _pair(header: str, score: str) -> Column:
    """A score before → after."""
    return header, lambda row: before_after(getattr(row.before, score), getattr(row.after, score))


def _change(name: str) -> Column:
    """A change with its interval, "+4.1 [+3.0, +5.2]"; without the ends where there are none."""

    def cell(row: Any) -> str:
        mean, low, high = (points(value, "+.1f") for value in getattr(row, name))
        return mean if low == "–" else f"{mean} [{low}, {high}]"  # of one image there is no interval

    return "change [95 %]", cell


def _shares(row: SizeSummary) -> str:
    """Shares of the instances that got better, stayed, got worse."""
    shares = (row.better, row.unchanged, row.worse)
    cells = ["–" if share is None else points(abs(share), ".0f") for share in shares]
    return " / ".join(cell if cell == "–" else f"{cell} %" for cell in cells)


def _plain(value: Any) -> Any:
    """The same as JSON data: records as dicts, nan as None."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if dataclasses.is_dataclass(value):
        value = vars(value)
    elif hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value
