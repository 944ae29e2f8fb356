"""Masks before and after, to look at: a page that opens from disk, and overlays as PNG."""

from __future__ import annotations

from transfiner_refine.report.build import Built, build_report
from transfiner_refine.report.overlay import paint_masks

__all__ = ["Built", "build_report", "paint_masks"]
