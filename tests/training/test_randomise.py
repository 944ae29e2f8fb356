"""Made-up colours, textures and shapes: the mask says where the edges are, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transfiner_refine.masks import MaskWindow
from transfiner_refine.model.config import RefinerConfig
from transfiner_refine.training import open_dataset
from transfiner_refine.training.randomise import recolour, rescale, retexture, synthetic_sample
from transfiner_refine.training.samples import Augmentation, RefinementSamples

SEEDS = st.integers(0, 2**32 - 1)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_a_synthetic_object_is_neither_a_speck_nor_the_whole_image(seed: int) -> None:
    image, mask = synthetic_sample(np.random.default_rng(seed))
    assert image.shape == (*mask.image_size, 3)
    assert image.dtype == np.uint8
    assert 0.02 * image[..., 0].size <= mask.area <= 0.5 * image[..., 0].size
    again, _ = synthetic_sample(np.random.default_rng(seed))
    assert np.array_equal(image, again)


def test_synthetic_outlines_are_edges_of_the_image() -> None:
    stronger = []
    for seed in range(20):
        image, window = synthetic_sample(np.random.default_rng(seed))
        mask = window.paste().astype(np.uint8)
        smooth = cv2.GaussianBlur(image, (0, 0), 1.5).astype(np.float32)
        edges = np.hypot(*(cv2.Sobel(smooth, -1, *way) for way in ((1, 0), (0, 1)))).max(2)
        outline = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
        stronger.append(edges[outline].mean() > edges[~outline].mean())
    assert np.mean(stronger) > 0.8


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_another_texture_lies_on_one_side_of_the_outline(seed: int) -> None:
    image = np.full((60, 70, 3), 128, np.uint8)
    truth = MaskWindow(np.ones((30, 30), bool), 20, 15, (60, 70))
    before = image.copy()
    changed = (retexture(image, truth, np.random.default_rng(seed)) != image).any(2)
    assert np.array_equal(image, before)
    inner, outer = changed[20:40, 25:45], np.concatenate((changed[:10], changed[-10:]))
    assert not (inner.any() and outer.any())


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, height=st.integers(5, 80), width=st.integers(5, 80))
def test_other_colours_and_scales_keep_the_shape_of_the_image(seed: int, height: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    before = image.copy()
    for change in (recolour, rescale):
        changed = change(image, rng)
        assert changed.shape == image.shape
        assert changed.dtype == np.uint8
    assert np.array_equal(image, before)


@pytest.mark.parametrize("name", ["synthetic", "retexture", "leak", "recolour", "rescale"])
def test_randomised_samples_have_masks_and_the_recipe_has_none(name: str, dataset: Path) -> None:
    assert getattr(Augmentation(), name) == 0
    off = dict.fromkeys(("paste", "backdrop", "occlude", "shorten", "join", "warp", "degrade"), 0.0)
    augmentation = replace(Augmentation(**off), **{name: 1.0})
    samples = RefinementSamples(
        [open_dataset(dataset)], RefinerConfig(), count=4, seed=0, augmentation=augmentation
    )
    for i in range(4):
        pixels, masks, side = samples[i]
        assert pixels.shape == (3, 448, 448)
        assert pixels.dtype == torch.uint8
        assert bool((masks > 200).flatten(1).any(1).all())
        assert side > 0
