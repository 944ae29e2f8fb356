"""The sequence encoder: the nodes of an instance attend to each other across levels.

Ke et al. 2022, §3.3: a transformer over one sequence per instance. Sequences of different lengths share a batch;
padding is masked, so an instance sees its own nodes only. Every node asks, but only the tokens of the coarser
levels answer (they are the keys): the finest attended level has two thirds of the nodes, and letting it answer too
more than doubles the cost.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["SequenceEncoder", "pack"]


def pack(instance: Tensor, instances: int) -> tuple[Tensor, Tensor, int]:
    """Places flat tokens in a padded [instances, longest] layout; a sequence keeps the order of its tokens.

    Args:
        instance: [t] int64, the instance of each token, in any order.
        instances: number of instances.

    Returns:
        slot [t] int64: index of each token in the flattened [instances · longest] layout;
        counts [instances] int64: tokens of each sequence;
        longest: the largest count.
    """
    counts = torch.bincount(instance, minlength=instances)
    longest = int(counts.max())
    order = torch.argsort(instance, stable=True)
    first = counts.cumsum(0) - counts
    rank = torch.empty_like(instance)
    rank[order] = torch.arange(len(instance), device=instance.device) - first.index_select(0, instance[order])
    return instance * longest + rank, counts, longest


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
        if torch.is_grad_enabled() and x.device.type == "cpu" and mask is None:
            attended = _plain_attention(q, k, v)
        else:
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.project(attended.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.narrow(F.relu(self.widen(self.norm2(x))))

    def _heads(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        return x.view(batch, tokens, self.heads, width // self.heads).transpose(1, 2)


def _plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention as matrix products: q, k, v [batch, heads, tokens, channels], the same as the fused kernel.

    For training on a CPU only, where its backward pass is about twice as fast at a few hundred tokens.
    """
    batch, heads, tokens, channels = q.shape
    q, k, v = (x.reshape(batch * heads, -1, channels) for x in (q * channels**-0.5, k, v))
    weights = torch.softmax(torch.bmm(q, k.transpose(1, 2)), 2, dtype=q.dtype)
    return torch.bmm(weights, v).view(batch, heads, tokens, channels)


class SequenceEncoder(nn.Module):
    """A stack of transformer layers over the nodes of each instance."""

    def __init__(self, width: int, heads: int, feedforward: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(width, heads, feedforward) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, queries: Tensor, instance: Tensor, instances: int, keys: int | None = None) -> Tensor:
        """Attends within each instance.

        Args:
            queries: [t, width].
            instance: [t] int64, the instance of each query, in any order.
            instances: number of instances.
            keys: only the first ``keys`` of the flat queries are attended to; None for all.

        Returns:
            [t, width].
        """
        slot, _, longest = pack(instance, instances)
        counts = torch.bincount(instance[:keys], minlength=instances)
        most = int(counts.max())
        # keys come first in the flat order, so they come first in every sequence
        mask = None
        if not bool((counts == most).all()):
            mask = (torch.arange(most, device=counts.device) < counts[:, None])[:, None, None, :]
        padded = queries.new_zeros(instances * longest, queries.shape[1]).index_copy(0, slot, queries)
        x = padded.view(instances, longest, -1)
        for layer in self.layers:
            x = layer(x, most, mask)
        return self.norm(x).reshape(instances * longest, -1).index_select(0, slot)
