"""``transfiner-refine train``: weights from COCO-format data."""

from __future__ import annotations

from pathlib import Path

import click

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


@click.command("train", short_help="Train weights on COCO-format data.")
@click.option(
    "--dataset",
    "datasets",
    type=WeightedFolder(),
    multiple=True,
    help="Folder with images/, annotations.json and, optionally, detectors' results on the same photos as "
    "coarse*.json. A weight after a colon says how often it is drawn. May be repeated.",
)
@click.option(
    "--data",
    "pairs",
    type=(
        click.Path(file_okay=False, exists=True, path_type=Path),
        click.Path(dir_okay=False, path_type=Path),
    ),
    multiple=True,
    metavar="IMAGES ANNOTATIONS",
    help="A folder of photos and its COCO annotation file; coarse masks are simulated. May be repeated.",
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder of the run. If it holds an interrupted run, that run goes on.",
)
@click.option(
    "--start",
    default="lite",
    show_default=True,
    help="Weights to start from: a built-in name, a checkpoint, or imagenet to train from scratch.",
)
@click.option(
    "--backbone",
    type=click.Choice(["lite0", "lite1", "lite2", "lite3", "lite4"]),
    default="lite2",
    show_default=True,
    help="Feature extractor of a run from imagenet; a checkpoint brings its own.",
)
@click.option("--steps", type=click.IntRange(min=1), default=6500, show_default=True, help="Steps in all.")
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=8, show_default=True, help="Instances a step."
)
@click.option(
    "--learning-rate",
    type=click.FloatRange(min=0, min_open=True),
    default=5e-4,
    show_default=True,
    help="Of the new layers; the backbone's is 0.4 times that. Use a fifth of it for fine-tuning.",
)
@click.option(
    "--minutes", type=click.FloatRange(min=0, min_open=True), help="Stop after this long; run again to go on."
)
@click.option(
    "--validate",
    "validation",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    multiple=True,
    help="Held-out folder, laid out as for --dataset, that is scored as training goes. May be repeated.",
)
@click.option(
    "--validate-every",
    type=click.IntRange(min=1),
    default=500,
    show_default=True,
    help="Steps between scores.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16"]),
    default="auto",
    show_default=True,
    help="auto is bf16 on CUDA; on a CPU the faster of the two, measured at the start.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="Processes that prepare samples.",
)
@click.option(
    "--threads", type=click.IntRange(min=1), help="CPU threads of the network.  [default: PyTorch's]"
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Of data order, augmentation and sampling."
)
def command(
    datasets: tuple[tuple[Path, float], ...],
    pairs: tuple[tuple[Path, Path], ...],
    output: Path,
    start: str,
    backbone: str,
    steps: int,
    batch_size: int,
    learning_rate: float,
    minutes: float | None,
    validation: tuple[Path, ...],
    validate_every: int,
    device: str,
    precision: str,
    workers: int,
    threads: int | None,
    seed: int,
) -> None:
    """Train a refiner, or fine-tune the shipped one to your photos and your detector.

    The run's folder receives refiner.safetensors (use it with refine --weights),
    loss.csv, scores.csv, curve.png and state.safetensors, from which an interrupted
    run goes on exactly where it was.

    \b
    transfiner-refine train --data photos annotations.json --output runs/mine \\
        --steps 1000 --learning-rate 1e-4
    """
    if not datasets and not pairs:
        raise click.UsageError("nothing to train on; give --dataset or --data")
    from transfiner_refine.training import Schedule, TrainingJob, open_dataset, run_training
    from transfiner_refine.training.datasets import load_training_set

    sets = [open_dataset(folder, weight) for folder, weight in datasets]
    sets += [load_training_set(images, annotations) for images, annotations in pairs]
    job = TrainingJob(
        datasets=sets,
        output=output,
        schedule=Schedule(steps=steps, batch_size=batch_size, learning_rate=learning_rate, seed=seed),
        start=start,
        backbone=backbone,
        validation=[open_dataset(folder) for folder in validation],
        validate_every=validate_every,
        minutes=minutes,
        device=device,
        precision=precision,
        workers=workers,
        threads=threads,
    )
    run_training(job, click.echo)
