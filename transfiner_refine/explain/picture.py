"""One sheet that shows how a mask was refined: what was wrong, which nodes were labelled anew, what came out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from transfiner_refine.evaluation.matched import mask_scores
from transfiner_refine.evaluation.overlap import as_window, mask_iou
from transfiner_refine.explain import panels
from transfiner_refine.explain.canvas import QUIET, Canvas, Colour, paragraph_height
from transfiner_refine.masks import MaskWindow
from transfiner_refine.report.focus import focus
from transfiner_refine.trace import Trace

__all__ = ["Names", "explain"]

_WIDTH = 2400  # of the sheet, pixels: two for each point of a screen or a page of 1200
_MARGIN = 84
_GUTTER = 44
_TITLE, _SUBTITLE, _SECTION, _PANEL, _CAPTION = 50, 27, 34, 27, 23  # font sizes, pixels
_FLATTEST, _TALLEST = 0.62, 1.2  # a panel's height over its width
_SMALLEST_CELL = 3.0  # pixels; smaller cells cannot be told apart, so their level is shown from near


@dataclass(frozen=True)
class Names:
    """What the sheet calls its subject.

    Attributes:
        image: file name of the photo.
        mask: file name of the coarse mask.
        weights: name of the weights.
    """

    image: str
    mask: str
    weights: str


@dataclass(frozen=True)
class _Panel:
    """A picture with what is written under it; ``legend`` are coloured squares with a word each."""

    pixels: NDArray[np.uint8]
    title: str
    caption: str
    legend: Sequence[tuple[Colour, str]] = ()


@dataclass(frozen=True)
class _Section:
    """A row of panels under a heading."""

    heading: str
    panels: Sequence[_Panel]


def explain(
    image: NDArray[np.uint8], trace: Trace, names: Names, truth: MaskWindow | None = None
) -> Image.Image:
    """Draws the sheet.

    Args:
        image: H×W×3 uint8 RGB.
        trace: of an instance of that image.
        names: for the headings.
        truth: the true mask, for scores and to tell right changes from wrong ones; None if it is not known.

    Returns:
        an RGB picture, 2400 pixels wide.
    """
    step = trace.passes[0]
    columns = max(4, len(step.levels))
    width = (_WIDTH - 2 * _MARGIN - (columns - 1) * _GUTTER) // columns
    ratio = min(_TALLEST, max(_FLATTEST, step.roi.height / step.roi.width))
    artist = _Artist(image, trace, truth, width, round(width * ratio))
    sections = [artist.finding(columns), artist.labelling(), artist.result(columns)]
    heights = [_section_height(section, width, artist.height) for section in sections]
    canvas = Canvas(_WIDTH, round(_MARGIN * 1.2 + 150 + sum(heights)))
    y = _headline(canvas, trace, names, truth)
    for section, height in zip(sections, heights, strict=True):
        _draw_section(canvas, section, y, width, artist.height)
        y += height
    return canvas.image


@dataclass(frozen=True)
class _Artist:
    """Draws panels of one size; a picture keeps its aspect and may be smaller along one side."""

    image: NDArray[np.uint8]
    trace: Trace
    truth: MaskWindow | None
    width: int
    height: int

    @property
    def window(self) -> panels.Window:
        """The RoI of the first pass."""
        roi = self.trace.passes[0].roi
        return roi.x0, roi.y0, roi.x1, roi.y1

    def fit(self, width: float, height: float) -> tuple[int, int]:
        """The size of a picture of these proportions inside a panel, pixels."""
        scale = min(self.width / width, self.height / height)
        return max(1, round(width * scale)), max(1, round(height * scale))

    def photo(self, window: panels.Window) -> NDArray[np.uint8]:
        """A window of the photo, as large as a panel allows."""
        x0, y0, x1, y1 = window
        return panels.crop(self.image, window, *self.fit(x1 - x0, y1 - y0))

    @property
    def near(self) -> panels.Window:
        """The place of the outline that is shown from near: where most has changed, inside the RoI."""
        x0, y0, x1, y1 = focus(as_window(self.trace.coarse_mask), as_window(self.trace.result))
        left, top, right, bottom = self.window
        return max(x0, left), max(y0, top), min(x1, right), min(y1, bottom)

    def _cells(self, grid: int) -> panels.Window:
        """The cells of a grid under ``near``."""
        roi = self.trace.passes[0].roi
        per_pixel = np.array([grid / roi.width, grid / roi.height] * 2)
        x0, y0, x1, y1 = (np.array(self.near) - np.array([roi.x0, roi.y0] * 2)) * per_pixel
        return int(x0), int(y0), min(grid, int(np.ceil(x1))), min(grid, int(np.ceil(y1)))

    def finding(self, columns: int) -> _Section:
        """The coarse mask, and what the detector says of it."""
        step, image = self.trace.passes[0], self.image
        roots = step.levels[0]
        size = self.fit(image.shape[1], image.shape[0])
        photo = self.photo(self.window)
        chosen = [
            _Panel(
                panels.context(image, self.trace.coarse_mask, step.roi, *size),
                "The mask that came in",
                "Its box with a margin is the region of interest: all the network looks at.",
            ),
            _Panel(
                panels.outlined(photo, [(step.coarse_mask, panels.BEFORE)], self.window, tint=True),
                "Region of interest",
                f"{step.roi.width}×{step.roi.height} pixels. The photo and the mask go in together.",
            ),
            _Panel(
                panels.heat(photo, roots, step.relabelled),
                "Where is it wrong?",
                f"The detector's answer for {roots.grid}×{roots.grid} cells, dark: surely right, bright: surely wrong. "
                f"White frame: the {np.count_nonzero(step.relabelled)} cells that are labelled anew.",
            ),
        ]
        if columns > 4:
            chosen.append(
                _Panel(
                    panels.heat(photo, step.levels[1], step.levels[1].cells),
                    "… and one level finer",
                    "Asked again under the roots alone: which of their quadrants need another look?",
                )
            )
        nodes = sum(len(level) for level in step.levels)
        finest = step.levels[-1].grid
        chosen.append(
            _Panel(
                panels.quadtree(photo, step),
                "The quadtree",
                f"{nodes:,} nodes, {_percent(nodes / finest**2)} of the cells that a dense {finest}×{finest} grid has.",
                [
                    (panels.LEVELS[number % len(panels.LEVELS)], str(level.grid))
                    for number, level in enumerate(step.levels)
                ],
            )
        )
        return _Section("1   Find what is wrong", chosen)

    def labelling(self) -> _Section:
        """The mask level by level."""
        step = self.trace.passes[0]
        size = self.fit(step.roi.width, step.roi.height)
        legend = [(panels.FOREGROUND, "object"), (panels.BACKGROUND, "background")]
        chosen = []
        for number, level in enumerate(step.levels):
            share = _percent(len(level) / level.grid**2)
            if number == 0:
                dense = np.count_nonzero(step.relabelled) - len(level)
                caption = (
                    f"{len(level):,} roots, {share} of the cells, where an outline may run. {dense:,} more "
                    "take the dense decoder's label; the rest keep the mask."
                )
            else:
                judged = int(np.count_nonzero(~np.isnan(level.suspicion)))
                caption = (
                    f"{judged:,} quadrants looked at, {len(level):,} labelled anew: {share} of the cells."
                )
            title = f"{level.grid}×{level.grid} cells"
            if size[0] / level.grid < _SMALLEST_CELL:
                x0, y0, x1, y1 = cells = self._cells(level.grid)
                near = self.fit((x1 - x0) * step.roi.width, (y1 - y0) * step.roi.height)
                picture = panels.labels(level, cells, *near)
                title += ", from near"
            else:
                picture = panels.labels(level, (0, 0, level.grid, level.grid), *size)
                finer = number + 1 < len(step.levels) and size[0] / (2 * level.grid) < _SMALLEST_CELL
                if finer:  # the panels after this one show a part only: here is where it lies
                    picture = panels.framed(picture, self.near, self.window)
            chosen.append(_Panel(picture, title, caption, legend if number == 0 else ()))
        return _Section("2   Label the nodes, coarse to fine", chosen)

    def result(self, columns: int) -> _Section:
        """Before, after, the difference, and the outline from near."""
        coarse, refined = as_window(self.trace.coarse_mask), as_window(self.trace.result)
        window = self.window
        photo = self.photo(window)
        near = self.near
        close = self.photo(near)
        before, after = self._scores(coarse, refined)
        good, bad = ("added", "removed") if self.truth is None else ("now right", "now wrong")
        chosen = [
            _Panel(panels.outlined(photo, [(coarse, panels.BEFORE)], window, tint=True), "Before", before),
            _Panel(panels.outlined(photo, [(refined, panels.AFTER)], window, tint=True), "After", after),
            _Panel(
                panels.changes(photo, coarse, refined, window, self.truth),
                "The difference",
                "Cells that were not labelled anew keep the mask that came in.",
                [(panels.ADDED, good), (panels.REMOVED, bad)],
            ),
        ]
        pair = [(panels.BEFORE, "before"), (panels.AFTER, "after")]
        if columns > 4:
            chosen.append(
                _Panel(
                    panels.outlined(close, [(coarse, panels.BEFORE)], near),
                    "The outline, before",
                    f"{near[2] - near[0]}×{near[3] - near[1]} pixels where most has changed.",
                )
            )
            chosen.append(
                _Panel(
                    panels.outlined(close, [(refined, panels.AFTER)], near),
                    "The outline, after",
                    "The same place, the refined mask.",
                )
            )
        else:
            masks = [(coarse, panels.BEFORE), (refined, panels.AFTER)]
            chosen.append(
                _Panel(
                    panels.outlined(close, masks, near),
                    "The outline from near",
                    f"{near[2] - near[0]}×{near[3] - near[1]} pixels where most has changed.",
                    pair,
                )
            )
        return _Section("3   The result", chosen)

    def _scores(self, coarse: MaskWindow, refined: MaskWindow) -> tuple[str, str]:
        """Captions of before and after."""
        if self.truth is None:
            same = mask_iou(coarse, refined) == 1
            kept = "Kept as it came: the network found it right." if same else f"{refined.area:,} pixels."
            return f"{coarse.area:,} pixels.", kept
        before, after = mask_scores(self.truth, coarse), mask_scores(self.truth, refined)
        return (
            f"IoU {100 * before.iou:.1f}, boundary IoU {100 * before.boundary_iou:.1f}.",
            f"IoU {100 * after.iou:.1f}, boundary IoU {100 * after.boundary_iou:.1f}.",
        )


def _headline(canvas: Canvas, trace: Trace, names: Names, truth: MaskWindow | None) -> float:
    """Title and subtitle; returns where the first section begins."""
    canvas.text(_MARGIN, _MARGIN - 12, "How Mask Transfiner refines this mask", _TITLE, weight="SemiBold")
    passes = len(trace.passes)
    more = f", shown: the first of {passes} passes" if passes > 1 else ""
    if trace.close_ups:
        more += f"; {len(trace.close_ups)} close-ups followed"
    known = ", scored against the truth" if truth is not None else ""
    subtitle = f"{names.mask} on {names.image}, weights {names.weights}{more}{known}"
    canvas.text(_MARGIN, _MARGIN + 58, subtitle, _SUBTITLE, colour=QUIET)
    return _MARGIN + 130


def _section_height(section: _Section, width: int, height: int) -> float:
    text = max(
        paragraph_height(panel.caption, width, _CAPTION) + (_CAPTION * 1.8 if panel.legend else 0)
        for panel in section.panels
    )
    return _SECTION * 2.4 + height + _PANEL * 2.1 + text + _SECTION * 1.3


def _draw_section(canvas: Canvas, section: _Section, y: float, width: int, height: int) -> None:
    canvas.rule(_MARGIN, _WIDTH - _MARGIN, y)
    canvas.text(_MARGIN, y + _SECTION * 0.75, section.heading, _SECTION, weight="SemiBold")
    top = round(y + _SECTION * 2.4)
    for number, panel in enumerate(section.panels):
        x = _MARGIN + number * (width + _GUTTER)
        h = panel.pixels.shape[0]
        canvas.picture(x, top + height - h, panel.pixels)
        below = top + height + _PANEL * 0.6
        canvas.text(x, below, panel.title, _PANEL, weight="SemiBold")
        end = canvas.paragraph(x, below + _PANEL * 1.5, width, panel.caption, _CAPTION)
        at: float = x
        for colour, word in panel.legend:
            canvas.swatch(at, end + _CAPTION * 0.52, _CAPTION * 0.8, colour)
            at = (
                canvas.text(at + _CAPTION * 1.15, end + _CAPTION * 0.35, word, _CAPTION, colour=QUIET)
                + _CAPTION
            )


def _percent(share: float) -> str:
    return f"{100 * share:.1f}\u00a0%" if share < 0.1 else f"{100 * share:.0f}\u00a0%"
