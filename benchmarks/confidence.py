"""How far the confidence of ``refine_detailed`` can be trusted: fits it to dev-val sets, and draws its reliability.

    python benchmarks/confidence.py --data DEVVAL --plot docs/confidence.png

DEVVAL is a folder of sets as devsets.py describes. Every matched coarse mask of every kind counts, however bad. The
coefficients are fitted on every second image; the curve and the numbers are of the others.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from devsets import load_dev_sets
from numpy.typing import NDArray

from transfiner_refine import load_refiner
from transfiner_refine.refined import confidence_features, regressors

_BINS = 10


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--images", type=int, default=40, show_default=True, help="Images of each set.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw the curve here.")
def main(data: Path, images: int, plot: Path | None) -> None:
    """Fit and judge the confidence of refined masks."""
    refiner = load_refiner(device="cpu")
    rows: list[tuple[int, float, float, float, float, float]] = []  # image, features, IoU, shipped confidence
    number = 0
    for devset in load_dev_sets(data, images=images):
        for kind in devset.kinds():
            coarse = devset.detections(devset.coarse_file(kind))
            by_image: dict[int, list[tuple[int, int]]] = {}
            for truth, index in devset.matches(kind, coarse):
                by_image.setdefault(coarse[index].image_id, []).append((truth, index))
            for image_id, matches in by_image.items():
                number += 1
                given = np.stack([coarse[index].mask.decode().paste() for _, index in matches])
                refined = refiner.refine_detailed(devset.image(image_id), given)
                for place, (truth, _) in enumerate(matches):
                    true = devset.annotations.instances[truth].mask.decode().paste()
                    mask = refined.masks[place]
                    if not mask.any():
                        continue
                    overlap = np.count_nonzero(true & mask) / np.count_nonzero(true | mask)
                    features = confidence_features(given[place], refined.probabilities[place])
                    rows.append((image_id, *features, overlap, float(refined.confidence[place])))
            print(f"{devset.name} {kind}: {len(rows)} masks", flush=True)
    table = np.array(rows)
    held_out = table[:, 0].astype(int) % 2 == 1
    iou, shipped = table[:, 4], table[:, 5]
    inputs = regressors(table[:, 1:4])
    fitted = fit(inputs[~held_out], iou[~held_out])
    print("coefficients:", ", ".join(f"{value:.3f}" for value in fitted))
    for name, confidence in (("fitted here", sigmoid(inputs @ fitted)), ("shipped", shipped)):
        estimate, truth = confidence[held_out], iou[held_out]
        print(
            f"{name}, {held_out.sum()} masks of other images: mean error "
            f"{100 * np.abs(estimate - truth).mean():.1f} points of IoU, rank correlation {ranks(estimate, truth):.2f}"
        )
    bins = np.array_split(np.argsort(shipped[held_out]), _BINS)
    curve = [(shipped[held_out][each].mean(), iou[held_out][each].mean()) for each in bins]
    print("confidence → IoU, in tenths:", "  ".join(f"{x:.2f} → {y:.2f}" for x, y in curve))
    if plot is not None:
        draw(shipped[held_out], iou[held_out], curve, plot)


def sigmoid(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-values))


def fit(inputs: NDArray[np.float64], iou: NDArray[np.float64]) -> NDArray[np.float64]:
    """Newton's method on the cross entropy of shares."""
    weights = np.zeros(inputs.shape[1])
    for _ in range(30):
        estimate = sigmoid(inputs @ weights)
        hessian = inputs.T @ (inputs * (estimate * (1 - estimate))[:, None]) + 1e-6 * np.eye(len(weights))
        weights += np.linalg.solve(hessian, inputs.T @ (iou - estimate))
    return weights


def ranks(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Spearman's correlation."""
    return float(np.corrcoef(a.argsort().argsort(), b.argsort().argsort())[0, 1])


def draw(
    confidence: NDArray[np.float64], iou: NDArray[np.float64], curve: list[tuple[float, float]], file: Path
) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 5), layout="constrained")
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1, label="perfectly calibrated")
    axes.scatter(confidence, iou, s=6, alpha=0.25, color="#0a7f8c", linewidths=0, label="one mask")
    axes.plot(*zip(*curve, strict=True), "o-", color="#c2410c", label="a tenth of the masks")
    axes.set(
        xlabel="confidence",
        ylabel="IoU with the truth",
        xlim=(0.3, 1),
        ylim=(0, 1),
        title="Refined masks of images not fitted to",
    )
    axes.legend(loc="upper left")
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
