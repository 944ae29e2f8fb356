"""The stages of the method for one instance, as arrays to look at or to measure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from transfiner_refine.errors import DeviceError, InputError
from transfiner_refine.masks import MaskWindow, union
from transfiner_refine.refine.engine import Engine
from transfiner_refine.refine.instance import Look, harden, refine_instance
from transfiner_refine.refine.roi import Roi
from transfiner_refine.refine.torch_engine import TorchEngine
from transfiner_refine.refiner import BaseRefiner, window_of


@dataclass(frozen=True)
class TraceLevel:
    """One level of the quadtree. Cell (y, x) of a grid g covers the RoI's columns x·w/g … (x + 1)·w/g."""

    grid: int  # cells a side of the RoI: 28, 56, 112, …
    y: NDArray[np.int64]  # [n] int64, row of each node's cell
    x: NDArray[np.int64]  # [n] int64, column of each node's cell
    parent: NDArray[np.int64]  # [n] int64, index of the parent in the level above; -1 for roots
    label: NDArray[np.float32]  # [n] float32, foreground probability the network gives each node
    # [grid, grid] float32, the detector's probability that the cell must be relabelled; nan where no node of the level
    # above lies
    wrong_probability: NDArray[np.float32]
    coarse: NDArray[np.float32]  # [grid, grid] float32, the coarse mask, averaged over the cells
    mask: NDArray[np.float32]  # [grid, grid] float32, the foreground probability after this level was written

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
    """One pass of the network over an instance."""

    roi: Roi  # the rectangle of the image that was refined
    coarse_mask: MaskWindow  # the mask that it started from: the detector's, or the result of the pass before
    levels: tuple[TraceLevel, ...]  # the quadtree, coarse to fine
    incoherent: NDArray[np.float32]  # [28, 28], probability that the true mask changes inside the cell
    relabelled: NDArray[np.bool_]  # [28, 28], the cells that nodes or the dense decoder relabelled
    probability: NDArray[np.float32]  # [roi.height, roi.width] float32, the refined mask before the threshold

    def boxes(self, level: int) -> NDArray[np.float64]:
        """[n, 4] XYXY of a level's nodes, pixels of the image."""
        nodes = self.levels[level]
        cell = np.array([self.roi.width, self.roi.height]) / nodes.grid
        corner = np.stack((nodes.x, nodes.y), 1) * cell + (self.roi.x0, self.roi.y0)
        return np.hstack((corner, corner + cell))

    def covered(self, level: int) -> MaskWindow:
        """The pixels under a level's nodes, as a window of the RoI."""
        return self._window(self.levels[level].cells)

    @property
    def relabelled_pixels(self) -> MaskWindow:
        """The pixels that did not simply keep the coarse mask's label, as a window of the RoI."""
        return self._window(self.relabelled)

    def _window(self, cells: NDArray[np.bool_]) -> MaskWindow:
        """Each pixel takes the cell that its centre lies in."""
        size = (self.roi.width, self.roi.height)
        pixels = cv2.resize(cells.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST_EXACT)
        return MaskWindow(np.asarray(pixels) > 0, self.roi.x0, self.roi.y0, self.coarse_mask.image_size)


@dataclass(frozen=True)
class Trace:
    """An instance from its coarse to its refined mask."""

    coarse_mask: MaskWindow  # the given mask
    passes: tuple[TracePass, ...]  # of the network, in order; the second one where the RoI moved
    tiles: tuple[TracePass, ...]  # in the tiles of a large object, row by row; none for others
    result: MaskWindow  # the refined mask, bool; what ``Refiner.refine`` returns

    @property
    def relabelled_pixels(self) -> MaskWindow:
        """All pixels that did not simply keep the coarse mask's label, in whichever pass or tile."""
        steps = (*self.passes, *self.tiles)
        return union([step.relabelled_pixels for step in steps], self.coarse_mask.size)

    @property
    def region(self) -> MaskWindow:
        """All pixels the network looked at: the RoIs of the passes."""
        return union([step._window(np.ones((1, 1), bool)) for step in self.passes], self.coarse_mask.size)


def trace(refiner: BaseRefiner, image: NDArray[np.uint8], mask: NDArray[Any] | MaskWindow) -> Trace:
    """Refines one mask and keeps the stages.

    Args:
        refiner: a loaded refiner; a native one with the ``torch`` engine.
        image: H×W×3 uint8 RGB.
        mask: the coarse mask, [H, W] bool or float in [0, 1], or a window of it.

    Returns:
        the stages, and the mask that ``refiner.refine`` gives.

    Raises:
        InputError: the mask is empty, or does not fit the image.
        DeviceError: the refiner runs in another engine.
    """
    window = mask if isinstance(mask, MaskWindow) else window_of(mask)
    if window.area == 0:
        raise InputError("the mask is empty", remedy="an empty mask is never refined")
    return refiner.trace(image, window)


def native_trace(engine: Engine, image: NDArray[np.uint8], mask: MaskWindow, *, tiles: bool) -> Trace:
    """The trace of a native network; see ``BaseRefiner.trace``."""
    if not isinstance(engine, TorchEngine):
        raise DeviceError(
            f"the {engine.name} engine keeps no trace", remedy='load the refiner with engine="torch"'
        )
    looks: list[Look] = []
    refined = refine_instance(engine, image, mask, tiles=tiles, looks=looks)
    passes, of_tiles = (
        tuple(_pass(engine, look) for look in looks if look.is_tile == is_tile) for is_tile in (False, True)
    )
    return Trace(mask, passes, of_tiles, harden(refined))


def _pass(engine: TorchEngine, look: Look) -> TracePass:
    """The arrays of one look; levels without any node at the end are left out."""
    output, coarse, maps = engine.stages(look.size, *look.given)
    levels: list[TraceLevel] = []
    place = np.zeros(0, np.int64)  # of each node of the level above among its valid ones
    for i, nodes in enumerate(output.levels):
        valid = nodes.exists()[0].cpu().numpy()
        y, x, parent = (each[0].cpu().numpy()[valid] for each in (nodes.y, nodes.x, nodes.parent))
        if i == 0:
            wrong = as_array(output.roots.wrong_probability()[0])
        else:
            judged, logit = output.candidates[i - 1], output.candidate_logits[i - 1]
            exist = judged.exists()[0].cpu().numpy()
            wrong = np.full((nodes.grid, nodes.grid), np.nan, np.float32)
            wrong.flat[judged.cell[0].cpu().numpy()[exist]] = as_array(torch.sigmoid(logit[0].float()))[exist]
            parent = place[parent]
        place = np.cumsum(valid) - 1
        label = as_array(torch.sigmoid(output.logits[i][0].float()))[valid]
        given, after = as_array(coarse[nodes.grid][0, 0]), as_array(maps[i].probability[0])
        levels.append(TraceLevel(nodes.grid, y, x, parent, label, wrong, given, after))
    depth = max((i + 1 for i, level in enumerate(levels) if len(level)), default=1)
    incoherent = as_array(output.roots.incoherent_probability()[0])
    return TracePass(
        look.roi, look.coarse_mask, tuple(levels[:depth]), incoherent, look.relabelled, look.refined.values
    )


def as_array(tensor: torch.Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.float().cpu().numpy()
    return array
