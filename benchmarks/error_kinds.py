"""Masks spoilt in ways that training does not simulate: what does the refiner make of them?

    python benchmarks/error_kinds.py --data DEVVAL --weights lite --images 20

Each kind imitates something that hands out masks: other families of detectors, tools, trackers, thresholds. None shares
code with ``training/simulate.py``. All start from the true masks; the random ones are seeded by the instance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import cv2
import numpy as np
from devsets import default_refiner, load_dev_sets, refine_windows
from numpy.typing import NDArray

from transfiner_refine.errors import MaskRefineError
from transfiner_refine.evaluation.matched import matched_scores
from transfiner_refine.evaluation.tables import Table, before_after
from transfiner_refine.refiner import window_of

Mask = NDArray[np.bool_]
Photo = NDArray[np.uint8]
_NEXT = np.ones((3, 3), np.uint8)


def _box(mask: Mask, share: float = 0.0) -> tuple[slice, slice, float]:
    """The mask's box with a margin (a share of its side), as slices, and its side: the root of its area."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    side = math.sqrt((np.ptp(rows) + 1) * (np.ptp(columns) + 1))
    margin = int(share * side)
    down = slice(max(0, rows[0] - margin), rows[-1] + 1 + margin)
    across = slice(max(0, columns[0] - margin), columns[-1] + 1 + margin)
    return down, across, side


def _rays(_: Photo, mask: Mask, __: np.random.Generator) -> Mask:
    """36 rays from the centre, as polar detectors have."""
    y, x = (float(values.mean()) for values in mask.nonzero())
    steps = np.arange(math.hypot(*mask.shape))
    corners = []
    for angle in np.linspace(0, 2 * np.pi, 36, endpoint=False):
        rows = (y + steps * np.sin(angle)).round().astype(int).clip(0, mask.shape[0] - 1)
        columns = (x + steps * np.cos(angle)).round().astype(int).clip(0, mask.shape[1] - 1)
        length = steps[mask[rows, columns]].max(initial=1.0)
        corners.append((x + length * np.cos(angle), y + length * np.sin(angle)))
    return _filled(mask, np.round(corners).astype(np.int32))


def _hull(_: Photo, mask: Mask, __: np.random.Generator) -> Mask:
    """The convex hull, as a quick hand draws it."""
    return _filled(mask, cv2.convexHull(np.argwhere(mask)[:, ::-1].astype(np.int32)))


def _filled(like: Mask, polygon: NDArray[np.int32]) -> Mask:
    return cv2.fillPoly(np.zeros(like.shape, np.uint8), [polygon], 1).astype(bool)


def _ellipse(_: Photo, mask: Mask, __: np.random.Generator) -> Mask:
    """The ellipse with the mask's moments, as a tracker's state."""
    y, x = mask.nonzero()
    widths, axes = np.linalg.eigh(np.cov(np.stack((x, y))))
    angle = math.degrees(math.atan2(axes[1, 1], axes[0, 1]))
    half = (int(2 * math.sqrt(widths[1])), int(2 * math.sqrt(widths[0])))
    out = np.zeros(mask.shape, np.uint8)
    return cv2.ellipse(out, (int(x.mean()), int(y.mean())), half, angle, 0, 360, 1, -1).astype(bool)


def _blurred(_: Photo, mask: Mask, __: np.random.Generator) -> Mask:
    """Strong smoothing: what is thin has gone."""
    blurred: NDArray[np.float32] = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 0.08 * _box(mask)[2])
    return blurred > 0.5


def _patches(_: Photo, mask: Mask, __: np.random.Generator) -> Mask:
    """Square patches of a fourteenth of the box, as transformers label them."""
    size = max(4, int(_box(mask)[2] / 14))
    height, width = mask.shape
    grid = (max(1, width // size), max(1, height // size))
    shares = cv2.resize(mask.astype(np.float32), grid, interpolation=cv2.INTER_AREA)
    labels = (shares > 0.4).astype(np.uint8)
    return cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST).astype(bool)


def _few_waves(_: Photo, mask: Mask, rng: np.random.Generator) -> Mask:
    """Eight by eight noisy cosine coefficients: a mask from a short code, or from few prototypes."""
    down, across, _ = _box(mask, 0.1)
    crop = mask[down, across]
    code = cv2.dct(cv2.resize(crop.astype(np.float32), (64, 64), interpolation=cv2.INTER_AREA))
    kept = np.zeros_like(code)
    kept[:8, :8] = code[:8, :8] + 0.6 * rng.standard_normal((8, 8))
    out = np.zeros_like(mask)
    out[down, across] = cv2.resize(cv2.idct(kept), crop.shape[::-1]) > 0.5
    return out


def _other_frame(_: Photo, mask: Mask, __: np.random.Generator) -> Mask:
    """The mask of another moment: turned by 7°, grown by 6 %, moved by 4 %."""
    y, x = (float(values.mean()) for values in mask.nonzero())
    matrix = cv2.getRotationMatrix2D((x, y), 7, 1.06)
    matrix[:, 2] += 0.04 * _box(mask)[2]
    moved = cv2.warpAffine(mask.view(np.uint8), matrix, mask.shape[::-1], flags=cv2.INTER_NEAREST)
    return moved.astype(bool)


def _noise(_: Photo, mask: Mask, rng: np.random.Generator) -> Mask:
    """Specks on both sides of the outline, fewer the deeper: a noisy score cut at a threshold."""
    down, across, side = _box(mask, 0.1)
    inside = cv2.distanceTransform(mask.view(np.uint8), cv2.DIST_L2, 3)
    outside = cv2.distanceTransform((~mask).view(np.uint8), cv2.DIST_L2, 3)
    grid = tuple(max(8, int(24 * length / side)) for length in mask.shape)
    noise = cv2.resize(rng.standard_normal(grid).astype(np.float32), mask.shape[::-1])
    out = np.zeros_like(mask)
    out[down, across] = (14 * (inside - outside) / side + 1.1 * noise > 0)[down, across]
    return out


def _salt(_: Photo, mask: Mask, rng: np.random.Generator) -> Mask:
    """Single pixels flipped, one in twelve, in the object and around it."""
    near = cv2.dilate(mask.view(np.uint8), _NEXT, iterations=max(1, int(0.1 * _box(mask)[2]))).astype(bool)
    return mask ^ (near & (rng.random(mask.shape) < 0.08))


def _discs(mask: Mask, centres: Sequence[tuple[int, int]], radius: int, value: bool) -> Mask:
    out = mask.astype(np.uint8)
    for row, column in centres:
        cv2.circle(out, (int(column), int(row)), max(2, radius), int(value), -1)
    return out.astype(bool)


def _holes(_: Photo, mask: Mask, rng: np.random.Generator) -> Mask:
    """Six round holes in a mask that is right otherwise."""
    cells = rng.choice(np.argwhere(mask), 6)
    return _discs(mask, [tuple(cell) for cell in cells], int(0.05 * _box(mask)[2]), False)


def _islands(_: Photo, mask: Mask, rng: np.random.Generator) -> Mask:
    """Two round islands beside a mask that is right otherwise."""
    y, x = (float(values.mean()) for values in mask.nonzero())
    side = _box(mask)[2]
    centres = []
    for _ in range(2):
        column = x + rng.choice((-1, 1)) * rng.uniform(0.8, 1.3) * side
        row = y + rng.uniform(-0.6, 0.6) * side
        centres.append((int(np.clip(row, 0, mask.shape[0] - 1)), int(np.clip(column, 0, mask.shape[1] - 1))))
    return _discs(mask, centres, int(0.1 * side), True)


def _bumps(_: Photo, mask: Mask, rng: np.random.Generator) -> Mask:
    """Three round bumps or bites at the outline of a mask that is right otherwise."""
    edge = np.argwhere(mask & (cv2.erode(mask.view(np.uint8), _NEXT) == 0))
    out = mask
    for cell in rng.choice(edge, 3):
        out = _discs(out, [tuple(cell)], int(0.05 * _box(mask)[2]), bool(rng.random() < 0.5))
    return out


def _split(_: Photo, mask: Mask, __: np.random.Generator) -> Mask:
    """Cut in two by an upright bar, as by a pole in front."""
    out, column = mask.copy(), int(np.median(mask.nonzero()[1]))
    half = max(1, int(0.03 * _box(mask)[2]))
    out[:, max(0, column - half) : column + half + 1] = False
    return out


def _colours(photo: Photo, mask: Mask, _: np.random.Generator) -> Mask:
    """Clusters of colour and place vote, as with superpixels."""
    down, across, _ = _box(mask, 0.15)
    size = (96, 96)
    pixels = cv2.resize(photo[down, across], size, interpolation=cv2.INTER_AREA).astype(np.float32)
    shares = cv2.resize(mask[down, across].astype(np.float32), size, interpolation=cv2.INTER_AREA).ravel()
    y, x = np.mgrid[:96, :96].astype(np.float32)
    cv2.setRNGSeed(0)
    until = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 10, 1.0)
    features = np.dstack((pixels, 1.5 * y, 1.5 * x)).reshape(-1, 5)
    _, cluster, _ = cv2.kmeans(features, 60, np.empty(0, np.int32), until, 1, cv2.KMEANS_PP_CENTERS)
    cluster = cluster.ravel()
    vote = np.bincount(cluster, shares, 60) / np.maximum(np.bincount(cluster, minlength=60), 1)
    labels = (vote[cluster] > 0.5).reshape(size).astype(np.float32)
    out = np.zeros_like(mask)
    out[down, across] = cv2.resize(labels, out[down, across].shape[::-1]) > 0.5
    return out


KINDS: dict[str, Callable[[Photo, Mask, np.random.Generator], Mask]] = {
    "rays": _rays,
    "hull": _hull,
    "ellipse": _ellipse,
    "blurred": _blurred,
    "patches": _patches,
    "few waves": _few_waves,
    "other frame": _other_frame,
    "noise": _noise,
    "salt": _salt,
    "colours": _colours,
    "split": _split,
    "holes": _holes,
    "islands": _islands,
    "bumps": _bumps,
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--weights", default="lite", show_default=True, help="Name of shipped weights, or path.")
@click.option(
    "--yardstick", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="As devval.py."
)
@click.option("--kind", "kinds", type=click.Choice(list(KINDS)), multiple=True, help="Only this kind.")
@click.option("--images", type=click.IntRange(1), help="Only so many images of each set, evenly spaced.")
@click.option("--device", default="auto", show_default=True)
def main(
    data: Path, weights: str, yardstick: Path | None, kinds: Sequence[str], images: int | None, device: str
) -> None:
    """Spoil dev-val's true masks, refine them, and score both."""
    rows, totals = [], []
    try:
        dev_sets = list(load_dev_sets(data, (), images))
        refine, headline = default_refiner(weights, yardstick, device)
    except MaskRefineError as error:
        raise click.ClickException(str(error)) from error
    for kind in kinds or KINDS:
        for dev_set in dev_sets:
            image_ids, truth = dev_set.true_masks()
            spoilt = [
                window_of(KINDS[kind](dev_set.image(image_id), mask.paste(), np.random.default_rng(number)))
                for number, (image_id, mask) in enumerate(zip(image_ids, truth, strict=True))
            ]
            after, _ = refine_windows(dev_set, f"{dev_set.name} {kind}", image_ids, spoilt, refine)
            scores = matched_scores(truth, spoilt, after, images=image_ids)
            summary = scores.summary["all"]
            assert summary.after is not None
            if not summary.count:
                continue
            values = [
                summary.before.iou,
                summary.after.iou,
                summary.before.boundary_iou,
                summary.after.boundary_iou,
            ]
            totals.append([*values, summary.worse])
            rows.append([kind, dev_set.name, str(summary.count), *_cells(totals[-1])])
    rows.append(["mean", "", "", *_cells(np.mean(totals, 0).tolist())])
    table = Table("Other kinds of error", ["kind", "set", "n", "IoU", "boundary IoU", "worse"], rows)
    click.echo(f"{headline}\n\n{table.text()}")


def _cells(values: Sequence[float]) -> list[str]:
    iou, refined_iou, boundary, refined_boundary, worse = values
    return [before_after(iou, refined_iou), before_after(boundary, refined_boundary), f"{100 * worse:.0f} %"]


if __name__ == "__main__":
    main()
