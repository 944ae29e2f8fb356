"""Label maps, one id a pixel: taken apart into masks, and put together again from masks that may overlap."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Generic, Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.errors import InputError
from transfiner_refine.formats.png import MaskPixels, png_size, read_pixels
from transfiner_refine.formats.records import Instance, PngKind
from transfiner_refine.images import MAX_IMAGE_PIXELS
from transfiner_refine.masks import Mask, MaskWindow

T = TypeVar("T")
Freed = Literal["zero", "nearest", "nearest left"]

_STRIP_PIXELS = 1 << 20
_FEW_IDS = 8  # a soft mask has more values, and full white among them
_MOST_SCATTERED_IDS = 64  # a map with more ids than that must count them 1, 2, 3 ... without a gap


class Shared(Generic[T]):
    """What is read when it is first needed, and shared by all who need it; another process reads it itself."""

    def __init__(self, read: Callable[[], T]) -> None:
        """``read`` gives it; it must be picklable if this is to be."""
        self._read, self._lock = read, Lock()

    def __reduce__(self) -> tuple[type[Shared[T]], tuple[Callable[[], T]]]:
        return Shared, (self._read,)

    def get(self) -> T:
        """What was read; raises as reading does."""
        with self._lock:
            if not hasattr(self, "_found"):
                self._found = self._read()
            return self._found


LabelMap: TypeAlias = Shared[tuple[NDArray[Any], dict[int, tuple[int, ...]]]]


def shared_map(read: Callable[[], MaskPixels]) -> LabelMap:
    """The [H, W] values of a map and the places of its ids."""
    return Shared(partial(_values_and_places, read))


def _values_and_places(read: Callable[[], MaskPixels]) -> tuple[NDArray[Any], dict[int, tuple[int, ...]]]:
    values = read().values
    return values, places_of(values)


@dataclass(frozen=True)
class LabelMask:
    """One id of a map as an ``EncodedMask``; ``size`` is (height, width), pixels."""

    label_map: LabelMap
    instance_id: int
    size: tuple[int, int]

    def decode(self) -> MaskWindow:
        """The mask inside its box, 0×0 where the id does not occur; raises InputError as reading does."""
        values, places = self.label_map.get()
        _, x0, y0, x1, y1 = places.get(self.instance_id, (0, 0, 0, 0, 0))
        return MaskWindow(
            values[y0:y1, x0:x1] == self.instance_id, x0, y0, (values.shape[0], values.shape[1])
        )


@dataclass(frozen=True)
class FileMask:
    """A whole image file as the mask of one instance, read where its pixels are needed.

    "binary" takes several values for a confidence; "auto" does so where they cannot be ids; with "any" every pixel
    but 0 belongs to the mask, as Cityscapes has it.
    """

    path: Path
    max_pixels: int = MAX_IMAGE_PIXELS  # the largest height × width that is decoded
    kind: Literal["auto", "binary", "any"] = "auto"

    @property
    def size(self) -> tuple[int, int]:
        """(height, width), pixels, from the file's header."""
        return png_size(self.path)

    def decode(self) -> MaskWindow:
        """The mask inside its bounding box: bool, or float32 in [0, 1] where the file is soft.

        Raises:
            InputError: the file is damaged, or holds several ids.
        """
        pixels = read_pixels(self.path, self.max_pixels)
        values = pixels.values
        window = MaskWindow(values != 0, 0, 0, (values.shape[0], values.shape[1])).tight()
        if window.values.size == 0 or self.kind == "any" or pixels.is_binary:
            return window
        if pixels.palette or (self.kind == "auto" and kind_of(pixels) == "label-map"):
            reason = "holds several ids, but its name says one instance"
            remedy = "save one mask a file, or give --png-kind label-map"
            raise InputError(reason, file=self.path, remedy=remedy)
        return replace(window, values=window.of(values).astype(np.float32) / pixels.white)

    def foreground_in(self, pixels: MaskPixels) -> int:
        """The value of foreground in the refined file: that of the coarse one, full white where there were several."""
        largest = int(pixels.values.max())
        if self.kind == "any":
            return max(1, largest) if pixels.palette else pixels.white
        return largest if pixels.is_binary else pixels.white


def places_of(values: NDArray[Any]) -> dict[int, tuple[int, ...]]:
    """(area, x0, y0, x1, y1) of each id of an [H, W] map but 0, in rising order; x1 and y1 exclusive, pixels."""
    found = [_runs(values, rows) for rows in _strips(values)]
    table = _merged(np.concatenate([np.empty((0, 6), np.int64), *found]))
    return {row[0]: tuple(row[1:]) for row in table.tolist() if row[0]}


def kind_of(pixels: MaskPixels) -> PngKind:
    """Whether a mask image is a binary (or soft) mask of one instance, or a map of ids.

    * A palette means ids: nobody stores a confidence as palette indexes.
    * Nothing but 0 and one other value that is 1 or full white: binary. (One instance either way.)
    * Else ids are flat patches and soft masks are ramps: it is a label map where at least half of the values
      (other than 0) have a patch of 3×3 pixels, *and* there are at most 64 of them or they are 1, 2, 3 ...
      without a gap.
    * A map also where none of several values is full white and they are at most 8, or at most 64 below the half of
      full white, which would be an empty mask.
    * Everything else is soft. That is the harmless side: a label map taken for a soft mask comes out as one
      empty or odd instance and is reported, a soft mask taken for a label map would be torn into hundreds.
    """
    if pixels.palette or pixels.values.dtype == np.float32:
        return "label-map" if pixels.palette else "binary"
    ids = list(places_of(pixels.values))
    if not ids or ids in ([1], [pixels.white]):
        return "binary"
    if len(ids) > _MOST_SCATTERED_IDS and ids[-1] != len(ids):
        return "binary"
    most = _MOST_SCATTERED_IDS if 2 * ids[-1] < pixels.white else _FEW_IDS
    if 1 < len(ids) <= most and pixels.white not in ids:
        return "label-map"
    return "label-map" if 2 * len(places_of(_patches(pixels.values))) >= len(ids) else "binary"


def _patches(values: NDArray[Any]) -> NDArray[Any]:
    """[H - 2, W - 2]: the value of each 3×3 patch that has one value only, 0 elsewhere."""
    rows = np.where((values[:-2] == values[1:-1]) & (values[1:-1] == values[2:]), values[1:-1], 0)
    same = (rows[:, :-2] == rows[:, 1:-1]) & (rows[:, 1:-1] == rows[:, 2:])
    return np.where(same, rows[:, 1:-1], 0)


def _strips(values: NDArray[Any]) -> Iterator[slice]:
    """Rows of a map, a few at a time, so that what is computed on the way stays small beside a giant map."""
    height, width = values.shape
    step = max(1, _STRIP_PIXELS // max(1, width))
    for top in range(0, height, step):
        yield slice(top, min(top + step, height))


def _runs(values: NDArray[Any], rows: slice) -> NDArray[np.int64]:
    """[ids of some rows, 6]: id, area, x0, y0, x1, y1, from the runs of equal pixels along the rows."""
    strip = values[rows]
    is_start = np.ones(strip.shape, bool)
    is_start[:, 1:] = strip[:, 1:] != strip[:, :-1]
    starts = np.flatnonzero(is_start)
    lengths = np.diff(starts, append=strip.size)
    y, x = np.divmod(starts, max(1, strip.shape[1]))
    y += rows.start
    ids = strip.ravel()[starts].astype(np.int64)
    return _merged(np.stack((ids, lengths, x, y, x + lengths, y + 1), axis=1))


def _merged(table: NDArray[np.int64]) -> NDArray[np.int64]:
    """One row an id, in rising order: areas added, boxes joined."""
    table = table[np.argsort(table[:, 0], kind="stable")]
    ids, starts = np.unique(table[:, 0], return_index=True)
    if not len(ids):
        return table
    areas = np.add.reduceat(table[:, 1], starts)
    low, high = np.minimum.reduceat(table[:, 2:4], starts), np.maximum.reduceat(table[:, 4:], starts)
    return np.column_stack((ids, areas, low, high))


@dataclass(frozen=True)
class MergedMap:
    """A map that masks were put into."""

    values: NDArray[Any]  # [H, W] ids
    overlap_pixels: int  # claimed by two or more masks, or by one and what it must not overwrite
    covered: tuple[int, ...]  # ids of masks that have no pixel of their own left


def merge(
    base: NDArray[Any], masks: Mapping[int, MaskWindow], locked: NDArray[np.bool_] | None = None
) -> MergedMap:
    """Puts bool masks by id, the most important first, into a copy of a map; of two that overlap the earlier wins.

    ``base`` has [H, W] ids where no mask is; pixels of it that are ``locked`` keep theirs.
    """
    values = base.copy()
    claims = np.zeros(base.shape, np.uint16) if locked is None else locked.astype(np.uint16)
    for instance_id, window in reversed(list(masks.items())):
        free = window.values if locked is None else window.values & ~window.of(locked)
        window.of(values)[free] = instance_id
        window.of(claims)[...] += window.values
    present = places_of(values)
    covered = tuple(instance_id for instance_id in masks if instance_id not in present)
    return MergedMap(values, int(np.count_nonzero(claims > 1)), covered)


def update_map(
    coarse: NDArray[Any],
    refined: Sequence[tuple[int, Mask]],
    background: NDArray[np.bool_],
    *,
    freed: Freed = "zero",
    kept: Collection[int] = (),
) -> MergedMap:
    """Puts refined masks into a map; no instance loses its last pixel.

    Refined masks overwrite background, never an instance that is not refined. Among them the earlier wins a pixel,
    so give them by falling score, then in their order. One that would have no pixel left gets its coarse mask
    back, on top; coarse masks share no pixel, so this always ends. It is then ``covered``. Background that no
    mask claims stays as it is.

    Args:
        coarse: [H, W] ids.
        refined: (id, mask) of the refined instances, the most important first.
        background: [H, W] pixels that refined masks may overwrite; pixels of id 0 are among them.
        freed: what a pixel becomes that its instance gives up and no other claims: 0, but in a map of several ids
            and no background its own id; the nearest background pixel of the map as it was, 0 where there was none;
            or the nearest background pixel that is left, its own id where none is.
        kept: ids of background that must not vanish; one that would keeps all its pixels.
    """
    masks = {instance_id: mask.decode() for instance_id, mask in refined}
    is_partition = not background.any() and bool((coarse != coarse[0, 0]).any())
    at_risk, protected = set(kept) & places_of(coarse).keys() if kept else set(), set[int]()
    while True:
        claimable = background & ~is_among(coarse, protected) if protected else background
        merged = _merge_all(coarse, masks, claimable)
        values = merged.values
        unclaimed = values == 0
        given_up = unclaimed & ~claimable
        np.copyto(values, coarse, where=unclaimed & claimable)
        if given_up.any():
            near = background & (values == coarse) if freed == "nearest left" else claimable
            if freed != "zero" and near.any():
                values[given_up] = _nearest(coarse, near)[given_up]
            elif freed == "nearest left" or (freed == "zero" and is_partition):
                np.copyto(values, coarse, where=given_up)
        lost = at_risk - places_of(values).keys() - protected if at_risk else set()
        if not lost:
            return merged
        protected |= lost


def _merge_all(
    coarse: NDArray[Any], masks: Mapping[int, MaskWindow], claimable: NDArray[np.bool_]
) -> MergedMap:
    """The masks on a base of 0; those that others cover entirely have their coarse pixels instead."""
    locked = ~claimable & ~is_among(coarse, masks)
    base = np.where(locked, coarse, 0).astype(coarse.dtype, copy=False)
    first = merged = merge(base, masks, locked)
    covered, lost = list[int](), merged.covered
    while lost:
        covered += lost
        merged = merge(base, {each: mask for each, mask in masks.items() if each not in covered}, locked)
        for instance_id in covered:
            merged.values[coarse == instance_id] = instance_id
        present = places_of(merged.values)
        lost = tuple(each for each in masks if each not in present)
    return MergedMap(merged.values, first.overlap_pixels, tuple(covered))


def is_among(values: NDArray[Any], ids: Collection[int]) -> NDArray[np.bool_]:
    """[H, W]: whether a pixel has one of the ids."""
    found, wanted = np.empty(values.shape, bool), list(ids)
    for rows in _strips(values):
        found[rows] = np.isin(values[rows], wanted)
    return found


def zero_of(values: NDArray[Any], background: int | None) -> int | None:
    """The id that takes the place of 0 in an [H, W] map: the value of its background, or the first free one."""
    return int(values.max()) + 1 if background is None else background or None


def exchanged(values: NDArray[Any], background: int | None, zero: int | None = None) -> NDArray[Any]:
    """[H, W]: a map with 0 and the value of its background exchanged, which undoes itself; ``zero`` if it is known."""
    zero = zero_of(values, background) if zero is None else zero
    if zero is None:
        return values
    found = values.astype(np.uint32)
    found[values == 0], found[values == zero] = zero, 0
    return found


def stretched(values: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """[H, W] of (height, width): the nearest value of a map of another size."""
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new) for new, old in zip(size, values.shape, strict=True)
    )
    return values if values.shape == size else values[rows[:, None], columns]


def _nearest(values: NDArray[Any], among: NDArray[np.bool_]) -> NDArray[Any]:
    """[H, W]: for every pixel the value of the nearest one that is ``among`` them."""
    import cv2  # here, because listing the formats must not wait for it

    _, nearest = cv2.distanceTransformWithLabels(
        (~among).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    of_label = np.zeros(int(nearest.max()) + 1, values.dtype)
    of_label[nearest[among]] = values[among]
    return of_label[nearest]


def new_ids(instances: Sequence[Instance], allowed: range) -> dict[int, int]:
    """An id for each of at most ``len(allowed)`` instances, by ``Instance.index``.

    Ids that the source gave are kept where all fit and differ, for they may be those of objects through all frames
    of a video; else the instances are counted.
    """
    own = {each.instance_id for each in instances}
    is_kept = len(own) == len(instances) and all(value is not None and value in allowed for value in own)
    return {
        each.index: (each.instance_id or 0) if is_kept else value
        for each, value in zip(instances, allowed, strict=False)
    }
