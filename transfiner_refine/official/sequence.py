"""Tokens, the transformer over them, and the decoder (§5)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transfiner_refine.official.config import CONTEXT_GRID
from transfiner_refine.official.quadtree import QuadtreeLevel, pack
from transfiner_refine.official.regions import Regions

__all__ = ["NodeTransformer", "Tokens", "axis_embedding", "gather_tokens"]

_HEADS = 4
_TEMPERATURE = 10000.0
#: Tokens that are attended together; bounds the memory of the padded sequences and of the feed-forward part.
_TOKENS_AT_ONCE = 32768


def axis_embedding(grid: int, width: int, device: torch.device | None = None) -> Tensor:
    """Sine embedding of the cells on one axis (Carion et al. 2020): [grid, width]."""
    e = torch.arange(1, grid + 1, dtype=torch.float32, device=device) / (grid + 1e-6) * (2 * math.pi)
    j = torch.arange(width, dtype=torch.float32, device=device)
    angle = e[:, None] / _TEMPERATURE ** (2 * torch.div(j, 2, rounding_mode="floor") / width)
    return torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), 2).flatten(1)


@dataclass(frozen=True)
class Tokens:
    """The tokens of all boxes, flat: the context tokens of every box, then the nodes level by level.

    Attributes:
        features: [t, C].
        coarse: [t] the coarse mask's probability.
        position: [t, C] sine embedding of the cell.
        instance: [t] int64.
        context: number of context tokens; they are the first.
    """

    features: Tensor
    coarse: Tensor
    position: Tensor
    instance: Tensor
    context: int

    def take(self, members: Tensor, place: Tensor) -> Tokens:
        """The tokens at ``members`` ([m], ascending), with boxes renumbered by ``place`` ([boxes])."""
        parts = (self.features, self.coarse, self.position, place.index_select(0, self.instance))
        features, coarse, position, instance = (part.index_select(0, members) for part in parts)
        return Tokens(features, coarse, position, instance, 0)


def gather_tokens(regions: Regions, features: Tensor, coarse: Tensor, levels: list[QuadtreeLevel]) -> Tokens:
    """The tokens of all boxes.

    Args:
        regions: the boxes.
        features: [n, C, 14, 14], x14.
        coarse: [n, 28, 28] probability of the mask before refining.
        levels: the nodes.
    """
    count, width = features.shape[:2]
    device = features.device
    cells = torch.ones(count, CONTEXT_GRID, CONTEXT_GRID, dtype=torch.bool, device=device).nonzero()
    instance, y, x = cells.unbind(1)
    context = QuadtreeLevel(CONTEXT_GRID, instance, y, x, torch.full_like(instance, -1))
    parts = [features.flatten(2).transpose(1, 2).reshape(-1, width)]
    parts += [regions.at(level) for level in levels]
    values, positions = [], []
    for level in (context, *levels):
        size = (level.grid, level.grid)
        resized = F.interpolate(coarse[:, None], size, mode="bilinear", align_corners=False)
        values.append(resized.flatten().index_select(0, level.cell))
        axis = axis_embedding(level.grid, width // 2, device)
        positions.append(torch.cat((axis.index_select(0, level.y), axis.index_select(0, level.x)), 1))
    instances = torch.cat([context.instance, *(level.instance for level in levels)])
    return Tokens(torch.cat(parts), torch.cat(values), torch.cat(positions), instances, len(instance))


class _Layer(nn.Module):
    """Post-norm transformer layer; the position joins queries and keys anew in every layer, never the values."""

    def __init__(self, width: int, feedforward: int) -> None:
        super().__init__()
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.widen, self.narrow = nn.Linear(width, feedforward), nn.Linear(feedforward, width)
        self._packed: dict[str, tuple[Tensor, Tensor]] = {}

    def forward(self, x: Tensor, position: Tensor, layout: _Layout, asking: Tensor | None) -> Tensor:
        """x, position [t, width] → [t, width], or of the tokens ``asking`` (ascending indices) alone."""
        where = x + position
        k, v = self._linear("k", where), self._linear("v", x)
        if asking is not None:
            where, x = where.index_select(0, asking), x.index_select(0, asking)
        x = self.norm1(x + self._linear("project", layout.attend(self._linear("q", where), k, v, asking)))
        y: Tensor = self.norm2(x + self._feed_forward(x))
        return y

    def _parts(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Weight and bias of every linear map."""
        parts = {
            name: (layer.weight, layer.bias)
            for name, layer in (("project", self.project), ("widen", self.widen), ("narrow", self.narrow))
        }
        weights, biases = self.qkv.weight.chunk(3), self.qkv.bias.chunk(3)
        return parts | dict(zip("qkv", zip(weights, biases, strict=True), strict=True))

    def pack(self) -> None:
        """See ``NodeTransformer.pack``."""
        self._packed = {
            name: (weight.detach().contiguous().to_mkldnn(), bias.detach().contiguous().to_mkldnn())
            for name, (weight, bias) in self._parts().items()
        }

    def _may_use_packed(self, x: Tensor) -> bool:
        plain = x.device.type == "cpu" and x.dtype == torch.float32
        return bool(self._packed) and plain and not torch.is_autocast_enabled("cpu")

    def _linear(self, part: str, x: Tensor) -> Tensor:
        if self._may_use_packed(x):
            y: Tensor = F.linear(x.to_mkldnn(), *self._packed[part]).to_dense()
            return y
        return F.linear(x, *self._parts()[part])

    def _feed_forward(self, x: Tensor) -> Tensor:
        if self._may_use_packed(x):
            hidden = F.relu(F.linear(x.to_mkldnn(), *self._packed["widen"]))
            y: Tensor = F.linear(hidden, *self._packed["narrow"]).to_dense()
            return y
        z: Tensor = self.narrow(F.relu(self.widen(x), inplace=True))
        return z


class _Layout:
    """Where the flat tokens of some boxes lie in padded sequences, and attention in that layout.

    Args:
        instance: [t] int64, box of each token, 0 … boxes - 1, in any order.
        boxes: number of boxes.
    """

    def __init__(self, instance: Tensor, boxes: int) -> None:
        self.boxes = boxes
        self.mask: Tensor | None = None
        if boxes == 1:
            self.longest = len(instance)
            return
        self.slot, counts, self.longest = pack(instance, boxes)
        self.mask = (torch.arange(self.longest, device=counts.device) < counts[:, None])[:, None, None, :]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, asking: Tensor | None) -> Tensor:
        """Attention within each box; q [a, width] of the tokens ``asking`` (None: of all), k and v [t, width]."""
        k, v = self._pad(k, None), self._pad(v, None)
        padded = F.scaled_dot_product_attention(self._pad(q, asking), k, v, attn_mask=self.mask)
        flat = padded.transpose(1, 2).reshape(-1, q.shape[1])
        if self.boxes == 1:
            return flat
        return flat.index_select(0, self.slot if asking is None else self.slot.index_select(0, asking))

    def _pad(self, x: Tensor, which: Tensor | None) -> Tensor:
        """Flat [t, width] → [boxes, heads, longest, channels of a head]."""
        if self.boxes > 1:
            slot = self.slot if which is None else self.slot.index_select(0, which)
            x = x.new_zeros(self.boxes * self.longest, x.shape[1]).index_copy(0, slot, x)
        return x.view(self.boxes, -1, _HEADS, x.shape[1] // _HEADS).transpose(1, 2)


class NodeTransformer(nn.Module):
    """From tokens to the nodes' labels.

    Args:
        width: channels of a token.
        feedforward: hidden channels of a layer.
        layers: number of layers.
    """

    def __init__(self, width: int, feedforward: int, layers: int) -> None:
        super().__init__()
        self.fuse = nn.Linear(width + 1, width)
        self.layers = nn.ModuleList(_Layer(width, feedforward) for _ in range(layers))
        self.decode_hidden, self.decode = nn.Linear(width, width), nn.Linear(width, 1)

    def forward(self, tokens: Tokens, boxes: int) -> Tensor:
        """Foreground logits [t - context] of the nodes, in their flat order."""
        logits = tokens.coarse.new_empty(len(tokens.instance))
        for group, size in _groups(tokens, boxes):
            members = (group.index_select(0, tokens.instance) >= 0).nonzero().squeeze(1)
            part = tokens.take(members, group)
            asking = (members >= tokens.context).nonzero().squeeze(1)  # what the others say is never read
            encoded = self.encode(self.fused(part), part, size, asking)
            logits.index_copy_(0, members.index_select(0, asking), self.decoded(encoded))
        return logits[tokens.context :]

    def pack(self) -> None:
        """Makes the linear layers run through oneDNN, in float32 on a CPU; nothing elsewhere. For inference only.

        PyTorch multiplies float32 matrices with MKL, which reaches less than half the speed on AMD's processors.
        The weights must not change afterwards.
        """
        available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        if available and self.fuse.weight.device.type == "cpu":
            for layer in self.modules():
                if isinstance(layer, _Layer):
                    layer.pack()

    def fused(self, tokens: Tokens) -> Tensor:
        """The node encoder of the release: feature and coarse value, mixed by one linear layer: [t, C]."""
        coarse = tokens.coarse[:, None].to(tokens.features.dtype)
        fused: Tensor = self.fuse(torch.cat((tokens.features, coarse), 1))
        return fused

    def encode(self, fused: Tensor, tokens: Tokens, boxes: int, asking: Tensor | None = None) -> Tensor:
        """The transformer: [t, C] → [t, C], or of the tokens ``asking`` (ascending indices) alone."""
        layout = _Layout(tokens.instance, boxes)
        x = fused
        for i, layer in enumerate(self.layers):
            x = layer(x, tokens.position, layout, asking if i == len(self.layers) - 1 else None)
        return x

    def decoded(self, encoded: Tensor) -> Tensor:
        """Foreground logits: [t, C] → [t]."""
        logits: Tensor = self.decode(F.relu(self.decode_hidden(encoded)))
        return logits.squeeze(1).float()


def _groups(tokens: Tokens, boxes: int) -> Iterator[tuple[Tensor, int]]:
    """Boxes that are attended together, longest sequences first, so that little is padded.

    Yields:
        [boxes] int64, each box's place in the group, -1 for boxes outside; and the number of boxes in it. Boxes
        without nodes are in no group.
    """
    nodes = torch.bincount(tokens.instance[tokens.context :], minlength=boxes).tolist()  # the one transfer
    order = sorted((box for box in range(boxes) if nodes[box]), key=lambda box: -nodes[box])
    while order:
        longest = nodes[order[0]] + tokens.context // boxes
        size = max(1, _TOKENS_AT_ONCE // longest)
        group, order = order[:size], order[size:]
        places = [-1] * boxes
        for place, box in enumerate(sorted(group)):
            places[box] = place
        yield torch.tensor(places, device=tokens.instance.device), len(group)
