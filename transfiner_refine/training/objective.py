"""What the network is trained for: targets on every grid, which nodes are drawn, and the loss.

L = ½ L_refine + ½ L_inc + L_dense + L_mask; the first two are those of Ke et al. 2022, §3.5. L_refine compares a
node's probability with the share of its cell that is foreground; L_inc trains the detector: the incoherent cells of
the truth on every level, and on the 28 level also the cells where the coarse mask is wrong; L_dense does for all
cells of the levels with a dense label what L_refine does for the nodes; L_mask judges what the two make together, the
propagated mask of every level, for a node's correction reaches cells that are no nodes themselves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from transfiner_refine.model.checkpoint import save_network
from transfiner_refine.model.config import RefinerConfig
from transfiner_refine.model.network import MaskTransfiner, TreeOutput
from transfiner_refine.model.propagate import area_pyramid, corrected_labels
from transfiner_refine.model.quadtree import NodeSelector, QuadtreeNodes, root_cells
from transfiner_refine.training.schedule import TrainableModel

__all__ = ["RefinementModel", "SamplingSelector", "Targets", "make_targets", "refinement_loss"]

#: Nodes drawn per instance on each level; three levels share a sequence of 512 nodes.
QUOTA = (128, 160, 224, 192, 192)
#: Of the terms in the total loss.
WEIGHTS = {"refine": 0.5, "incoherence": 0.5, "dense": 1.0, "mask": 1.0}
_ROOT_GRID = 28
_WRONG_SHARE = 0.04  # of a 28-level cell's pixels: below this the cell counts as right
_ANYWHERE = 0.25  # share of the nodes that are drawn from all cells
_INCOHERENT = 0.1  # change of a cell's foreground share under down- and upsampling by 2


class Targets(NamedTuple):
    """Ground truth on every grid."""

    truth: dict[int, Tensor]  # grid → [B, grid, grid], the share of each cell that is foreground
    incoherent: dict[
        int, Tensor
    ]  # grid → [B, grid, grid] bool, cells changed by down- and upsampling the truth by 2
    wrong: Tensor  # [B, 28, 28] bool, cells in which the coarse mask is wrong


def make_targets(coarse: Tensor, truth: Tensor, depth: int) -> Targets:
    """Targets from masks [B, 1, S, S] in [0, 1], for a quadtree of ``depth`` levels."""
    shares = area_pyramid(truth, _ROOT_GRID // 2)
    incoherent = {}
    for level in range(depth):
        grid = _ROOT_GRID << level
        finer = F.interpolate(shares[grid // 2], scale_factor=2, mode="bilinear")
        incoherent[grid] = ((finer - shares[grid]).abs() > _INCOHERENT).squeeze(1)
    error = ((coarse >= 0.5) != (truth >= 0.5)).float()
    wrong = (area_pyramid(error, _ROOT_GRID)[_ROOT_GRID] > _WRONG_SHARE).squeeze(1)
    return Targets({grid: share.squeeze(1) for grid, share in shares.items()}, incoherent, wrong)


class SamplingSelector(NodeSelector):
    """Draws a fixed number of nodes per instance and level, so that all sequences of a batch are equally long.

    Cells that the detector marks come first. A quarter of the quota is drawn from all cells: whatever the detector
    marks one day, the network must have seen. Ground truth does not influence node selection: it would tell the network
    where the outline is.

    Args:
        quota: nodes per instance on each level.
        config: with the detector's thresholds, as at inference.
    """

    def __init__(self, quota: tuple[int, ...], config: RefinerConfig) -> None:
        self.quota, self.config = quota, config

    def roots(self, wrong: Tensor, incoherent: Tensor) -> QuadtreeNodes:
        marked = (wrong >= self.config.relabel_threshold) & (incoherent >= self.config.root_threshold)
        return root_cells(_ROOT_GRID, marked).take(_draw(marked.flatten(1), self.quota[0]), None)

    def keep(self, candidates: QuadtreeNodes, probability: Tensor) -> tuple[Tensor, None]:
        level = (candidates.grid // _ROOT_GRID).bit_length() - 1
        marked = probability >= self.config.child_threshold
        return _draw(marked, min(self.quota[level], marked.shape[1])), None


def _draw(marked: Tensor, quota: int) -> Tensor:
    """Draws ``quota`` cells of each row of marked [B, n] bool: ascending indices [B, quota].

    A share is drawn from all cells alike, the rest from the marked ones first.
    """
    score = torch.rand(marked.shape, device=marked.device)
    anywhere = score.topk(round(_ANYWHERE * quota), 1).indices
    score = (score + marked.float()).scatter_(1, anywhere, 3.0)  # above every other score
    return score.topk(quota, 1).indices.sort(1).values


def refinement_loss(output: TreeOutput, targets: Targets, depth: Tensor) -> dict[str, Tensor]:
    """The terms of the loss; their sum under ``total`` is what is minimised.

    Args:
        output: of a pass whose nodes were drawn by ``SamplingSelector``.
        targets: ground truth.
        depth: [B] int64, levels of each instance's quadtree; nodes and labels beyond them do not count.

    Returns:
        the terms of the formula above: refine, incoherence, dense (cross entropy plus dice, 28 to 224 levels), mask
        (the same of the corrected labels, all levels); total, their sum by ``WEIGHTS``.
    """
    roots, refine, dense, mask = output.roots, [], [], []
    detect = [
        F.binary_cross_entropy_with_logits(roots.wrong.float(), targets.wrong.float()),
        F.binary_cross_entropy_with_logits(roots.incoherent.float(), targets.incoherent[_ROOT_GRID].float()),
    ]
    for level, logit in zip(output.levels, output.logits, strict=True):
        target = targets.truth[level.grid].flatten(1).gather(1, level.cell)
        refine.append(_mean(label_loss(logit.float(), target), level.grid, depth))
    for level, logit in zip(output.candidates, output.candidate_logits, strict=True):
        target = targets.incoherent[level.grid].flatten(1).gather(1, level.cell).float()
        each = F.binary_cross_entropy_with_logits(logit.float(), target, reduction="none")
        detect.append(_mean(each, level.grid, depth))
    for grid, logit in output.dense.items():
        dense.append(_mean(map_loss(logit.float(), targets.truth[grid]), grid, depth))
    for logit in corrected_labels(output.dense, output.levels, output.logits):
        grid = logit.shape[-1]
        mask.append(_mean(map_loss(logit, targets.truth[grid]), grid, depth))
    levels = {"refine": refine, "incoherence": detect, "dense": dense, "mask": mask}
    terms = {name: torch.stack(losses).mean() for name, losses in levels.items()}
    return {**terms, "total": torch.stack([WEIGHTS[name] * term for name, term in terms.items()]).sum()}


def label_loss(logit: Tensor, target: Tensor) -> Tensor:
    """Of each node: cross entropy against the foreground share, plus the paper's L1; logit, target [...] → [...]."""
    each = F.binary_cross_entropy_with_logits(logit, target, reduction="none")
    return each + (torch.sigmoid(logit) - target).abs()


def map_loss(logit: Tensor, target: Tensor) -> Tensor:
    """Of each instance: cross entropy plus dice over all cells; logit, target [B, grid, grid] → [B]."""
    each = F.binary_cross_entropy_with_logits(logit, target, reduction="none")
    return each.mean((1, 2)) + dice_loss(logit, target)


def dice_loss(logit: Tensor, target: Tensor) -> Tensor:
    """Of each instance: one minus the soft Dice coefficient; logit, target [B, grid, grid] → [B]."""
    probability = torch.sigmoid(logit)
    overlap = (probability * target).sum((1, 2))
    return 1 - (2 * overlap + 1) / ((probability + target).sum((1, 2)) + 1)


def _mean(values: Tensor, grid: int, depth: Tensor) -> Tensor:
    """Mean over values [B] or [B, nodes] of the instances whose quadtree reaches the level of ``grid``."""
    reached = (
        (depth >= (grid // _ROOT_GRID).bit_length()).view(-1, *[1] * (values.dim() - 1)).expand_as(values)
    )
    return (values * reached).sum() / reached.sum().clamp(min=1)


class RefinementModel(TrainableModel):
    """Mask Transfiner with its loss.

    Args:
        network: on its device; trained in place.
        own_share: share of the batches whose coarse masks are replaced by what the network itself makes of them;
            teaches it to refine twice, and to handle masks that are nearly right.
    """

    network: MaskTransfiner

    def __init__(self, network: MaskTransfiner, own_share: float = 0.2) -> None:
        super().__init__(network)
        self.own_share = own_share

    def forward(self, image: Tensor, coarse: Tensor, truth: Tensor, roi_side: Tensor) -> dict[str, Tensor]:
        """See ``refinement_loss``; levels an RoI is too small for do not count."""
        config = self.network.config
        depths = torch.tensor([config.depth(side) for side in roi_side.tolist()], device=image.device)
        if float(torch.rand(())) < self.own_share:
            coarse = self._own_masks(image, coarse, depths)
        targets = make_targets(coarse, truth, config.max_depth)
        output = self.network(image, coarse, SamplingSelector(QUOTA, config), int(depths.max()))
        return refinement_loss(output, targets, depths)

    @torch.no_grad()
    def _own_masks(self, image: Tensor, coarse: Tensor, depths: Tensor) -> Tensor:
        """What the network now makes of the coarse masks: [B, 1, S, S], 0 or 1."""
        config, side = self.network.config, coarse.shape[-1]
        output = self.network(image, coarse, None, int(depths.max()))  # dense labels alone
        maps = self.network.maps(output, coarse, config)
        finest = [maps[min(depth, len(maps)) - 1].probability[i] for i, depth in enumerate(depths.tolist())]
        own = [F.interpolate(p[None, None], (side, side), mode="bilinear") for p in finest]
        return (torch.cat(own) >= 0.5).float()

    def export(self, path: Path, about: dict[str, Any]) -> None:
        """Half-precision weights with their configuration."""
        save_network(self.network, path, about=about)
