"""Where weights come from: the built-in models by name, or a file."""

from __future__ import annotations

import os
from pathlib import Path

from transfiner_refine.types import CheckpointError

__all__ = ["DEFAULT_WEIGHTS", "built_in_weights", "find_weights"]

DEFAULT_WEIGHTS = "lite"
_PREFIX = "transfiner-"


def _folders() -> list[Path]:
    """Places that hold built-in weights, the most specific first."""
    package = Path(__file__).resolve().parent.parent
    # a wheel carries the weights inside the package, an editable install beside it
    folders = [package / "weights", package.parent / "weights"]
    home = os.environ.get("TRANSFINER_REFINE_HOME")
    return [Path(home).expanduser(), *folders] if home else folders


def built_in_weights() -> dict[str, Path]:
    """Name → file of every built-in model, and of those in the folder ``TRANSFINER_REFINE_HOME`` names."""
    found: dict[str, Path] = {}
    for folder in _folders():
        for file in sorted(folder.glob(f"{_PREFIX}*.safetensors")):
            found.setdefault(file.stem.removeprefix(_PREFIX), file)
    return found


def find_weights(weights: str | Path) -> Path:
    """The file of a built-in model's name or of a path.

    Raises:
        CheckpointError: it is neither.
    """
    known = built_in_weights()
    if str(weights) in known:
        return known[str(weights)]
    path = Path(weights).expanduser()
    if path.is_file():
        return path
    names = ", ".join(known) or "none: the installation is incomplete"
    raise CheckpointError(
        "neither a file nor a built-in model",
        file=weights,
        remedy=f"built-in models: {names}",
    )
