"""A network with a wider dense decoder that starts out with the labels of a narrower, trained one.

    python benchmarks/widen.py lite wide.safetensors --dense-widths 128 64 32
    transfiner-refine train --start wide.safetensors …

Channels are added as in Net2Net (Chen et al., ICLR 2016), but new ones rather than copies: whatever computes a new
channel begins at random, and whatever reads it at zero. So training goes on from the quality that is there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import torch
from torch import Tensor

from transfiner_refine.model.checkpoint import load_network, save_network
from transfiner_refine.model.network import MaskTransfiner
from transfiner_refine.model.weights import find_weights


def widened(network: MaskTransfiner, dense_widths: tuple[int, int, int]) -> MaskTransfiner:
    """A new network with ``dense_widths`` that yields what ``network`` does.

    Raises:
        ValueError: a width is smaller than the network's own.
    """
    narrow = network.config.dense_widths
    if any(new < old for new, old in zip(dense_widths, narrow, strict=True)):
        raise ValueError(f"dense widths {dense_widths} are not all at least {narrow}")
    wide = MaskTransfiner(replace(network.config, dense_widths=dense_widths))
    trained, tensors = network.state_dict(), wide.state_dict()
    inputs = dict(_moved_inputs(network, narrow, dense_widths))
    for name, value in trained.items():
        tensors[name] = _embedded(value, tensors[name], inputs.get(name))
    wide.load_state_dict(tensors)
    return wide.train(network.training)


def _embedded(value: Tensor, into: Tensor, inputs: Tensor | None) -> Tensor:
    """``value`` as the first outputs of ``into``, which read ``inputs`` (default: the first) and nothing else."""
    if value.shape == into.shape:
        return value.clone()
    result = into.clone()
    if value.dim() < 2:
        result[: len(value)] = value
        return result
    rows = torch.zeros_like(into[: len(value)])
    rows[:, torch.arange(value.shape[1]) if inputs is None else inputs] = value
    result[: len(value)] = rows
    return result


def _moved_inputs(
    network: MaskTransfiner, narrow: tuple[int, int, int], wide: tuple[int, int, int]
) -> Iterator[tuple[str, Tensor]]:
    """The layers that read several things side by side: the place of each old input among the new ones."""
    base = network.config.pyramid_width + network.config.incoherence_width
    # each level's own map with the dense label as its last channel, (old, new); the 28 level and the pixels stay
    own = [(base + 1, base + 1), *((n + 1, w + 1) for n, w in zip(narrow, wide, strict=True)), (3, 3)]
    for level, ((old, new), (old_above, new_above)) in enumerate(zip(own, [(0, 0), *own[:-1]], strict=True)):
        encoder = f"encoders.{level}"
        rest = network.config.width // 2 + 1
        yield f"{encoder}.fuse.weight", _places((old, new), (old_above, new_above), (rest, rest), labels=2)
        yield f"{encoder}.context.weight", _places(*[(old, new)] * 9, (9, 9), labels=9)
    for i, (n, w) in enumerate(zip(narrow, wide, strict=True)):
        hidden = network.config.incoherence_width
        yield f"detector.join.{i}.weight", _places((hidden, hidden), (n, w), (9, 9), labels=0)


def _places(*parts: tuple[int, int], labels: int) -> Tensor:
    """Indices among the new channels for parts of (old, new) channels; in the first or ``labels`` ones the last
    channel is the label and stays last."""
    places: list[int] = []
    start = 0
    for i, (old, new) in enumerate(parts):
        own = list(range(start, start + old))
        if i < labels and old:
            own[-1] = start + new - 1
        places += own
        start += new
    return torch.tensor(places)


@click.command()
@click.argument("weights")
@click.argument("output", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--dense-widths",
    type=(int, int, int),
    default=(128, 64, 32),
    show_default=True,
    help="Of the 56, 112 and 224 grid.",
)
@click.option("--seed", default=10, show_default=True, help="Of the new layers' weights.")
def main(weights: str, output: Path, dense_widths: tuple[int, int, int], seed: int) -> None:
    """Write WEIGHTS (a shipped name or a checkpoint) with a wider dense decoder to OUTPUT, for train --start."""
    torch.manual_seed(seed)
    save_network(widened(load_network(find_weights(weights)), dense_widths), output)


if __name__ == "__main__":
    main()
