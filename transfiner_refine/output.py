"""Writing so that nothing half-written ever has the final name, and nothing is overwritten unasked."""

from __future__ import annotations

import glob
import io
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TextIO

from transfiner_refine.errors import OutputError

__all__ = [
    "atomic_binary_file",
    "atomic_file",
    "atomic_folder",
    "check_output_file",
    "check_output_folder",
    "remove_drafts",
]

_ASK = "give another --output, or --overwrite"


def check_output_file(output: Path, inputs: Iterable[Path], *, overwrite: bool) -> None:
    """Says whether a file may be written at ``output``.

    Raises:
        OutputError: it is one of the inputs, exists without ``overwrite``, or its folder cannot take it.
    """
    _check_not_input(output, inputs)
    if output.is_dir():
        raise OutputError("is a folder, but the result is one file", file=output, remedy="give a file name")
    if output.exists() and not overwrite:
        raise OutputError("exists already", file=output, remedy=_ASK)
    _check_parent(output)


def check_output_folder(output: Path, inputs: Iterable[Path], *, overwrite: bool) -> None:
    """Says whether a folder may be filled at ``output``; an empty one counts as not there.

    Raises:
        OutputError: it is one of the inputs, has files without ``overwrite``, or cannot be made there.
    """
    _check_not_input(output, inputs)
    if output.exists():
        if not output.is_dir():
            raise OutputError(
                "is a file, but the result is a folder", file=output, remedy="give a folder name"
            )
        if not overwrite and any(output.iterdir()):
            raise OutputError("exists already and is not empty", file=output, remedy=_ASK)
    _check_parent(output)


@contextmanager
def atomic_file(output: Path) -> Iterator[TextIO]:
    """A text file that gets its name when the block ends well, and leaves no trace when it does not.

    Raises:
        OutputError: the disk refused (full, read-only, no permission).
    """
    with atomic_binary_file(output) as file:
        text = io.TextIOWrapper(file, encoding="utf-8")
        yield text
        text.detach()  # hands over what is buffered, and leaves the file open for the fsync


@contextmanager
def atomic_binary_file(output: Path) -> Iterator[BinaryIO]:
    """A binary file in the manner of ``atomic_file``.

    Raises:
        OutputError: the disk refused (full, read-only, no permission).
    """
    draft = _draft_name(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(output)
    except OSError as error:
        raise _refused(output, error) from error
    finally:
        with suppress(OSError):  # gone if all went well, and never there if the folder is none
            draft.unlink()


@contextmanager
def atomic_folder(output: Path) -> Iterator[Path]:
    """A folder to fill, which becomes ``output`` when the block ends well and vanishes when it does not.

    Where ``output`` exists, the new files replace those of the same name one by one, each at once; files of
    other names stay.

    Raises:
        OutputError: the disk refused (full, read-only, no permission).
    """
    draft = _draft_name(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        draft.mkdir()
        yield draft
        if output.is_dir():
            for file in sorted(path for path in draft.rglob("*") if path.is_file()):
                target = output / file.relative_to(draft)
                target.parent.mkdir(parents=True, exist_ok=True)
                file.replace(target)
        else:
            draft.replace(output)
    except OSError as error:
        raise _refused(output, error) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def remove_drafts(output: Path) -> None:
    """Removes what killed processes left unfinished beside ``output``; drafts of living ones stay."""
    for draft in output.parent.glob(f"{glob.escape(f'.{output.name}.')}*.part"):
        number = draft.name.removeprefix(f".{output.name}.").removesuffix(".part")
        if not (number.isascii() and number.isdigit()) or _is_alive(int(number)):
            continue
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
        else:
            with suppress(OSError):  # on Windows an open file cannot be removed, so its process lives
                draft.unlink()


def _is_alive(process: int) -> bool:
    """Whether there may be a process of that number."""
    if os.name == "nt":  # signal 0 would be Ctrl-C there
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # somebody else's
        return True
    return process != os.getpid()  # a number is used again, in containers soon


def _draft_name(output: Path) -> Path:
    """A name beside the output, hence on its file system; the process id keeps two runs apart."""
    return output.with_name(f".{output.name}.{os.getpid()}.part")


def _refused(output: Path, error: OSError) -> OutputError:
    return OutputError(
        f"cannot be written ({error.strerror or error})",
        file=output,
        remedy="check the space on the disk and the rights on the folder",
    )


def _check_not_input(output: Path, inputs: Iterable[Path]) -> None:
    for source in inputs:
        if output.resolve() == source.resolve():
            raise OutputError("is an input of this run", file=output, remedy="give another --output")


def _check_parent(output: Path) -> None:
    parent = next(folder for folder in output.absolute().parents if folder.exists())
    if not parent.is_dir():
        raise OutputError(
            f"cannot be made, for {parent} is a file", file=output, remedy="give another --output"
        )
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(
            f"cannot be made, for {parent} is not writable", file=output, remedy="give another --output"
        )
