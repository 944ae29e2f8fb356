"""The entries of COCO's files in the registry."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from transfiner_refine.formats.coco.index import Layout
from transfiner_refine.formats.coco.recognise import is_annotations, is_lines, is_results
from transfiner_refine.formats.coco.source import CocoSource
from transfiner_refine.formats.coco.write import write_annotations, write_lines, write_results
from transfiner_refine.formats.records import Format, OpenOptions

__all__ = ["COCO_ANNOTATIONS", "COCO_LINES", "COCO_RESULTS"]


def _open_as(layout: Layout) -> Callable[[Path, OpenOptions], CocoSource]:
    return lambda path, options: CocoSource(path, options, layout)


COCO_RESULTS = Format(
    "coco-results",
    "COCO or LVIS results: a JSON list",
    is_folder=False,
    recognise=is_results,
    open=_open_as("results"),
    write=write_results,
)
COCO_LINES = Format(
    "coco-results-jsonl",
    "COCO results, one a line (JSON Lines)",
    is_folder=False,
    recognise=is_lines,
    open=_open_as("lines"),
    write=write_lines,
)
COCO_ANNOTATIONS = Format(
    "coco-annotations",
    "COCO or LVIS annotations: images, annotations and categories in one JSON file",
    is_folder=False,
    recognise=is_annotations,
    open=_open_as("annotations"),
    write=write_annotations,
)
