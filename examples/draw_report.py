"""Draws docs/report.png: the report of the examples, as headless Chromium shows it.

python examples/draw_report.py [--weights NAME|PATH]
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

from transfiner_refine import load_refiner
from transfiner_refine.pipeline import refine_files
from transfiner_refine.report import build_report

HERE = Path(__file__).resolve().parent
SHOWN = 1  # which image, from 1 on
SIZE = (1440, 900)  # of the window, pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", default="lite")
    parser.add_argument("--output", type=Path, default=HERE.parent / "docs" / "report.png")
    arguments = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("this machine has no Chromium (apt-get install chromium)")
    refiner = load_refiner(arguments.weights, device="cpu", engine="torch")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        masks, info = HERE / "detections.json", HERE / "image_info.json"
        refine_files(HERE / "images", masks, work / "refined.json", image_info=info, refiner=refiner)
        report = build_report(
            HERE / "images",
            masks,
            work / "refined.json",
            work / "report",
            annotations=HERE / "truth.json",
            weights=arguments.weights,
            refiner=refiner,
        )
        assert report.page is not None
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"]
        options += [f"--user-data-dir={work / 'profile'}", f"--window-size={SIZE[0]},{SIZE[1]}"]
        options += ["--virtual-time-budget=5000", f"--screenshot={work / 'page.png'}"]
        page = f"{report.page.as_uri()}#image={SHOWN}"
        subprocess.run([chromium, *options, page], check=True, stderr=subprocess.DEVNULL)
        arguments.output.parent.mkdir(exist_ok=True)
        Image.open(work / "page.png").convert("RGB").save(arguments.output, optimize=True)
    print(arguments.output)


if __name__ == "__main__":
    main()
