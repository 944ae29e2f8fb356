"""Speed of the pipeline without a network: COCO results over 640×480 JPEGs with ten masks each.

Pictures and masks are generated in a temporary folder. The refiner makes a disc of every mask, so everything but the
network is measured: opening and indexing the file, decoding, parsing, batching, encoding, the journal and the
output. ``--against`` measures another checkout of the package too, in turns on the same input.

python benchmarks/pipeline.py --images 500 --against ../before
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

SIZE = (480, 640)
MASKS = 10  # an image
HERE = Path(__file__).resolve().parents[1]
STAGES = ("import", "open", "refine", "write", "workers")


class Disc:
    """Refines every mask to the same disc; remembers the processor time of its first and last call.

    A mask that comes back as it was would not be written.
    """

    def __init__(self, batch_size: int) -> None:
        from transfiner_refine.formats import Mask
        from transfiner_refine.masks import MaskWindow

        self.batch_size, self._mask = batch_size, Mask
        self.first = self.last = 0.0
        rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
        disc = np.hypot(rows - 240, columns - 320) < 60
        self._runs = Mask.from_window(MaskWindow(disc, 0, 0, SIZE)).runs

    def refine_masks(
        self, images: Sequence[Any], masks: Sequence[Any], image_index: Sequence[int]
    ) -> list[Any]:
        del images, image_index
        self.last = time.process_time()
        self.first = self.first or self.last
        return [self._mask.from_runs(self._runs, SIZE) for _ in masks]


def make_input(folder: Path, images: int, masks: int = MASKS) -> None:
    """Writes images/ and masks.json: blurred noise with grain (about 70 KB each), wavy ellipses of about 100 pixels."""
    from transfiner_refine.formats import Mask
    from transfiner_refine.masks import MaskWindow

    random = np.random.default_rng(0)
    (folder / "images").mkdir()
    pictures = []
    for _ in range(min(20, images)):
        coarse = Image.fromarray(random.integers(0, 256, (15, 20, 3), np.uint8))
        smooth = np.asarray(coarse.resize(SIZE[::-1], Image.Resampling.BICUBIC)).astype(np.float32)
        grain = random.normal(0, 4, (*SIZE, 1))
        picture = Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8))
        picture.save(folder / "picture.jpg", quality=90)
        pictures.append((folder / "picture.jpg").read_bytes())
    for number in range(1, images + 1):
        (folder / "images" / f"{number:012d}.jpg").write_bytes(pictures[number % len(pictures)])
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    blobs = []
    for _ in range(min(100, images * masks)):
        y, x = random.integers(60, SIZE[0] - 60), random.integers(60, SIZE[1] - 60)
        angle = np.arctan2(rows - y, columns - x)
        radius = random.integers(35, 65) * (1 + 0.2 * np.sin(angle * int(random.integers(3, 12))))
        blobs.append(Mask.from_window(MaskWindow(np.hypot(rows - y, columns - x) < radius, 0, 0, SIZE)))
    records = []
    for index in range(images * masks):
        blob = blobs[int(random.integers(len(blobs)))]
        x0, y0, x1, y1 = blob.box
        records.append(
            {
                "image_id": index // masks + 1,
                "category_id": int(random.integers(1, 91)),
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "score": round(float(random.random()), 6),
                "segmentation": {"size": list(SIZE), "counts": blob.counts},
            }
        )
    (folder / "masks.json").write_text(json.dumps(records))


def run(folder: Path, workers: int, batch_size: int) -> None:
    """The run that is measured; prints what it took as JSON."""
    from transfiner_refine.pipeline import refine_files

    imported, start = time.process_time(), time.perf_counter()
    refiner = Disc(batch_size)
    summary = refine_files(
        folder / "images", folder / "masks.json", folder / "out.json",
        refiner=refiner, workers=workers, overwrite=True,
    )  # fmt: skip
    wall, end = time.perf_counter() - start, time.process_time()
    assert (summary.refined, summary.failed) == (summary.instances, 0)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = (
        imported, refiner.first - imported, refiner.last - refiner.first, end - refiner.last,
        children.ru_utime + children.ru_stime,
    )  # fmt: skip
    per_instance = {stage: 1e3 * each / summary.refined for stage, each in zip(STAGES, seconds, strict=True)}
    print(json.dumps({"rate": summary.refined / wall, "cpu": per_instance}))


def measured(checkout: Path, folder: Path, workers: int, batch_size: int) -> dict[str, Any]:
    """One run of a checkout in a process of its own."""
    command = [sys.executable, __file__, "--inner", str(folder)]
    command += ["--workers", str(workers), "--batch-size", str(batch_size)]
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found | {"output": (folder / "out.json").read_bytes()}


@click.command(help=__doc__.splitlines()[0])
@click.option("--images", default=500, show_default=True)
@click.option("--workers", default=2, show_default=True)
@click.option("--batch-size", default=32, show_default=True)
@click.option("--repeats", default=3, show_default=True, help="Runs of each; the fastest counts.")
@click.option(
    "--against", type=click.Path(exists=True, path_type=Path), help="Another checkout, measured too."
)
@click.option("--inner", type=click.Path(path_type=Path), hidden=True)
def main(
    images: int, workers: int, batch_size: int, repeats: int, against: Path | None, inner: Path | None
) -> None:
    if inner is not None:
        run(inner, workers, batch_size)
        return
    checkouts = ([] if against is None else [against.resolve()]) + [HERE]
    runs: dict[Path, list[dict[str, Any]]] = {checkout: [] for checkout in checkouts}
    with tempfile.TemporaryDirectory() as name:
        make_input(Path(name), images)
        for _ in range(repeats):
            for checkout in checkouts:
                runs[checkout].append(measured(checkout, Path(name), workers, batch_size))
    assert len({each["output"] for found in runs.values() for each in found}) == 1, "outputs differ"
    click.echo(
        f"{images * MASKS} instances in {images} images, {workers} workers, batches of {batch_size}, "
        f"{os.cpu_count()} cores; fastest of {repeats} runs"
    )
    click.echo(
        f"{'':12}{'instances/s':>12}" + "".join(f"{name:>10}" for name in STAGES) + "   CPU ms an instance"
    )
    for checkout, found in runs.items():
        best = max(found, key=lambda each: each["rate"])
        cells = "".join(f"{best['cpu'][stage]:10.3f}" for stage in STAGES)
        label = "this tree" if checkout == HERE else "against"
        click.echo(f"{label:12}{best['rate']:12.0f}{cells}{sum(best['cpu'].values()):9.3f} in all")


if __name__ == "__main__":
    main()
