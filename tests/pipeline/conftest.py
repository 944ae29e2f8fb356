"""A job small enough to be run hundreds of times, with everything in it that can happen to an instance."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from transfiner_refine.pipeline import refine_files

QUICK_RUN = Path(__file__).with_name("quick_run.py")
SIZE = (40, 60)


class Job:
    """Photos, masks of all fates, and ways to run them."""

    def __init__(
        self, folder: Path, images: int = 7, masks_an_image: int = 3, size: tuple[int, int] = SIZE
    ) -> None:
        self.folder = folder
        self.output = folder / "out.json"
        self.journal = folder / ".out.json.journal"
        (folder / "images").mkdir(parents=True)
        random = np.random.default_rng(0)
        self.records: list[dict[str, Any]] = []
        for number in range(1, images + 1):
            pixels = random.integers(0, 256, (*size, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
            self.records += [self._record(number, random, size) for _ in range(masks_an_image)]
        (folder / "masks.json").write_text(json.dumps(self.records))

    @staticmethod
    def _record(number: int, random: np.random.Generator, size: tuple[int, int]) -> dict[str, Any]:
        bitmap = np.zeros(size, np.uint8)
        x, y, width, height = random.integers(2, 20, 4)
        bitmap[y : y + height, x : x + width] = 1
        encoded = coco_mask.encode(np.asfortranarray(bitmap))
        mask = {"size": list(size), "counts": encoded["counts"].decode()}
        return {"image_id": number, "category_id": 1, "segmentation": mask, "score": 0.5}

    def spoil(self) -> None:
        """Makes some records and images unusable and others not worth refining."""
        self.records[1]["iscrowd"] = 1
        self.records[4]["segmentation"] = {"size": list(SIZE), "counts": [SIZE[0] * SIZE[1]]}
        self.records[7]["segmentation"]["counts"] = "not an RLE"
        self.records[10]["score"] = float("nan")
        (self.folder / "masks.json").write_text(json.dumps(self.records))
        (self.folder / "images" / "5.png").write_bytes(b"no image")
        (self.folder / "images" / "6.png").unlink()

    def as_folder(self) -> None:
        """Writes the masks as a folder of PNGs too."""
        (self.folder / "masks").mkdir()
        for index, record in enumerate(self.records):
            bitmap = coco_mask.decode(record["segmentation"]) * 255
            Image.fromarray(bitmap).save(self.folder / "masks" / f"{record['image_id']}_{index}.png")

    def whole(self) -> tuple[bytes, list[str], str]:
        """What an uninterrupted run gives: the output (which is removed), the summary, what is on stderr."""
        refiner = load_quick_run().Stripes()
        summary = refine_files(
            self.folder / "images", self.folder / "masks.json", self.output, refiner=refiner, workers=0
        )
        content = self.output.read_bytes()
        self.output.unlink()
        return content, without_seconds(summary.lines()), "".join(f"{error}\n" for error in summary.errors)

    def run(self, **options: Any) -> subprocess.CompletedProcess[str]:
        """Runs to the end in a process of its own."""
        return subprocess.run(self.command(**options), capture_output=True, text=True, check=False)

    def start(self, **options: Any) -> subprocess.Popen[str]:
        """Runs in a process of its own, to be disturbed."""
        return subprocess.Popen(
            self.command(**options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def command(self, **options: Any) -> list[str]:
        options = {"workers": 0, **options}
        return [sys.executable, str(QUICK_RUN), str(self.folder), json.dumps(options)]

    def summary_of(self, done: subprocess.CompletedProcess[str]) -> list[str]:
        """The summary that a run has printed, without the seconds."""
        return without_seconds(done.stdout.splitlines())

    def names(self) -> list[str]:
        """What there is beside the input."""
        inputs = ("images", "masks", "masks.json")
        return sorted(path.name for path in self.folder.iterdir() if path.name not in inputs)

    def contents(self) -> dict[str, bytes]:
        """The bytes of all files beside the input, by their paths."""
        roots = [self.folder / name for name in self.names()]
        files = [file for root in roots for file in (root.rglob("*") if root.is_dir() else [root])]
        return {str(file.relative_to(self.folder)): file.read_bytes() for file in files if file.is_file()}


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path / "job")


@pytest.fixture(scope="session")
def make_job() -> type[Job]:
    return Job


@pytest.fixture(scope="session")
def quick_run() -> Any:
    return load_quick_run()


def without_seconds(lines: list[str]) -> list[str]:
    """A summary without what differs from run to run."""
    return [re.sub(r" in [\d.]+ s \([\d.]+/s\)", "", line) for line in lines if not line.startswith("pid ")]


@cache
def load_quick_run() -> Any:
    """The module of ``quick_run.py``."""
    spec = spec_from_file_location("quick_run", QUICK_RUN)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
