"""The arrays of ``.npz`` and ``.npy`` files, read without ever loading a pickle, and written back beside what stays."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from transfiner_refine.errors import InputError
from transfiner_refine.formats.folders import start_of

PICKLED = "holds Python objects, which are never loaded, for a pickle may run code"
_MOST_BYTES = 1 << 32  # of one array


class ArrayHeader(NamedTuple):
    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class ArrayFile:
    """The arrays of a file by key; the one of an ``.npy`` file has the key ""."""

    path: Path

    def headers(self) -> dict[str, ArrayHeader]:
        """What the arrays are; raises InputError where it is no such file."""
        with self._opened() as archive:
            if not isinstance(archive, zipfile.ZipFile):
                return {"": _header(archive)}
            names = [name for name in archive.namelist() if name.endswith(".npy")]
            if len(set(names)) < len(names):
                raise InputError("has two arrays of one name", file=self.path, remedy="name them apart")
            found = {}
            for name in names:
                with archive.open(name) as member:
                    found[name.removesuffix(".npy")] = _header(member)
            return found

    def read(self, key: str) -> NDArray[Any]:
        """One array, which may be written to; raises InputError where it cannot be read."""
        with self._opened() as archive:
            if not isinstance(archive, zipfile.ZipFile):
                return self._array(archive)
            with archive.open(f"{key}.npy") as member:
                return self._array(member)

    def write(self, arrays: Mapping[str, NDArray[Any]], target: Path) -> None:
        """Writes the file with some arrays replaced; everything else as it is."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._opened() as old:
            if not isinstance(old, zipfile.ZipFile):
                with target.open("wb") as file:
                    npy.write_array(file, arrays[""], allow_pickle=False)
                return
            with zipfile.ZipFile(target, "w") as new:
                for info in old.infolist():
                    array, entry = arrays.get(info.filename.removesuffix(".npy")), copy(info)
                    if array is None:
                        new.writestr(entry, old.read(info))
                        continue
                    with new.open(entry, "w", force_zip64=True) as member:
                        npy.write_array(member, array, allow_pickle=False)

    def _array(self, file: IO[bytes]) -> NDArray[Any]:
        shape, is_fortran, dtype = _header(file)
        size = prod(shape) * dtype.itemsize
        if dtype.hasobject:
            raise InputError(PICKLED, file=self.path, remedy="save arrays of numbers")
        if size > _MOST_BYTES:
            raise InputError(
                f"has an array of {size} bytes", file=self.path, remedy="save fewer masks in a file"
            )
        data = bytearray(file.read(size))
        if len(data) < size or file.read(1):  # to its end, where a checksum is compared
            raise InputError(
                "has an array of another length than it says", file=self.path, remedy="replace it"
            )
        return np.ndarray(shape, dtype, data, order="F" if is_fortran else "C")

    @contextmanager
    def _opened(self) -> Iterator[zipfile.ZipFile | IO[bytes]]:
        try:
            with self.path.open("rb") as file:
                if start_of(self.path, 2) != b"PK":
                    yield file
                    return
                with zipfile.ZipFile(file) as archive:
                    yield archive
        except (InputError, MemoryError):
            raise
        except Exception as error:  # zipfile and numpy raise what they like on damaged files
            reason = f"cannot be read as NumPy arrays ({str(error) or type(error).__name__})"
            raise InputError(reason, file=self.path, remedy="replace the file") from error


def _header(file: IO[bytes]) -> ArrayHeader:
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    return ArrayHeader(*read(file))


def add_arrays(archive: zipfile.ZipFile, prefix: str, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Adds arrays to an archive that is being written; ``prefix`` comes before their keys."""
    for key, array in arrays.items():
        entry = zipfile.ZipInfo(
            f"{prefix}{key}.npy"
        )  # of a fixed time, so that a run gives the same bytes again
        entry.compress_type = zipfile.ZIP_DEFLATED
        with archive.open(entry, "w", force_zip64=True) as member:
            npy.write_array(member, array, allow_pickle=False)


def is_array_file(path: Path) -> bool:
    """Whether a file holds arrays, by their headers."""
    with suppress(InputError, MemoryError):
        return start_of(path, 6).startswith((b"PK", b"\x93NUMPY")) and bool(ArrayFile(path).headers())
    return False
