"""The dense decoder: fine features for the nodes, and a first label for every cell of the levels 28 to 224.

In the paper the mask head gives each RoI a coarse mask and the quadtree corrects it where it is incoherent. Post hoc
the given mask may be wrong far from any outline, where no quadtree would look. So every cell gets a label from the
image and the given mask together; the nodes read the features that it is made of.

The backbone's maps end at the 112 level. For large objects a small stem reads the RoI at twice the backbone's
resolution and gives the 224 level a map of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DenseDecoder(nn.Module):
    """Joins the next finer map to the upsampled features, level by level, with 3×3 convolutions.

    The numbers are channels: of the 28 level's features, of the backbone's maps on the 56 and 112 levels, and of this
    decoder's features on the 56, 112 and 224 levels.
    """

    def __init__(self, coarsest: int, lateral: tuple[int, int], widths: tuple[int, int, int]) -> None:
        super().__init__()
        self.detail = nn.Sequential(nn.Conv2d(4, widths[-1], 3, stride=2, padding=1), nn.ReLU())
        self.reduce, self.lateral, self.given = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self.smooth, self.classify = nn.ModuleList(), nn.ModuleList()
        above = coarsest
        for channels, width, layers in zip((*lateral, widths[-1]), widths, (2, 2, 1), strict=True):
            self.reduce.append(nn.Conv2d(above, width, 1))
            self.lateral.append(nn.Conv2d(channels, width, 1))
            self.given.append(nn.Conv2d(1, width, 1, bias=False))  # the coarse mask enters on every level
            self.smooth.append(nn.Sequential(*(_Residual(width) for _ in range(layers))))
            self.classify.append(nn.Conv2d(width, 1, 1))
            above = width

    def forward(
        self, base: Tensor, finer: tuple[Tensor, Tensor], pixels: Tensor | None, masks: dict[int, Tensor]
    ) -> list[tuple[Tensor, Tensor]]:
        """Of each finer level features [B, C, grid, grid] and foreground logits [B, grid, grid].

        From the 28 level's features ``base`` [B, C, 28, 28]; the backbone's ``finer`` maps [B, C', grid, grid]; pixels
        [B, 3, 448, 448] in [-1, 1], None where no RoI is large enough for the 224 level; and the coarse mask in [0, 1]
        by grid [B, 1, grid, grid].
        """
        maps: list[Tensor] = [*finer]
        if pixels is not None:
            maps.append(self.detail(torch.cat((pixels, masks[pixels.shape[-1]] * 2 - 1), 1)))
        levels, x = [], base
        for i, own in enumerate(maps):
            above = F.interpolate(self.reduce[i](x), scale_factor=2, mode="bilinear")
            given = self.given[i](masks[own.shape[-1]] * 2 - 1)
            x = self.smooth[i](F.relu(above + self.lateral[i](own) + given))
            levels.append((x, self.classify[i](x).squeeze(1)))
        return levels


class _Residual(nn.Module):
    """A 3×3 convolution beside a shortcut; a norm on maps this large would cost as much as they do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.convolution(x))
