"""What a weights file is, in words: the facts behind ``transfiner-refine weights``."""

from __future__ import annotations

from pathlib import Path

from transfiner_refine.model.checkpoint import load_network
from transfiner_refine.model.weights import KIND, weights_digest
from transfiner_refine.official.checkpoint import fit
from transfiner_refine.official.read import read_tensors


def describe(path: Path) -> tuple[list[str], bool]:
    """The facts about a weights file, one a line, and whether ``load_refiner`` takes it.

    Raises:
        CheckpointError: it cannot be read, or belongs to no network that this package knows.
    """
    unused, missing, wrong = "none", list[str](), dict[str, list[str]]()
    file = read_tensors(path)
    if file.kind == KIND:
        network = load_network(path)
        variant = f"transfiner-refine native, backbone {network.config.backbone}, class-agnostic"
        parameters = sum(parameter.numel() for parameter in network.parameters())
    else:
        found = fit(file)
        variant = f"official Mask Transfiner {found.architecture.name}, {found.architecture.classes} classes"
        parameters = sum(file.tensors[name].numel() for name in found.used)
        unused, missing = found.left_out, found.misfit.missing
        wrong = {name: listed for name in ("unknown", "misshapen") if (listed := getattr(found.misfit, name))}
        if not (missing or wrong):
            found.check()  # are its numbers those of a network?
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
