"""Tables of points (hundredths), as text for a terminal and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Table", "before_after", "points", "signed_points"]

_COLUMNS = 80  # of a terminal
_INDENT = "  "
_GAP = "  "


@dataclass(frozen=True)
class Table:
    """Rows of cells under headers; the first column is text, the others are numbers."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]

    def text(self) -> str:
        """Columns lined up by spaces; where they need more than 80, the first column's cells are cut."""
        lines = [self.headers, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.headers))]
        others = len(_INDENT) + sum(len(_GAP) + width for width in widths[1:])
        widths[0] = max(1, min(widths[0], _COLUMNS - others))
        padded = []
        for first, *numbers in lines:
            cut = first if len(first) <= widths[0] else first[: widths[0] - 1] + "…"
            cells = [cut.ljust(widths[0])]
            cells += [cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True)]
            padded.append(_INDENT + _GAP.join(cells).rstrip())
        return "\n".join([self.title, *padded])

    def markdown(self) -> str:
        """A GitHub table under its title."""
        rule = ["---", *("---:" for _ in self.headers[1:])]
        rows = [self.headers, rule, *self.rows]
        return "\n".join([f"**{self.title}**", "", *("| " + " | ".join(row) + " |" for row in rows)])


def points(value: float | None) -> str:
    """A share as points with one decimal: 0.7852 → "78.5"; "–" where there is none."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def signed_points(value: float | None) -> str:
    """A change as points with its sign: 0.012 → "+1.2"."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:+.1f}"


def before_after(before: float, after: float | None) -> str:
    """ "74.0 → 78.1", or the first alone."""
    return points(before) if after is None else f"{points(before)} → {points(after)}"
