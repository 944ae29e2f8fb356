"""What each part of the network and of its training is worth: short runs that differ in one thing.

    python benchmarks/ablation.py run --variant full --dataset DIR:WEIGHT … --data DEVVAL --output RUNS
    python benchmarks/ablation.py settings --data DEVVAL --change max_depth=3 --change trust=0 --output SETTINGS
    python benchmarks/ablation.py table --output RUNS

Every run starts from the same weights with the same seed, hence the same samples in the same order, and has a
complete schedule of its own. ``run`` without ``--variant`` makes all that RUNS lacks. From the ImageNet weights a short
run shows what a part is worth early on. With ``--start lite`` it shows how well trained weights get used to the change:
there the noise is much smaller.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from devsets import DevSet, load_dev_sets
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from transfiner_refine.cli.train import WeightedFolder
from transfiner_refine.evaluation.coco_files import load_match
from transfiner_refine.evaluation.matched import MIN_AREA
from transfiner_refine.evaluation.overlap import boundary_iou, mask_iou
from transfiner_refine.evaluation.tables import Table
from transfiner_refine.model.backbone import load_imagenet
from transfiner_refine.model.checkpoint import load_network
from transfiner_refine.model.config import RefinerConfig
from transfiner_refine.model.incoherence import RootMaps
from transfiner_refine.model.network import MaskTransfiner
from transfiner_refine.model.weights import find_weights
from transfiner_refine.refine.torch_engine import TorchEngine
from transfiner_refine.refiner import Refiner
from transfiner_refine.training import Schedule, objective, open_dataset
from transfiner_refine.training.loop import train
from transfiner_refine.training.objective import RefinementModel
from transfiner_refine.training.samples import Augmentation, RefinementSamples
from transfiner_refine.training.simulate import ERRORS

_LEAST_IOU = 0.5
_KEPT = 0.005  # IoU an instance may lose before it counts as worse


@dataclass(frozen=True)
class Variant:
    """One difference from the full recipe.

    Attributes:
        title: its row of the table.
        config: changed fields of the network's configuration.
        augmentation: changed fields of the samples' augmentation.
        own_share: as for ``RefinementModel``.
        change: changes the network in place.
        label_loss: in place of the nodes' loss; from logits and targets [n].
        map_loss: in place of the loss of the dense labels and of the propagated mask; from logits and targets
            [B, grid, grid].
        weights: changed weights of the loss's terms.
    """

    title: str
    config: dict[str, Any] = field(default_factory=dict)
    augmentation: dict[str, Any] = field(default_factory=dict)
    own_share: float = 0.2
    change: Callable[[MaskTransfiner], None] | None = None
    label_loss: Callable[[Tensor, Tensor], Tensor] | None = None
    map_loss: Callable[[Tensor, Tensor], Tensor] | None = None
    weights: dict[str, float] = field(default_factory=dict)


def _without_cue(argument: int, value: float) -> Callable[[MaskTransfiner], None]:
    """All node encoders see a constant in place of one of their arguments."""

    def change(network: MaskTransfiner) -> None:
        for encoder in network.encoders:
            encoder.register_forward_pre_hook(_constant(argument, value))

    return change


def _constant(argument: int, value: float) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    def hook(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return (*given[:argument], torch.full_like(given[argument], value), *given[argument + 1 :])

    return hook


def _without_position(network: MaskTransfiner) -> None:
    for encoder in network.encoders:
        for argument in (3, 4):
            encoder.register_forward_pre_hook(_constant(argument, 0))


def _mask_not_in_stem(network: MaskTransfiner) -> None:
    network.backbone.register_forward_pre_hook(_constant(1, 0.5))


def _detector_without_mask(network: MaskTransfiner) -> None:
    roots, finer = network.detector.roots, network.detector.finer
    network.detector.roots = lambda features, coarse: roots(features, torch.full_like(coarse, 0.5))  # type: ignore[method-assign]
    network.detector.finer = (  # type: ignore[method-assign]
        lambda level, above, features, coarse: finer(level, above, features, torch.full_like(coarse, 0.5))
    )


class _IncoherentRoots(RootMaps):
    """The paper's rule: what is incoherent is relabelled, whether the coarse mask is wrong there or not."""

    def wrong_probability(self) -> Tensor:
        return self.incoherent_probability()


def _roots_where_incoherent(network: MaskTransfiner) -> None:
    roots = network.detector.roots

    def changed(features: Tensor, coarse: Tensor) -> RootMaps:
        maps = roots(features, coarse)
        return _IncoherentRoots(maps.incoherent, maps.wrong, maps.mask, maps.hidden)

    network.detector.roots = changed  # type: ignore[method-assign]


def _cross_entropy(logit: Tensor, target: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logit, target, reduction="none")


def _l1(logit: Tensor, target: Tensor) -> Tensor:
    return (torch.sigmoid(logit) - target).abs()


def _without_dice(logit: Tensor, target: Tensor) -> Tensor:
    return _cross_entropy(logit, target).mean((1, 2))


def _outline_counts_more(logit: Tensor, target: Tensor) -> Tensor:
    """Cells within two of the outline count five times."""
    spread = functional.max_pool2d(target[:, None], 5, 1, 2) + functional.max_pool2d(
        -target[:, None], 5, 1, 2
    )
    weight = 1 + 4 * (spread.squeeze(1) > 0.5).float()
    each = (_cross_entropy(logit, target) * weight).sum((1, 2)) / weight.sum((1, 2))
    return each + objective.dice_loss(logit, target)


def _resolution(side: int) -> Callable[[MaskTransfiner], None]:
    """The backbone sees the RoI at ``side`` pixels; its maps are brought to the quadtree's grids."""

    def change(network: MaskTransfiner) -> None:
        backbone, config = network.backbone, network.config
        whole: dict[str, Tensor] = {}
        extract = backbone.forward

        def remember(_: nn.Module, given: tuple[Any, ...]) -> None:
            whole["image"], whole["coarse"] = given[:2]

        def resized(_: Tensor, __: Tensor) -> tuple[Tensor, ...]:
            image, coarse = (functional.interpolate(whole[key], size=side, mode="area") for key in whole)
            maps = extract(image, coarse)
            grids = (config.crop_side >> level for level in range(1, len(maps) + 1))
            return tuple(
                functional.interpolate(each, size=grid, mode="bilinear", align_corners=False)
                for each, grid in zip(maps, grids, strict=True)
            )

        network.register_forward_pre_hook(remember)
        backbone.forward = resized  # type: ignore[method-assign]

    return change


VARIANTS = {
    "full": Variant("full recipe"),
    "dense": Variant(
        "no quadtree: dense labels only",
        config={"root_threshold": 1.1},
        weights={"refine": 0.0, "mask": 0.0},
    ),
    "mlp": Variant("no attention: an MLP per node", config={"layers": 0}),
    "three-layers": Variant("3 attention layers", config={"layers": 3}),
    "narrow": Variant("nodes 64 wide", config={"width": 64, "feedforward": 128}),
    "wide": Variant("nodes 192 wide", config={"width": 192, "feedforward": 384, "heads": 6}),
    "side-160": Variant("backbone at 160 pixels", change=_resolution(160)),
    "side-320": Variant("backbone at 320 pixels", change=_resolution(320)),
    "no-feature": Variant("nodes without their own feature", change=_without_cue(0, 0.0)),
    "no-mask": Variant("nodes without the coarse mask", change=_without_cue(1, 0.5)),
    "no-neighbours": Variant("nodes without the 3×3 neighbourhood", change=_without_cue(2, 0.0)),
    "no-position": Variant("nodes without position", change=_without_position),
    "no-stem": Variant("coarse mask not in the stem", change=_mask_not_in_stem),
    "blind-detector": Variant("detector without the coarse mask", change=_detector_without_mask),
    "incoherent-roots": Variant("relabelled where incoherent", change=_roots_where_incoherent),
    "cross-entropy": Variant("nodes: cross entropy alone", label_loss=_cross_entropy),
    "l1": Variant("nodes: L1 alone", label_loss=_l1),
    "no-mask-loss": Variant("the propagated mask is not judged", weights={"mask": 0.0}),
    "no-dice": Variant("dense labels: cross entropy alone", map_loss=_without_dice),
    "outline": Variant("dense labels: five times the weight at the outline", map_loss=_outline_counts_more),
    "no-own": Variant("never its own result as input", own_share=0.0),
    "no-real": Variant("simulated masks only", augmentation={"real_coarse": 0.0}),
    "more-real": Variant("80 % learned masks", augmentation={"real_coarse": 0.8}),
    "no-regions": Variant("no errors that follow the image", augmentation={"follow_image": 0.0}),
    "no-paste": Variant(
        "nothing pasted, no other backdrop, nothing in front",
        augmentation={"paste": 0.0, "backdrop": 0.0, "occlude": 0.0},
    ),
    "randomised": Variant(
        "domain randomisation",
        augmentation={"synthetic": 0.1, "retexture": 0.1, "recolour": 0.2, "rescale": 0.15},
    ),
    "detector": Variant(
        "clicked polygons, boxes far off, parts of neighbours",
        augmentation={"errors": {**ERRORS, "clicks": 0.15, "wrong_box": 0.15}, "leak": 0.06},
    ),
    "true-ends": Variant("every object whole and alone", augmentation={"shorten": 0.0, "join": 0.0}),
    "more-paste": Variant("40 % pasted", augmentation={"paste": 0.4}),
    "no-finale": Variant("no milder samples at the end", augmentation={"finale": 0.0}),
    "long-finale": Variant("milder samples in the second half", augmentation={"finale": 0.5}),
    "lite0": Variant("backbone lite0", config={"backbone": "lite0"}),
    "lite1": Variant("backbone lite1", config={"backbone": "lite1"}),
}


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, help=__doc__.split("\n")[0])
def main() -> None:
    pass


@main.command(short_help="Train and score variants.")
@click.option("--variant", "names", type=click.Choice(list(VARIANTS)), multiple=True)
@click.option("--dataset", "datasets", type=WeightedFolder(), multiple=True, required=True)
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--start", default="imagenet", show_default=True, help="Weights all variants start from.")
@click.option("--steps", type=click.IntRange(1), default=600, show_default=True)
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), default=5e-4, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--fp32", is_flag=True, help="Train in fp32 where bf16 is slow.")
def run(
    names: Sequence[str],
    datasets: Sequence[tuple[Path, float]],
    data: Path,
    output: Path,
    start: str,
    steps: int,
    learning_rate: float,
    seed: int,
    threads: int,
    fp32: bool,
) -> None:
    """Train variants and score each on dev-val; finished ones are skipped."""
    torch.set_num_threads(threads)
    sets = [open_dataset(folder, weight) for folder, weight in datasets]
    dev_sets = list(load_dev_sets(data))
    for name in names or VARIANTS:
        file = output / name / "scores.json"
        if file.exists():
            continue
        variant = VARIANTS[name]
        schedule = Schedule(steps=steps, learning_rate=learning_rate, seed=seed, average=0.99, level=0.0)
        torch.manual_seed(seed)
        network = _network(variant, start).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if variant.change is not None:
            variant.change(network)
        count = schedule.steps * schedule.batch_size
        augmentation = replace(Augmentation(), **variant.augmentation)
        samples = RefinementSamples(sets, network.config, count=count, seed=seed, augmentation=augmentation)
        model = RefinementModel(network, own_share=variant.own_share)
        usual = objective.label_loss, objective.map_loss, objective.WEIGHTS
        objective.label_loss = variant.label_loss or objective.label_loss
        objective.map_loss = variant.map_loss or objective.map_loss
        objective.WEIGHTS = {**objective.WEIGHTS, **variant.weights}
        begin = time.process_time()
        try:
            train(model, samples, schedule, output / name, autocast=None if fp32 else torch.bfloat16)
        finally:
            objective.label_loss, objective.map_loss, objective.WEIGHTS = usual
        seconds = time.process_time() - begin
        weights = load_file(output / name / "refiner.safetensors")
        network.load_state_dict({key: value.float() for key, value in weights.items()}, strict=False)
        facts = {"title": variant.title, "steps": steps, "seed": seed, "cpu_seconds": round(seconds)}
        scores = dict(_scores(Refiner(TorchEngine(network, "cpu")), dev_sets))
        file.write_text(json.dumps({**facts, "scores": scores}, indent=1) + "\n")
        click.echo(f"{variant.title}: {scores}")


def _network(variant: Variant, start: str) -> MaskTransfiner:
    """The variant's network: on ImageNet weights, or on a checkpoint's wherever the shapes agree."""
    if start == "imagenet":
        network = MaskTransfiner(replace(RefinerConfig(), **variant.config))
        load_imagenet(network.backbone, network.config.backbone)
        return network
    trained = load_network(find_weights(start))
    network = MaskTransfiner(replace(trained.config, **variant.config))
    own = network.state_dict()
    known = {n: v for n, v in trained.state_dict().items() if n in own and own[n].shape == v.shape}
    network.load_state_dict(known, strict=False)
    return network


def _scores(refiner: Refiner, dev_sets: Sequence[DevSet]) -> Iterator[tuple[str, dict[str, float]]]:
    """Means over the counted instances (1024 px, coarse IoU 0.5) of each kind of coarse mask of each set."""
    for dev_set in dev_sets:
        truths = {entry.instance_id: entry.mask.decode() for entry in dev_set.annotations.instances}
        for kind in dev_set.kinds():
            coarse = dev_set.detections(dev_set.folder / f"coarse_{kind}.json")
            match = load_match(dev_set.folder / f"coarse_{kind}_match.json", len(coarse))
            rows, seconds = [], 0.0
            for detection, annotation_id in zip(coarse, match, strict=True):
                truth, mask = truths.get(annotation_id), detection.mask.decode()
                if truth is None or truth.area < MIN_AREA or mask_iou(mask, truth) < _LEAST_IOU:
                    continue
                begin = time.process_time()
                (refined,) = refiner.refine_windows([dev_set.image(detection.image_id)], [mask], [0])
                seconds += time.process_time() - begin
                before, after = mask_iou(mask, truth), mask_iou(refined, truth)
                rows.append((after, boundary_iou(refined, truth), after < before - _KEPT))
            iou, boundary, worse = np.mean(np.array(rows, np.float64), 0) * 100
            yield (
                f"{kind} {dev_set.name}",
                {"iou": iou, "boundary_iou": boundary, "worse": worse, "cpu_seconds": seconds / len(rows)},
            )


@main.command(short_help="Score finished weights with other settings.")
@click.option("--weights", default="lite", show_default=True, help="Name or path.")
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option(
    "--change", "changes", multiple=True, help="Fields of the configuration, as a=1,b=2; '' for none."
)
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), required=True)
def settings(weights: str, data: Path, changes: Sequence[str], output: Path) -> None:
    """What can be changed without training: thresholds, depth, second passes."""
    torch.set_num_threads(1)
    dev_sets = list(load_dev_sets(data))
    for change in changes or ("",):
        network = load_network(find_weights(weights))
        pairs = [pair.partition("=") for pair in change.split(",") if pair]
        try:
            values = {name: type(getattr(network.config, name))(float(value)) for name, _, value in pairs}
        except (AttributeError, ValueError) as error:
            raise click.BadParameter(f"{change!r}: {error}", param_hint="--change") from error
        network.config = replace(network.config, **values)
        refiner = Refiner(TorchEngine(network, "cpu"))
        facts = {"title": change or "as shipped", "scores": dict(_scores(refiner, dev_sets))}
        output.mkdir(parents=True, exist_ok=True)
        (output / f"{change or 'shipped'}.json").write_text(json.dumps(facts, indent=1) + "\n")
        click.echo(f"{facts['title']}: {facts['scores']}")


@main.command(short_help="Print what the runs gave.")
@click.option("--output", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
def table(output: Path) -> None:
    """One row a variant, as Markdown: IoU / boundary IoU for each kind and set, worse, CPU milliseconds an instance."""
    runs = [output / name / "scores.json" for name in VARIANTS] + sorted(output.glob("*.json"))
    found = [json.loads(file.read_text()) for file in runs if file.exists()]
    if not found:
        raise click.ClickException(f"{output}: no finished runs")
    columns = list(found[0]["scores"])
    cells = [
        [
            entry["title"],
            *(f"{score['iou']:.1f} / {score['boundary_iou']:.1f}" for score in entry["scores"].values()),
            f"{np.mean([score['worse'] for score in entry['scores'].values()]):.0f} %",
            f"{1000 * np.mean([score['cpu_seconds'] for score in entry['scores'].values()]):.0f}",
            f"{entry.get('cpu_seconds', '–')}",  # settings cost no training
        ]
        for entry in found
    ]
    shown = Table("IoU / boundary IoU on dev-val", ["", *columns, "worse", "ms", "training s"], cells)
    click.echo(shown.markdown())  # too wide for a terminal


if __name__ == "__main__":
    main()
