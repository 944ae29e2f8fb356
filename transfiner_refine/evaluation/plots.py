"""An evaluation as pictures: before against after, the gain by size, and what the scores are worth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transfiner_refine.errors import InputError
from transfiner_refine.evaluation.evaluate import Evaluation
from transfiner_refine.evaluation.matched import CHANGE_THRESHOLD
from transfiner_refine.evaluation.tables import instance_rows
from transfiner_refine.output import atomic_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TONES = {"better": "#147a3d", "same": "#8a93a1", "worse": "#bf2a2a"}  # as on the report's page
_MEASURES = {"iou": "IoU", "boundary_iou": "boundary IoU"}
_LEAST = 5  # instances in a group, or its mean says nothing
_GROUPS = 10


def draw_plots(evaluation: Evaluation, output: Path) -> list[str]:
    """Writes PNGs into a folder, which is replaced as a whole; gives their names.

    ``before_after.png`` and ``gain_by_size.png`` show the counted instances, where there are masks before;
    ``reliability.png`` the mean IoU of the masks of each range of scores, where there are scores.

    Raises:
        InputError: matplotlib is missing, or there is nothing to draw.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        remedy = 'pip install "transfiner-refine[explain]"'
        raise InputError("plots need the package matplotlib", remedy=remedy) from error
    rows = instance_rows(evaluation)
    counted = [row for row in rows if row["counted"] and row["iou_before"] is not None]
    scored = [row for row in rows if row["score"] is not None]
    figures: dict[str, Any] = {}
    if counted:
        figures["before_after.png"] = _before_after(Figure(figsize=(9, 4.6), layout="constrained"), counted)
        figures["gain_by_size.png"] = _gain_by_size(Figure(figsize=(9, 4.2), layout="constrained"), counted)
    if scored:
        figures["reliability.png"] = _reliability(Figure(figsize=(5, 4.6), layout="constrained"), scored)
    if not figures:
        raise InputError("there is nothing to plot: no matched instance counts, and none has a score")
    with atomic_folder(output) as folder:
        for name, figure in figures.items():
            figure.savefig(folder / name, dpi=130)
    return list(figures)


def groups(x: Sequence[float], y: Sequence[float]) -> list[tuple[float, float, float]]:
    """At most ten groups of like size by ``x``: mean x, mean y, and its standard error."""
    order = np.argsort(x, kind="stable")
    parts = np.array_split(order, max(1, min(_GROUPS, len(order) // _LEAST)))
    xs, ys = np.asarray(x, float), np.asarray(y, float)
    return [(xs[p].mean(), ys[p].mean(), ys[p].std(ddof=min(1, len(p) - 1)) / len(p) ** 0.5) for p in parts]


def _before_after(figure: Figure, rows: Sequence[dict[str, Any]]) -> Figure:
    for number, (key, name) in enumerate(_MEASURES.items(), 1):
        panel = figure.add_subplot(1, 2, number)
        before, after = (np.array([row[f"{key}_{when}"] for row in rows]) for when in ("before", "after"))
        change = after - before
        better, worse = change > CHANGE_THRESHOLD, change < -CHANGE_THRESHOLD
        for tone, chosen in (("same", ~better & ~worse), ("better", better), ("worse", worse)):
            label = f"{tone}: {100 * chosen.mean():.0f} %"
            style: dict[str, Any] = {"s": 14, "alpha": 0.6, "linewidths": 0, "color": _TONES[tone]}
            panel.scatter(100 * before[chosen], 100 * after[chosen], label=label, **style)
        low = 100 * min(before.min(), after.min(), 0.9)
        panel.plot([low, 100], [low, 100], color="0.5", linewidth=1, linestyle="--")
        panel.set(xlabel=f"{name} before", ylabel=f"{name} after", aspect="equal")
        panel.legend(loc="lower right", frameon=False)
    figure.suptitle(f"{len(rows)} instances, each a dot")
    return figure


def _gain_by_size(figure: Figure, rows: Sequence[dict[str, Any]]) -> Figure:
    sides = [row["area"] ** 0.5 for row in rows]
    for number, (key, name) in enumerate(_MEASURES.items(), 1):
        panel = figure.add_subplot(1, 2, number)
        gains = [100 * (row[f"{key}_after"] - row[f"{key}_before"]) for row in rows]
        panel.axhline(0, color="0.5", linewidth=1)
        panel.scatter(sides, gains, s=8, alpha=0.3, linewidths=0, color="#0b62c4")
        x, y, error = zip(*groups(sides, gains), strict=True)
        panel.errorbar(x, y, 1.96 * np.array(error), color="#0b62c4", marker="o", capsize=3)
        panel.set(xlabel="√area of the true mask, pixels", ylabel=f"gain in {name}, points", xscale="log")
        ticks = [2**n for n in range(16) if min(sides) / 2 < 2**n < 2 * max(sides)]
        panel.set_xticks(ticks, map(str, ticks))
        panel.minorticks_off()
    figure.suptitle("A dot is an instance; lines join the means of like sizes, with 95 % intervals")
    return figure


def _reliability(figure: Figure, rows: Sequence[dict[str, Any]]) -> Figure:
    panel = figure.add_subplot()
    panel.plot([0, 1], [0, 1], color="0.5", linewidth=1, linestyle="--")
    for when, colour in (("before", "#8a93a1"), ("after", "#0b62c4")):
        chosen = [row for row in rows if row[f"iou_{when}"] is not None]
        if chosen:
            found = groups([row["score"] for row in chosen], [row[f"iou_{when}"] for row in chosen])
            x, y, error = zip(*found, strict=True)
            panel.errorbar(x, y, 1.96 * np.array(error), color=colour, marker="o", capsize=3, label=when)
    panel.set(xlabel="score of the detector", ylabel="mean IoU of the masks with such scores")
    panel.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    panel.legend(loc="lower right", frameon=False)
    figure.suptitle("Below the line, scores promise more than the masks keep", fontsize="medium")
    return figure
