"""Tensors from a weights file of any kind, told apart by content; never runs code from it (``docs/official.md``)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from transfiner_refine.errors import CheckpointError
from transfiner_refine.official.unpickle import UnsafePickleError, read_pickle

__all__ = ["TensorFile", "read_tensors"]

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_TORCH_MAGIC = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")  # begins PyTorch files older than 1.6
_TEXT = {
    b"version https://git-lfs": ("a Git LFS pointer, not the file itself", "fetch it with git lfs pull"),
    b"<": ("a web page, not weights", "download it again; large files may ask for confirmation"),
}
_NESTED = ("model", "state_dict", "model_state_dict")  # where frameworks keep the state dict
_WRAPPER = "module."  # prefix of distributed training


@dataclass(frozen=True)
class TensorFile:
    """A weights file's content.

    Attributes:
        path: the file.
        format: what kind of file it is, for people.
        tensors: by name.
        kind: what a safetensors file of this package says it is, empty in others.
    """

    path: Path
    format: str
    tensors: dict[str, Tensor]
    kind: str = ""

    @property
    def parameters(self) -> int:
        """Numbers in all tensors."""
        return sum(tensor.numel() for tensor in self.tensors.values())


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
        return _of_state(path, "PyTorch checkpoint", _read_torch(path))
    if head.startswith(_PICKLE):
        if _TORCH_MAGIC in head:
            return _of_state(path, "PyTorch checkpoint (before 1.6)", _read_torch(path))
        return _of_state(path, "detectron2 pickle", _read_pickle(path))
    if head[8:9] == b"{" or path.suffix == ".safetensors":
        return _read_safetensors(path)
    raise CheckpointError(
        "not a weights file", file=path, remedy="expected a .pth, a detectron2 .pkl or a .safetensors file"
    )


def _read_safetensors(path: Path) -> TensorFile:
    try:
        with safe_open(path, framework="pt") as file:
            kind = (file.metadata() or {}).get("kind", "")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"not a readable safetensors file ({error})", file=path, remedy="download or export it again"
        ) from error
    return TensorFile(path, "safetensors", tensors, kind)


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises almost anything: RuntimeError, EOFError, KeyError …
        if isinstance(error, UnpicklingError) and (asked := re.search(r"GLOBAL ([\w.]+)", str(error))):
            raise _would_run_code(path, f"it asks for {asked[1]}") from error
        raise CheckpointError(
            f"a damaged or cut off PyTorch file ({_first_sentence(error)})",
            file=path,
            remedy="download it again",
        ) from error


def _read_pickle(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            return read_pickle(file)
    except UnsafePickleError as error:
        raise _would_run_code(path, str(error)) from error
    except Exception as error:  # likewise
        raise CheckpointError(
            f"a damaged or cut off pickle ({_first_sentence(error)})", file=path, remedy="download it again"
        ) from error


def _would_run_code(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"refused, because loading it could run code from the file: {why}",
        file=path,
        remedy="if you trust it, save its state dict alone with torch.save and use that",
    )


def _first_sentence(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 100 else f"{text[:100]}…"


def _of_state(path: Path, kind: str, content: Any) -> TensorFile:
    """Finds the state dict in what a file held."""
    for name in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    tensors: dict[str, Tensor] = {}
    if isinstance(content, Mapping):
        for name, value in content.items():
            if isinstance(value, np.ndarray):
                value = torch.from_numpy(np.array(value, value.dtype.newbyteorder("=")))
            if isinstance(value, Tensor) and isinstance(name, str):
                tensors[name.removeprefix(_WRAPPER)] = value.detach()
    if not tensors:
        raise CheckpointError(
            f"a {kind} without tensors", file=path, remedy='expected a state dict, by itself or under "model"'
        )
    return TensorFile(path, kind, tensors)
