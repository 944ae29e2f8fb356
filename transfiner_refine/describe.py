"""What a weights file is, in words: the facts behind ``transfiner-refine weights``."""

from __future__ import annotations

from pathlib import Path

from transfiner_refine.model.checkpoint import load_network
from transfiner_refine.model.weights import is_native, weights_digest
from transfiner_refine.official.checkpoint import fit, groups
from transfiner_refine.official.read import read_tensors

__all__ = ["describe"]


def describe(path: Path) -> tuple[list[str], bool]:
    """The facts about a weights file, one a line, and whether ``load_refiner`` takes it.

    Raises:
        CheckpointError: it cannot be read, or belongs to no network that this package knows.
    """
    file = None if path.is_file() and is_native(path) else read_tensors(path)
    unused, missing, wrong = "none", list[str](), dict[str, list[str]]()
    if file is None:
        network = load_network(path)
        variant = f"transfiner-refine native, backbone {network.config.backbone}, class-agnostic"
        parameters = sum(parameter.numel() for parameter in network.parameters())
        file = read_tensors(path)
    else:
        found = fit(file)
        variant = f"official Mask Transfiner {found.architecture.name}, {found.architecture.classes} classes"
        parameters = sum(file.tensors[name].numel() for name in found.used)
        unused = ", ".join(f"{part} {count}" for part, count in groups(found.unused).items()) or unused
        missing = found.missing
        misshapen = [f"{name}: {shape}, expected {expected}" for name, shape, expected in found.misshapen]
        wrong = {
            what: names for what, names in (("unknown", found.unknown), ("misshapen", misshapen)) if names
        }
        if not (missing or wrong):
            found.check(file)  # are its numbers those of a network?
    facts = {
        "variant": variant,
        "parameters": f"{parameters / 1e6:.2f} million",
        "file": f"{file.format}, {len(file.tensors)} tensors, {path.stat().st_size / 1e6:.1f} MB",
        "sha256": weights_digest(path),
        "unused": unused,
        "missing": _listed(missing),
        **{what: _listed(names) for what, names in wrong.items()},
    }
    return [f"  {name:<10}  {value}" for name, value in facts.items()], not (missing or wrong)


def _listed(names: list[str]) -> str:
    if not names:
        return "none"
    return f"{len(names)}: " + ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
