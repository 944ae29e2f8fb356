"""The recipe of the weights ``lite``: three runs, one after the other, and a mean of the first and the last.

    python benchmarks/lite_recipe.py --data TRAIN --output runs/lite
    python benchmarks/lite_recipe.py --data TRAIN --output runs/lite --minutes 60    again and again

TRAIN is a folder of data sets, each laid out as for ``train --dataset``. The last file, ``lite.safetensors``, is the
mean: the later runs know many more kinds of images, the first knows masks of a mask head a little better, and weights
between the two lose neither (Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022).
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import click

from transfiner_refine.model.checkpoint import load_network, save_network
from transfiner_refine.training import Schedule, TrainingJob, open_dataset, run_training
from transfiner_refine.training.samples import Augmentation
from transfiner_refine.training.simulate import ERRORS

FIRST = "ccp:.33 davis:.17 coco:.5"  # how often each data set is drawn
ALL = """ccp:.12 davis:.08 coco:.16 coco2:.1 ecssd:.16 pascals:.13 pascal10:.08 animals:.06 cats:.06 cocoperson:.05
    pennfudan:.05 sod:.02 lecture:.015 davis_bear:.01"""
LAST = """ccp:.1 davis:.12 coco:.18 coco2:.11 ecssd:.14 pascals:.12 pascal10:.07 animals:.04 cats:.04 cocoperson:.04
    pennfudan:.03 sod:.02 lecture:.015 davis_bear:.015"""
#: More of a detector's real masks, less of what is composed of two images, and images of no data set.
VARIED = Augmentation(
    real_coarse=0.7,
    paste=0.12,
    backdrop=0.07,
    occlude=0.07,
    shorten=0.06,
    join=0.05,
    leak=0.04,
    synthetic=0.04,
    retexture=0.04,
    recolour=0.06,
    rescale=0.06,
    errors={**ERRORS, "clicks": 0.08, "wrong_box": 0.04},
)
SHARE_OF_LAST = 0.75  # in the mean


@dataclass(frozen=True)
class Stage:
    """One run; it starts from the weights of the one before."""

    name: str
    sets: str
    schedule: Schedule
    augmentation: Augmentation = field(default_factory=Augmentation)


STAGES = (
    Stage("1", FIRST, Schedule(steps=8000, batch_size=16, learning_rate=7e-4, seed=4)),
    Stage("2", ALL, Schedule(steps=1000, batch_size=8, learning_rate=1.5e-4, seed=6)),
    Stage(
        "3",
        LAST,
        Schedule(steps=2400, batch_size=8, learning_rate=2e-4, decay=0.6, average=0.998, seed=10),
        VARIED,
    ),
)


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, help=__doc__.split("\n")[0])
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--minutes", type=float, help="Stop after this long; run again to go on.")
@click.option("--threads", type=int, default=1, show_default=True)
def main(data: Path, output: Path, minutes: float | None, threads: int) -> None:
    begin, start = time.monotonic(), "imagenet"
    for stage in STAGES:
        left = None if minutes is None else minutes - (time.monotonic() - begin) / 60
        if left is not None and left <= 0:
            return
        sets = [each.split(":") for each in stage.sets.split()]
        job = TrainingJob(
            datasets=[open_dataset(data / name, float(weight)) for name, weight in sets],
            output=output / stage.name,
            schedule=stage.schedule,
            augmentation=stage.augmentation,
            start=start,
            hold_out=0.0,
            minutes=left,
            precision="bf16",
            workers=0,
            threads=threads,
        )
        if not run_training(job, click.echo):
            return
        start = str(job.output / "refiner.safetensors")
    first, last = (
        load_network(output / stage.name / "refiner.safetensors") for stage in (STAGES[0], STAGES[-1])
    )
    before, after = first.state_dict(), last.state_dict()
    for name, value in after.items():
        if value.is_floating_point():
            value.mul_(SHARE_OF_LAST).add_(before[name], alpha=1 - SHARE_OF_LAST)
    runs = [json.loads((output / stage.name / "refiner.json").read_text()) for stage in STAGES]
    about = [{name: fact for name, fact in run.items() if name not in {"kind", "config"}} for run in runs]
    save_network(
        last, output / "lite.safetensors", about={"stages": about, "share of the last": SHARE_OF_LAST}
    )
    click.echo(output / "lite.safetensors")


if __name__ == "__main__":
    main()
