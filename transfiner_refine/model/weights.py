"""Where weights come from, and what a weights file says of itself; without PyTorch."""

from __future__ import annotations

import json
import os
from hashlib import sha256
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from transfiner_refine.errors import CheckpointError, short
from transfiner_refine.model.config import RefinerConfig

#: Written to every checkpoint of this package; tells a native refiner from any other safetensors file.
KIND = "transfiner-refine/native"

DEFAULT_WEIGHTS = "lite"
AGAIN = "download or export it again"  # what to do with a damaged weights file
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
    """The file of a built-in model's name or of a path; CheckpointError where it is neither."""
    known = built_in_weights()
    if str(weights) in known:
        return known[str(weights)]
    path = Path(weights).expanduser()
    if path.is_file():
        return path
    remedy = f"built-in models: {', '.join(known) or 'none: the installation is incomplete'}"
    raise CheckpointError("neither a file nor a built-in model", file=weights, remedy=remedy)


def is_native(path: Path) -> bool:
    """Whether the file says of itself that it is a native refiner of this package; it may be damaged all the same."""
    try:
        return read_safetensors(path, tensors=False)[0].get("kind") == KIND
    except CheckpointError:
        return False


def read_config(path: Path) -> RefinerConfig:
    """The configuration in a weights file; CheckpointError where that is no native refiner of this package."""
    metadata, _ = read_safetensors(path, tensors=False)
    if metadata.get("kind") != KIND:
        stated = short(metadata["kind"]) if "kind" in metadata else "no kind is stated"
        remedy = f"expected a file written by transfiner-refine ({KIND})"
        raise CheckpointError(f"a checkpoint of another kind ({stated})", file=path, remedy=remedy)
    try:
        values = json.loads(metadata["config"])
    except (KeyError, ValueError, RecursionError) as error:
        reason = f"no readable configuration ({short(error)})"
        raise CheckpointError(reason, file=path, remedy=AGAIN) from error
    return RefinerConfig.from_json(values, str(path))


def read_safetensors(path: Path, *, tensors: bool = True) -> tuple[dict[str, str], dict[str, Any]]:
    """What a safetensors file says of itself, and its tensors (PyTorch's) by name; none without ``tensors``.

    Raises CheckpointError where the file is missing or damaged.
    """
    if not path.is_file():
        raise CheckpointError("there is no such weights file", file=path, remedy="check --weights")
    try:
        with safe_open(path, framework="pt" if tensors else "np") as file:
            names = file.keys() if tensors else ()
            return file.metadata() or {}, {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        reason = f"not a readable safetensors file ({error})"
        raise CheckpointError(reason, file=path, remedy=AGAIN) from error


def weights_digest(path: Path) -> str:
    """SHA-256 of a weights file, hexadecimal; exported programs carry it."""
    digest = sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
