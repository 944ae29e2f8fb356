"""Every number of the refiner network, with where it comes from: what its weights fix, and what may be changed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from math import inf
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from transfiner_refine.errors import CheckpointError, InputError, short

#: Grids of the three levels that share one sequence, as in Ke et al. 2022, §3.2. Deeper levels double the last.
ATTENTION_GRIDS = (28, 56, 112)

_RENAMED = {"close_up_from": "tiles_from"}  # of files from version 0.1: old → new

# Types with the least and the greatest value that a weights file may hold, or with the texts.
_Channels = Annotated[int, (1, 4096)]
_Budget = Annotated[int, (1, 448 * 448)]
_Pixels = Annotated[int, (0, 1_000_000)]
_Share = Annotated[float, (0.0, 10.0)]
_Threshold = Annotated[float, (0.0, 2.0)]  # of a probability; above 1 it is never reached
_Logit = Annotated[float, (0.0, 1000.0)]
_FORMER = {"passes": Annotated[int, (1, 100)], "repeat_share": _Share}  # of version 0.1; they change nothing


@dataclass(frozen=True)
class Architecture:
    """What the tensors of a weights file fit, and nothing else does."""

    backbone: Annotated[str, ("lite0", "lite1", "lite2", "lite3", "lite4")] = "lite2"
    # side of the square the RoI is resized to for the backbone, pixels: its strides 8, 4 and 2 are then exactly the 28,
    # 56 and 112 grids of the paper
    crop_side: Annotated[int, (224, 224)] = 224
    detail_side: Annotated[int, (448, 448)] = 448  # of the RoI that levels beyond 112 read their pixels from
    pyramid_width: _Channels = 96  # channels of the top-down features at stride 8
    incoherence_width: _Channels = 64  # channels of the incoherence detector
    # channels of the dense decoder on the 56, 112 and 224 levels
    dense_widths: tuple[_Channels, _Channels, _Channels] = (64, 32, 16)
    width: _Channels = 128  # channels of the node queries (256 in the paper, narrower here for CPUs)
    heads: _Channels = 4  # attention heads of the sequence encoder
    layers: Annotated[int, (1, 64)] = 1  # of the same (3 in the paper; docs/experiments/ablation.md)
    feedforward: Annotated[int, (1, 65536)] = 256  # hidden channels of the transformer's feed-forward part
    max_depth: Annotated[int, (3, 5)] = 5  # most quadtree levels (3 = 28/56/112, 4 adds 224, 5 adds 448)


@dataclass(frozen=True)
class RefineSettings:
    """How a network is used: may be changed without training it again."""

    # width and height added to the coarse mask's box, as a share of its side (both edges together); the same around a
    # small object, which an RoI up to ``crop_side`` pixels may show with more of its surroundings at no cost in detail
    # (training sees margins up to this and a little more); the least margin on each edge, pixels
    roi_margin: _Share = 0.25
    roi_context: _Share = 0.4
    roi_min_margin: _Pixels = 4
    # the short side of an RoI is widened to at least the long one over this
    roi_max_aspect: Annotated[float, (1.0, inf)] = 2.0
    # levels beyond 112 are added while a cell of the last level is longer than this, pixels
    finest_cell: Annotated[float, (0.01, inf)] = 1.5
    # a 28-level cell is relabelled where the detector's probability that the coarse mask is wrong in it reaches the
    # threshold, or where the new label of some pixel differs from the given mask by the margin: otherwise specks too
    # small or too many for the detector would stay
    relabel_threshold: _Threshold = 0.15
    relabel_margin: Annotated[float, (0.0, inf)] = 0.25
    # a cell that the detector says is wrong becomes a root where the probability that it is incoherent reaches this;
    # the other relabelled cells take the dense decoder's labels. Then the same for the cells of the finer levels
    root_threshold: _Threshold = 0.15
    child_threshold: _Threshold = 0.5
    # bias of relabelled cells towards the coarse label, in logits, and what is added to it for every hundredth of the
    # RoI's side between a cell and the coarse outline: which parts belong to an object the coarse mask knows better
    # than where they end
    trust: _Logit = 0.1
    deep_trust: _Logit = 0.05
    # most nodes of each level, 28 to 448; of more the most probable are taken. The cost of a pass depends on it and not
    # on how many nodes there are
    node_budget: tuple[_Budget, ...] = (224, 352, 576, 640, 768)
    # a second pass is made where the RoI around the new mask overlaps that of the given one by less than this
    # (intersection over union), to look at what the first pass could not see
    repeat_overlap: _Threshold = 0.7
    repeat_trust: _Logit = 0.5  # in place of ``trust`` where the given mask comes from the first pass
    tiles_from: _Pixels = 200  # side of an RoI from which on the object gets tiles (``refine/instance.py``)
    # an instance whose outline moved by no more than this on average, as a share of the side of its box, keeps the
    # given mask: both are then as close as this refiner comes to the truth, so the refined one is no better evidence
    keep_shift: _Share = 0.005
    # but for patches that changed and hold a disc of more than this radius, as a share of the same side: an island or a
    # hole is wrong also in a mask that is right elsewhere
    keep_patch: _Share = 0.02
    # an instance whose outline moved by more than ``keep_shift``, but without such patches by no more than this, keeps
    # the given mask beside them
    keep_rest: _Share = 0.003


@dataclass(frozen=True)
class RefinerConfig(RefineSettings, Architecture):
    """Both halves, as they travel in the weights file: a new default in the code changes no shipped masks."""

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

    def with_settings(self, settings: dict[str, Any]) -> RefinerConfig:
        """The same with other refine settings; raises InputError where one is unknown or out of range."""
        types = get_type_hints(RefineSettings, include_extras=True)
        if unknown := [name for name in settings if name not in types]:
            raise InputError(f"there is no setting {unknown[0]!r}", remedy=f"give one of {', '.join(types)}")
        try:
            return self._replaced(settings, types)
        except ValueError as error:
            raise InputError(f"the setting {error}") from None

    @classmethod
    def from_json(cls, values: Any, file: str = "") -> RefinerConfig:
        """The configuration from ``to_json`` values; CheckpointError where a field is unknown or out of range."""

        def wrong(what: object, remedy: str = "the file is damaged or was edited") -> CheckpointError:
            return CheckpointError(f"configuration: {what}", file=file or None, remedy=remedy)

        if not isinstance(values, dict):
            raise wrong(f"{type(values).__name__} instead of named fields")
        # files from before there was trust were made without it
        values = {"trust": 0.0, "deep_trust": 0.0, **{_RENAMED.get(k, k): v for k, v in values.items()}}
        types = {**_FORMER, **get_type_hints(cls, include_extras=True)}
        if unknown := sorted(set(values) - set(types)):
            newer = "the checkpoint was made by a newer version; update transfiner-refine"
            raise wrong(f"unknown configuration fields {', '.join(map(short, unknown))}", newer)
        try:
            return cls()._replaced(values, types)
        except ValueError as error:
            raise wrong(error) from None

    def _replaced(self, values: dict[str, Any], types: dict[str, Any]) -> RefinerConfig:
        """The same with values from JSON; ValueError names a field that is not of its type or out of range."""
        known = {}
        for name, value in values.items():
            try:
                known[name] = _checked(value, types[name])
            except (ValueError, OverflowError) as error:
                raise ValueError(f"{name} is {short(value)}; {error}") from None
        config = replace(self, **{name: value for name, value in known.items() if name not in _FORMER})
        if config.width % config.heads or config.width % 4:
            raise ValueError(f"width is {config.width}; expected a multiple of 4 and {config.heads} heads")
        if len(config.node_budget) < config.max_depth:
            raise ValueError(f"node_budget is {config.node_budget}; expected {config.max_depth} numbers")
        return config


def _checked(value: Any, hint: Any) -> Any:
    """``value`` from JSON as the type that ``hint`` demands; ValueError says what was expected, and in which range."""
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        count = len(value) if isinstance(value, (list, tuple)) else -1
        kinds = kinds[:1] * max(count, 1) if kinds[-1] is ... else kinds
        if count != len(kinds):
            raise ValueError(f"expected a list of {len(kinds)} numbers")
        return tuple(_checked(each, kind) for each, kind in zip(value, kinds, strict=True))
    kind, allowed = get_args(hint)
    if kind is str:
        if value not in allowed:
            raise ValueError(f"expected one of {', '.join(allowed)}")
        return value
    least, most = allowed
    if not isinstance(value, (kind, int)) or isinstance(value, bool) or not least <= value <= most:
        name = "a whole number" if kind is int else "a number"
        raise ValueError(f"expected {name}, {least} to {most}")
    return kind(value)
