"""Images of ids, one id a pixel: taken apart into masks, and painted again after refinement."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.masks import Mask, MaskWindow

__all__ = ["IdMap", "IdMask", "Laid", "Painted", "choose_ids", "ids_in", "lay", "paint"]

_STRIP_PIXELS = 1 << 20


def ids_in(values: NDArray[Any]) -> tuple[int, ...]:
    """The ids of a map in rising order; 0 is background."""
    ids = _distinct(values)
    return tuple(int(value) for value in ids[ids != 0])


class IdMap:
    """The pixels of one id map, read when the first of its masks is decoded and shared by all of them."""

    def __init__(self, read: Callable[[], NDArray[Any]]) -> None:
        """Args: ``read`` gives the [H, W] ids; it may raise InputError, and must be picklable if the map is to be."""
        self._read, self._lock = read, Lock()
        self._values: NDArray[Any] | None = None
        self._boxes: dict[int, tuple[int, int, int, int]] = {}

    def __reduce__(self) -> tuple[type[IdMap], tuple[Callable[[], NDArray[Any]]]]:
        """Another process reads the pixels itself."""
        return IdMap, (self._read,)

    def window(self, instance_id: int) -> MaskWindow:
        """The mask of one id inside its box; 0×0 where the id does not occur.

        Raises:
            InputError: the file cannot be read.
        """
        with self._lock:
            if self._values is None:
                self._values = self._read()
                self._boxes = _boxes(self._values)
        values = self._values
        x0, y0, x1, y1 = self._boxes.get(instance_id, (0, 0, 0, 0))
        return MaskWindow(values[y0:y1, x0:x1] == instance_id, x0, y0, (values.shape[0], values.shape[1]))


@dataclass(frozen=True)
class IdMask:
    """One id of a map as an ``EncodedMask``.

    Attributes:
        id_map: the shared pixels.
        instance_id: the id.
        size: (height, width), pixels.
    """

    id_map: IdMap
    instance_id: int
    size: tuple[int, int]

    def decode(self) -> MaskWindow:
        """The mask inside its bounding box, bool.

        Raises:
            InputError: the file cannot be read.
        """
        return self.id_map.window(self.instance_id)


@dataclass(frozen=True)
class Painted:
    """An id map after refinement.

    Attributes:
        values: [H, W] ids, the dtype of the map before.
        overlap_pixels: pixels that two or more instances claimed.
        covered: ids whose refined mask lay entirely under others and that have their coarse mask instead.
    """

    values: NDArray[Any]
    overlap_pixels: int
    covered: tuple[int, ...]


def paint(coarse: NDArray[Any], refined: Sequence[tuple[int, Mask]]) -> Painted:
    """Puts refined masks into a map that holds one id a pixel, without losing an id.

    Ids that are not refined keep every pixel. Among the refined ones the earlier wins a pixel that several
    claim, so give them by falling score, then in their order. An id that would have no pixel left gets its
    coarse mask back, on top; coarse masks share no pixel, so this always ends with every id alive.

    Args:
        coarse: [H, W] ids, 0 = background.
        refined: (id, mask) of the refined ones, the most important first.
    """
    kept = np.zeros(coarse.shape, bool)
    for rows in _strips(coarse):
        kept[rows] = (coarse[rows] != 0) & ~np.isin(coarse[rows], [instance_id for instance_id, _ in refined])
    claims = kept.astype(np.uint16)
    windows = {instance_id: mask.decode() for instance_id, mask in refined}
    for window in windows.values():
        claims[_part(window)] += window.values
    covered: list[int] = []
    while True:
        values = np.where(kept, coarse, 0).astype(coarse.dtype, copy=False)
        for instance_id, window in reversed(windows.items()):
            part = values[_part(window)]
            part[window.values & ~kept[_part(window)]] = instance_id
        for instance_id in covered:
            values[coarse == instance_id] = instance_id
        alive = _distinct(values)
        lost = [instance_id for instance_id in windows if instance_id not in alive]
        if not lost:
            return Painted(values, int(np.count_nonzero(claims > 1)), tuple(covered))
        for instance_id in lost:
            del windows[instance_id]
        covered += lost


@dataclass(frozen=True)
class Laid:
    """Masks put into a fresh id map.

    Attributes:
        values: [H, W] ids.
        overlap_pixels: pixels that two or more masks claimed.
        covered: positions of the masks that have no pixel left, or never had one.
    """

    values: NDArray[Any]
    overlap_pixels: int
    covered: tuple[int, ...]


def lay(background: NDArray[Any], masks: Sequence[tuple[int, MaskWindow]]) -> Laid:
    """Lays masks that may overlap into a map of one id a pixel; the earlier wins.

    Args:
        background: [H, W] what lies where no mask is; not changed.
        masks: (id, bool mask), the most important first; no id twice.
    """
    values, claims = background.copy(), np.zeros(background.shape, np.uint16)
    for instance_id, window in reversed(masks):
        values[_part(window)][window.values] = instance_id
        claims[_part(window)] += window.values
    alive = np.zeros(1 << (8 * values.dtype.itemsize), bool)
    alive[values[claims > 0]] = True
    covered = tuple(position for position, (instance_id, _) in enumerate(masks) if not alive[instance_id])
    return Laid(values, int(np.count_nonzero(claims > 1)), covered)


def choose_ids(wanted: Sequence[int | None], largest: int) -> list[int]:
    """Ids for the instances of one map: their own where each has one that fits, else 1, 2, 3 ...

    An id that a source gave means something (one object through all frames of a video), so it is kept if it
    can be.
    """
    own = [value for value in wanted if value is not None and 0 < value <= largest]
    if len(own) == len(wanted) == len(set(own)):
        return own
    return list(range(1, len(wanted) + 1))


def _part(window: MaskWindow) -> tuple[slice, slice]:
    height, width = window.values.shape
    return slice(window.y, window.y + height), slice(window.x, window.x + width)


def _strips(values: NDArray[Any]) -> Iterator[slice]:
    """Rows of a map, a few at a time, so that what is computed on the way stays small beside a giant map."""
    height, width = values.shape
    step = max(1, _STRIP_PIXELS // max(1, width))
    for top in range(0, height, step):
        yield slice(top, min(top + step, height))


def _distinct(values: NDArray[Any]) -> NDArray[Any]:
    """The distinct values of a map in rising order."""
    found = [np.unique(values[rows]) for rows in _strips(values)]
    return np.unique(np.concatenate(found)) if found else values.ravel()


def _boxes(values: NDArray[Any]) -> dict[int, tuple[int, int, int, int]]:
    """(x0, y0, x1, y1) of every id but 0, in one pass over the pixels."""
    boxes: dict[int, tuple[int, int, int, int]] = {}
    for rows in _strips(values):
        for value, (x0, y0, x1, y1) in _strip_boxes(values[rows]).items():
            y0, y1 = y0 + rows.start, y1 + rows.start
            if value in boxes:
                left, top, right, bottom = boxes[value]
                x0, y0, x1, y1 = min(x0, left), min(y0, top), max(x1, right), max(y1, bottom)
            boxes[value] = x0, y0, x1, y1
    return boxes


def _strip_boxes(values: NDArray[Any]) -> dict[int, tuple[int, int, int, int]]:
    rows, columns = np.nonzero(values)
    ids = values[rows, columns]
    order = np.argsort(ids, kind="stable")
    found, starts = np.unique(ids[order], return_index=True)
    if len(found) == 0:
        return {}
    rows, columns = rows[order], columns[order]
    corners = (
        np.minimum.reduceat(columns, starts),
        np.minimum.reduceat(rows, starts),
        np.maximum.reduceat(columns, starts) + 1,
        np.maximum.reduceat(rows, starts) + 1,
    )
    boxes = np.stack(corners, axis=1).tolist()
    return {int(value): (box[0], box[1], box[2], box[3]) for value, box in zip(found, boxes, strict=True)}
