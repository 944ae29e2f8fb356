"""The instances of many images on their way through the passes of the refiner on a device.

Images and runs go up once; run boundaries and a few numbers come back, once a batch. RoIs wait in groups of one size
class and one canvas, whatever image they are from and whichever pass they are in.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from transfiner_refine.formats.rle import RleMask
from transfiner_refine.refine.close_up import close_up_windows
from transfiner_refine.refine.device_pass import Group, GroupResult, refine_group
from transfiner_refine.refine.engine import size_class
from transfiner_refine.refine.roi import Roi, overlap, read_mask, roi_around_box
from transfiner_refine.refine.torch_engine import TorchEngine
from transfiner_refine.types import MaskWindow

__all__ = ["BatchedPasses", "fitting_batch"]

_SMALLEST_CANVAS = 64
_WINDOWS = 4  # of a large object
_BEYOND = 1 << 40  # fills up the ends of runs
_EDGES_A_COLUMN = 6  # on average; where there are more a batch goes again
_BYTES_A_PIXEL = 192  # of canvas, at the most at a time
_BYTES_A_ROI = 1 << 26  # in the step
_FEWEST_ROIS, _MOST_ROIS = 16, 512
_CPU_BYTES = 1 << 30
_AHEAD = 2  # batches that the device may be behind


@dataclass(frozen=True)
class _Item:
    """An RoI that waits for its pass.

    Attributes:
        index: of the instance among those handed over.
        image: of its image.
        mask: the coarse mask of this pass.
        roi: what is looked at.
    """

    index: int
    image: int
    mask: RleMask | MaskWindow
    roi: Roi


class BatchedPasses:
    """Refines the masks of images in batches.

    Args:
        engine: runs the step.
        batch_size: RoIs at a time; less where they are large.
        close_ups: look at large objects once more, part by part.
    """

    def __init__(self, engine: TorchEngine, batch_size: int, *, close_ups: bool) -> None:
        self._engine, self._batch_size, self._close_ups = engine, batch_size, close_ups

    @torch.inference_mode()
    def refine(
        self,
        images: Sequence[NDArray[np.uint8]],
        masks: Sequence[RleMask | MaskWindow],
        image_index: Sequence[int],
        *,
        soft: bool = False,
    ) -> list[RleMask | MaskWindow]:
        """Refines masks that have foreground.

        Args:
            images: H×W×3 uint8 RGB each.
            masks: coarse masks; a window where it is soft.
            image_index: for each mask the position of its image.
            soft: give windows of probabilities.

        Returns:
            in the order of ``masks``: the refined mask, or the given one where it stays.
        """
        work = _Work(self._engine, images, list(masks), self._close_ups, soft)
        for index, (mask, image) in enumerate(zip(masks, image_index, strict=True)):
            box = mask.box if isinstance(mask, RleMask) else _box_of(mask)
            work.wait(_Item(index, image, mask, self._roi(box, mask)), first=True)
        running: deque[tuple[Group, list[_Item], _Pending]] = deque()
        while work.groups or running:
            if work.groups and len(running) < _AHEAD:
                group, items = work.next_batch(self._batch_size)
                running.append((group, items, work.launch(group, items)))
            else:
                work.finish(*running.popleft())
        return work.results

    def _roi(self, box: tuple[int, int, int, int], mask: RleMask | MaskWindow) -> Roi:
        size = mask.size if isinstance(mask, RleMask) else mask.image_size
        return roi_around_box(box, size, self._engine.config)


class _Pending:
    """A result on its way to the host; reading it waits for it."""

    def __init__(self, result: GroupResult, *, soft: bool) -> None:
        numbers, edges, probability = result
        self._on_device = numbers.device.type != "cpu"
        flat = torch.cat((numbers.flatten(), edges.flatten()))  # one read-back
        self._shape = numbers.shape
        self._flat, self._soft = self._back(flat), self._back(probability) if soft else None
        self._event = None
        if numbers.device.type == "cuda":
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    @staticmethod
    def _back(values: Tensor) -> Tensor:
        if values.device.type != "cuda":
            return values.cpu()
        pinned = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        return pinned.copy_(values, non_blocking=True)

    def read(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32] | None]:
        """``GroupResult`` as arrays."""
        if self._event is not None:
            self._event.synchronize()
        flat = self._flat.numpy()
        count = self._shape.numel()
        numbers, edges = flat[:count].reshape(self._shape), flat[count:].reshape(2, -1)
        return numbers, edges, None if self._soft is None else self._soft.numpy()


class _Work:
    """The instances of one call, on their way."""

    def __init__(
        self,
        engine: TorchEngine,
        images: Sequence[NDArray[np.uint8]],
        masks: list[RleMask | MaskWindow],
        close_ups: bool,
        soft: bool,
    ) -> None:
        self.groups: dict[Group, list[_Item]] = defaultdict(list)
        self.results: list[RleMask | MaskWindow] = masks
        self._engine, self._close_ups, self._soft = engine, close_ups, soft
        self._images = images
        self._canvas_pixels = free_bytes(engine.torch_device) // 2 // _BYTES_A_PIXEL
        starts = np.cumsum([0, *(image.shape[0] * image.shape[1] for image in images)])
        self._starts = starts.tolist()
        together = torch.empty((int(starts[-1]), 3), dtype=torch.uint8, pin_memory=self._pinned)
        for image, start, stop in zip(images, starts, starts[1:], strict=False):
            together[start:stop] = torch.from_numpy(image.reshape(-1, 3))
        self._pixels = self._up(together)

    @property
    def _pinned(self) -> bool:
        return self._engine.torch_device.type == "cuda"

    def _up(self, values: Tensor) -> Tensor:
        """To the device, without waiting for it."""
        if self._pinned and not values.is_pinned():
            values = values.pin_memory()
        return values.to(self._engine.torch_device, non_blocking=self._pinned)

    def wait(self, item: _Item, *, first: bool) -> None:
        """Puts an RoI in its group."""
        config = self._engine.config
        window = None
        if self._close_ups and item.roi.side >= config.close_up_from:
            part = close_up_windows(item.roi)[0]
            window = size_class(config, part.side, nodes=False)
        canvas = max(_SMALLEST_CANVAS, 1 << (item.roi.side - 1).bit_length())
        size = size_class(config, item.roi.side, nodes=first)
        self.groups[Group(size, canvas, first, window, isinstance(item.mask, MaskWindow))].append(item)

    def next_batch(self, batch_size: int) -> tuple[Group, list[_Item]]:
        """The RoIs to refine next: of the group with most of them."""
        group = max(self.groups, key=lambda each: len(self.groups[each]))
        items = self.groups[group]
        share = _WINDOWS if group.window is not None else 1
        fitting = self._canvas_pixels // (share * group.canvas**2)
        most = max(1, min(batch_size // share, fitting))
        batch, rest = items[:most], items[most:]
        if rest:
            self.groups[group] = rest
        else:
            del self.groups[group]
        return group, batch

    def launch(self, group: Group, items: list[_Item], edges_a_column: int = _EDGES_A_COLUMN) -> _Pending:
        """Starts the pass of a batch."""
        table = np.zeros((len(items), 7 + 4 * _WINDOWS), np.int64)
        for row, item in zip(table, items, strict=True):
            height, width = self._images[item.image].shape[:2]
            roi = item.roi
            corner = self._starts[item.image] + roi.y0 * width + roi.x0
            row[:7] = corner, width, height, roi.x0, roi.y0, roi.width, roi.height
            if group.window is not None:
                parts = [(p.x0 - roi.x0, p.y0 - roi.y0, p.width, p.height) for p in close_up_windows(roi)]
                row[7 : 7 + 4 * len(parts)] = np.ravel(parts)
        soft, edges = None, torch.zeros(0)
        if group.soft:
            values = np.zeros((len(items), group.canvas, group.canvas), np.float32)
            for canvas, item in zip(values, items, strict=True):
                assert isinstance(item.mask, MaskWindow)
                canvas[: item.roi.height, : item.roi.width] = read_mask(item.mask, item.roi)
            soft = self._up(torch.from_numpy(values))
        else:
            ends = [np.cumsum(item.mask.runs)[:-1] for item in items if isinstance(item.mask, RleMask)]
            longest = 1 << max(len(each) for each in ends).bit_length()
            filled = np.full((len(items), longest), _BEYOND, np.int64)
            for row, each in zip(filled, ends, strict=True):
                row[: len(each)] = each
            edges = self._up(torch.from_numpy(filled))
        rows = self._up(torch.from_numpy(table))
        result = refine_group(self._engine, group, self._pixels, rows, edges, soft, edges_a_column)
        return _Pending(result, soft=self._soft)

    def finish(self, group: Group, items: list[_Item], pending: _Pending) -> None:
        """Takes in what came of a batch: results, and RoIs of further passes."""
        config = self._engine.config
        numbers, edges, probability = pending.read()
        if (numbers[:, 7:].sum(0) > edges.shape[1]).any():
            self.finish(group, items, self.launch(group, items, group.canvas + 1))
            return
        stops = np.cumsum(numbers[:, 7:], 0)
        for row, (item, (stays, agreed, area, x0, y0, x1, y1, count, final)) in enumerate(
            zip(items, numbers.tolist(), strict=True)
        ):
            if stays:
                continue  # the given mask
            size = self._images[item.image].shape[:2]
            first, last = (
                edges[which, stops[row, which] - number : stops[row, which]]
                for which, number in enumerate((count, final))
            )
            if group.first and area and not agreed:
                moved = roi_around_box((x0, y0, x1, y1), size, config)
                if overlap(item.roi, moved) < config.repeat_overlap:
                    self.wait(_Item(item.index, item.image, _from_edges(first, size), moved), first=False)
                    continue
            if self._soft:
                assert probability is not None
                values = probability[row, : item.roi.height, : item.roi.width].copy()
                self.results[item.index] = MaskWindow(values, item.roi.x0, item.roi.y0, size)
            else:
                self.results[item.index] = _from_edges(last, size)


def _from_edges(edges: NDArray[np.int64], size: tuple[int, int]) -> RleMask:
    return RleMask.from_runs(np.diff(edges, prepend=0, append=size[0] * size[1]), size)


def fitting_batch(device: torch.device) -> int:
    """RoIs at a time that the memory of a device has room for, a power of two."""
    fitting = free_bytes(device) // 2 // _BYTES_A_ROI
    return min(_MOST_ROIS, max(_FEWEST_ROIS, 1 << (max(1, fitting).bit_length() - 1)))


def free_bytes(device: torch.device) -> int:
    """Memory of a device that a batch may fill."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    return _CPU_BYTES


def _box_of(mask: MaskWindow) -> tuple[int, int, int, int]:
    tight = mask.tight()
    h, w = tight.values.shape
    return tight.x, tight.y, tight.x + w, tight.y + h
