"""The sequence encoder: all nodes of an instance attend to each other, whatever their level.

Ke et al. 2022, §3.3: a transformer over one sequence per instance. Sequences of different lengths share a
batch; padding is masked, so an instance sees its own nodes only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["SequenceEncoder", "pack"]


def pack(instance: Tensor, instances: int) -> tuple[Tensor, int, Tensor | None]:
    """Places flat tokens in a padded [instances, longest] layout.

    Args:
        instance: [t] int64, the instance of each token, in any order.
        instances: number of instances.

    Returns:
        slot [t] int64: index of each token in the flattened [instances · longest] layout;
        longest: tokens of the longest sequence;
        valid: [instances, longest] bool, or None where all sequences are equally long.
    """
    counts = torch.bincount(instance, minlength=instances)
    longest = int(counts.max()) if instances else 0
    order = torch.argsort(instance, stable=True)
    first = counts.cumsum(0) - counts
    rank = torch.empty_like(instance)
    rank[order] = torch.arange(len(instance), device=instance.device) - first.index_select(0, instance[order])
    slot = instance * longest + rank
    if bool((counts == longest).all()):
        return slot, longest, None
    return slot, longest, torch.arange(longest, device=instance.device) < counts[:, None]


class _Layer(nn.Module):
    """Pre-norm transformer layer with PyTorch's fused attention."""

    def __init__(self, width: int, heads: int, feedforward: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, feedforward), nn.Linear(feedforward, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [batch, heads, tokens, width / heads] each
        if torch.is_grad_enabled() and x.device.type == "cpu" and mask is None:
            attended = _plain_attention(q, k, v)
        else:
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.project(attended.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.narrow(F.relu(self.widen(self.norm2(x))))


def _plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention as matrix products: q, k, v [batch, heads, tokens, channels], the same as the fused kernel.

    For training on a CPU only, where its backward pass is about twice as fast at a few hundred tokens.
    """
    batch, heads, tokens, channels = q.shape
    q, k, v = (x.reshape(batch * heads, tokens, channels) for x in (q * channels**-0.5, k, v))
    weights = torch.softmax(torch.bmm(q, k.transpose(1, 2)), 2, dtype=q.dtype)
    return torch.bmm(weights, v).view(batch, heads, tokens, channels)


class SequenceEncoder(nn.Module):
    """A stack of transformer layers over the nodes of each instance."""

    def __init__(self, width: int, heads: int, feedforward: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(width, heads, feedforward) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, queries: Tensor, instance: Tensor, instances: int) -> Tensor:
        """queries [t, width], instance [t] (any order) → [t, width]."""
        slot, longest, valid = pack(instance, instances)
        padded = queries.new_zeros(instances * longest, queries.shape[1]).index_copy(0, slot, queries)
        x = padded.view(instances, longest, -1)
        mask = None if valid is None else valid[:, None, None, :]
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm(x).reshape(instances * longest, -1).index_select(0, slot)
