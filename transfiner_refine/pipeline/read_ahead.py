"""Images prepared ahead of the refiner, in their order, a few at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from transfiner_refine.formats import RecordFault, Source
from transfiner_refine.formats.records import ImageRecord, UnreadSource
from transfiner_refine.pipeline.decoding import DecodingPool, Pending
from transfiner_refine.pipeline.ledger import Ledger, Recalled
from transfiner_refine.pipeline.prepare import PreparedImage

__all__ = ["ImageAhead", "read_ahead"]

_BATCHES_AHEAD = 4
_PIXELS_AHEAD = 1 << 26  # decoded or being decoded, 3 bytes each; a single larger image is let through alone


@dataclass(frozen=True)
class ImageAhead:
    """An image as far as it has come.

    Attributes:
        record: the image as the source gave it.
        recalled: what an interrupted run had done of it already.
        prepared: the rest of it; None where nothing is left to do.
    """

    record: ImageRecord
    recalled: Recalled
    prepared: PreparedImage | None


@dataclass
class _Waiting:
    position: int
    item: ImageRecord | RecordFault
    recalled: Recalled | None = None
    pending: Pending | None = None
    pixels: int = 0
    instances: int = 1  # what it counts among those ahead

    def finished(self) -> tuple[int, ImageAhead | RecordFault]:
        if isinstance(self.item, RecordFault):
            return self.position, self.item
        assert self.recalled is not None
        prepared = None if self.pending is None else self.pending.result()
        return self.position, ImageAhead(self.item, self.recalled, prepared)


def read_ahead(
    source: Source, ledger: Ledger, pool: DecodingPool, batch_size: Callable[[], int]
) -> Iterator[tuple[int, ImageAhead | RecordFault]]:
    """Prepares what is not done yet, and gives everything in the order of the source with its position there.

    Ahead are four batches of instances or twice as many images as the pool works on at a time, whichever is more,
    but of large images only as many as fit into ``_PIXELS_AHEAD``. Memory does not grow with the source.
    """
    waiting: deque[_Waiting] = deque()
    pixels = instances = 0
    items = source.unread() if isinstance(source, UnreadSource) else source
    for position, item in enumerate(items):
        new, has_rest = _Waiting(position, item), False
        if isinstance(item, ImageRecord):
            new.recalled = ledger.recall(item)
            rest = item.without(new.recalled.done) if new.recalled.done else item
            if has_rest := bool(rest.indexes):
                new.instances, new.pixels = len(rest.indexes), rest.stated_pixels
        while waiting and (
            pixels + new.pixels > _PIXELS_AHEAD
            or (instances >= _BATCHES_AHEAD * batch_size() and len(waiting) >= 2 * pool.size)
        ):
            first = waiting.popleft()
            pixels, instances = pixels - first.pixels, instances - first.instances
            yield first.finished()
        if has_rest:
            new.pending = pool.submit(rest)
        pixels, instances = pixels + new.pixels, instances + new.instances
        waiting.append(new)
    while waiting:
        yield waiting.popleft().finished()
