"""The sequence encoder: the nodes of an instance attend to each other across levels.

Ke et al. 2022, §3.3: a transformer over one sequence per instance. Places without a node are masked out of the keys.
Every node asks, but only the tokens of the coarser
levels answer (they are the keys): the finest attended level has two thirds of the nodes, and letting it answer too
more than doubles the cost.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["SequenceEncoder"]

_MASKED = -1e4  # added to the score of a key that does not exist; within the range of half precision


class _Layer(nn.Module):
    """Pre-norm transformer layer with PyTorch's fused attention."""

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
    """Attention as matrix products: q, k, v [batch, heads, tokens, channels], the same as the fused kernel.

    For CPUs, where its backward pass is about twice as fast at a few hundred tokens, and where an exported program of
    it is free of the fused kernel's handling of rows without any key, which do not occur.
    """
    score = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(2, 3))
    if mask is not None:
        score = score + torch.where(mask, 0.0, _MASKED).to(score.dtype)
    return torch.matmul(torch.softmax(score, 3, dtype=q.dtype), v)


class SequenceEncoder(nn.Module):
    """A stack of transformer layers over the nodes of each instance."""

    def __init__(self, width: int, heads: int, feedforward: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(width, heads, feedforward) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, queries: Tensor, keys: int, valid: Tensor | None = None) -> Tensor:
        """Attends within each instance.

        Args:
            queries: [B, T, width].
            keys: only the first ``keys`` tokens of each sequence are attended to.
            valid: [B, keys] bool, the keys that exist; None if all do.

        Returns:
            [B, T, width].
        """
        mask = None if valid is None else valid[:, None, None, :]
        for layer in self.layers:
            queries = layer(queries, keys, mask)
        normed: Tensor = self.norm(queries)
        return normed
