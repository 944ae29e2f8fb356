"""The journal of a run: what has become of every instance, in a file beside the output, so that a run can be resumed.

The file is only appended to. After a title, each line is the CRC-32 of a record and the record: a letter for its kind
and JSON. Records count up to the last commit: opening the file cuts off what stands behind it or is damaged.

Each record carries the identity of its image (file, size, time and instances). If the image is another one when it
comes again, nothing that was written of it counts.
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
import sys
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from numbers import Integral
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.errors import InputError, OutputError
from transfiner_refine.formats.records import ImageRecord
from transfiner_refine.masks import Mask
from transfiner_refine.pipeline.prepare import InstanceFault, PreparedImage

_TITLE = b"transfiner-refine journal 3\n"
_RUN, _KEPT, _FAULT, _MASK, _COMMIT, _OUTPUT = "H", "K", "F", "M", "C", "W"  # kinds of records
_HELD_BACK = 1 << 16  # bytes; a write for each record would cost more than the record
_FOREIGN = (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError)
_FATE, _TURNED = {_KEPT: 1, _FAULT: 2, _MASK: 3}, 4  # of an instance: its last record; its image was turned
_HELD_BY_ANOTHER = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK}
_LOCKED_BYTE = 0x7FFF_0000  # Windows locks bytes and then lets nobody read them; no journal is that long


def journal_path(output: Path) -> Path:
    """Where the journal of a run lies."""
    return output.with_name(f".{output.name}.journal")


@dataclass(frozen=True)
class Recalled:
    """What is known of an image from an interrupted run.

    Attributes:
        identity: of the image, now.
        turned, kept, faults: as in ``PreparedImage``.
        masks: (index, whether the refined mask has any pixels) of the instances that were refined.
    """

    identity: int
    turned: bool = False
    kept: tuple[tuple[int, str], ...] = ()
    faults: tuple[InstanceFault, ...] = ()
    masks: tuple[tuple[int, bool], ...] = ()

    @property
    def done(self) -> set[int]:
        """Indexes of all of these."""
        return {i for i, _ in (*self.kept, *self.masks)}.union(*(fault.indexes for fault in self.faults))


class Journal(Mapping[int, Mask]):
    """The journal of a run, and the masks that refining changed by ``Instance.index``, each read when it is asked for.

    A mask that came back as it was is none of them: its record is written as it was, box and area included.
    Without an output it is kept in memory. One thread may write while another recalls.

    Attributes:
        path: the file, locked to this process until ``close``; None in memory.
        num_masks: refined masks that will outlive this process.
        is_unfinished: an interrupted run has left it, and ``begin`` has not decided to start anew.
    """

    def __init__(self, num_instances: int, output: Path | None = None) -> None:
        """Opens or makes the file, and reads what an interrupted run has left in it.

        Raises:
            OutputError: another run has the file open, it is some other file, or the disk refuses it.
        """
        self.path = None if output is None else journal_path(output)
        self._output, self._lock = output, Lock()
        self.is_unfinished = self._has_begun = False
        self._fingerprint: dict[str, str] = {}
        self._reset(num_instances)
        if output is None:
            self._file: BinaryIO = io.BytesIO()
            self._append(_RUN)  # so that nothing stands at place 0, which means "none"
            return
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            self._file = _locked(journal_path(output), output)
            try:
                self._read_all()
            except BaseException as error:
                self._file.close()
                if isinstance(error, _FOREIGN):
                    raise self._foreign() from error
                raise
        except OSError as error:
            raise self._refused(error) from error

    def _reset(self, num_instances: int) -> None:
        self._place = np.zeros(num_instances, np.int64)  # of the last record of an instance
        self._identity = np.zeros(num_instances, np.int64)
        self._flags = np.zeros(num_instances, np.uint8)
        self._share = np.full(num_instances, np.nan)  # NaN: the mask came out empty
        self._valid = np.zeros(num_instances, bool)  # masks with pixels, of images that this run has met
        self._end = self._old = 0  # of all records, of those of interrupted runs
        self._is_at_end = False  # the file is where the next record belongs
        self._stamps: dict[str, Any] | None = None
        self.num_masks = self._noted = 0
        self._seconds_before, self._start = 0.0, time.monotonic()

    # the run

    @property
    def seconds(self) -> float:
        """Time spent on the run up to now, the interrupted part included."""
        return self._seconds_before + time.monotonic() - self._start

    def refuse_unfinished(self, *, resume: bool, overwrite: bool) -> None:
        """Raises OutputError where an interrupted run has left the journal and nobody said what to do with it."""
        if self.path is not None and self.is_unfinished and not (resume or overwrite):
            raise OutputError(
                f"an interrupted run has left {self.path.name} with {_masks(self.num_masks)}",
                file=self._output,
                remedy="go on with it by --resume, or start anew with --overwrite",
            )

    def begin(self, fingerprint: Mapping[str, str], *, resume: bool) -> None:
        """Goes on with the run that is written down, or starts a new one.

        Args:
            fingerprint: what the masks depend on, by the name a user knows it under.
            resume: go on if there is something to go on with.

        Raises:
            OutputError: the run that is written down is another one, the text says what differs; or the disk refused.
        """
        if resume and self.is_unfinished:
            if differences := _differences(self._fingerprint, fingerprint):
                raise OutputError(
                    f"is of another run: {', '.join(differences)}",
                    file=self.path,
                    remedy="repeat the command as it was, or start anew with --overwrite and without --resume",
                )
        else:
            self.is_unfinished = False
            self._reset(len(self._place))
            try:
                self._file.truncate(0)
                self._file.seek(0)
                self._end = self._file.write(_TITLE)
                self._append(_RUN + json.dumps(dict(fingerprint)))
            except OSError as error:
                raise self._refused(error) from error
            self.commit()
        self._has_begun = True

    def way_on(self) -> str | None:
        """How to go on after an interruption, if there is something to go on with."""
        if not (self._has_begun and self._is_worth_keeping):
            return None
        verb = "is" if self.num_masks == 1 else "are"
        return f"{_masks(self.num_masks)} {verb} kept, repeat the command with --resume to go on"

    def close(self, *, keep: bool) -> None:
        """Lets go of the file, and removes it if there is no need to keep it."""
        with suppress(
            OSError
        ):  # a full disk, of which there is word already; or the folder was closed meanwhile
            if os.name == "nt":  # an open file cannot be removed there
                self._file.close()
            if self.path is not None and not (keep and self._is_worth_keeping):
                self.path.unlink()  # before another run can lock it
        with suppress(OSError):
            self._file.close()

    @property
    def _is_worth_keeping(self) -> bool:
        return self.is_unfinished or self.num_masks > 0 or self._stamps is not None

    # its instances

    @property
    def changed_shares(self) -> NDArray[np.float64]:
        """[instances]: changed pixels / pixels of the coarse mask's box, NaN where there is no refined mask."""
        return np.where(self._valid, self._share, np.nan)

    def recall(self, image: ImageRecord) -> Recalled:
        """What was done of an image before it was met in this run, as far as it still counts."""
        identity = _identity(image)
        if not self._old:
            return Recalled(identity)
        fates = {i: int(self._flags[i]) for i in image.indexes if self._identity[i] == identity}
        found = {kind: [i for i, fate in fates.items() if fate & 3 == flag] for kind, flag in _FATE.items()}
        masks = tuple((i, not bool(np.isnan(self._share[i]))) for i in found[_MASK])
        for index, has_pixels in masks:
            self._valid[index] = has_pixels
        kept = tuple((i, self._read(int(self._place[i]))[-1]) for i in found[_KEPT])
        places = sorted({int(self._place[i]) for i in found[_FAULT]})
        faults = tuple(_fault(*self._read(place)) for place in places)
        return Recalled(identity, any(fate & _TURNED for fate in fates.values()), kept, faults, masks)

    def note_image(self, identity: int, prepared: PreparedImage) -> None:
        """Writes down what becomes of the instances of an image that are not refined."""
        turned = prepared.turned
        for index, reason in prepared.kept:
            place = self._append(_KEPT + json.dumps([index, identity, turned, reason]))
            self._take(_KEPT, place, index, identity, turned)
        for fault in prepared.faults:
            e, how = fault.error, (fault.whole_image, fault.by_refiner)
            said = [fault.indexes, identity, turned, e.reason, e.file, e.record, e.remedy, *how]
            place = self._append(_FAULT + json.dumps(said))
            for index in fault.indexes:
                self._take(_FAULT, place, index, identity, turned)

    def note_mask(self, index: int, identity: int, turned: bool, mask: Mask | None, share: float) -> None:
        """Writes down a refined mask and its changed share; None if it came out empty."""
        share, text = (math.nan, "NaN") if mask is None else (share, repr(share))
        text = f"[{index},{identity},{turned:d},{text}"
        if mask is not None:  # half of json's time; of what a text can hold, counts have backslashes only
            counts = mask.counts.replace("\\", r"\\")
            text += f',{list(mask.size)},"{counts}",{mask.area},{list(mask.box)}'
        place = self._append(f"{_MASK}{text}]")
        self._take(_MASK, place, index, identity, turned, share)
        self._valid[index] = mask is not None

    def note_output(self, stamps: Mapping[str, Any]) -> None:
        """Writes down how the output can be known that gets its name now, by the name."""
        self._stamps = dict(stamps)
        self._append(_OUTPUT + json.dumps(self._stamps))
        self.commit()

    def has_written(self, stamps: Mapping[str, Any]) -> bool:
        """Whether outputs are those of the run that is resumed."""
        known = self._stamps
        return known is not None and all(known.get(name) == stamp for name, stamp in stamps.items())

    def commit(self) -> None:
        """Makes what was noted outlive this process.

        Raises:
            OutputError: the disk refused.
        """
        self._append(f"{_COMMIT}{self.seconds!r}")
        try:
            with self._lock:
                self._file.flush()
        except OSError as error:
            raise self._refused(error) from error
        self.num_masks = self._noted

    def __getitem__(self, index: int) -> Mask:
        if index not in self:
            raise KeyError(index)
        place = int(self._place[index])
        *_, size, counts, area, box = self._read(place)
        if place >= self._old:
            return Mask.restored(tuple(size), counts, area, tuple(box))
        try:
            return Mask(tuple(size), counts)  # whoever wrote it
        except (InputError, *_FOREIGN) as error:
            raise self._foreign() from error

    def __contains__(self, index: object) -> bool:
        if not isinstance(index, Integral):  # NumPy's whole numbers are among them
            return False
        i = int(index)
        return 0 <= i < len(self._valid) and bool(self._valid[i]) and self._share[i] != 0

    def __iter__(self) -> Iterator[int]:
        return iter(np.flatnonzero(self._valid & (self._share != 0)).tolist())

    def __len__(self) -> int:
        return int(np.count_nonzero(self._valid & (self._share != 0)))

    # its file

    def _append(self, record: str) -> int:
        body = record.encode("ascii")
        line = b"%08x%b\n" % (zlib.crc32(body), body)
        try:
            with self._lock:
                if not self._is_at_end:
                    self._file.seek(self._end)
                self._is_at_end = True
                place, self._end = self._end, self._end + len(line)
                self._file.write(line)
        except OSError as error:
            raise self._refused(error) from error
        return place

    def _read(self, place: int) -> Any:
        try:
            with self._lock:
                self._is_at_end = False
                self._file.seek(place)
                body = _body(self._file.readline())
        except OSError as error:
            raise self._refused(error) from error
        if body is None:
            reason = f"is damaged at byte {place}, though it was sound before"
            raise OutputError(reason, file=self.path, remedy="repeat the command with --resume")
        return json.loads(body[1:])

    def _read_all(self) -> None:
        """Takes in what an interrupted run has left, if it had come so far as to write down what it was."""
        title = self._file.read(len(_TITLE))
        if not _TITLE.startswith(title):
            raise ValueError(title)
        place = end = len(title)
        waiting: list[tuple[int, str, Any]] = []
        for line in self._file if title == _TITLE else ():
            body = _body(line)
            if body is None:
                break
            kind, record = chr(body[0]), json.loads(body[1:])
            waiting.append((place, kind, record[:4] if kind == _MASK else record))
            place += len(line)
            if kind == _COMMIT:
                for each in waiting:
                    self._take_record(*each)
                end = place
                waiting.clear()
        self._file.truncate(end)
        self._end = self._old = end
        self.num_masks = self._noted

    def _take_record(self, place: int, kind: str, record: Any) -> None:
        if not self.is_unfinished:
            if kind != _RUN or not all(isinstance(each, str) for each in record.values()):
                raise ValueError(kind)
            self._fingerprint, self.is_unfinished = record, True
        elif kind == _MASK:
            self._take(_MASK, place, *record)
        elif kind == _KEPT:
            index, identity, turned, reason = record
            self._take(_KEPT, place, index, identity, turned)
            _text(reason)
        elif kind == _FAULT:
            for index in _fault(*record).indexes:
                self._take(_FAULT, place, index, *record[1:3])
        elif kind == _OUTPUT:
            self._stamps = dict(record)
        elif kind == _COMMIT:
            self._seconds_before = float(record)
        else:
            raise ValueError(kind)

    def _take(
        self, kind: str, place: int, index: int, identity: int, turned: bool, share: float = np.nan
    ) -> None:
        if index < 0:
            raise ValueError(index)
        if index < len(self._place):  # else the source has become shorter with the images
            self._noted += (kind == _MASK) - int(self._flags[index] & 3 == _FATE[_MASK])
            self._place[index], self._identity[index], self._share[index] = place, identity, share
            self._flags[index] = _FATE[kind] | _TURNED * bool(turned)

    def _refused(self, error: OSError) -> OutputError:
        return OutputError(
            f"cannot be written ({error.strerror or error})",
            file=self.path,
            remedy="check the space on the disk and the rights on the folder",
        )

    def _foreign(self) -> OutputError:
        return OutputError("is no journal of this version", file=self.path, remedy="move the file away")


def _body(line: bytes) -> bytes | None:
    """The record of a line, None if it is damaged."""
    body = line[8:-1]
    return body if body and line == b"%08x%b\n" % (zlib.crc32(body), body) else None


def _fault(indexes: Any, _identity: int, _turned: bool, reason: Any, *said: Any) -> InstanceFault:
    file, record, remedy, whole_image, by_refiner = said
    for text in (file, record, remedy):
        _text(text or "")
    error = InputError(_text(reason), file=file, record=record, remedy=remedy)
    return InstanceFault(error, tuple(map(int, indexes)), bool(whole_image), bool(by_refiner))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _identity(image: ImageRecord) -> int:
    """A digest of what an image is: the file as it lies on the disk, and which instances are its own."""
    file = None
    with suppress(OSError):
        if image.path is not None:
            state = os.stat(image.path)  # noqa: PTH116  half the time of Path.stat
            file = (str(image.path), state.st_size, state.st_mtime_ns)
    text = ascii((file, image.name, image.indexes))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def _locked(path: Path, output: Path) -> BinaryIO:
    """The file, opened and locked.

    Raises:
        OutputError: another run holds it.
        OSError: it cannot be opened.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
    while True:
        file = os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=_HELD_BACK)
        if not _lock(file.fileno()):
            file.close()
            raise OutputError(
                "another run is writing it", file=output, remedy="wait for that one, or give another --output"
            )
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                file.seek(0)
                return file
        file.close()  # the run that held it has just ended and removed the file


def _lock(descriptor: int) -> bool:
    """Locks an open file to this process, until it ends in whatever way; False if another holds it.

    On file systems that know no locks (some network ones) the answer is True: better two runs unguarded than
    none possible.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _HELD_BY_ANOTHER
    return True


def _masks(count: int) -> str:
    return f"{count} refined mask{'s' * (count != 1)}"


def _differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What differs between two fingerprints, in words."""
    words = []
    for name in dict.fromkeys([*before, *now]):
        old, new = before.get(name, ""), now.get(name, "")
        if old != new:
            both_known = old and new and not old.startswith("sha256:")
            words.append(f"{name} was {old} and is {new}" if both_known else f"{name} has changed")
    return words
