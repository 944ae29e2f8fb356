"""The refiner as the training loop sees it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transfiner_refine.model.checkpoint import save_network
from transfiner_refine.model.network import MaskTransfiner
from transfiner_refine.training.objective import SamplingSelector, make_targets, refinement_loss

__all__ = ["RefinerTrainee", "split_decay"]

#: Nodes drawn per instance on each level; three levels share a sequence of 512 nodes.
QUOTA = (128, 160, 224, 192, 192)


class RefinerTrainee:
    """Mask Transfiner with its loss.

    Args:
        network: on its device.
        backbone_rate: learning rate of the backbone, relative to the new layers.
        own_share: share of the batches whose coarse masks are replaced by what the network itself makes of them;
            teaches it to refine twice, and what a mask looks like that is nearly right.
    """

    def __init__(self, network: MaskTransfiner, backbone_rate: float = 0.4, own_share: float = 0.2) -> None:
        self.network: MaskTransfiner = network
        self.backbone_rate, self.own_share = backbone_rate, own_share

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Backbone at a lower rate; biases, norms and embeddings without weight decay."""
        rest = nn.ModuleDict({n: m for n, m in self.network.named_children() if n != "backbone"})
        return [
            *split_decay(self.network.backbone, learning_rate * self.backbone_rate),
            *split_decay(rest, learning_rate),
        ]

    def loss(self, image: Tensor, coarse: Tensor, truth: Tensor, roi_side: Tensor) -> dict[str, Tensor]:
        """See ``objective.refinement_loss``; levels an RoI is too small for do not count."""
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


def split_decay(module: nn.Module, learning_rate: float) -> list[dict[str, Any]]:
    """Two optimiser groups: matrices and kernels, which decay, and vectors, which do not."""
    parameters = list(module.parameters())
    return [
        {"params": [p for p in parameters if p.dim() > 1], "lr": learning_rate},
        {"params": [p for p in parameters if p.dim() <= 1], "lr": learning_rate, "weight_decay": 0.0},
    ]
