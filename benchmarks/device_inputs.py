"""What ``device_check.py`` works on: the session, generated photos and masks, and batches of RoIs of one size class."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import click
import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from transfiner_refine.images import read_image
from transfiner_refine.masks import Mask, MaskWindow
from transfiner_refine.model.checkpoint import load_network
from transfiner_refine.model.weights import find_weights
from transfiner_refine.refine import device_queue
from transfiner_refine.refine.device_pass import Group
from transfiner_refine.refine.engine import SizeClass
from transfiner_refine.refine.torch_engine import TorchEngine

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SIZES = {"480p": (480, 640), "1080p": (1080, 1920), "4K": (2160, 3840)}
CLASSES = [  # of RoIs: label, group, RoI side
    ("112", Group(SizeClass(3, True), 128, True, None, False), 100),
    ("224", Group(SizeClass(4, True), 256, True, None, False), 190),
    ("224+windows", Group(SizeClass(4, True), 256, True, SizeClass(3, False), False), 250),
    ("448+windows", Group(SizeClass(5, True), 512, True, SizeClass(4, False), False), 450),
    ("224-dense", Group(SizeClass(4, False), 256, False, None, False), 190),
]


class Scene(NamedTuple):
    """Images, coarse masks, and the image of each mask."""

    images: list[NDArray[np.uint8]]
    masks: list[Mask]
    owner: list[int]


@dataclass
class Session:
    """What the checks share."""

    device: torch.device
    weights: str
    small: bool
    deadline: float
    json_path: Path | None
    results: dict[str, Any] = field(default_factory=dict)
    until: float = 0.0  # when the share of the check that runs is used up

    @cached_property
    def network(self) -> Any:
        return load_network(find_weights(self.weights))

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def engine(self, precision: str = "auto") -> TorchEngine:
        return TorchEngine(self.network, str(self.device), precision)

    def synchronise(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def has_time(self, what: str) -> bool:
        """Whether the check may go on; says what is skipped where not."""
        if time.monotonic() < self.until:
            return True
        click.echo(f"  skipped for time: {what}")
        return False

    def keep(self, name: str, value: Any) -> None:
        self.results[name] = value
        if self.json_path is not None:
            self.json_path.write_text(json.dumps(self.results, indent=1))


def blob(random: np.random.Generator, side: int, size: tuple[int, int]) -> Mask:
    """A wavy ellipse whose box is about ``side`` pixels long."""
    height, width = size
    half = min(side, height - 4, width - 4) / 2
    y, x = random.uniform(half + 1, height - half - 1), random.uniform(half + 1, width - half - 1)
    angle = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    radius = half / 1.12 * (1 + 0.12 * np.sin(random.integers(3, 9) * angle + random.uniform(0, 6)))
    x0, y0, extent = max(0, int(x - half)), max(0, int(y - half)), int(2 * half) + 2
    outline = np.stack((x + radius * np.cos(angle) - x0, y + radius * np.sin(angle) - y0), 1)
    canvas = np.zeros((min(extent, height - y0), min(extent, width - x0)), np.uint8)
    filled = cv2.fillPoly(canvas, [outline.round().astype(np.int32)], 1) > 0
    return Mask.from_window(MaskWindow(filled, x0, y0, size))


def photo(random: np.random.Generator, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Smooth colours with grain."""
    coarse = random.integers(0, 256, (12, 16, 3), np.uint8)
    grain = random.integers(0, 12, (*size, 1), np.uint8)
    return cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC) // 2 + 60 + grain


def make_scene(
    size: tuple[int, int],
    images: int,
    masks: int,
    sides: tuple[int, int] | None = None,
    *,
    drawn: bool = False,
) -> Scene:
    """Images with as many masks each, their sides from 4 to 40 % of the image's height if not given.

    Args:
        size: (height, width) of the images.
        images, masks: how many images, and masks of each.
        sides: shortest and longest mask.
        drawn: paint every object, so that there is an outline to find; else masks lie on any ground.
    """
    random = np.random.default_rng(0)
    low, high = sides or (round(0.04 * size[0]), round(0.4 * size[0]))
    pictures = [photo(random, size) for _ in range(min(images, 8))]
    scene = Scene([], [], [])
    for index in range(images):
        picture = pictures[index % len(pictures)]
        scene.images.append(picture.copy() if drawn else picture)
        for _ in range(masks):
            mask = blob(random, round(low * (high / low) ** random.random()), size)
            if drawn:
                there = mask.decode()
                h, w = there.values.shape
                pixels = scene.images[-1][there.y : there.y + h, there.x : there.x + w]
                away = np.where(pixels.mean((0, 1)) > 128, 10, 190).astype(np.uint8)
                pixels[there.values] = pixels[there.values] // 4 + away
                mask = Mask.from_window(_roughened(there))
            scene.masks.append(mask)
            scene.owner.append(index)
    return scene


def _roughened(mask: MaskWindow) -> MaskWindow:
    """A coarse mask: the mask on a grid of 9 cells, enlarged again."""
    h, w = mask.values.shape
    small = cv2.resize(mask.values.astype(np.float32), (9, 9), interpolation=cv2.INTER_AREA)
    values = cv2.resize(np.float32(small > 0.5), (w, h), interpolation=cv2.INTER_LINEAR) >= 0.5
    return MaskWindow(values, mask.x, mask.y, mask.image_size)


def examples() -> Scene:
    """The photos and coarse masks in ``examples/``."""
    info = json.loads((EXAMPLES / "image_info.json").read_text())["images"]
    names = {image["id"]: image["file_name"] for image in info}
    scene, position = Scene([], [], []), {}
    for record in json.loads((EXAMPLES / "detections.json").read_text()):
        key, rle = record["image_id"], record["segmentation"]
        if key not in position:
            position[key] = len(scene.images)
            scene.images.append(read_image(EXAMPLES / "images" / names[key]).pixels)
        scene.masks.append(Mask(tuple(rle["size"]), rle["counts"]))
        scene.owner.append(position[key])
    return scene


def prepared_batch(run: Session, group: Group, side: int, count: int) -> tuple[Any, ...]:
    """Arguments of ``refine_group`` for RoIs of one group, on the device."""
    extent = side + 8
    scene = make_scene((extent, extent), 1, count, (round(side / 1.3), round(side / 1.3)))
    made: dict[str, Any] = {"dtype": torch.int64, "device": run.device}
    table = torch.zeros(count, 7 + 16, **made)
    table[:, :7] = torch.tensor([4 * extent + 4, extent, extent, 4, 4, side, side], **made)
    if group.window is not None:
        part = round(0.6 * side)
        corners = [(x, y, part, part) for y in (0, side - part) for x in (0, side - part)]
        table[:, 7:] = torch.tensor(corners, **made).flatten()
    edges = torch.from_numpy(device_queue._run_ends([mask.runs for mask in scene.masks])).to(run.device)
    return torch.from_numpy(scene.images[0].reshape(-1, 3)).to(run.device), table, edges, None, 6


def one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
