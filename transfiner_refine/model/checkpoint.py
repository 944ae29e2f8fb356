"""Weights on disk: safetensors that carry their configuration, and a JSON side file for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from transfiner_refine.errors import CheckpointError
from transfiner_refine.model.network import MaskTransfiner
from transfiner_refine.model.weights import KIND, read_config
from transfiner_refine.output import atomic_binary_file, atomic_file

__all__ = ["load_network", "save_network"]


def save_network(
    network: MaskTransfiner,
    path: Path,
    *,
    dtype: torch.dtype = torch.float16,
    about: dict[str, Any] | None = None,
) -> None:
    """Writes ``path`` (safetensors) and ``path`` with the suffix ``.json``, each whole or not at all.

    Args:
        network: the network.
        path: ends in ``.safetensors``.
        dtype: of the stored tensors.
        about: what the side file says beside the configuration (data, recipe, scores).
    """
    tensors = {
        name: value.detach().to("cpu", dtype if value.is_floating_point() else value.dtype).contiguous()
        for name, value in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    header = {"kind": KIND, "config": network.config.to_json(), **(about or {})}
    with atomic_binary_file(path) as file:
        file.write(save(tensors, {"kind": KIND, "config": json.dumps(network.config.to_json())}))
    with atomic_file(path.with_suffix(".json")) as side:
        side.write(json.dumps(header, indent=2) + "\n")


def load_network(path: Path) -> MaskTransfiner:
    """The network stored in ``path``, in float32 on the CPU, in evaluation mode.

    Raises:
        CheckpointError: the file is missing, damaged, or not a native refiner of this package.
    """
    network = MaskTransfiner(read_config(path))
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"not a readable safetensors file ({error})", file=path, remedy="download or export it again"
        ) from error
    expected = {
        name: value
        for name, value in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    missing, unexpected = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    if missing or unexpected:
        raise CheckpointError(
            f"{len(missing)} tensors are missing and {len(unexpected)} unknown, the first: {(missing + unexpected)[0]}",
            file=path,
            remedy="the file belongs to another version of transfiner-refine",
        )
    for name, value in tensors.items():
        if value.shape != expected[name].shape:
            raise CheckpointError(
                f"tensor {name} has shape {tuple(value.shape)}, expected {tuple(expected[name].shape)}",
                file=path,
            )
    network.load_state_dict({name: value.float() for name, value in tensors.items()}, strict=False)
    return network.eval()
