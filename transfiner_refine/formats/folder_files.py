"""The files of a folder and its subfolders, listed once and copied where nothing in them changed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

from transfiner_refine.errors import InputError

__all__ = ["copy_file", "copy_rest", "files_in", "first_files"]

_FOLDERS_LOOKED_INTO = 16


def files_in(folder: Path, *, remedy: str) -> list[PurePosixPath]:
    """The files below a folder, as paths relative to it, in the order of their names.

    Links to folders are followed, each folder once, so that a circle of links ends. Pipes and devices are no
    files. Names that begin with a dot are left out, as the drafts of interrupted runs and of editors are.

    Args:
        folder: where to look.
        remedy: what to tell a user whose folder cannot be listed.

    Raises:
        InputError: there is no such folder, or it cannot be listed.
    """
    try:
        return sorted(_walk(folder), key=str)
    except OSError as error:
        raise InputError(
            f"cannot be listed as a folder ({error.strerror})", file=error.filename or folder, remedy=remedy
        ) from error


def first_files(folder: Path, suffix: str, most: int = 8) -> list[Path]:
    """A few files with that suffix (lower case, with dot) from a folder and its subfolders, for a cheap look at them.

    The folder itself comes first, then the first subfolders, each by name; an unreadable folder has none.
    """
    found: list[Path] = []
    folders = [folder]
    for _ in range(_FOLDERS_LOOKED_INTO):
        if not folders or len(found) >= most:
            break
        try:
            with os.scandir(folders.pop(0)) as entries:
                listed = sorted(
                    (entry for entry in entries if not entry.name.startswith(".")),
                    key=lambda entry: entry.name,
                )
                files = [
                    entry for entry in listed if entry.name.lower().endswith(suffix) and _is(entry.is_file)
                ]
                found += [Path(entry.path) for entry in files[:most]]
                folders += [Path(entry.path) for entry in listed if _is(entry.is_dir)][:_FOLDERS_LOOKED_INTO]
        except OSError:
            continue
    return found[:most]


def copy_file(folder: Path, name: PurePosixPath, draft: Path) -> None:
    """Copies one file to the same place in ``draft``."""
    target = draft / name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / name, target)


def copy_rest(folder: Path, names: Iterable[PurePosixPath], draft: Path) -> None:
    """Copies the files that ``draft`` does not have yet."""
    for name in names:
        if not (draft / name).exists():
            copy_file(folder, name, draft)


def _is(kind: Callable[[], bool]) -> bool:
    try:
        return kind()
    except OSError:  # a link that leads to itself is neither file nor folder
        return False


def _raise(error: OSError) -> None:
    """What cannot be listed must not be passed over as if it held nothing."""
    raise error


def _walk(folder: Path) -> Iterator[PurePosixPath]:
    seen = {os.path.realpath(folder)}
    for place, folders, files in os.walk(folder, onerror=_raise, followlinks=True):
        inside = Path(place)
        fresh = []
        for name in sorted(folders):
            real = os.path.realpath(inside / name)
            if not name.startswith(".") and real not in seen:
                seen.add(real)
                fresh.append(name)
        folders[:] = fresh
        for name in files:
            if not name.startswith(".") and (inside / name).is_file():
                yield PurePosixPath((inside / name).relative_to(folder).as_posix())
