"""How one instance came to its refined mask: every stage of the method, kept as arrays to look at or to measure."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from transfiner_refine.model.network import TreeOutput
from transfiner_refine.model.propagate import LevelMap, halvings
from transfiner_refine.model.roi import Roi
from transfiner_refine.refiner import Refiner, window_of
from transfiner_refine.types import InputError, MaskWindow

__all__ = ["Trace", "TraceLevel", "TracePass", "trace"]


@dataclass(frozen=True)
class TraceLevel:
    """One level of the quadtree. Cell (y, x) of a grid g covers the RoI's columns x·w/g … (x + 1)·w/g.

    Attributes:
        grid: cells a side of the RoI: 28, 56, 112, …
        y: [n] int64, row of each node's cell.
        x: [n] int64, column of each node's cell.
        parent: [n] int64, index of the parent in the level above; -1 for roots.
        label: [n] float32, foreground probability the network gives each node.
        suspicion: [grid, grid] float32, the detector's probability that the cell must be labelled anew; nan
            where it did not look, because no node of the level above lies there.
        coarse: [grid, grid] float32, the mask that came in, averaged over the cells.
        mask: [grid, grid] float32, the foreground probability after this level was written.
    """

    grid: int
    y: NDArray[np.int64]
    x: NDArray[np.int64]
    parent: NDArray[np.int64]
    label: NDArray[np.float32]
    suspicion: NDArray[np.float32]
    coarse: NDArray[np.float32]
    mask: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.y)

    @property
    def cells(self) -> NDArray[np.bool_]:
        """[grid, grid], the cells that are nodes."""
        marked = np.zeros((self.grid, self.grid), bool)
        marked[self.y, self.x] = True
        return marked


@dataclass(frozen=True)
class TracePass:
    """One pass of the network over an instance.

    Attributes:
        roi: the rectangle of the image it looked at.
        coarse_mask: the mask it started from: the detector's, or the result of the pass before.
        levels: the quadtree, coarse to fine.
        incoherent: [28, 28] float32, probability that the true mask changes inside the cell.
        relabelled: [28, 28] bool, the cells that were labelled anew: by nodes, or by the dense decoder.
        probability: [roi.height, roi.width] float32, the refined mask before it is thresholded at 0.5.
    """

    roi: Roi
    coarse_mask: MaskWindow
    levels: tuple[TraceLevel, ...]
    incoherent: NDArray[np.float32]
    relabelled: NDArray[np.bool_]
    probability: NDArray[np.float32]

    def boxes(self, level: int) -> NDArray[np.float64]:
        """[n, 4] XYXY of a level's nodes, pixels of the image."""
        nodes = self.levels[level]
        cell = np.array([self.roi.width, self.roi.height]) / nodes.grid
        corner = np.stack((nodes.x, nodes.y), 1) * cell + (self.roi.x0, self.roi.y0)
        return np.hstack((corner, corner + cell))

    def covered(self, level: int) -> MaskWindow:
        """The pixels under a level's nodes, as a window of the RoI."""
        return self._window(self.levels[level].cells)

    def labelled_anew(self) -> MaskWindow:
        """The pixels that did not simply keep the coarse mask's label, as a window of the RoI."""
        return self._window(self.relabelled)

    def _window(self, cells: NDArray[np.bool_]) -> MaskWindow:
        pixels = to_pixels(cells, self.roi)
        return MaskWindow(pixels, self.roi.x0, self.roi.y0, self.coarse_mask.image_size)


@dataclass(frozen=True)
class Trace:
    """An instance from its coarse to its refined mask.

    Attributes:
        coarse_mask: the mask that came in.
        passes: what the network did, in order; more than one where the refiner took another turn.
        close_ups: what it did after them in the windows of a large object, row by row; none for others.
        result: the refined mask, bool; what ``Refiner.refine`` returns.
    """

    coarse_mask: MaskWindow
    passes: tuple[TracePass, ...]
    close_ups: tuple[TracePass, ...]
    result: MaskWindow

    @property
    def labelled_anew(self) -> MaskWindow:
        """All pixels that did not simply keep the coarse mask's label, in whichever pass or close-up."""
        return _union([step.labelled_anew() for step in (*self.passes, *self.close_ups)])

    @property
    def region(self) -> MaskWindow:
        """All pixels the network looked at: the RoIs of the passes."""
        size = self.coarse_mask.image_size
        rois = [step.roi for step in self.passes]
        return _union(
            [MaskWindow(np.ones((roi.height, roi.width), bool), roi.x0, roi.y0, size) for roi in rois]
        )


def trace(refiner: Refiner, image: NDArray[np.uint8], mask: NDArray[Any] | MaskWindow) -> Trace:
    """Refines one mask and keeps what happened on the way.

    Args:
        refiner: a loaded refiner.
        image: H×W×3 uint8 RGB.
        mask: the coarse mask, [H, W] bool or float in [0, 1], or a window of it.

    Returns:
        the stages, and the mask that ``refiner.refine`` gives.

    Raises:
        InputError: the mask is empty, or does not fit the image.
    """
    window = mask if isinstance(mask, MaskWindow) else window_of(mask)
    if window.area == 0:
        raise InputError("the mask is empty", remedy="an empty mask is never refined")
    recorder = copy.copy(refiner)  # shares the network; only its stages below are watched
    inputs: list[tuple[torch.Tensor, TreeOutput]] = []
    steps: list[TracePass] = []
    close_ups: list[TracePass] = []

    def run(pixels: torch.Tensor, coarse: torch.Tensor, depths: list[int]) -> TreeOutput:
        output = refiner.run(pixels, coarse, depths)
        inputs.append((coarse, output))
        return output

    def refine_batch(
        images: list[NDArray[np.uint8]], masks: list[MaskWindow], rois: list[Roi]
    ) -> list[NDArray[np.float32]]:
        refined = type(refiner)._refine_batch(recorder, images, masks, rois)
        steps.append(_pass(refiner, rois[0], masks[0], *inputs[-1], refined[0]))
        return refined

    def refine_once(
        images: list[NDArray[np.uint8]], masks: list[MaskWindow], rois: list[Roi], **_: int
    ) -> list[MaskWindow]:
        # one after the other, so that it is clear what belongs to which
        return [
            type(refiner)._refine_once(recorder, [image], [mask], [roi])[0]
            for image, mask, roi in zip(images, masks, rois, strict=True)
        ]

    def look_closer(images: list[NDArray[np.uint8]], refined: list[MaskWindow]) -> list[MaskWindow]:
        passes = len(steps)
        sharper = type(refiner)._look_closer(recorder, images, refined)
        close_ups.extend(steps[passes:])
        del steps[passes:]
        return sharper

    # Whatever the refiner does between these stages stays its own affair, so a trace cannot drift from it.
    vars(recorder).update(
        run=run, _refine_batch=refine_batch, _refine_once=refine_once, _look_closer=look_closer
    )
    (result,) = recorder.refine_windows([image], [window], [0])
    return Trace(window, tuple(steps), tuple(close_ups), result)


def _union(windows: list[MaskWindow]) -> MaskWindow:
    """The pixels of any of the bool windows, in the smallest window around all of them."""
    x0, y0 = min(window.x for window in windows), min(window.y for window in windows)
    bottom = max(window.y + window.values.shape[0] for window in windows)
    right = max(window.x + window.values.shape[1] for window in windows)
    values = np.zeros((bottom - y0, right - x0), bool)
    for window in windows:
        h, w = window.values.shape
        values[window.y - y0 : window.y - y0 + h, window.x - x0 : window.x - x0 + w] |= window.values
    return MaskWindow(values, x0, y0, windows[0].image_size)


def to_pixels(cells: NDArray[np.bool_], roi: Roi) -> NDArray[np.bool_]:
    """[grid, grid] bool → [roi.height, roi.width] bool: each pixel takes the cell its centre lies in."""
    size = (roi.width, roi.height)
    pixels = cv2.resize(cells.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST_EXACT)
    return np.asarray(pixels) > 0


@torch.inference_mode()
def _pass(
    refiner: Refiner,
    roi: Roi,
    mask: MaskWindow,
    coarse: torch.Tensor,
    output: TreeOutput,
    probability: NDArray[np.float32],
) -> TracePass:
    """The arrays of one pass over a single instance; levels without any node at the end are left out."""
    averages = halvings(coarse, output.levels[0].grid)
    labels = [torch.sigmoid(logit.float()) for logit in output.logits]
    maps = refiner.network.maps(output, coarse, refiner.config)
    depth = max((i + 1 for i, level in enumerate(output.levels) if len(level)), default=1)
    levels = tuple(_level(i, output, labels[i], averages, maps[i]) for i in range(depth))
    incoherent = torch.sigmoid(output.roots.incoherent.float())[0]
    relabelled = maps[0].refined[0].cpu().numpy()
    return TracePass(roi, mask, levels, _array(incoherent), relabelled, probability)


def _level(
    index: int, output: TreeOutput, label: torch.Tensor, averages: dict[int, torch.Tensor], after: LevelMap
) -> TraceLevel:
    nodes = output.levels[index]
    if index == 0:
        suspicion = _array(output.roots.wrong_probability()[0])
    else:
        judged = output.candidates[index - 1]
        suspicion = np.full((nodes.grid, nodes.grid), np.nan, np.float32)
        suspicion[judged.y.cpu().numpy(), judged.x.cpu().numpy()] = _array(
            torch.sigmoid(output.candidate_logits[index - 1].float())
        )
    return TraceLevel(
        nodes.grid,
        nodes.y.cpu().numpy(),
        nodes.x.cpu().numpy(),
        nodes.parent.cpu().numpy(),
        _array(label),
        suspicion,
        _array(averages[nodes.grid][0, 0]),
        _array(after.probability[0]),
    )


def _array(tensor: torch.Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.float().cpu().numpy()
    return array
