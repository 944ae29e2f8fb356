"""Photos of every kind, sound and hostile, with sound masks on them."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from hostile_masks import Verdict, pick
from law import MAX_PIXELS, Case, load_json, require
from PIL import Image
from pycocotools import mask as coco_mask
from scene import draw_bitmap, eroded, rle, side

from transfiner_refine.pipeline import Summary

_EXIF_ORIENTATION = 0x0112


@dataclass
class HostilePhoto:
    """A photo file.

    Attributes:
        title: what it is.
        data: its bytes; None where ``put`` makes what lies at its path.
        verdict: what must become of its masks.
        size: (height, width) of the masks that fit it, pixels.
        put: makes what lies at its path.
    """

    title: str
    data: bytes | None
    verdict: Verdict
    size: tuple[int, int]
    put: Callable[[Path], None] | None = None


def image_case(folder: Path, rng: np.random.Generator) -> Case:
    """Three photos, the middle one hostile: its masks pass through, those of the others are refined."""
    images = folder / "images"
    images.mkdir()
    size = (side(rng, 40), side(rng, 40))
    photo = hostile_photo(rng, size)
    for image_id in (1, 3):
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(images / f"{image_id}.png")
    names = ["2.jpg", "2.png", "2.tif", "2.webp", "2.bmp"]
    name = pick(rng, names)
    listed = rng.random() < 0.3
    if listed:
        name = pick(
            rng, [*names, "2", "2.gif", "zwei ö\n\t.JPG", "-2.jpg", "2 .png", "n" * 250, "a/b c/2.jpg"]
        )
    path = images / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if photo.put is not None:
        photo.put(path)
    else:
        assert photo.data is not None
        path.write_bytes(photo.data)
    bitmaps, records = [], []
    for image_id, on in ((1, size), (2, photo.size), (2, photo.size), (3, size)):
        bitmap = draw_bitmap(rng, on)
        bitmaps.append(bitmap)
        records.append({"image_id": image_id, "category_id": 1, "segmentation": rle(bitmap), "score": 0.5})
    masks, options = folder / "masks.json", {}
    masks.write_text(json.dumps(records))
    if listed:
        entries = [{"id": i, "file_name": f"{i}.png"} for i in (1, 3)] + [{"id": 2, "file_name": name}]
        options["image_info"] = folder / "info.json"
        options["image_info"].write_text(json.dumps({"images": entries, "annotations": []}))
    verdicts: list[Verdict] = ["sound", photo.verdict, photo.verdict, "sound"]

    def check(output: Path, summary: Summary) -> None:
        before, after = load_json(masks), load_json(output)
        for index, (verdict, bitmap) in enumerate(zip(verdicts, bitmaps, strict=True)):
            found = coco_mask.decode(after[index]["segmentation"]).astype(bool)
            if verdict == "sound":
                require(
                    np.array_equal(found, eroded(bitmap)), f"record {index} is sound, but was not refined"
                )
            elif verdict == "unsound":
                require(before[index] == after[index], f"record {index} cannot be sound, but was changed")
        if photo.verdict == "unsound" and (bitmaps[1].any() or bitmaps[2].any()):
            places = ("id 2", "record 1", "record 2", f"image {name!r}")
            named = [
                error
                for error in summary.errors
                if error.file == str(path) or any(place in str(error) for place in places)
            ]
            # once; or each mask by itself, where they are as much too large as the photo
            require(1 <= len(named) <= 2, f"the broken photo is not named: {summary.errors}")

    return Case(f"{photo.title} as {name[:20]!r}", images, masks, options, check, may_be_refused=False)


def hostile_photo(rng: np.random.Generator, size: tuple[int, int]) -> HostilePhoto:
    make: Callable[..., HostilePhoto] = pick(
        rng,
        [
            _of_any_mode,
            _of_any_mode,
            _turned,
            _turned,
            _damaged,
            _damaged,
            _bomb,
            _bomb,
            _no_image,
            _no_file,
            _frames,
        ],
    )
    return make(rng, size)


def _of_any_mode(rng: np.random.Generator, size: tuple[int, int]) -> HostilePhoto:
    colours = Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8))
    mode = pick(
        rng,
        [
            "1",
            "L",
            "LA",
            "P",
            "PA",
            "RGBA",
            "CMYK",
            "YCbCr",
            "LAB",
            "HSV",
            "I;16",
            "I",
            "F",
            "P+",
            "RGB16",
            "RGBa",
        ],
    )
    verdict: Verdict = "sound"
    if mode == "RGB16":
        deep = rng.integers(0, 2**16, (*size, 3), np.uint16)
        return HostilePhoto("16-bit RGB PNG", cv2.imencode(".png", deep)[1].tobytes(), "sound", size)
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 2**16, size, np.uint16))
    elif mode in ("I", "F"):
        wide = rng.integers(-(2**31), 2**31, size).astype(np.int32 if mode == "I" else np.float32)
        image, verdict = (
            Image.fromarray(wide),
            "unsound" if mode == "F" or abs(int(wide[0, 0])) > 65535 else "either",
        )
    elif mode == "P+":
        image = colours.convert("P")
        image.info["transparency"] = pick(rng, [0, b"\0\x80\xff"])
    elif mode == "RGBa":
        image = colours.convert("RGBA").convert("RGBa")
    elif mode == "LAB":
        image, verdict = Image.frombytes("LAB", size[::-1], colours.tobytes()), "either"
    elif mode == "PA":
        image = colours.convert("RGBA").convert("PA")
    elif mode == "HSV":
        image = colours.convert("HSV")
    else:
        image = colours.convert(mode)
    written = []
    for kind in ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF", "PPM"):
        try:
            written.append((kind, encoded(image, kind)))
        except (OSError, ValueError, KeyError):
            continue  # no such pixels in this format
    if not written:
        return HostilePhoto("plain", encoded(colours, "PNG"), "sound", size)
    kind, data = pick(rng, written)
    if kind != "TIFF" and mode in ("I", "F"):
        verdict = "either"  # Pillow has made 8 or 16 bits of it
    return HostilePhoto(f"{mode} {kind}", data, verdict, size)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _turned(rng: np.random.Generator, size: tuple[int, int]) -> HostilePhoto:
    exif = Image.Exif()
    value = pick(rng, [*range(1, 9), *range(5, 9), 0, 9, 65535, -1, "6", b"\x06", (6, 6), 6.0, None])
    kind = pick(rng, ["JPEG", "PNG", "WEBP", "TIFF"])
    image = Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8))
    try:
        if value is not None:
            exif[_EXIF_ORIENTATION] = value
        data = encoded(image, kind, exif=exif.tobytes() if value is not None else rng.bytes(40))
    except Exception:  # Pillow does not write it
        exif[_EXIF_ORIENTATION] = value = 6
        data = encoded(image, kind, exif=exif.tobytes())
    sideways = value in (5, 6, 7, 8) and type(value) is int
    # the masks' size decides, so both are right
    masks = size[::-1] if sideways and rng.random() < 0.5 else size
    # in a TIFF the orientation is a tag of the file, which nonsense can make unreadable
    verdict: Verdict = "sound" if kind != "TIFF" or (type(value) is int and 0 < value < 9) else "either"
    return HostilePhoto(f"EXIF orientation {value!r} {kind}", data, verdict, masks)


def _damaged(rng: np.random.Generator, size: tuple[int, int]) -> HostilePhoto:
    kind = pick(rng, ["PNG", "PNG", "JPEG", "JPEG", "TIFF", "WEBP", "BMP", "GIF", "PPM", "JPEG2000", "AVIF"])
    noise = Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8))
    options = {
        "JPEG": {"progressive": bool(rng.random() < 0.5)},
        "TIFF": {"compression": pick(rng, ["raw", "tiff_lzw", "jpeg"])},
    }
    try:
        data = bytearray(encoded(noise, kind, **options.get(kind, {})))
    except OSError:  # this Pillow was built without it
        kind, data = "PNG", bytearray(encoded(noise, "PNG"))
    if rng.random() < 0.4:
        data = data[: int(rng.integers(len(data)))]
        return HostilePhoto(f"truncated {kind}", bytes(data), "either", size)
    if kind == "PNG" and rng.random() < 0.3:
        at = data.index(b"IDAT")
        data[at + 4 + int(rng.integers(4))] ^= 1 << int(rng.integers(8))
        return HostilePhoto("PNG with a wrong checksum", bytes(data), "unsound", size)
    if rng.random() < 0.3:
        at, length = int(rng.integers(min(len(data), 200))), int(rng.integers(1, 5))
        data[at : at + length] = pick(rng, [b"\xff", b"\0", b"\x7f"]) * length
    else:
        for _ in range(int(rng.integers(1, 6))):
            data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    return HostilePhoto(
        f"bits of {kind} changed", bytes(data), "unsound" if kind == "PNG" else "either", size
    )


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    packed = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def header(height: int, width: int, depth: int = 8, colour: int = 2) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)


def _bomb(rng: np.random.Generator, size: tuple[int, int]) -> HostilePhoto:
    kind = int(rng.integers(9))
    noughts = zlib.compress(bytes(1 << 22))
    rows = (b"IDAT", zlib.compress(bytes((3 * size[1] + 1) * size[0])))
    end = (b"IEND", b"")
    giant = pick(rng, [100_000, 2**31 - 1, 2**31, 2**32 - 1, 2001])
    if kind == 0:
        data = png(header(giant, giant), (b"IDAT", noughts), end)
    elif kind == 1:
        data = png(header(*size), (b"zTXt", b"k\0\0" + noughts), rows, end)
    elif kind == 2:
        data = png(header(*size), (b"iCCP", b"k\0\0" + noughts), rows, end)
        return HostilePhoto("PNG with a profile bomb", data, "either", size)
    elif kind == 3:
        text = (b"zTXt", b"k\0\0" + zlib.compress(bytes((1 << 20) - 10)))
        data = png(header(*size), *[text] * 70, rows, end)
    elif kind == 4:
        data = b"BM" + struct.pack(
            "<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 60_000, -60_000, 1, 24, 0, 0, 0, 0, 0, 0
        )
    elif kind == 5:
        data = b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + bytes(6) + b","
    elif kind == 6:
        data = b"P6 60000 60000 255\n" + bytes(100)
    elif kind == 7:
        data = bytearray(encoded(Image.new("RGB", size[::-1]), "JPEG"))
        at = data.index(b"\xff\xc0")
        data[at + 5 : at + 9] = struct.pack(">HH", 65500, 65500)
        data = bytes(data)
    else:
        plain = encoded(Image.new("RGB", (2100, 2100)), pick(rng, ["WEBP", "TIFF", "PNG", "JPEG", "GIF"]))
        return HostilePhoto(f"an image over the limit of {MAX_PIXELS}", plain, "unsound", (2100, 2100))
    return HostilePhoto(f"bomb {kind}", data, "unsound", size)


def _no_image(rng: np.random.Generator, size: tuple[int, int]) -> HostilePhoto:
    contents = [
        b"", b"\0", b"P", b"BM", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"<html>", b"II*\0", b"MM\0*" + bytes(8),
        b"RIFF\x10\0\0\0WEBPVP8X", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"<svg/>", b"%PDF-1.7",
        b"\0\0\0\x0cjP  \r\n\x87\n", b"\0\0\0\x1cftypavif" + bytes(16), b"PK\x03\x04", rng.bytes(200),
        b"II*\0\x08\0\0\0" + b"\xff" * 60,
    ]  # fmt: skip
    data = pick(rng, contents)
    return HostilePhoto(f"no image: {data[:16]!r}", data, "unsound", size)


def _no_file(rng: np.random.Generator, size: tuple[int, int]) -> HostilePhoto:
    def link(target: str) -> Callable[[Path], None]:
        return lambda path: path.symlink_to(target)

    def outside(path: Path) -> None:
        elsewhere = path.parents[1] / "elsewhere.png"
        Image.new("RGB", size[::-1]).save(elsewhere)
        path.symlink_to(elsewhere)

    choices: list[tuple[str, Verdict, Callable[[Path], None]]] = [
        ("a folder", "unsound", lambda path: path.mkdir()),
        ("a pipe", "unsound", lambda path: os.mkfifo(path)),
        ("a link to nothing", "unsound", link("nothing.png")),
        ("a link to itself", "unsound", lambda path: path.symlink_to(path.name)),
        ("a link to a device", "unsound", link("/dev/zero")),
        ("a link to a photo elsewhere", "sound", outside),
    ]
    what, verdict, put = pick(rng, choices)
    return HostilePhoto(what, None, verdict, size, put)


def _frames(rng: np.random.Generator, size: tuple[int, int]) -> HostilePhoto:
    frames = [Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)) for _ in range(3)]
    kind = pick(rng, ["PNG", "GIF", "WEBP", "TIFF", "MPO"])
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    return HostilePhoto(f"{kind} of several frames", data, "sound", size)
