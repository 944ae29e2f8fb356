"""Tokens of one box, the transformer over them, and the decoder (§5)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transfiner_refine.official.features import CONTEXT_GRID, ImageFeatures
from transfiner_refine.official.nodes import Nodes

__all__ = ["NodeTransformer", "axis_embedding", "tokens_of"]

_HEADS = 4
_TEMPERATURE = 10000.0


def axis_embedding(grid: int, width: int, device: torch.device | None = None) -> Tensor:
    """Sine embedding of the cells on one axis (Carion et al. 2020): [grid, width]."""
    e = torch.arange(1, grid + 1, dtype=torch.float32, device=device) / (grid + 1e-6) * (2 * math.pi)
    j = torch.arange(width, dtype=torch.float32, device=device)
    angle = e[:, None] / _TEMPERATURE ** (2 * torch.div(j, 2, rounding_mode="floor") / width)
    return torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), 2).flatten(1)


def tokens_of(
    image: ImageFeatures, box: Tensor, context: Tensor, coarse: Tensor, levels: Sequence[Nodes]
) -> tuple[Tensor, Tensor]:
    """The tokens of one box: 196 context tokens, then its nodes level by level.

    Args:
        image: the image's features.
        box: [4] XYXY, pixels of the resized image.
        context: [C, 14, 14], what it pools of them.
        coarse: [28, 28] probability of its mask before refining.
        levels: its nodes.

    Returns:
        features and the coarse mask's value [t, C + 1], and the sine embedding of the cells [t, C].
    """
    width, grid, _ = context.shape
    every = torch.arange(grid * grid, device=context.device)
    values, positions = [], []
    for level in (Nodes(grid, every, every), *levels):
        resized = F.interpolate(coarse[None, None], (level.grid, level.grid), mode="bilinear")
        values.append(resized.flatten()[level.cell])
        axis = axis_embedding(level.grid, width // 2, context.device)
        positions.append(torch.cat((axis[level.y], axis[level.x]), 1))
    features = torch.cat([context.flatten(1).T, *(image.at(box, level) for level in levels)])
    coarse_values = torch.cat(values)[:, None].to(features.dtype)
    return torch.cat((features, coarse_values), 1), torch.cat(positions)


class _Layer(nn.Module):
    """Post-norm transformer layer; the position joins queries and keys anew in every layer, never the values."""

    def __init__(self, width: int, feedforward: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.project = (nn.Linear(width, width) for _ in range(4))
        self.widen, self.narrow = nn.Linear(width, feedforward), nn.Linear(feedforward, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, position: Tensor, first: int) -> Tensor:
        """x, position [t, width] → [t - first, width], the tokens from ``first`` on."""
        where = x + position
        q, k, v = (_heads(each) for each in (self.q(where[first:]), self.k(where), self.v(x)))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)[0]
        x = self.norm1(x[first:] + self.project(attended))
        y: Tensor = self.norm2(x + self.narrow(F.relu(self.widen(x))))
        return y


def _heads(x: Tensor) -> Tensor:
    """[t, width] → [1, heads, t, channels of a head]."""
    return x.view(1, len(x), _HEADS, -1).transpose(1, 2)


class _PackedLinear(nn.Module):
    """A linear layer through oneDNN."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = (each.detach().to_mkldnn() for each in (linear.weight, linear.bias))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to_mkldnn(), self.weight, self.bias).to_dense()


class NodeTransformer(nn.Module):
    """From the tokens of one box to its nodes' labels.

    Args:
        width: channels of a feature and of a token.
        feedforward: hidden channels of a layer.
        layers: number of layers.
    """

    def __init__(self, width: int, feedforward: int, layers: int) -> None:
        super().__init__()
        self.fuse = nn.Linear(width + 1, width)  # all that the release has of the paper's node encoder
        self.layers = nn.ModuleList(_Layer(width, feedforward) for _ in range(layers))
        self.decode = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, tokens: Tensor, position: Tensor, first: int = CONTEXT_GRID**2) -> Tensor:
        """Foreground logits [t - first] of the tokens from ``first`` on; what the context says is not computed."""
        if len(tokens) == first:
            return position.new_zeros(0)
        logits: Tensor = self.decode(self.encode(self.fuse(tokens), position, first))
        return logits.squeeze(1).float()

    def encode(self, x: Tensor, position: Tensor, first: int) -> Tensor:
        """The layers: [t, C] → [t - first, C]."""
        for layer in self.layers[:-1]:
            x = layer(x, position, 0)
        encoded: Tensor = self.layers[-1](x, position, first)
        return encoded

    def pack(self) -> None:
        """Makes the layers' linear maps run through oneDNN; for inference in float32 on a CPU, once on the CPU.

        PyTorch multiplies float32 matrices with MKL, which reaches less than half the speed on AMD's processors.
        """
        if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            for layer in self.layers:
                for name, linear in list(layer.named_children()):
                    if isinstance(linear, nn.Linear):
                        setattr(layer, name, _PackedLinear(linear))
