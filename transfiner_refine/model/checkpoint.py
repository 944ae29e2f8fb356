"""Weights on disk: safetensors that carry their configuration, and a JSON side file for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor

from transfiner_refine.errors import CheckpointError
from transfiner_refine.model.network import MaskTransfiner
from transfiner_refine.model.weights import AGAIN, KIND, read_config, read_safetensors
from transfiner_refine.output import atomic_binary_file, atomic_file

_COUNTER = "num_batches_tracked"  # of batch normalisation in training; not stored
_SHOWN = 3  # names in a message


def save_network(
    network: MaskTransfiner,
    path: Path,
    *,
    dtype: torch.dtype = torch.float16,
    about: dict[str, Any] | None = None,
) -> None:
    """Writes ``path``, a safetensors file, and beside it a ``.json`` that says ``about`` (data, recipe, scores) too."""
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
    """The network in a weights file, in float32 on the CPU, in evaluation mode.

    Raises:
        CheckpointError: the file is missing, damaged, or not a native refiner of this package.
    """
    config = read_config(path)
    with torch.device("meta"):  # random weights would take time and the caller's random state
        network = MaskTransfiner(config)
    _, tensors = read_safetensors(path)
    state = network.state_dict()
    expected = {name: tuple(value.shape) for name, value in state.items() if not name.endswith(_COUNTER)}
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    check_tensors(Misfit.of(shapes, expected), tensors, path, "a refiner")
    zero = torch.zeros((), dtype=torch.long)
    state = {name: tensors[name].float() if name in tensors else zero.clone() for name in state}
    network.load_state_dict(state, assign=True)
    return network.eval()


class Misfit(NamedTuple):
    """How the tensors of a file differ from those of its network."""

    missing: list[str]
    misshapen: list[str]  # with both shapes
    unknown: list[str]

    @classmethod
    def of(cls, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> Misfit:
        """From the shapes of both, by name."""
        return cls(
            [name for name in expected if name not in found],
            [
                f"{name}: {found[name]}, expected {shape}"
                for name, shape in expected.items()
                if found.get(name, shape) != shape
            ],
            [name for name in found if name not in expected],
        )


def check_tensors(misfit: Misfit, tensors: Mapping[str, Tensor], path: Path, what: str) -> None:
    """Whether a weights file holds what its network needs, and only that.

    Raises:
        CheckpointError: a tensor is missing, unknown or of another shape; it holds nan or infinite values, or is a
            matrix or kernel of zeros.
    """
    for names, problem, remedy in zip(
        misfit,
        ("that lacks", "with tensors of another shape:", "with unknown tensors:"),
        ("the file is incomplete, or of another version", *["it belongs to a changed network"] * 2),
        strict=True,
    ):
        if names:
            count = f"{len(names)} tensors, the first: " if len(names) > 1 else ""
            reason = f"{what} {problem} {count}{', '.join(names[:_SHOWN])}"
            raise CheckpointError(reason, file=path, remedy=remedy)
    for name, tensor in tensors.items():
        wrong = ""
        if not torch.isfinite(tensor).all():
            wrong = "values that are not finite"
        elif tensor.ndim > 1 and not tensor.any():
            wrong = "nothing but zeros"
        if wrong:
            raise CheckpointError(f"tensor {name} holds {wrong}", file=path, remedy=AGAIN)
