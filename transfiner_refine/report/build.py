"""Builds the report: a folder with one page, the photos in a size for the screen, and the masks as outlines."""

from __future__ import annotations

import json
import math
import os
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from transfiner_refine.errors import InputError
from transfiner_refine.evaluation.matched import CHANGE_THRESHOLD
from transfiner_refine.evaluation.overlap import as_window
from transfiner_refine.images import read_image
from transfiner_refine.output import atomic_folder, check_output_folder
from transfiner_refine.refine.roi import focus
from transfiner_refine.report.choose import choose
from transfiner_refine.report.outline import mask_path
from transfiner_refine.report.overlay import write_overlay
from transfiner_refine.report.scenes import Kind, Scene, Scenes, Shown, load_scenes

if TYPE_CHECKING:
    from transfiner_refine.refiner import BaseRefiner

__all__ = ["LIMIT", "PHOTO_SIDE", "Built", "build_report"]

LIMIT = 200
"""Images on a page: what can be looked through in an hour, about 60 MB of photos."""

PHOTO_SIDE = 1600
"""Longer side of the page's photos, pixels; a zoom of 2 on a common screen still shows real detail."""

_THUMBNAIL_SIDE = 240  # pixels; shown at half of it, for screens of double density
_THREADS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True)
class Built:
    """What was made.

    Attributes:
        page: the file to open; None where overlays alone were asked for.
        images, instances: shown on the page (or painted).
        chosen: how they were chosen where there were more, "" where all are shown.
        faults: what had to be left out, and why.
    """

    page: Path | None
    images: int
    instances: int
    chosen: str
    faults: tuple[InputError, ...]

    def lines(self) -> list[str]:
        """The closing words for a terminal."""
        lines = [f"Shown: {_count(self.instances, 'instance')} in {_count(self.images, 'image')}."]
        if self.chosen:
            lines.append(self.chosen)
        if self.page is not None:
            lines.append(f"Open {self.page} in a browser.")
        return lines


def build_report(
    images: str | Path,
    before: str | Path,
    after: str | Path,
    output: str | Path | None,
    *,
    annotations: str | Path | None = None,
    match: str | Path | None = None,
    image_info: str | Path | None = None,
    png_kind: Kind = "auto",
    overlay: str | Path | None = None,
    refiner: BaseRefiner | None = None,
    limit: int = LIMIT,
    photo_side: int = PHOTO_SIDE,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = False,
) -> Built:
    """Makes the page, and PNG overlays where they are asked for.

    Args:
        images: folder of the photos.
        before, after, annotations, match, image_info, png_kind: as for ``load_scenes``.
        output: folder for the page, to be opened at its ``index.html``; None for overlays alone.
        overlay: folder for IMAGE_STEM_before.png and IMAGE_STEM_after.png in full size; None for none.
        refiner: a loaded refiner shows the quadtree of each instance; None leaves it out.
        limit: most images to show, 0 for all; see ``choose``.
        photo_side: longer side of the page's photos, pixels; 0 keeps them as they are.
        seed: of the images chosen at random.
        overwrite: the folders may hold files already.
        progress: bars on stderr, if that is a terminal.

    Raises:
        InputError: an input cannot be used at all, or no image is left to show.
        OutputError: a folder exists already, is an input, or cannot be written.
    """
    inputs = [Path(path) for path in (images, before, after)]
    folders = [Path(folder) for folder in (output, overlay) if folder is not None]
    for folder in folders:
        check_output_folder(folder, inputs, overwrite=overwrite)
    found = load_scenes(
        images,
        before,
        after,
        annotations=annotations,
        match=match,
        image_info=image_info,
        png_kind=png_kind,
        progress=progress,
    )
    scenes, chosen = choose(found.scenes, limit, seed=seed)
    faults = list(found.faults)
    with ExitStack() as stack:
        drafts = [stack.enter_context(atomic_folder(folder)) for folder in folders]
        page = None if output is None else drafts[0]
        if page is not None:
            _copy_assets(page)
        work = _Work(page, None if overlay is None else drafts[-1], refiner, photo_side)
        entries: list[dict[str, Any]] = []
        for entry in tqdm(
            work.all(scenes),
            desc="drawing",
            unit=" images",
            total=len(scenes),
            file=sys.stderr,
            disable=None if progress else True,
        ):
            if isinstance(entry, InputError):
                faults.append(entry)
            else:
                entries.append(entry)
        if not entries:
            raise InputError("no image is left to show", file=before) from (faults[0] if faults else None)
        if page is not None:
            content = _content(found, entries, chosen, (before, after, annotations), refiner is not None)
            _write_script(page / "data" / "index.js", "index", content)
    return Built(
        None if output is None else Path(output) / "index.html",
        len(entries),
        sum(len(entry["instances"]) for entry in entries),
        chosen,
        tuple(faults),
    )


@dataclass(frozen=True)
class _Work:
    """Draws images, a few at a time where no network is in the way.

    Attributes:
        page: folder of the page, or None.
        overlay: folder of the overlays, or None.
        refiner: for the quadtrees, or None.
        photo_side: of the page's photos, pixels; 0 for as they are.
    """

    page: Path | None
    overlay: Path | None
    refiner: BaseRefiner | None
    photo_side: int

    def all(self, scenes: list[Scene]) -> Iterator[dict[str, Any] | InputError]:
        """The index entry of each image, or why it cannot be shown."""
        if self.refiner is not None:
            yield from (self.draw(number, scene) for number, scene in enumerate(scenes))
            return
        with ThreadPoolExecutor(_THREADS, "transfiner-report") as pool:
            try:
                yield from pool.map(self.draw, range(len(scenes)), scenes)
            except BaseException:  # Ctrl-C above all: what is queued need not be drawn any more
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def draw(self, number: int, scene: Scene) -> dict[str, Any] | InputError:
        """Writes what belongs to one image."""
        try:
            image = read_image(scene.path, {scene.size}).pixels
        except InputError as error:
            return error
        pairs = [
            (as_window(shown.before.decode()), as_window(shown.after.decode())) for shown in scene.instances
        ]
        if self.overlay is not None:
            name = scene.name.replace("/", "_").rsplit(".", 1)[0]
            write_overlay(self.overlay / f"{name}_before.png", image, [before for before, _ in pairs])
            write_overlay(self.overlay / f"{name}_after.png", image, [after for _, after in pairs])
        if self.page is None:
            return {"instances": scene.instances}
        file = f"{number:05d}"
        scale = _save_photo(image, self.page / "photos" / f"{file}.jpg", self.photo_side, quality=88)
        _save_photo(image, self.page / "thumbnails" / f"{file}.jpg", _THUMBNAIL_SIDE, quality=78)
        outlines = []
        for shown, (before, after) in zip(scene.instances, pairs, strict=True):
            drawn: dict[str, Any] = {"before": mask_path(before), "after": mask_path(after)}
            if shown.truth is not None:
                drawn["truth"] = mask_path(as_window(shown.truth.decode()))
            if self.refiner is not None and before.area:
                from transfiner_refine.report.nodes import quadtree_data  # here, because it imports torch

                drawn["quadtree"] = quadtree_data(self.refiner, image, before)
            outlines.append(drawn)
        _write_script(self.page / "data" / f"{file}.js", "outlines", {"file": file, "instances": outlines})
        return {
            "file": file,
            "name": scene.name,
            "width": scene.size[1],
            "height": scene.size[0],
            "scale": scale,
            "instances": [
                _instance(shown, *pair) for shown, pair in zip(scene.instances, pairs, strict=True)
            ],
        }


def _instance(shown: Shown, before: Any, after: Any) -> dict[str, Any]:
    """What the index says of an instance."""
    entry: dict[str, Any] = {
        "label": shown.label,
        "category": shown.category,
        "score": None if shown.score is None else round(shown.score, 4),
        "size": shown.size,
        "changed": round(shown.changed, 5),
        "box": _common_box(before, after),
        "focus": focus(before, after),
    }
    if shown.scores is not None:
        entry["iou"] = [round(scores.iou, 5) for scores in shown.scores]
        entry["boundary"] = [round(scores.boundary_iou, 5) for scores in shown.scores]
    return entry


def _common_box(*masks: Any) -> list[int]:
    """[x0, y0, x1, y1] around all the masks, pixels."""
    filled = [mask for mask in masks if mask.values.size]
    return [
        min(mask.x for mask in filled),
        min(mask.y for mask in filled),
        max(mask.x + mask.values.shape[1] for mask in filled),
        max(mask.y + mask.values.shape[0] for mask in filled),
    ]


def _content(
    found: Scenes,
    entries: list[dict[str, Any]],
    chosen: str,
    files: tuple[str | Path, str | Path, str | Path | None],
    has_quadtrees: bool,
) -> dict[str, Any]:
    """The index of the page."""
    everything = [shown for scene in found.scenes for shown in scene.instances]
    content: dict[str, Any] = {
        "before": Path(files[0]).name,
        "after": Path(files[1]).name,
        "truth": None if files[2] is None else Path(files[2]).name,
        "quadtrees": has_quadtrees,
        "chosen": chosen,
        "totals": {"images": len(found.scenes), "instances": len(everything)},
        "categories": Counter(shown.category for shown in everything).most_common(),
        "images": entries,
    }
    scored = [shown.scores for shown in everything if shown.scores is not None]
    if scored:
        changes = np.array([after.iou - before.iou for before, after in scored])
        content["totals"] |= {
            "scored": len(scored),
            "iou": [_mean(scores[i].iou for scores in scored) for i in (0, 1)],
            "boundary": [_mean(scores[i].boundary_iou for scores in scored) for i in (0, 1)],
            "better": round(float(np.mean(changes > CHANGE_THRESHOLD)), 5),
            "worse": round(float(np.mean(changes < -CHANGE_THRESHOLD)), 5),
        }
    return content


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _mean(values: Iterator[float]) -> float:
    return round(float(np.mean(list(values))), 5)


def _save_photo(image: NDArray[np.uint8], path: Path, side: int, *, quality: int) -> float:
    """Saves a JPEG whose longer side is at most ``side`` (0 for any); gives its scale."""
    height, width = image.shape[:2]
    scale = min(1.0, side / max(height, width)) if side else 1.0
    photo = Image.fromarray(image)
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        photo = photo.resize(size, Image.Resampling.LANCZOS, reducing_gap=3)
    path.parent.mkdir(exist_ok=True)
    photo.save(path, quality=quality, progressive=True)
    return math.floor(scale * 1e4) / 1e4


def _write_script(path: Path, function: str, content: Any) -> None:
    """JSON as a script: a page opened from disk may not fetch files, but it may load scripts."""
    path.parent.mkdir(exist_ok=True)
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=True)
    path.write_text(f"report.{function}({text});\n", encoding="utf-8")


def _copy_assets(page: Path) -> None:
    """The page itself, from the package."""
    (page / "assets").mkdir()
    for asset in sorted(
        (resources.files("transfiner_refine.report") / "page").iterdir(), key=lambda a: a.name
    ):
        target = page if asset.name == "index.html" else page / "assets"
        (target / asset.name).write_bytes(asset.read_bytes())
