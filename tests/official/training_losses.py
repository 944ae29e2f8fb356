"""The release's training losses (§9), to check that the network and its targets are the same.

Nothing here trains: dropout, which the release has in training alone, is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transfiner_refine.official import OfficialNetwork
from transfiner_refine.official.features import ImageFeatures, tokens_of
from transfiner_refine.official.nodes import NODE_GRIDS, Nodes, select_nodes

__all__ = [
    "TRAINING_NAMES",
    "TrainingHeads",
    "TrainingOutput",
    "TrainingTargets",
    "dice_loss",
    "training_losses",
]

_LIMIT = 30  # boxes of a batch whose nodes are trained
_THRESHOLDS = (0.125, 0.5, 0.5)  # of the nodes, in training
_LEAST_NODES = 10  # on every level, or the box is left out
_SAMPLED = 150  # nodes of each level and box
_REPEATS = 15  # so that the fewest nodes still give as many


class TrainingHeads(nn.Module):
    """The boundary and the semantic predictor, which no inference reads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.upsample_boundary = nn.ConvTranspose2d(width, width, 2, 2)
        self.classify_boundary = nn.Conv2d(width, 1, 1)
        self.classify_semantic = nn.Conv2d(width, 1, 1)

    def boundary(self, hidden: Tensor) -> Tensor:
        """h [N, C, 14, 14] → logits [N, 28, 28]."""
        logits: Tensor = self.classify_boundary(F.relu(self.upsample_boundary(hidden)))
        return logits[:, 0]


_LAYERS = {
    "deconv_bo": "upsample_boundary",
    "predictor_bo": "classify_boundary",
    "predictor_semantic_s": "classify_semantic",
}
#: The release's name of each tensor → ours, as ``fill`` takes them.
TRAINING_NAMES = {
    f"roi_heads.mask_head.{a}.{part}": [f"{b}.{part}"]
    for a, b in _LAYERS.items()
    for part in ("weight", "bias")
}


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
        levels: all nodes of each box, before sampling.
        refined: [M, tokens] probabilities of the sampled tokens of M boxes.
        losses: scalars.
    """

    mask_logits: Tensor
    incoherence: Tensor
    boundary_logits: Tensor
    semantic_logits: Tensor
    levels: list[list[Nodes]]
    refined: Tensor
    losses: dict[str, Tensor]


def dice_loss(probability: Tensor, target: Tensor) -> Tensor:
    """Mean over boxes of 1 − (2·Σpt + 1) / (Σp + Σt + 1); both [N, …]."""
    p, t = probability.flatten(1), target.flatten(1)
    return (1 - (2 * (p * t).sum(1) + 1) / (p.sum(1) + t.sum(1) + 1)).mean()


def training_losses(
    network: OfficialNetwork,
    heads: TrainingHeads,
    image: ImageFeatures,
    boxes: Tensor,
    classes: Tensor,
    targets: TrainingTargets,
    permutation: Callable[[int], Tensor] = torch.randperm,
) -> TrainingOutput:
    """One training step's forward pass of the mask branch.

    Args:
        network, heads: the network.
        image: features of the one image of the batch.
        boxes: [N, 4] XYXY of positive proposals, pixels of the resized image.
        classes: [N] int64, their true classes.
        targets: their truth.
        permutation: draws the order in which a level's nodes are sampled.
    """
    context = torch.cat([image.pooled(box) for box in boxes])
    hidden = network.coarse.hidden(context)
    mask_logits = network.coarse(hidden)[torch.arange(len(classes)), classes]
    incoherence = torch.sigmoid(network.incoherence(context.detach(), hidden))
    boundary_logits = heads.boundary(hidden)
    semantic_logits = heads.classify_semantic(image.semantic)[:, 0]

    trained = range(min(_LIMIT, len(boxes)))
    levels = [select_nodes(incoherence[i].detach(), thresholds=_THRESHOLDS) for i in trained]
    chosen = [i for i in trained if all(len(level) >= _LEAST_NODES for level in levels[i])]
    refined, truth = [], []
    for i in chosen or trained:
        sampled = [_sample(level, permutation) for level in levels[i]] if chosen else []
        coarse = torch.sigmoid(mask_logits[i]).detach()
        tokens, position = tokens_of(image, boxes[i], context[i], coarse, sampled)
        refined.append(torch.sigmoid(network.transformer(tokens, position, 0)))
        own = [targets.truth[14][i].flatten()]
        truth.append(
            torch.cat(own + [targets.truth[level.grid][i].flatten()[level.cell] for level in sampled])
        )
    by_box = torch.stack(refined)

    bce = F.binary_cross_entropy_with_logits
    uncertain = F.binary_cross_entropy(incoherence, targets.incoherence)
    losses = {
        "loss_mask": bce(mask_logits, targets.truth[NODE_GRIDS[0]]),
        "loss_mask_uncertain": 0.5 * (dice_loss(incoherence, targets.incoherence) + uncertain),
        "loss_mask_refine": (by_box - torch.stack(truth)).abs().mean(),
        "loss_semantic": 0.25 * bce(semantic_logits, targets.semantic),
        # the release adds it up twice, each with half weight
        "loss_bound": bce(boundary_logits, targets.boundary),
    }
    return TrainingOutput(mask_logits, incoherence, boundary_logits, semantic_logits, levels, by_box, losses)


def _sample(level: Nodes, permutation: Callable[[int], Tensor]) -> Nodes:
    """150 nodes of a box's level, or as many with repeats."""
    order = permutation(len(level)).to(level.cell.device)
    if len(order) < _SAMPLED:
        order = order.repeat(_REPEATS)
    order = order[:_SAMPLED]
    return Nodes(level.grid, level.cell[order], level.parent[order])
