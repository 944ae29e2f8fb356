"""The files of a run, what is written of it where, and how it ends that breaks off."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

from transfiner_refine.errors import InputError, MaskRefineError
from transfiner_refine.formats.convert import check_destination
from transfiner_refine.formats.records import Written
from transfiner_refine.formats.registry import format_for, format_named, open_source, recognise
from transfiner_refine.output import atomic_output, check_output_file, remove_drafts
from transfiner_refine.pipeline.fingerprint import content_digest, file_entries, input_entries
from transfiner_refine.pipeline.journal import Journal
from transfiner_refine.pipeline.prepare import Selection, system_fault
from transfiner_refine.pipeline.run import Outcome, mean_share
from transfiner_refine.pipeline.shards import Shard
from transfiner_refine.pipeline.staging import check_free, fetch_beside, origin, publish, shown

_COVERED = "refined mask lies entirely under others in a format of one id a pixel, coarse mask kept"
_MARK = "user.transfiner-refine"
_REMEDIES = {
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "close other programs",
    errno.ENOMEM: "free memory",
    errno.ENOSPC: "make space on the disk",
    errno.EDQUOT: "make space on the disk",
    errno.EIO: "check the disk",
    errno.ENETUNREACH: "check the network and the access to it",
}


class Interrupted(KeyboardInterrupt):
    """Ctrl-C; the text says what is kept and how to go on."""


@contextmanager
def system_faults() -> Iterator[None]:
    """What the system refuses is not said to be the input's fault."""
    try:
        yield
    except (InputError, OSError) as error:
        fault = system_fault(error) or (error if isinstance(error, OSError) else None)
        if fault is None:
            raise
        raise MaskRefineError(
            f"the system refused ({fault.strerror or fault}), which is no fault of the input",
            remedy=_REMEDIES.get(fault.errno or 0),
        ) from error


class Job:
    """The files of a run: what is read, and what is written of it where."""

    def __init__(
        self,
        images: Path,
        masks: Path,
        output: Path,
        reading: Mapping[str, Any],
        to: str | None,
        keep_boxes: bool,
        shard: Shard | None = None,
    ) -> None:
        """Opens the masks; ``reading`` has what ``open_source`` takes beside them."""
        self.read_as = recognise(masks, reading["format"])
        if self.read_as.beside is not None:
            fetch_beside(masks, self.read_as.beside)
        self.reading = {**reading, "format": self.read_as.name}
        self.source = open_source(masks, images, **self.reading)
        if shard is None:
            self.target = format_for(output, to, self.read_as)
        else:  # its name says nothing
            self.target = self.read_as if to is None else format_named(to)
        self._images, self._masks, self._output = images, masks, output
        self._keep_boxes, self.shard = keep_boxes, shard
        named = ((f"--{name.replace('_', '-')}", reading[name]) for name in ("image_info", "class_names"))
        self._files: dict[str, str | Path | None] = {"--masks": masks, **dict(named)}
        if self.read_as.beside is not None:
            self._files["the PNGs of --masks"] = self.read_as.beside(masks)
        self.inputs = [images, *(Path(path) for path in self._files.values() if path is not None)]

    def check(self, *, overwrite: bool) -> None:
        """Raises OutputError or InputError where the output cannot be written."""
        check_free(self._output, self.inputs, overwrite=overwrite)
        if self.shard is None:
            check_destination(self.target, self._output, self.inputs, source=self.source, overwrite=overwrite)
        else:
            check_output_file(self._output, self.inputs, overwrite=overwrite)

    def contents(self) -> dict[str, str]:
        """What the masks depend on of the files that are read."""
        return file_entries(self._files)

    def fingerprint(self, selection: Selection) -> dict[str, str]:
        """What the masks depend on, without the refiner."""
        reading = {
            "--from": self.read_as.name,
            "--png-kind": self.reading["png_kind"],
            "--fit-masks": str(self.reading["fit_masks"]),
            "--orientation": self.reading["orientation"],
            "--refine-crowds": str(self.reading["refine_crowds"]),
            "--background": str(self.reading["background"]),
            "--max-image-pixels": str(self.reading["max_image_pixels"]),
            "--polygon-tolerance": f"{self.reading['polygon_tolerance']:g}",
            "--polygons": self.reading["polygons"],
        }
        reading |= {} if self.shard is None else {"--shard": str(self.shard)}
        return input_entries(self._images, self.contents(), reading, selection)

    def outputs(self, output: Path) -> list[Path]:
        """The output, and what is written beside it."""
        beside = None if self.shard is not None or self.target.beside is None else self.target.beside(output)
        return [output] if beside is None else [output, beside]

    def mark_done(self, fingerprint: Mapping[str, str]) -> None:
        """Notes beside the output's bytes, where the file system can, which run is complete in it.

        A run that is killed when its journal is gone is known by that.
        """
        with suppress(OSError, AttributeError):
            os.setxattr(self._output, _MARK, self._mark(fingerprint))

    def is_marked(self, fingerprint: Mapping[str, str] | None = None) -> bool:
        """Whether the output is noted to be complete, of this very run if it is given."""
        with suppress(OSError, AttributeError):
            found = os.getxattr(self._output, _MARK)
            return fingerprint is None or found == self._mark(fingerprint)
        return False

    def _mark(self, fingerprint: Mapping[str, str]) -> bytes:
        said = [dict(fingerprint), self.target.name, self._keep_boxes, stamps_of(*self.outputs(self._output))]
        return blake2b(json.dumps(said).encode(), digest_size=16).hexdigest().encode()

    def write(self, outcome: Outcome, journal: Journal, *, overwrite: bool) -> None:
        """Writes the output, and takes what that had to decide into the summary."""
        written, (output, *beside) = Written(), self.outputs(self._output)
        for path in (output, *beside):
            remove_drafts(path)
        with atomic_output(output, *beside, overwrite=overwrite) as draft:
            if self.shard is not None:
                places = {"images": self._images, "masks": self._masks, **self.reading}
                reading = {name: origin(value) for name, value in places.items()}
                journal.write_shard(draft, {"shard": self.shard, "reading": reading})
            elif self.target is self.read_as:
                written = self.source.write(draft, outcome.masks, keep_boxes=self._keep_boxes, overwrite=True)
            else:
                written = self.target.write(draft, self.source, outcome.masks)
            journal.note_output(stamps_of(*self.outputs(draft)))
        for path in (*beside, output):
            publish(path, overwrite=overwrite)
        _account(outcome, written)
        kind = "a shard for merge" if self.shard is not None else self.target.name
        outcome.summary.output = f"{shown(self._output)} ({kind})"
        outcome.summary.seconds = journal.seconds


@contextmanager
def resumable(output: Path, num_instances: int) -> Iterator[Journal]:
    """The journal of a run. It stays if the block fails and there is something to go on with.

    Raises:
        OutputError: from opening the journal.
        MaskRefineError: errors of the block, with a word on how to go on.
        Interrupted: for Ctrl-C in the block.
    """
    journal, keep = Journal(num_instances, output), True
    try:
        with system_faults():
            yield journal
        keep = False
    except KeyboardInterrupt:
        raise Interrupted("; ".join(filter(None, ("interrupted", journal.way_on())))) from None
    except MaskRefineError as error:
        if (way_on := journal.way_on()) is None:
            raise
        remedy = "; ".join(filter(None, (error.remedy, way_on)))
        raise type(error)(error.reason, file=error.file, record=error.record, remedy=remedy) from error
    finally:
        journal.close(keep=keep)


def stamps_of(*outputs: Path) -> dict[str, Any]:
    """What tells outputs from others of their names, and stays when they are renamed."""
    stamps = {}
    for path in outputs:
        if not path.exists():
            continue
        state = path.stat()
        is_folder = path.is_dir()
        stamps[path.name] = (
            content_digest(path) if is_folder else [state.st_ino, state.st_size, state.st_mtime_ns]
        )
    return stamps


def _account(outcome: Outcome, written: Written) -> None:
    """Takes what writing had to decide into the summary."""
    summary = outcome.summary
    summary.overlap_pixels, summary.notes = written.overlap_pixels, (*summary.notes, *written.notes)
    known = {str(error) for error in summary.errors}  # most of them have been met in refining already
    summary.errors += [fault.error for fault in written.faults if str(fault.error) not in known]
    summary.not_written = sum(fault.instances for fault in written.faults)
    if written.covered:
        summary.refined -= len(written.covered)
        summary.passed_through[_COVERED] += len(written.covered)
        summary.mean_changed_share = mean_share(outcome.changed_shares, written.covered)
