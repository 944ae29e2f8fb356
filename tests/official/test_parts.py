"""The network's parts against other implementations of the same mathematics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from detector import decode_boxes
from faithful import prepare_batch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.ops import FrozenBatchNorm2d
from writing import blur, clip_boxes, paste_masks, write_back

from transfiner_refine.official import Architecture, OfficialNetwork, Preparation, load_official_network
from transfiner_refine.official.backbones import ResNet, Swin
from transfiner_refine.official.checkpoint import fill, release_names
from transfiner_refine.official.features import axis_embedding, network_size
from transfiner_refine.official.network import NodeTransformer
from transfiner_refine.official.nodes import select_nodes
from transfiner_refine.official.read import TensorFile

DEFORMABLE = Architecture("resnet", (1, 1, 1, 1), 8, (False, True, True, True), 5, 32, 48, 2)


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


def test_deformable_convolutions_without_offsets_are_plain_ones() -> None:
    deformable = ResNet(DEFORMABLE)
    plain = ResNet(replace(DEFORMABLE, deformable=(False,) * 4))
    state = deformable.state_dict()
    for name, value in state.items():
        if ".offset." in name:
            value.zero_()
    plain.load_state_dict({name: value for name, value in state.items() if ".offset." not in name})
    image = torch.randn(1, 3, 64, 96)
    for ours, theirs in zip(deformable.eval()(image), plain.eval()(image), strict=True):
        close(ours, theirs)


def test_folding_the_normalisation_changes_nothing(
    small: Architecture, make_tensors: Callable[..., dict[str, Tensor]]
) -> None:
    tensors = make_tensors(small)
    plain = OfficialNetwork(small)
    fill(plain, tensors, release_names(plain))
    fused = load_official_network(TensorFile(Path("memory.pth"), "PyTorch checkpoint", tensors))
    assert not any(isinstance(module, FrozenBatchNorm2d) for module in fused.modules())
    image = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        for ours, theirs in zip(fused.backbone(image), plain.eval().backbone(image), strict=True):
            close(ours, theirs, 1e-4)


def test_swin_is_torchvisions_where_both_pad_alike() -> None:
    torch.manual_seed(0)
    depths = (2, 2, 4, 2)
    theirs = SwinTransformer([4, 4], 32, list(depths), [1, 2, 4, 8], [7, 7]).eval()
    ours = Swin(Architecture("swin", depths, 32)).eval()
    for name, value in theirs.features.state_dict().items():
        if name.endswith("bias_table"):
            value.normal_()
    ours.features.load_state_dict(theirs.features.state_dict())
    image = torch.randn(
        1, 3, 232, 256
    )  # windows of 7 do not divide its maps; torchvision shifts no single window
    with torch.inference_mode():
        x = image
        expected = []
        for i, part in enumerate(theirs.features):
            x = part(x)
            if i % 2:
                expected.append(F.layer_norm(x, x.shape[-1:]).permute(0, 3, 1, 2))
        for one, other in zip(ours(image), expected, strict=True):
            close(one, other, 1e-4)


class Reference(nn.Module):
    """The encoder as the release states it: PyTorch's own attention module, one box at a time."""

    def __init__(self, ours: NodeTransformer, width: int, feedforward: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for source in ours.layers:
            layer = nn.TransformerEncoderLayer(width, 4, feedforward, 0.0, batch_first=True)
            stacked = (source.q, source.k, source.v)
            layer.self_attn.in_proj_weight.data = torch.cat([each.weight.data for each in stacked])
            layer.self_attn.in_proj_bias.data = torch.cat([each.bias.data for each in stacked])
            for theirs, part in (
                (layer.self_attn.out_proj, source.project),
                (layer.linear1, source.widen),
                (layer.linear2, source.narrow),
                (layer.norm1, source.norm1),
                (layer.norm2, source.norm2),
            ):
                theirs.load_state_dict(part.state_dict())
            self.layers.append(layer)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        x, position = x[None], position[None]
        for layer in self.layers:
            where = x + position
            x = layer.norm1(x + layer.self_attn(where, where, x)[0])
            x = layer.norm2(x + layer.linear2(F.relu(layer.linear1(x))))
        return x[0]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("nodes", [1, 7, 12])
def test_the_transformer_is_pytorchs_with_positions_in_queries_and_keys(nodes: int, packed: bool) -> None:
    torch.manual_seed(0)
    transformer = NodeTransformer(16, 24, 3).eval()
    reference = Reference(transformer, 16, 24).eval()
    tokens, position = torch.randn(4 + nodes, 17), torch.randn(4 + nodes, 16)
    with torch.no_grad():
        if packed:
            transformer.pack()
        expected = transformer.decode(reference(transformer.fuse(tokens), position))[:, 0]
        close(transformer(tokens, position, 4), expected[4:])
        close(transformer(tokens, position, 0), expected)


def test_without_nodes_there_is_nothing_to_label() -> None:
    assert NodeTransformer(16, 24, 1)(torch.randn(196, 17), torch.randn(196, 16)).shape == (0,)


def test_positions_start_one_cell_in_and_end_at_a_full_turn() -> None:
    axis = axis_embedding(28, 128)
    assert axis.shape == (28, 128)
    close(axis[-1, :2], torch.tensor([0.0, 1.0]))
    close(axis[6, :2], torch.tensor([1.0, 0.0]))


def test_the_middle_level_is_left_out_for_all_boxes_or_box_by_box() -> None:
    incoherence = torch.zeros(2, 28, 28)
    incoherence[0, 10, 10] = 0.5  # box 0 has nodes on the 56 level, box 1 has none
    coarse = torch.rand(2, 28, 28)
    levels = [select_nodes(each) for each in incoherence]
    labels = [[torch.rand(len(level)) for level in box] for box in levels]
    together = write_back(coarse, levels, labels, skip_empty_level=True)
    apart = write_back(coarse, levels, labels, skip_empty_level=False)
    assert torch.equal(together[0], apart[0])
    direct = F.interpolate(coarse[1:, None], (112, 112), mode="bilinear", align_corners=True)[0, 0]
    assert torch.equal(apart[1], direct)
    assert not torch.equal(together[1], direct)


def test_the_blur_darkens_the_border_of_a_constant_map() -> None:
    blurred = blur(torch.ones(1, 112, 112))[0]
    assert blurred[50, 50] == pytest.approx(1)
    assert blurred[0, 50] == pytest.approx(0.656, abs=1e-3)
    assert blurred[0, 0] == pytest.approx(0.431, abs=1e-3)


def test_pasting_fills_the_clipped_box_and_nothing_else() -> None:
    boxes, kept = clip_boxes(torch.tensor([[-10.0, 2.0, 6.0, 9.0], [30.0, 0.0, 40.0, 5.0]]), 12, 20)
    assert kept.tolist() == [True, False]
    mask = paste_masks(torch.ones(1, 112, 112), boxes[kept], 12, 20)[0]
    assert mask.sum() == 6 * 7
    assert mask[2:9, :6].all()
    assert paste_masks(torch.zeros(0, 112, 112), boxes[:0], 12, 20).shape == (0, 12, 20)


def test_a_box_with_no_steps_stays_and_one_step_moves_it_by_its_side() -> None:
    box = torch.tensor([[10.0, 20.0, 30.0, 60.0]])
    close(decode_boxes(box, torch.zeros(1, 4)), box)
    close(decode_boxes(box, torch.tensor([[1.0, -1.0, 0.0, 0.0]])), torch.tensor([[30.0, -20.0, 50.0, 20.0]]))
    close(decode_boxes(box, torch.zeros(1, 3, 4))[0, 2], box[0])


@settings(max_examples=50, deadline=None)
@given(height=st.integers(1, 3000), width=st.integers(1, 3000))
def test_the_short_side_is_exact_unless_the_long_one_would_pass_its_limit(height: int, width: int) -> None:
    h, w = network_size(height, width, Preparation())
    if max(h, w) < 1333:
        assert min(h, w) == 800
    assert max(h, w) <= 1333
    assert min(h, w) <= 800


def test_images_come_blue_first_and_are_padded_after_normalising() -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, :, 2] = 255  # blue
    preparation = Preparation.of(Architecture("swin", (2, 2, 6, 2), 96))
    small = replace(preparation, short_side=40, max_side=100)
    (pixels, narrow), scales = prepare_batch([image, image[:, :40]], small)
    assert pixels.shape == narrow.shape == (1, 3, 64, 64)
    assert (scales == 1).all()
    assert pixels[0, 0, 0, 0] == pytest.approx((255 - 123.675) / 58.395, abs=1e-4)
    assert pixels[0, 2, 0, 0] == pytest.approx(-103.53 / 57.375, abs=1e-4)
    assert (narrow[0, :, :, 40:] == 0).all()
