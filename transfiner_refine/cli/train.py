"""``transfiner-refine train``: weights from COCO-format data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from transfiner_refine.cli.options import FILE, FOLDER, Command, choice, count, option, shared

__all__ = ["WeightedFolder", "command"]


# generic from click 8.4 on
class WeightedFolder(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """``DIR`` or ``DIR:WEIGHT``."""

    name = "dir[:weight]"

    def convert(
        self,
        value: str | tuple[Path, float],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[Path, float]:
        if isinstance(value, tuple):
            return value
        folder, colon, weight = value.rpartition(":")
        if not colon or Path(value).is_dir():
            return Path(value), 1.0
        try:
            share = float(weight)
        except ValueError:
            share = 0.0
        if not 0 < share < float("inf"):
            self.fail(f"{value!r}: {weight!r} is not a positive number", param, ctx)
        return Path(folder), share


_POSITIVE = click.FloatRange(min=0, min_open=True)
_COUNT = click.IntRange(min=1)


@click.command("train", cls=Command)
@option(
    "--dataset",
    "datasets",
    type=WeightedFolder(),
    multiple=True,
    help="Folder with images/, annotations.json and, optionally, detectors' results on the same images as "
    "coarse*.json. A weight after a colon says how often it is drawn. May be repeated.",
)
@option(
    "--data",
    "pairs",
    type=(FOLDER, FILE),
    multiple=True,
    metavar="IMAGES ANNOTATIONS",
    help="A folder of images and its COCO annotation file; coarse masks are simulated. May be repeated.",
)
@option(
    "--output",
    "-o",
    type=FOLDER,
    required=True,
    help="Folder of the run. If it holds an interrupted run, that run goes on.",
)
@option(
    "--start",
    default="lite",
    help="Weights to start from: a built-in name or a checkpoint to fine-tune, or imagenet to train from scratch.",
)
@choice(
    "--backbone",
    ["lite0", "lite1", "lite2", "lite3", "lite4"],
    "Feature extractor of a run from imagenet; a checkpoint brings its own.",
)
@option("--steps", type=_COUNT, help="Steps in all.  [default: 1000, from imagenet 6500]")
@option("--batch-size", type=_COUNT, default=8, help="Instances a step.")
@option(
    "--learning-rate",
    type=_POSITIVE,
    help="Of the new layers; the backbone's is 0.4 times that.  [default: 1e-4, from imagenet 5e-4]",
)
@option("--minutes", type=_POSITIVE, help="Stop after this long; run again to go on.")
@option(
    "--validate",
    "validation",
    type=FOLDER,
    multiple=True,
    help="Held-out folder, laid out as for --dataset, that is scored as training goes. May be repeated.",
)
@option(
    "--hold-out",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.1,
    help="Share of the training images to score on instead, where there is no --validate; 0 for none.",
)
@option("--validate-every", type=_COUNT, help="Steps between scores.  [default: a tenth of --steps]")
@option(
    "--log",
    "loggers",
    type=click.Choice(["tensorboard", "wandb", "mlflow"]),
    multiple=True,
    help="Send losses and scores there, too, if it is installed. May be repeated.",
)
@shared("device")
@choice(
    "--precision",
    ["auto", "fp32", "bf16"],
    "auto is bf16 on CUDA; on a CPU the faster of the two, measured at the start.",
)
@count("--workers", 0, "Processes that prepare samples.", default=1)
@option("--threads", type=_COUNT, help="CPU threads of the network.  [default: PyTorch's]")
@option("--seed", type=int, default=0, help="Of data order, augmentation and sampling.")
@shared("quiet")
def command(
    datasets: tuple[tuple[Path, float], ...],
    pairs: tuple[tuple[Path, Path], ...],
    validation: tuple[Path, ...],
    steps: int | None,
    batch_size: int,
    learning_rate: float | None,
    seed: int,
    quiet: bool,
    **options: Any,
) -> None:
    """Fine-tune the built-in refiner to your images and your detector, or train one.

    The run's folder receives refiner.safetensors (use it with refine --weights),
    best.safetensors (the weights that did best on what was held out), loss.csv,
    scores.csv and curve.png. A run that was interrupted, by Ctrl-C too, goes on
    exactly where it was when the command is given again.

    \b
    transfiner-refine train --data photos annotations.json --output runs/mine
    """
    if not datasets and not pairs:
        raise click.UsageError("nothing to train on; give --dataset or --data")
    from transfiner_refine.training import Schedule, TrainingJob, open_dataset, run_training
    from transfiner_refine.training.datasets import load_training_set

    sets = [open_dataset(folder, weight) for folder, weight in datasets]
    sets += [load_training_set(images, annotations) for images, annotations in pairs]
    job = TrainingJob(
        datasets=sets,
        schedule=Schedule(steps or 0, batch_size, learning_rate or 0.0, seed=seed),
        validation=[open_dataset(folder) for folder in validation],
        **options,
    )
    run_training(job, (lambda _: None) if quiet else click.echo, progress=not quiet)
