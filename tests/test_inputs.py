"""What the Python API takes: every usual kind of image and mask gives the same result as the plain arrays."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import transfiner_refine
from transfiner_refine import Refiner, load_refiner
from transfiner_refine.errors import InputError

CENTRES = ((40, 44), (66, 92))


@pytest.fixture(scope="module")
def refiner() -> Any:
    return load_refiner(device="cpu")


@pytest.fixture(scope="module")
def scene() -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Two bright discs on a dark, textured ground, and their masks, a few pixels off: [96, 128, 3], [2, 96, 128]."""
    noise = np.random.default_rng(0).normal(0, 6, (96, 128, 3))
    image, masks = 60 + noise, np.zeros((2, 96, 128), np.uint8)
    for mask, (y, x), colour in zip(masks, CENTRES, ((220, 60, 40), (60, 200, 230)), strict=True):
        true = cv2.circle(np.zeros((96, 128), np.uint8), (x, y), 22, 1, -1).astype(bool)
        image[true] = np.array(colour) + noise[true]
        cv2.circle(mask, (x + 4, y - 3), 21, 1, -1)
    return image.clip(0, 255).astype(np.uint8), masks.astype(bool)


@pytest.fixture(scope="module")
def refined(refiner: Any, scene: Any) -> NDArray[np.bool_]:
    result = refiner.refine(*scene)
    assert not np.array_equal(result, scene[1])
    return np.asarray(result)


@pytest.mark.parametrize(
    "given",
    [
        lambda image: Image.fromarray(image),
        lambda image: np.dstack((image, np.full(image.shape[:2], 7, np.uint8))),  # RGBA
        lambda image: image.transpose(2, 0, 1),
        lambda image: torch.from_numpy(image).permute(2, 0, 1),
        lambda image: image / 255.0,
        lambda image: torch.from_numpy(image / 255.0).float().requires_grad_(),
        lambda image: image.astype(np.uint16) * 257,
        lambda image: image.astype(np.int64),
    ],
)
def test_images_of_every_kind_are_one_image(
    refiner: Any, scene: Any, refined: Any, given: Callable[[Any], Any]
) -> None:
    assert np.array_equal(refiner.refine(given(scene[0]), scene[1]), refined)


def test_blue_may_come_first(refiner: Any, scene: Any, refined: Any) -> None:
    assert np.array_equal(refiner.refine(scene[0][..., ::-1], scene[1], bgr=True), refined)


@pytest.mark.parametrize(
    "grey", [lambda grey: grey, lambda grey: grey[..., None], lambda grey: Image.fromarray(grey)]
)
def test_a_grey_image_has_three_equal_channels(refiner: Any, scene: Any, grey: Callable[[Any], Any]) -> None:
    one = scene[0].mean(axis=2).astype(np.uint8)
    expected = refiner.refine(np.dstack((one, one, one)), scene[1])
    assert np.array_equal(refiner.refine(grey(one), scene[1]), expected)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float64])
@pytest.mark.parametrize("white", [1, 255])
def test_masks_of_every_type_are_one_mask(
    refiner: Any, scene: Any, refined: Any, dtype: Any, white: int
) -> None:
    masks = scene[1].astype(dtype) * (white if dtype is not bool else True)
    assert np.array_equal(refiner.refine(scene[0], masks), refined)
    assert np.array_equal(refiner(scene[0], masks), refined)


def test_the_result_has_the_shape_of_the_masks(refiner: Any, scene: Any, refined: Any) -> None:
    image, masks = scene
    assert np.array_equal(refiner.refine(image, masks[0]), refined[0])
    assert np.array_equal(refiner.refine(image, masks[:, None]), refined[:, None])
    assert np.array_equal(refiner.refine(image, list(masks)), refined)
    assert np.array_equal(refiner.refine(image, Image.fromarray(masks[1])), refined[1])


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int64, torch.float32, torch.bfloat16, torch.float16]
)
def test_tensors_give_tensors(refiner: Any, scene: Any, refined: Any, dtype: torch.dtype) -> None:
    masks = torch.from_numpy(scene[1]).to(dtype)
    if dtype.is_floating_point:
        masks.requires_grad_()
    result = refiner.refine(torch.from_numpy(scene[0]), masks)
    assert isinstance(result, torch.Tensor)
    assert result.dtype == torch.bool
    assert np.array_equal(result.numpy(), refined)
    soft = refiner.refine(torch.from_numpy(scene[0]), masks[0], soft=True)
    assert (soft.shape, soft.dtype) == ((96, 128), torch.float32)


def test_eight_bit_ramps_are_soft_masks(refiner: Any, scene: Any) -> None:
    soft = cv2.GaussianBlur(scene[1][0].astype(np.float32), (0, 0), 5)
    shades = np.rint(soft * 255).astype(np.uint8)
    expected = refiner.refine(scene[0], shades.astype(np.float32) / 255)
    assert np.array_equal(refiner.refine(scene[0], shades), expected)


def test_files_are_read_as_the_command_line_reads_them(
    refiner: Any, scene: Any, refined: Any, tmp_path: Path
) -> None:
    image, masks = scene
    Image.fromarray(image).save(tmp_path / "image.png")
    Image.fromarray(masks[0].astype(np.uint8) * 255).save(tmp_path / "mask.png")
    cut_out = np.dstack((image, masks[1].astype(np.uint8) * 255))
    Image.fromarray(cut_out).save(tmp_path / "cut.png")
    ids = (masks[0] * 1 + masks[1] * 2).astype(np.uint8)
    Image.fromarray(ids).save(tmp_path / "ids.png")
    assert np.array_equal(refiner.refine(tmp_path / "image.png", tmp_path / "mask.png"), refined[0])
    assert np.array_equal(refiner.refine(str(tmp_path / "image.png"), str(tmp_path / "cut.png")), refined[1])
    assert np.array_equal(refiner.refine(tmp_path / "image.png", tmp_path / "ids.png"), refined)
    with pytest.raises(InputError, match=r"none\.png: there is no such file"):
        refiner.refine(image, tmp_path / "none.png")
    with pytest.raises(InputError, match=r"image\.png: is in colours, which no mask is"):
        refiner.refine(image, tmp_path / "image.png")


def test_several_images_go_in_one_call(refiner: Any, scene: Any, refined: Any) -> None:
    image, masks = scene
    calls: list[tuple[int, int]] = []
    both = refiner.refine(
        [image, image[:, ::-1]],
        [masks, masks[0, :, ::-1]],
        progress=lambda done, total: calls.append((done, total)),
    )
    assert np.array_equal(both[0], refined)
    assert np.array_equal(both[1], refiner.refine(image[:, ::-1], masks[0, :, ::-1]))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    with pytest.raises(InputError, match="2 images with masks for 1; give a list with the masks of each"):
        refiner.refine([image, image], [masks])
    with pytest.raises(InputError, match="image 1: masks of 2×2 pixels"):
        refiner.refine([image, image], [masks, np.ones((2, 2), bool)])


def test_details_say_how_much_changed_and_where_masks_lie(refiner: Any, scene: Any, refined: Any) -> None:
    image, masks = scene
    found = refiner.refine_detailed(image, np.concatenate((masks, np.zeros_like(masks[:1]))))
    assert np.array_equal(found.masks[:2], refined)
    for mask, given, change, box, polygons in zip(
        refined, masks, found.change, found.boxes, found.polygons, strict=False
    ):
        overlap = np.count_nonzero(mask & given) / np.count_nonzero(mask | given)
        assert change == pytest.approx(1 - overlap, abs=1e-6)
        ys, xs = np.nonzero(mask)
        assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        drawn = cv2.fillPoly(np.zeros((96, 128), np.uint8), [p.astype(np.int32) for p in polygons], 1)
        assert np.count_nonzero((drawn > 0) & mask) == mask.sum()
    assert ((found.confidence[:2] > 0.5) & (found.confidence[:2] <= 1)).all()
    assert (found.confidence[2], found.change[2], found.boxes[2].tolist()) == (0, 0, [0, 0, 0, 0])
    assert found.polygons[2] == []


def test_a_shifted_mask_of_nothing_is_trusted_less(refiner: Any, scene: Any) -> None:
    image, masks = scene
    nothing = np.roll(masks[0], (30, 60), (0, 1))
    good, bad = refiner.refine_detailed(image, np.stack((masks[0], nothing))).confidence
    assert good > bad


def test_devices_and_precisions_may_be_pytorchs_own() -> None:
    loaded = load_refiner(device=torch.device("cpu"), precision=torch.bfloat16)
    assert (loaded.device, loaded.engine, loaded.precision) == ("cpu", "torch", "bf16")


def test_settings_are_keywords(scene: Any) -> None:
    wide = load_refiner(device="cpu", roi_margin=0.8, roi_context=0.8)
    assert wide.engine == "onnx"
    assert not np.array_equal(
        wide.refine(*scene, soft=True), load_refiner(device="cpu").refine(*scene, soft=True)
    )
    assert load_refiner(device="cpu", trust=5.0).engine == "torch"
    with pytest.raises(InputError, match="there is no setting 'margin'; give one of roi_margin, "):
        load_refiner(margin=2)
    with pytest.raises(InputError, match=r"the setting trust is -1; expected a number, 0\.0 to 1000\.0"):
        load_refiner(trust=-1)
    with pytest.raises(InputError, match='trust: held by the exported programs; give engine="torch"'):
        load_refiner(trust=1.0, engine="onnx")


def test_a_refiner_shows_what_it_is(refiner: Any, caplog: pytest.LogCaptureFixture) -> None:
    shown = repr(refiner)
    assert shown.startswith("Refiner(weights='lite', device='cpu', engine='onnx', precision=")
    with caplog.at_level(logging.INFO, "transfiner_refine"):
        assert isinstance(load_refiner(device="cpu"), Refiner)
    assert f"loaded {shown}" in caplog.text


def test_everything_public_is_at_the_top() -> None:
    for name in transfiner_refine.__all__:
        assert getattr(transfiner_refine, name) is not None
        assert name in dir(transfiner_refine)
