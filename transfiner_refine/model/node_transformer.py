"""From nodes to labels: node encoder, sequence encoder, pixel decoder (Ke et al. 2022, §3.3 and fig. 5)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_MASKED = -1e4  # added to the score of a key that does not exist; within the range of half precision


def axis_position(grid: int, width: int, like: Tensor) -> Tensor:
    """Sine and cosine of the centres of an axis' cells at ``width // 4`` frequencies: [grid, width // 2].

    Positions are relative to the RoI, so the cells of all levels share one frame. Device and type are of ``like``.
    """
    # wavelengths from four RoI sides down to about one 224-level cell; torch.logspace has no MPS kernel
    frequency = 2 * math.pi * 2.0 ** torch.linspace(-2, 7, width // 4, device=like.device)
    centre = (torch.arange(grid, device=like.device) + 0.5) / grid
    angle = centre[:, None] * frequency
    return torch.cat((angle.sin(), angle.cos()), 1).to(like.dtype)


class NodeEncoder(nn.Module):
    """Queries of one level's nodes from four cues.

    (1) the feature at the node's level, (2) the coarse mask's value, (3) the relative position in the RoI, (4) the 3×3
    neighbourhood, squeezed by a fully connected layer. Another one fuses cues 1, 2 and 4; the position is added.
    ``neighbour_channels`` are those of one cell in cue 4, without the coarse mask.
    """

    def __init__(self, feature_channels: int, neighbour_channels: int, width: int) -> None:
        super().__init__()
        self.context = nn.Linear(9 * (neighbour_channels + 1), width // 2)
        self.fuse = nn.Linear(feature_channels + 1 + width // 2, width)
        self.position = nn.Linear(width, width)

    def forward(
        self, features: Tensor, coarse: Tensor, neighbours: Tensor, y: Tensor, x: Tensor, grid: int
    ) -> Tensor:
        """[B, K, width] queries of the nodes in cells y, x [B, K] of a grid.

        From the features [B, K, C] there, and the coarse mask [B, K, 9] and the features [B, K, 9 · C'] around.
        """
        coarse = coarse * 2 - 1
        context = F.relu(self.context(torch.cat((neighbours, coarse), 2)))
        query: Tensor = self.fuse(torch.cat((features, coarse[:, :, 4:5], context), 2))
        return query + self._position(y, x, grid)

    def _position(self, y: Tensor, x: Tensor, grid: int) -> Tensor:
        """``position`` of the encoded centres; linear, so row and column may be looked up apart: [B, K, width]."""
        weight = self.position.weight
        axis = axis_position(grid, weight.shape[1], weight)
        rows = F.linear(axis, weight[:, : axis.shape[1]], self.position.bias)
        columns = F.linear(axis, weight[:, axis.shape[1] :])
        both = rows.index_select(0, y.flatten()) + columns.index_select(0, x.flatten())
        return both.view(*y.shape, -1)


class SequenceEncoder(nn.Module):
    """Transformer layers over one sequence an instance: the nodes attend to each other across levels.

    Only the tokens of the coarser levels are keys. The finest attended level has two thirds of the nodes; as keys too
    they would more than double the cost.
    """

    def __init__(self, width: int, heads: int, feedforward: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(width, heads, feedforward) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, queries: Tensor, keys: int, valid: Tensor | None = None) -> Tensor:
        """[B, T, width] → the same; of the first ``keys`` tokens, the keys, ``valid`` [B, keys] bool exist."""
        mask = None if valid is None else valid[:, None, None, :]
        for layer in self.layers:
            queries = layer(queries, keys, mask)
        normed: Tensor = self.norm(queries)
        return normed


class _Layer(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, width: int, heads: int, feedforward: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, feedforward), nn.Linear(feedforward, width)

    def forward(self, x: Tensor, keys: int, mask: Tensor | None) -> Tensor:
        batch, tokens, width = x.shape
        normed = self.norm1(x)
        q = self._heads(F.linear(normed, self.qkv.weight[:width], self.qkv.bias[:width]))
        kv = F.linear(normed[:, :keys], self.qkv.weight[width:], self.qkv.bias[width:])
        k, v = self._heads(kv[..., :width]), self._heads(kv[..., width:])
        if x.device.type == "cpu":
            attended = _plain_attention(q, k, v, mask)
        else:
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.project(attended.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.narrow(F.relu(self.widen(self.norm2(x))))

    def _heads(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        return x.view(batch, tokens, self.heads, width // self.heads).transpose(1, 2)


def _plain_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """``scaled_dot_product_attention`` as matrix products: q, k, v [B, heads, tokens, channels].

    For CPUs, where its backward pass is about twice as fast at a few hundred tokens. An exported program of it lacks
    the fused kernel's handling of rows without any key, which do not occur.
    """
    score = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(2, 3))
    if mask is not None:
        score = score + torch.where(mask, 0.0, _MASKED).to(score.dtype)
    return torch.matmul(torch.softmax(score, 3, dtype=q.dtype), v)


class Inheritance(nn.Module):
    """Query of a node beyond the 112 level: its parent's attended query, refined by the node's own cues.

    Attention over the nodes of a 448 grid would cost more than all the rest together; this is linear in their number.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.widen, self.narrow = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, own: Tensor, parent: Tensor) -> Tensor:
        """own, parent [..., width] → [..., width]."""
        x = own + parent
        return x + self.narrow(F.relu(self.widen(self.norm(x))))


class PixelDecoder(nn.Module):
    """Two-layer perceptron, query [..., width] → foreground logit [...]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden, self.classify = nn.Linear(width, width), nn.Linear(width, 1)

    def forward(self, query: Tensor) -> Tensor:
        logit: Tensor = self.classify(F.relu(self.hidden(query)))
        return logit.squeeze(-1)
