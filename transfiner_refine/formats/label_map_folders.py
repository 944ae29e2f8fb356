"""Folders of label maps: what sets one format apart from the others is a ``LabelMapFormat``, all else is the same."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.errors import InputError, counted
from transfiner_refine.formats.class_names import read_class_names
from transfiner_refine.formats.folders import FolderEntry, FolderSource
from transfiner_refine.formats.label_maps import (
    FileMask,
    Freed,
    LabelMask,
    MergedMap,
    exchanged,
    is_among,
    kind_of,
    merge,
    new_ids,
    places_of,
    shared_map,
    stretched,
    update_map,
    zero_of,
)
from transfiner_refine.formats.png import MaskPixels, is_kept_kind, read_pixels, write_png
from transfiner_refine.formats.records import (
    Format,
    ImageRecord,
    Instance,
    OpenOptions,
    PngKind,
    RecordFault,
    Source,
    Written,
)
from transfiner_refine.formats.writing import Conversion, by_importance
from transfiner_refine.image_folders import ImageTree
from transfiner_refine.images import PNG_SIGNATURE
from transfiner_refine.masks import Mask
from transfiner_refine.output import atomic_folder

VOID = 255  # Pascal VOC's label for pixels that nobody decided about
_COLOUR_TYPE, _ALPHA = 25, (b"\4", b"\6")  # where a PNG states its colour type; those with an alpha channel
_READERS = 4  # threads that read files; zlib lets go of the interpreter lock


@dataclass(frozen=True)
class LabelMapFormat:
    """What sets one format of label maps apart from the others."""

    name: str  # this and the next as for ``Format``
    recognise: Callable[[Path], bool]
    ids: range  # ids of instances in new maps; in maps that are read, all from the first of them on
    void: int | None = None  # undecided pixels, which refined masks may overwrite; crowds in new maps
    ids_of_a_class: int = 0  # an id is class × this + number; 0 where ids say nothing of classes
    labels: Mapping[int, str] = field(default_factory=dict)  # own classes; no others can be written
    things: Collection[int] = ()  # labels with instances; in new maps, all else is bare labels
    fixed: Collection[int] = ()  # values below the first id that refined masks never overwrite
    freed: Freed = "zero"  # what a pixel becomes that its instance gives up, as for ``update_map``
    ending: str = ""  # of the stems of maps
    # from the path of a map or an image, without suffix, to where the image lies and what it is called
    stem: Callable[[PurePosixPath], PurePosixPath] = PurePosixPath
    image_key: Callable[[str], str] = str  # as for ``ImageTree``
    image_name: str = "{}.jpg"  # what images are called by custom, of a stem; empty without one
    map_name: str = "{}.png"  # what new maps are called, of a stem
    map_folder: str = ""  # the folder of the maps, where it may lie below the one that is given
    class_folder: str = ""  # beside ``map_folder``, maps of the class of each pixel
    palette: bytes = b""  # of new maps; empty for grey

    def on(self, background: int | None) -> LabelMapFormat:
        """The format where another value than 0 is the background, or none; raises InputError where that cannot be."""
        if background == 0:
            return self
        if self.ids.start > 1:
            reason = f"--background is for maps whose values are all ids, not for {self.name}"
            raise InputError(reason, remedy="leave it out")
        void = None if self.void == background else self.void
        return replace(self, void=void, freed="nearest left" if background is None else self.freed)

    def update(self, values: NDArray[Any], refined: Sequence[tuple[int, Mask]]) -> MergedMap:
        """An [H, W] map with refined masks, (id, mask), the most important first."""
        background = values < self.ids.start
        if self.fixed:
            background &= ~is_among(values, self.fixed)
        if self.void is not None:
            background |= values == self.void
        return update_map(values, refined, background, freed=self.freed)


def format_of(row: LabelMapFormat) -> Format:
    """The entry of a format of label maps among all formats."""
    reader, writer = partial(LabelMapSource, row), partial(write_label_maps, row)
    return Format(row.name, True, row.recognise, reader, writer)


@dataclass(frozen=True)
class MapFile:
    """One mask image: a map, or the mask of one instance."""

    name: PurePosixPath  # its path inside the folder
    instance: Instance | None = None  # what a file that is one mask holds; None for a map
    ids: Mapping[int, int | None] = field(default_factory=dict)  # id to class, None where it is not known
    crowd: int | None = None  # the id that is no single object
    size: tuple[int, int] | None = None  # (height, width) of a map, pixels
    error: InputError | None = None  # why the file cannot be used
    zero: int | None = None  # the id that is 0 in the file, where its background is another value
    written: PurePosixPath | None = None  # what it is called when it is refined, where its kind loses pixels

    @property
    def count(self) -> int:
        """Number of instances in it."""
        return len(self.ids) if self.instance is None and self.error is None else 1


class MaskFiles(FolderSource):
    """A folder of mask images, one or several an image; a reader says which are whose in ``groups``."""

    def __init__(self, row: LabelMapFormat, folder: Path, options: OpenOptions) -> None:
        """Lists the folder; raises InputError where that cannot be done."""
        super().__init__(folder, options)
        self.categories = row.labels
        self.fit_masks = options.fit_masks
        self.row = row.on(options.background)
        self.groups: list[list[MapFile]] = []
        is_above = bool(row.map_folder) and (folder / row.map_folder).is_dir()
        self._inside = PurePosixPath(row.map_folder if is_above else "")
        self._classes = (folder if is_above else folder.parent) / row.class_folder

    def instances_of(
        self,
        position: int,
        size: Callable[[], tuple[int, int]],  # noqa: ARG002  images have sizes of their own
    ) -> Iterator[Instance | RecordFault]:
        first = 0
        for file in self.groups[position]:
            if file.error is not None:
                yield RecordFault(file.error)
            elif file.instance is not None:
                yield replace(file.instance, index=first)
            path, options = self.folder / file.name, self.options
            label_map = shared_map(partial(_read_map, path, options.max_image_pixels, options.background))
            for number, (value, category_id) in enumerate(file.ids.items(), first):
                mask = LabelMask(label_map, value, file.size or (0, 0))
                stored = 0 if value == file.zero else value
                label, is_crowd = f"{file.name} id {stored}", value == file.crowd
                yield Instance(number, mask, label, category_id, is_crowd=is_crowd, instance_id=stored)
            first += file.count

    def files_of(self, position: int) -> Collection[PurePosixPath]:
        return [file.name for file in self.groups[position]]

    def write_image(self, position: int, masks: Mapping[int, Mask], draft: Path) -> Written:
        overlap_pixels, covered, first = 0, list[int](), 0
        for file in self.groups[position]:
            own = {number: masks[first + number] for number in range(file.count) if first + number in masks}
            if own:
                pixels, size = self.pixels_of(file.name), next(iter(own.values())).size
                target = draft / (file.written or file.name)
                if file.written not in (None, file.name):
                    self.replaced.add(file.name)
            if own and file.instance is not None and isinstance(file.instance.mask, FileMask):
                white = file.instance.mask.foreground_in(pixels)
                pixels.write(np.where(own[0].decode().paste(), white, 0), target)
            elif own:
                ids, background = list(file.ids), self.options.background
                before = stretched(exchanged(pixels.values, background), size)
                merged = self.row.update(before, [(ids[n], mask) for n, mask in own.items()])
                pixels.write(exchanged(merged.values, background, file.zero), target)
                self._update_classes(file, before, merged.values, draft)
                overlap_pixels += merged.overlap_pixels
                covered += [first + ids.index(value) for value in merged.covered]
            first += file.count
        return Written(overlap_pixels, tuple(covered))

    def _look(self, name: PurePosixPath, kind: PngKind | Literal["auto"]) -> MapFile:
        try:
            path, background = self.folder / name, self.options.background
            data = self.read(name)
            is_plain = data.startswith(PNG_SIGNATURE) and data[_COLOUR_TYPE : _COLOUR_TYPE + 1] not in _ALPHA
            is_kept = is_plain or is_kept_kind(path, self.options.max_image_pixels)
            written = None if is_kept else name.with_suffix(".png")
            kind = "label-map" if background != 0 and kind == "auto" else kind
            pixels = None if kind == "binary" else self.pixels_of(name)
            if pixels is None or (kind == "auto" and kind_of(pixels) == "binary"):
                reading: Literal["auto", "binary"] = "binary" if self.options.png_kind == "binary" else "auto"
                mask = FileMask(path, self.options.max_image_pixels, reading)
                return MapFile(name, Instance(0, mask, str(name)), written=written)
            if (background or 0) > pixels.white:
                reason = f"holds values up to {pixels.white}, and --background is {background}"
                raise InputError(reason, file=path, remedy="give the value of its background")
            values, row = exchanged(pixels.values, background), self.row
            ids = [value for value in places_of(values) if value >= row.ids.start and value != row.void]
            # by VOC's convention
            crowd = VOID if pixels.palette and row.void is None and background != VOID else None
            size, zero = (values.shape[0], values.shape[1]), zero_of(pixels.values, background)
            return MapFile(
                name, None, self._classes_of(name, values, ids), crowd, size, zero=zero, written=written
            )
        except InputError as error:
            return MapFile(name, error=error)

    def look_at_all(
        self, files: Mapping[PurePosixPath, PngKind | Literal["auto"]]
    ) -> dict[PurePosixPath, MapFile]:
        """What there is in many files of that kind; in those that are "binary", the pixels are not looked at."""
        with ThreadPoolExecutor(_READERS) as pool:
            return dict(zip(files, pool.map(self._look, files, files.values()), strict=True))

    def pixels_of(self, name: PurePosixPath) -> MaskPixels:
        """A PNG of the folder; raises InputError where it has changed since it was first read, or cannot be."""
        self.read(name)
        return read_pixels(self.folder / name, self.options.max_image_pixels)

    def entry(self, name: PurePosixPath, stem: PurePosixPath, files: Sequence[MapFile]) -> FolderEntry:
        """An image whose instances are in ``files``."""
        size = next((file.size for file in files if file.size is not None), None)
        usual_name, count = self.row.image_name.format(stem) or None, sum(file.count for file in files)
        return FolderEntry(name, stem, count, size=size, usual_name=usual_name)

    def _classes_of(
        self, name: PurePosixPath, values: NDArray[Any], ids: Sequence[int]
    ) -> dict[int, int | None]:
        """The class of each id: what it says itself, or the most frequent of its pixels in a map of classes."""
        path, step = self._classes / name.relative_to(self._inside), self.row.ids_of_a_class
        if not self.row.class_folder or path == self.folder / name or not path.is_file():
            return {value: value // step if step else None for value in ids}
        if self.folder in path.parents:
            self.read(PurePosixPath(path.relative_to(self.folder).as_posix()))
        classes = read_pixels(path, self.options.max_image_pixels).values
        if classes.shape != values.shape:
            (height, width), (h, w) = values.shape, classes.shape
            reason = f"is {h}×{w}, the map of its objects is {height}×{width} (height × width)"
            raise InputError(reason, file=path, remedy="give maps that belong together")
        known = (classes[(values == value) & (classes != 0) & (classes != self.row.void)] for value in ids)
        found = (int(np.bincount(each).argmax()) if len(each) else None for each in known)
        return dict(zip(ids, found, strict=True))

    def say_what_is_replaced(self) -> None:
        """Notes which masks lose pixels in their own kind, and names those whose place as PNGs is taken."""
        taken = {str(name).lower() for name in self.files}
        replaced = []
        for group in self.groups:
            for place, file in enumerate(group):
                if file.written is None:
                    continue
                key = str(file.written).lower()
                if file.written != file.name and key in taken:
                    reason = f"its kind loses pixels, and a mask called {file.written.name} is there"
                    error = InputError(reason, file=self.folder / file.name, remedy="rename one of them")
                    group[place] = MapFile(file.name, error=error)
                    continue
                taken.add(key)
                replaced.append(file.name)
        if replaced:
            many = f"{counted(len(replaced), 'mask')} (first: {replaced[0]})"
            self.notes.append(
                f"JPEGs cut at the middle, and cut-outs, written as grey PNGs where refined: {many}."
            )

    def _update_classes(self, file: MapFile, before: NDArray[Any], after: NDArray[Any], draft: Path) -> None:
        """Lets the map of classes follow, if it is part of the folder."""
        name = PurePosixPath(self.row.class_folder) / file.name.relative_to(self._inside)
        if name == file.name or name not in self._digests or not self.row.class_folder:
            return
        pixels = self.pixels_of(name)
        classes = stretched(pixels.values, (before.shape[0], before.shape[1]))
        of_id = np.zeros(int(after.max()) + 1, classes.dtype)
        for value, category_id in file.ids.items():
            of_id[value : value + 1] = category_id or 0
        pixels.write(np.where(after == before, classes, of_id[after]), draft / name)


class LabelMapSource(MaskFiles):
    """The maps of a folder, one an image, with the maps of classes beside them."""

    def __init__(self, row: LabelMapFormat, folder: Path, options: OpenOptions) -> None:
        """Reads every map once, to know its ids.

        Raises:
            InputError: no such folder, no map in it, or none that can be used.
        """
        if options.class_names is not None and row.class_folder:
            row = replace(row, labels=read_class_names(options.class_names))
        super().__init__(row, folder, options)
        names = [
            name
            for name in self.files
            if name.suffix.lower() == ".png"
            and name.stem.endswith(row.ending)
            and name.is_relative_to(self._inside)
        ]
        if not names:
            raise InputError("holds no maps", file=folder, remedy="give the folder of the PNG maps")
        self.groups = [[file] for file in self.look_at_all(dict.fromkeys(names, "label-map")).values()]
        stems = [row.stem(name.relative_to(self._inside).with_suffix("")) for name in names]
        self.entries = tuple(
            replace(self.entry(file.name, stem, [file]), error=file.error)
            for (file,), stem in zip(self.groups, stems, strict=True)
        )
        known = any(each is not None for (file,) in self.groups for each in file.ids.values())
        if row.class_folder and known and folder not in self._classes.parents:
            place = f"Classes are those of {self._classes}, which is not part of the output"
            self.notes.append(f"{place}; to have its maps follow, give {folder.parent}.")
        if options.images is not None:
            maps = [folder / name for name in names]
            self.find_images(ImageTree(options.images, without=maps, key=row.image_key))


def _read_map(path: Path, max_pixels: int, background: int | None) -> MaskPixels:
    """A map with its background as 0."""
    pixels = read_pixels(path, max_pixels)
    return replace(pixels, values=exchanged(pixels.values, background))


def write_label_maps(
    row: LabelMapFormat, output: Path, source: Source, results: Mapping[int, Mask]
) -> Written:
    """Writes a map for each image; overlaps go to the higher score.

    Where all instances have classes, formats that have a map of classes get one, too.
    """
    conversion = Conversion(source, results, row.stem)
    with atomic_folder(output) as draft:
        for stem, size, image in conversion:
            values, found = new_map(row, conversion, image, size, source.categories)
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


def new_map(
    row: LabelMapFormat,
    conversion: Conversion,
    image: ImageRecord,
    size: tuple[int, int],
    categories: Mapping[int, str],
) -> tuple[NDArray[Any], dict[int, Instance]]:
    """[H, W] ids, and the instances that have pixels by id."""
    base = np.zeros(size, np.uint8 if row.palette else np.uint16)
    pools: dict[range, list[Instance]] = {}
    for instance in image.instances:
        label = label_of(row.labels, instance.category_id, categories) if row.labels else row.void
        if row.labels and label is None:
            reason = f"its category {instance.category_id} is none of the classes of {row.name}"
            conversion.leave_out(image, instance, reason, "write another format")
        elif label is not None and (instance.is_crowd or (row.labels and label not in row.things)):
            window = instance.mask.decode().hard()
            window.of(base)[window.values] = label
        else:
            step = row.ids_of_a_class
            pool = range(label * step, (label + 1) * step) if step and label is not None else row.ids
            pools.setdefault(pool, []).append(instance)
    ids: dict[int, int] = {}
    for pool, members in pools.items():
        ranked = by_importance(members)
        for instance in ranked[len(pool) :]:
            reason = f"is one of {len(ranked)} instances, and a map has ids for {len(pool)}"
            reason += " of a class" if row.ids_of_a_class else ""
            conversion.leave_out(image, instance, reason, "write another format")
        held = {each.index for each in ranked[: len(pool)]}
        ids |= new_ids([each for each in members if each.index in held], pool)
    by_id = {ids[each.index]: each for each in by_importance(image.instances) if each.index in ids}
    merged = merge(base, {value: each.mask.decode().hard() for value, each in by_id.items()})
    conversion.overlap(image, merged.overlap_pixels, [by_id[value] for value in merged.covered])
    return merged.values, {value: each for value, each in by_id.items() if value not in merged.covered}
