"""From files to files: reading ahead, batching, refining, encoding behind, counting, and losing nothing."""

from transfiner_refine.pipeline.contract import MaskRefiner, WindowRefiner
from transfiner_refine.pipeline.keeping import Interrupted
from transfiner_refine.pipeline.refine import refine_files
from transfiner_refine.pipeline.run import Outcome, refine_source
from transfiner_refine.pipeline.selection import Selection
from transfiner_refine.pipeline.summary import Summary

__all__ = [
    "Interrupted",
    "MaskRefiner",
    "Outcome",
    "Selection",
    "Summary",
    "WindowRefiner",
    "refine_files",
    "refine_source",
]
