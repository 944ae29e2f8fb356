"""The refine step in onnxruntime on a CPU: exported programs beside the weights file, without PyTorch."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.errors import CheckpointError, DeviceError
from transfiner_refine.model.config import RefinerConfig
from transfiner_refine.model.weights import weights_digest
from transfiner_refine.refine.engine import SizeClass, is_exported, program_path

_OUTPUTS = ["probability", "relabelled"]


def has_fast_int8() -> bool:
    """Whether the processor multiplies 8-bit integers faster than floats (VNNI, or ARM's dot product)."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return os.uname().machine == "arm64" if hasattr(os, "uname") else False  # every Apple chip has it
    return any(f" {flag}" in flags for flag in ("avx512_vnni", "avx_vnni", "asimddp"))


class OnnxEngine:
    """Runs exported programs, one call a core, one thread a call.

    Args:
        weights: the weights file that they were exported from.
        config: its configuration.
        precision: "fp32", "int8", or "auto" for int8 where the processor is fast at it.

    Raises:
        DeviceError: the precision is not one of these.
        CheckpointError: there are no programs, or they were exported from other weights.
    """

    name = "onnx"
    device = "cpu"

    def __init__(self, weights: Path, config: RefinerConfig, precision: str = "auto") -> None:
        exported = [name for name in ("int8", "fp32") if is_exported(weights, name)]
        self._remedy = f"export it again: transfiner-refine export {weights}"
        if precision == "auto":
            precision = "int8" if "int8" in exported and (has_fast_int8() or len(exported) == 1) else "fp32"
        if precision not in ("fp32", "int8"):
            raise DeviceError(
                f"the onnx engine does not compute in {precision}",
                remedy="use --precision fp32 or int8, or --engine torch",
            )
        if precision not in exported:
            missing = f"there is no {precision} program beside these weights"
            raise CheckpointError(missing, file=weights, remedy=self._remedy)
        self.config, self.precision, self._weights = config, precision, weights
        self._digest = weights_digest(weights)
        self._sessions: dict[SizeClass, Any] = {}
        self._locks: dict[SizeClass, Lock] = {}

    def step(
        self, size: SizeClass, pixels: NDArray[np.uint8], coarse: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """See ``Engine``."""
        session = self._sessions.get(size)
        if session is None:
            with self._locks.setdefault(size, Lock()):
                session = self._sessions.get(size) or self._sessions.setdefault(size, self._session(size))
        probability, relabelled = session.run(_OUTPUTS, {"pixels": pixels, "coarse": coarse})
        return probability, relabelled

    def prepare_thread(self) -> None:
        """A session is safe to call from many threads."""

    def _session(self, size: SizeClass) -> Any:
        import onnxruntime

        path = program_path(self._weights, self.precision, size)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors; it warns of nodes that it moves to where they are faster
        try:
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no common type
            damaged = f"not a program that onnxruntime can run ({type(error).__name__})"
            raise CheckpointError(damaged, file=path, remedy=self._remedy) from error
        if session.get_modelmeta().custom_metadata_map.get("weights") != self._digest:
            other = "was exported from other weights than those beside it"
            raise CheckpointError(other, file=path, remedy=self._remedy)
        return session
