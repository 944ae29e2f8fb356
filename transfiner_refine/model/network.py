"""The whole network, in the order of the method: features → incoherence → quadtree → queries → labels.

Beside the paper's parts it has a dense decoder (``dense_decoder.py``), whose labels the nodes correct.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transfiner_refine.model.backbone import build_backbone
from transfiner_refine.model.config import ATTENTION_GRIDS, RefinerConfig
from transfiner_refine.model.decoder import Inheritance, PixelDecoder
from transfiner_refine.model.dense_decoder import DenseDecoder
from transfiner_refine.model.incoherence import IncoherenceDetector, RootMaps
from transfiner_refine.model.node_encoder import NodeEncoder, sinusoidal_position
from transfiner_refine.model.propagate import LevelMap, halvings, propagate_corrections
from transfiner_refine.model.pyramid import FeatureMap, TopDown, roi_align_at_nodes
from transfiner_refine.model.quadtree import NodeSelector, QuadtreeLevel, children_of
from transfiner_refine.model.sequence_encoder import SequenceEncoder

__all__ = ["MaskTransfiner", "TreeOutput"]

_PIXEL_LEVEL = 4  # from this level on (448) a node's own map is the pixels
_DROPOUT = 0.1  # share of the 28 level's channels that training blanks: there are few photos to learn from
_CONTEXT_GRID = 7  # tokens of the whole RoI beside the nodes; the official code has 14 × 14


@dataclass(frozen=True)
class TreeOutput:
    """What one pass over a batch of RoIs yields.

    Attributes:
        levels: the quadtree's nodes, coarse to fine.
        logits: [n] foreground logit of each level's nodes.
        dense: grid → [B, grid, grid], foreground logit of every cell of the levels 28 to 112, and of 224 if any
            instance goes that deep.
        roots: the detector's maps on the 28 level.
        candidates: the children the detector judged, one entry per level below the first.
        candidate_logits: [m] its incoherence logit for each of them.
    """

    levels: list[QuadtreeLevel]
    logits: list[Tensor]
    dense: dict[int, Tensor]
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
        self.detector = IncoherenceDetector(
            config.pyramid_width, config.incoherence_width, (*config.dense_widths, 27)
        )
        widths = config.dense_widths
        self.dense = DenseDecoder(base, (c4, c2), config.dense_widths)
        self.context = nn.Linear(base + 1, config.width)
        # channels of each level's own map, its dense label included; beyond 224 these are the pixels
        own = (base + 1, *(width + 1 for width in widths), 3)
        # of the levels above a node reads the next one, which holds what the coarser ones know
        coarser = (0, *own[:-1])
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
        return self.label(self.top_down(maps[2:]), (maps[1], maps[0]), pixels, masks, selector, depth)

    def label(
        self,
        base: Tensor,
        finer: tuple[Tensor, Tensor],
        pixels: dict[int, Tensor],
        masks: dict[int, Tensor],
        selector: NodeSelector,
        depth: int,
    ) -> TreeOutput:
        """All that comes after the features.

        Args:
            base: [B, C, 28, 28].
            finer: the backbone's maps on the 56 and 112 levels.
            pixels: side → [B, 3, side, side] in [0, 255], the RoIs' pixels at several resolutions.
            masks: side → [B, 1, side, side] in [0, 1], the coarse masks.
            selector, depth: as for ``forward``.
        """
        roots = self.detector.roots(base, masks[base.shape[-1]])
        base = F.dropout2d(torch.cat((base, roots.hidden), 1), _DROPOUT, self.training)
        detail = _normalised(pixels[self.config.detail_side]) if depth > len(ATTENTION_GRIDS) else None
        decoded = self.dense(base, finer, detail, masks)
        dense = [roots.mask, *(level.logit for level in decoded)]
        features = [base, *(level.features for level in decoded)]
        tables = [_with_label(each, logit) for each, logit in zip(features, dense, strict=True)]
        labels = [FeatureMap.of(logit[:, None]) for logit in dense]

        wrong, incoherent = roots.wrong_probability().detach(), roots.incoherent_probability().detach()
        levels = [selector.roots(wrong, incoherent)]
        queries = [self._encode(0, levels[0], tables, masks)]
        candidates: list[QuadtreeLevel] = []
        candidate_logits: list[Tensor] = []
        above = None
        for level in range(1, depth):
            children = children_of(levels[-1])
            if level >= len(tables):
                tables.append(FeatureMap.of(pixels[children.grid]))
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
        # a node's logit is what the decoder adds to the dense label
        logits = [
            _sample(labels[min(i, len(labels) - 1)], level).squeeze(1) + self.decoder(query)
            for i, (level, query) in enumerate(zip(levels, attended, strict=True))
        ]
        return TreeOutput(
            levels,
            logits,
            {logit.shape[-1]: logit for logit in dense},
            roots,
            candidates,
            candidate_logits,
        )

    def maps(self, output: TreeOutput, coarse: Tensor, config: RefinerConfig) -> list[LevelMap]:
        """The mask on each level, from a pass over ``coarse`` [B, 1, S, S], with the settings of ``config``."""
        return propagate_corrections(
            halvings(coarse, ATTENTION_GRIDS[0]),
            output.dense,
            output.roots.wrong_probability() >= config.relabel_threshold,
            output.levels,
            output.logits,
            config.trust,
            config.deep_trust,
            config.relabel_margin,
        )

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
            inherited = _sample(tables[0], nodes)[:, -self.config.incoherence_width - 1 : -1]
        else:
            inherited = above.index_select(0, nodes.parent)
        table = tables[level]
        where = (nodes.instance, nodes.y, nodes.x)
        deep = level >= _PIXEL_LEVEL
        # the last channel is the dense label, which the detector need not see
        features = _normalised(table.neighbourhood(*where)) if deep else table.at(*where)[:, :-1]
        around = FeatureMap.of(masks[nodes.grid]).neighbourhood(*where)
        logit, hidden = self.detector.finer(level, inherited, features, around)
        return logit, hidden

    def _encode(
        self, level: int, nodes: QuadtreeLevel, tables: list[FeatureMap], masks: dict[int, Tensor]
    ) -> Tensor:
        """Queries of one level's nodes from the four cues: [n, width]."""
        where = (nodes.instance, nodes.y, nodes.x)
        neighbours = tables[level].neighbourhood(*where)
        if level >= _PIXEL_LEVEL:
            neighbours = _normalised(neighbours)
        channels = tables[level].rows.shape[1]
        own = neighbours[:, 4 * channels : 5 * channels]  # the middle of the 3×3
        around = FeatureMap.of(masks[nodes.grid]).neighbourhood(*where)
        coarser = [_sample(tables[min(level, _PIXEL_LEVEL) - 1], nodes)] if level else []
        features = torch.cat([own, *coarser], 1)
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


def _sample(table: FeatureMap, nodes: QuadtreeLevel) -> Tensor:
    """The features of a map that spans the RoI, bilinearly at the nodes' centres: [n, C]."""
    if table.height == nodes.grid:
        return table.at(nodes.instance, nodes.y, nodes.x)
    box = torch.tensor([0.0, 0.0, table.width, table.height], device=nodes.y.device)
    return roi_align_at_nodes(table, nodes.instance, box.expand(len(nodes), 4), nodes.grid, nodes.y, nodes.x)


def _with_label(features: Tensor, logit: Tensor) -> FeatureMap:
    """A level's features [B, C, grid, grid] with the dense label in [-1, 1] as the last channel."""
    table = FeatureMap.of(features)
    label = torch.tanh(logit.detach() / 2).reshape(-1, 1).to(table.rows.dtype)
    return FeatureMap(torch.cat((table.rows, label), 1), table.height, table.width)


def _normalised(pixels: Tensor) -> Tensor:
    """Pixels in [0, 255] as the backbone sees them; here, because only a few of the finest levels are read."""
    return (pixels - 127.0) / 128.0
