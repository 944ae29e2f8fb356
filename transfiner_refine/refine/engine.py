"""What runs the refine step: PyTorch on any device, or onnxruntime on a CPU."""

from __future__ import annotations

import os
import platform
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.errors import DeviceError
from transfiner_refine.model.config import ATTENTION_GRIDS, RefinerConfig

_ENGINES = ("auto", "torch", "onnx")
#: Settings that exported programs hold; all others are of the code around the step.
IN_PROGRAMS = frozenset(
    (
        "relabel_threshold",
        "relabel_margin",
        "root_threshold",
        "child_threshold",
        "trust",
        "deep_trust",
        "node_budget",
    )
) | {"repeat_trust"}


class SizeClass(NamedTuple):
    """One static program of the refine step."""

    depth: int  # levels of the quadtree, 3 to 5
    nodes: bool  # whether the quadtree is built; without it the dense labels count, which end at 224 cells

    def side(self, config: RefinerConfig) -> int:
        """Side of the resized RoI, pixels."""
        return config.crop_side if self.depth == len(ATTENTION_GRIDS) else config.detail_side

    @property
    def grid(self) -> int:
        """Cells a side of the probability map that comes out."""
        return ATTENTION_GRIDS[0] << (self.depth - 1)

    @property
    def label(self) -> str:
        """Part of an exported program's file name."""
        return f"{self.grid}" if self.nodes else f"{self.grid}-dense"


def size_class(config: RefinerConfig, roi_side: int, *, nodes: bool, tiles: bool = False) -> SizeClass:
    """The class of an RoI whose longer side is ``roi_side`` pixels; where tiles follow they make the 448 level."""
    ends_at_224 = not nodes or (tiles and roi_side >= config.tiles_from)
    depth = config.depth(roi_side)
    return SizeClass(min(depth, len(ATTENTION_GRIDS) + 1) if ends_at_224 else depth, nodes)


class Engine(Protocol):
    """Runs the refine step of any size class."""

    name: str  # "torch" or "onnx"
    device: str  # "cpu", "cuda", "cuda:N" or "mps"
    precision: str  # "fp32", "bf16", "fp16" or "int8"
    config: RefinerConfig  # the network's configuration

    def step(
        self, size: SizeClass, pixels: NDArray[np.uint8], coarse: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Refines a batch of resized RoIs.

        Args:
            size: the size class of all of them.
            pixels: [B, 3, S, S] RGB; S = ``size.side(config)``.
            coarse: [B, 1, S, S] in [0, 1].

        Returns:
            probability [B, G, G] and relabelled [B, 28, 28]; see ``model.network.StepOutput``.
        """

    def prepare_thread(self) -> Any:
        """Called once in each thread that will call ``step``, which it may do beside others."""


def program_path(weights: Path, precision: str, size: SizeClass) -> Path:
    """The exported program of a size class, beside the weights file."""
    return weights.with_suffix(f".{precision}.{size.label}.onnx")


def is_exported(weights: Path, precision: str = "*") -> bool:
    """Whether programs were exported from a weights file."""
    return any(weights.parent.glob(f"{weights.stem}.{precision}.*.onnx"))


def engine_name(engine: str, device: str, precision: str, weights: Path) -> str:
    """The engine that is to run, "torch" or "onnx"; the arguments are those of ``load_refiner``.

    Raises:
        DeviceError: the engine is unknown, does not fit the device, or PyTorch would be needed and is not installed.
    """
    if engine not in _ENGINES:
        raise DeviceError(f"unknown engine {engine!r}", remedy=f"known: {', '.join(_ENGINES)}")
    if engine == "onnx" and device not in ("auto", "cpu"):
        raise DeviceError(f"the onnx engine does not run on {device}", remedy="leave --device out")
    if engine == "auto":
        can_be = precision in ("auto", "fp32") and is_exported(weights)
        on_cpu = can_be and (device == "cpu" or (device == "auto" and not _has_gpu()))
        engine = "onnx" if precision == "int8" or on_cpu else "torch"
    if engine == "torch":
        require_torch()
    return engine


def require_torch() -> None:
    """Raises a DeviceError where PyTorch is not installed."""
    if find_spec("torch") is None or find_spec("torchvision") is None:
        raise DeviceError(
            "this needs PyTorch, which is not installed",
            remedy="pip install torch torchvision; a CPU refines the built-in weights without it",
        )


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def unused_card() -> str | None:
    """Why a refiner that chose its device itself is not on the NVIDIA card of this machine; None without one."""
    if not _has_nvidia_card():
        return None
    if find_spec("torch") is None:
        return "an NVIDIA card is not used: PyTorch is not installed"
    return "an NVIDIA card is not used: this build of PyTorch, or its driver, does not reach it"


def _has_gpu() -> bool:
    """Whether PyTorch reaches a GPU; it is imported only where there may be one, for that takes seconds."""
    is_mac = sys.platform == "darwin" and platform.machine() == "arm64"
    if find_spec("torch") is None or not (is_mac or sys.platform == "win32" or _has_nvidia_card()):
        return False
    import torch

    return torch.cuda.is_available() or torch.backends.mps.is_available()


def cuda_devices() -> int:
    """CUDA devices that PyTorch reaches, counted without starting on any."""
    if not _has_nvidia_card() or find_spec("torch") is None:
        return 0
    import torch

    return torch.cuda.device_count()


def _has_nvidia_card() -> bool:
    """Whether Linux shows an NVIDIA driver."""
    places = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg")
    return any(Path(place).exists() for place in places)
