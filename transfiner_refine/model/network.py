"""The whole network, in the order of the method: features → incoherence → quadtree → queries → labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transfiner_refine.model.backbone import build_backbone
from transfiner_refine.model.config import ATTENTION_GRIDS, RefinerConfig
from transfiner_refine.model.decoder import Inheritance, PixelDecoder
from transfiner_refine.model.incoherence import IncoherenceDetector, RootMaps
from transfiner_refine.model.node_encoder import NodeEncoder, sinusoidal_position
from transfiner_refine.model.propagate import halvings
from transfiner_refine.model.pyramid import FeatureMap, TopDown, roi_align_at_nodes
from transfiner_refine.model.quadtree import NodeSelector, QuadtreeLevel, children_of
from transfiner_refine.model.sequence_encoder import SequenceEncoder

__all__ = ["MaskTransfiner", "TreeOutput"]

_CONTEXT_GRID = 7  # tokens of the whole RoI beside the nodes; the official code has 14 × 14


@dataclass(frozen=True)
class TreeOutput:
    """What one pass over a batch of RoIs yields.

    Attributes:
        levels: the quadtree's nodes, coarse to fine.
        logits: [n] foreground logit of each level's nodes.
        roots: the detector's maps on the 28 level.
        candidates: the children the detector judged, one entry per level below the first.
        candidate_logits: [m] its incoherence logit for each of them.
    """

    levels: list[QuadtreeLevel]
    logits: list[Tensor]
    roots: RootMaps
    candidates: list[QuadtreeLevel]
    candidate_logits: list[Tensor]


class MaskTransfiner(nn.Module):
    """Mask Transfiner as a post-hoc refiner: an RoI's pixels and its coarse mask in, labels of quadtree nodes out.

    Features come from a crop around each RoI rather than from the whole image: the crop's strides 8, 4 and 2 are
    the pyramid's 28, 56 and 112 levels, and the coarse mask can enter the stem.
    """

    def __init__(self, config: RefinerConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config.backbone)
        c2, c4, c8, c16, c32 = self.backbone.channels
        base = config.pyramid_width + config.incoherence_width  # channels of the 28 level's features
        self.top_down = TopDown((c8, c16, c32), config.pyramid_width)
        self.detector = IncoherenceDetector(config.pyramid_width, config.incoherence_width, (c4, c2, 27))
        self.context = nn.Linear(base + 1, config.width)
        own = (base, c4, c2, 3)  # channels of each level's own map; beyond 112 these are the pixels
        # a node beyond 112 inherits its parent's query, so of the levels above it reads the next one only
        coarser = (0, base, base + c4, c2)
        self.encoders = nn.ModuleList(
            NodeEncoder(o + c, o, config.width) for o, c in zip(own, coarser, strict=True)
        )
        self.level_embedding = nn.Embedding(config.max_depth + 1, config.width)  # last: context tokens
        self.sequence = SequenceEncoder(config.width, config.heads, config.feedforward, config.layers)
        self.inherit = Inheritance(config.width, config.width)
        self.decoder = PixelDecoder(config.width)

    def forward(self, image: Tensor, coarse: Tensor, selector: NodeSelector, depth: int) -> TreeOutput:
        """One pass.

        Args:
            image: [B, 3, S, S] float in [0, 255], the RoIs' pixels; S = ``config.detail_side``.
            coarse: [B, 1, S, S] float in [0, 1], the coarse masks.
            selector: chooses the nodes.
            depth: most levels any instance of the batch needs.
        """
        pixels = halvings(image, self.config.crop_side)
        masks = halvings(coarse, _CONTEXT_GRID)
        maps = self.backbone(pixels[self.config.crop_side], masks[self.config.crop_side])
        base = self.top_down(maps[2:])  # [B, C, 28, 28]
        roots = self.detector.roots(base, masks[base.shape[-1]])
        base = torch.cat((base, roots.hidden), 1)
        tables = [FeatureMap.of(base), FeatureMap.of(maps[1]), FeatureMap.of(maps[0])]

        levels = [selector.roots(roots.root_probability().detach())]
        queries = [self._encode(0, levels[0], tables, masks)]
        candidates: list[QuadtreeLevel] = []
        candidate_logits: list[Tensor] = []
        above = None
        for level in range(1, depth):
            children = children_of(levels[-1])
            if level >= len(tables):
                tables.append(FeatureMap.of((pixels[children.grid] - 127.0) / 128.0))
            logit, hidden = self._detect(level, children, tables, masks, above)
            kept = selector.keep(children, torch.sigmoid(logit.detach()))
            candidates.append(children)
            candidate_logits.append(logit)
            levels.append(children.take(kept))
            above = hidden.index_select(0, kept)
            queries.append(self._encode(level, levels[-1], tables, masks))

        count = min(depth, len(ATTENTION_GRIDS))
        attended = self._attend(queries[:count], levels[:count], base, masks[_CONTEXT_GRID])
        for level in range(count, depth):
            attended.append(self.inherit(queries[level], attended[-1].index_select(0, levels[level].parent)))
        return TreeOutput(levels, [self.decoder(q) for q in attended], roots, candidates, candidate_logits)

    def _sample_coarser(self, level: int, nodes: QuadtreeLevel, tables: list[FeatureMap]) -> list[Tensor]:
        """Features of the levels above, bilinearly at the nodes; beyond 112 of the 112 level alone."""
        sampled = []
        above = tables[:level] if level < len(ATTENTION_GRIDS) else tables[len(ATTENTION_GRIDS) - 1 :][:1]
        for table in above:
            box = torch.tensor([0.0, 0.0, table.width, table.height], device=nodes.y.device)
            sampled.append(
                roi_align_at_nodes(
                    table, nodes.instance, box.expand(len(nodes), 4), nodes.grid, nodes.y, nodes.x
                )
            )
        return sampled

    def _detect(
        self,
        level: int,
        nodes: QuadtreeLevel,
        tables: list[FeatureMap],
        masks: dict[int, Tensor],
        above: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """One step of the detector's cascade at the children of the level above."""
        if above is None:  # below the 28 level: its dense output, upsampled
            inherited = self._sample_coarser(1, nodes, tables)[0][:, -self.config.incoherence_width :]
        else:
            inherited = above.index_select(0, nodes.parent)
        table = tables[level]
        where = (nodes.instance, nodes.y, nodes.x)
        features = table.at(*where) if level < len(ATTENTION_GRIDS) else table.neighbourhood(*where)
        around = FeatureMap.of(masks[nodes.grid]).neighbourhood(*where)
        logit, hidden = self.detector.finer(level, inherited, features, around)
        return logit, hidden

    def _encode(
        self, level: int, nodes: QuadtreeLevel, tables: list[FeatureMap], masks: dict[int, Tensor]
    ) -> Tensor:
        """Queries of one level's nodes from the four cues: [n, width]."""
        where = (nodes.instance, nodes.y, nodes.x)
        neighbours = tables[level].neighbourhood(*where)
        channels = tables[level].rows.shape[1]
        own = neighbours[:, 4 * channels : 5 * channels]  # the middle of the 3×3
        around = FeatureMap.of(masks[nodes.grid]).neighbourhood(*where)
        features = torch.cat([own, *self._sample_coarser(level, nodes, tables)], 1)
        encoder = self.encoders[min(level, len(self.encoders) - 1)]
        query: Tensor = encoder(features, around, neighbours, nodes.y, nodes.x, nodes.grid)
        return query + self.level_embedding.weight[level]

    def _attend(
        self, queries: list[Tensor], levels: list[QuadtreeLevel], base: Tensor, coarse: Tensor
    ) -> list[Tensor]:
        """The sequence encoder over the nodes of the first three levels and the RoI's context tokens."""
        batch, device = base.shape[0], base.device
        cells = torch.arange(_CONTEXT_GRID, device=device)
        y, x = torch.meshgrid(cells, cells, indexing="ij")
        pooled = torch.cat((F.adaptive_avg_pool2d(base, _CONTEXT_GRID), coarse), 1)
        context = self.context(pooled.flatten(2).transpose(1, 2))  # [B, 49, width]
        position = sinusoidal_position(y.flatten(), x.flatten(), _CONTEXT_GRID, self.config.width)
        context = context + position.to(context.dtype) + self.level_embedding.weight[-1]
        owner = torch.arange(batch, device=device).repeat_interleave(_CONTEXT_GRID**2)
        tokens = torch.cat([context.flatten(0, 1), *queries])
        instance = torch.cat([owner, *(level.instance for level in levels)])
        attended = self.sequence(tokens, instance, batch, keys=len(tokens) - len(queries[-1]))
        return list(attended.split([len(owner), *(len(q) for q in queries)])[1:])
