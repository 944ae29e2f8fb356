"""Builds the report: a folder with one page, the images in a size for the screen, and the masks as outlines."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import chain, count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from transfiner_refine.errors import InputError, OutputError, counted
from transfiner_refine.evaluation.matched import CHANGE_THRESHOLD
from transfiner_refine.formats.polygons import outlines
from transfiner_refine.formats.records import Instance, PngKind, Source
from transfiner_refine.formats.registry import open_source, recognise
from transfiner_refine.images import MAX_IMAGE_PIXELS, Orientation, read_image
from transfiner_refine.masks import MaskWindow, union
from transfiner_refine.output import atomic_file, atomic_folder, check_output_file, check_output_folder
from transfiner_refine.refine.roi import focus
from transfiner_refine.renamed import renamed
from transfiner_refine.report.overlay import paint_masks
from transfiner_refine.report.page_files import copy_assets, made, one_file, save_image, write_script
from transfiner_refine.report.scenes import Comparison, Scene, choose, window_of

if TYPE_CHECKING:
    from transfiner_refine.refiner import BaseRefiner

LIMIT = 200
"""Images on a page: what can be looked through in an hour, about 60 MB of images."""

IMAGE_SIDE = 1600
"""Longer side of the page's images, pixels; a zoom of 2 on a common screen still shows real detail."""

_THUMBNAIL_SIDE = 240  # pixels; shown at half of it, for screens of double density
_THREADS = min(4, os.cpu_count() or 1)


class Built(NamedTuple):
    """What was made: how much is shown on the page, or painted."""

    page: Path | None  # the file to open; None where overlays alone were asked for
    images: int
    instances: int
    chosen: str  # how they were chosen where there were more, "" where all are shown
    faults: tuple[InputError, ...]  # what had to be left out, and why

    def lines(self) -> list[str]:
        """The closing words for a terminal."""
        lines = [f"Shown: {counted(self.instances, 'instance')} in {counted(self.images, 'image')}."]
        if self.chosen:
            lines.append(self.chosen)
        if self.page is not None:
            lines.append(f"Open {self.page} in a browser.")
        return lines


@renamed(photo_side="image_side")
def build_report(
    images: str | Path,
    before: str | Path,
    after: str | Path,
    output: str | Path | None,
    *,
    annotations: str | Path | None = None,
    match: str | Path | None = None,
    image_info: str | Path | None = None,
    format: str = "auto",  # noqa: A002  the option's name
    png_kind: PngKind | Literal["auto"] = "auto",
    class_names: str | Path | None = None,
    fit_masks: bool = False,
    orientation: Orientation = "auto",
    refine_crowds: bool = False,
    background: int | Literal["none"] = 0,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
    overlay: str | Path | None = None,
    refiner: BaseRefiner | None = None,
    weights: str = "",
    title: str = "",
    single_file: bool = False,
    limit: int = LIMIT,
    image_side: int = IMAGE_SIDE,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = False,
) -> Built:
    """Makes the page, and PNG overlays where they are asked for.

    Args:
        images: folder of the images.
        before: coarse masks, in any format.
        after: the refined ones, in the same format and order.
        output: folder for the page, to be opened at its ``index.html``; None for overlays alone. With ``single_file``
            an HTML file that holds everything.
        overlay: folder for IMAGE_STEM_before.png and IMAGE_STEM_after.png in full size, and both side by side in
            IMAGE_STEM_before_after.jpg; None for none. Where the stem is another image's too, the second gets its whole
            name, or a number.
        annotations: the truth: a COCO annotation file, or masks in any format.
        match: for JSON: which annotation each record belongs to (see ``evaluation.coco_files.load_match``).
        image_info: for COCO results: an annotation file that says which image id is which image; None takes
            ``annotations``.
        format, png_kind, class_names, fit_masks, orientation, refine_crowds, background: how masks are read, as for
            ``open_source``.
        max_image_pixels: images and mask images of more pixels are left out, and named.
        weights: the name of the weights that refined, for the heading.
        title: the page's; "" for a general one.
        refiner: a loaded refiner shows the quadtree of each instance; None leaves it out.
        limit: most images to show, 0 for all; see ``choose``.
        image_side: longer side of the page's images, pixels; 0 keeps them as they are.
        seed: of the images chosen at random.
        overwrite: folders that hold files are replaced as a whole; nothing of them stays.
        progress: bars on stderr, if that is a terminal.

    Raises:
        InputError: an input cannot be used at all, or no image is left to show.
        OutputError: a folder exists already, is an input, or cannot be written.
    """
    folders = [Path(folder) for folder in (output, overlay) if folder is not None]
    given = (images, before, after, annotations, match, image_info)
    inputs = [Path(path) for path in given if path is not None]
    page_at = None if output is None else Path(output)
    for folder in folders:
        check = check_output_file if single_file and folder == page_at else check_output_folder
        check(folder, inputs, overwrite=overwrite)
    places = [folder.resolve() for folder in folders]
    if len(places) > 1 and (places[0] in (places[1], *places[1].parents) or places[1] in places[0].parents):
        reason, remedy = "the page and the overlays need a folder each", "give another one"
        raise OutputError(reason, file=overlay, remedy=remedy)
    truth = None if annotations is None else Path(annotations)
    if (
        image_info is None
        and truth is not None
        and truth.is_file()
        and recognise(truth).name == "coco-annotations"
    ):
        image_info = truth

    read = partial(
        open_source,
        images=images,
        png_kind=png_kind,
        fit_masks=fit_masks,
        orientation=orientation,
        refine_crowds=refine_crowds,
        background=background,
        class_names=class_names,
        max_image_pixels=max_image_pixels,
    )

    kinds = {Path(path): recognise(path, format).name for path in (before, after)}
    if len(set(kinds.values())) > 1 and not all(kind.startswith("coco-") for kind in kinds.values()):
        reason, remedy = (
            " and ".join(f"{path} is {kind}" for path, kind in kinds.items()),
            "convert one of them",
        )
        raise InputError(
            f"the masks before and after are of two formats: {reason}", remedy=f"{remedy} (convert-masks)"
        )

    def opened(path: Path) -> Source:
        kind = kinds.get(path) or recognise(path, "auto" if path.is_file() and path == truth else format).name
        info = image_info if kind.startswith("coco-results") else None  # the others name their images
        return read(path, format=kind, image_info=info)

    found = Comparison(Path(before), Path(after), opened, annotations=truth, match=match, progress=progress)
    scenes, chosen = choose(found.scenes, limit, seed=seed)
    with ExitStack() as stack:
        drafts = [
            Path(stack.enter_context(TemporaryDirectory()))
            if single_file and folder == page_at
            else stack.enter_context(atomic_folder(folder))
            for folder in folders
        ]
        page = None if output is None else drafts[0]
        if page is not None:
            copy_assets(page)
        overlays = None if overlay is None else drafts[-1]
        artist = _Artist(
            found, Path(images), page, overlays, refiner, image_side, max_image_pixels, orientation
        )
        disable = None if progress else True
        drawn = list(tqdm(artist.all(scenes), "drawing", len(scenes), unit=" images", disable=disable))
        faults = found.faults + [entry for entry in drawn if isinstance(entry, InputError)]
        entries = [entry for entry in drawn if not isinstance(entry, InputError)]
        if not entries:
            raise _nothing_to_show(before, faults, found.passed_over)
        if page is not None:
            content = {
                "title": title,
                "made": made(weights),
                "before": Path(before).name,
                "after": Path(after).name,
                "truth": None if truth is None else truth.name,
                "quadtrees": refiner is not None,
                "chosen": chosen,
                **_totals(found.scenes),
                "images": entries,
            }
            write_script(page / "data" / "index.js", "index", content)
            if single_file and page_at is not None:
                with atomic_file(page_at) as file:
                    file.writelines(one_file(page))
    instances = sum(len(entry["instances"]) for entry in entries)
    index = page_at if page_at is None or single_file else page_at / "index.html"
    return Built(index, len(entries), instances, chosen, tuple(faults))


def mask_path(mask: MaskWindow) -> str:
    """The outline of a bool mask as the data of an SVG path; filled by the even-odd rule it gives the mask's pixels.

    Outlines run along the pixels' edges, holes are loops of their own. Two masks' data in one path show, by the
    same rule, the pixels in which they differ.

    Returns:
        relative vertical and horizontal steps in pixels of the image, "M12 30v1h3v-1z"; "" for an empty mask.
    """
    parts = []
    for loop in outlines(mask):
        steps = np.diff(loop.points, axis=0).sum(axis=1).tolist()  # down or up, right or left, in turn
        x, y = loop.points[0].tolist()
        parts.append(f"M{x} {y}" + "".join(f"{'vh'[n % 2]}{step}" for n, step in enumerate(steps)) + "z")
    return "".join(parts)


class _Artist(NamedTuple):
    """Draws images, a few at a time where no network is in the way."""

    found: Comparison
    images: Path
    page: Path | None
    overlay: Path | None
    refiner: BaseRefiner | None
    image_side: int
    max_image_pixels: int
    orientation: Orientation

    def all(self, scenes: Sequence[Scene]) -> Iterator[dict[str, Any] | InputError]:
        """The index entry of each image, or why it cannot be shown."""
        names = [scene.path.relative_to(self.images).as_posix() for scene in scenes]
        work = range(len(scenes)), scenes, self.found.pairs(scenes), names, _overlay_names(names)
        if self.refiner is not None:
            yield from map(self.draw, *work)
            return
        with ThreadPoolExecutor(_THREADS, "transfiner-report") as pool:
            try:
                yield from pool.map(self.draw, *work)
            except BaseException:  # Ctrl-C above all: what is queued need not be drawn any more
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def draw(
        self, number: int, scene: Scene, instances: list[tuple[Instance, Instance]], name: str, overlay: str
    ) -> dict[str, Any] | InputError:
        """Writes what belongs to one image."""
        try:
            image, _ = read_image(scene.path, {scene.size}, self.max_image_pixels, self.orientation)
            pairs = [(window_of(before), window_of(after)) for before, after in instances]
        except InputError as error:
            return error
        if self.overlay is not None:
            said = [scene.instances[instance.index] for instance, _ in instances]
            labels = [entry["category"] or entry["label"] for entry in said]
            sides = [paint_masks(image, masks, labels) for masks in zip(*pairs, strict=True)]
            for when, side in zip(("before", "after"), sides, strict=True):
                Image.fromarray(side).save(self.overlay / f"{overlay}_{when}.png", compress_level=4)
            save_image(np.hstack(sides), self.overlay / f"{overlay}_before_after.jpg", 0, quality=90)
        if self.page is None:
            return {"instances": scene.instances}
        file = f"{number:05d}"
        scale = save_image(image, self.page / "images" / f"{file}.jpg", self.image_side, quality=88)
        save_image(image, self.page / "thumbnails" / f"{file}.jpg", _THUMBNAIL_SIDE, quality=78)
        entries, drawn = [], []
        for (instance, _), (before, after) in zip(instances, pairs, strict=True):
            box = union((before, after), scene.size).box
            entries.append({**scene.instances[instance.index], "box": box, "focus": focus(before, after)})
            paths: dict[str, Any] = {"before": mask_path(before), "after": mask_path(after)}
            if (truth := self.found.truth(instance)) is not None:
                paths["truth"] = mask_path(truth)
            if self.refiner is not None and before.area:
                paths["quadtree"] = _quadtree(self.refiner, image, before)
            drawn.append(paths)
        write_script(self.page / "data" / f"{file}.js", "outlines", {"file": file, "instances": drawn})
        shown = {"file": file, "name": name, "width": scene.size[1], "height": scene.size[0]}
        return {**shown, "scale": scale, "instances": entries}


def _overlay_names(images: Sequence[str]) -> list[str]:
    """The start of each image's overlay names: its stem, or where that is taken its name, or that with a number."""
    names, taken = [], set()
    for image in images:
        flat = image.replace("/", "_")
        tries = chain((flat.rpartition(".")[0] or flat, flat), (f"{flat}_{number}" for number in count(2)))
        name = next(name for name in tries if name.casefold() not in taken)  # as disks do that ignore case
        taken.add(name.casefold())
        names.append(name)
    return names


def _quadtree(refiner: BaseRefiner, image: NDArray[np.uint8], mask: MaskWindow) -> dict[str, Any]:
    """The quadtree of the first pass over an instance, as short lists of whole numbers.

    Returns:
        ``roi``: [x0, y0, x1, y1], pixels of the image. ``levels``: for each level its ``grid`` (cells a side of
        the RoI) and ``cells``, where row · grid + column of each node ascends and is stored as the difference to
        the one before.
    """
    from transfiner_refine.trace import trace  # here, because it imports torch

    step = trace(refiner, image, mask).passes[0]
    levels = [(level.grid, np.sort(level.y * level.grid + level.x)) for level in step.levels]
    return {
        "roi": [step.roi.x0, step.roi.y0, step.roi.x1, step.roi.y1],
        "levels": [{"grid": grid, "cells": np.diff(cells, prepend=0).tolist()} for grid, cells in levels],
    }


def _totals(scenes: Sequence[Scene]) -> dict[str, Any]:
    """What the index says of all instances, shown or not."""
    everything = [entry for scene in scenes for entry in scene.instances.values()]
    totals: dict[str, Any] = {
        "images": len(scenes),
        "instances": len(everything),
        "threshold": CHANGE_THRESHOLD,
    }
    scored = [entry for entry in everything if "iou" in entry]
    if scored:
        iou, boundary = (np.array([entry[name] for entry in scored]) for name in ("iou", "boundary"))
        change = iou[:, 1] - iou[:, 0]
        totals |= {
            "scored": len(scored),
            "iou": iou.mean(axis=0).tolist(),
            "boundary": boundary.mean(axis=0).tolist(),
            "better": float(np.mean(change > CHANGE_THRESHOLD)),
            "worse": float(np.mean(change < -CHANGE_THRESHOLD)),
        }
    categories = Counter(entry["category"] for entry in everything).most_common()
    return {"totals": totals, "categories": categories}


def _nothing_to_show(before: str | Path, faults: Sequence[InputError], passed_over: int) -> InputError:
    """Why a report would be empty."""
    reasons = [str(fault) for fault in faults[:1]]
    if len(faults) > 1:
        reasons.append(f"and {len(faults) - 1} more of the kind")
    if passed_over:
        reasons.append(counted(passed_over, "crowd region or empty mask", "crowd regions or empty masks"))
    reason = f"no image is left to show ({'; '.join(reasons) or 'there are no instances'})"
    remedy = "give --refine-crowds where crowds should be shown" if passed_over else None
    return InputError(reason, file=before, remedy=remedy)
