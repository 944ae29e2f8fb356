"""The authors' checkpoints: recognised by their tensors, checked, loaded and converted (§1, §11)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from transfiner_refine.errors import CheckpointError
from transfiner_refine.official.config import Architecture
from transfiner_refine.official.detector import Detector
from transfiner_refine.official.keys import (
    DETECTOR_PREFIXES,
    constants,
    detector_keys,
    inference_keys,
    training_keys,
)
from transfiner_refine.official.network import OfficialNetwork
from transfiner_refine.official.read import TensorFile, read_tensors
from transfiner_refine.official.recognise import recognise
from transfiner_refine.output import atomic_binary_file

__all__ = ["KIND", "Fit", "convert_official", "fit", "groups", "load_detector", "load_official_network"]

#: Written to converted files.
KIND = "transfiner-refine/official"
_CONVOLUTIONS = (".encoder.conv_fuse.weight", ".encoder.conv_r1.0.weight", ".encoder.conv_r1.2.weight")
_IGNORED = ("pixel_mean", "pixel_std", "proposal_generator.anchor_generator.")  # settings of older detectron2
_SHOWN = 3  # names in a message


@dataclass(frozen=True)
class Fit:
    """How a file's tensors fit the official network they belong to.

    Attributes:
        architecture: the network.
        used: names that refining reads.
        unused: names it does not read: RPN, box head, boundary and semantic predictors, constants.
        missing: names it would read, but that are not there.
        unknown: names that no official network has.
        misshapen: (name, shape found, shape expected).
    """

    architecture: Architecture
    used: list[str]
    unused: list[str]
    missing: list[str]
    unknown: list[str]
    misshapen: list[tuple[str, tuple[int, ...], tuple[int, ...]]]

    def lines(self) -> list[str]:
        """What was kept and what was not, for a terminal."""
        left_out = ", ".join(f"{part} {count}" for part, count in groups(self.unused).items())
        return [f"  {len(self.used)} tensors kept", f"  {len(self.unused)} left out: {left_out or 'none'}"]

    def check(self, path: Path) -> None:
        """Raises where the network cannot be filled.

        Raises:
            CheckpointError: tensors are missing, unknown or of another shape.
        """
        name = f"an official {self.architecture.name} checkpoint"
        if self.missing:
            raise CheckpointError(
                f"{name} that lacks {_some(self.missing)}", file=path, remedy="the file is incomplete"
            )
        if self.misshapen:
            key, found, expected = self.misshapen[0]
            more = f" (and {len(self.misshapen) - 1} more)" if len(self.misshapen) > 1 else ""
            raise CheckpointError(
                f"{name} whose {key} has shape {found}, expected {expected}{more}", file=path
            )
        if self.unknown:
            raise CheckpointError(
                f"{name} with unknown tensors: {_some(self.unknown)}",
                file=path,
                remedy="it belongs to a changed network, whose results would differ",
            )


def _some(names: list[str]) -> str:
    count = f"{len(names)} tensors, the first: " if len(names) > 1 else ""
    return count + ", ".join(names[:_SHOWN])


def fit(file: TensorFile) -> Fit:
    """Recognises the network that a file's tensors belong to and compares them with it.

    Raises:
        CheckpointError: they belong to no official Mask Transfiner.
    """
    if file.kind not in ("", KIND):
        raise CheckpointError(
            f"a checkpoint of another kind ({file.kind})",
            file=file.path,
            remedy=f"expected a file of this package ({KIND}) or of the authors",
        )
    tensors = file.tensors
    architecture = recognise({name: tuple(tensor.shape) for name, tensor in tensors.items()}, file.path)
    names = inference_keys(architecture)
    expected = _expected_shapes(architecture, names)
    idle = constants(architecture) | set(training_keys())

    def unused(name: str) -> bool:
        return name in idle or name.startswith((*DETECTOR_PREFIXES, *_IGNORED))

    others = [name for name in tensors if name not in names]
    return Fit(
        architecture,
        used=[name for name in names if name in tensors],
        unused=[name for name in others if unused(name)],
        missing=[name for name in names if name not in tensors],
        unknown=[name for name in others if not unused(name)],
        misshapen=[
            (name, tuple(tensors[name].shape), shape)
            for name, shape in expected.items()
            if name in tensors and tuple(tensors[name].shape) != shape
        ],
    )


def _expected_shapes(architecture: Architecture, names: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor under the release's name."""
    with torch.device("meta"):
        state = OfficialNetwork(architecture).state_dict()
    shapes = {name: tuple(state[ours].shape) for name, ours in names.items()}
    return {n: (*s, 1, 1) if n.endswith(_CONVOLUTIONS) else s for n, s in shapes.items()}


def fill(module: nn.Module, tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
    """Puts tensors under the release's names into a module; the 1×1 convolutions among them are linear here."""
    state = module.state_dict()
    for name, ours in names.items():
        state[ours] = tensors[name].to(torch.float32).reshape(state[ours].shape)
    module.load_state_dict(state, assign=True)


def load_official_network(file: TensorFile) -> OfficialNetwork:
    """The network of a checkpoint, in float32 on the CPU, in evaluation mode.

    Raises:
        CheckpointError: the tensors do not make up an official network.
    """
    found = fit(file)
    found.check(file.path)
    with torch.device("meta"):
        network = OfficialNetwork(found.architecture)
    fill(network, file.tensors, inference_keys(found.architecture))
    network.backbone.fuse()
    return network.eval()


def load_detector(file: TensorFile) -> Detector:
    """RPN and box head of a checkpoint, in float32 on the CPU, in evaluation mode.

    Raises:
        CheckpointError: the file does not hold them, as converted files do not.
    """
    names = detector_keys()
    missing = [name for name in names if name not in file.tensors]
    if missing:
        raise CheckpointError(
            f"the file lacks {_some(missing)}",
            file=file.path,
            remedy="finding boxes needs the authors' original file; a converted one refines given boxes only",
        )
    with torch.device("meta"):
        detector = Detector(fit(file).architecture)
    fill(detector, file.tensors, names)
    return detector.eval()


def convert_official(source: Path, target: Path) -> Fit:
    """Writes the tensors that refining reads to a safetensors file, under the release's names.

    Args:
        source: the authors' ``.pth`` or ``.pkl``.
        target: ends in ``.safetensors``; written whole or not at all.

    Returns:
        what the file was and what was left out.

    Raises:
        CheckpointError: the source cannot be used.
    """
    file = read_tensors(source)
    found = fit(file)
    found.check(source)
    tensors = {name: file.tensors[name].to(torch.float32).contiguous() for name in found.used}
    with atomic_binary_file(target) as output:
        output.write(save(tensors, {"kind": KIND, "variant": found.architecture.name}))
    return found


def groups(names: Iterable[str]) -> dict[str, int]:
    """Names counted by the part of the network they belong to, for people."""
    counts: dict[str, int] = {}
    for name in names:
        part = _part(name)
        counts[part] = counts.get(part, 0) + 1
    return counts


def _part(name: str) -> str:
    if name.startswith("proposal_generator."):
        return "RPN"
    if name.startswith(("roi_heads.box_head.", "roi_heads.box_predictor.")):
        return "box head"
    if name.endswith("relative_position_index"):
        return "constants"
    if name in training_keys():
        return "semantic predictor" if "semantic" in name else "boundary predictor"
    return "other"
