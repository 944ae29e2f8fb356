"""Images prepared ahead of the refiner, in their order, a few at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace

from transfiner_refine.formats import RecordFault, Source
from transfiner_refine.pipeline.decoding import DecodingPool
from transfiner_refine.pipeline.ledger import Ledger, Recalled
from transfiner_refine.pipeline.prepare import PreparedImage
from transfiner_refine.types import ImageRecord, InputError

__all__ = ["ImageAhead", "read_ahead"]

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
    future: Future[PreparedImage] | None = None
    pixels: int = 0

    def finished(self) -> tuple[int, ImageAhead | RecordFault]:
        if isinstance(self.item, RecordFault):
            return self.position, self.item
        assert self.recalled is not None
        prepared = None if self.future is None else self.future.result()
        return self.position, ImageAhead(self.item, self.recalled, prepared)


def read_ahead(
    source: Source, ledger: Ledger, pool: DecodingPool
) -> Iterator[tuple[int, ImageAhead | RecordFault]]:
    """Prepares what is not done yet, and gives everything in the order of the source with its position there.

    At most twice as many images as the pool works on at a time, and of large ones only as many as fit into
    ``_PIXELS_AHEAD``, are being prepared or waiting; memory does not grow with the source.
    """
    waiting: deque[_Waiting] = deque()
    pixels = 0
    for position, item in enumerate(source):
        new = _Waiting(position, item)
        if isinstance(item, ImageRecord):
            new.recalled = ledger.recall(item)
            rest = tuple(each for each in item.instances if each.index not in new.recalled.done)
            if rest:
                new.pixels = _claimed_pixels(item)
                while waiting and pixels + new.pixels > _PIXELS_AHEAD:
                    pixels -= waiting[0].pixels
                    yield waiting.popleft().finished()
                new.future = pool.submit(replace(item, instances=rest))
        pixels += new.pixels
        waiting.append(new)
        if len(waiting) > 2 * pool.size:
            pixels -= waiting[0].pixels
            yield waiting.popleft().finished()
    while waiting:
        yield waiting.popleft().finished()


def _claimed_pixels(record: ImageRecord) -> int:
    """Pixels of an image as its record says; the image itself has not been looked at yet."""
    try:
        height, width = record.size or record.instances[0].mask.size
    except InputError:
        return 0  # a mask at fault costs nothing
    return height * width
