"""The instances of many images on their way through the passes of the refiner on a device.

Images and runs go up once; run boundaries and a few numbers come back, once a batch. RoIs wait in groups of one size
class and one canvas, whatever image they are from and whichever pass they are in.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from transfiner_refine.masks import Mask, MaskWindow
from transfiner_refine.refine.device_pass import Group, GroupResult, refine_group
from transfiner_refine.refine.engine import size_class
from transfiner_refine.refine.instance import tile_rois
from transfiner_refine.refine.roi import Images, Roi, overlap, read_mask, roi_around_box
from transfiner_refine.refine.torch_engine import TorchEngine

_SMALLEST_CANVAS = 64
_WINDOWS = 4  # of a large object
_BEYOND = 1 << 40  # fills up the ends of runs
_EDGES_A_COLUMN = 6  # on average; where there are more a batch goes again
_BYTES_A_PIXEL = 192  # of canvas, at the most at a time
_BYTES_A_ROI = 1 << 26  # in the step
_FEWEST_ROIS, _MOST_ROIS = 16, 512
_CPU_BYTES = 1 << 30
_AHEAD = 2  # batches that the device may be behind


class _Item(NamedTuple):
    """An RoI that waits for its pass: instance and image by position, coarse mask, windows of its tiles."""

    instance: int
    image: int
    mask: Mask | MaskWindow
    roi: Roi
    windows: Sequence[Roi]


class BatchedPasses:
    """Refines the masks of images in batches.

    Args:
        engine: runs the step.
        batch_size: RoIs at a time; less where they are large.
        tiles: refine large objects once more in tiles.
    """

    def __init__(self, engine: TorchEngine, batch_size: int, *, tiles: bool) -> None:
        self._engine, self._batch_size, self._tiles = engine, batch_size, tiles
        # measured once: a run has the same batches from its beginning to its end
        self._canvas_pixels = free_bytes(engine.torch_device) // 2 // _BYTES_A_PIXEL

    @torch.inference_mode()
    def refine(
        self,
        images: Images,
        masks: Sequence[Mask | MaskWindow],
        image_index: Sequence[int],
        *,
        soft: bool = False,
    ) -> list[Mask | MaskWindow]:
        """``BaseRefiner.refine_windows`` of masks, or of windows where masks are soft; with ``soft`` gives windows."""
        work = _Work(self._engine, images, list(masks), self._tiles, soft)
        for index, (mask, image) in enumerate(zip(masks, image_index, strict=True)):
            if mask.area:
                roi = roi_around_box(mask.box, mask.size, self._engine.config)
                work.wait(index, image, mask, roi, first=True)
        running: deque[tuple[Group, list[_Item], _Pending]] = deque()
        while work.groups or running:
            if work.groups and len(running) < _AHEAD:
                group, items = work.next_batch(self._batch_size, self._canvas_pixels)
                running.append((group, items, work.launch(group, items)))
            else:
                work.finish(*running.popleft())
        return work.results


class _Pending:
    """A result on its way to the host; reading it waits for it."""

    def __init__(self, result: GroupResult, *, soft: bool) -> None:
        numbers, edges, probability = result
        flat = torch.cat((numbers.flatten(), edges.flatten()))  # one read-back
        self._shape = numbers.shape
        self._flat, self._soft = self._back(flat), self._back(probability) if soft else None
        self._event = None
        if numbers.device.type == "cuda":
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            # by default it would be a stream of the current device, which need not be this one
            self._event.record(torch.cuda.current_stream(numbers.device))

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
        self, engine: TorchEngine, images: Images, masks: list[Mask | MaskWindow], tiles: bool, soft: bool
    ) -> None:
        self.groups: dict[Group, list[_Item]] = defaultdict(list)
        self.results: list[Mask | MaskWindow] = masks
        self._engine, self._tiles, self._soft = engine, tiles, soft
        starts = np.cumsum([0, *(image.shape[0] * image.shape[1] for image in images)])
        self._starts = starts[:-1]
        self._sizes = np.array([image.shape[:2] for image in images], np.int64).reshape(-1, 2)
        together = torch.empty((int(starts[-1]), 3), dtype=torch.uint8, pin_memory=self._pinned)
        rows = together.numpy()  # PyTorch warns of images that are not writable
        for image, start, stop in zip(images, starts, starts[1:], strict=False):
            rows[start:stop].reshape(image.shape)[...] = image
        self._pixels = self._up(together)

    @property
    def _pinned(self) -> bool:
        return self._engine.torch_device.type == "cuda"

    def _up(self, values: Tensor) -> Tensor:
        """To the device, without waiting for it."""
        if self._pinned and not values.is_pinned():
            values = values.pin_memory()
        return values.to(self._engine.torch_device, non_blocking=self._pinned)

    def wait(self, instance: int, image: int, mask: Mask | MaskWindow, roi: Roi, *, first: bool) -> None:
        """Puts an RoI in its group."""
        config, side = self._engine.config, roi.side
        windows = tile_rois(roi) if self._tiles and side >= config.tiles_from else []
        window = size_class(config, windows[0].side, nodes=False) if windows else None
        size = size_class(config, side, nodes=first, tiles=self._tiles)
        canvas = max(_SMALLEST_CANVAS, 1 << (side - 1).bit_length())
        group = Group(size, canvas, first, window, isinstance(mask, MaskWindow))
        self.groups[group].append(_Item(instance, image, mask, roi, windows))

    def next_batch(self, batch_size: int, canvas_pixels: int) -> tuple[Group, list[_Item]]:
        """The RoIs to refine next, of the group with most of them: no more than either limit lets through."""
        group = max(self.groups, key=lambda each: len(self.groups[each]))
        items = self.groups[group]
        share = _WINDOWS if group.window is not None else 1
        most = max(1, min(batch_size // share, canvas_pixels // (share * group.canvas**2)))
        self.groups[group] = items[
            most:
        ]  # in its place: which group comes first of equally many must not change
        if not items[most:]:
            del self.groups[group]
        return group, items[:most]

    def launch(self, group: Group, items: list[_Item], edges_a_column: int = _EDGES_A_COLUMN) -> _Pending:
        """Starts the pass of a batch."""
        soft, edges = None, torch.zeros(0)
        if group.soft:
            values = np.zeros((len(items), group.canvas, group.canvas), np.float32)
            for canvas, item in zip(values, items, strict=True):
                assert isinstance(item.mask, MaskWindow)
                canvas[: item.roi.height, : item.roi.width] = read_mask(item.mask, item.roi)
            soft = self._up(torch.from_numpy(values))
        else:
            ends = _run_ends([item.mask.runs for item in items if isinstance(item.mask, Mask)])
            edges = self._up(torch.from_numpy(ends))
        rows = self._up(torch.from_numpy(self._table(items)))
        result = refine_group(self._engine, group, self._pixels, rows, edges, soft, edges_a_column)
        return _Pending(result, soft=self._soft)

    def _table(self, items: list[_Item]) -> NDArray[np.int64]:
        """``refine_group``'s table."""
        table = np.zeros((len(items), 7 + 4 * _WINDOWS), np.int64)
        image = [item.image for item in items]
        height, width = self._sizes[image].T
        x0, y0, x1, y1 = np.array([(r.x0, r.y0, r.x1, r.y1) for r in (item.roi for item in items)]).T
        corner = self._starts[image] + y0 * width + x0
        table[:, :7] = np.stack((corner, width, height, x0, y0, x1 - x0, y1 - y0), 1)
        for row, item in zip(table[:, 7:], items, strict=True):
            x, y = item.roi.x0, item.roi.y0
            parts = [n for p in item.windows for n in (p.x0 - x, p.y0 - y, p.width, p.height)]
            row[: len(parts)] = parts
        return table

    def finish(self, group: Group, items: list[_Item], pending: _Pending) -> None:
        """Takes in the outcome of a batch: results, and RoIs of further passes."""
        config = self._engine.config
        numbers, edges, probability = pending.read()
        if (numbers[:, 7:].sum(0) > edges.shape[1]).any():
            self.finish(group, items, self.launch(group, items, group.canvas + 1))
            return
        stops = np.cumsum(numbers[:, 7:], 0)
        made: list[tuple[_Item, Roi | None]] = []  # with the RoI of a further pass
        ends: list[NDArray[np.int64]] = []
        rows = np.hstack((numbers, stops)).tolist()
        for row, (item, columns) in enumerate(zip(items, rows, strict=True)):
            stays, agreed, area, x0, y0, x1, y1, count, final, stop, last = columns
            if stays:
                continue  # the given mask
            if group.first and area and not agreed:
                moved = roi_around_box((x0, y0, x1, y1), item.mask.size, config)
                if overlap(item.roi, moved) < config.repeat_overlap:
                    made.append((item, moved))
                    ends.append(edges[0, stop - count : stop])
                    continue
            if self._soft:
                assert probability is not None
                values = probability[row, : item.roi.height, : item.roi.width].copy()
                self.results[item.instance] = MaskWindow(values, item.roi.x0, item.roi.y0, item.mask.size)
            else:
                made.append((item, None))
                ends.append(edges[1, last - final : last])
        found = _from_ends(ends, self._sizes[[item.image for item, _ in made]])
        for (item, again), mask in zip(made, found, strict=True):
            if again is None:
                self.results[item.instance] = mask
            else:
                self.wait(item.instance, item.image, mask, again, first=False)


def _run_ends(runs: list[NDArray[np.int32]]) -> NDArray[np.int64]:
    """Where the runs of masks end: [masks, power of two], filled up with a number beyond every image."""
    counts = np.array([len(each) for each in runs])
    ends = np.concatenate(runs).cumsum(dtype=np.int64)
    before = np.concatenate(([0], ends[counts.cumsum()[:-1] - 1]))  # pixels of the masks before
    table = np.full((len(runs), 1 << int(counts.max()).bit_length()), _BEYOND, np.int64)
    table[np.arange(table.shape[1]) < counts[:, None]] = ends - before.repeat(counts)
    return table


def _from_ends(ends: list[NDArray[np.int64]], sizes: NDArray[np.int64]) -> list[Mask]:
    """Masks from where their runs end, but for the last one, which ends with the image; sizes [masks, 2]."""
    if not ends:
        return []
    counts = np.array([len(each) for each in ends])
    lasts = (counts + 1).cumsum() - 1
    flat = np.empty(int(lasts[-1]) + 1, np.int64)
    is_last = np.zeros(len(flat), bool)
    is_last[lasts] = True
    flat[lasts], flat[~is_last] = sizes.prod(1), np.concatenate(ends)
    runs = np.diff(flat, prepend=0)
    firsts = lasts - counts
    runs[firsts] = flat[firsts]
    parts = zip(firsts.tolist(), (lasts + 1).tolist(), sizes.tolist(), strict=True)
    return [Mask.from_runs(runs[first:stop], (height, width)) for first, stop, (height, width) in parts]


def fitting_batch(device: torch.device) -> int:
    """RoIs at a time that the memory of a device has room for, a power of two."""
    fitting = free_bytes(device) // 2 // _BYTES_A_ROI
    return min(_MOST_ROIS, max(_FEWEST_ROIS, 1 << (max(1, fitting).bit_length() - 1)))


def free_bytes(device: torch.device) -> int:
    """Memory of a device that a batch may fill."""
    if device.type == "cuda":
        # reserved for the next tensors
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    return _CPU_BYTES
