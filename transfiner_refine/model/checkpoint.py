"""Weights on disk: safetensors that carry their configuration, and a JSON side file for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from transfiner_refine.errors import CheckpointError
from transfiner_refine.model.network import MaskTransfiner
from transfiner_refine.model.weights import KIND, read_config, read_safetensors
from transfiner_refine.output import atomic_binary_file, atomic_file

__all__ = ["check_numbers", "load_network", "save_network"]

_COUNTER = "num_batches_tracked"  # of batch normalisation in training; not stored


def save_network(
    network: MaskTransfiner,
    path: Path,
    *,
    dtype: torch.dtype = torch.float16,
    about: dict[str, Any] | None = None,
) -> None:
    """Writes ``path`` (safetensors) and ``path`` with the suffix ``.json``.

    Args:
        network: the network.
        path: ends in ``.safetensors``.
        dtype: of the stored tensors.
        about: what the side file says beside the configuration (data, recipe, scores).
    """
    tensors = {
        name: value.detach().to("cpu", dtype if value.is_floating_point() else value.dtype).contiguous()
        for name, value in network.state_dict().items()
        if not name.endswith(_COUNTER)
    }
    config = network.config.to_json()
    with atomic_binary_file(path) as file:
        file.write(save(tensors, {"kind": KIND, "config": json.dumps(config)}))
    with atomic_file(path.with_suffix(".json")) as side:
        side.write(json.dumps({"kind": KIND, "config": config, **(about or {})}, indent=2) + "\n")


def load_network(path: Path) -> MaskTransfiner:
    """The network stored in ``path``, in float32 on the CPU, in evaluation mode.

    Raises:
        CheckpointError: the file is missing, damaged, or not a native refiner of this package.
    """
    config = read_config(path)
    with torch.device("meta"):  # random weights would take time and the caller's random state
        network = MaskTransfiner(config)
    _, tensors = read_safetensors(path)
    expected = network.state_dict()
    counters = {name for name in expected if name.endswith(_COUNTER)}
    missing, unexpected = (
        sorted(set(expected) - set(tensors) - counters),
        sorted(set(tensors) - set(expected)),
    )
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
        check_numbers(name, value, path)
    state = {name: value.float() for name, value in tensors.items()}
    state |= {name: torch.zeros((), dtype=torch.long) for name in counters}
    network.load_state_dict(state, assign=True)
    return network.eval()


def check_numbers(name: str, tensor: Tensor, path: Path) -> None:
    """Whether a tensor of a weights file can be one of a trained network.

    Raises:
        CheckpointError: it holds nan or infinite values, or is a matrix or kernel of zeros.
    """
    wrong = ""
    if not torch.isfinite(tensor).all():
        wrong = "values that are not finite"
    elif tensor.ndim > 1 and not tensor.any():
        wrong = "nothing but zeros"
    if wrong:
        raise CheckpointError(f"tensor {name} holds {wrong}", file=path, remedy="download or export it again")
