"""The feature pyramid network (Lin et al. 2017; §2.6) and the release's semantic residual on its finest map (§3)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["FeaturePyramidNetwork", "SemanticResidual"]


class FeaturePyramidNetwork(nn.Module):
    """Backbone maps at strides 4 to 32 → as many maps of one width: p2, p3, p4, p5."""

    def __init__(self, channels: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.output = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in channels)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        above: Tensor | None = None
        outputs: list[Tensor] = []
        for i in reversed(range(len(maps))):
            x: Tensor = self.lateral[i](maps[i])
            above = x if above is None else x + F.interpolate(above, scale_factor=2.0, mode="nearest")
            outputs.insert(0, self.output[i](above))
        return outputs


class SemanticResidual(nn.Module):
    """S: four 3×3 convolutions on p2 [B, C, H/4, W/4] → the same shape.

    The finer RoI features read p2 + S(p2) wherever they read that level; all else reads plain p2.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(4))

    def forward(self, p2: Tensor) -> Tensor:
        x = p2
        for i, convolution in enumerate(self.convolutions):
            x = convolution(x if i == 0 else F.relu(x))
        return x
