"""The journal of a run: what has become of every instance, in a file beside the output, so that a run can be resumed.

Each record carries the identity of its image (file, size, time and instances). If the image is another one when it
comes again, nothing that was written of it counts.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from hashlib import blake2b
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.errors import InputError, OutputError
from transfiner_refine.formats.records import ImageRecord
from transfiner_refine.masks import Mask
from transfiner_refine.pipeline.journal_file import COMMIT, JournalFile
from transfiner_refine.pipeline.prepare import InstanceFault
from transfiner_refine.remote import RemotePath

RUN, SHARD = "H", "S"  # kinds of records
_KEPT, _FAULT, _MASK, _OUTPUT = "K", "F", "M", "W"
_AT_FAULT, _REFINED = 1, 2  # fates of an instance
_LEFT_ALONE = 3  # and a further one for each reason
_EMPTIED = "refined mask came out empty, coarse mask kept"
FOREIGN = (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError)


class Recalled(NamedTuple):
    """What is known of an image from an interrupted run: instances that are done, and the faults among them."""

    identity: int  # of the image, now
    turned: bool = False  # as in ``PreparedImage``
    done: frozenset[int] = frozenset()
    faults: tuple[InstanceFault, ...] = ()


class Journal(Mapping[int, Mask]):
    """The journal of a run, and the masks that refining changed by ``Instance.index``, each read when it is asked for.

    A mask that came back as it was is none of them: its record is written as it was, box and area included.
    Without an output it is kept in memory. One thread may write while another recalls.

    Attributes:
        is_unfinished: an interrupted run has left it, and ``begin`` has not decided to start anew.
    """

    def __init__(
        self,
        num_instances: int,
        output: Path | None = None,
        *,
        identities: Mapping[int, int] | None = None,
    ) -> None:
        """Opens or makes the file, and reads what an interrupted run has left in it.

        With ``identities``, it is the journal of a part of a run, which another run's journal absorbs: those of its
        images by their first instance.

        Raises:
            OutputError: another run has the file open, it is some other file, or the disk refuses it.
        """
        self._output, self._file, self._identities = output, JournalFile(output), identities
        self.is_unfinished = self._has_begun = False
        self._fingerprint: dict[str, str] = {}
        self._reset(num_instances)
        try:
            for place, kind, record in self._file.recover() if output is not None else ():
                if self.is_unfinished:
                    self._take_record(place, kind, record)
                elif kind != RUN or not all(isinstance(each, str) for each in record.values()):
                    raise ValueError(kind)
                else:
                    self._fingerprint, self.is_unfinished = record, True
            self._old = self._file.committed
            self._recalls = self._old > 0
        except BaseException as error:
            self._file.close()
            if isinstance(error, FOREIGN):
                raise self._foreign() from error
            raise

    def _reset(self, num_instances: int) -> None:
        self._place = np.zeros(num_instances, np.int64)  # of the last record of an instance
        self._identity = np.zeros(num_instances, np.int64)
        self._turned = np.zeros(num_instances, bool)
        self._fate = np.zeros(num_instances, np.int32)
        self._share = np.full(num_instances, np.nan)  # of a refined mask; NaN where it came out empty
        self._is_current = np.zeros(num_instances, bool)  # the record is of an image as this run has met it
        self._reasons: dict[str, int] = {}  # to leave an instance alone, with the fate that stands for each
        self._old = 0  # bytes, of interrupted runs and of shards
        self._recalls = self.trusts_images = False
        self._stamps: dict[str, Any] | None = None
        self._seconds_before, self._start = 0.0, time.monotonic()

    # the run

    @property
    def num_masks(self) -> int:
        """Refined masks that will outlive this process."""
        return int(np.count_nonzero((self._fate == _REFINED) & (self._place < self._file.committed)))

    @property
    def seconds(self) -> float:
        """Time spent on the run up to now, the interrupted part included."""
        return self._seconds_before + time.monotonic() - self._start

    def refuse_unfinished(self, *, resume: bool, overwrite: bool) -> None:
        """Raises OutputError where an interrupted run has left the journal and nobody said what to do with it."""
        if self._file.path is not None and self.is_unfinished and not (resume or overwrite):
            raise OutputError(
                f"an interrupted run has left {self._file.path.name} with {_masks(self.num_masks)}",
                file=self._output,
                remedy="go on with it by --resume, or start anew with --overwrite",
            )

    def is_of(self, fingerprint: Mapping[str, str]) -> bool:
        """Whether the run that is written down depends on just this."""
        return self._fingerprint == fingerprint

    def begin(self, fingerprint: Mapping[str, str], *, resume: bool) -> None:
        """Goes on with the run that is written down, or starts a new one.

        Args:
            fingerprint: what the masks depend on, by the name a user knows it under.
            resume: go on if there is something to go on with.

        Raises:
            OutputError: the run that is written down is another one, the text says what differs; or the disk refused.
        """
        if resume and self.is_unfinished:
            if words := differences(self._fingerprint, fingerprint):
                raise OutputError(
                    f"is of another run: {', '.join(words)}",
                    file=self._file.path,
                    remedy="repeat the command as it was, or start anew with --overwrite and without --resume",
                )
        else:
            self.is_unfinished = False
            self._reset(len(self._place))
            self._file.restart()
            self._file.append(RUN, json.dumps(dict(fingerprint)))
            self.commit()
        self._has_begun = True

    def way_on(self) -> str | None:
        """How to go on after an interruption, if there is something to go on with."""
        if not (self._has_begun and self._is_worth_keeping):
            return None
        verb = "is" if self.num_masks == 1 else "are"
        return f"{_masks(self.num_masks)} {verb} kept, repeat the command with --resume to go on"

    def close(self, *, keep: bool = False) -> None:
        """Lets go of the file, and removes it if there is no need to keep it."""
        self._file.close(remove=not (keep and self._is_worth_keeping))

    @property
    def _is_worth_keeping(self) -> bool:
        return self.is_unfinished or self.num_masks > 0 or self._stamps is not None

    # its instances

    def recall(self, image: ImageRecord, identity: int | None = None) -> Recalled:
        """What is done of an image, as far as it still counts; ``identity`` is what it was met with before."""
        if identity is None:
            known = None if self._identities is None else self._identities.get(image.indexes[0])
            identity = _identity(image) if known is None else known
        if not self._recalls:
            return Recalled(identity)
        done = [
            i
            for i in image.indexes
            if self._fate[i] and (self.trusts_images or self._identity[i] == identity)
        ]
        self._is_current[done] = True
        places = sorted({int(self._place[i]) for i in done if self._fate[i] == _AT_FAULT})
        faults = tuple(_fault(*self._file.read(place)) for place in places)
        return Recalled(identity, bool(self._turned[done].any()), frozenset(done), faults)

    def absorb(self, lines: Iterable[bytes], *, are_own: bool = True) -> None:
        """Takes in what another journal says of instances; ``recall`` then knows them as done.

        Lines of ``records`` of this run's own processes are not checked again.

        Raises:
            any of ``FOREIGN``: they are not those of a journal.
        """
        seconds = 0.0
        for line in lines:
            kind, record = chr(line[8]), json.loads(line[9:])
            if kind in (_KEPT, _FAULT, _MASK):
                self._take_record(self._file.append_line(line), kind, record)
            elif kind == COMMIT:
                seconds = float(record)
        self._recalls = True
        if not are_own:
            self._seconds_before += seconds
            self.commit()
            self._old = self._file.committed

    def records(self) -> bytes:
        """The lines of a journal in memory, for another one to absorb."""
        return self._file.records()

    def note_others(
        self,
        identity: int,
        turned: bool,
        kept: Iterable[tuple[int, str]],
        faults: Iterable[InstanceFault],
    ) -> None:
        """Writes down what becomes of the instances of an image that are not refined."""
        for index, reason in kept:
            place = self._append(_KEPT, [index, identity, turned, reason])
            self._take(self._left_alone(reason), place, index, identity, turned, is_current=True)
        for fault in faults:
            e, how = fault.error, (fault.whole_image, fault.by_refiner)
            said = [fault.indexes, identity, turned, e.reason, e.file, e.record, e.remedy, *how]
            place = self._append(_FAULT, said)
            for index in fault.indexes:
                self._take(_AT_FAULT, place, index, identity, turned)

    def note_mask(self, index: int, identity: int, turned: bool, mask: Mask | None, share: float) -> None:
        """Writes down a refined mask and its changed share; None if it came out empty."""
        share, text = (math.nan, "NaN") if mask is None else (share, repr(share))
        text = f"[{index},{identity},{turned:d},{text}"
        if mask is not None:  # half of json's time; of what a text can hold, counts have backslashes only
            counts = mask.counts.replace("\\", r"\\")
            text += f',{list(mask.size)},"{counts}",{mask.area},{list(mask.box)}'
        place = self._file.append(_MASK, f"{text}]")
        self._take(_REFINED, place, index, identity, turned, share, is_current=True)

    def write_shard(self, output: Path, about: Mapping[str, Any]) -> None:
        """Writes all that is noted at another place, with a last record that says which part of a run it is."""
        self.commit()
        self._file.copy_to(output, SHARD, json.dumps(dict(about)))

    def note_output(self, stamps: Mapping[str, Any]) -> None:
        """Writes down how the output can be known that gets its name now, by the name."""
        self._stamps = dict(stamps)
        self._file.append(_OUTPUT, json.dumps(self._stamps))
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
        self._file.commit(repr(self.seconds))

    # what has become of them

    @property
    def changed_shares(self) -> NDArray[np.float64]:
        """[instances]: changed pixels / pixels of the coarse mask's box, NaN where there is no refined mask."""
        return np.where(self._is_current, self._share, np.nan)

    def passed_through(self) -> Counter[str]:
        """Instances that keep their coarse masks though nothing is wrong with them, by reason."""
        fates = np.bincount(self._fate[self._is_current], minlength=_LEFT_ALONE + len(self._reasons))
        found = Counter({reason: int(fates[fate]) for reason, fate in self._reasons.items()})
        found[_EMPTIED] = int(
            np.count_nonzero(self._is_current & (self._fate == _REFINED) & np.isnan(self._share))
        )
        return +found

    def __getitem__(self, index: int) -> Mask:
        if index not in self:
            raise KeyError(index)
        place = int(self._place[index])
        *_, size, counts, area, box = self._file.read(place)
        if place >= self._old:
            return Mask.restored(tuple(size), counts, area, tuple(box))
        try:
            return Mask(tuple(size), counts)  # whoever wrote it
        except (InputError, *FOREIGN) as error:
            raise self._foreign() from error

    def __contains__(self, index: object) -> bool:
        if not isinstance(index, Integral):  # NumPy's whole numbers are among them
            return False
        i = int(index)
        return 0 <= i < len(self._share) and bool(self._is_current[i] and self._share[i] > 0)

    def __iter__(self) -> Iterator[int]:
        return iter(np.flatnonzero(self._is_current & (self._share > 0)).tolist())

    def __len__(self) -> int:
        return int(np.count_nonzero(self._is_current & (self._share > 0)))

    # its records

    def _append(self, kind: str, record: Any) -> int:
        """Adds a record that only a later run reads; returns its place."""
        if self._file.path is None and self._identities is None:
            return 0
        return self._file.append(kind, json.dumps(record))

    def _take_record(self, place: int, kind: str, record: Any) -> None:
        if kind == _MASK:
            self._take(_REFINED, place, *record[:4])
        elif kind == _KEPT:
            index, identity, turned, reason = record
            self._take(self._left_alone(reason), place, index, identity, turned)
        elif kind == _FAULT:
            for index in _fault(*record).indexes:
                self._take(_AT_FAULT, place, index, *record[1:3])
        elif kind == _OUTPUT:
            self._stamps = dict(record)
        elif kind == COMMIT:
            self._seconds_before = float(record)
        else:
            raise ValueError(kind)

    def _take(
        self, fate: int, place: int, index: int, identity: int, turned: bool, share: float = np.nan,
        *, is_current: bool = False,
    ) -> None:  # fmt: skip
        if index < 0:
            raise ValueError(index)
        if index < len(self._place):  # else the source has become shorter with the images
            self._place[index], self._identity[index], self._turned[index] = place, identity, bool(turned)
            self._fate[index], self._share[index] = fate, share
            self._is_current[index] |= is_current

    def _left_alone(self, reason: str) -> int:
        return self._reasons.setdefault(_text(reason), _LEFT_ALONE + len(self._reasons))

    def _foreign(self) -> OutputError:
        return OutputError("is no journal of this version", file=self._file.path, remedy="move the file away")


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
            is_here = not isinstance(image.path, RemotePath)
            state = os.stat(image.path) if is_here else image.path.stat()  # noqa: PTH116  half the time of Path.stat
            file = (str(image.path), state.st_size, state.st_mtime_ns)
    text = ascii((file, image.name, image.indexes))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def _masks(count: int) -> str:
    return f"{count} refined mask{'s' * (count != 1)}"


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What differs between two fingerprints, in words."""
    words = []
    for name in dict.fromkeys([*before, *now]):
        old, new = before.get(name, ""), now.get(name, "")
        if old != new:
            both_known = old and new and not old.startswith("sha256:")
            words.append(f"{name} was {old} and is {new}" if both_known else f"{name} has changed")
    return words
