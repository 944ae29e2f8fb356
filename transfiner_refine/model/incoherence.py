"""The incoherence detector: finds the cells that must be relabelled.

Ke et al. 2022, §3.2 and fig. 4: an FCN on the coarsest RoI features joined with the coarse mask, then a cascade
that joins its upsampled output with the next finer features and classifies again, under marked parents only.
Post hoc it also learns where the given mask is *wrong*: a foreign mask errs in more places than along the true outline.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RootMaps(NamedTuple):
    """The detector's output on the 28 level; logits, [B, 28, 28] each."""

    incoherent: Tensor  # the truth changes inside the cell
    wrong: Tensor  # the coarse mask is wrong somewhere inside the cell
    mask: Tensor  # the cell is foreground; the dense decoder's first level
    hidden: Tensor  # [B, C, 28, 28], the trunk's features

    def wrong_probability(self) -> Tensor:
        """[B, 28, 28]: probability that the cell must be relabelled."""
        return torch.sigmoid(self.wrong.float())

    def incoherent_probability(self) -> Tensor:
        """[B, 28, 28]: probability that the truth changes inside the cell."""
        return torch.sigmoid(self.incoherent.float())


class IncoherenceDetector(nn.Module):
    """Four 3×3 convolutions and a classifier on the 28 level; a 1×1 layer and a classifier on each finer one.

    ``finer_channels`` are those of the features that join in on the 56, the 112 and the deeper levels.
    """

    def __init__(self, pyramid_width: int, width: int, finer_channels: tuple[int, ...]) -> None:
        super().__init__()
        self.trunk = nn.ModuleList(
            nn.Sequential(nn.Conv2d(inputs, width, 3, padding=1), nn.GroupNorm(8, width), nn.ReLU())
            for inputs in (pyramid_width + 1, width, width, width)
        )
        self.classify_root = nn.Conv2d(width, 3, 1)
        # 9 values of the coarse mask around the cell join the finer features
        self.join = nn.ModuleList(nn.Linear(width + c + 9, width) for c in finer_channels)
        self.classify = nn.ModuleList(nn.Linear(width, 1) for _ in finer_channels)

    def roots(self, features: Tensor, coarse: Tensor) -> RootMaps:
        """features [B, C, 28, 28], coarse [B, 1, 28, 28] in [0, 1] → the 28-level maps."""
        hidden = torch.cat((features, coarse * 2 - 1), 1)
        for i, layer in enumerate(self.trunk):
            hidden = layer(hidden) if i == 0 else hidden + layer(hidden)
        incoherent, wrong, mask = self.classify_root(hidden).unbind(1)
        return RootMaps(incoherent, wrong, mask, hidden)

    def finer(self, level: int, above: Tensor, features: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
        """One step of the cascade at K cells of a level (1 = 56, 2 = 112; deeper ones share their weights).

        From the output one level up [B, K, width], the finer features [B, K, C] and the coarse mask around the cells
        [B, K, 9]: logits [B, K], and the output [B, K, width] for the next level.
        """
        i = min(level, len(self.join)) - 1
        hidden = F.relu(self.join[i](torch.cat((above, features, coarse * 2 - 1), 2)))
        return self.classify[i](hidden).squeeze(2), hidden
