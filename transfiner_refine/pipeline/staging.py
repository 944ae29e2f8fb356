"""Runs whose images, masks or output are at URLs.

Images are read where they are, each when its turn comes. Masks are copied first, for they are read at many places; an
output is made on this machine beside its journal, and copied when it is whole.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from functools import partial, wraps
from hashlib import blake2b
from inspect import signature
from pathlib import Path, PurePosixPath
from typing import Any, ParamSpec, TypeVar

from transfiner_refine.errors import InputError, MaskRefineError, OutputError
from transfiner_refine.pipeline.journal_file import journal_path
from transfiner_refine.remote import RemotePath, place, tried

_WHOLE_OBJECTS = {
    "s3",
    "s3a",
    "gs",
    "gcs",
    "az",
    "abfs",
    "abfss",
    "oss",
    "memory",
}  # that appear when they are whole
_P = ParamSpec("_P")
_T = TypeVar("_T")


class _Stage:
    """What a run keeps on this machine of what lies at URLs; found again by the same output."""

    def __init__(self, output: str | Path) -> None:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self.output, self.origins = place(output), dict[Path, str]()
        known = str(self.output.absolute())
        self.folder = caches / "transfiner-refine" / blake2b(known.encode(), digest_size=8).hexdigest()
        if isinstance(self.output, RemotePath):
            self.output = self.folder / "output" / self.output.name
            self.origins[self.output] = known

    def fetched(self, url: str, local: Path | None = None) -> Path:
        """A copy of a file or a folder on this machine, with its times; what is there already stays."""
        digest = blake2b(url.encode(), digest_size=8).hexdigest()
        local = local or self.folder / digest / PurePosixPath(url).name
        self.origins[local] = url
        source = RemotePath(url)
        try:
            names = source.files() if source.is_dir() else [PurePosixPath()]
            for name in names:
                _fetch(RemotePath(source / name), local / name)
        except FileNotFoundError:
            raise InputError("there is no such file", file=url, remedy="check the URL") from None
        return local

    def said(self, error: MaskRefineError) -> MaskRefineError:
        """An error that names the URL instead of the copy."""
        for local, url in self.origins.items():
            if error.file is not None and local in (path := Path(error.file), *path.parents):
                return error.at(f"{url}/{path.relative_to(local).as_posix()}".removesuffix("/."))
        return error

    def is_needed(self) -> bool:
        """Whether there is a run that can be resumed."""
        return journal_path(self.output).exists()


_stage: ContextVar[_Stage] = ContextVar("stage")


def fetched(path: str | Path | None) -> Path | None:
    """A path on this machine, of a copy if it is a URL."""
    if path is None:
        return None
    found = place(path)
    return _stage.get().fetched(str(found)) if isinstance(found, RemotePath) else found


def fetch_beside(path: Path, beside: Callable[[Path], Path]) -> None:
    """Has what lies beside a copy copied too."""
    if (url := _stage.get().origins.get(path)) is not None:
        _stage.get().fetched(str(beside(RemotePath(url))), beside(path))


def origin(path: object) -> object:
    """What another run can find a path by: the URL of a copy, else an absolute path; all else as it is."""
    if not isinstance(path, Path):
        return path
    return _stage.get().origins.get(path, str(path.absolute()))


def shown(path: Path) -> str:
    """What the user calls a path: the URL of a copy, else the path itself."""
    return _stage.get().origins.get(path, str(path))


def check_free(output: Path, inputs: list[Path], *, overwrite: bool) -> None:
    """Raises OutputError where the URL that an output goes to is taken, or has to do with an input."""
    if (url := _stage.get().origins.get(output)) is None:
        return
    for source in inputs:
        given = _stage.get().origins.get(source, str(source)).rstrip("/")
        if f"{url}/".startswith(f"{given}/") or f"{given}/".startswith(f"{url}/"):
            reason = f"is, holds or lies inside an input of this run, {given}"
            raise OutputError(reason, file=url, remedy="give another --output")
    if not overwrite and RemotePath(url).exists():
        raise OutputError("exists already", file=url, remedy="give another --output, or --overwrite")


def publish(output: Path, *, overwrite: bool) -> None:
    """Copies an output that is whole to its URL, where each file appears at one stroke.

    Raises:
        OutputError: something has appeared there, or the store refused it.
    """
    if (url := _stage.get().origins.get(output)) is None:
        return
    check_free(output, [], overwrite=overwrite)
    files = [path for path in output.rglob("*") if path.is_file()] if output.is_dir() else [output]
    target = RemotePath(url)
    names = [PurePosixPath(path.relative_to(output).as_posix()) for path in files]
    try:
        old = target.files() if output.is_dir() and target.is_dir() else []
        for path, name in zip(files, names, strict=True):
            tried(str(target / name), partial(_put, path))
        for name in set(old).difference(names):
            tried(str(target / name), lambda store, at: store.rm_file(at))
    except (OSError, NotImplementedError) as error:
        what = getattr(error, "strerror", None) or str(error)
        raise OutputError(f"cannot be written ({what})", file=url, remedy="check the rights on it") from error


def _fetch(source: RemotePath, local: Path) -> None:
    state = source.stat()
    with suppress(OSError):
        there = local.stat()
        if (there.st_size, int(there.st_mtime)) == (state.st_size, int(state.st_mtime)):
            return
    local.parent.mkdir(parents=True, exist_ok=True)
    draft = local.with_name(f".{local.name[:200]}.{os.getpid()}.part")
    try:
        tried(str(source), lambda files, url: files.get_file(url, str(draft)))
        os.utime(draft, (state.st_mtime, state.st_mtime))
        draft.replace(local)
    finally:
        draft.unlink(missing_ok=True)


def _put(local: Path, files: Any, url: str) -> None:
    if url.partition("://")[0] in _WHOLE_OBJECTS:
        files.put_file(str(local), url)
        return
    parent, _, name = url.rpartition("/")
    files.makedirs(parent, exist_ok=True)
    draft = f"{parent}/.{name}.{os.urandom(6).hex()}.part"
    try:
        files.put_file(str(local), draft)
        files.mv(draft, url)
    except BaseException:
        with suppress(Exception):
            files.rm_file(draft)
        raise


def at_urls(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """A decorator that lets images, masks and the output of a run be at URLs; errors name these."""

    expected = signature(function)

    @wraps(function)
    def call(*arguments: _P.args, **keywords: _P.kwargs) -> _T:
        bound = expected.bind(*arguments, **keywords)
        named = bound.arguments
        stage, then = _Stage(named["output"]), named.get("then")
        token = _stage.set(stage)
        try:
            for name in ("masks", "image_info", "class_names"):
                named[name] = fetched(named.get(name))
            if "shards" in named:
                named["shards"] = [fetched(each) for each in named["shards"]]
            if named.get("images") is not None:
                named["images"] = place(named["images"])
                if str(named["images"]).startswith("memory:") and "workers" in expected.parameters:
                    named["workers"] = 0  # it is the memory of this process alone
            named["output"] = stage.output
            if then is not None:
                named["then"] = lambda summary, was_written: then(_named(stage, summary), was_written)
            return _named(stage, function(*bound.args, **bound.kwargs))
        except MaskRefineError as error:
            if (said := stage.said(error)) is error:
                raise
            raise said from error
        finally:
            _stage.reset(token)
            if stage.folder.exists() and not stage.is_needed():
                shutil.rmtree(stage.folder, ignore_errors=True)

    return call


def _named(stage: _Stage, summary: Any) -> Any:
    summary.errors = [stage.said(error) for error in summary.errors]
    return summary
