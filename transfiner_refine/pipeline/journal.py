"""The file beside the output in which a run keeps what it has done, and which keeps other runs away from it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

from transfiner_refine.errors import OutputError
from transfiner_refine.pipeline.ledger import Ledger
from transfiner_refine.pipeline.lock import lock
from transfiner_refine.pipeline.record_log import RecordLog

__all__ = ["Journal", "journal_path"]

_TITLE = b"transfiner-refine journal 2\n"
_HEADER = b"H"


def journal_path(output: Path) -> Path:
    """Where the journal of a run lies."""
    return output.with_name(f".{output.name}.journal")


class Journal:
    """The journal of a run to one output, locked to this process as long as it is open.

    Attributes:
        path: the file.
        ledger: what it says; an interrupted run's until ``begin`` decides.
        is_unfinished: an interrupted run has left it and ``begin`` has not decided to start anew.
        has_begun: ``begin`` has been called.
        is_done: to be set when the output is there.
    """

    def __init__(self, output: Path, num_instances: int) -> None:
        """Opens or makes the file.

        Args:
            output: what the run writes.
            num_instances: of the run's source.

        Raises:
            OutputError: another run has it open, it is some other file, or the disk refuses it.
        """
        self.path, self._output, self._num_instances = journal_path(output), output, num_instances
        self.is_unfinished = self.has_begun = self.is_done = False
        self._fingerprint: dict[str, str] = {}
        self.ledger = Ledger(num_instances)
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            self._file = _locked(self.path, output)
            try:
                self._read()
            except BaseException:
                self._file.close()
                raise
        except OSError as error:
            raise OutputError(
                f"cannot be written ({error.strerror or error})",
                file=self.path,
                remedy="check the space on the disk and the rights on the folder",
            ) from error

    @property
    def is_worth_keeping(self) -> bool:
        """There is something in it to go on with."""
        return not self.is_done and (self.is_unfinished or not self.ledger.is_empty)

    def refuse_unfinished(self, *, resume: bool, overwrite: bool) -> None:
        """Raises OutputError where an interrupted run has left the journal and nobody said what to do with it."""
        if self.is_unfinished and not (resume or overwrite):
            count = self.ledger.num_masks
            raise OutputError(
                f"an interrupted run has left {self.path.name} with {count} refined mask{'s' * (count != 1)}",
                file=self._output,
                remedy="go on with it by --resume, or start anew with --overwrite",
            )

    def begin(self, fingerprint: Mapping[str, str], *, resume: bool) -> None:
        """Goes on with the run that is written down, or starts a new one.

        Args:
            fingerprint: what the masks depend on, by the name a user knows it under.
            resume: go on if there is something to go on with.

        Raises:
            OutputError: the run that is written down is another one; the text says what differs.
            OSError: the disk refused.
        """
        if resume and self.is_unfinished:
            if differences := _differences(self._fingerprint, fingerprint):
                raise OutputError(
                    f"is of another run: {', '.join(differences)}",
                    file=self.path,
                    remedy="repeat the command as it was, or start anew with --overwrite and without --resume",
                )
            self.ledger.note_resumed()
            self.has_begun = True
            return
        self._file.truncate(0)
        self._file.seek(0)
        self._file.write(_TITLE)
        log = RecordLog(self._file)
        log.append(_HEADER + json.dumps(dict(fingerprint)).encode())
        log.flush()
        self.ledger, self.is_unfinished = Ledger(self._num_instances, log, log.end), False
        self.has_begun = True

    def close(self) -> None:
        """Lets go of the file, and removes it if it is not worth keeping."""
        keep = self.is_worth_keeping
        if os.name == "nt":  # an open file cannot be removed there
            self._file.close()
        if not keep:
            with suppress(OSError):  # the folder was closed meanwhile; the output is there all the same
                self.path.unlink()  # before another run can lock it
        self._file.close()

    def _read(self) -> None:
        """Takes in what an interrupted run has left, if it had come so far as to write a header."""
        title = self._file.read(len(_TITLE)) or b""
        if not _TITLE.startswith(title):
            raise OutputError("is no journal of this version", file=self.path, remedy="move the file away")
        if title != _TITLE:
            return
        log = RecordLog(self._file)
        _, header = next(log.scan(len(_TITLE)), (0, b""))
        if header[:1] == _HEADER:
            self._fingerprint, self.is_unfinished = json.loads(header[1:]), True
            self.ledger = Ledger(self._num_instances, log, len(_TITLE))


def _locked(path: Path, output: Path) -> IO[bytes]:
    """The file, opened and locked.

    Raises:
        OutputError: another run holds it.
        OSError: it cannot be opened.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
    while True:
        file = os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0)
        if not lock(file.fileno()):
            file.close()
            raise OutputError(
                "another run is writing it", file=output, remedy="wait for that one, or give another --output"
            )
        try:
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                file.seek(0)
                return file
        except FileNotFoundError:
            pass
        file.close()  # the run that held it has just ended and removed the file


def _differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What differs between two fingerprints, in words."""
    words = []
    for name in dict.fromkeys([*before, *now]):
        old, new = before.get(name, ""), now.get(name, "")
        if old == new:
            continue
        both_known = old and new and not old.startswith("sha256:")
        words.append(f"{name} was {old} and is {new}" if both_known else f"{name} has changed")
    return words
