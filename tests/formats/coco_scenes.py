"""COCO records of a small image, and what a source says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from transfiner_refine.formats import Mask, RecordFault, Source
from transfiner_refine.formats.records import ImageRecord, Instance
from transfiner_refine.masks import MaskWindow

SIZE = (6, 8)
RLE = {"size": [6, 8], "counts": [10, 5, 33]}
NEW = Mask.from_window(MaskWindow(np.ones((2, 3), bool), 4, 1, SIZE))
NEW_VALUE = {"size": [6, 8], "counts": NEW.counts}


def result(image_id: Any = 1, **keys: Any) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": 3, "segmentation": RLE, "score": 0.5, **keys}


def make_images(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        Image.new("RGB", SIZE[::-1]).save(folder / name)
    return folder


def written(folder: Path, content: Any, name: str = "masks.json") -> Path:
    """A file of these bytes, this text, or this JSON."""
    path = folder / name
    text = content if isinstance(content, (str, bytes)) else json.dumps(content)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def records_of(source: Source) -> list[ImageRecord]:
    return [item for item in source if isinstance(item, ImageRecord)]


def instances_of(source: Source) -> list[Instance]:
    return [instance for item in records_of(source) for instance in item.instances]


def faults_of(source: Source) -> list[str]:
    return [str(item.error) for item in source if isinstance(item, RecordFault)]
