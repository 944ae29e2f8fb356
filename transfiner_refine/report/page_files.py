"""The files of a report's page: pictures, data as scripts, the assets of the package, and all of them as one file."""

from __future__ import annotations

import json
import math
import re
from base64 import b64encode
from collections.abc import Iterator
from datetime import date
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from transfiner_refine._version import __version__


def save_image(image: NDArray[np.uint8], path: Path, side: int, *, quality: int) -> float:
    """Saves a JPEG whose longer side is at most ``side`` (0 for any); gives its scale."""
    height, width = image.shape[:2]
    scale = min(1.0, side / max(height, width)) if side else 1.0
    picture = Image.fromarray(image)
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        picture = picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=3)
    path.parent.mkdir(exist_ok=True)
    picture.save(path, quality=quality, progressive=True)
    return math.floor(scale * 1e4) / 1e4


def write_script(path: Path, function: str, content: Any) -> None:
    """JSON as a script: a page opened from disk may not fetch files, but it may load scripts."""
    path.parent.mkdir(exist_ok=True)
    short = json.loads(json.dumps(content), parse_float=lambda number: round(float(number), 5))
    text = json.dumps(short, separators=(",", ":"), ensure_ascii=True).replace("<", "\\u003c")  # never a tag
    path.write_text(f"report.{function}({text});\n", encoding="utf-8")


def one_file(page: Path) -> Iterator[str]:
    """The page with its styles, scripts, data and pictures in it, in pieces."""
    html, scripts = (page / "index.html").read_text("utf-8"), list[str]()

    def style(match: re.Match[str]) -> str:
        return f"<style>\n{(page / match[1]).read_text('utf-8')}</style>"

    def script(match: re.Match[str]) -> str:
        scripts.append(match[1])
        return ""

    html = re.sub(r'<link rel="stylesheet" href="([^"]+)">', style, html)
    html = re.sub(r'<script src="([^"]+)" defer></script>\n', script, html)
    head, end = html.split("</body>")
    yield head
    for path in sorted(path for folder in ("images", "thumbnails") for path in (page / folder).iterdir()):
        name, data = path.relative_to(page).as_posix(), b64encode(path.read_bytes()).decode()
        yield f'<script type="text/plain" id="{name}">data:image/jpeg;base64,{data}</script>\n'
    for path in sorted((page / "data").glob("[0-9]*.js")):
        content = path.read_text("utf-8").removeprefix("report.outlines(").removesuffix(");\n")
        yield f'<script type="application/json" id="data/{path.stem}">{content}</script>\n'
    for name in scripts:
        yield f"<script>\n{(page / name).read_text('utf-8')}</script>\n"
    yield f"</body>{end}"


def made(weights: str) -> str:
    """When and by what the page was made."""
    by = f"weights {weights}, " if weights else ""
    return f"{by}{date.today().isoformat()}, transfiner-refine {__version__}"


def copy_assets(page: Path) -> None:
    """The page itself, from the package."""
    (page / "assets").mkdir()
    for asset in (resources.files("transfiner_refine.report") / "page").iterdir():
        target = page if asset.name == "index.html" else page / "assets"
        (target / asset.name).write_bytes(asset.read_bytes())
