"""How much faster than the official procedure: RoI features of the nodes and the transformer over them.

    python benchmarks/official_speed.py                     100 boxes on an 800×1066 image, on the CPU
    python benchmarks/official_speed.py --device cuda --boxes 100

The official procedure is restated plainly from its description: dense RoI features of all boxes on the grids 28, 56
and 112, then one transformer call a box with PyTorch's unfused attention module. Ours reads the nodes' features only
and attends with the fused kernel. Weights, feature maps, boxes and nodes are the same, random but alike in kind:
nodes lie along outlines. Each procedure runs in a process of its own, so that peak memory can be told apart.
Wall time suffers from other load on the machine, CPU time hardly; both are printed.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from transfiner_refine.official import Architecture, OfficialNetwork
from transfiner_refine.official.features import (
    CONTEXT_GRID,
    ImageFeatures,
    axis_embedding,
    box_level,
    tokens_of,
)
from transfiner_refine.official.nodes import NODE_GRIDS, select_nodes

HEIGHT, WIDTH = 800, 1066
STRIDES = (4, 8, 16, 32)
CLEAR, DOUBTFUL, RULED_OUT = 0.9, 0.4, 0.01  # incoherence on an outline, beside it, elsewhere
AIM_TIME, AIM_MEMORY = 2.5, 1 / 3


class Inputs:
    """Feature maps of one image, boxes on it, coarse masks and nodes along their outlines."""

    def __init__(self, boxes: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(device)

        padded = (-(-HEIGHT // 32) * 32, -(-WIDTH // 32) * 32)
        maps = [normal(1, 256, padded[0] // s, padded[1] // s) for s in STRIDES]
        semantic = normal(1, 256, padded[0] // 4, padded[1] // 4)
        self.finer = [maps[0] + semantic, *maps[1:]]
        tables = [each[0].permute(1, 2, 0).contiguous() for each in self.finer]
        self.image = ImageFeatures(maps, semantic, tables)
        # sides as detectors find them on COCO: many small, some large
        sides = torch.exp(torch.empty(boxes, 2).uniform_(3.2, 6.2, generator=generator))
        corner = torch.rand(boxes, 2, generator=generator) * (torch.tensor([WIDTH, HEIGHT]) - sides).clamp(
            min=0
        )
        self.boxes = torch.cat((corner, corner + sides), 1).to(device)
        self.coarse, incoherence = _outlines(boxes, generator)
        self.coarse, self.incoherence = self.coarse.to(device), incoherence.to(device)


def _outlines(boxes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Coarse probabilities and incoherence, [boxes, 28, 28] each, of wavy blobs that fill their boxes."""
    axis = (torch.arange(28) + 0.5) / 14 - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    angle, radius = torch.atan2(y, x), torch.hypot(x, y)
    phase = torch.rand(boxes, 1, 1, generator=generator) * 6.28
    edge = 0.78 + 0.14 * torch.sin(3 * angle + phase) + 0.05 * torch.sin(8 * angle - phase)
    distance = (edge - radius) * 14  # cells inside the outline
    incoherence = torch.full_like(distance, RULED_OUT)
    incoherence[distance.abs() < 1.2] = DOUBTFUL
    incoherence[distance.abs() < 0.7] = CLEAR
    return torch.sigmoid(2 * distance), incoherence


class PlainEncoder(nn.Module):
    """The encoder as the release has it: PyTorch's attention module, which also averages its weights."""

    def __init__(self, network: OfficialNetwork) -> None:
        super().__init__()
        self.source = network.transformer
        self.attention = nn.ModuleList()
        for layer in network.transformer.layers:
            attention = nn.MultiheadAttention(256, 4)
            stacked = (layer.q, layer.k, layer.v)
            attention.in_proj_weight.data = torch.cat([each.weight for each in stacked])
            attention.in_proj_bias.data = torch.cat([each.bias for each in stacked])
            attention.out_proj.weight, attention.out_proj.bias = layer.project.weight, layer.project.bias
            self.attention.append(attention)

    def forward(self, tokens: Tensor, position: Tensor) -> Tensor:
        """tokens [t, 257], position [t, 256] of one box → foreground probabilities [t]."""
        x, position = self.source.fuse(tokens)[:, None], position[:, None]
        for attention, layer in zip(self.attention, self.source.layers, strict=True):
            where = x + position
            x = layer.norm1(x + attention(where, where, x)[0])
            x = layer.norm2(x + layer.narrow(F.relu(layer.widen(x))))
        return torch.sigmoid(self.source.decode(x[:, 0]))[:, 0]


def plain(network: OfficialNetwork, inputs: Inputs) -> list[Tensor]:
    """Dense pooling, then box by box."""
    encoder = PlainEncoder(network).to(inputs.boxes.device)
    levels = torch.tensor([box_level(box) for box in inputs.boxes], device=inputs.boxes.device)
    context = _pool(inputs.image.maps, inputs.boxes, levels, CONTEXT_GRID)
    pooled = [
        _pool(inputs.finer, inputs.boxes, (levels - step).clamp(min=2), grid)
        for step, grid in enumerate(NODE_GRIDS, 1)
    ]
    positions = [_dense_position(grid, inputs.boxes.device) for grid in (CONTEXT_GRID, *NODE_GRIDS)]
    resized = [
        F.interpolate(inputs.coarse[:, None], (grid, grid), mode="bilinear")[:, 0]
        for grid in (CONTEXT_GRID, *NODE_GRIDS)
    ]
    results = []
    for box in range(len(inputs.boxes)):
        nodes = select_nodes(inputs.incoherence[box])
        chosen = [torch.arange(CONTEXT_GRID**2, device=inputs.boxes.device), *(level.cell for level in nodes)]
        tokens, places = [], []
        for features, coarse, position, cells in zip(
            (context, *pooled), resized, positions, chosen, strict=True
        ):
            tokens.append(torch.cat((features[box].flatten(1), coarse[box].flatten()[None])).T[cells])
            places.append(position[cells])
        results.append(encoder(torch.cat(tokens), torch.cat(places))[CONTEXT_GRID**2 :])
    return results


def _pool(maps: list[Tensor], boxes: Tensor, level: Tensor, grid: int) -> Tensor:
    """Dense RoIAlign of all boxes, each from its level: [N, 256, grid, grid]."""
    out = torch.zeros(len(boxes), 256, grid, grid, device=level.device)
    rois = F.pad(boxes, (1, 0))
    for k in range(2, 6):
        mine = (level == k).nonzero().squeeze(1)
        out[mine] = roi_align(maps[k - 2], rois[mine], grid, 0.5**k, 0, aligned=True)
    return out


def _dense_position(grid: int, device: torch.device) -> Tensor:
    axis = axis_embedding(grid, 128, device)
    rows, columns = axis[:, None].expand(grid, grid, 128), axis[None].expand(grid, grid, 128)
    return torch.cat((rows, columns), 2).flatten(0, 1)


def ours(network: OfficialNetwork, inputs: Inputs) -> list[Tensor]:
    """As the refiner does it: one instance after the other, its nodes' features only."""
    if inputs.boxes.device.type == "cpu":
        network.transformer.pack()
    results = []
    for box, coarse, incoherence in zip(inputs.boxes, inputs.coarse, inputs.incoherence, strict=True):
        context = inputs.image.pooled(box)[0]
        tokens = tokens_of(inputs.image, box, context, coarse, select_nodes(incoherence))
        results.append(torch.sigmoid(network.transformer(*tokens)))
    return results


PROCEDURES: dict[str, Callable[[OfficialNetwork, Inputs], list[Tensor]]] = {"plain": plain, "ours": ours}


def measure(procedure: str, boxes: int, device: torch.device, result: Path) -> dict[str, float]:
    """Seconds and peak megabytes of one procedure in this process; writes the labels to ``result``."""
    torch.manual_seed(0)
    network = OfficialNetwork(Architecture()).eval().to(device)
    inputs = Inputs(boxes, device)
    with torch.inference_mode():
        if device.type == "cuda":
            PROCEDURES[procedure](network, Inputs(2, device))  # loads kernels
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
        before = _peak(device)
        wall, cpu = time.perf_counter(), time.process_time()
        labels = PROCEDURES[procedure](network, inputs)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    torch.save([each.cpu() for each in labels], result)
    tokens = sum(len(each) for each in labels) / boxes + CONTEXT_GRID**2
    return {"wall": wall, "cpu": cpu, "megabytes": _peak(device) - before, "tokens": tokens}


def _peak(device: torch.device) -> float:
    """Most memory in use so far, megabytes; the inputs are in it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


@click.command()
@click.option("--boxes", default=100, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", default=2, show_default=True, help="CPU threads.")
@click.option("--procedure", type=click.Choice(list(PROCEDURES)), hidden=True)
@click.option("--result", type=click.Path(path_type=Path), default=Path("official_speed"), hidden=True)
def main(boxes: int, device: str, threads: int, procedure: str | None, result: Path) -> None:
    """Compares the two procedures and prints their ratios."""
    torch.set_num_threads(threads)
    if procedure is not None:
        click.echo(json.dumps(measure(procedure, boxes, torch.device(device), result)))
        return
    import tempfile

    numbers, labels = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name in PROCEDURES:
            file = Path(folder) / name
            command = [
                sys.executable,
                __file__,
                "--procedure",
                name,
                "--result",
                str(file),
                "--device",
                device,
            ]
            command += ["--boxes", str(boxes), "--threads", str(threads)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            numbers[name], labels[name] = json.loads(done.stdout), torch.load(file)
            click.echo(
                f"{name:6} {numbers[name]['wall']:8.1f} s wall {numbers[name]['cpu']:8.1f} s CPU "
                f"{numbers[name]['megabytes']:8.0f} MB above the inputs"
            )
    difference = max(float((a - b).abs().max()) for a, b in zip(labels["plain"], labels["ours"], strict=True))
    one, other = numbers["plain"], numbers["ours"]
    click.echo(
        f"{boxes} boxes, {other['tokens']:.0f} tokens each on average; largest difference {difference:.1e}"
    )
    click.echo(
        f"time: {one['wall'] / other['wall']:.2f} times faster (wall), {one['cpu'] / other['cpu']:.2f} (CPU)"
    )
    click.echo(f"memory: {other['megabytes'] / one['megabytes']:.3f} of the plain procedure's")


if __name__ == "__main__":
    main()
