"""Folders of mask PNGs, some of them hostile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hostile_masks import Verdict, pick
from image_cases import encoded, header, hostile_photo, png
from law import Case, require
from numpy.typing import NDArray
from PIL import Image
from scene import Photo, draw_scene, eroded, write_photos

from transfiner_refine.pipeline import Summary


def png_case(folder: Path, rng: np.random.Generator) -> Case:
    """One mask a file, some of them broken: those stay byte for byte, the others are refined."""
    photos = draw_scene(rng)
    write_photos(photos, folder / "images", rng)
    masks = folder / "masks"
    masks.mkdir()
    verdicts: dict[str, Verdict] = {}
    done = []
    for photo in photos:
        for position, bitmap in enumerate(photo.bitmaps):
            name = f"{photo.image_id}_{position}.png"
            if rng.random() < 0.2:
                name = f"{photo.image_id}/{position}.PNG"
                (masks / name).parent.mkdir(exist_ok=True)
            elif rng.random() < 0.2:
                name = f"{photo.image_id}_{position}.{pick(rng, ['tif', 'bmp'])}"
            verdicts[name] = "sound"
            if rng.random() < 0.4:
                what, verdicts[name] = _put_hostile(rng, masks / name, bitmap)
                done.append(f"{name}: {what}")
            else:
                sound = Image.fromarray(bitmap).convert(pick(rng, ["1", "L"]))
                if rng.random() < 0.3:  # index 1, for 255 would be void
                    sound = Image.fromarray(bitmap.astype(np.uint8))
                    sound.putpalette([0, 0, 0, 128, 0, 0])
                sound.save(masks / name)
    what = _put_strays(rng, masks, photos)
    options: dict[str, Any] = {"png_kind": pick(rng, ["auto", "auto", "binary", "label-map"])}
    if rng.random() < 0.2:  # what is of another size may then be sound
        options["fit_masks"] = True
        verdicts = {name: "either" if verdict == "unsound" else verdict for name, verdict in verdicts.items()}
    before = {name: _pixels(masks / name) for name in verdicts if verdicts[name] == "sound"}

    def check(output: Path, summary: Summary) -> None:
        for name, verdict in verdicts.items():
            if verdict == "unsound" and (masks / name).is_file():
                same = (masks / name).read_bytes() == (output / name).read_bytes()
                require(same, f"{name} cannot be sound, but was changed")
            elif verdict == "sound":
                coarse, refined = before[name], _pixels(output / name)
                require(coarse.shape == refined.shape, f"{name} has another size")
                require(
                    np.array_equal(refined > 0, eroded(coarse > 0)),
                    f"{name} is sound, but was not refined",
                )
        unsound = list(verdicts.values()).count("unsound")
        require(summary.failed >= unsound, f"{unsound} files are broken, {summary.failed} are said to be")

    return Case(
        "; ".join([*done, what]),
        folder / "images",
        masks,
        options,
        check,
        may_be_refused="sound" not in verdicts.values(),
    )


def _pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image).astype(np.uint8)


def _put_hostile(rng: np.random.Generator, path: Path, bitmap: NDArray[np.bool_]) -> tuple[str, Verdict]:
    grey = np.where(bitmap, 255, 0).astype(np.uint8)
    good = encoded(Image.fromarray(grey), "PNG")
    kind = int(rng.integers(11))
    height, width = bitmap.shape
    data, verdict, what = good, "unsound", f"PNG {kind}"
    if kind == 0:
        data = good[: int(rng.integers(len(good) - 12))]
        what = "truncated"
    elif kind == 1:
        flipped = bytearray(good)
        flipped[int(rng.integers(len(good) - 12))] ^= 1 << int(rng.integers(8))
        data, what = bytes(flipped), "a bit flipped"
    elif kind == 2:
        kind = pick(rng, ["JPEG", "TIFF", "BMP", "GIF", "WEBP"])
        data, what, verdict = encoded(Image.fromarray(grey), kind), kind, "either"
        if rng.random() < 0.5:
            path = path.with_suffix(f".{kind.lower()}")
    elif kind == 3:
        colours = rng.integers(0, 256, (height, width, 3), np.uint8)
        colours[0, 0] = (1, 2, 3)
        mode = pick(rng, ["RGB", "RGBA", "LA"])
        data, what = encoded(Image.fromarray(colours).convert(mode), "PNG"), mode
        verdict = "either" if mode == "LA" else verdict  # opaque grey is read
    elif kind == 4:
        giant = pick(rng, [100_000, 2**31 - 1, 2**32 - 1])
        data, what = png(header(giant, giant, 8, 0), (b"IDAT", b""), (b"IEND", b"")), "a bomb"
    elif kind == 5:
        other = np.full((height + 1, width + 2), 255, np.uint8)
        data, what = encoded(Image.fromarray(other), "PNG"), "of another size"
    elif kind == 6:
        twice = good[:-12] + good[8:]
        data, what, verdict = twice, "two in one", "either"
    elif kind == 7:
        soft = rng.integers(0, 256, bitmap.shape, np.uint8)
        data, what, verdict = encoded(Image.fromarray(soft), "PNG"), "noise", "either"
    elif kind == 8:
        photo = hostile_photo(rng, bitmap.shape)
        if photo.put is not None:
            photo.put(path)
            return photo.title, "either"
        data, what, verdict = photo.data or b"", photo.title, "either"
    elif kind == 9:
        text = png(
            (b"zTXt", b"k\0\0" + rng.bytes(20)), (b"tRNS", b"\0"), (b"PLTE", b"\1\2"), (b"fcTL", b"x")
        )[8:]
        data, what, verdict = good[:33] + text + good[33:], "odd chunks", "either"
    else:
        deep = (bitmap * 65535).astype(np.uint16)
        data, what, verdict = encoded(Image.fromarray(deep), "PNG"), "16 bits", "either"
    path.write_bytes(data)
    return what, verdict  # type: ignore[return-value]


def _put_strays(rng: np.random.Generator, masks: Path, photos: list[Photo]) -> str:
    """Files that belong to no photo, or lie where none should."""
    strays: list[tuple[str, Callable[[], object]]] = [
        ("nothing", lambda: None),
        ("nothing", lambda: None),
        ("a mask without photo", lambda: Image.new("L", (3, 3)).save(masks / "nobody.png")),
        ("a text", lambda: (masks / "readme.txt").write_text("x")),
        ("an empty PNG", lambda: (masks / "nobody_1.png").write_bytes(b"")),
        ("a folder called x.png", lambda: (masks / "x.png").mkdir()),
        ("a link to nothing", lambda: (masks / f"{photos[0].image_id}_99.png").symlink_to("nothing.png")),
        ("a link to itself", lambda: (masks / "loop").symlink_to("loop")),
        ("a hidden file", lambda: (masks / ".1.png").write_bytes(b"x")),
        ("a name with a line break", lambda: Image.new("L", (3, 3)).save(masks / "a\nb.png")),
        ("a link to its own folder", lambda: (masks / "again").symlink_to(".")),
    ]
    what, put = strays[int(rng.integers(len(strays)))]
    put()
    return what
