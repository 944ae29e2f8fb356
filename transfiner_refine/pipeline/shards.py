"""Which images of a run are in which part of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from hashlib import blake2b
from typing import NamedTuple

from transfiner_refine.errors import InputError
from transfiner_refine.formats.records import ImageRecord, RecordFault, Source, UnreadSource


class Shard(NamedTuple):
    """Part ``number`` (from 1) ``of`` so many."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From "I/N"; raises InputError where it is none."""
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise InputError(f"{text!r} is no shard", remedy="give I/N with I from 1 to N, such as 3/16")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def holds(self, item: ImageRecord | RecordFault) -> bool:
        """Whether an image is one of its own, by its name alone; what belongs to no image goes by its error."""
        name = item.name if isinstance(item, ImageRecord) else str(item.error)
        digest = blake2b(name.encode(errors="surrogatepass"), digest_size=8).digest()
        return int.from_bytes(digest, "little") % self.of == self.number - 1


def items_of(source: Source, shard: Shard | None = None) -> Iterator[tuple[int, ImageRecord | RecordFault]]:
    """What a source holds, or of it a shard, unread where it can be, with the positions in the source."""
    for position, item in enumerate(source.unread() if isinstance(source, UnreadSource) else source):
        if shard is None or shard.holds(item):
            yield position, item
