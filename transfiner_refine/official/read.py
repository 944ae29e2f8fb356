"""Tensors from a weights file of any kind, told apart by content; never runs code from it (``docs/official.md``).

A pickle is a program. PyTorch's ``weights_only`` reader takes ``.pth`` files. For detectron2's ``.pkl`` this module
knows the handful of names that a dictionary of NumPy arrays needs and puts its own plain stand-ins in their place, so
not even NumPy's unpickling code runs on what the file says.
"""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import numpy as np
import torch
from torch import Tensor

from transfiner_refine.errors import CheckpointError
from transfiner_refine.model.weights import read_safetensors

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_TORCH_MAGIC = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")  # begins PyTorch files older than 1.6
#: How a file begins that is none → what it is, and what to do.
_TEXT = {
    b"version https://git-lfs": ("a Git LFS pointer, not the file itself", "fetch it with git lfs pull"),
    b"<": ("a web page, not weights", "download it again; large files may ask for confirmation"),
}
_NESTED = ("model", "state_dict", "model_state_dict")  # where frameworks keep the state dict
_DETECTRON2 = "detectron2 pickle"
_WRAPPER = "module."  # prefix of distributed training


@dataclass(frozen=True)
class TensorFile:
    """A weights file's content."""

    path: Path
    format: str  # what kind of file it is, for people
    tensors: dict[str, Tensor]
    kind: str = ""  # what a safetensors file of this package says it is, empty in others


def read_tensors(path: Path) -> TensorFile:
    """All tensors of a ``.pth``, ``.pkl`` or ``.safetensors`` file, on the CPU.

    Raises:
        CheckpointError: there is no such file; it is damaged, holds no tensors, or would run code.
    """
    if not path.is_file():
        raise CheckpointError("there is no such weights file", file=path, remedy="check --weights")
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise CheckpointError("the file is empty", file=path, remedy="download it again")
    for start, (what, remedy) in _TEXT.items():
        if head.lstrip().startswith(start):
            raise CheckpointError(what, file=path, remedy=remedy)
    if head.startswith(_ZIP):
        _check_archive(path)
        return _of_state(path, "PyTorch checkpoint")
    if head.startswith(_PICKLE):
        return _of_state(path, "PyTorch checkpoint (before 1.6)" if _TORCH_MAGIC in head else _DETECTRON2)
    if head[8:9] != b"{" and path.suffix != ".safetensors":
        remedy = "expected a .pth, a detectron2 .pkl or a .safetensors file"
        raise CheckpointError("not a weights file", file=path, remedy=remedy)
    metadata, tensors = read_safetensors(path)
    return TensorFile(path, "safetensors", tensors, metadata.get("kind", ""))


def _check_archive(path: Path) -> None:
    """Refuses an archive that would unpack to more than the file: PyTorch stores its records and compresses none."""
    try:
        with ZipFile(path) as archive:
            records = archive.infolist()
    except (BadZipFile, OSError, ValueError, NotImplementedError):
        return  # PyTorch's reader says what is wrong with it
    compressed = any(record.compress_type != ZIP_STORED for record in records)
    size = sum(record.file_size for record in records)
    if compressed or size > path.stat().st_size:
        raise CheckpointError(
            f"an archive whose records are compressed or overlap, {size} bytes when unpacked",
            file=path,
            remedy="PyTorch writes no such file; save the weights again with torch.save",
        )


def _unpickled(path: Path, kind: str) -> Any:
    try:
        if kind != _DETECTRON2:
            return torch.load(path, map_location="cpu", weights_only=True)
        with path.open("rb") as file:
            return _Unpickler(file, encoding="latin1").load()
    except Exception as error:  # a damaged file raises almost anything: RuntimeError, EOFError, KeyError …
        text = " ".join(str(error).split()) or type(error).__name__
        asked = re.search(r"GLOBAL ([\w.]+)", text) if isinstance(error, pickle.UnpicklingError) else None
        if asked or isinstance(error, _UnsafePickleError):
            why = f"it asks for {asked[1]}" if asked else text
            reason = f"refused, because loading it could run code from the file: {why}"
            remedy = "if you trust it, save its state dict alone with torch.save and use that"
        else:
            reason = f"a damaged or cut off {kind} ({text if len(text) <= 100 else f'{text[:100]}…'})"
            remedy = "download it again"
        raise CheckpointError(reason, file=path, remedy=remedy) from error


def _of_state(path: Path, kind: str) -> TensorFile:
    """Finds the state dict in a file of PyTorch or detectron2."""
    content = _unpickled(path, kind)
    for name in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    tensors: dict[str, Tensor] = {}
    for name, value in content.items() if isinstance(content, Mapping) else ():
        if isinstance(value, _Array):
            value = torch.from_numpy(np.array(value.value, value.value.dtype.newbyteorder("=")))
        if isinstance(value, Tensor) and isinstance(name, str):
            if value.is_sparse or value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise CheckpointError(f"tensor {name} claims more numbers than the file holds", file=path)
            tensors[name.removeprefix(_WRAPPER)] = value.detach()
    if not tensors:
        remedy = 'expected a state dict, by itself or under "model"'
        raise CheckpointError(f"a {kind} without tensors", file=path, remedy=remedy)
    return TensorFile(path, kind, tensors)


class _UnsafePickleError(pickle.UnpicklingError):
    """The pickle names something that weights do not need."""


class _Dtype:
    """Stands for ``numpy.dtype``."""

    def __init__(self, code: str | bytes = "", *_: Any) -> None:
        self.code, self.order = _text(code), "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = _text(state[1])

    def resolve(self) -> np.dtype[Any]:
        if len(self.code) > 3 or self.code[:1] not in "biuf":  # no objects, no strings, no structures
            raise _UnsafePickleError(f"it holds an array of type {self.code[:20]!r}")
        return np.dtype(self.code).newbyteorder(">" if self.order == ">" else "=")


class _Array:
    """Stands for an array that is being read; ``value`` once it has been."""

    value: np.ndarray[Any, Any]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        self.fill(data, dtype, shape, "F" if fortran else "C")

    def fill(self, data: Any, dtype: Any, shape: Any, order: Any = "C") -> _Array:
        if not isinstance(dtype, _Dtype):
            raise _UnsafePickleError("it holds an array of no known type")
        kind = dtype.resolve()
        if isinstance(data, str):
            data = data.encode("latin1")  # Python 2 wrote bytes as text
        if not isinstance(data, (bytes, bytearray)):
            raise _UnsafePickleError("it holds an array without data")
        self.value = np.frombuffer(data, kind).reshape(tuple(shape), order="F" if order == "F" else "C")
        return self


def _text(value: str | bytes) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise _UnsafePickleError(f"it encodes text as {encoding!r}")
    return text.encode("latin1")


def _no_bytes(*given: Any) -> bytes:
    """Stands for ``bytes``, which old protocols call for an empty array."""
    if given:
        raise _UnsafePickleError("it calls bytes")
    return b""


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): object,  # pickles name the class but need not call it
    ("numpy", "dtype"): _Dtype,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _no_bytes,
    ("builtins", "bytes"): _no_bytes,
}
for _core in ("numpy.core", "numpy._core"):
    _KNOWN[f"{_core}.multiarray", "_reconstruct"] = lambda *_: _Array()
    _KNOWN[f"{_core}.multiarray", "scalar"] = lambda dtype, data: _Array().fill(data, dtype, ())
    _KNOWN[f"{_core}.numeric", "_frombuffer"] = lambda *given: _Array().fill(*given)


class _Unpickler(pickle._Unpickler):
    """In Python, because the one in C makes room for as many stored objects as the file claims."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise _UnsafePickleError(f"it asks for {module}.{name}")
        return _KNOWN[module, name]

    def persistent_load(self, pid: Any) -> Any:  # noqa: ARG002
        raise _UnsafePickleError("it refers to data outside the file")
