"""transfiner-refine: makes instance masks sharp after the fact (Mask Transfiner, CVPR 2022, as a refiner)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transfiner_refine._version import __version__

if TYPE_CHECKING:
    from transfiner_refine.refiner import Refiner, load_refiner

__all__ = ["Refiner", "__version__", "load_refiner"]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; `transfiner-refine --help` must not wait for it
    if name in {"Refiner", "load_refiner"}:
        from transfiner_refine import refiner

        return getattr(refiner, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
