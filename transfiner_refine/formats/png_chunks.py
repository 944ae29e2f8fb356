"""PNG chunk by chunk, with the checksums that decoders skip."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from transfiner_refine.errors import InputError

__all__ = ["Header", "read_chunks", "read_header", "write_chunks"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
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


def read_chunks(path: Path) -> list[tuple[bytes, memoryview]]:
    """(name, data) of every chunk up to IEND.

    Pillow does not look at the checksum of pixel data, so that a flipped bit can move an outline in silence.

    Raises:
        InputError: no PNG, cut off inside a chunk, a wrong checksum, or a header that is not one or not first.
    """
    try:
        data = memoryview(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=path, remedy="check the path") from error
    if data[:8] != _SIGNATURE:
        raise InputError("is no PNG file", file=path, remedy="replace the file")
    chunks: list[tuple[bytes, memoryview]] = []
    at = len(_SIGNATURE)
    while at < len(data) and (not chunks or chunks[-1][0] != b"IEND"):
        if at + 12 > len(data):
            raise _damaged(path, "ends in the middle of a chunk")
        (length,) = struct.unpack_from(">I", data, at)
        name, end = bytes(data[at + 4 : at + 8]), at + 8 + length
        if end + 4 > len(data):
            raise _damaged(path, "ends in the middle of a chunk")
        if zlib.crc32(data[at + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise _damaged(path, f"has a wrong checksum in its chunk {name!r}")
        chunks.append((name, data[at + 8 : end]))
        at = end + 4
    if [index for index, (name, _) in enumerate(chunks) if name == b"IHDR"] != [0] or len(chunks[0][1]) != 13:
        raise _damaged(path, "does not begin with its one header")
    return chunks


def read_header(chunks: list[tuple[bytes, memoryview]]) -> Header:
    """The header in the chunks that ``read_chunks`` gives."""
    width, height, depth, colour = _HEADER.unpack_from(chunks[0][1])
    return Header((height, width), depth, colour)


def write_chunks(chunks: Iterable[tuple[bytes, bytes | memoryview]], target: Path) -> None:
    """Writes a PNG of these chunks, checksums and all."""
    with target.open("wb") as file:
        file.write(_SIGNATURE)
        for name, data in chunks:
            file.write(struct.pack(">I", len(data)) + name)
            file.write(data)
            file.write(struct.pack(">I", zlib.crc32(data, zlib.crc32(name))))


def _damaged(path: Path, how: str) -> InputError:
    return InputError(how, file=path, remedy="the file is damaged; replace it")
