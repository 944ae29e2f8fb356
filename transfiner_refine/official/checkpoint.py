"""The authors' checkpoints: compared with the network they belong to, loaded and converted (§11)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from transfiner_refine.errors import CheckpointError
from transfiner_refine.model.backbone import fold_norms
from transfiner_refine.model.checkpoint import Misfit, check_tensors
from transfiner_refine.official.architecture import Architecture, recognise
from transfiner_refine.official.network import OfficialNetwork
from transfiner_refine.official.read import TensorFile, read_tensors
from transfiner_refine.output import atomic_binary_file

#: Written to converted files.
KIND = "transfiner-refine/official"

_CONSTANT = "relative_position_index"
_ONE_BY_ONE = (".encoder.conv_fuse.weight", ".encoder.conv_r1.0.weight", ".encoder.conv_r1.2.weight")
#: The part of the network, for people, that tensors which refining does not read belong to.
_UNUSED = {
    r"proposal_generator\.": "RPN",
    r"roi_heads\.box_(head|predictor)\.": "box head",
    rf"backbone\.bottom_up\.layers\..*\.{_CONSTANT}$": "constants",
    r"roi_heads\.mask_head\.(deconv|predictor)_bo\.": "boundary predictor",
    r"roi_heads\.mask_head\.predictor_semantic_s\.": "semantic predictor",
    r"pixel_(mean|std)$": "other",  # settings of older detectron2
}


def _shifted(text: str, by: int, step: int = 1) -> Callable[[re.Match[str]], str]:
    return lambda match: text.format((int(match[1]) + by) // step)


#: Pattern in our name → what the release has in its place; all that fit, in order.
_NAMES: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"^backbone\.(conv1|bn1)", r"backbone.stem.\1"),
    (r"^backbone\.stages", "backbone"),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    (r"\.conv2\.offset\.", ".conv2_offset."),
    (r"^backbone\.features\.0\.0\.", "backbone.patch_embed.proj."),
    (r"^backbone\.features\.0\.2\.", "backbone.patch_embed.norm."),
    (r"^backbone\.features\.([1357])\.", _shifted("backbone.layers.{}.blocks.", -1, 2)),
    (r"^backbone\.features\.([246])\.", _shifted("backbone.layers.{}.downsample.", -2, 2)),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.3\.", ".mlp.fc2."),
    (r"^backbone\.norms\.", "backbone.norm"),
    (r"^backbone\.", "backbone.bottom_up."),
    (r"^fpn\.inner_blocks\.(\d)\.0", _shifted("backbone.fpn_lateral{}", 2)),
    (r"^fpn\.layer_blocks\.(\d)\.0", _shifted("backbone.fpn_output{}", 2)),
    (r"^semantic\.", "roi_heads.mask_pooler.conv_norm_relus_semantic."),
    (r"^coarse\.trunk\.(\d)", _shifted("mask_fcn{}", 2, 2)),
    (r"^incoherence\.trunk\.(\d)", _shifted("mask_fcn_uncertain{}", 2, 2)),
    (r"^coarse\.upsample", "deconv"),
    (r"^coarse\.classify", "predictor"),
    (r"^incoherence\.upsample", "deconv_uncertain"),
    (r"^incoherence\.classify", "predictor_uncertain"),
    (r"^transformer\.fuse", "encoder.conv_fuse"),
    (r"^transformer\.decode", "encoder.conv_r1"),
    (r"^transformer\.", "encoder."),
    (r"\.[qkv]\.(weight|bias)", r".self_attn.in_proj_\1"),
    (r"\.project\.", ".self_attn.out_proj."),
    (r"\.widen\.", ".linear1."),
    (r"\.narrow\.", ".linear2."),
    (r"^(mask_fcn|deconv|predictor|encoder)", r"roi_heads.mask_head.\1"),
)


def release_names(network: nn.Module) -> dict[str, list[str]]:
    """The release's name → ours, of every tensor that refining reads; several of ours are stacked in one of theirs."""
    names: dict[str, list[str]] = {}
    for ours in network.state_dict():
        theirs = ours
        for pattern, replacement in _NAMES:
            theirs = re.sub(pattern, replacement, theirs)
        if not ours.endswith(_CONSTANT):
            names.setdefault(theirs, []).append(ours)
    return names


@dataclass(frozen=True)
class Fit:
    """How a file's tensors fit the official network they belong to."""

    file: TensorFile
    network: OfficialNetwork  # without numbers (on the meta device)
    names: dict[str, list[str]]  # from ``release_names``
    unused: dict[
        str, str
    ]  # name → its part, of what refining does not read: RPN, box head, predictors, constants
    misfit: Misfit

    @property
    def architecture(self) -> Architecture:
        return self.network.architecture

    @property
    def used(self) -> list[str]:
        """Names that refining reads."""
        return [name for name in self.names if name in self.file.tensors]

    @property
    def left_out(self) -> str:
        """How many tensors of which part are not used."""
        counts = Counter(self.unused.values())
        return ", ".join(f"{part} {count}" for part, count in counts.items()) or "none"

    def check(self) -> None:
        """Raises CheckpointError where tensors are missing, unknown, of another shape, or hold no weights."""
        used = {name: self.file.tensors[name] for name in self.used}
        check_tensors(self.misfit, used, self.file.path, f"an official {self.architecture.name} checkpoint")


def fit(file: TensorFile) -> Fit:
    """Compares a file's tensors with the network they belong to; CheckpointError where that is no official one."""
    if file.kind not in ("", KIND):
        remedy = f"expected a file of this package ({KIND}) or of the authors"
        raise CheckpointError(f"a checkpoint of another kind ({file.kind})", file=file.path, remedy=remedy)
    shapes = {name: tuple(tensor.shape) for name, tensor in file.tensors.items()}
    architecture = recognise(shapes, file.path)
    with torch.device("meta"):
        network = OfficialNetwork(architecture)
    state, names, expected = network.state_dict(), release_names(network), {}
    for name, ours in names.items():
        rows, *rest = state[ours[0]].shape
        expected[name] = (rows * len(ours), *rest, *((1, 1) if name.endswith(_ONE_BY_ONE) else ()))
    parts = {name: part for name in shapes for pattern, part in _UNUSED.items() if re.match(pattern, name)}
    compared = {name: shape for name, shape in shapes.items() if name not in parts}
    return Fit(file, network, names, parts, Misfit.of(compared, expected))


def fill(module: nn.Module, tensors: Mapping[str, Tensor], names: Mapping[str, list[str]]) -> None:
    """Puts tensors under the release's names into a module; the 1×1 convolutions among them are linear here."""
    state = module.state_dict()
    for name, ours in names.items():
        parts = tensors[name].to(torch.float32).chunk(len(ours))
        state |= {own: part.reshape(state[own].shape) for own, part in zip(ours, parts, strict=True)}
    module.load_state_dict(state, assign=True)


def load_official_network(file: TensorFile) -> OfficialNetwork:
    """The network of a checkpoint, in float32 on the CPU, in evaluation mode.

    Raises:
        CheckpointError: the tensors do not make up an official network.
    """
    found = fit(file)
    found.check()
    fill(found.network, file.tensors, found.names)
    fold_norms(found.network.backbone)
    return found.network.eval()


def convert_weights(source: Path, target: Path) -> Fit:
    """Writes what refining reads of the authors' ``.pth`` or ``.pkl`` to a safetensors file, under the release's names.

    Nothing is at ``target`` unless it is whole. Returns what the source was and what was left out.

    Raises:
        CheckpointError: the source cannot be used.
        OutputError: the disk refused.
    """
    found = fit(read_tensors(source))
    found.check()
    tensors = {name: found.file.tensors[name].to(torch.float32).contiguous() for name in found.used}
    with atomic_binary_file(target) as output:
        output.write(save(tensors, {"kind": KIND, "variant": found.architecture.name}))
    return found
