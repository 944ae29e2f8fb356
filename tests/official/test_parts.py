"""The network's parts against other implementations of the same mathematics."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.ops import FeaturePyramidNetwork as TorchvisionFpn
from torchvision.ops import roi_align

from transfiner_refine.official.checkpoint import load_official_network
from transfiner_refine.official.config import Architecture, Preparation
from transfiner_refine.official.detector import decode_boxes
from transfiner_refine.official.fpn import FeaturePyramidNetwork
from transfiner_refine.official.images import network_size, prepare
from transfiner_refine.official.keys import inference_keys
from transfiner_refine.official.network import OfficialNetwork
from transfiner_refine.official.nodes import select_nodes
from transfiner_refine.official.read import TensorFile
from transfiner_refine.official.regions import Regions, box_level, feature_table
from transfiner_refine.official.resnet import ResNet
from transfiner_refine.official.sequence import NodeTransformer, Tokens, axis_embedding
from transfiner_refine.official.swin import Swin
from transfiner_refine.official.writing import blur, clip_boxes, paste_masks, write_back

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
    state = plain.state_dict()
    for name, ours in inference_keys(small).items():
        state[ours] = tensors[name].reshape(state[ours].shape)
    plain.load_state_dict(state)
    fused = load_official_network(TensorFile(Path("memory.pth"), "PyTorch checkpoint", tensors))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    image = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        for ours, theirs in zip(fused.backbone(image), plain.eval().backbone(image), strict=True):
            close(ours, theirs, 1e-4)


def test_swin_is_torchvisions_where_both_pad_alike() -> None:
    torch.manual_seed(0)
    depths = (2, 2, 4, 2)
    theirs = SwinTransformer([4, 4], 32, list(depths), [1, 2, 4, 8], [7, 7]).eval()
    ours = Swin(Architecture("swin", depths, 32)).eval()
    names = {"features.0.0": "embed", "features.0.2": "embed_norm"}
    for stage, depth in enumerate(depths):
        for block in range(depth):
            a, b = f"features.{2 * stage + 1}.{block}.", f"stages.{stage}.{block}."
            parts = {"norm1": "norm1", "norm2": "norm2", "attn.qkv": "attention.qkv"}
            parts |= {"attn.proj": "attention.project", "mlp.0": "widen", "mlp.3": "narrow"}
            names |= {a + theirs_part: b + part for theirs_part, part in parts.items()}
        if stage < 3:
            names |= {
                f"features.{2 * stage + 2}.{x}": f"merges.{stage}.{y}"
                for x, y in (("norm", "norm"), ("reduction", "reduce"))
            }
    source, state = theirs.state_dict(), ours.state_dict()
    for a, b in names.items():
        for part in ("weight", "bias"):
            if f"{b}.{part}" in state:
                state[f"{b}.{part}"] = source[f"{a}.{part}"]
    for stage, depth in enumerate(depths):
        for block in range(depth):
            table = source[f"features.{2 * stage + 1}.{block}.attn.relative_position_bias_table"]
            table.normal_()
            state[f"stages.{stage}.{block}.attention.bias_table"] = table
    ours.load_state_dict(state)
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


def test_the_feature_pyramid_is_torchvisions() -> None:
    channels = (8, 16, 32, 64)
    ours, theirs = FeaturePyramidNetwork(channels, 12), TorchvisionFpn(list(channels), 12)
    state = theirs.state_dict()
    for name, value in ours.state_dict().items():
        kind, place, part = name.split(".")
        block = "inner_blocks" if kind == "lateral" else "layer_blocks"
        state[f"{block}.{place}.0.{part}"] = value
    theirs.load_state_dict(state)
    maps = [torch.randn(2, c, 64 // 2**i, 96 // 2**i) for i, c in enumerate(channels)]
    expected = theirs(OrderedDict((str(i), each) for i, each in enumerate(maps)))
    for one, other in zip(ours(maps), expected.values(), strict=True):
        close(one, other)


def pyramid(seed: int = 0, channels: int = 6) -> list[Tensor]:
    """p2 … p5 of two images of 256 × 320 pixels."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, channels, 256 // s, 320 // s, generator=generator) for s in (4, 8, 16, 32)]


BOXES = torch.tensor(
    [
        [10.0, 12.0, 60.0, 50.0],
        [-30.0, 20.0, 150.0, 130.0],
        [5.0, 5.0, 250.0, 255.0],
        [0.0, 0.0, 620.0, 500.0],
        [100.0, 30.0, 104.0, 250.0],  # long and thin: many samples on one axis
        [50.0, 60.0, 51.0, 61.0],
        [400.0, 400.0, 500.0, 480.0],  # wholly outside
    ]
)
IMAGE = torch.tensor([0, 1, 0, 1, 1, 0, 1])


def test_larger_boxes_read_coarser_levels() -> None:
    sides = torch.tensor([20.0, 111.9, 112.1, 223.0, 225.0, 447.0, 449.0, 2000.0])
    boxes = torch.stack((torch.zeros(8), torch.zeros(8), sides, sides), 1)
    assert box_level(boxes).tolist() == [2, 2, 3, 3, 4, 4, 5, 5]


@pytest.mark.parametrize("grid", [28, 56, 112])
def test_sparse_features_are_those_of_dense_pooling(grid: int) -> None:
    maps = pyramid()
    semantic = torch.randn_like(maps[0])
    regions = Regions.of(feature_table(maps, semantic), BOXES, IMAGE)
    levels = select_nodes(torch.rand(len(BOXES), 28, 28, generator=torch.Generator().manual_seed(grid)))
    nodes = next(level for level in levels if level.grid == grid)
    ours = regions.at(nodes)
    finer = [maps[0] + semantic, *maps[1:]]
    for box in range(len(BOXES)):
        level = max(int(regions.level[box]) - 1 - (28, 56, 112).index(grid), 2)
        rois = torch.cat((IMAGE[box][None].float(), BOXES[box]))[None]
        dense = roi_align(finer[level - 2], rois, grid, 0.5**level, 0, aligned=True)[0]
        mine = nodes.instance == box
        close(ours[mine], dense[:, nodes.y[mine], nodes.x[mine]].T)


def test_context_features_are_those_of_dense_pooling_without_the_residual() -> None:
    maps = pyramid()
    regions = Regions.of(feature_table(maps, torch.randn_like(maps[0])), BOXES, IMAGE)
    for box, ours in enumerate(regions.context()):
        level = int(regions.level[box])
        rois = torch.cat((IMAGE[box][None].float(), BOXES[box]))[None]
        close(ours, roi_align(maps[level - 2], rois, 14, 0.5**level, 0, aligned=True)[0])


def test_nodes_of_finer_levels_lie_under_their_parents() -> None:
    incoherence = torch.rand(3, 28, 28)
    incoherence[1] = 0
    levels = select_nodes(incoherence)
    assert [len(level) for level in levels] == [
        int((incoherence >= t).sum()) * f for t, f in ((1e-6, 1), (0.125, 4), (0.8, 16))
    ]
    for above, level in pairwise(levels):
        assert torch.equal(above.instance[level.parent], level.instance)
        assert torch.equal(above.y[level.parent], level.y // 2)
        assert torch.equal(above.x[level.parent], level.x // 2)


def test_the_demo_adds_the_neighbours_of_the_finest_nodes() -> None:
    incoherence = torch.zeros(1, 28, 28)
    incoherence[0, 0, 5] = 0.9
    plain, dilated = (select_nodes(incoherence, dilate_finest=on)[-1] for on in (False, True))
    assert len(plain) == 4 * 4
    assert len(dilated) == 5 * 6  # the RoI's edge cuts one row


def test_cells_of_disagreement_are_nodes_on_every_level() -> None:
    always = torch.zeros(1, 28, 28, dtype=torch.bool)
    always[0, 3, 4] = True
    levels = select_nodes(torch.zeros(1, 28, 28), always=always)
    assert [len(level) for level in levels] == [1, 4, 16]


class Reference(nn.Module):
    """The encoder as the release states it: PyTorch's own attention module, one box at a time."""

    def __init__(self, ours: NodeTransformer, width: int, feedforward: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for source in ours.layers:
            layer = nn.TransformerEncoderLayer(width, 4, feedforward, 0.0, batch_first=True)
            layer.self_attn.in_proj_weight.data = source.qkv.weight.data
            layer.self_attn.in_proj_bias.data = source.qkv.bias.data
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


def random_tokens(counts: list[int], width: int, context: int = 4) -> Tokens:
    """``context`` context tokens of every box, then its nodes, in the order of two levels."""
    boxes = torch.arange(len(counts))
    halves = [torch.tensor([c // 2 for c in counts]), torch.tensor([c - c // 2 for c in counts])]
    instance = torch.cat(
        [boxes.repeat_interleave(context), *(boxes.repeat_interleave(half) for half in halves)]
    )
    size = len(instance)
    return Tokens(
        torch.randn(size, width), torch.rand(size), torch.randn(size, width), instance, context * len(counts)
    )


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("at_once", [1, 20, 10_000])
def test_boxes_of_different_length_attend_each_to_itself(
    at_once: int, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transfiner_refine.official import sequence

    monkeypatch.setattr(sequence, "_TOKENS_AT_ONCE", at_once)
    torch.manual_seed(0)
    counts = [7, 0, 12, 1, 12]
    transformer = NodeTransformer(16, 24, 3).eval()
    tokens = random_tokens(counts, 16)
    with torch.no_grad():
        if packed:
            transformer.pack()
        ours = transformer(tokens, len(counts))
        reference = Reference(transformer, 16, 24).eval()
        for box in range(len(counts)):
            members = tokens.instance == box
            fused = transformer.fuse(torch.cat((tokens.features, tokens.coarse[:, None]), 1)[members])
            expected = transformer.decoded(reference(fused, tokens.position[members]))
            close(ours[members[tokens.context :]], expected[4:])


def test_without_nodes_there_is_nothing_to_label() -> None:
    assert NodeTransformer(16, 24, 1)(random_tokens([0, 0], 16), 2).shape == (0,)


def test_positions_start_one_cell_in_and_end_at_a_full_turn() -> None:
    axis = axis_embedding(28, 128)
    assert axis.shape == (28, 128)
    close(axis[-1, :2], torch.tensor([0.0, 1.0]))
    close(axis[6, :2], torch.tensor([1.0, 0.0]))


def test_the_middle_level_is_left_out_for_all_boxes_or_box_by_box() -> None:
    incoherence = torch.zeros(2, 28, 28)
    incoherence[0, 10, 10] = 0.5  # box 0 has nodes on the 56 level, box 1 has none
    coarse = torch.rand(2, 28, 28)
    levels = select_nodes(incoherence)
    labels = [torch.rand(len(level)) for level in levels]
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
    batch = prepare([image, image[:, :40]], replace(preparation, short_side=40, max_side=100))
    assert batch.input.shape == (2, 3, 64, 64)
    assert batch.sizes == [(40, 60), (40, 40)]
    assert batch.input[0, 0, 0, 0] == pytest.approx((255 - 123.675) / 58.395, abs=1e-4)
    assert batch.input[0, 2, 0, 0] == pytest.approx(-103.53 / 57.375, abs=1e-4)
    assert (batch.input[1, :, :, 40:] == 0).all()
