"""Valid files of every format the package writes, and then something happens to them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from coco_cases import annotations, results
from hostile_masks import pick
from law import Case, require
from numpy.typing import NDArray
from scene import draw_scene, eroded, write_photos

from transfiner_refine.errors import InputError
from transfiner_refine.formats import RecordFault, open_source
from transfiner_refine.formats.registry import FORMATS
from transfiner_refine.pipeline import Summary

ENTRIES = [entry for entry in FORMATS if entry.name != "mask-image"]  # which holds one image
_CLASSES = {24: "person", 26: "car"}  # as Cityscapes numbers them, for that format knows no others
_TOKENS = [
    b"-1", b"0", b"1e400", b"99999999999999999999", b"nan", b"NaN", b"inf", b"0.5", b"", b"x", b"null", b"[]", b"{}",
    b'"', b"\0", b"../1.png", b"/etc/passwd", b"1" * 5000,
]  # fmt: skip


def format_case(folder: Path, rng: np.random.Generator) -> Case:
    """A file or a folder of any format, one to three of its files changed."""
    entry = pick(rng, ENTRIES)
    photos = draw_scene(rng, disjoint=True)
    write_photos(photos, folder / "images", rng)
    records, _ = results(photos, rng, list(_CLASSES))
    document = {
        **annotations(records, photos),
        "categories": [{"id": i, "name": _CLASSES[i]} for i in _CLASSES],
    }
    (folder / "coco.json").write_text(json.dumps(document))
    masks = folder / "input" / ("masks" if entry.is_folder else f"masks{entry.suffixes[0]}")
    masks.parent.mkdir()
    written = entry.write(masks, open_source(folder / "coco.json", folder / "images"), {})
    require(not written.faults and not written.covered, f"{entry.name} cannot hold sound masks: {written}")
    files = sorted(path for path in masks.parent.rglob("*") if path.is_file())
    done = [f"{entry.name}"]
    for _ in range(int(rng.integers(0, 4))):
        path = pick(rng, files)
        if path.is_file() and not path.is_symlink():
            name = path.relative_to(masks.parent)
            done.append(f"{name}: {change_file(rng, path, whole=path == masks)}")
    # an label map that looks like one soft mask is taken for one, unless it is said what it is
    options = {} if rng.random() < 0.5 and entry.name != "label-maps" else {"format": entry.name}
    return Case(
        "; ".join(done),
        folder / "images",
        masks,
        options,
        lambda output, summary: _check(folder / "images", masks, output, options, summary),
        may_be_refused=len(done) > 1,
    )


def change_file(rng: np.random.Generator, path: Path, *, whole: bool) -> str:
    """Changes a file, or what lies under its name; says how."""
    data = path.read_bytes()
    changes: list[Callable[[np.random.Generator, bytes], tuple[str, bytes]]] = [_bits, _cut, _inserted]
    if path.suffix.lower() != ".png":
        changes += [_token, _token, _token, _lines]
    if not whole and rng.random() < 0.2:
        return _moved(rng, path)
    what, data = pick(rng, changes)(rng, data)
    path.write_bytes(data)
    return what


def _bits(rng: np.random.Generator, data: bytes) -> tuple[str, bytes]:
    flipped = bytearray(data)
    for _ in range(int(rng.integers(1, 4)) if data else 0):
        flipped[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    return "bits flipped", bytes(flipped)


def _cut(rng: np.random.Generator, data: bytes) -> tuple[str, bytes]:
    return "truncated", data[: int(rng.integers(len(data) + 1))]


def _inserted(rng: np.random.Generator, data: bytes) -> tuple[str, bytes]:
    at = int(rng.integers(len(data) + 1))
    return "bytes inserted", data[:at] + rng.bytes(int(rng.integers(1, 9))) + data[at:]


def _token(rng: np.random.Generator, data: bytes) -> tuple[str, bytes]:
    """Something else in the place of a number or a word."""
    separators = [-1, *(at for at, byte in enumerate(data) if byte in b' ,:[]{}"\n'), len(data)]
    at = int(rng.integers(len(separators) - 1))
    token = pick(rng, _TOKENS)
    return f"token {token[:20]!r}", data[: separators[at] + 1] + token + data[separators[at + 1] :]


def _lines(rng: np.random.Generator, data: bytes) -> tuple[str, bytes]:
    lines = data.split(b"\n")
    at = int(rng.integers(len(lines)))
    what = pick(rng, ["twice", "missing", "blank", "shuffled", "CRLF"])
    if what == "twice":
        lines.insert(at, lines[at])
    elif what == "missing":
        del lines[at]
    elif what == "blank":
        lines.insert(at, b" \t")
    elif what == "shuffled":
        rng.shuffle(lines)
    return f"line {what}", (b"\r\n" if what == "CRLF" else b"\n").join(lines)


def _moved(rng: np.random.Generator, path: Path) -> str:
    what = pick(
        rng, ["deleted", "a folder", "a pipe", "a link to nothing", "a link to itself", "renamed", "copied"]
    )
    target = path.with_name(pick(rng, ["x", "ä b\n", "1", "999", ".hidden", "n" * 200]) + path.suffix)
    if what == "copied" and not target.exists():
        shutil.copyfile(path, target)
        return f"{what} to {target.name!r}"
    if what == "renamed":
        path.replace(target)
        return f"{what} to {target.name!r}"
    path.unlink()
    if what == "a folder":
        path.mkdir()
    elif what == "a pipe":
        os.mkfifo(path)
    elif what.startswith("a link"):
        path.symlink_to("nothing" if "nothing" in what else path.name)
    return what


def _check(images: Path, masks: Path, output: Path, options: dict[str, str], summary: Summary) -> None:
    """What the output has is what came in, or its refined form; and no more of it changed than was counted."""
    before = _windows(masks, images, options)
    after = _windows(output, images, options) if before else {}
    changed = 0
    for label, coarse in before.items():
        require(label in after, f"{label} cannot be read from the output")
        same = np.array_equal(after[label], coarse)
        changed += not same
        require(same or np.array_equal(after[label], eroded(coarse)), f"{label} is another mask")
    require(changed <= summary.refined, f"{changed} masks changed, {summary.refined} are said to be refined")


def _windows(path: Path, images: Path, options: dict[str, str]) -> dict[tuple[str, str], NDArray[np.bool_]]:
    """Masks by image, and file or place; what is no file is not in the output, and shifts the indexes."""
    found = {}
    for item in open_source(path, images, **options):
        if isinstance(item, RecordFault):
            continue
        for number, instance in enumerate(item.instances):
            label = instance.label
            try:
                mask = instance.mask.decode().paste() >= 0.5
            except InputError:
                continue
            found[item.name, label if label.lower().endswith(".png") else str(number)] = mask
    return found
