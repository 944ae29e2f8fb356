"""Which device and which precision to run in."""

from __future__ import annotations

import re

import torch

from transfiner_refine.errors import DeviceError

_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_FIRST_WITH_BF16 = (8, 0)  # compute capability; older cards only emulate it


def choose_device(name: str) -> torch.device:
    """The device called ``name``; ``auto`` is CUDA, then MPS, then the CPU.

    Raises DeviceError where there is no such device; the message lists those there are.
    """
    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    mps = torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    match = re.fullmatch(r"cpu|mps|cuda(?::(\d+))?", name)
    available = ", ".join(["cpu", *(f"cuda:{i}" for i in range(cuda)), *["mps"] * mps])
    if match is None:
        raise DeviceError(f"unknown device {name!r}", remedy=f"available here: auto, {available}")
    if (name == "mps" and not mps) or (name.startswith("cuda") and int(match[1] or 0) >= cuda):
        raise DeviceError(f"this machine has no device {name!r}", remedy=f"available here: {available}")
    return torch.device(name)


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype the network runs in; ``auto`` is bf16 or fp16 on CUDA and fp32 elsewhere.

    Raises DeviceError where it is unknown, or not supported by the device.
    """
    if name == "auto":
        if device.type != "cuda":
            return torch.float32
        has_bf16 = torch.cuda.get_device_capability(device) >= _FIRST_WITH_BF16
        return torch.bfloat16 if has_bf16 else torch.float16
    if name == "int8":
        raise DeviceError("PyTorch does not compute in int8 here", remedy="use --engine onnx on a CPU")
    if name not in _PRECISIONS:
        known = f"known: auto, {', '.join(_PRECISIONS)}, int8"
        raise DeviceError(f"unknown precision {name!r}", remedy=known)
    if name == "fp16" and device.type == "cpu":
        raise DeviceError("fp16 is too slow on a CPU to be of use", remedy="use fp32 or bf16")
    return _PRECISIONS[name]


def precision_name(dtype: torch.dtype) -> str:
    """The name that ``choose_precision`` knows a dtype by."""
    return next(name for name, known in _PRECISIONS.items() if known == dtype)
