"""Mutants of sound files of every format, given to every command that reads masks.

What is counted and compared here is read with json, Pillow and pycocotools, not with the package's readers.
"""

from __future__ import annotations

import json
import os
import socket
import stat
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner, Result
from coco_cases import annotations, results
from format_cases import ENTRIES, change_file
from hostile_masks import pick
from law import MAX_PIXELS, Eroder, check_message, require
from PIL import Image
from pycocotools import mask as coco_mask
from scene import draw_scene, write_photos

from transfiner_refine.cli import main
from transfiner_refine.errors import MaskRefineError
from transfiner_refine.formats import open_source
from transfiner_refine.formats.registry import FORMATS
from transfiner_refine.pipeline import refine_files

_CLASSES = {24: "person", 26: "car"}  # as Cityscapes numbers them
_FREE = ("rle", "points", "segmentation", "bbox", "area")  # what refining may change in a record


def mutant_trial(folder: Path, rng: np.random.Generator) -> str:
    """Copies, converts, checks, refines, scores and shows one mutant; says how the refining ended."""
    entry = pick(rng, ENTRIES)
    masks = _sound(folder, rng, entry)
    files = sorted(path for path in masks.parent.rglob("*") if path.is_file())
    sound = {path: path.read_bytes() for path in files}
    for _ in range(int(rng.integers(1, 4))):
        _mutate(rng, pick(rng, files), whole=not entry.is_folder)
    untouched = {path for path in files if _content(path) == sound[path]}
    before = _state(masks.parent)

    copy = folder / "copy" / masks.name
    copied = _run(folder, "convert-masks", "--masks", masks, "--output", copy, "--from", entry.name)
    if copied.exit_code < 2 and copy.exists():
        _check_copy(masks, copy, copied)
    _run(
        folder,
        "convert-masks",
        "--masks",
        masks,
        "--output",
        folder / "converted",
        "--to",
        pick(rng, FORMATS).name,
    )
    ends = _refine(folder, masks, entry.name, untouched)
    if not entry.is_folder:
        truth = folder / "coco.json"
        _run(
            folder,
            "evaluate",
            "--annotations",
            *pick(rng, [(truth, "--results", masks), (masks, "--results", truth)]),
        )
    if rng.random() < 0.3:
        _run(
            folder,
            "report",
            "--images",
            folder / "images",
            "--before",
            masks,
            "--after",
            copy,
            "--output",
            folder / "page",
        )
    require(_state(masks.parent) == before, "the input was changed")
    return ends


def _sound(folder: Path, rng: np.random.Generator, entry: Any) -> Path:
    """A scene in the format, at ``folder/input/masks…``."""
    photos = draw_scene(rng, disjoint=True)
    write_photos(photos, folder / "images", rng)
    records, _ = results(photos, rng, list(_CLASSES))
    document = {
        **annotations(records, photos),
        "categories": [{"id": number, "name": name} for number, name in _CLASSES.items()],
    }
    (folder / "coco.json").write_text(json.dumps(document))
    masks = folder / "input" / ("masks" if entry.is_folder else f"masks{entry.suffixes[0]}")
    masks.parent.mkdir()
    entry.write(masks, open_source(folder / "coco.json", folder / "images"), {})
    return masks


def _mutate(rng: np.random.Generator, path: Path, *, whole: bool) -> None:
    if not path.is_file() or path.is_symlink():
        return
    mutations: list[Callable[[], object]] = [lambda: change_file(rng, path, whole=whole)] * 3
    if path.suffix == ".json":
        mutations += [lambda: _repeat_key(rng, path), lambda: _nest(rng, path)]
    if path.suffix == ".png":
        mutations.append(lambda: _change_pixels(rng, path))
    if not whole:
        mutations.append(lambda: _make_socket(path))
    pick(rng, mutations)()


def _repeat_key(rng: np.random.Generator, path: Path) -> None:
    text = path.read_text(errors="replace")
    braces = [at for at, letter in enumerate(text) if letter == "{"]
    if braces:
        at = pick(rng, braces) + 1
        key = pick(rng, ["image_id", "id", "segmentation", "shapes", "annotations", "points", "x"])
        path.write_text(f'{text[:at]}"{key}": {pick(rng, ["1", "[]", "null"])}, {text[at:]}')


def _nest(rng: np.random.Generator, path: Path) -> None:
    depth = pick(rng, [10, 2_000, 200_000])
    text = path.read_text(errors="replace")
    at = text.find("[") + 1
    path.write_text(text[:at] + "[" * depth + "]" * depth + "," + text[at:])


def _change_pixels(rng: np.random.Generator, path: Path) -> None:
    try:
        image = Image.open(path)
        image.load()
    except Exception:  # a mutant of a mutant
        return
    if image.mode in ("L", "P", "I;16", "1"):
        x, y = int(rng.integers(image.width)), int(rng.integers(image.height))
        image.putpixel((x, y), pick(rng, [0, 1, 2, 127, 254, 255]))
        image.save(path)


def _make_socket(path: Path) -> None:
    path.unlink()
    here = Path.cwd()
    os.chdir(path.parent)  # the address of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name[:90])
    finally:
        os.chdir(here)


def _run(folder: Path, command: str, *arguments: object) -> Result:
    """Runs a command; whatever it meets it says in lines of its own and ends with 0 or 1."""
    options = [] if command in ("evaluate", "report") else ["--max-image-pixels", str(MAX_PIXELS)]
    if command == "convert-masks":
        options += ["--images", str(folder / "images")]
    done = CliRunner().invoke(main, [command, *map(str, arguments), *options, "--quiet"])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    require(done.exit_code in (0, 1), f"{command} ends with {done.exit_code}: {done.output}")
    for line in done.stderr.splitlines():
        require(line.startswith("transfiner-refine: "), f"{command} prints {line!r}")
        check_message(line)
    require((done.exit_code == 1) <= bool(done.stderr), f"{command} fails without a word")
    return done


def _check_copy(masks: Path, copy: Path, done: Result) -> None:
    """A copy has every file byte for byte; an entry that is not in it is named."""
    if masks.is_file():
        require(copy.read_bytes() == masks.read_bytes(), "a copied file differs")
        return
    for path in sorted(masks.rglob("*")):
        if path.name.startswith(".") or (path.is_dir() and not path.is_symlink()):
            continue
        name = path.relative_to(masks)
        content = _content(path)
        if content is None:
            require(_quoted(path.name) in done.stderr, f"{name} is neither copied nor named: {done.stderr}")
        else:
            require((copy / name).is_file() and (copy / name).read_bytes() == content, f"{name} is lost")


def _quoted(name: str) -> str:
    """The name as a message shows it, its beginning at least."""
    line = " ".join(name.split())
    return "".join(x if x.isprintable() else x.encode("unicode_escape").decode() for x in line)[:40].split(
        " "
    )[0]


def _refine(folder: Path, masks: Path, name: str, untouched: set[Path]) -> str:
    output = folder / "output" / masks.name
    try:
        summary = refine_files(
            folder / "images",
            masks,
            output,
            refiner=Eroder(4),
            format=name,
            max_image_pixels=MAX_PIXELS,
            workers=0,
        )
    except MaskRefineError as error:
        check_message(str(error))
        require(not output.exists(), f"refused, but an output was written: {error}")
        return "refused"
    for error in summary.errors:
        check_message(str(error))
    require((summary.failed > 0) <= bool(summary.errors), "instances failed without an error")
    for path in untouched:
        after = output.parent / path.relative_to(masks.parent)
        require(after.is_file(), f"{path.name} was sound and is not in the output")
        lost = _identities(path, name) - _identities(after, name)
        require(not lost, f"{path.name}: {sorted(map(str, lost))} are not in the output")
    if not masks.is_dir() and name.startswith("coco"):
        _check_records(masks, output)
    return "failed in part" if summary.exit_code else "refined"


def _identities(path: Path, name: str) -> set[object]:
    """What identifies the instances of a sound file, read without the package."""
    if path.suffix == ".png":
        if name in ("png", "cityscapes-results"):
            return {path.name}
        pixels = np.asarray(Image.open(path))
        return (
            {*np.unique(pixels.reshape(-1, *pixels.shape[2:]), axis=0).tolist()} - {0}
            if pixels.ndim == 2
            else set()
        )
    if name.startswith("numpy"):
        with np.load(path) as arrays:
            return {(key, arrays[key].shape) for key in arrays}
    text = path.read_text()
    if path.suffix != ".json":
        return {(number, line.split()[0]) for number, line in enumerate(text.splitlines()) if line.strip()}
    if name == "coco-results-jsonl":
        return {json.dumps(_fixed(json.loads(line))) for line in text.splitlines() if line.strip()}
    document = json.loads(text)
    if name == "labelme":
        # a shape without a group may become several of a new group, so instances are counted by label
        shapes = [(each["label"], each.get("group_id")) for each in document["shapes"]]
        instances = {
            (label, at if group is None else f"group {group}") for at, (label, group) in enumerate(shapes)
        }
        counts = Counter(label for label, _ in instances)
        return {(label, number) for label, count in counts.items() for number in range(count)}
    return {json.dumps(_fixed(each)) for each in _records(document)}


def _fixed(record: Any) -> Any:
    """The record without what refining may change, in its segments too."""
    if isinstance(record, list):
        return [_fixed(each) for each in record]
    if not isinstance(record, dict):
        return record
    return {key: _fixed(value) for key, value in record.items() if key not in _FREE}


def _records(document: Any) -> list[Any]:
    if isinstance(document, dict):
        document = document.get("annotations", [])
    return [each for each in document if isinstance(each, dict)] if isinstance(document, list) else []


def _check_records(masks: Path, output: Path) -> None:
    """Records that were not refined are the same text; those that were have pycocotools' areas and boxes."""
    try:
        before, after = (_records(json.loads(path.read_text())) for path in (masks, output))
    except (ValueError, RecursionError):  # JSON Lines, or a mutant that only json refuses
        return
    require(len(before) == len(after), f"{len(before)} records came in, {len(after)} are in the output")
    for ours, theirs in zip(before, after, strict=True):
        require(json.dumps(_fixed(ours)) == json.dumps(_fixed(theirs)), f"{ours} became {theirs}")
        if "segments_info" in ours:
            continue
        if ours.get("segmentation") == theirs.get("segmentation"):
            require(json.dumps(ours) == json.dumps(theirs), "a record changed without its mask")
        else:
            encoded = theirs["segmentation"]
            if "area" in theirs:
                require(theirs["area"] == int(coco_mask.area(encoded)), "the area is not pycocotools'")
            if "bbox" in theirs:
                require(theirs["bbox"] == coco_mask.toBbox(encoded).tolist(), "the box is not pycocotools'")


def _content(path: Path) -> bytes | None:
    """The bytes of a file that can be read; None for a link to nothing, a pipe, a socket or a folder."""
    try:
        return path.read_bytes() if stat.S_ISREG(path.stat().st_mode) else None
    except OSError:
        return None


def _state(folder: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        found[str(path)] = path.readlink() if path.is_symlink() else _content(path)
    return found
