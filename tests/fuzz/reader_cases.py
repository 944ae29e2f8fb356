"""Whatever reaches pycocotools, in refining, evaluation and training, has been found sound before."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from coco_cases import annotations, document_case, records_case, results, text_case
from hostile_masks import hostile_segmentation, pick
from law import check_message, require
from pycocotools import mask as coco_mask
from scene import draw_bitmap, draw_scene, rle, runs, side, write_photos

from transfiner_refine.errors import InputError, MaskRefineError
from transfiner_refine.evaluation.evaluate import evaluate
from transfiner_refine.formats import Mask, mask_from_segmentation
from transfiner_refine.formats.segmentation import masks_from_segmentations
from transfiner_refine.training.datasets import load_training_set

_MOST_PIXELS = 10_000_000  # of a mask that pycocotools is asked to decode


def segmentation_trial(folder: Path, rng: np.random.Generator) -> str:  # noqa: ARG001  no files
    """Ten segmentations: what is taken means to pycocotools the same pixels, however it was spelt."""
    taken = 0
    for _ in range(10):
        bitmap = draw_bitmap(rng, (side(rng, 60), side(rng, 60)))
        segmentation = _segmentation(rng, bitmap)
        try:
            mask = mask_from_segmentation(segmentation, lambda size=bitmap.shape: size)
        except InputError as error:
            check_message(str(error))
            (together,) = masks_from_segmentations([segmentation], lambda size=bitmap.shape: size)
            require(isinstance(together, InputError), f"{segmentation!r} is taken with others")
            continue
        taken += 1
        if mask.size[0] * mask.size[1] > _MOST_PIXELS:  # pycocotools would want a byte for each
            continue
        found = coco_mask.decode({"size": list(mask.size), "counts": mask.counts}).astype(bool)
        require(np.array_equal(mask.decode().paste(), found), f"pycocotools reads {segmentation!r} otherwise")
        require(Mask.from_window(mask.decode()).runs.sum() == found.size, "the encoding is not whole")
        require(mask.area == int(found.sum()), "the area is another")
        sound = {"size": list(mask.size), "counts": mask.counts}
        _check_together(segmentation, sound, mask, bitmap.shape)
        require(coco_mask.iou([sound], [sound], [0])[0, 0] == (mask.area > 0), "a mask is not like itself")
        require(
            coco_mask.merge([sound, sound])["counts"].decode() == mask.counts, "merged with itself, another"
        )
        if isinstance(segmentation, dict):
            direct = {**segmentation, "size": list(mask.size)}
            if isinstance(direct["counts"], list):
                direct = coco_mask.frPyObjects(direct, *direct["size"])
            require(
                np.array_equal(coco_mask.decode(direct).astype(bool), found),
                "spelt otherwise, read otherwise",
            )
        elif segmentation:
            drawn = coco_mask.merge(coco_mask.frPyObjects(segmentation, *bitmap.shape))
            require(np.array_equal(coco_mask.decode(drawn).astype(bool), found), "polygons drawn otherwise")
    return "taken" if taken else "refused"


def _segmentation(rng: np.random.Generator, bitmap: Any) -> Any:
    kind = int(rng.integers(5))
    if kind < 3:
        return hostile_segmentation(rng, bitmap)[1]
    if kind == 3:  # runs that are nearly right
        lengths = np.array(runs(bitmap))
        i, j = rng.integers(len(lengths), size=2)
        shift = int(rng.integers(-9, 10))
        lengths[i] += shift
        lengths[j] -= shift
        return {"size": list(bitmap.shape), "counts": lengths.tolist()}
    text = rle(bitmap)["counts"]
    i, j = sorted(rng.integers(len(text) + 1, size=2).tolist())
    text = pick(rng, [text[i:] + text[:i], text[:i] + text[j:], text[:j] + text[i:]])
    return {"size": list(bitmap.shape), "counts": text}


def _check_together(segmentation: Any, sound: Any, mask: Mask, size: tuple[int, int]) -> None:
    """Parsed with others, a mask is the same."""
    other = {"size": [2, 3], "counts": "123"}
    together = masks_from_segmentations([sound, segmentation, other], lambda: size)
    require(together[0] == mask, f"{sound!r} is another mask beside others")
    require(together[1] == mask, f"{segmentation!r} is another mask beside others")
    require(together[2] == Mask((2, 3), "123"), f"another mask is changed by {segmentation!r}")


def evaluation_trial(folder: Path, rng: np.random.Generator) -> str:
    """Hostile results and annotations are scored or refused."""
    truth, hostile = _files(folder, rng)
    pair = pick(rng, [(truth, hostile), (truth, hostile), (hostile, hostile), (hostile, truth)])
    return _scored_or_refused(lambda: evaluate(*pair, before=pick(rng, [None, hostile, truth])))


def training_trial(folder: Path, rng: np.random.Generator) -> str:
    """Hostile annotations and coarse masks become training instances or are refused."""
    truth, hostile = _files(folder, rng)
    images = folder / "images"

    def load() -> None:
        first, second = pick(rng, [(hostile, []), (hostile, [hostile]), (truth, [hostile])])
        loaded = load_training_set(images, first, second)
        for instance in loaded.instances:
            for mask in (instance.truth, *instance.coarse):
                require(mask.decode().paste().shape == mask.size, "a mask of another size")
            try:
                loaded.photo(instance.image)
            except InputError as error:
                check_message(str(error))

    return _scored_or_refused(load)


def _scored_or_refused(work: Callable[[], object]) -> str:
    try:
        work()
    except MaskRefineError as error:
        check_message(str(error))
        return "refused"
    return "taken"


def _files(folder: Path, rng: np.random.Generator) -> tuple[Path, Path]:
    """A sound annotation file with large masks, and a hostile file of any kind."""
    make: Callable[..., Any] = pick(rng, [records_case, document_case, text_case])
    hostile: Path = make(folder, rng).masks
    photos = draw_scene(rng, largest=60)
    write_photos(photos, folder / "images", rng)
    (folder / "truth.json").write_text(json.dumps(annotations(results(photos, rng)[0], photos)))
    if rng.random() < 0.5:  # so that what comes after the first check is reached too
        content = json.loads((folder / "truth.json").read_text())
        listed = content["annotations"]
        index = int(rng.integers(len(listed)))
        bitmap = draw_bitmap(rng, tuple(listed[index]["segmentation"]["size"]))
        listed[index]["segmentation"] = hostile_segmentation(rng, bitmap)[1]
        hostile = folder / "hostile.json"
        hostile.write_text(json.dumps(pick(rng, [content, listed])))
    return folder / "truth.json", hostile
