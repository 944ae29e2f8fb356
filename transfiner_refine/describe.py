"""What a weights file is, in words: the facts behind ``transfiner-refine weights``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from transfiner_refine.model.checkpoint import load_network
from transfiner_refine.model.weights import is_native, weights_digest
from transfiner_refine.official.checkpoint import fit, groups
from transfiner_refine.official.read import read_tensors

__all__ = ["Description", "describe"]


@dataclass(frozen=True)
class Description:
    """Facts about a weights file.

    Attributes:
        path: the file.
        variant: the network, as people call it.
        format: kind of file.
        parameters: numbers in the tensors that refining reads.
        classes: number of object classes, None where the network knows none.
        checksum: SHA-256 of the file, hexadecimal.
        tensors: number of tensors in the file.
        unused: part of the network → number of its tensors that refining does not read.
        missing: names that are not there.
        unknown: names that do not belong there.
        misshapen: "name: shape found, shape expected".
    """

    path: Path
    variant: str
    format: str
    parameters: int
    classes: int | None
    checksum: str
    tensors: int
    unused: dict[str, int] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)

    @property
    def usable(self) -> bool:
        """Whether ``load_refiner`` takes it."""
        return not (self.missing or self.unknown or self.misshapen)

    def lines(self) -> list[str]:
        """The facts for a terminal, one a line, without the name."""
        size = self.path.stat().st_size / 1e6
        classes = "class-agnostic" if self.classes is None else f"{self.classes} classes"
        unused = ", ".join(f"{part} {count}" for part, count in self.unused.items()) or "none"
        lines = [
            f"  variant     {self.variant}, {classes}",
            f"  parameters  {self.parameters / 1e6:.2f} million",
            f"  file        {self.format}, {self.tensors} tensors, {size:.1f} MB",
            f"  sha256      {self.checksum}",
            f"  unused      {unused}",
            f"  missing     {_listed(self.missing)}",
        ]
        if self.unknown:
            lines.append(f"  unknown     {_listed(self.unknown)}")
        if self.misshapen:
            lines.append(f"  misshapen   {_listed(self.misshapen)}")
        return lines


def _listed(names: list[str]) -> str:
    if not names:
        return "none"
    return f"{len(names)}: " + ", ".join(names[:3]) + (" …" if len(names) > 3 else "")


def describe(path: Path) -> Description:
    """What a weights file is.

    Raises:
        CheckpointError: it cannot be read, or belongs to no network that this package knows.
    """
    if path.is_file() and is_native(path):
        network = load_network(path)
        parameters = sum(parameter.numel() for parameter in network.parameters())
        tensors = len(read_tensors(path).tensors)
        variant = f"transfiner-refine native, backbone {network.config.backbone}"
        return Description(path, variant, "safetensors", parameters, None, weights_digest(path), tensors)
    file = read_tensors(path)
    found = fit(file)
    if not (found.missing or found.unknown or found.misshapen):
        found.check(file)  # are its numbers weights?
    return Description(
        path,
        variant=f"official Mask Transfiner {found.architecture.name}",
        format=file.format,
        parameters=sum(file.tensors[name].numel() for name in found.used),
        classes=found.architecture.classes,
        checksum=weights_digest(path),
        tensors=len(file.tensors),
        unused=groups(found.unused),
        missing=found.missing,
        unknown=found.unknown,
        misshapen=[f"{name}: {shape}, expected {expected}" for name, shape, expected in found.misshapen],
    )
