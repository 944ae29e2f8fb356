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
import torch
from pycocotools import mask as mask_api
from tqdm import tqdm

from transfiner_refine.evaluation.coco_files import decode, load_annotations
from transfiner_refine.evaluation.overlap import mask_iou
from transfiner_refine.formats.images import ImageFolder, read_image
from transfiner_refine.refiner import load_refiner
from transfiner_refine.types import MaskWindow


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, help=__doc__.split("\n")[0])
@click.argument("dataset", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("output", type=click.Path(exists=False, path_type=Path))
@click.option("--weights", required=True, help="Name or path; trained without these photos.")
@click.option(
    "--agreement", default=0.9, show_default=True, help="Least IoU with the polygon to take its place."
)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
def main(dataset: Path, output: Path, weights: str, agreement: float, threads: int) -> None:
    torch.set_num_threads(threads)
    source = dataset / "annotations.json"
    annotations = load_annotations(source)
    entries = [entry for entry in annotations.instances if not entry.is_crowd]
    folder, refiner = ImageFolder(dataset / "images"), load_refiner(weights, device="cpu")
    redrawn: dict[int, MaskWindow] = {}
    changed, overlaps = 0, 0.0
    for image_id, image in tqdm(annotations.images.items(), unit="photo", disable=None):
        here = [entry for entry in entries if entry.image_id == image_id]
        pixels = read_image(folder.named(image.file_name), [image.size]).pixels
        masks = [decode(entry.mask) for entry in here]
        refined = refiner.refine_windows([pixels], masks, [0] * len(masks))
        for entry, before, after in zip(here, masks, refined, strict=True):
            overlap = mask_iou(before, after)
            changed += overlap < 1
            if agreement <= overlap < 1:
                redrawn[entry.id] = after
                overlaps += overlap
    content = json.loads(source.read_text(encoding="utf-8"))
    for record in content["annotations"]:
        if (window := redrawn.get(record["id"])) is not None:
            rle = mask_api.encode(window.paste().astype("uint8", order="F"))
            record["segmentation"] = {"size": list(rle["size"]), "counts": rle["counts"].decode()}
            record["area"], record["bbox"] = int(mask_api.area(rle)), mask_api.toBbox(rle).tolist()
    output.mkdir(parents=True)
    (output / "images").symlink_to((dataset / "images").resolve(), target_is_directory=True)
    (output / source.name).write_text(json.dumps(content), encoding="utf-8")
    for file in dataset.glob("coarse_*.json"):
        shutil.copy(file, output)
    mean = overlaps / max(len(redrawn), 1)
    click.echo(f"{len(entries)} true masks, {changed} changed, {len(redrawn)} redrawn (IoU {mean:.3f})")


if __name__ == "__main__":
    main()
