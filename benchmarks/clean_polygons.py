"""True masks drawn as loose polygons, redrawn where a network that has not seen the photos agrees with them.

    transfiner-refine train --start imagenet --output SHARP --dataset OTHER …
    python benchmarks/clean_polygons.py DATASET CLEANED --weights SHARP/refiner.safetensors

DATASET and OTHER are folders as ``train --dataset`` wants them. A network knows its training photos by heart and
repeats what it was told there, so it must come from others, best from some with sharp truth. Each true mask is refined
as if it were a coarse one. Where the two agree well enough the refined one takes its place; otherwise the network took
the object for something else, and the polygon stays.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import click
from devsets import default_refiner, load_dev_sets, refine_windows

from transfiner_refine.evaluation.overlap import mask_iou
from transfiner_refine.masks import Mask


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, help=__doc__.split("\n")[0])
@click.argument("dataset", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--weights", required=True, help="Name or path; trained without these photos.")
@click.option(
    "--agreement", default=0.9, show_default=True, help="Least IoU with the polygon to take its place."
)
def main(dataset: Path, output: Path, weights: str, agreement: float) -> None:
    dataset = dataset.resolve()
    (dev_set,) = load_dev_sets(dataset.parent, (dataset.name,), None)
    entries = [entry for entry in dev_set.annotations.instances if not entry.is_crowd]
    masks = [entry.mask.decode() for entry in entries]
    refine, _ = default_refiner(weights, None, "auto")
    refined, _ = refine_windows(dev_set, "clean", [entry.image_id for entry in entries], masks, refine)
    overlaps = [mask_iou(before, after) for before, after in zip(masks, refined, strict=True)]
    redrawn = {
        entry.instance_id: Mask.from_window(after)
        for entry, after, overlap in zip(entries, refined, overlaps, strict=True)
        if agreement <= overlap < 1
    }
    source = dataset / "annotations.json"
    content = json.loads(source.read_text(encoding="utf-8"))
    for record in content["annotations"]:
        if (mask := redrawn.get(record["id"])) is not None:
            record["segmentation"] = {"size": list(mask.size), "counts": mask.counts}
            x0, y0, x1, y1 = mask.box
            record["area"], record["bbox"] = mask.area, [x0, y0, x1 - x0, y1 - y0]
    output.mkdir(parents=True)
    (output / "images").symlink_to(dataset / "images", target_is_directory=True)
    (output / source.name).write_text(json.dumps(content), encoding="utf-8")
    for file in dataset.glob("coarse_*.json"):
        shutil.copy(file, output)
    changed = sum(overlap < 1 for overlap in overlaps)
    click.echo(f"{len(entries)} true masks, {changed} changed, {len(redrawn)} redrawn")


if __name__ == "__main__":
    main()
