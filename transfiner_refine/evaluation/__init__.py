"""Measures of what refining did: matched-instance scores, COCO, LVIS and boundary AP."""

from __future__ import annotations

from transfiner_refine.evaluation.matched import MatchedScores, mask_scores, matched_scores
from transfiner_refine.evaluation.overlap import boundary_iou, mask_iou, mean_boundary_accuracy

__all__ = [
    "MatchedScores",
    "boundary_iou",
    "mask_iou",
    "mask_scores",
    "matched_scores",
    "mean_boundary_accuracy",
]
