"""What holds for every input, however broken: the law that each generated case is tried against."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner
from numpy.typing import NDArray
from scene import eroded

from transfiner_refine.cli import main
from transfiner_refine.errors import MaskRefineError
from transfiner_refine.formats import open_source
from transfiner_refine.masks import MaskWindow
from transfiner_refine.pipeline import Summary, refine_files

MAX_PIXELS = 4_000_000  # of an image; small, so that what gets past the limit shows in the memory
_LONGEST_MESSAGE = 1500  # characters


class BrokenLawError(AssertionError):
    """The input showed a fault in the package."""


@dataclass
class Case:
    """An input that a generator made.

    Attributes:
        title: what was done to it.
        images: folder of the photos.
        masks: the file or folder of masks.
        options: further arguments of ``refine_files``.
        check: looks at the output; its arguments are (output, summary). Not called where the whole input was
            refused.
        may_be_refused: the whole input may be refused with one error.
    """

    title: str
    images: Path
    masks: Path
    options: dict[str, Any] = field(default_factory=dict)
    check: Callable[[Path, Summary], None] | None = None
    may_be_refused: bool = True


class Eroder:
    """A refiner that peels off the outermost pixels, as ``scene.eroded`` does."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size

    def refine_windows(
        self, images: Sequence[NDArray[np.uint8]], masks: Sequence[MaskWindow], image_index: Sequence[int]
    ) -> list[MaskWindow]:
        for position, mask in zip(image_index, masks, strict=True):
            require(images[position].shape == (*mask.image_size, 3), "image and mask differ in size")
            require(images[position].dtype == np.uint8, "image is not uint8")
        return [MaskWindow(eroded(mask.values >= 0.5), mask.x, mask.y, mask.image_size) for mask in masks]


def require(holds: bool, what: str) -> None:
    if not holds:
        raise BrokenLawError(what)


def try_case(case: Case, folder: Path, *, batch_size: int, command: bool) -> str:
    """Refines the case's input into ``folder``; says whether it was "refused", "failed in part" or "refined".

    Args:
        case: the input.
        folder: an empty folder for the output.
        batch_size: of the refiner.
        command: also check that the command takes the input as the function does.

    Raises:
        BrokenLawError: the law does not hold.
        Exception: whatever got out of the package.
    """
    output = folder / ("out" + case.masks.suffix)
    before = _listed(case.masks)
    try:
        summary = refine_files(
            case.images,
            case.masks,
            output,
            refiner=Eroder(batch_size),
            max_image_pixels=MAX_PIXELS,
            workers=0,
            polygon_tolerance=0,  # so that every pixel can be checked
            **case.options,
        )
    except MaskRefineError as error:
        check_message(str(error))
        require(case.may_be_refused, f"refused as a whole: {error}")
        require(not output.exists(), f"refused, but an output was written: {error}")
        require(not list(folder.iterdir()), f"refused, but left {list(folder.iterdir())}")
        summary = None
    else:
        for each in summary.errors:
            check_message(str(each))
        _check_counts(case, output, summary)
        # coco-panoptic has a folder of the same name beside its file
        left = [path for path in folder.iterdir() if path not in (output, output.with_suffix(""))]
        require(not left, f"left {left}")
        if case.check is not None:
            case.check(output, summary)
    require(_listed(case.masks) == before, "the input was changed")
    exit_code = 1 if summary is None else summary.exit_code
    if command:
        _check_command(case, folder, exit_code)
    return "refused" if summary is None else "failed in part" if exit_code else "refined"


def check_message(text: str) -> None:
    """One line that says what is wrong with the input and does not ask to report a bug."""
    require("\n" not in text and "\r" not in text, f"a message of several lines: {text!r}")
    require(len(text) <= _LONGEST_MESSAGE, f"a message of {len(text)} characters: {text[:200]!r}")
    require("report this as a bug" not in text, f"an exception of no known kind: {text}")


def _check_counts(case: Case, output: Path, summary: Summary) -> None:
    options = {key: case.options[key] for key in ("image_info", "png_kind", "format") if key in case.options}
    options["max_image_pixels"] = MAX_PIXELS
    before = open_source(case.masks, case.images, **options)
    require(
        summary.instances == before.num_instances,
        f"{before.num_instances} instances came in, {summary.instances} were counted",
    )
    require((summary.failed > 0) <= bool(summary.errors), "instances failed without an error")
    # a link that leads nowhere or a pipe is named, and cannot be copied
    lost = sum(not path.is_file() and not path.is_dir() for path in case.masks.rglob("*"))
    try:
        found = open_source(output, case.images, **options).num_instances
    except MaskRefineError:
        if not lost:
            raise
        found = 0
    require(
        before.num_instances - (summary.failed if lost else 0) <= found <= before.num_instances,
        f"{before.num_instances} instances came in, {found} are in the output",
    )


def _check_command(case: Case, folder: Path, exit_code: int) -> None:
    arguments = ["--images", case.images, "--masks", case.masks, "--output", folder / "dry", "--dry-run"]
    for key, value in {**case.options, "max_image_pixels": MAX_PIXELS, "workers": 0}.items():
        arguments.append("--from" if key == "format" else f"--{key.replace('_', '-')}")
        arguments += [] if value is True else [value]
    done = CliRunner().invoke(main, ["refine", *map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    require(
        done.exit_code == exit_code, f"the command ends with {done.exit_code}, not {exit_code}: {done.output}"
    )
    require("Traceback" not in done.output, done.output)


def _listed(masks: Path) -> object:
    if masks.is_file():
        return masks.stat().st_size
    return sorted(str(path) for path in masks.rglob("*"))


def load_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
