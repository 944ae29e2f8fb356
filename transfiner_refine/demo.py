"""The bundled photos with a real detector's masks, refined: something to look at a minute after installing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

from transfiner_refine.errors import MaskRefineError
from transfiner_refine.output import atomic_folder, check_output_folder
from transfiner_refine.pipeline import Summary, refine_files
from transfiner_refine.refiner import BaseRefiner
from transfiner_refine.report import build_report

_PACKAGE = Path(__file__).resolve().parent


class Demo(NamedTuple):
    """What a demo left in its folder."""

    summary: Summary
    page: Path  # the report
    files: tuple[Path, Path, Path]  # photos, the detector's masks, refined masks


def _bundled() -> tuple[Path, list[Path]]:
    """The folder of the detector's files, and the photos; in a wheel and in a checkout."""
    wheel, checkout = _PACKAGE / "demo_data", _PACKAGE.parent / "examples"
    folder = wheel if wheel.is_dir() else checkout / "detector"
    photos = sorted(
        {*folder.glob("images/*.jpg"), *(checkout.glob("images/*.jpg") if folder != wheel else ())}
    )
    if not (photos and (folder / "detections.json").is_file()):
        raise MaskRefineError("the installation has no demo data", remedy="install transfiner-refine again")
    return folder, photos


def run_demo(
    output: str | Path, refiner: BaseRefiner, *, overwrite: bool = False, progress: bool = False
) -> Demo:
    """Refines the bundled photos' masks and makes the report.

    Args:
        output: a new folder; receives ``images/``, ``detections.json``, ``refined.json`` and ``report/``.
        refiner: from ``load_refiner``.
        overwrite: the folder may be replaced as a whole.
        progress: bars on stderr, if that is a terminal.

    Raises:
        OutputError: the folder exists already, or cannot be written.
    """
    output, (folder, photos) = Path(output), _bundled()
    check_output_folder(output, [folder], overwrite=overwrite)
    with atomic_folder(output) as draft:
        (draft / "images").mkdir()
        for photo in photos:
            shutil.copyfile(photo, draft / "images" / photo.name)
        for name in ("detections.json", "image_info.json"):
            shutil.copyfile(folder / name, draft / name)
        images, masks, refined = (draft / name for name in ("images", "detections.json", "refined.json"))
        info = draft / "image_info.json"
        summary = refine_files(images, masks, refined, image_info=info, refiner=refiner, progress=progress)
        page = draft / "report.html"
        build_report(images, masks, refined, page, image_info=info, single_file=True, progress=progress)
    summary.output, summary.network = f"{output / refined.name} (coco-results)", refiner.network
    names = output / images.name, output / masks.name, output / refined.name
    return Demo(summary, output / page.relative_to(draft), names)
