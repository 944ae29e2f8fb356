"""Predictions of other libraries, in memory: their masks out, refined masks back in, nothing of theirs imported."""

from transfiner_refine.adapters.detectron2_instances import from_detectron2
from transfiner_refine.adapters.predictions import masks_of, refine_predictions, with_masks
from transfiner_refine.adapters.supervision_detections import from_supervision
from transfiner_refine.adapters.torchvision_output import from_torchvision
from transfiner_refine.adapters.ultralytics_results import from_ultralytics

__all__ = [
    "from_detectron2",
    "from_supervision",
    "from_torchvision",
    "from_ultralytics",
    "masks_of",
    "refine_predictions",
    "with_masks",
]
