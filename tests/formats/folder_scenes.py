"""Two frames of a video for the tests of folder formats, and how their sources and folders are compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from mask_scenes import SceneSource
from PIL import Image

from transfiner_refine.formats import Mask, Source
from transfiner_refine.formats.cityscapes_results import CITYSCAPES_RESULTS
from transfiner_refine.formats.label_map_formats import CITYSCAPES_IDS, DAVIS, VOC
from transfiner_refine.formats.labelme import LABELME
from transfiner_refine.formats.mask_files import PLAIN_MAPS, PNG_FOLDER
from transfiner_refine.formats.numpy_files import NUMPY
from transfiner_refine.formats.records import ImageRecord, Instance
from transfiner_refine.formats.video_folders import SAM2_VIDEO
from transfiner_refine.formats.yolo import YOLO_SEG
from transfiner_refine.masks import MaskWindow

FOLDERS = [
    CITYSCAPES_RESULTS,
    CITYSCAPES_IDS,
    VOC,
    DAVIS,
    SAM2_VIDEO,
    PNG_FOLDER,
    PLAIN_MAPS,
    YOLO_SEG,
    LABELME,
    NUMPY,
]
STREET = {24: "person", 26: "car", 33: "bicycle"}
REFINED = np.zeros((12, 15), bool)
REFINED[5:11, 3:11], REFINED[7:9, 5:8], REFINED[1, 13] = True, False, True  # a hole, and a part of its own


def photos_of(source: SceneSource, folder: Path) -> Path:
    """Empty photos of the source's names and sizes."""
    for record in source.records:
        assert record.file_name is not None
        assert record.size is not None
        path = folder / record.file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", record.size[::-1]).save(path, quality=10)
    return folder


def two_images(folder: Path) -> tuple[SceneSource, Path]:
    """Two frames of a video, with two instances and one."""
    size = (12, 15)

    def box(index: int, y: int, x: int, category_id: int) -> Instance:
        pixels = np.zeros(size, bool)
        pixels[y : y + 5, x : x + 6] = True
        mask = Mask.from_window(MaskWindow(pixels, 0, 0, size))
        return Instance(index, mask, f"instance {index}", category_id, score=0.5)

    first = (box(0, 0, 0, 24), box(1, 6, 2, 26))
    records = (
        ImageRecord(None, "bear/00000.jpg", first, size, None, "bear/00000.jpg"),
        ImageRecord(None, "bear/00001.jpg", (box(2, 1, 1, 24),), size, None, "bear/00001.jpg"),
    )
    source = SceneSource(records, STREET)
    return source, photos_of(source, folder / "images")


def flat(source: Source) -> list[Mask]:
    return [
        Mask.from_window(instance.mask.decode())
        for item in source
        if isinstance(item, ImageRecord)
        for instance in item.instances
    ]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
