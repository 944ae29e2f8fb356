"""Names of the release's tensors: which of ours each one is, and which ones inference never reads (§11)."""

from __future__ import annotations

from transfiner_refine.official.config import Architecture

__all__ = ["DETECTOR_PREFIXES", "constants", "detector_keys", "inference_keys", "training_keys"]

_BACKBONE = "backbone.bottom_up."
_MASK_HEAD = "roi_heads.mask_head."
_SEMANTIC = "roi_heads.mask_pooler.conv_norm_relus_semantic."
#: What finds boxes and classes; not read where these are given.
DETECTOR_PREFIXES = ("proposal_generator.", "roi_heads.box_head.", "roi_heads.box_predictor.")
_NORM = ("weight", "bias", "running_mean", "running_var")


def _with_bias(pairs: dict[str, str]) -> dict[str, str]:
    """Layer names → names of their weights and biases."""
    return {f"{a}.{part}": f"{b}.{part}" for a, b in pairs.items() for part in ("weight", "bias")}


def _resnet(architecture: Architecture) -> dict[str, str]:
    convolutions = {"stem.conv1": "stem"}
    plain = {}
    for stage, depth in enumerate(architecture.depths):
        for block in range(depth):
            theirs, ours = f"res{stage + 2}.{block}.", f"stages.{stage}.{block}."
            if block == 0:
                # the first block of every stage changes the width, so it projects its shortcut
                convolutions[f"{theirs}shortcut"] = f"{ours}shortcut"
            for name, our_name in (("conv1", "reduce"), ("conv2", "spatial"), ("conv3", "expand")):
                convolutions[theirs + name] = ours + our_name
            if architecture.deformable[stage]:
                plain[f"{theirs}conv2_offset"] = f"{ours}spatial.conv.offset"
    names = _with_bias(plain)
    for theirs, ours in convolutions.items():
        names[f"{theirs}.weight"] = f"{ours}.conv.weight"
        names |= {f"{theirs}.norm.{part}": f"{ours}.norm.{part}" for part in _NORM}
    return names


def _swin(architecture: Architecture) -> dict[str, str]:
    layers = {"patch_embed.proj": "embed", "patch_embed.norm": "embed_norm"}
    names = {}
    for stage, depth in enumerate(architecture.depths):
        layers[f"norm{stage}"] = f"norms.{stage}"
        for block in range(depth):
            theirs, ours = f"layers.{stage}.blocks.{block}.", f"stages.{stage}.{block}."
            parts = {
                "norm1": "norm1",
                "norm2": "norm2",
                "attn.qkv": "attention.qkv",
                "attn.proj": "attention.project",
                "mlp.fc1": "widen",
                "mlp.fc2": "narrow",
            }
            layers |= {theirs + a: ours + b for a, b in parts.items()}
            names[f"{theirs}attn.relative_position_bias_table"] = f"{ours}attention.bias_table"
        if stage + 1 < len(architecture.depths):
            layers[f"layers.{stage}.downsample.norm"] = f"merges.{stage}.norm"
            names[f"layers.{stage}.downsample.reduction.weight"] = f"merges.{stage}.reduce.weight"
    return names | _with_bias(layers)


def inference_keys(architecture: Architecture) -> dict[str, str]:
    """The release's name → ours, of every tensor that refining given boxes reads."""
    backbone = _resnet(architecture) if architecture.backbone == "resnet" else _swin(architecture)
    names = {_BACKBONE + theirs: f"backbone.{ours}" for theirs, ours in backbone.items()}
    layers = {}
    for i in range(4):
        layers[f"backbone.fpn_lateral{i + 2}"] = f"fpn.lateral.{i}"
        layers[f"backbone.fpn_output{i + 2}"] = f"fpn.output.{i}"
        layers[f"{_SEMANTIC}{2 * i}"] = f"semantic.convolutions.{i}"
        layers[f"{_MASK_HEAD}mask_fcn{i + 1}"] = f"coarse.trunk.{i}"
        layers[f"{_MASK_HEAD}mask_fcn_uncertain{i + 1}"] = f"incoherence.trunk.{i}"
    heads = {
        "deconv": "coarse.upsample",
        "predictor": "coarse.classify",
        "deconv_uncertain": "incoherence.upsample",
        "predictor_uncertain": "incoherence.classify",
        "encoder.conv_fuse": "sequence.fuse",
        "encoder.conv_r1.0": "sequence.decode_hidden",
        "encoder.conv_r1.2": "sequence.decode",
    }
    layers |= {_MASK_HEAD + theirs: ours for theirs, ours in heads.items()}
    parts = {
        "self_attn.out_proj": "project",
        "linear1": "widen",
        "linear2": "narrow",
        "norm1": "norm1",
        "norm2": "norm2",
    }
    for i in range(architecture.layers):
        theirs, ours = f"{_MASK_HEAD}encoder.layers.{i}.", f"sequence.layers.{i}."
        layers |= {theirs + a: ours + b for a, b in parts.items()}
        for part in ("weight", "bias"):
            names[f"{theirs}self_attn.in_proj_{part}"] = f"{ours}qkv.{part}"
    return names | _with_bias(layers)


def detector_keys() -> dict[str, str]:
    """The release's name → ours (in ``Detector``), of the tensors that find boxes and classes."""
    rpn, box = "proposal_generator.rpn_head.", "roi_heads."
    return _with_bias(
        {
            f"{rpn}conv": "rpn.hidden",
            f"{rpn}objectness_logits": "rpn.objectness",
            f"{rpn}anchor_deltas": "rpn.deltas",
            f"{box}box_head.fc1": "box.hidden.0",
            f"{box}box_head.fc2": "box.hidden.1",
            f"{box}box_predictor.cls_score": "box.classify",
            f"{box}box_predictor.bbox_pred": "box.deltas",
        }
    )


def training_keys() -> dict[str, str]:
    """The release's name → ours (in ``TrainingHeads``), of the tensors that no inference reads."""
    names = {
        "deconv_bo": "upsample_boundary",
        "predictor_bo": "classify_boundary",
        "predictor_semantic_s": "classify_semantic",
    }
    return _with_bias({_MASK_HEAD + theirs: ours for theirs, ours in names.items()})


def constants(architecture: Architecture) -> set[str]:
    """The release's names of stored tensors that follow from the architecture: Swin's index tables."""
    if architecture.backbone != "swin":
        return set()
    return {
        f"{_BACKBONE}layers.{stage}.blocks.{block}.attn.relative_position_index"
        for stage, depth in enumerate(architecture.depths)
        for block in range(depth)
    }
