"""How the method works on one instance, as one picture."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any, NamedTuple
from warnings import catch_warnings, simplefilter

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from transfiner_refine.errors import InputError
from transfiner_refine.evaluation.matched import mask_scores
from transfiner_refine.evaluation.overlap import as_window, mask_iou
from transfiner_refine.formats.mask_image import read_mask_image
from transfiner_refine.images import read_image
from transfiner_refine.masks import MaskWindow
from transfiner_refine.output import atomic_binary_file, check_output_file
from transfiner_refine.refine.roi import Roi, focus, read_mask
from transfiner_refine.refiner import load_refiner
from transfiner_refine.trace import Trace, TraceLevel, TracePass, trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BEFORE, AFTER, ADDED, REMOVED = "#ff4a60", "#00a6ff", "#28c76f", "#ff4a60"
FOREGROUND, BACKGROUND = "#0096c7", "#ff8c28"
LEVELS = ("#ffe14d", "#ff9233", "#ff3d77", "#b04dff", "#3d8bff")  # coarse to fine, as in the report
INK, QUIET, LINE = "#181b21", "#606875", "#dee2e8"

# pixels
_WIDTH, _TALLEST_SHEET, _MARGIN, _GUTTER = 2400, 3600, 84, 44
_TITLE, _SUBTITLE, _SECTION, _PANEL, _CAPTION = 46, 25, 32, 25, 21  # font sizes
_LEADING = 1.4 * _CAPTION
_LETTER = 0.58 * _CAPTION  # mean width
_FLATTEST, _TALLEST = 0.62, 1.2  # a panel's height over its width
_SMALLEST_CELL = 3.0  # smaller cells cannot be told apart: a part of their level is shown enlarged


class Names(NamedTuple):
    """What the picture calls the image file, the file of the coarse mask, and the weights."""

    image: str
    mask: str
    weights: str


def explain_files(
    image: str | Path,
    mask: str | Path,
    output: str | Path,
    *,
    instance_id: int | None = None,
    truth: str | Path | None = None,
    weights: str | Path = "lite",
    device: str = "auto",
    overwrite: bool = False,
) -> None:
    """Refines one mask and draws how.

    Args:
        image: the image.
        mask: its coarse mask, a PNG: binary, soft, or a label map.
        output: the PNG to write.
        instance_id: which instance of a label map.
        truth: the true mask, a PNG of the same kinds; None if it is not known.
        weights, device: as for ``load_refiner``.
        overwrite: the output may be replaced.

    Raises:
        InputError: an input cannot be used, the mask is empty, or matplotlib is missing.
        OutputError: the output exists, is an input, or cannot be written.
        CheckpointError, DeviceError: from loading the weights.
    """
    _require_matplotlib()
    image, mask, output = Path(image), Path(mask), Path(output)
    check_output_file(output, [image, mask, *([] if truth is None else [Path(truth)])], overwrite=overwrite)
    coarse = read_mask_image(mask, instance_id)
    real = None if truth is None else read_mask_image(Path(truth), instance_id)
    pixels, _ = read_image(image, {coarse.image_size})
    if real is not None and real.image_size != coarse.image_size:
        raise InputError(
            f"is {real.image_size[1]}×{real.image_size[0]}, the mask {coarse.image_size[1]}×{coarse.image_size[0]}",
            file=truth,
            remedy="give the truth of the same image",
        )
    if coarse.area == 0:
        raise InputError("has no foreground", file=mask, remedy="an empty mask is never refined")
    refiner = load_refiner(weights, device=device, engine="torch")
    names = Names(image.name, mask.name, Path(weights).name)
    picture = explain(pixels, trace(refiner, pixels, coarse), names, real)
    with atomic_binary_file(output) as file:
        picture.save(file, format="PNG")


def explain(
    image: NDArray[np.uint8], trace: Trace, names: Names, truth: MaskWindow | None = None
) -> Image.Image:
    """Draws the picture.

    Args:
        image: H×W×3 uint8 RGB.
        trace: of an instance of that image.
        names: for the headings.
        truth: the true mask, for scores and to tell right changes from wrong ones; None if it is not known.

    Returns:
        an RGB picture, 2400 pixels wide; raises InputError where matplotlib is missing.
    """
    _require_matplotlib()
    first, coarse, refined = trace.passes[0], as_window(trace.coarse_mask), as_window(trace.result)
    x0, y0, x1, y1 = focus(coarse, refined)
    roi = first.roi
    near = Roi(max(x0, roi.x0), max(y0, roi.y0), min(x1, roi.x1), min(y1, roi.y1))
    more = f", shown: the first of {len(trace.passes)} passes" if len(trace.passes) > 1 else ""
    more += f"; {len(trace.tiles)} tiles followed" if trace.tiles else ""
    more += ", scored against the truth" if truth is not None else ""
    sheet = _Sheet(image, max(4, len(first.levels)), roi, near)
    sheet.text(_MARGIN, _MARGIN - 12, "How Mask Transfiner refines this mask", _TITLE, weight="bold")
    subtitle = f"{names.mask} on {names.image}, weights {names.weights}{more}"
    sheet.text(_MARGIN, _MARGIN + 58, subtitle, _SUBTITLE, color=QUIET)
    _draw_finding(sheet, trace.coarse_mask, first)
    _draw_labelling(sheet, first)
    _draw_result(sheet, coarse, refined, truth)
    return sheet.rendered()


class _Sheet:
    """A page of rows of panels, coordinates in pixels from its left top corner.

    Args:
        image: H×W×3 uint8 RGB, parts of which are shown.
        columns: panels a row.
        roi: whose proportions the panels have, within limits.
        near: the part that is shown enlarged.
    """

    def __init__(self, image: NDArray[np.uint8], columns: int, roi: Roi, near: Roi) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.image, self.columns, self.roi, self.near = image, columns, roi, near
        self.width = (_WIDTH - 2 * _MARGIN - (columns - 1) * _GUTTER) // columns
        self.height = round(self.width * min(_TALLEST, max(_FLATTEST, roi.height / roi.width)))
        self.figure = Figure((_WIDTH / 72, _TALLEST_SHEET / 72), dpi=72)  # a point is a pixel
        self.canvas: Any = FigureCanvasAgg(self.figure)
        self.number, self.top, self.bottom = 0, 0.0, _MARGIN + 130.0

    def rendered(self) -> Image.Image:
        """The page as far down as something was drawn."""
        with catch_warnings():
            simplefilter("ignore")  # of characters that the font lacks
            self.canvas.draw()
        pixels = np.asarray(self.canvas.buffer_rgba())[: round(self.bottom + _MARGIN / 4), :, :3]
        return Image.fromarray(pixels.copy())

    def text(self, x: float, y: float, line: str, size: float, color: str = INK, **style: Any) -> None:
        style = {"va": "top", "linespacing": 1.2, "parse_math": False, **style}  # names may have dollar signs
        self.figure.text(x / _WIDTH, 1 - y / _TALLEST_SHEET, line, size=size, color=color, **style)

    def scale(self, shown: Roi) -> float:
        """Pixels of a panel for a pixel of the image."""
        return min(self.width / shown.width, self.height / shown.height)

    def row(self, heading: str) -> None:
        """Begins a row of panels."""
        y = 1 - self.bottom / _TALLEST_SHEET
        rule = self.figure.add_axes((_MARGIN / _WIDTH, y, 1 - 2 * _MARGIN / _WIDTH, 0), frameon=False)
        rule.set(xticks=[], yticks=[])
        rule.axhline(0, color=LINE, linewidth=3, clip_on=False)
        self.text(_MARGIN, self.bottom + 0.75 * _SECTION, heading, _SECTION, weight="bold")
        self.number, self.top = 0, self.bottom + 2.4 * _SECTION

    def panel(self, title: str, caption: str, shown: Roi, legend: Mapping[str, str] | None = None) -> Axes:
        """The next panel of the row, with a title, a caption and a legend (word → colour) under it.

        Its coordinates are those of the image, of which it shows the part ``shown``.
        """
        x, y = _MARGIN + self.number * (self.width + _GUTTER), self.top + self.height
        scale = self.scale(shown)
        size = scale * shown.width / _WIDTH, scale * shown.height / _TALLEST_SHEET
        axes = self.figure.add_axes((x / _WIDTH, 1 - y / _TALLEST_SHEET, *size))
        axes.set(xlim=(shown.x0, shown.x1), ylim=(shown.y1, shown.y0), xticks=[], yticks=[])
        axes.autoscale(False)
        axes.spines[:].set_color(LINE)
        self.text(x, y + 0.6 * _PANEL, title, _PANEL, weight="bold")
        lines = wrap(caption, round(self.width / _LETTER), break_on_hyphens=False)
        y += 2.1 * _PANEL
        self.text(x, y, "\n".join(lines), _CAPTION, color=QUIET)
        y += len(lines) * _LEADING
        for word, colour in (legend or {}).items():
            self.text(x, y + _CAPTION, "■", _CAPTION, color=colour, va="baseline")
            self.text(x + 1.1 * _CAPTION, y + _CAPTION, word, _CAPTION, color=QUIET, va="baseline")
            x += round((len(word) + 3.5) * _LETTER)
        y += _LEADING if legend else 0
        self.number, self.bottom = self.number + 1, max(self.bottom, y + 1.3 * _SECTION)
        return axes

    def view(
        self,
        title: str,
        caption: str,
        shown: Roi,
        mask: MaskWindow,
        colour: str,
        *,
        tint: bool = False,
        legend: Mapping[str, str] | None = None,
    ) -> Axes:
        """A panel with the image and a mask on it."""
        axes = self.panel(title, caption, shown, legend)
        _image(axes, self.image, shown)
        _mask(axes, mask, shown, colour, tint=tint)
        return axes


def _draw_finding(sheet: _Sheet, given: MaskWindow, step: TracePass) -> None:
    """The coarse mask, and the detector's answer."""
    roi, levels = sheet.roi, step.levels
    whole = Roi(0, 0, sheet.image.shape[1], sheet.image.shape[0])
    sheet.row("1   Find what is wrong")
    caption = "Its box with a margin is the region of interest: all that the network sees."
    axes = sheet.panel("The given mask", caption, whole)
    _image(axes, sheet.image, whole, fade=0.6)
    _image(axes, sheet.image, roi)
    _mask(axes, given, whole, BEFORE, tint=True)
    _frame(axes, roi)
    caption = f"{roi.width}×{roi.height} pixels. The image and the mask go in together."
    sheet.view("Region of interest", caption, roi, step.coarse_mask, BEFORE, tint=True)
    grid, relabelled = levels[0].grid, np.count_nonzero(step.relabelled)
    caption = (
        f"The detector's answer for {grid}×{grid} cells, dark: surely right, bright: surely wrong. "
        f"White frame: the {relabelled} cells that are relabelled."
    )
    _heat(sheet, "Where is it wrong?", caption, levels[0], step.relabelled)
    if sheet.columns > 4:
        caption = "Asked again under the roots alone: which of their quadrants need another look?"
        _heat(sheet, "… and one level finer", caption, levels[1], levels[1].cells)
    nodes, finest = sum(map(len, levels)), levels[-1].grid
    caption = f"{nodes:,} nodes, {_percent(nodes / finest**2)} of the cells that a dense {finest}×{finest} grid has."
    legend = {str(level.grid): colour for level, colour in zip(levels, LEVELS, strict=False)}
    axes = sheet.panel("The quadtree", caption, roi, legend)
    _image(axes, sheet.image, roi, fade=0.35)
    for level in levels:
        has_lines = sheet.scale(roi) * roi.width / level.grid >= 4  # they would fill smaller cells
        _layer(axes, level.cells, roi, legend[str(level.grid)], 0.32 if has_lines else 0.7)
        if has_lines:
            _edges(axes, level.cells, roi, legend[str(level.grid)], 1, every=True)


def _draw_labelling(sheet: _Sheet, step: TracePass) -> None:
    """The mask level by level; of a level of small cells a part is shown enlarged."""
    roi, scale = sheet.roi, sheet.scale(sheet.roi)
    sheet.row("2   Label the nodes, coarse to fine")
    legend = {"object": FOREGROUND, "background": BACKGROUND}
    for number, level in enumerate(step.levels):
        share, cell = _percent(len(level) / level.grid**2), roi.width / level.grid
        judged = np.count_nonzero(~np.isnan(level.wrong_probability))
        caption = f"{judged:,} quadrants judged, {len(level):,} relabelled: {share} of the cells."
        if number == 0:
            dense = np.count_nonzero(step.relabelled) - len(level)
            caption = (
                f"{len(level):,} roots, {share} of the cells, where an outline may run. {dense:,} more take "
                "the dense decoder's label; the rest keep the mask."
            )
        is_small = scale * cell < _SMALLEST_CELL
        title, shown = f"{level.grid}×{level.grid} cells", sheet.near if is_small else roi
        axes = sheet.panel(title + ", enlarged" * is_small, caption, shown, None if number else legend)
        colours = np.repeat(60 + 195 * level.mask[..., None], 3, 2)
        label = level.label[:, None]
        colours[level.y, level.x] = _rgb(FOREGROUND) * label + _rgb(BACKGROUND) * (1 - label)
        _show(axes, np.rint(colours).astype(np.uint8), roi, interpolation="nearest")
        if sheet.scale(shown) * cell >= 6:
            _edges(axes, level.cells, roi, "white", 1, every=True)
        if not is_small and level is not step.levels[-1] and scale * cell / 2 < _SMALLEST_CELL:
            _frame(axes, sheet.near)  # of the panels that follow


def _draw_result(sheet: _Sheet, coarse: MaskWindow, refined: MaskWindow, truth: MaskWindow | None) -> None:
    """Before, after, the difference, and the outline enlarged."""
    roi, near = sheet.roi, sheet.near
    before, after = f"{coarse.area:,} pixels.", f"{refined.area:,} pixels."
    old, new = (read_mask(mask, roi) >= 0.5 for mask in (coarse, refined))
    changes = {"added": new & ~old, "removed": old & ~new}
    if truth is not None:
        scores = mask_scores(truth, coarse), mask_scores(truth, refined)
        before, after = (f"IoU {100 * x.iou:.1f}, boundary IoU {100 * x.boundary_iou:.1f}." for x in scores)
        real = read_mask(truth, roi) >= 0.5
        changes = {"now right": (new == real) & (old != real), "now wrong": (new != real) & (old == real)}
    elif mask_iou(coarse, refined) == 1:
        after = "Left as it was: the network found it right."
    sheet.row("3   The result")
    sheet.view("Before", before, roi, coarse, BEFORE, tint=True)
    sheet.view("After", after, roi, refined, AFTER, tint=True)
    legend = dict(zip(changes, (ADDED, REMOVED), strict=True))
    axes = sheet.panel("The difference", "Cells that were not relabelled keep the given mask.", roi, legend)
    _image(axes, sheet.image, roi, fade=0.5)
    for word, changed in changes.items():
        _layer(axes, changed, roi, legend[word], 0.88)
    size = f"{near.width}×{near.height} pixels where most has changed."
    if sheet.columns > 4:
        sheet.view("The outline, before", size, near, coarse, BEFORE)
        sheet.view("The outline, after", "The same place, the refined mask.", near, refined, AFTER)
    else:
        legend = {"before": BEFORE, "after": AFTER}
        axes = sheet.view("The outline, enlarged", size, near, coarse, BEFORE, legend=legend)
        _mask(axes, refined, near, AFTER)


def _require_matplotlib() -> None:
    if find_spec("matplotlib") is None:
        raise InputError(
            "drawing needs the package matplotlib", remedy='pip install "transfiner-refine[explain]"'
        )


def _percent(share: float) -> str:
    return f"{100 * share:.1f}\u00a0%" if share < 0.1 else f"{100 * share:.0f}\u00a0%"


def _show(axes: Axes, values: NDArray[Any], area: Roi, **style: Any) -> None:
    """Fills an area with values, over what was drawn before."""
    extent = area.x0, area.x1, area.y1, area.y0
    axes.imshow(values, extent=extent, aspect="auto", zorder=len(axes.get_children()), **style)


def _image(axes: Axes, image: NDArray[np.uint8], area: Roi, fade: float | None = None) -> None:
    """A part of the image; with ``fade`` without colours and that share nearer to white."""
    part = image[area.y0 : area.y1, area.x0 : area.x1]
    if fade is not None:
        grey = np.rint(part.mean(2, keepdims=True) * (1 - fade) + 255 * fade)
        part = np.repeat(grey.astype(np.uint8), 3, 2)
    _show(axes, part, area)


def _mask(axes: Axes, mask: MaskWindow, area: Roi, colour: str, *, tint: bool = False) -> None:
    """A mask's outline along the edges of its pixels; there is none where the area ends and the mask goes on."""
    inside = read_mask(mask, area) >= 0.5
    if tint:
        _layer(axes, inside, area, colour, 0.4)
    _edges(axes, inside, area, colour, 4.5)


def _heat(sheet: _Sheet, title: str, caption: str, level: TraceLevel, chosen: NDArray[np.bool_]) -> None:
    """A panel with the detector's answer for every cell over the image; the chosen cells have a frame."""
    axes = sheet.panel(title, caption, sheet.roi)
    _image(axes, sheet.image, sheet.roi, fade=0.0)
    values = np.nan_to_num(level.wrong_probability)
    # a little off the map's black end, so that the image shows
    _show(axes, values, sheet.roi, cmap="inferno", vmin=-0.12, vmax=1, alpha=0.8, interpolation="nearest")
    _edges(axes, chosen, sheet.roi, "white", 3, border=True)


def _layer(axes: Axes, cells: NDArray[np.bool_], area: Roi, colour: str, alpha: float) -> None:
    """Colours the marked cells of a grid that fills an area."""
    layer = np.zeros((*cells.shape, 4), np.float32)
    layer[..., :3], layer[cells, 3] = _rgb(colour) / 255, alpha
    _show(axes, layer, area)


def _edges(
    axes: Axes,
    cells: NDArray[np.bool_],
    area: Roi,
    colour: str,
    width: float,
    *,
    border: bool = False,
    every: bool = False,
) -> None:
    """Lines between marked and other cells of a grid that fills an area.

    With ``border`` they are drawn also where the area ends, with ``every`` around every marked cell.
    """
    cells = np.pad(cells, 1) if border or every else np.pad(cells, 1, mode="edge")
    meet = np.logical_or if every else np.not_equal
    rows = np.linspace(area.y0, area.y1, cells.shape[0] - 1)
    columns = np.linspace(area.x0, area.x1, cells.shape[1] - 1)
    style: dict[str, Any] = {"linewidth": width, "capstyle": "projecting", "zorder": len(axes.get_children())}
    y, x = np.nonzero(meet(cells[1:, 1:-1], cells[:-1, 1:-1]))
    axes.hlines(rows[y], columns[x], columns[x + 1], colour, **style)
    y, x = np.nonzero(meet(cells[1:-1, 1:], cells[1:-1, :-1]))
    axes.vlines(columns[x], rows[y], rows[y + 1], colour, **style)


def _frame(axes: Axes, area: Roi) -> None:
    x, y = [area.x0, area.x1, area.x1, area.x0, area.x0], [area.y0, area.y0, area.y1, area.y1, area.y0]
    for colour, width in (("white", 7), (INK, 3)):
        axes.plot(x, y, color=colour, linewidth=width, zorder=len(axes.get_children()))


def _rgb(colour: str) -> NDArray[np.float32]:
    """[3] in [0, 255]."""
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], np.float32)
