"""What has become of every instance, written down as it is known, so that another run can go on from there.

Beside a header there are these kinds of record: an image that has been looked at (which instances are left alone
or at fault, and why), a refined mask, an instance that the refiner could not take, and marks that a batch is
complete, that a run has been resumed, and that the output is being written.

A record of an image carries the image's identity; if the photo or its list of instances is not the same when the
image comes again, nothing that was written of it counts. Masks of an incomplete batch do not count either, so that
the resumed run has the same batches as the interrupted one.
"""

from __future__ import annotations

import io
import json
import os
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.errors import InputError
from transfiner_refine.formats import Mask
from transfiner_refine.formats.records import ImageRecord
from transfiner_refine.pipeline.prepare import InstanceFault, PreparedImage
from transfiner_refine.pipeline.record_log import RecordLog

__all__ = ["Ledger", "Recalled"]

_HEADER, _IMAGE, _MASK, _REFUSED, _BATCH, _RESUMED, _WRITING = b"H", b"I", b"M", b"R", b"B", b"C", b"W"
# kind, index, changed share, seconds so far, height, width, area, box; then the counts
_MASK_HEAD = struct.Struct("<cQddIIIIIII")


@dataclass(frozen=True)
class Recalled:
    """What is known of an image from before.

    Attributes:
        turned: its EXIF orientation was applied.
        kept: (index, reason) of the instances that are left alone.
        faults: of the image and of instances that could not be prepared.
        refused: instances that the refiner could not take, by index.
        masks: (index, whether the refined mask has any pixels) of the instances that were refined.
        done: indexes of all of these.
    """

    turned: bool = False
    kept: tuple[tuple[int, str], ...] = ()
    faults: tuple[InstanceFault, ...] = ()
    refused: tuple[InstanceFault, ...] = ()
    masks: tuple[tuple[int, bool], ...] = ()
    done: frozenset[int] = frozenset()


class Ledger:
    """The book of one run; without a log it is kept in memory.

    Attributes:
        num_masks: refined masks that will outlive this process.
        writing: it says that an output was being written when the run broke off.
    """

    def __init__(self, num_instances: int, log: RecordLog | None = None, start: int = 0) -> None:
        """Reads what an interrupted run left in the log.

        Args:
            num_instances: of the source.
            log: where it is kept; what is torn at its end is cut off.
            start: the place of the log's first record.
        """
        self._log = RecordLog(io.BytesIO()) if log is None else log
        self._image_at = np.zeros(num_instances, np.int64)  # by the index of the image's first instance
        self._mask_at = np.zeros(num_instances, np.int64)
        self._refused_at = np.zeros(num_instances, np.int64)
        self._share = np.full(num_instances, np.nan)  # NaN: the mask came out empty
        self._open: dict[int, _Entry] = {}  # of the batch that is not complete, by index
        self._valid = np.zeros(num_instances, bool)  # masks with pixels, of images that this run has met
        self.writing, self._seconds_before, self._start = False, 0.0, time.monotonic()
        for place, record in self._log.scan(start):
            self._take(place, record)
        self._open.clear()
        self.num_masks = int(np.count_nonzero(self._mask_at))
        if self._log.end == 0:
            self._log.append(_HEADER)  # so that nothing stands at place 0, which means "none"

    @property
    def is_empty(self) -> bool:
        """Nothing has been refined yet."""
        return not (self._mask_at.any() or self._refused_at.any() or self.writing)

    @property
    def seconds(self) -> float:
        """Time spent on the run up to now, the interrupted part included."""
        return self._seconds_before + time.monotonic() - self._start

    @property
    def masks(self) -> Mapping[int, Mask]:
        """Refined masks by ``Instance.index``, read where they are asked for."""
        return _Masks(self._log, self._mask_at, self._valid)

    @property
    def changed_shares(self) -> NDArray[np.float64]:
        """[instances]: changed pixels / pixels of the coarse mask's box, NaN where there is no refined mask."""
        return np.where(self._valid, self._share, np.nan)

    def recall(self, image: ImageRecord) -> Recalled:
        """What was done of an image before it was met in this run, as far as it still counts."""
        indexes = image.indexes
        if not indexes or not (place := self._image_at[indexes[0]]):
            return Recalled()
        said = json.loads(self._log.read(int(place))[1:])
        if said["id"] != _identity(image):
            return Recalled()
        since = said["since"] or int(place)
        refined = [index for index in indexes if self._mask_at[index] > since]
        masks = tuple((index, not bool(np.isnan(self._share[index]))) for index in refined)
        for index, has_pixels in masks:
            self._valid[index] = has_pixels
        kept = tuple((index, reason) for reason, those in said["kept"] for index in those)
        faults = tuple(_fault(*fault) for fault in said["faults"])
        refused = tuple(
            _fault(*json.loads(self._log.read(int(self._refused_at[index]))[1:]))
            for index in indexes
            if self._refused_at[index] > since
        )
        done = {index for index, _ in (*kept, *masks)}
        done.update(index for fault in (*faults, *refused) for index in fault.indexes)
        return Recalled(said["turned"], kept, faults, refused, masks, frozenset(done))

    def flush(self) -> None:
        """Hands what was noted to the operating system, where it outlives this process.

        Raises:
            OSError: the disk refused.
        """
        self._log.flush()
        unfinished = sum(not entry.is_refusal for entry in self._open.values())
        self.num_masks = int(np.count_nonzero(self._mask_at)) - unfinished

    def note_image(self, image: ImageRecord, recalled: Recalled, prepared: PreparedImage) -> None:
        """Writes down what becomes of the instances of an image that are not refined."""
        first = image.indexes[0]
        since = 0
        if recalled.done:
            before = int(self._image_at[first])
            since = json.loads(self._log.read(before)[1:])["since"] or before
        kept: dict[str, list[int]] = {}
        for index, reason in (*recalled.kept, *prepared.kept):
            kept.setdefault(reason, []).append(index)
        said = {
            "first": first,
            "id": _identity(image),
            "since": since,
            "turned": recalled.turned or prepared.turned,
            "kept": list(kept.items()),
            "faults": [_plain(fault) for fault in (*recalled.faults, *prepared.faults)],
        }
        self._image_at[first] = self._log.append(_IMAGE + json.dumps(said).encode())

    def note_mask(self, index: int, mask: Mask | None, changed_share: float) -> None:
        """Writes down a refined mask; None if it came out empty."""
        share = np.nan if mask is None else changed_share
        shape = (0,) * 7 if mask is None else (*mask.size, mask.area, *mask.box)
        head = _MASK_HEAD.pack(_MASK, index, share, self.seconds, *shape)
        place = self._log.append(head + (b"" if mask is None else mask.counts.encode("ascii")))
        self._open[index] = _Entry(place, share)
        self._settle(index, self._open[index])
        self._valid[index] = mask is not None

    def note_refused(self, index: int, error: InputError) -> None:
        """Writes down that the refiner could not take an instance."""
        said = _plain(InstanceFault(error, (index,)))
        place = self._log.append(_REFUSED + json.dumps(said).encode())
        self._open[index] = _Entry(place, np.nan, is_refusal=True)
        self._settle(index, self._open[index])

    def note_batch(self) -> None:
        """Writes down that all of a batch is written down."""
        self._log.append(_BATCH)
        self._open.clear()

    def note_resumed(self) -> None:
        """Writes down that another run goes on from here; what the batch before left incomplete is void."""
        self._log.append(_RESUMED)

    def note_writing(self) -> None:
        """Writes down that from here on the output may be there.

        Raises:
            OSError: the disk refused.
        """
        self._log.append(_WRITING)
        self._log.flush()
        self.writing = True

    def _take(self, place: int, record: bytes) -> None:
        kind = record[:1]
        if kind == _MASK:
            _, index, share, seconds, *_ = _MASK_HEAD.unpack_from(record)
            self._seconds_before = seconds
            self._open[index] = _Entry(place, share)
        elif kind == _REFUSED:
            ((index,), *_) = json.loads(record[1:])
            self._open[index] = _Entry(place, np.nan, is_refusal=True)
        elif kind == _BATCH:
            for index, entry in self._open.items():
                if index < len(self._share):  # else the source has become shorter with the photos
                    self._settle(index, entry)
            self._open.clear()
        elif kind == _RESUMED:
            self._open.clear()
        elif kind == _IMAGE:
            first = json.loads(record[1:])["first"]
            if first < len(self._image_at):
                self._image_at[first] = place
        elif kind == _WRITING:
            self.writing = True

    def _settle(self, index: int, entry: _Entry) -> None:
        if entry.is_refusal:
            self._refused_at[index] = entry.place
        else:
            self._mask_at[index], self._share[index] = entry.place, entry.share


@dataclass(frozen=True)
class _Entry:
    """What became of an instance that was handed to the refiner."""

    place: int
    share: float
    is_refusal: bool = False


class _Masks(Mapping[int, Mask]):
    """The masks of a log, each read when it is asked for; a look never holds more than one."""

    def __init__(self, log: RecordLog, places: NDArray[np.int64], valid: NDArray[np.bool_]) -> None:
        self._log, self._places, self._valid = log, places, valid

    def __getitem__(self, index: int) -> Mask:
        if index not in self:
            raise KeyError(index)
        record = self._log.read(int(self._places[index]))
        *_, height, width, area, x0, y0, x1, y1 = _MASK_HEAD.unpack_from(record)
        counts = record[_MASK_HEAD.size :].decode("ascii")
        return Mask.restored((height, width), counts, area, (x0, y0, x1, y1))

    def __contains__(self, index: object) -> bool:
        if not isinstance(index, Integral):  # NumPy's whole numbers are among them
            return False
        return 0 <= int(index) < len(self._valid) and bool(self._valid[int(index)])

    def __iter__(self) -> Iterator[int]:
        return iter(np.flatnonzero(self._valid).tolist())

    def __len__(self) -> int:
        return int(np.count_nonzero(self._valid))


def _identity(image: ImageRecord) -> str:
    """A digest of what an image is: the photo as it lies on the disk, and which instances are its own."""
    try:
        state = None if image.path is None else os.stat(image.path)  # noqa: PTH116  half the time of Path.stat
        photo = None if state is None else (str(image.path), state.st_size, state.st_mtime_ns)
    except OSError:
        photo = None
    return blake2b(ascii((photo, image.name, image.indexes)).encode(), digest_size=16).hexdigest()


def _plain(fault: InstanceFault) -> list[Any]:
    error = fault.error
    return [fault.indexes, error.reason, error.file, error.record, error.remedy, fault.whole_image]


def _fault(
    indexes: list[int],
    reason: str,
    file: str | None,
    record: str | None,
    remedy: str | None,
    whole_image: bool,
) -> InstanceFault:
    return InstanceFault(
        InputError(reason, file=file, record=record, remedy=remedy), tuple(indexes), whole_image
    )
