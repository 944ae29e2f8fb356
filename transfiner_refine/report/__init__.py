"""Masks before and after, to look at: a page that opens from disk, and overlays as PNG."""

from __future__ import annotations

from transfiner_refine.report.build import Built, build_report
from transfiner_refine.report.overlay import paint_masks
from transfiner_refine.report.scenes import Scene, Scenes, Shown, load_scenes

__all__ = ["Built", "Scene", "Scenes", "Shown", "build_report", "load_scenes", "paint_masks"]
