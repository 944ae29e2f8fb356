"""Folders of label maps: what sets one format apart from the others is a ``LabelMapFormat``, all else is the same."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.errors import InputError
from transfiner_refine.formats.class_names import read_class_names
from transfiner_refine.formats.folders import FolderEntry, FolderSource, ImageTree
from transfiner_refine.formats.label_maps import (
    Freed,
    LabelMap,
    LabelMask,
    LaidMap,
    ids_in,
    is_among,
    lay,
    new_ids,
    repaint,
)
from transfiner_refine.formats.png import read_pixels, read_values, write_png
from transfiner_refine.formats.records import (
    Format,
    ImageRecord,
    Instance,
    OpenOptions,
    RecordFault,
    Source,
    Written,
)
from transfiner_refine.formats.writing import Conversion, by_importance
from transfiner_refine.masks import Mask
from transfiner_refine.output import atomic_folder

__all__ = ["LabelMapFormat", "LabelMapSource", "format_of", "label_of", "write_label_maps"]

_READERS = 4  # threads that read maps; zlib lets go of the interpreter lock


@dataclass(frozen=True)
class LabelMapFormat:
    """What sets one format of label maps apart from the others.

    Attributes:
        name, title, recognise: as for ``Format``.
        ids: ids of instances in new maps; in maps that are read, all from the first of them on.
        void: the value of undecided pixels, which refined masks may overwrite; crowds become void in new maps.
        ids_of_a_class: an id is class × this + number; 0 where ids say nothing of classes.
        labels: the format's own classes by number; instances of others cannot be written.
        things: those of ``labels`` that have instances; in new maps crowds, and all others, are bare labels.
        fixed: values below the first id that refined masks never overwrite.
        freed: what a pixel becomes that its instance gives up, as for ``repaint``.
        ending: how the stems of maps end.
        stem: from the path of a map or an image, without suffix, to where the image lies and what it is called.
        image_key: as for ``ImageTree``.
        image_name: how images are called by the custom of the format, of a stem.
        map_name: how new maps are called, of a stem.
        map_folder: the folder of the maps, where it may lie below the one that is given.
        class_folder: beside ``map_folder``, maps of the class of each pixel.
        palette: colours of new maps; empty for grey.
    """

    name: str
    title: str
    recognise: Callable[[Path], bool]
    ids: range
    void: int | None = None
    ids_of_a_class: int = 0
    labels: Mapping[int, str] = field(default_factory=dict)
    things: Collection[int] = ()
    fixed: Collection[int] = ()
    freed: Freed = "zero"
    ending: str = ""
    stem: Callable[[PurePosixPath], PurePosixPath] = PurePosixPath
    image_key: Callable[[str], str] = str
    image_name: str = "{}.jpg"
    map_name: str = "{}.png"
    map_folder: str = ""
    class_folder: str = ""
    palette: bytes = b""

    def instances_in(self, values: NDArray[Any]) -> tuple[int, ...]:
        """The ids of instances in an [H, W] map, in rising order."""
        return tuple(value for value in ids_in(values) if value >= self.ids.start and value != self.void)

    def repaint(self, values: NDArray[Any], refined: Sequence[tuple[int, Mask]]) -> LaidMap:
        """An [H, W] map with refined masks, (id, mask), the most important first."""
        background = values < self.ids.start
        if self.fixed:
            background &= ~is_among(values, self.fixed)
        if self.void is not None:
            background |= values == self.void
        return repaint(values, refined, background, freed=self.freed)


def format_of(row: LabelMapFormat) -> Format:
    """The entry of a format of label maps among all formats."""
    reader, writer = partial(LabelMapSource, row), partial(write_label_maps, row)
    return Format(row.name, row.title, True, row.recognise, reader, writer)


@dataclass(frozen=True)
class _Map:
    """One map: its instances by rising id, their classes, (height, width) in pixels."""

    ids: tuple[int, ...]
    classes: tuple[int | None, ...]
    size: tuple[int, int]


class LabelMapSource(FolderSource):
    """The maps of a folder."""

    def __init__(self, row: LabelMapFormat, folder: Path, options: OpenOptions) -> None:
        """Reads every map once, to know its ids.

        Args:
            row: the format.
            folder: what is read, and written again as a whole.
            options: as for all formats.

        Raises:
            InputError: no such folder, no map in it, or none that can be used.
        """
        super().__init__(folder, options.images)
        self._row, self._max_pixels = row, options.max_image_pixels
        self._labels = row.labels
        if options.class_names is not None and row.class_folder:
            self._labels = read_class_names(options.class_names)
        is_above = bool(row.map_folder) and (folder / row.map_folder).is_dir()
        self._inside = PurePosixPath(row.map_folder if is_above else "")
        self._classes = (
            (folder if is_above else folder.parent) / row.class_folder if row.class_folder else None
        )
        names = [
            name
            for name in self.files
            if name.suffix.lower() == ".png"
            and name.stem.endswith(row.ending)
            and name.is_relative_to(self._inside)
        ]
        if not names:
            raise InputError("holds no maps", file=folder, remedy="give the folder of the PNG maps")
        with ThreadPoolExecutor(_READERS) as pool:
            looks = list(pool.map(self._look, names))
        self._maps = [look if isinstance(look, _Map) else None for look in looks]
        stems = [row.stem(name.relative_to(self._inside).with_suffix("")) for name in names]
        self.entries = tuple(
            FolderEntry(name, stem, len(look.ids))
            if isinstance(look, _Map)
            else FolderEntry(name, stem, 1, error=look)
            for name, stem, look in zip(names, stems, looks, strict=True)
        )
        if options.images is not None:
            maps = [folder / name for name in names]
            self.find_images(ImageTree(options.images, without=maps, key=row.image_key))

    @property
    def categories(self) -> Mapping[int, str]:
        return self._labels

    def instances_of(
        self,
        position: int,
        size: Callable[[], tuple[int, int]],  # noqa: ARG002  a map has a size of its own
    ) -> Iterator[Instance | RecordFault]:
        found, name = self._maps[position], self.entries[position].name
        assert found is not None
        label_map = LabelMap(partial(read_values, self.folder / name, self._max_pixels))
        for number, (value, category_id) in enumerate(zip(found.ids, found.classes, strict=True)):
            yield Instance(
                index=number,
                mask=LabelMask(label_map, value, found.size),
                label=f"{name} id {value}",
                category_id=category_id,
                instance_id=value,
            )

    def stated_size(self, position: int) -> tuple[int, int] | None:
        found = self._maps[position]
        return None if found is None else found.size

    def usual_image_name(self, position: int) -> str | None:
        return self._row.image_name.format(self.entries[position].stem)

    def write_image(self, position: int, masks: Mapping[int, Mask], draft: Path) -> Written:
        name, found = self.entries[position].name, self._maps[position]
        assert found is not None
        self.read(name)
        pixels = read_pixels(self.folder / name, self._max_pixels)
        before = pixels.values
        refined = [(found.ids[number], mask) for number, mask in sorted(masks.items())]
        laid = self._row.repaint(before, refined)
        pixels.write(laid.values, draft / name)
        inside = PurePosixPath(self._row.class_folder) / name.relative_to(self._inside)
        if (
            inside != name and inside in self._digests
        ):  # one beside the folder that is written is not part of it
            classes = read_pixels(self.folder / inside, self._max_pixels)
            of_id = np.zeros(int(laid.values.max()) + 1, classes.values.dtype)
            for value, category_id in zip(found.ids, found.classes, strict=True):
                of_id[value : value + 1] = category_id or 0
            changed = np.where(laid.values == before, classes.values, of_id[laid.values])
            classes.write(changed, draft / inside)
        return Written(laid.overlap_pixels, tuple(found.ids.index(value) for value in laid.covered))

    def _look(self, name: PurePosixPath) -> _Map | InputError:
        try:
            self.read(name)
            values = read_pixels(self.folder / name, self._max_pixels).values
            ids = self._row.instances_in(values)
            return _Map(ids, tuple(self._classes_of(name, values, ids)), (values.shape[0], values.shape[1]))
        except InputError as error:
            return error

    def _classes_of(
        self, name: PurePosixPath, values: NDArray[Any], ids: Sequence[int]
    ) -> Iterator[int | None]:
        """The class of each id: what the id says, or else the most frequent class among its pixels."""
        path = None if self._classes is None else self._classes / name.relative_to(self._inside)
        if path is None or path == self.folder / name or not path.is_file():
            step = self._row.ids_of_a_class
            yield from (value // step if step else None for value in ids)
            return
        if self.folder in path.parents:
            self.read(PurePosixPath(path.relative_to(self.folder).as_posix()))
        classes = read_pixels(path, self._max_pixels).values
        if classes.shape != values.shape:
            raise InputError(
                f"is {classes.shape[0]}×{classes.shape[1]}, the map of its objects is "
                f"{values.shape[0]}×{values.shape[1]} (height × width)",
                file=path,
                remedy="give maps that belong together",
            )
        for value in ids:
            known = classes[values == value]
            known = known[(known != 0) & (known != self._row.void)]
            yield int(np.bincount(known).argmax()) if len(known) else None


def write_label_maps(
    row: LabelMapFormat, output: Path, source: Source, results: Mapping[int, Mask]
) -> Written:
    """Writes a map for each image; overlaps go to the higher score.

    Where all instances have classes, formats that have a map of classes get
    one, too.

    Raises:
        OutputError: the disk refused.
    """
    conversion = Conversion(source, results, row.stem)
    with atomic_folder(output) as draft:
        for stem, size, image in conversion:
            values, found = _new_map(row, conversion, image, size, source.categories)
            if not row.palette and not row.ids_of_a_class and values.max(initial=0) < 256:
                values = values.astype(np.uint8)
            write_png(draft / row.map_name.format(stem), values, row.palette)
            if not row.class_folder or not found:
                continue
            of_id = np.zeros(256, np.uint8)
            of_id[row.void or 0] = row.void or 0
            for value, instance in found.items():
                if instance.category_id is not None and instance.category_id in row.ids:
                    of_id[value] = instance.category_id
            if of_id[list(found)].all():
                write_png(draft / row.class_folder / f"{stem}.png", of_id[values], row.palette)
    return conversion.written()


def label_of(labels: Mapping[int, str], category_id: int | None, categories: Mapping[int, str]) -> int | None:
    """The number that a format with its own classes has for another source's category; None for none.

    It is that of the same name, or the number itself where the source names no categories: a category number of
    COCO is some other class in Cityscapes, so where names are known they decide alone.
    """
    if category_id is None or not categories:
        return category_id if category_id in labels else None
    name = categories.get(category_id)
    return next((label for label, known in labels.items() if known == name), None)


def _new_map(
    row: LabelMapFormat,
    conversion: Conversion,
    image: ImageRecord,
    size: tuple[int, int],
    categories: Mapping[int, str],
) -> tuple[NDArray[Any], dict[int, Instance]]:
    """[H, W] ids, and the instances that have pixels by id."""
    ground = np.zeros(size, np.uint8 if row.palette else np.uint16)
    pools: dict[range, list[Instance]] = {}
    for instance in image.instances:
        label = label_of(row.labels, instance.category_id, categories) if row.labels else row.void
        if row.labels and label is None:
            reason = f"its category {instance.category_id} is none of the classes of {row.name}"
            conversion.leave_out(image, instance, reason, "write another format")
        elif label is not None and (instance.is_crowd or (row.labels and label not in row.things)):
            window = instance.mask.decode().hard()
            window.of(ground)[window.values] = label
        else:
            step = row.ids_of_a_class
            pool = range(label * step, (label + 1) * step) if step and label is not None else row.ids
            pools.setdefault(pool, []).append(instance)
    ids: dict[int, int] = {}
    for pool, members in pools.items():
        ranked = by_importance(members)
        for instance in ranked[len(pool) :]:
            reason = f"is one of {len(ranked)} instances, and a map has ids for {len(pool)}"
            conversion.leave_out(
                image,
                instance,
                f"{reason} of a class" if row.ids_of_a_class else reason,
                "write another format",
            )
        held = {each.index for each in ranked[: len(pool)]}
        ids |= new_ids([each for each in members if each.index in held], pool)
    by_id = {ids[each.index]: each for each in by_importance(image.instances) if each.index in ids}
    laid = lay(ground, {value: each.mask.decode().hard() for value, each in by_id.items()})
    conversion.overlap(laid.overlap_pixels, [by_id[value] for value in laid.covered])
    return laid.values, {value: each for value, each in by_id.items() if value not in laid.covered}
