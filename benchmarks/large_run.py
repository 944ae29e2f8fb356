"""Memory and speed of the pipeline at any size, such as that of COCO val: 5,000 images, 500,000 masks, 250 MB of JSON.

Images are crops of the example images, masks are blobs; the refiner makes a disc of each, so that everything but the
network is measured, writing included. Peaks are read from /proc (Linux): the resident set of the run's process, and
the sum of the proportional sets of all its processes, sampled ten times a second.

python benchmarks/large_run.py --folder large --images 5000 --masks 100 --workers 1
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pipeline import SIZE, Disc

from transfiner_refine.formats import Mask
from transfiner_refine.masks import MaskWindow
from transfiner_refine.pipeline import refine_files

EXAMPLES = Path(__file__).parents[1] / "examples" / "images"
BLOBS = 1000  # different masks; each occurs many times


def make_input(folder: Path, images: int, masks: int) -> None:
    """Writes images/ and masks.json, if they are not there already."""
    random = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    photos = [Image.open(path).convert("RGB") for path in sorted(EXAMPLES.glob("*.jpg"))]
    height, width = SIZE
    for number in range(1, images + 1):
        path = folder / "images" / f"{number:012d}.jpg"
        photo = photos[number % len(photos)]
        x, y = int(random.integers(0, photo.width - 256)), int(random.integers(0, photo.height - 192))
        if not path.exists():
            photo.crop((x, y, x + 256, y + 192)).resize((width, height)).save(path, quality=90)
    blobs = [_blob(random) for _ in range(BLOBS)]
    with (folder / "masks.json").open("w") as file:
        for index in range(images * masks):
            blob = blobs[int(random.integers(BLOBS))]
            x0, y0, x1, y1 = blob.box
            record = {
                "image_id": index // masks + 1,
                "category_id": int(random.integers(1, 91)),
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "score": round(float(random.random()), 6),
                "segmentation": {"size": list(SIZE), "counts": blob.counts},
            }
            file.write(("[" if index == 0 else ",\n") + json.dumps(record))
        file.write("]\n")


def _blob(random: np.random.Generator) -> Mask:
    """A wavy ellipse somewhere in the image."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    y, x = random.integers(60, SIZE[0] - 60), random.integers(60, SIZE[1] - 60)
    angle = np.arctan2(rows - y, columns - x)
    radius = random.integers(15, 130) * (1 + 0.2 * np.sin(angle * int(random.integers(3, 12))))
    inside = np.hypot(rows - y, (columns - x) * random.uniform(0.5, 1.5)) < radius
    return Mask.from_window(MaskWindow(inside, 0, 0, SIZE).tight())


def run(folder: Path, workers: int | None) -> None:
    """The run that is measured; prints how many instances it refined and the seconds it took."""
    summary = refine_files(
        folder / "images", folder / "masks.json", folder / "out.json",
        refiner=Disc(256), workers=workers, overwrite=True,
    )  # fmt: skip
    own, others = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    used = sum(each.ru_utime + each.ru_stime for each in (own, others))
    found = {"refined": summary.refined, "failed": summary.failed, "seconds": summary.seconds}
    print(json.dumps(found | {"cpu_ms": round(1e3 * used / summary.refined, 3)}))


def measured(command: list[str]) -> dict[str, Any]:
    """Runs a command that prints a JSON object; adds the peaks of memory to it, in MB."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        parent = tree = 0.0
        while process.poll() is None:
            family = [process.pid, *_children(process.pid)]
            tree = max(
                tree, sum(_kilobytes(f"/proc/{member}/smaps_rollup", "Pss:") for member in family) / 1000
            )
            parent = max(parent, _kilobytes(f"/proc/{process.pid}/status", "VmHWM:") / 1000)
            time.sleep(0.1)
        assert process.stdout is not None
        found: dict[str, Any] = json.loads(process.stdout.read())
    return found | {"parent_mb": round(parent), "tree_mb": round(tree)}


def _children(process: int) -> list[int]:
    members = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [member for member in members if _kilobytes(f"/proc/{member}/status", "PPid:") == process]


def _kilobytes(path: str, key: str) -> int:
    """The number behind a key; 0 if the process is gone."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(key)), 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="scratch folder; 0.6 GB for the full size")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--masks", type=int, default=100, help="masks an image")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--inner", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inner:
        run(options.folder, options.workers)
        return
    make_input(options.folder, options.images, options.masks)
    workers = [] if options.workers is None else ["--workers", str(options.workers)]
    command = [sys.executable, __file__, "--inner", "--folder", str(options.folder), *workers]
    found = measured(command)
    found["input_mb"] = round((options.folder / "masks.json").stat().st_size / 1e6)
    found["instances_per_second"] = round(found["refined"] / found["seconds"])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
