"""Atomic writing: an output gets its name when it is whole, and nothing is overwritten unasked.

Everything is written into a draft beside the output, ``.NAME.PROCESS-RANDOM.part``, and renamed at the end. A draft
is created exclusively and its name cannot be guessed, so no link or pipe can be planted in its place.
"""

from __future__ import annotations

import ctypes
import io
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO, TextIO

from transfiner_refine.errors import OutputError

_ASK = "give another --output, or --overwrite"
_ELSEWHERE = "give another --output"
_LEFT = re.compile(r"(\d+)(?:-[0-9a-f]+)?\.(part|old)")  # a draft's name; once without the random part
_LONGEST_NAME = 200  # bytes; of an output with a longer name, drafts are named after a digest
_ours: set[Path] = set()  # drafts of this process that are being written


def check_output_file(output: Path, inputs: Iterable[Path], *, overwrite: bool) -> None:
    """Says whether a file may be written at ``output``.

    Raises:
        OutputError: it is, holds or lies inside one of the inputs, exists without ``overwrite``, or its folder
            cannot take it.
    """
    _check_apart(output, inputs)
    if output.is_dir():
        raise OutputError("is a folder, but the result is one file", file=output, remedy="give a file name")
    if output.exists() and not output.is_file():
        raise OutputError("is no plain file", file=output, remedy=_ELSEWHERE)
    if os.path.lexists(output) and not overwrite:
        raise OutputError("exists already", file=output, remedy=_ASK)


def check_output_folder(output: Path, inputs: Iterable[Path], *, overwrite: bool) -> None:
    """The same for a folder; an empty one counts as not there."""
    _check_apart(output, inputs)
    if not os.path.lexists(output):
        return
    if not output.is_dir():
        raise OutputError("is a file, but the result is a folder", file=output, remedy="give a folder name")
    if os.path.ismount(output):
        what = "cannot be replaced as a whole, for a disk is mounted there"
        raise OutputError(what, file=output, remedy="give a folder inside it")
    if not overwrite and any(output.iterdir()):
        raise OutputError("exists already and is not empty", file=output, remedy=_ASK)


@contextmanager
def atomic_file(output: Path) -> Iterator[TextIO]:
    """A text file in UTF-8 in the manner of ``atomic_binary_file``."""
    with atomic_binary_file(output) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        yield text
        text.detach()  # hands over what is buffered, and leaves the file open for the fsync


@contextmanager
def atomic_binary_file(output: Path) -> Iterator[BinaryIO]:
    """A file that gets its name when the block ends well, and leaves no trace when it does not.

    What has had the name before the block is replaced; what appears at it during the block is not.

    Raises:
        OutputError: the disk refused (full, read-only, no permission), or something has appeared at the name.
    """
    replace = os.path.lexists(output)
    with _draft(output) as draft:
        with draft.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _name(draft, output, replace=replace)


@contextmanager
def atomic_folder(output: Path) -> Iterator[Path]:
    """A folder to fill, which becomes ``output`` when the block ends well and vanishes when it does not.

    An older folder is replaced as a whole; one that gets files during the block is not, if it had none before.
    Errors are those of ``atomic_binary_file``.
    """
    with _draft(_target(output)) as draft:
        replace = output.is_dir() and any(output.iterdir())
        draft.mkdir()
        yield draft
        _name(draft, _target(output), replace=replace)


@contextmanager
def atomic_output(output: Path, beside: Path | None = None, *, overwrite: bool) -> Iterator[Path]:
    """A path to write a file or a folder at; it becomes ``output`` when the block ends well.

    Args:
        output: the file or folder.
        beside: a folder that is written beside the file; it gets its name first, and an old file goes before that.
        overwrite: what is at the names may be replaced, else only empty folders.

    Raises:
        OutputError: as for ``atomic_binary_file``; paths in errors of the block are those of the output.
    """
    place = _target(output)
    with _draft(place) as folder:
        folder.mkdir()
        try:
            yield folder / place.name
        except OutputError as error:
            if error.file is None or folder not in Path(error.file).parents:
                raise
            raise error.at(place.parent / Path(error.file).relative_to(folder)) from error
        if beside is not None and (folder / beside.name).is_dir():
            if os.path.lexists(place):
                if not overwrite:
                    raise _appeared(place)
                place.unlink()
            _name(folder / beside.name, _target(beside), replace=overwrite)
        _name(folder / place.name, place, replace=overwrite)


def remove_drafts(output: Path) -> None:
    """Removes what killed processes left unfinished beside ``output``; drafts of living ones stay."""
    output, prefix = _target(output), _prefix(output)
    with suppress(OSError):
        for draft in list(output.parent.iterdir()):
            left = draft.name.startswith(prefix) and _LEFT.fullmatch(draft.name[len(prefix) :])
            if not left or draft in _ours or _is_alive(int(left[1])):
                continue
            if left[2] == "old" and not os.path.lexists(output):  # killed between the two names of a swap
                draft.rename(output)
            else:
                _remove(draft)


@contextmanager
def _draft(output: Path) -> Iterator[Path]:
    """A name that nobody can know before, for what vanishes with the block."""
    remove_drafts(output)
    draft = _new_draft(output, "part")
    _ours.add(draft)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        yield draft
    except OSError as error:
        raise OutputError(
            f"cannot be written ({error.strerror or error})",
            file=output,
            remedy="check the space on the disk and the rights on the folder",
        ) from error
    finally:
        _remove(draft)
        _ours.discard(draft)


def _new_draft(output: Path, kind: str) -> Path:
    return output.with_name(f"{_prefix(output)}{os.getpid()}-{os.urandom(6).hex()}.{kind}")


def _prefix(output: Path) -> str:
    name = os.fsencode(output.name)
    return f".{output.name if len(name) <= _LONGEST_NAME else blake2b(name, digest_size=8).hexdigest()}."


def _target(output: Path) -> Path:
    """Where a folder lies that ``output`` is a link to: it is replaced there, and the link stays."""
    return Path(os.path.realpath(output)) if output.is_dir() else output


def _name(draft: Path, output: Path, *, replace: bool) -> None:
    """Gives a finished draft its name, at one stroke."""
    try:
        if draft.is_dir() and output.is_dir():
            shutil.copymode(output, draft)
            if replace and any(output.iterdir()):
                _swap(draft, output)
                return
            if os.name == "nt":  # elsewhere an empty folder is replaced by renaming
                output.rmdir()
        if draft.is_dir() or (os.name == "nt" and not replace):
            draft.rename(output)
        elif replace:
            draft.replace(output)
        else:
            try:
                os.link(draft, output)
            except FileExistsError:
                raise
            except OSError:  # a file system without links
                if os.path.lexists(output):
                    raise
                draft.replace(output)
    except OSError as error:
        if os.path.lexists(output) and not replace:
            raise _appeared(output) from error
        raise


def _swap(draft: Path, output: Path) -> None:
    """Lets two folders change their names, at one stroke where the system can; the old one is removed as a draft."""
    if sys.platform == "linux":
        here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        with suppress(AttributeError):  # a C library without it
            rename = ctypes.CDLL(None).renameat2
            if rename(here, os.fsencode(draft), here, os.fsencode(output), exchange) == 0:
                return
    old = _new_draft(output, "old")
    output.rename(old)
    try:
        draft.rename(output)
    except OSError:
        old.rename(output)
        raise
    _remove(old)


def _remove(draft: Path) -> None:
    if draft.is_dir() and not draft.is_symlink():
        shutil.rmtree(draft, ignore_errors=True)
    else:
        with suppress(OSError):  # not there; or open on Windows, so its process lives
            draft.unlink()


def _is_alive(process: int) -> bool:
    """Whether there may be another process of that number."""
    if os.name == "nt":  # signal 0 would be Ctrl-C there
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # somebody else's
        return True
    return process != os.getpid()  # a number is used again, in containers soon


def _appeared(output: Path) -> OutputError:
    return OutputError("has appeared while the result was made", file=output, remedy=_ASK)


def _check_apart(output: Path, inputs: Iterable[Path]) -> None:
    """Refuses an output that has to do with an input, all links resolved, or whose folder cannot be written to."""
    place = Path(os.path.realpath(output))
    for source in inputs:
        given = Path(os.path.realpath(source))
        if place == given:
            what = "is an input of this run"
        elif given in place.parents:
            what = f"lies inside an input of this run, {source}"
        elif place in given.parents:
            what = f"holds an input of this run, {source}"
        elif place.exists() and (link := _link_into(given, place)) is not None:
            what = f"holds what an input of this run links to, {link}"
        else:
            continue
        raise OutputError(what, file=output, remedy=_ELSEWHERE)
    parent = next(folder for folder in output.absolute().parents if folder.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)):
        what = "is not writable" if parent.is_dir() else "is a file"
        raise OutputError(f"cannot be made, for {parent} {what}", file=output, remedy=_ELSEWHERE)


def _link_into(folder: Path, place: Path) -> Path | None:
    """The first link in a folder that leads to a place or into it."""
    for root, folders, files in os.walk(folder):
        for path in (Path(root, name) for name in (*folders, *files)):
            if path.is_symlink() and place in (real := Path(os.path.realpath(path)), *real.parents):
                return path
    return None
