"""From files to files: reading ahead, batching, refining, encoding behind, counting, and losing nothing."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from transfiner_refine.pipeline.prepare import Selection

if TYPE_CHECKING:
    from transfiner_refine.pipeline.batches import MaskRefiner, WindowRefiner
    from transfiner_refine.pipeline.job import Interrupted
    from transfiner_refine.pipeline.merge import merge_shards
    from transfiner_refine.pipeline.refine import refine_files
    from transfiner_refine.pipeline.run import Outcome, refine_source
    from transfiner_refine.pipeline.summary import Summary

__all__ = [
    "Interrupted",
    "MaskRefiner",
    "Outcome",
    "Selection",
    "Summary",
    "WindowRefiner",
    "merge_shards",
    "refine_files",
    "refine_source",
]
_LATE = {
    "Interrupted": "job",
    "MaskRefiner": "batches",
    "Outcome": "run",
    "Summary": "summary",
    "WindowRefiner": "batches",
    "merge_shards": "merge",
    "refine_files": "refine",
    "refine_source": "run",
}


def __getattr__(name: str) -> Any:
    if name in _LATE:  # because a process that decodes imports this package too, and needs none of these
        return getattr(import_module(f"{__name__}.{_LATE[name]}"), name)
    raise AttributeError(name)
