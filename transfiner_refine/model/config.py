"""Every number of the refiner network, with where it comes from."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from transfiner_refine.errors import CheckpointError

__all__ = ["ATTENTION_GRIDS", "RefinerConfig"]

#: Grids of the three levels that share one sequence, as in Ke et al. 2022, §3.2. Deeper levels double the last.
ATTENTION_GRIDS = (28, 56, 112)


_FORMER = {"passes", "repeat_share"}  # of files from version 0.1; they change nothing any more


@dataclass(frozen=True)
class RefinerConfig:
    """Architecture and inference settings of a native refiner; travels in the checkpoint's JSON side file.

    Attributes:
        backbone: name of the feature extractor (see ``backbone.py``).
        crop_side: side of the square the RoI is resized to for the backbone, pixels. 224 puts the backbone's
            strides 8, 4 and 2 exactly on the 28, 56 and 112 grids of the paper.
        detail_side: side of the resized RoI that levels beyond 112 read their pixels from.
        roi_margin: width and height added to the coarse mask's box, as a share of its side (both edges together).
        roi_context: the same around a small object, which an RoI up to ``crop_side`` pixels may show with more of its
            surroundings at no cost in detail. Training sees margins up to this and a little more.
        roi_min_margin: the least margin on each edge, pixels; keeps context around tiny boxes.
        roi_max_aspect: the short side of an RoI is widened to at least the long one over this.
        pyramid_width: channels of the top-down features at stride 8.
        incoherence_width: channels of the incoherence detector.
        dense_widths: channels of the dense decoder on the 56, 112 and 224 levels.
        width: channels of the node queries (256 in the paper, narrower here for CPUs).
        heads: attention heads of the sequence encoder.
        layers: transformer layers of the sequence encoder (3 in the paper; docs/experiments/ablation.md says what they are worth).
        feedforward: hidden channels of the transformer's feed-forward part.
        max_depth: most quadtree levels (3 = 28/56/112, 4 adds 224, 5 adds 448).
        finest_cell: levels beyond 112 are added while a cell of the last level is longer than this, pixels.
        relabel_threshold: a 28-level cell is labelled anew where the detector's probability that the coarse mask is
            wrong in it reaches this.
        relabel_margin: a 28-level cell is labelled anew, too, where the new label of some pixel differs from the given
            mask by this much; otherwise specks too small or too many for the detector would stay.
        root_threshold: a cell that the detector says is wrong becomes a root where the probability that it is
            incoherent reaches this; in the others that are labelled anew the dense decoder's labels do.
        child_threshold: same for the cells of the finer levels.
        trust: logit that the given mask adds to its own side in the cells that are labelled anew. Where the network is
            of two minds the given mask decides; more of it spares good masks and mends bad ones less.
        deep_trust: what it adds besides for every hundredth of the RoI's side between a cell and its outline. Which
            things belong to an object the given mask knows better than where they end.
        node_budget: most nodes of each level, 28 to 448; of more the most probable are taken. What a pass costs depends
            on it and not on how many nodes there are.
        repeat_overlap: a second pass is made where the RoI around the new mask overlaps that of the given one by less
            than this (intersection over union), to look at what the first pass could not see.
        repeat_trust: ``trust`` in second passes and close-ups, whose given mask comes from the first pass.
        close_up_from: side of an RoI, pixels, from which on the object is looked at once more in close-ups
            (``close_up.py``).
        keep_shift: an instance whose outline moved by no more than this on average, as a share of the side of its
            box, keeps the given mask: the two are then as close as this refiner comes to the truth, so the refined
            one is no better evidence.
        keep_patch: but for patches that changed and hold a disc of more than this radius, as a share of the same side:
            an island or a hole is wrong also in a mask that is right elsewhere.
        keep_rest: an instance whose outline moved by more than ``keep_shift``, but without such patches by no more than
            this, keeps the given mask beside them.
    """

    backbone: str = "lite2"
    crop_side: int = 224
    detail_side: int = 448
    roi_margin: float = 0.25
    roi_context: float = 0.4
    roi_min_margin: int = 4
    roi_max_aspect: float = 2.0
    pyramid_width: int = 96
    incoherence_width: int = 64
    dense_widths: tuple[int, int, int] = (64, 32, 16)
    width: int = 128
    heads: int = 4
    layers: int = 1
    feedforward: int = 256
    max_depth: int = 5
    finest_cell: float = 1.5
    relabel_threshold: float = 0.15
    relabel_margin: float = 0.25
    root_threshold: float = 0.15
    child_threshold: float = 0.5
    trust: float = 0.1
    deep_trust: float = 0.05
    node_budget: tuple[int, ...] = (224, 352, 576, 640, 768)
    repeat_overlap: float = 0.7
    repeat_trust: float = 0.5
    close_up_from: int = 200
    keep_shift: float = 0.005
    keep_patch: float = 0.02
    keep_rest: float = 0.003

    def margin(self, side: float) -> float:
        """Margin of an RoI around a box whose longer side is ``side`` pixels, as a share of the side."""
        return max(self.roi_margin, min(self.roi_context, self.crop_side / max(side, 1.0) - 1))

    def depth(self, roi_side: float) -> int:
        """Number of quadtree levels for an RoI whose longer side is ``roi_side`` pixels; at least 3."""
        depth, grid = len(ATTENTION_GRIDS), ATTENTION_GRIDS[-1]
        while depth < self.max_depth and roi_side / grid > self.finest_cell:
            depth, grid = depth + 1, grid * 2
        return depth

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any], file: str = "") -> RefinerConfig:
        """The configuration from ``to_json`` values.

        Raises:
            CheckpointError: a field is unknown, so the file comes from another version.
        """
        unknown = sorted(set(values) - {f.name for f in fields(cls)} - _FORMER)
        if unknown:
            raise CheckpointError(
                f"unknown configuration fields {', '.join(unknown)}",
                file=file or None,
                remedy="the checkpoint was made by a newer version; update transfiner-refine",
            )
        values = {name: value for name, value in values.items() if name not in _FORMER}
        # JSON has lists only
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        # files from before there was trust were made without it
        return cls(**{"trust": 0.0, "deep_trust": 0.0, **values})
