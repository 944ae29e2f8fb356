"""PNGs chunk by chunk: their header, and writing one."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from transfiner_refine.images import PNG_SIGNATURE

__all__ = ["Header", "read_header", "write_chunks"]

_HEADER = struct.Struct(">IIBB")


@dataclass(frozen=True)
class Header:
    """What a PNG's first chunk says.

    Attributes:
        size: (height, width), pixels.
        depth: bits a sample: 1, 2, 4, 8 or 16.
        colour: 0 grey, 2 RGB, 3 palette, 4 grey with alpha, 6 RGB with alpha.
    """

    size: tuple[int, int]
    depth: int
    colour: int


def read_header(chunks: list[tuple[bytes, memoryview]]) -> Header:
    """The header in the chunks that ``read_chunks`` gives."""
    width, height, depth, colour = _HEADER.unpack_from(chunks[0][1])
    return Header((height, width), depth, colour)


def write_chunks(chunks: Iterable[tuple[bytes, bytes | memoryview]], target: Path) -> None:
    """Writes a PNG of these chunks, checksums and all."""
    with target.open("wb") as file:
        file.write(PNG_SIGNATURE)
        for name, data in chunks:
            file.write(struct.pack(">I", len(data)) + name)
            file.write(data)
            file.write(struct.pack(">I", zlib.crc32(data, zlib.crc32(name))))
