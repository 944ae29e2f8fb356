"""Files at URLs (s3, gs, http, memory …), through fsspec, as paths that images are read from."""

from __future__ import annotations

import errno
import io
import os
import re
import stat
import time
from collections.abc import Callable, Generator
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote

from transfiner_refine.errors import InputError

_URL = re.compile(
    r"([a-z][a-z0-9+.-]+):/+(.+)", re.DOTALL
)  # Path makes one slash of two; a drive is one letter
_TRIES, _PAUSE = 4, 0.5  # seconds before the second try, twice as many before each further one
_T = TypeVar("_T")


if TYPE_CHECKING:
    _Path = Path
else:
    _Path = type(Path())  # before Python 3.12, Path itself has no subclasses


class RemotePath(_Path):
    """A file or folder at a URL, with what this package asks of the paths of images."""

    def __str__(self) -> str:
        found = _URL.fullmatch(super().__str__())
        return f"{found[1]}://{found[2]}" if found else super().__str__()

    __fspath__ = __str__

    def absolute(self) -> RemotePath:
        return self

    def resolve(self, strict: bool = False) -> RemotePath:  # noqa: ARG002
        return self

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:  # noqa: ARG002
        info = self._tried(lambda files, path: files.info(path))
        is_folder = info["type"] == "directory" and not self._is_web
        kind = stat.S_IFDIR if is_folder else stat.S_IFREG
        size, time_of = int(info.get("size") or 0), _modified(info)
        return os.stat_result((kind | 0o444, 0, 0, 0, 0, 0, size, time_of, time_of, time_of))

    def exists(self, *, follow_symlinks: bool = True) -> bool:  # noqa: ARG002
        return bool(self._tried(lambda files, path: files.exists(path)))

    def is_file(self, *, follow_symlinks: bool = True) -> bool:  # noqa: ARG002
        return self.exists() and (bool(self.suffix) if self._is_web else stat.S_ISREG(self.stat().st_mode))

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:  # noqa: ARG002
        return self.exists() and not self.is_file()

    @property
    def _is_web(self) -> bool:
        """A server that does not tell folders from files: a folder is what has no ending."""
        return str(self).startswith("http")

    def iterdir(self) -> Generator[RemotePath, None, None]:
        for name in self._tried(lambda files, path: files.ls(path, detail=False)):
            yield self / PurePosixPath(name.rstrip("/")).name

    def files(self) -> list[PurePosixPath]:
        """What ``files_in`` gives of a folder."""

        def listed(files: Any, path: str) -> list[PurePosixPath]:
            start = len(files._strip_protocol(path).rstrip("/")) + 1
            return [PurePosixPath(files._strip_protocol(each)[start:]) for each in files.find(path)]

        visible = (
            each for each in self._tried(listed) if not any(part.startswith(".") for part in each.parts)
        )
        return sorted(visible, key=str)

    def open(self, mode: str = "r", *_: Any, **__: Any) -> io.BytesIO:  # type: ignore[override]
        """The whole file, in memory; binary and for reading only."""
        assert mode == "rb"
        return io.BytesIO(self._tried(lambda files, path: files.cat_file(path)))

    def _tried(self, call: Callable[[Any, str], _T]) -> _T:
        return tried(str(self), call)


def url_of(path: str | Path) -> str | None:
    """The URL that a path is, None if it is none."""
    found = _URL.fullmatch(str(path))
    return f"{found[1]}://{found[2]}" if found and not isinstance(path, bytes) else None


def place(path: str | Path) -> Path:
    """A path on this machine, or at a URL."""
    url = url_of(path)
    if url is None:
        return Path(path)
    return Path("/", unquote(url.removeprefix("file://"))) if url.startswith("file://") else RemotePath(url)


def tried(url: str, call: Callable[[Any, str], _T]) -> _T:
    """What a call of a file system with a path gives; where the network fails, it is tried again.

    Raises:
        OSError: there is no such file, access is denied, or (ENETUNREACH) the network has failed for good.
        InputError: the URL is of a kind that cannot be read here.
    """
    files = _file_system(url.partition("://")[0])
    for number in range(1, _TRIES + 1):
        try:
            return call(files, url)
        except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError):
            raise
        except Exception as error:  # each store has errors of its own
            if number == _TRIES:
                text = f"{type(error).__name__}: {error}"
                raise OSError(errno.ENETUNREACH, text, url) from error
            time.sleep(_PAUSE * 2 ** (number - 1))
            files.invalidate_cache()
    raise AssertionError


@cache
def _file_system(scheme: str) -> Any:
    need = f"pip install 'transfiner-refine[cloud]', and what fsspec needs for {scheme}"
    try:
        import fsspec

        return fsspec.filesystem(scheme)
    except ImportError as error:
        raise InputError(f"{scheme}: cannot be read here ({error})", remedy=need) from error
    except ValueError as error:
        raise InputError(f"{scheme}: is of no known kind ({error})", remedy="check the URL") from error


def _modified(info: dict[str, Any]) -> int:
    """When a file was last changed, in seconds; 0 where the store does not say."""
    found = (info.get(key) for key in ("LastModified", "last_modified", "mtime", "updated", "created"))
    value = next((each for each in found if each is not None), 0)
    if hasattr(value, "timestamp"):
        return int(value.timestamp())
    return int(value) if isinstance(value, (int, float)) else 0
