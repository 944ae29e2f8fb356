"""Training data: reading folders, numbered samples."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from transfiner_refine.errors import InputError
from transfiner_refine.masks import Mask, MaskWindow
from transfiner_refine.model.config import RefinerConfig
from transfiner_refine.training import open_dataset
from transfiner_refine.training.datasets import TrainingInstance, TrainingSet, load_training_set
from transfiner_refine.training.samples import Augmentation, RefinementSamples

CONFIG = RefinerConfig()
PLAIN = Augmentation(paste=0, backdrop=0, occlude=0, shorten=0, join=0, follow_image=0, warp=0, degrade=0)


def test_a_folder_is_read_with_its_detectors_masks(dataset: Path) -> None:
    data = open_dataset(dataset, 2.0)
    assert data.name == "blobs"
    assert data.weight == 2.0
    assert len(data.images) == len(data.instances) == 6
    assert all(len(instance.coarse) == 1 for instance in data.instances)
    assert data.photo(0).shape == (160, 200, 3)


def test_sample_number_i_is_always_the_same(dataset: Path) -> None:
    first = RefinementSamples([open_dataset(dataset)], CONFIG, count=20, seed=3)
    second = RefinementSamples([open_dataset(dataset)], CONFIG, count=20, seed=3)
    _ = second[0]  # what was drawn before must not matter
    for a, b in zip(first[7], second[7], strict=True):
        assert torch.equal(a, b)
    other = RefinementSamples([open_dataset(dataset)], CONFIG, count=20, seed=4)
    assert not torch.equal(first[7][0], other[7][0])


def test_pixels_and_masks_stay_aligned_through_every_augmentation(dataset: Path) -> None:
    augmentation = replace(PLAIN, warp=1.0)
    samples = RefinementSamples([open_dataset(dataset)], CONFIG, count=30, seed=0, augmentation=augmentation)
    for i in range(12):
        pixels, masks, _ = samples[i]
        truth = masks[1] > 250
        bright = pixels.float().mean(0) > 125  # the blobs are bright, the ground is dark
        assert (truth & bright).sum() > 0.97 * truth.sum()
        assert (~truth & bright & (masks[1] < 5)).sum() < 0.03 * truth.sum()


def test_sets_are_drawn_by_weight(dataset: Path) -> None:
    light, heavy = open_dataset(dataset, 1.0), replace(open_dataset(dataset, 9.0), name="heavy")
    samples = RefinementSamples([light, heavy], CONFIG, count=10, seed=0)
    rng = np.random.default_rng(0)
    drawn = [samples._instance(rng)[0].name for _ in range(400)]
    assert 0.84 < drawn.count("heavy") / 400 < 0.95


def test_augmentation_is_milder_at_the_end_of_the_run() -> None:
    augmentation = Augmentation(warp=0.5, finale=0.25)
    assert augmentation.at(0.0) == augmentation.at(0.74) == augmentation
    end = augmentation.at(0.76)
    assert (end.warp, end.real_coarse) == (0.25, augmentation.real_coarse)
    assert Augmentation(finale=0.0).at(0.999) == Augmentation(finale=0.0)


def test_small_instances_are_drawn_less_often(dataset: Path) -> None:
    data = open_dataset(dataset)
    small = replace(data.instances[0], truth=rectangle(0, 0, 10, 10))
    data.instances[:] = [small, *data.instances[1:3]]
    samples = RefinementSamples([data], CONFIG, count=10, seed=0)
    rng = np.random.default_rng(0)
    drawn = [samples._instance(rng)[1] is small for _ in range(1000)]
    assert 0.02 < np.mean(drawn) < 0.25  # a third if all were alike


def areas(data: TrainingSet, augmentation: Augmentation) -> tuple[float, float]:
    """Mean area of the true and of the coarse masks that are drawn, pixels."""
    samples = RefinementSamples([data], CONFIG, count=1, seed=0, augmentation=augmentation)
    rng = np.random.default_rng(0)
    drawn = [samples._draw(augmentation, rng)[1:] for _ in range(60)]
    return float(np.mean([truth.area for truth, _ in drawn])), float(
        np.mean([coarse.area for _, coarse in drawn])
    )


def rectangle(x: int, y: int, width: int, height: int) -> Mask:
    return Mask.from_window(MaskWindow(np.ones((height, width), bool), x, y, (160, 200)))


def test_neighbours_count_as_one_object_in_both_masks_and_distant_ones_do_not(dataset: Path) -> None:
    data = open_dataset(dataset)
    alone, left, right = rectangle(150, 100, 40, 40), rectangle(20, 20, 40, 40), rectangle(60, 20, 40, 40)
    data.instances[:] = [TrainingInstance(0, truth) for truth in (alone, left, right)]
    joined, apart = (areas(data, replace(PLAIN, join=join)) for join in (1.0, 0.0))
    # the one on its own is a third of the draws and stays as it is
    assert joined[1] / apart[1] == pytest.approx(5 / 3, rel=0.2)
    assert joined[0] / apart[0] == pytest.approx(5 / 3, rel=0.2)


def test_a_shortened_object_ends_early_in_both_masks(dataset: Path) -> None:
    data = open_dataset(dataset)
    data.instances[:] = [TrainingInstance(0, rectangle(60, 40, 60, 60))]
    short, whole = (areas(data, replace(PLAIN, shorten=shorten)) for shorten in (1.0, 0.0))
    for mask in (0, 1):
        assert 0.6 < short[mask] / whole[mask] < 0.95


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "not valid JSON"),
        ("[]", "is a list, not an annotation file"),
        (json.dumps({"images": [], "annotations": [], "categories": []}), "no usable annotation"),
    ],
)
def test_annotations_that_cannot_be_used_are_refused_by_name(
    content: str, reason: str, tmp_path: Path
) -> None:
    file = tmp_path / "annotations.json"
    file.write_text(content)
    with pytest.raises(InputError, match=reason) as error:
        load_training_set(tmp_path, file)
    assert str(file) in str(error.value)


def test_a_folder_without_annotations_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected images/, annotations.json and optional coarse\*.json"):
        open_dataset(tmp_path)


def test_missing_photos_are_all_named_before_the_first_step(dataset: Path, tmp_path: Path) -> None:
    images = shutil.copytree(dataset / "images", tmp_path / "images")
    for name in ("2.png", "4.png"):
        (images / name).unlink()
    with pytest.raises(
        InputError, match=r"2 entries cannot be used: image '2.png' is not there .*image '4.png' is not"
    ):
        load_training_set(images, dataset / "annotations.json")


def test_images_that_do_not_fit_are_named_before_the_first_step_and_turned_ones_are_turned(
    dataset: Path, tmp_path: Path
) -> None:
    images = shutil.copytree(dataset / "images", tmp_path / "images")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side, as a phone does
    upright = Image.open(images / "2.png")
    upright.transpose(Image.Transpose.ROTATE_90).save(images / "2.jpg", exif=exif, quality=95)
    (images / "2.png").unlink()
    content = json.loads((dataset / "annotations.json").read_text())
    content["images"][1]["file_name"] = "2.jpg"
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    data = load_training_set(images, tmp_path / "annotations.json")
    assert data.photo(1).shape == (160, 200, 3)
    difference = data.photo(1).astype(int) - open_dataset(dataset).photo(1)
    assert abs(difference).mean() < 12  # of noise, which JPEG blurs
    Image.new("RGB", (100, 80)).save(images / "3.png")
    (images / "5.png").write_bytes(b"no image")
    with pytest.raises(
        InputError, match=r"2 entries cannot be used: the image is 80×100 .*5\.png: is no image"
    ):
        load_training_set(images, tmp_path / "annotations.json")


@pytest.mark.parametrize(
    ("counts", "reason"),
    [("9", "add up to 9 pixels"), ("n8O", "negative"), (None, "counts are missing"), ([10**12], "run 0")],
)
@pytest.mark.parametrize("name", ["annotations.json", "coarse_detector.json"])
def test_a_damaged_mask_is_named_and_never_reaches_pycocotools(
    dataset: Path, tmp_path: Path, name: str, counts: object, reason: str
) -> None:
    for file in ("annotations.json", "coarse_detector.json"):
        content = json.loads((dataset / file).read_text())
        if file == name:
            records = content if isinstance(content, list) else content["annotations"]
            records[2]["segmentation"]["counts"] = counts
        (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"{name}: (annotation id 3|record 2): .*{reason}"):
        load_training_set(
            dataset / "images", tmp_path / "annotations.json", [tmp_path / "coarse_detector.json"]
        )
