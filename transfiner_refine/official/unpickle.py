"""Reading detectron2's ``.pkl`` weights without running anything: arrays, containers and nothing else.

A pickle is a program. This reader knows the handful of names that a dictionary of NumPy arrays needs and puts its
own plain stand-ins in their place, so not even NumPy's unpickling code runs on what the file says.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["UnsafePickleError", "read_pickle"]

_KINDS = "biuf"  # booleans, integers, floats; no objects, no strings, no structures
_ENCODINGS = ("latin1", "latin-1")


class UnsafePickleError(pickle.UnpicklingError):
    """The pickle names something that weights do not need."""


class _Ndarray:
    """Stands for the class ``numpy.ndarray``, which pickles name but need not call."""


class _Dtype:
    """Stands for ``numpy.dtype``."""

    def __init__(self, code: str | bytes = "", *_: Any) -> None:
        text = code.decode("latin1") if isinstance(code, bytes) else str(code)
        self.code, self.order = text, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1]
        self.order = order.decode("latin1") if isinstance(order, bytes) else str(order)

    def resolve(self) -> np.dtype[Any]:
        if len(self.code) > 3 or self.code[:1] not in _KINDS:
            raise UnsafePickleError(f"it holds an array of type {self.code[:20]!r}")
        dtype = np.dtype(self.code)
        return dtype.newbyteorder(">") if self.order == ">" else dtype


class _Array:
    """Stands for an array that is being read; ``value`` once it has been."""

    value: NDArray[Any]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        self.value = _array(data, dtype, shape, fortran=bool(fortran))


def _array(data: Any, dtype: Any, shape: Any, *, fortran: bool) -> NDArray[Any]:
    if not isinstance(dtype, _Dtype):
        raise UnsafePickleError("it holds an array of no known type")
    if isinstance(data, str):
        data = data.encode("latin1")  # Python 2 wrote bytes as text
    kind = dtype.resolve()
    if not isinstance(data, (bytes, bytearray)):
        raise UnsafePickleError("it holds an array without data")
    values = np.frombuffer(data, kind)
    return values.reshape(tuple(shape), order="F" if fortran else "C")


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _scalar(dtype: Any, data: Any) -> NDArray[Any]:
    return _array(data, dtype, (), fortran=False)


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any = "C") -> NDArray[Any]:
    return _array(data, dtype, shape, fortran=order == "F")


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in _ENCODINGS:
        raise UnsafePickleError(f"it encodes text as {encoding!r}")
    return text.encode("latin1")


def _no_bytes(*given: Any) -> bytes:
    """Stands for ``bytes``, which old protocols call for an empty array."""
    if given:
        raise UnsafePickleError("it calls bytes")
    return b""


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _Ndarray,
    ("numpy", "dtype"): _Dtype,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _no_bytes,
    ("builtins", "bytes"): _no_bytes,
}
for _core in ("numpy.core", "numpy._core"):
    _KNOWN[f"{_core}.multiarray", "_reconstruct"] = _reconstruct
    _KNOWN[f"{_core}.multiarray", "scalar"] = _scalar
    _KNOWN[f"{_core}.numeric", "_frombuffer"] = _from_buffer


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = _KNOWN.get((module, name))
        if known is None:
            raise UnsafePickleError(f"it asks for {module}.{name}")
        return known

    def persistent_load(self, pid: Any) -> Any:  # noqa: ARG002
        raise UnsafePickleError("it refers to data outside the file")


def read_pickle(file: IO[bytes]) -> Any:
    """What the pickle holds, with NumPy arrays as such.

    Raises:
        UnsafePickleError: it names anything but containers and numeric arrays. Nothing of it has run.
        Exception: whatever a damaged pickle makes ``pickle`` raise.
    """
    return _plain(_Unpickler(file, encoding="latin1").load(), 0)


def _plain(value: Any, depth: int) -> Any:
    """The stand-ins replaced by arrays, in dictionaries and lists, as deep as weights files go."""
    if isinstance(value, _Array):
        return value.value
    if depth < 8 and isinstance(value, dict):
        return {key: _plain(item, depth + 1) for key, item in value.items()}
    if depth < 8 and isinstance(value, (list, tuple)):
        return [_plain(item, depth + 1) for item in value]
    return value
