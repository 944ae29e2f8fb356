"""What is written down of a refined mask."""

from __future__ import annotations

from transfiner_refine.formats import RleMask
from transfiner_refine.types import MaskWindow

__all__ = ["changed_share"]


def changed_share(coarse: RleMask | MaskWindow, refined: RleMask) -> float:
    """Pixels whose label changed / pixels of the coarse mask's box; a soft mask counts from 0.5 on."""
    before = coarse if isinstance(coarse, RleMask) else RleMask.from_window(coarse)
    x0, y0, x1, y1 = before.box
    return before.differing(refined) / ((x1 - x0) * (y1 - y0))
