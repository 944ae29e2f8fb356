"""The journal of a run: what has become of every instance, in a file beside the output, so that a run can be resumed.

The file is only ever appended to. After a title, each record is its length and its CRC-32 (4 bytes each, little
endian) and its bytes, of which the first tells the kind. Records count up to the last commit that is whole: opening
the file cuts off whatever stands behind it.

Each record carries the identity of its image (file, size, time and instances). If the image is another one when it
comes again, nothing that was written of it counts.
"""

from __future__ import annotations

import errno
import io
import json
import os
import struct
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
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.errors import InputError, OutputError
from transfiner_refine.formats.records import ImageRecord
from transfiner_refine.masks import Mask
from transfiner_refine.pipeline.prepare import InstanceFault, PreparedImage

__all__ = ["Journal", "Recalled", "journal_path"]

_TITLE = b"transfiner-refine journal 3\n"
_HEAD = struct.Struct("<II")  # length, CRC-32
_LONGEST = 1 << 30  # a longer length is damage
_MOST_WAITING = 1 << 16  # bytes held back; a write for each record would cost more than the record
_LOOK = 4096  # bytes read at first; nearly every record is shorter
_RUN, _IMAGE, _MASK, _COMMIT, _OUTPUT = b"H", b"I", b"M", b"C", b"W"
# kind, index, identity and turning of the image, changed share, height, width, area, box; then the counts
_MASK_HEAD = struct.Struct("<cqq?dIIIIIII")
_SECONDS = struct.Struct("<cd")
_NOT_OURS = (
    ValueError,
    KeyError,
    TypeError,
    IndexError,
    AttributeError,
    OverflowError,
    RecursionError,
    struct.error,
)
_REFINED, _SAID, _TURNED = (
    1,
    2,
    4,
)  # flags of an instance: a mask record, an image record; its image was turned
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
        turned: its EXIF orientation was applied.
        kept, faults: as in ``PreparedImage``.
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
        done = {index for index, _ in (*self.kept, *self.masks)}
        return done.union(*(fault.indexes for fault in self.faults))


class Journal:
    """The journal of a run; without an output it is kept in memory. One thread may write while another recalls.

    Attributes:
        path: the file, locked to this process until ``close``.
        num_masks: refined masks that will outlive this process.
        is_unfinished: an interrupted run has left it and ``begin`` has not decided to start anew.
        has_begun: ``begin`` has been called.
    """

    def __init__(self, num_instances: int, output: Path | None = None) -> None:
        """Opens or makes the file, and reads what an interrupted run has left in it.

        Args:
            num_instances: of the run's source.
            output: what the run writes.

        Raises:
            OutputError: another run has the file open, it is some other file, or the disk refuses it.
        """
        self.path = None if output is None else journal_path(output)
        self._output, self._lock = output, Lock()
        self.is_unfinished = self.has_begun = False
        self._fingerprint: dict[str, str] = {}
        self._reset(num_instances)
        if output is None:
            self._file: IO[bytes] = io.BytesIO()
            self._append(_RUN)  # so that nothing stands at place 0, which means "none"
            return
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            self._file = _locked(journal_path(output), output)
        except OSError as error:
            raise self._refused(error) from error
        try:
            self._read()
        except BaseException:
            self._file.close()
            raise

    def _reset(self, num_instances: int) -> None:
        self._place = np.zeros(num_instances, np.int64)  # of the last record of an instance
        self._identity = np.zeros(num_instances, np.int64)
        self._flags = np.zeros(num_instances, np.uint8)
        self._share = np.full(num_instances, np.nan)  # NaN: the mask came out empty
        self._valid = np.zeros(num_instances, bool)  # masks with pixels, of images that this run has met
        self._written, self._waiting, self._recalled_to = 0, bytearray(), 0
        self._stamps: dict[str, Any] | None = None
        self.num_masks = self._noted = 0
        self._seconds_before, self._start = 0.0, time.monotonic()

    # a run

    @property
    def is_worth_keeping(self) -> bool:
        """There is something in it to go on with."""
        return self.is_unfinished or self.num_masks > 0 or self._stamps is not None

    @property
    def seconds(self) -> float:
        """Time spent on the run up to now, the interrupted part included."""
        return self._seconds_before + time.monotonic() - self._start

    def refuse_unfinished(self, *, resume: bool, overwrite: bool) -> None:
        """Raises OutputError where an interrupted run has left the journal and nobody said what to do with it."""
        if self.is_unfinished and not (resume or overwrite):
            raise OutputError(
                f"an interrupted run has left {self.path and self.path.name} with {_masks(self.num_masks)}",
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
            self.has_begun = True
            return
        self.is_unfinished, self.has_begun = False, True
        self._reset(len(self._place))
        try:
            self._file.truncate(0)
        except OSError as error:
            raise self._refused(error) from error
        self._waiting += _TITLE
        self._append(_RUN + json.dumps(dict(fingerprint)).encode())
        self.commit()

    def way_on(self) -> str | None:
        """How to go on after an interruption, if there is something to go on with."""
        if not (self.has_begun and self.is_worth_keeping):
            return None
        verb = "is" if self.num_masks == 1 else "are"
        return f"{_masks(self.num_masks)} {verb} kept, repeat the command with --resume to go on"

    def close(self, *, keep: bool) -> None:
        """Lets go of the file, and removes it if there is no need to keep it."""
        keep = keep and self.is_worth_keeping
        if os.name == "nt":  # an open file cannot be removed there
            self._file.close()
        if self.path is not None and not keep:
            with suppress(OSError):  # the folder was closed meanwhile; the output is there all the same
                self.path.unlink()  # before another run can lock it
        self._file.close()

    # instances

    @property
    def masks(self) -> Mapping[int, Mask]:
        """Refined masks by ``Instance.index``, read where they are asked for."""
        return _Masks(self)

    @property
    def changed_shares(self) -> NDArray[np.float64]:
        """[instances]: changed pixels / pixels of the coarse mask's box, NaN where there is no refined mask."""
        return np.where(self._valid, self._share, np.nan)

    def recall(self, image: ImageRecord) -> Recalled:
        """What was done of an image before it was met in this run, as far as it still counts."""
        indexes, identity = image.indexes, _identity(image)
        if not self._recalled_to:
            return Recalled(identity)
        found = [index for index in indexes if self._flags[index] and self._identity[index] == identity]
        masks = tuple((i, not bool(np.isnan(self._share[i]))) for i in found if self._flags[i] & _REFINED)
        for index, has_pixels in masks:
            self._valid[index] = has_pixels
        turned = any(self._flags[index] & _TURNED for index in found)
        kept, faults = list[tuple[int, str]](), list[InstanceFault]()
        places = {int(self._place[index]) for index in found if self._flags[index] & _SAID}
        for place in sorted(places):
            said = _image_record(self._read_record(place))
            kept += said.kept
            faults += said.faults
        return Recalled(identity, turned, tuple(kept), tuple(faults), masks)

    def note_image(self, identity: int, prepared: PreparedImage) -> None:
        """Writes down what becomes of the instances of an image that are not refined."""
        if not (prepared.kept or prepared.faults):
            return
        kept: dict[str, list[int]] = {}
        for index, reason in prepared.kept:
            kept.setdefault(reason, []).append(index)
        faults = [
            [fault.indexes, e.reason, e.file, e.record, e.remedy, fault.whole_image, fault.by_refiner]
            for fault in prepared.faults
            for e in (fault.error,)
        ]
        said = {"id": identity, "turned": prepared.turned, "kept": list(kept.items()), "faults": faults}
        place = self._append(_IMAGE + json.dumps(said).encode())
        self._take_image(place, identity, prepared)

    def note_mask(self, index: int, identity: int, turned: bool, mask: Mask | None, share: float) -> None:
        """Writes down a refined mask and its changed share; None if it came out empty."""
        share = np.nan if mask is None else share
        shape = (0,) * 7 if mask is None else (*mask.size, mask.area, *mask.box)
        head = _MASK_HEAD.pack(_MASK, index, identity, turned, share, *shape)
        place = self._append(head + (b"" if mask is None else mask.counts.encode("ascii")))
        self._take(index, place, identity, _REFINED | _TURNED * turned, share)
        self._valid[index] = mask is not None

    def note_output(self, stamps: Mapping[str, Any]) -> None:
        """Writes down how the output can be known that gets its name now, by the name."""
        self._stamps = dict(stamps)
        self._append(_OUTPUT + json.dumps(self._stamps).encode())
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
        self._append(_SECONDS.pack(_COMMIT, self.seconds))
        self._flush()
        self.num_masks = self._noted

    # the file

    def _append(self, record: bytes) -> int:
        if len(self._waiting) > _MOST_WAITING:
            self._flush()
        with self._lock:
            place = self._written + len(self._waiting)
            self._waiting += _HEAD.pack(len(record), zlib.crc32(record)) + record
        return place

    def _flush(self) -> None:
        try:
            with self._lock:
                self._file.seek(self._written)
                while self._waiting:  # a full disk takes a part first and refuses afterwards
                    count = self._file.write(bytes(self._waiting))
                    self._written += count
                    del self._waiting[:count]
        except OSError as error:
            raise self._refused(error) from error

    def _read_record(self, place: int) -> bytes:
        if place >= self._written:
            self._flush()
        try:
            with self._lock:
                record = self._record(place)
        except OSError as error:
            raise self._refused(error) from error
        if record is None:
            reason = f"is damaged at byte {place}, though it was sound before"
            raise OutputError(reason, file=self.path, remedy="repeat the command with --resume")
        return record

    def _record(self, place: int) -> bytes | None:
        """The record at a place, None if there is no whole one."""
        self._file.seek(place)
        found = self._file.read(_LOOK)
        if len(found) < _HEAD.size:
            return None
        length, checksum = _HEAD.unpack_from(found)
        if not 0 < length <= _LONGEST:
            return None
        if _HEAD.size + length > len(found) == _LOOK:
            found += self._file.read(_HEAD.size + length - len(found))
        record = found[_HEAD.size : _HEAD.size + length]
        return record if len(record) == length and zlib.crc32(record) == checksum else None

    def _read(self) -> None:
        """Takes in what an interrupted run has left, if it had come so far as to write down what it was."""
        try:
            title = self._file.read(len(_TITLE))
            if not _TITLE.startswith(title):
                raise self._foreign()
            place = end = len(title)
            waiting: list[tuple[int, bytes]] = []
            while title == _TITLE and (record := self._record(place)) is not None:
                waiting.append((place, record if record[:1] != _MASK else record[: _MASK_HEAD.size]))
                place += _HEAD.size + len(record)
                if record[:1] == _COMMIT:
                    for each in waiting:
                        self._take_record(*each)
                    end = place
                    waiting.clear()
            self._file.truncate(end)
        except OSError as error:
            raise self._refused(error) from error
        except _NOT_OURS as error:
            raise self._foreign() from error
        self._written = self._recalled_to = end
        self.num_masks = self._noted

    def _take_record(self, place: int, record: bytes) -> None:
        kind = record[:1]
        if not self.is_unfinished:
            self._fingerprint = json.loads(record[1:])
            if kind != _RUN or not all(isinstance(each, str) for each in self._fingerprint.values()):
                raise ValueError(kind)
            self.is_unfinished = True
        elif kind == _MASK:
            _, index, identity, turned, share, *_ = _MASK_HEAD.unpack(record)
            self._take(index, place, identity, _REFINED | _TURNED * turned, share)
        elif kind == _IMAGE:
            self._take_image(place, json.loads(record[1:])["id"], _image_record(record))
        elif kind == _OUTPUT:
            self._stamps = dict(json.loads(record[1:]))
        elif kind == _COMMIT:
            _, self._seconds_before = _SECONDS.unpack(record)
        else:
            raise ValueError(kind)

    def _take_image(self, place: int, identity: int, said: PreparedImage) -> None:
        indexes = [index for index, _ in said.kept]
        for index in (*indexes, *(index for fault in said.faults for index in fault.indexes)):
            self._take(index, place, identity, _SAID | _TURNED * said.turned, np.nan)

    def _take(self, index: int, place: int, identity: int, flags: int, share: float) -> None:
        if index < 0:
            raise ValueError(index)
        if index < len(self._place):  # else the source has become shorter with the images
            self._noted += (flags & _REFINED) - int(self._flags[index] & _REFINED)
            self._place[index], self._identity[index] = place, identity
            self._flags[index], self._share[index] = flags, share

    def _refused(self, error: OSError) -> OutputError:
        return OutputError(
            f"cannot be written ({error.strerror or error})",
            file=self.path,
            remedy="check the space on the disk and the rights on the folder",
        )

    def _foreign(self) -> OutputError:
        return OutputError("is no journal of this version", file=self.path, remedy="move the file away")


class _Masks(Mapping[int, Mask]):
    """The masks of a journal that refining changed, each read when it is asked for, and not kept."""

    def __init__(self, journal: Journal) -> None:
        # a record whose mask came back as it was is written as it was, its box and area included
        self._journal, self._valid = journal, journal._valid & (journal.changed_shares != 0)

    def __getitem__(self, index: int) -> Mask:
        if index not in self:
            raise KeyError(index)
        journal = self._journal
        place = int(journal._place[index])
        record = journal._read_record(place)
        *_, height, width, area, x0, y0, x1, y1 = _MASK_HEAD.unpack_from(record)
        try:
            counts = record[_MASK_HEAD.size :].decode("ascii")
            if place < journal._recalled_to:  # whoever wrote it
                return Mask((height, width), counts)
        except (UnicodeDecodeError, InputError) as error:
            raise journal._foreign() from error
        return Mask.restored((height, width), counts, area, (x0, y0, x1, y1))

    def __contains__(self, index: object) -> bool:
        if not isinstance(index, Integral):  # NumPy's whole numbers are among them
            return False
        return 0 <= int(index) < len(self._valid) and bool(self._valid[int(index)])

    def __iter__(self) -> Iterator[int]:
        return iter(np.flatnonzero(self._valid).tolist())

    def __len__(self) -> int:
        return int(np.count_nonzero(self._valid))


def _image_record(record: bytes) -> PreparedImage:
    """What a record says of an image.

    Raises:
        ValueError, KeyError, TypeError: it is no record of ours.
    """
    said = json.loads(record[1:])
    faults = []
    for indexes, reason, file, label, remedy, whole_image, by_refiner in said["faults"]:
        if not isinstance(reason, str) or not all(
            text is None or isinstance(text, str) for text in (file, label, remedy)
        ):
            raise TypeError(reason)
        error = InputError(reason, file=file, record=label, remedy=remedy)
        faults.append(InstanceFault(error, tuple(map(int, indexes)), bool(whole_image), bool(by_refiner)))
    kept = tuple((int(index), str(reason)) for reason, indexes in said["kept"] for index in indexes)
    return PreparedImage(turned=bool(said["turned"]), kept=kept, faults=tuple(faults))


def _identity(image: ImageRecord) -> int:
    """A digest of what an image is: the file as it lies on the disk, and which instances are its own."""
    try:
        state = None if image.path is None else os.stat(image.path)  # noqa: PTH116  half the time of Path.stat
        file = None if state is None else (str(image.path), state.st_size, state.st_mtime_ns)
    except OSError:
        file = None
    text = ascii((file, image.name, image.indexes))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def _locked(path: Path, output: Path) -> IO[bytes]:
    """The file, opened and locked.

    Raises:
        OutputError: another run holds it.
        OSError: it cannot be opened.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
    while True:
        file = os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0)
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
