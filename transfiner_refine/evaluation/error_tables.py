"""The error analysis as tables and as JSON."""

from __future__ import annotations

import dataclasses
from typing import Any

from transfiner_refine.evaluation.error_analysis import ErrorAnalysis
from transfiner_refine.evaluation.table import Table, points

__all__ = ["error_json", "error_notes", "error_tables"]


def error_tables(errors: ErrorAnalysis) -> list[Table]:
    """By size: where the network looks, and what knowing the truth there would give; then by level."""
    sizes = [entry for entry in errors.sizes.values() if entry.count or entry.size == "all"]
    where = [
        [
            entry.size,
            str(entry.count),
            *map(points, (entry.wrong_inside, entry.area, entry.fixed, entry.broken)),
        ]
        for entry in sizes
    ]
    fits = [
        [
            entry.size,
            *map(points, (entry.before.iou, entry.after.iou, entry.oracle.iou)),
            *map(points, (entry.before.boundary_iou, entry.after.boundary_iou, entry.oracle.boundary_iou)),
        ]
        for entry in sizes
    ]
    levels = [
        [
            str(entry.grid),
            str(entry.count),
            f"{entry.nodes:.0f}",
            points(entry.wrong_inside),
            points(entry.area),
        ]
        for entry in errors.levels
    ]
    return [
        Table(
            f"Error analysis (weights {errors.weights}), % of pixels",
            ["size", "count", "wrong, relabelled", "area relabelled", "fixed", "broken"],
            where,
        ),
        Table(
            "Refined again, and the oracle: the truth where relabelled",
            ["size", "IoU before", "after", "oracle", "boundary before", "after", "oracle"],
            fits,
        ),
        Table(
            "Quadtree by level, % of pixels",
            ["grid", "reached by", "nodes", "wrong in nodes", "area of nodes"],
            levels,
        ),
    ]


def error_notes(errors: ErrorAnalysis) -> list[str]:
    """What the columns mean."""
    if not errors.rows:
        return ["No error analysis: no matched instance is large and near enough."]
    return [
        "wrong in nodes: share of the coarse masks' wrong pixels that lie inside the\n"
        "quadtree; area: share of the regions it covers; fixed, broken: wrong pixels set\n"
        "right and right ones set wrong, as shares of the wrong ones."
    ]


def error_json(errors: ErrorAnalysis) -> dict[str, Any]:
    """Shares in [0, 1]."""
    return {
        "weights": errors.weights,
        "sizes": {size: dataclasses.asdict(entry) for size, entry in errors.sizes.items()},
        "levels": [dataclasses.asdict(entry) for entry in errors.levels],
    }
