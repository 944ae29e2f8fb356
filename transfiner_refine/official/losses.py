"""The release's training losses (§9), to check that the network and its targets are the same.

Nothing here trains: dropout, which the release has in training alone, is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transfiner_refine.official.config import CONTEXT_GRID, NODE_GRIDS, Architecture
from transfiner_refine.official.network import ImageFeatures, OfficialNetwork
from transfiner_refine.official.nodes import select_nodes
from transfiner_refine.official.quadtree import QuadtreeLevel
from transfiner_refine.official.regions import Regions
from transfiner_refine.official.sequence import gather_tokens

__all__ = ["TrainingHeads", "TrainingOutput", "TrainingTargets", "dice_loss", "training_losses"]

_LIMIT = 30  # boxes of a batch whose nodes are trained
_THRESHOLDS = (0.125, 0.5, 0.5)  # of the nodes, in training
_LEAST_NODES = 10  # on every level, or the box is left out
_SAMPLED = 150  # nodes of each level and box
_REPEATS = 15  # so that the fewest nodes still give as many


class TrainingHeads(nn.Module):
    """The boundary and the semantic predictor, which no inference reads."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        width = architecture.fpn_width
        self.upsample_boundary = nn.ConvTranspose2d(width, width, 2, 2)
        self.classify_boundary = nn.Conv2d(width, 1, 1)
        self.classify_semantic = nn.Conv2d(width, 1, 1)

    def boundary(self, hidden: Tensor) -> Tensor:
        """h [N, C, 14, 14] → logits [N, 28, 28]."""
        logits: Tensor = self.classify_boundary(F.relu(self.upsample_boundary(hidden)))
        return logits[:, 0]


@dataclass(frozen=True)
class TrainingTargets:
    """Truth of N boxes; float32 in {0, 1}.

    Attributes:
        truth: grid → [N, grid, grid] for the grids 14, 28, 56 and 112.
        incoherence: [N, 28, 28].
        boundary: [N, 28, 28].
        semantic: [B, H/4, W/4].
    """

    truth: dict[int, Tensor]
    incoherence: Tensor
    boundary: Tensor
    semantic: Tensor


@dataclass(frozen=True)
class TrainingOutput:
    """Predictions of a training step, and its losses by the release's names.

    Attributes:
        mask_logits: [N, 28, 28] coarse, of the true class.
        incoherence: [N, 28, 28] probabilities.
        boundary_logits: [N, 28, 28].
        semantic_logits: [B, H/4, W/4].
        levels: all nodes, before sampling.
        refined: [M, tokens] probabilities of the sampled tokens of M boxes.
        losses: scalars.
    """

    mask_logits: Tensor
    incoherence: Tensor
    boundary_logits: Tensor
    semantic_logits: Tensor
    levels: list[QuadtreeLevel]
    refined: Tensor
    losses: dict[str, Tensor]


def dice_loss(probability: Tensor, target: Tensor) -> Tensor:
    """Mean over boxes of 1 − (2·Σpt + 1) / (Σp + Σt + 1); both [N, …]."""
    p, t = probability.flatten(1), target.flatten(1)
    return (1 - (2 * (p * t).sum(1) + 1) / (p.sum(1) + t.sum(1) + 1)).mean()


def training_losses(
    network: OfficialNetwork,
    heads: TrainingHeads,
    features: ImageFeatures,
    regions: Regions,
    classes: Tensor,
    targets: TrainingTargets,
    permutation: Callable[[int], Tensor] = torch.randperm,
) -> TrainingOutput:
    """One training step's forward pass of the mask branch.

    Args:
        network, heads: the network.
        features: of the batch's images.
        regions: N positive proposals.
        classes: [N] int64, their true classes.
        targets: their truth.
        permutation: draws the order in which a level's nodes are sampled.
    """
    context = regions.context()
    hidden = network.coarse.hidden(context)
    mask_logits = network.coarse.logits(hidden, classes)
    incoherence = torch.sigmoid(network.incoherence(context.detach(), hidden))
    boundary_logits = heads.boundary(hidden)
    semantic_logits = heads.classify_semantic(features.semantic)[:, 0]

    count = min(_LIMIT, len(regions))
    levels = select_nodes(incoherence[:count].detach(), thresholds=_THRESHOLDS)
    boxes, sampled = _sample(levels, count, permutation)
    chosen = Regions(regions.table, regions.boxes[boxes], regions.image[boxes], regions.level[boxes])
    coarse = torch.sigmoid(mask_logits[boxes]).detach()
    tokens = gather_tokens(chosen, context[boxes], coarse, sampled)
    encoded = network.sequence.encode(network.sequence.fused(tokens), tokens, len(boxes))
    refined = torch.sigmoid(network.sequence.decoded(encoded))
    truth = [targets.truth[CONTEXT_GRID][boxes].flatten()]
    truth += [targets.truth[level.grid][boxes].flatten()[level.cell] for level in sampled]

    bce = F.binary_cross_entropy_with_logits
    losses = {
        "loss_mask": bce(mask_logits, targets.truth[NODE_GRIDS[0]]),
        "loss_mask_uncertain": 0.5
        * (
            dice_loss(incoherence, targets.incoherence)
            + F.binary_cross_entropy(incoherence, targets.incoherence)
        ),
        "loss_mask_refine": (refined - torch.cat(truth)).abs().mean(),
        "loss_semantic": 0.25 * bce(semantic_logits, targets.semantic),
        "loss_bound": bce(
            boundary_logits, targets.boundary
        ),  # the release adds it up twice, each with half weight
    }
    order = torch.argsort(tokens.instance, stable=True)
    by_box = refined[order].view(len(boxes), -1)
    return TrainingOutput(mask_logits, incoherence, boundary_logits, semantic_logits, levels, by_box, losses)


def _sample(
    levels: list[QuadtreeLevel], count: int, permutation: Callable[[int], Tensor]
) -> tuple[Tensor, list[QuadtreeLevel]]:
    """The boxes with enough nodes [M] int64, and 150 nodes of each on every level, boxes renumbered.

    If there is no such box: all boxes, and no nodes.
    """
    counts = torch.stack([torch.bincount(level.instance, minlength=count) for level in levels])
    boxes = (counts >= _LEAST_NODES).all(0).nonzero().squeeze(1)
    if len(boxes) == 0:
        empty = torch.zeros(0, dtype=torch.long, device=boxes.device)
        return torch.arange(count, device=boxes.device), [level.take(empty) for level in levels]
    sampled = []
    for level in levels:
        picked = []
        for box in boxes.tolist():
            nodes = (level.instance == box).nonzero().squeeze(1)
            order = permutation(len(nodes)).to(nodes.device)
            if len(order) < _SAMPLED:
                order = order.repeat(_REPEATS)
            picked.append(nodes[order[:_SAMPLED]])
        chosen = level.take(torch.cat(picked))
        renumbered = torch.arange(len(boxes), device=boxes.device).repeat_interleave(_SAMPLED)
        sampled.append(QuadtreeLevel(chosen.grid, renumbered, chosen.y, chosen.x, chosen.parent))
    return boxes, sampled
