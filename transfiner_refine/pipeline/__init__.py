"""From files to files: reading ahead, batching, refining, encoding behind, counting."""

from transfiner_refine.pipeline.contract import WindowRefiner
from transfiner_refine.pipeline.refine import Outcome, refine_files, refine_source
from transfiner_refine.pipeline.selection import Selection
from transfiner_refine.pipeline.summary import Summary

__all__ = ["Outcome", "Selection", "Summary", "WindowRefiner", "refine_files", "refine_source"]
