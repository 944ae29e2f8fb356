"""Files of annotation tools: shapes that somebody drew, read as masks and edited in place.

A tool keeps one file for each image, in a folder, or one file for all of them. What sets tools apart is a ``Tool``: how
a file is read, which text its shapes get where masks were refined, and what a new file looks like. Finding images,
numbering labels, copying and writing are here.

Labels are numbered by ``--class-names``, first line = 0. Those that are not among them, or all of them where there are
none, are numbered on in the order of the alphabet, from 1 on at least.
"""

from __future__ import annotations

import json
import re
import sys
from abc import ABC, abstractmethod
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial, reduce
from operator import getitem
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeAlias

from transfiner_refine.errors import InputError, short
from transfiner_refine.formats.areas import Area, AreasMask
from transfiner_refine.formats.class_names import read_class_names
from transfiner_refine.formats.folders import FolderEntry, FolderSource, write_file
from transfiner_refine.formats.json_stream import Ambiguous, edited, parse, parts
from transfiner_refine.formats.records import Format, Instance, OpenOptions, RecordFault, Source, Written
from transfiner_refine.formats.writing import Conversion
from transfiner_refine.image_folders import ImageFolder, ImageTree, paths_of
from transfiner_refine.images import SUFFIXES
from transfiner_refine.masks import Mask, MaskWindow
from transfiner_refine.output import atomic_binary_file, atomic_folder, check_output_file

NO_CLASS = "object"
_LONGEST_NAME = 100  # characters of an image's name that a message quotes
_UPLOAD = re.compile(r"^[0-9a-f]{8}-")  # what Label Studio writes before the names of uploaded files
Place: TypeAlias = tuple[str | int, ...]
"""Where a value is in a JSON document: keys and positions from its root."""
Change: TypeAlias = Mapping[str, Any] | str
"""Members of an object that get other values, or the text of another value."""


class Drawn(NamedTuple):
    """One instance of a file."""

    record: str  # how a person finds it: "shape 3 (cup)"
    places: list[Any]  # of its shapes; the first stands for the instance
    areas: tuple[Area, ...] | InputError
    label: str | None = None  # its class
    score: float | None = None
    is_crowd: bool = False


class Picture(NamedTuple):
    """What a file says of one image."""

    name: str  # of the image, a path or an address
    size: tuple[int, int] | None  # (height, width)
    drawn: list[Drawn]
    error: InputError | None = None  # why nothing of it can be used; then it has one instance


class NewInstance(NamedTuple):
    """One instance for a new file; its mask is hard and not empty."""

    mask: MaskWindow
    label: str
    score: float | None
    is_crowd: bool


class Tool(ABC):
    """One annotation tool's files."""

    name: str
    ending = ".json"
    one_file = False  # for all images
    holds_crowds = True

    @abstractmethod
    def recognise(self, path: Path) -> bool:
        """Whether a file, or a folder, looks like the tool's; never raises."""

    @abstractmethod
    def pictures(self, text: str) -> list[Picture]:
        """The images of a file; raises InputError where it is not the tool's."""

    @abstractmethod
    def rewritten(self, text: str, refined: Sequence[tuple[Drawn, MaskWindow]], tolerance: float) -> str:
        """The text of a file with other masks."""

    @abstractmethod
    def new_image(
        self, name: str, size: tuple[int, int], found: Sequence[NewInstance], tolerance: float, /
    ) -> Any:
        """What a new file says of an image."""

    def new_text(self, images: Sequence[Any], _labels: Sequence[str], /) -> str:
        """A new file; of tools with a file for each image, with one."""
        if self.one_file:
            return json.dumps(list(images), ensure_ascii=False)
        return json.dumps(images[0], ensure_ascii=False, indent=2)

    def check_text(self, text: str) -> None:  # noqa: B027  most hold any
        """Raises InputError where no file can hold a label or a name."""

    def file_name(self, stem: PurePosixPath, _image: PurePosixPath, /) -> str:
        """What the file of an image is called, by its safe stem."""
        return f"{stem}{self.ending}"

    def image_name(self, name: PurePosixPath) -> PurePosixPath:
        """Where the image of one of a folder's files is, as far as its own name tells."""
        return name

    def files(self, names: Iterable[PurePosixPath]) -> list[PurePosixPath]:
        """Those of a folder's files that hold shapes."""
        return [name for name in names if name.suffix.lower() == self.ending]


class JsonTool(Tool):
    """A tool whose files are JSON."""

    others_follow = (
        False  # the places of an instance say the same; else the first takes what it has, and others go
    )

    @abstractmethod
    def read(self, document: Any) -> list[Picture]:
        """As ``pictures``, of a parsed document."""

    @abstractmethod
    def shapes(self, mask: MaskWindow, old: Any, tolerance: float, group: int, /) -> Sequence[Change]:
        """What becomes of the value at an instance's place: for each new shape, how it differs from the old one.

        ``group`` is a number that no group of the file has.
        """

    def first_group(self, _document: Any, /) -> int:
        """The first number that no group of a file has."""
        return 1

    def pictures(self, text: str) -> list[Picture]:
        return self.read(plain(parse(text)))

    def rewritten(self, text: str, refined: Sequence[tuple[Drawn, MaskWindow]], tolerance: float) -> str:
        document, changes = parse(text), dict[Place, Sequence[Change] | None]()
        for group, (drawn, mask) in enumerate(refined, self.first_group(document)):
            first, *others = drawn.places
            old = reduce(getitem, first, document)
            changes[first] = self.shapes(mask, old, tolerance, group) if mask.area else [{}]
            changes |= dict.fromkeys(others, changes[first] if self.others_follow else None)
        return edited(text, _edits(text, 0, changes))


class AnnotationSource(FolderSource):
    """The files of a tool: those of a folder and its subfolders, or one."""

    def __init__(self, tool: Tool, path: Path, options: OpenOptions) -> None:
        one = [PurePosixPath(path.name)] if tool.one_file else None
        super().__init__(path.parent if one else path, options, one)
        self._tool = tool
        files = one or tool.files(self.files)
        if not files:
            reason = f"holds no files of {tool.name}"
            raise InputError(reason, file=path, remedy=f"give the folder of its *{tool.ending} files")
        self._tree = None if options.images is None else ImageTree(options.images)
        self._images = None if options.images is None or not one else ImageFolder(options.images)
        entries, self._drawn = list[FolderEntry](), list[list[Drawn]]()
        for name in files:
            try:
                pictures = tool.pictures(self.text(name))
            except InputError as error:
                error = error.at(self.folder / name)
                if one:
                    raise error from None
                pictures = []
                entries.append(FolderEntry(name, name, 1, error=error))
                self._drawn.append([])
            entries += [self._entry(name, picture) for picture in pictures]
            self._drawn += [picture.drawn for picture in pictures]
        self.entries = tuple(entries)
        names = {} if options.class_names is None else read_class_names(options.class_names)
        labels = {each.label for drawn in self._drawn for each in drawn if each.label is not None}
        names.update(enumerate(sorted(labels - {*names.values()}), max([0, *names]) + 1))
        self._ids = {label: number for number, label in reversed(names.items())}
        self.categories = names
        self.find_images(self._tree)

    def instances_of(
        self, position: int, size: Callable[[], tuple[int, int]]
    ) -> Iterator[Instance | RecordFault]:
        entry, file = self.entries[position], self.folder / self.entries[position].name
        for index, drawn in enumerate(self._drawn[position]):
            record = f"{entry.record}, {drawn.record}" if entry.record else drawn.record
            if isinstance(drawn.areas, InputError):
                yield RecordFault(drawn.areas.at(file, record))
                continue
            mask = AreasMask(drawn.areas, file, record, entry.size or size())
            label = record if entry.record else f"{entry.name} {record}"
            category_id = None if drawn.label is None else self._ids[drawn.label]
            is_crowd = drawn.is_crowd and not self.options.refine_crowds
            yield Instance(index, mask, label, category_id, drawn.score, is_crowd)

    def write_image(self, position: int, masks: Mapping[int, Mask], draft: Path) -> Written:
        name = self.entries[position].name
        write_file(draft / name, self._rewritten(name, [(position, masks)]))
        return Written()

    def write(
        self,
        output: Path,
        results: Mapping[int, Mask],
        *,
        keep_boxes: bool = False,
        overwrite: bool = False,
    ) -> Written:
        if not self._tool.one_file:
            return super().write(output, results, keep_boxes=keep_boxes, overwrite=overwrite)
        (name,) = self.files
        inputs = [self.folder / name, *([] if self.options.images is None else [self.options.images])]
        check_output_file(output, inputs, overwrite=overwrite)
        first, refined = 0, list[tuple[int, dict[int, Mask]]]()
        for position, entry in enumerate(self.entries):
            refined.append(
                (position, {at: results[first + at] for at in range(entry.count) if first + at in results})
            )
            first += entry.count
        with atomic_binary_file(output) as file:
            file.write(self._rewritten(name, refined))
        return Written()

    def _rewritten(self, name: PurePosixPath, refined: Iterable[tuple[int, Mapping[int, Mask]]]) -> bytes:
        """A file with other masks, by position of the image and index in it; with the byte order mark that it had."""
        found = [
            (self._drawn[at][index], mask.decode()) for at, masks in refined for index, mask in masks.items()
        ]
        data = self.read(name)
        if not found:
            return data
        text = self._tool.rewritten(self.text(name), found, self.options.polygon_tolerance)
        return (BOM_UTF8 if data.startswith(BOM_UTF8) else b"") + text.encode()

    def image_of(self, entry: FolderEntry, tree: ImageTree) -> PurePosixPath | None:
        if self._images is None or entry.usual_name is None:
            return tree.find(entry.stem)
        names = [entry.usual_name, _UPLOAD.sub("", PurePosixPath(entry.usual_name).name)]
        found = self._images.named(*names)
        return PurePosixPath(found.relative_to(tree.root).as_posix())

    def _entry(self, name: PurePosixPath, picture: Picture) -> FolderEntry:
        if picture.error is not None:
            error = picture.error.at(self.folder / name, picture.name)
            return FolderEntry(name, name, 1, error=error)
        drawn, size, tried = len(picture.drawn), picture.size, list(paths_of(picture.name))
        are_images = (path for path in tried if path.suffix.lower() in SUFFIXES and ":" not in str(path))
        called = next(are_images, tried[-1])
        if self._tool.one_file:
            record = f"image {picture.name[:_LONGEST_NAME]}"
            stem = called.with_suffix("") if called.suffix.lower() in SUFFIXES else called
            return FolderEntry(name, stem, drawn, size=size, usual_name=called.as_posix(), record=record)
        # by the name in the file, whose folders are those of another machine; else by the file's own
        is_image = bool(called.name) and (self._tree is None or self._tree.has_key(called.stem))
        own = self._tool.image_name(name)
        stem = (name.with_name(called.name) if is_image else own).with_suffix("")
        usual_name = name.with_name(called.name) if called.name else own if own != name else None
        return FolderEntry(
            name, stem, drawn, size=size, usual_name=None if usual_name is None else usual_name.as_posix()
        )


def format_of(tool: Tool) -> Format:
    """The format of a tool's files."""
    return Format(
        tool.name,
        not tool.one_file,
        tool.recognise,
        partial(AnnotationSource, tool),
        partial(_write, tool),
        check=partial(_check, tool),
        suffixes=(tool.ending,),
    )


def _check(tool: Tool, source: Source) -> None:
    for number, name in source.categories.items():
        try:
            tool.check_text(name)
        except InputError as error:
            raise error.at(record=f"category {number}") from None


def _named(tool: Tool, stem: PurePosixPath) -> PurePosixPath:
    tool.check_text(str(stem))
    return stem


def _write(tool: Tool, output: Path, source: Source, results: Mapping[int, Mask]) -> Written:
    """Writes a file an image, or one."""
    conversion = Conversion(source, results, partial(_named, tool), "" if tool.one_file else tool.ending)
    images, labels = [], {*source.categories.values()}
    with atomic_binary_file(output) if tool.one_file else atomic_folder(output) as draft:
        for stem, size, image in conversion:
            found = []
            for instance in image.instances:
                mask = instance.mask.decode().hard()
                if mask.area == 0 or (instance.is_crowd and not tool.holds_crowds):
                    what = "its mask is empty" if mask.area == 0 else "it is a crowd"
                    remedy = f"write another format, for {tool.name} has no such shape"
                    conversion.leave_out(image, instance, what, remedy)
                    continue
                label = _label(instance.category_id, source.categories)
                found.append(NewInstance(mask, label, instance.score, instance.is_crowd))
            labels |= {each.label for each in found}
            name = image.file_name or f"{stem}.jpg"
            images.append(tool.new_image(name, size, found, conversion.tolerance))
            if isinstance(draft, Path):
                write_file(
                    draft / tool.file_name(stem, PurePosixPath(name)),
                    _encoded(tool.new_text([images.pop()], [])),
                )
        if not isinstance(draft, Path):
            draft.write(_encoded(tool.new_text(images, sorted(labels))))
    return conversion.written()


def _encoded(text: str) -> bytes:
    """In UTF-8; half of a pair of characters, which that cannot hold, becomes its escape in JSON."""
    return text.encode(errors="backslashreplace")


def _label(number: int | None, categories: Mapping[int, str]) -> str:
    """The name of a category; one without a name gets one that no other has."""
    if number is not None and number in categories:
        return categories[number]
    label = NO_CLASS if number is None else str(number)
    while label in categories.values():
        label = f"{label} (no name)"
    return label


def areas_of(read: Callable[..., Area], *shapes: Any) -> tuple[Area, ...] | InputError:
    """The areas of shapes, or what is wrong with the first that is none."""
    try:
        return tuple(read(shape) for shape in shapes)
    except InputError as error:
        return error


def score_of(value: object) -> float | None:
    """A finite number as a score; None for all else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) <= sys.float_info.max else None


def plain(value: Any, kind: type = object) -> Any:
    """The value, if it is of a kind and no object that has a key twice; else raises InputError."""
    if isinstance(value, Ambiguous):
        raise value.error
    if not isinstance(value, kind):
        raise InputError(f"has {short(value)} where it needs {'a list' if kind is list else 'an object'}")
    return value


def _edits(
    text: str, start: int, changes: Mapping[Place, Sequence[Change] | None], depth: int = 0
) -> Iterator[tuple[int, int, str]]:
    """Edits that make the changes in the list or object at ``start``; None takes an element out with its comma."""
    inside: dict[str | int, dict[Place, Sequence[Change] | None]] = {}
    for place, new in changes.items():
        inside.setdefault(place[depth], {})[place] = new
    last = gap = start + 1
    for key, _, begin, end in parts(text, start):
        gap = (
            begin if gap == start + 1 else gap
        )  # the white space before the first element parts new ones, too
        for place, new in inside.get(key, {}).items():
            if len(place) > depth + 1:
                yield from _edits(text, begin, inside[key], depth + 1)
                break
            if new is None:
                yield last, end, ""
            else:
                made = [each if isinstance(each, str) else _with(text[begin:end], each) for each in new]
                yield begin, end, ("," + text[start + 1 : gap]).join(made)
        last = end


def _with(text: str, changes: Mapping[str, Any]) -> str:
    """The text of an object with some values replaced, or added after the others."""
    missing, edits, end = dict(changes), [], 0
    for key, _, start, end in parts(text):
        if key in changes:
            edits.append((start, end, json.dumps(missing.pop(key))))
    added = "".join(f", {json.dumps(key)}: {json.dumps(value)}" for key, value in missing.items())
    return edited(text, [*edits, (end, end, added)])
