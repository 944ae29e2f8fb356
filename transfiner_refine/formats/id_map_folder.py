"""Folders of id maps, one PNG an image and one id a pixel: what VOC, DAVIS and Cityscapes have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.errors import InputError
from transfiner_refine.formats.folders import FolderEntry, FolderSource, ImageTree
from transfiner_refine.formats.id_map import IdMap, IdMask, Painted, ids_in, paint
from transfiner_refine.formats.png_pixels import read_values, write_like
from transfiner_refine.formats.records import Instance, RecordFault, Written
from transfiner_refine.images import MAX_IMAGE_PIXELS
from transfiner_refine.masks import Mask

__all__ = ["VOID", "IdMapFolderSource", "MapInstance", "ids_but_void", "paint_over_void"]

VOID = 255  # Pascal VOC's label for pixels that nobody decided about
_READERS = 4  # threads that look into maps; zlib lets go of the interpreter lock


@dataclass(frozen=True)
class MapInstance:
    """One instance of a map.

    Attributes:
        value: its id, the value of its pixels.
        category_id: its class, None where the format does not say.
    """

    value: int
    category_id: int | None = None


@dataclass(frozen=True)
class _Map:
    """One map.

    Attributes:
        instances: its instances by rising id.
        size: (height, width), pixels.
    """

    instances: tuple[MapInstance, ...]
    size: tuple[int, int]


class IdMapFolderSource(FolderSource):
    """The maps of a folder; a subclass says what their values mean."""

    def __init__(
        self,
        folder: Path,
        images: Path | None,
        maps: Path | None = None,
        max_pixels: int = MAX_IMAGE_PIXELS,
    ) -> None:
        """Reads every map once, to know its ids.

        Args:
            folder: what is read, and written again as a whole.
            images: the folder of the photos, None to do without them.
            maps: the subfolder of ``folder`` that has the maps, where it is not ``folder`` itself.
            max_pixels: the largest map that is decoded.

        Raises:
            InputError: no such folder, no map in it, or none that can be used.
        """
        super().__init__(folder, images)
        self.max_pixels = max_pixels
        inside = None if maps is None else PurePosixPath(maps.relative_to(folder).as_posix())
        names = [
            name
            for name in self.files
            if name.suffix.lower() == ".png"
            and self.is_map(name)
            and (inside is None or inside in name.parents)
        ]
        if not names:
            raise InputError("holds no maps", file=folder, remedy="give the folder of the PNG maps")
        with ThreadPoolExecutor(_READERS) as pool:
            looks = list(pool.map(self._look, names))
        self._maps = [look if isinstance(look, _Map) else None for look in looks]
        stems = [self.stem_of_map(name if inside is None else name.relative_to(inside)) for name in names]
        self.entries = tuple(
            FolderEntry(name, stem, len(look.instances))
            if isinstance(look, _Map)
            else FolderEntry(name, stem, 1, error=look)
            for name, stem, look in zip(names, stems, looks, strict=True)
        )
        self.find_images(
            None if images is None else self.photo_tree(images, [folder / name for name in names])
        )

    @abstractmethod
    def instances_in(self, name: PurePosixPath, values: NDArray[Any]) -> Sequence[MapInstance]:
        """The instances of the map at ``name``, by rising id."""

    @abstractmethod
    def repaint(self, values: NDArray[Any], refined: Sequence[tuple[int, Mask]]) -> Painted:
        """The map with refined masks, (id, mask), the most important first."""

    def is_map(self, name: PurePosixPath) -> bool:  # noqa: ARG002  the formats differ
        """Whether a PNG of the folder is a map, by its name."""
        return True

    def stem_of_map(self, name: PurePosixPath) -> PurePosixPath:
        """Where the photo of a map must lie and what it must be called, without ending."""
        return name.with_suffix("")

    def photo_tree(self, images: Path, maps: list[Path]) -> ImageTree:
        """The photos; the maps are none of them."""
        return ImageTree(images, without=maps)

    def instances_of(
        self,
        position: int,
        size: Callable[[], tuple[int, int]],  # noqa: ARG002  a map has a size of its own
    ) -> Iterator[Instance | RecordFault]:
        found, name = self._maps[position], self.entries[position].name
        assert found is not None
        id_map = IdMap(partial(read_values, self.folder / name, self.max_pixels))
        for number, item in enumerate(found.instances):
            yield Instance(
                index=number,
                mask=IdMask(id_map, item.value, found.size),
                label=f"{name} id {item.value}",
                category_id=item.category_id,
                instance_id=item.value,
            )

    def stated_size(self, position: int) -> tuple[int, int] | None:
        found = self._maps[position]
        return None if found is None else found.size

    def write_image(self, position: int, masks: Mapping[int, Mask], draft: Path) -> Written:
        name, found = self.entries[position].name, self._maps[position]
        assert found is not None
        ids = [item.value for item in found.instances]
        values = read_values(self.folder / name, self.max_pixels)
        painted = self.repaint(values, [(ids[number], mask) for number, mask in sorted(masks.items())])
        (draft / name).parent.mkdir(parents=True, exist_ok=True)
        write_like(self.folder / name, painted.values, draft / name)
        self.map_written(position, values, painted.values, draft)
        return Written(painted.overlap_pixels, tuple(ids.index(value) for value in painted.covered))

    def map_written(self, position: int, before: NDArray[Any], after: NDArray[Any], draft: Path) -> None:
        """Called after a map was written, for files that must agree with it."""

    def instances_of_map(self, position: int) -> tuple[MapInstance, ...]:
        """The instances of one map by rising id."""
        found = self._maps[position]
        return () if found is None else found.instances

    def _look(self, name: PurePosixPath) -> _Map | InputError:
        try:
            values = read_values(self.folder / name, self.max_pixels)
            return _Map(tuple(self.instances_in(name, values)), (values.shape[0], values.shape[1]))
        except InputError as error:
            return error


def ids_but_void(values: NDArray[Any]) -> tuple[int, ...]:
    """The ids of a map in rising order, without background (0) and void (255)."""
    return tuple(value for value in ids_in(values) if value != VOID)


def paint_over_void(values: NDArray[Any], refined: Sequence[tuple[int, Mask]]) -> Painted:
    """Repaints a map with a void border (255): refined masks may claim void, what they leave of it stays.

    VOC's border is void because its annotators were not sure where the outline runs. A refined outline runs
    in there, and would be cut to the coarse one if void were not to be claimed. Pixels that an instance gives
    up become background, never void.
    """
    void = values == VOID
    painted = paint(np.where(void, 0, values).astype(values.dtype), refined)
    painted.values[(painted.values == 0) & void] = VOID
    return painted
