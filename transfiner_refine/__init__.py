"""transfiner-refine: makes instance masks sharp after the fact (Mask Transfiner, CVPR 2022, as a refiner)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from transfiner_refine._version import __version__

if TYPE_CHECKING:
    from transfiner_refine.adapters import masks_of, refine_predictions, with_masks
    from transfiner_refine.errors import (
        CheckpointError,
        DeviceError,
        InputError,
        MaskRefineError,
        OutputError,
    )
    from transfiner_refine.evaluation.evaluate import evaluate
    from transfiner_refine.explain import explain_files
    from transfiner_refine.formats.convert import convert_masks
    from transfiner_refine.masks import Mask, MaskWindow
    from transfiner_refine.pipeline import Summary, refine_files
    from transfiner_refine.refined import Refined
    from transfiner_refine.refiner import BaseRefiner, Refiner, load_refiner
    from transfiner_refine.report import build_report
    from transfiner_refine.training import Schedule, TrainingJob, open_dataset, run_training

# where each name lives; torch takes seconds to import, and `transfiner-refine --help` must not wait for it
_HOMES = {
    "adapters": ("masks_of", "refine_predictions", "with_masks"),
    "errors": ("CheckpointError", "DeviceError", "InputError", "MaskRefineError", "OutputError"),
    "evaluation.evaluate": ("evaluate",),
    "explain": ("explain_files",),
    "formats.convert": ("convert_masks",),
    "masks": ("Mask", "MaskWindow"),
    "pipeline": ("Summary", "refine_files"),
    "refined": ("Refined",),
    "refiner": ("BaseRefiner", "Refiner", "load_refiner"),
    "report": ("build_report",),
    "training": ("Schedule", "TrainingJob", "open_dataset", "run_training"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "BaseRefiner",
    "CheckpointError",
    "DeviceError",
    "InputError",
    "Mask",
    "MaskRefineError",
    "MaskWindow",
    "OutputError",
    "Refined",
    "Refiner",
    "Schedule",
    "Summary",
    "TrainingJob",
    "__version__",
    "build_report",
    "convert_masks",
    "evaluate",
    "explain_files",
    "load_refiner",
    "masks_of",
    "open_dataset",
    "refine_files",
    "refine_predictions",
    "run_training",
    "with_masks",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
