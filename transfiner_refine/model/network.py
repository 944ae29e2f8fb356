"""The whole network, in the order of the method: features → incoherence → quadtree → queries → labels.

Beside the paper's parts it has a dense decoder (``dense_decoder.py``), whose labels the nodes correct.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transfiner_refine.model.backbone import EfficientNetLite
from transfiner_refine.model.config import ATTENTION_GRIDS, RefinerConfig
from transfiner_refine.model.dense_decoder import DenseDecoder
from transfiner_refine.model.incoherence import IncoherenceDetector, RootMaps
from transfiner_refine.model.node_transformer import (
    Inheritance,
    NodeEncoder,
    PixelDecoder,
    SequenceEncoder,
    axis_position,
)
from transfiner_refine.model.propagate import LevelMap, area_pyramid, corrected_labels, propagate_corrections
from transfiner_refine.model.pyramid import FeatureMap, TopDown
from transfiner_refine.model.quadtree import BudgetSelector, NodeSelector, QuadtreeNodes, children_of

_PIXEL_LEVEL = 4  # from this level on (448) a node's own map is the pixels
_DROPOUT = 0.1  # share of the 28 level's channels that training blanks: there are few images to learn from
_LABELS = 3  # channels of a table after its features, see ``_table``
_CENTRE = 4  # of the 3×3 cells around a node
_CONTEXT_GRID = 7  # tokens of the whole RoI beside the nodes; the official code has 14 × 14


@dataclass(frozen=True)
class TreeOutput:
    """The result of one pass over a batch of RoIs."""

    levels: list[QuadtreeNodes]  # the quadtree's nodes, coarse to fine; none without a selector
    logits: list[Tensor]  # [B, K] foreground logit of each level's nodes
    dense: dict[int, Tensor]  # grid → [B, grid, grid], foreground logit of every cell, 28 to 112 or 224
    roots: RootMaps  # the detector's maps on the 28 level
    candidates: list[QuadtreeNodes]  # the children that the detector judged, from the second level on
    candidate_logits: list[Tensor]  # [B, 4 K] its incoherence logit for each of them


class MaskTransfiner(nn.Module):
    """Mask Transfiner as a post-hoc refiner: an RoI's pixels and its coarse mask in, labels of quadtree nodes out.

    Features come from a crop around each RoI rather than from the whole image: the crop's strides 8, 4 and 2 are
    the pyramid's 28, 56 and 112 levels, and the coarse mask can enter the stem.
    """

    def __init__(self, config: RefinerConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = EfficientNetLite(config.backbone)
        c2, c4, c8, c16, c32 = self.backbone.channels
        base = config.pyramid_width + config.incoherence_width  # channels of the 28 level's features
        self.top_down = TopDown((c8, c16, c32), config.pyramid_width)
        finer = (*config.dense_widths, 27)
        self.detector = IncoherenceDetector(config.pyramid_width, config.incoherence_width, finer)
        self.dense = DenseDecoder(base, (c4, c2), config.dense_widths)
        self.context = nn.Linear(base + 1, config.width)
        # channels of each level's own map, its dense label included; beyond 224 these are the pixels
        own = (base + 1, *(width + 1 for width in config.dense_widths), 3)
        coarser = (0, *own[:-1])  # of the levels above a node reads the next one
        channels = zip(own, coarser, strict=True)
        self.encoders = nn.ModuleList(NodeEncoder(o + c, o, config.width) for o, c in channels)
        self.level_embedding = nn.Embedding(config.max_depth + 1, config.width)  # last: context tokens
        self.sequence = SequenceEncoder(config.width, config.heads, config.feedforward, config.layers)
        self.inherit = Inheritance(config.width)
        self.decoder = PixelDecoder(config.width)

    def forward(self, image: Tensor, coarse: Tensor, selector: NodeSelector | None, depth: int) -> TreeOutput:
        """One pass; a ``selector`` chooses the nodes of ``depth`` levels, None gives dense labels alone.

        ``image`` is [B, 3, S, S] float in [0, 255], the RoIs' pixels, ``coarse`` [B, 1, S, S] float in [0, 1], their
        masks; S = ``config.detail_side``, or ``config.crop_side`` if ``depth`` is 3.
        """
        config = self.config
        pixels = area_pyramid(image, config.crop_side)  # side → [B, 3, side, side]
        masks = area_pyramid(coarse, _CONTEXT_GRID)
        maps = self.backbone(pixels[config.crop_side], masks[config.crop_side])
        base = self.top_down(maps[2:])  # [B, C, 28, 28]
        roots = self.detector.roots(base, masks[base.shape[-1]])
        base = F.dropout2d(torch.cat((base, roots.hidden), 1), _DROPOUT, self.training)
        detail = _normalised(pixels[config.detail_side]) if depth > len(ATTENTION_GRIDS) else None
        decoded = self.dense(base, (maps[1], maps[0]), detail, masks)
        dense = [roots.mask, *(logit for _, logit in decoded)]
        output = TreeOutput([], [], {logit.shape[-1]: logit for logit in dense}, roots, [], [])
        if selector is None:
            return output
        features = (base, *(features for features, _ in decoded))
        tables = [_table(each, logit, masks) for each, logit in zip(features, dense, strict=True)]
        for level in range(len(tables), depth):  # beyond the dense labels there are the pixels
            grid = ATTENTION_GRIDS[0] << level
            tables.append(FeatureMap.of(torch.cat((_normalised(pixels[grid]), masks[grid]), 1)))

        wrong, incoherent = roots.wrong_probability().detach(), roots.incoherent_probability().detach()
        levels = output.levels
        levels.append(selector.roots(wrong, incoherent))
        around = levels[0].around()
        encoded = [self._encode(0, levels[0], around, tables)]
        above: Tensor | None = None
        for level in range(1, depth):
            children = children_of(levels[-1])
            around = children.around()
            if above is None:  # below the 28 level: its dense output, upsampled
                inherited = tables[0].sample(children.y, children.x)[:, :, config.pyramid_width : -_LABELS]
            else:
                inherited = _rows_at(above, children.parent)
            logit, hidden = self._detect(level, around, inherited, tables[level], masks[children.grid])
            index, valid = selector.keep(children, torch.sigmoid(logit.detach().float()))
            output.candidates.append(children)
            output.candidate_logits.append(logit)
            levels.append(children.take(index, valid))
            above = _rows_at(hidden, index)
            encoded.append(self._encode(level, levels[-1], _rows_at(around, index), tables))

        queries = [query for query, _ in encoded]
        count = min(depth, len(ATTENTION_GRIDS))
        attended = self._attend(queries[:count], levels[:count], base, masks[_CONTEXT_GRID])
        for level in range(count, depth):
            attended.append(self.inherit(queries[level], _rows_at(attended[-1], levels[level].parent)))
        for query, (_, label) in zip(attended, encoded, strict=True):
            output.logits.append(label + self.decoder(query))
        return output

    def maps(self, output: TreeOutput, coarse: Tensor, config: RefinerConfig) -> list[LevelMap]:
        """The mask on each level, from a pass over ``coarse`` [B, 1, S, S], with the settings of ``config``."""
        if output.levels:
            labels = corrected_labels(output.dense, output.levels, output.logits)
        else:
            labels = [logit.float() for logit in output.dense.values()]
        return propagate_corrections(
            area_pyramid(coarse, ATTENTION_GRIDS[0]),
            labels,
            output.roots.wrong_probability() >= config.relabel_threshold,
            config.trust if output.levels else config.repeat_trust,
            config.deep_trust,
            config.relabel_margin,
        )

    def _detect(
        self, level: int, around: Tensor, inherited: Tensor, table: FeatureMap, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One step of the detector's cascade at the children of the level above; ``around`` are their cells."""
        if level >= _PIXEL_LEVEL:
            features = table.read(around)[..., :3].flatten(2)
        else:
            features = table.read(around[:, :, _CENTRE])[:, :, :-_LABELS]
        coarse = FeatureMap.of(mask).read(around).squeeze(3)
        return self.detector.finer(level, inherited, features, coarse)

    def _encode(
        self, level: int, nodes: QuadtreeNodes, around: Tensor, tables: list[FeatureMap]
    ) -> tuple[Tensor, Tensor]:
        """Queries of one level's nodes from the four cues, and their dense labels: [B, K, width], [B, K]."""
        rows = tables[level].read(around)  # [B, K, 9, C]
        coarse, own = rows[..., -1], rows[:, :, _CENTRE]
        if level:
            above = tables[level - 1].sample(nodes.y, nodes.x)
        if level < _PIXEL_LEVEL:
            neighbours, label = rows[..., :-2], own[..., -2]
            features = own[..., :-2]
        else:
            neighbours, label = rows[..., :-1], above[..., -2]
            features = own[..., :-1]
        if level:
            features = torch.cat((features, above[..., :-2]), 2)
        encoder = self.encoders[level]
        query: Tensor = encoder(features, coarse, neighbours.flatten(2), nodes.y, nodes.x, nodes.grid)
        return query + self.level_embedding.weight[level], label

    def _attend(
        self, queries: list[Tensor], levels: list[QuadtreeNodes], base: Tensor, coarse: Tensor
    ) -> list[Tensor]:
        """The sequence encoder over the nodes of the first three levels and the RoI's context tokens."""
        pooled = torch.cat((F.adaptive_avg_pool2d(base, _CONTEXT_GRID), coarse.to(base.dtype)), 1)
        context = self.context(pooled.flatten(2).transpose(1, 2))  # [B, 49, width]
        axis = axis_position(_CONTEXT_GRID, self.config.width, context)
        rows = axis[:, None].expand(-1, _CONTEXT_GRID, -1)
        position = torch.cat((rows, rows.transpose(0, 1)), 2).flatten(0, 1)
        context = context + position + self.level_embedding.weight[-1]
        tokens = torch.cat([context, *queries], 1)
        keys = tokens.shape[1] - queries[-1].shape[1]
        valid = None
        if levels[0].valid is not None:
            always = torch.ones_like(context[:, :, 0], dtype=torch.bool)
            valid = torch.cat([always, *[level.exists() for level in levels[:-1]]], 1)
        attended = self.sequence(tokens, keys, valid)
        return list(attended.split([context.shape[1], *(q.shape[1] for q in queries)], 1)[1:])


class StepOutput(NamedTuple):
    """What a step yields for a batch of B RoIs."""

    probability: Tensor  # [B, G, G] float32, foreground probability of each cell of the finest grid
    relabelled: Tensor  # [B, 28, 28] bool, cells that were relabelled; all others keep the coarse mask
    cells: Tensor  # [B, N] int64, row · grid + column of the nodes, level after level, each with its budget of places
    valid: Tensor  # [B, N] bool, the places that hold a node. N is 0 for a step without nodes


class RefineStep(nn.Module):
    """The step of one size class, of a network in evaluation mode.

    The quadtree's levels end at 112 (``depth`` 3), 224 or 448 cells a side. Without ``nodes`` there is no tree, and the
    dense labels count, which end at 224 cells.
    """

    def __init__(self, network: MaskTransfiner, depth: int, *, nodes: bool) -> None:
        super().__init__()
        self.network, self.depth = network, depth
        self.selector = BudgetSelector(network.config) if nodes else None

    def forward(self, pixels: Tensor, coarse: Tensor) -> StepOutput:
        """pixels [B, 3, S, S] uint8 RGB, coarse [B, 1, S, S] float32 in [0, 1]; S as in ``MaskTransfiner.forward``."""
        output = self.network(pixels.float(), coarse, self.selector, self.depth)
        maps = self.network.maps(output, coarse, self.network.config)
        if output.levels:
            cells = torch.cat([level.cell for level in output.levels], 1)
            valid = torch.cat([level.exists() for level in output.levels], 1)
        else:
            cells = torch.zeros_like(pixels[:, 0, 0, :0], dtype=torch.int64)
            valid = cells > 0
        return StepOutput(maps[-1].probability, maps[0].relabelled, cells, valid)


def _table(features: Tensor, logit: Tensor, masks: dict[int, Tensor]) -> FeatureMap:
    """What nodes read of a level: features, dense label in [-1, 1], its logit, coarse mask; the last ``_LABELS``."""
    label = logit[:, None].to(features.dtype)
    squashed = torch.tanh(label.detach() / 2)
    return FeatureMap.of(torch.cat((features, squashed, label, masks[logit.shape[-1]].to(features.dtype)), 1))


def _rows_at(rows: Tensor, index: Tensor) -> Tensor:
    """Rows of each instance: rows [B, N, C], index [B, K] → [B, K, C]."""
    first = torch.arange(rows.shape[0], device=index.device)[:, None] * rows.shape[1]
    flat = rows.flatten(0, 1).index_select(0, (index + first).flatten())
    return flat.view(*index.shape, rows.shape[2])


def _normalised(pixels: Tensor) -> Tensor:
    """Pixels in [0, 255] as the backbone sees them; here, because only a few of the finest levels are read."""
    return (pixels - 127.0) / 128.0
