"""Folder formats: a list of files, the images that belong to them, and writing the folder again."""

from __future__ import annotations

import os
import shutil
from abc import ABC, abstractmethod
from codecs import BOM_UTF8
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import islice
from pathlib import Path, PurePosixPath

from transfiner_refine.errors import InputError
from transfiner_refine.formats.records import (
    ImageRecord,
    Instance,
    OpenOptions,
    RecordFault,
    Written,
    fitted,
)
from transfiner_refine.image_folders import ImageTree, files_in
from transfiner_refine.images import image_sizes
from transfiner_refine.masks import Mask
from transfiner_refine.output import atomic_folder, atomic_output, check_output_file, check_output_folder

_FOLDERS_LOOKED_INTO, _LINES_LOOKED_AT, _BYTES_LOOKED_AT = 16, 5, 1 << 16


def first_files(folder: Path, suffix: str | tuple[str, ...], most: int = 8) -> list[Path]:
    """A few files with that suffix (lower case, with dot) from a folder and its subfolders, for a cheap look at them.

    The folder itself comes first, then the first subfolders, each by name; an unreadable folder has none.
    """
    found: list[Path] = []
    folders = [folder]
    for place in folders:
        try:
            with os.scandir(place) as entries:
                listed = sorted((each for each in entries if each.name[0] != "."), key=lambda each: each.name)
        except OSError:
            continue
        paths = (Path(each.path) for each in listed if each.name.lower().endswith(suffix))
        found += islice(filter(Path.is_file, paths), most - len(found))
        if len(found) == most:
            break
        inside = (Path(each.path) for each in listed if not each.is_file(follow_symlinks=False))
        folders += islice(filter(Path.is_dir, inside), _FOLDERS_LOOKED_INTO - len(folders))
    return found


def read_file(path: Path, remedy: str = "check the path", most: int = -1) -> bytes:
    """The bytes of a plain file, or the first of them; raises InputError where it is none or cannot be read.

    Pipes and devices, which may never end, are not opened.
    """
    try:
        if path.exists() and not path.is_file():
            raise InputError("is no file", file=path, remedy="give a plain file")
        with path.open("rb") as file:
            return file.read(most)
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
        if isinstance(error, FileNotFoundError) and path.is_symlink():
            reason = "is a link that leads nowhere"
        raise InputError(reason, file=path, remedy=remedy) from error


def start_of(path: Path, most: int) -> bytes:
    """The first bytes of a file, for a cheap look; none where it cannot be read."""
    with suppress(InputError):
        return read_file(path, most=most)
    return b""


def first_lines(path: Path) -> list[str]:
    """The first few lines with anything in them, complete ones only; none where the file cannot be read."""
    start = start_of(path, _BYTES_LOOKED_AT)
    lines = start.decode("utf-8-sig", errors="replace").split("\n")
    if len(start) == _BYTES_LOOKED_AT and len(lines) > 1:
        lines.pop()
    return [line.strip() for line in lines if line.strip()][:_LINES_LOOKED_AT]


def write_file(path: Path, data: bytes) -> None:
    """Writes a file, in a folder that need not exist yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


class Folder:
    """The files below a folder: read, noticed where they change in between, and copied."""

    def __init__(
        self,
        folder: Path,
        files: Iterable[PurePosixPath] | None = None,
        *,
        remedy: str = "give the folder of the masks",
    ) -> None:
        """Lists the folder, or takes some of its files; raises InputError where that cannot be done."""
        self.folder = folder
        self._digests: dict[PurePosixPath, bytes] = {}  # of the files that were read
        self.choose(files_in(folder, remedy=remedy) if files is None else files)

    def choose(self, names: Iterable[PurePosixPath]) -> None:
        """Says which files are to be copied; the first choice is all."""
        self.files = sorted(names, key=str)
        # links that lead nowhere, pipes, sockets, files without the right to read them: named, and not copied
        paths = ((name, self.folder / name) for name in self.files)
        self.no_files = {name for name, path in paths if not (path.is_file() and os.access(path, os.R_OK))}

    def read(self, name: PurePosixPath) -> bytes:
        """The bytes of one of the files; raises InputError where it has changed since it was first read."""
        data = read_file(self.folder / name, "check --masks")
        digest = blake2b(data, digest_size=16).digest()
        if self._digests.setdefault(name, digest) != digest:
            reason, remedy = "has changed while it was read", "run again when it is whole"
            raise InputError(reason, file=self.folder / name, remedy=remedy)
        return data

    def text(self, name: PurePosixPath) -> str:
        """The text of one of the files, without a byte order mark; raises InputError as ``read`` does."""
        try:
            return self.read(name).decode("utf-8-sig")
        except UnicodeDecodeError:
            file = self.folder / name
            raise InputError("is no text in UTF-8", file=file, remedy="replace the file") from None

    def lines(self, name: PurePosixPath) -> list[str]:
        """The lines of one of the files, without their endings; raises InputError as ``read`` does."""
        return [line.rstrip("\r") for line in self.text(name).split("\n")]

    def write_text(self, name: PurePosixPath, text: str, draft: Path) -> None:
        """Writes one of the files anew, with the byte order mark that it had."""
        mark = BOM_UTF8 if self.read(name).startswith(BOM_UTF8) else b""
        write_file(draft / name, mark + text.encode())

    def copy_rest(self, draft: Path, without: Collection[PurePosixPath] = ()) -> None:
        """Copies all files that are not in ``draft``; raises InputError where one has changed since it was read."""
        for name in self.files:
            if name in self.no_files or name in without or (draft / name).exists():
                continue
            if name in self._digests:
                write_file(draft / name, self.read(name))
            else:
                (draft / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.folder / name, draft / name)

    def not_copied(self, named: Collection[PurePosixPath]) -> Iterator[RecordFault]:
        """What cannot be copied and is not ``named`` otherwise."""
        for name in sorted(self.no_files.difference(named)):
            error = InputError("is no file that can be copied", file=self.folder / name, remedy="remove it")
            yield RecordFault(error, 0)


@dataclass(frozen=True)
class FolderEntry:
    """One image of a folder format."""

    name: PurePosixPath  # its main file (a map, a list of lines), relative to the folder
    stem: PurePosixPath  # where its image must lie and what it must be called, without ending
    count: int  # number of instances, those at fault included
    image: PurePosixPath | None = None  # relative to ``--images``; None without it, or where there is none
    error: InputError | None = None  # why nothing of it can be used
    size: tuple[int, int] | None = None  # (height, width) that the format states for the image
    usual_name: str | None = None  # what the format calls the image, for sources without images
    record: str | None = None  # how a person finds the image in a file of several


class FolderSource(Folder, ABC):
    """A folder of which some files hold masks; all others are copied when it is written again.

    A reader lists ``entries`` and gives their instances; finding images, counting and writing are here.
    """

    def __init__(
        self, folder: Path, options: OpenOptions, files: Iterable[PurePosixPath] | None = None
    ) -> None:
        """Lists the folder of the masks, or takes some of its files; raises InputError where that cannot be done.

        ``folder`` may be a file, which is then the only one.
        """
        is_file = folder.is_file()
        super().__init__(
            folder.parent if is_file else folder, [PurePosixPath(folder.name)] if is_file else files
        )
        self.path = folder
        self.options, images = options, options.images
        self.image_folder = images.parent if images is not None and images.is_file() else images
        self.entries: tuple[FolderEntry, ...] = ()
        self.categories: Mapping[int, str] = {}
        self.notes: list[str] = []
        self.fit_masks = False  # masks of another size than their image are stretched over it
        self.replaced = set[PurePosixPath]()  # files that are written under another name

    def parse_entries(
        self, names: Iterable[PurePosixPath], parse: Callable[[PurePosixPath], FolderEntry | None]
    ) -> None:
        """Makes the entries of files; one that cannot be parsed becomes an entry at fault."""
        entries: list[FolderEntry | None] = []
        for name in names:
            try:
                entries.append(parse(name))
            except InputError as error:
                entries.append(FolderEntry(name, name, 1, error=error))
        self.entries = tuple(entry for entry in entries if entry is not None)

    @abstractmethod
    def instances_of(
        self, position: int, size: Callable[[], tuple[int, int]]
    ) -> Iterator[Instance | RecordFault]:
        """The instances of entry ``position``, their indexes counted from 0 in the entry.

        ``size`` gives (height, width) of the image; it raises InputError where there is none.
        """

    @abstractmethod
    def write_image(self, position: int, masks: Mapping[int, Mask], draft: Path) -> Written:
        """Writes the files of one entry with refined masks, by their index in the entry, into ``draft``.

        Covered instances are named by their index in the entry too.
        """

    def files_of(self, position: int) -> Collection[PurePosixPath]:
        """The files of an entry that its instances name where they cannot be read."""
        return (self.entries[position].name,)

    @property
    def num_images(self) -> int:
        return sum(entry.count > 0 for entry in self.entries)

    @property
    def num_instances(self) -> int:
        return sum(entry.count for entry in self.entries)

    def __iter__(self) -> Iterator[ImageRecord | RecordFault]:
        first, named = 0, set[PurePosixPath]()
        for position, entry in enumerate(self.entries):
            if entry.error is not None:
                named.add(entry.name)
                yield RecordFault(entry.error, entry.count, whole_image=True)
            else:
                named.update(self.files_of(position))
                yield from self._record(position, entry, first)
            first += entry.count
        yield from self.not_copied(named)

    def write(
        self,
        output: Path,
        results: Mapping[int, Mask],
        *,
        keep_boxes: bool = False,  # noqa: ARG002  none of these formats states boxes beside masks
        overwrite: bool = False,
    ) -> Written:
        inputs = [self.path, *([] if self.options.images is None else [self.options.images])]
        is_file = self.path.is_file()
        (check_output_file if is_file else check_output_folder)(output, inputs, overwrite=overwrite)
        overlap_pixels, covered, first = 0, list[int](), 0
        self.replaced.clear()
        with atomic_output(output, overwrite=True) if is_file else atomic_folder(output) as place:
            draft = place.parent if is_file else place
            for position, entry in enumerate(self.entries):
                indexes = [index for index in range(first, first + entry.count) if index in results]
                if masks := {index - first: results[index] for index in indexes}:
                    written = self.write_image(position, masks, draft)
                    overlap_pixels += written.overlap_pixels
                    covered += [first + number for number in written.covered]
                first += entry.count
            self.copy_rest(draft, self.replaced)
            if is_file:
                (draft / self.files[0]).rename(place)
        return Written(overlap_pixels, tuple(covered))

    def image_of(self, entry: FolderEntry, tree: ImageTree) -> PurePosixPath | None:
        """The image of an entry, relative to the root of the tree; raises InputError where several fit."""
        return tree.find(entry.stem)

    def find_images(self, tree: ImageTree | None) -> None:
        """Gives each entry its image, or the error that there is none; raises InputError where none can be used."""
        if tree is None:
            return
        found = [
            entry if entry.error is not None else self._with_image(entry, tree) for entry in self.entries
        ]
        owners: dict[PurePosixPath | None, list[str]] = {}
        for entry in found:
            owners.setdefault(entry.image, []).append(entry.record or entry.name.as_posix())
        for position, entry in enumerate(found):
            if entry.image is not None and len(names := owners[entry.image]) > 1:
                reason = f"{' and '.join(names[:3])} would belong to the same image {entry.image}"
                remedy = "give a folder of images with the same subfolders as the masks"
                if all(PurePosixPath(name).parent.name.isdecimal() for name in names):
                    remedy += ", or --from sam2-video where these are folders of objects"
                error = InputError(reason, file=tree.root, remedy=remedy)
                found[position] = replace(entry, error=error, image=None)
        self.entries = tuple(found)
        self.say_what_has_no_masks(tree, owners)
        errors = [entry.error for entry in found if entry.error is not None]
        if errors and len(errors) == len(found):
            first = errors[0]
            none = f"none of the {len(errors)} images can be used; the first: " if len(errors) > 1 else ""
            raise InputError(none + first.reason, file=first.file, record=first.record, remedy=first.remedy)

    def say_what_has_no_masks(self, tree: ImageTree | None, found: Collection[PurePosixPath | None]) -> None:
        """Notes which images have no masks, and which share a stem with others."""
        if tree is None:
            return
        bare = [image for image in tree.images if image not in found]
        twins = [image for image in bare if tree.find(image.with_suffix("")) in found]
        if twins:
            what = f"{twins[0]} is left aside for {tree.find(twins[0].with_suffix(''))}"
            self.notes.append(
                f"Images of one name and several kinds, of which one is taken: {len(twins)} ({what})."
            )
        if len(bare) > len(twins):
            first = next(image for image in bare if image not in twins)
            self.notes.append(
                f"Images without masks: {len(bare) - len(twins)} of {len(tree.images)} (first: {first})."
            )

    def _record(self, position: int, entry: FolderEntry, first: int) -> Iterator[ImageRecord | RecordFault]:
        path = None if self.image_folder is None or entry.image is None else self.image_folder / entry.image

        def size() -> tuple[int, int]:
            if path is None:
                reason, remedy = "does not state its image's size", "give the images with --images"
                raise InputError(reason, file=self.folder / entry.name, remedy=remedy)
            return image_sizes(path, self.options.orientation)[0]

        instances, named = [], 0
        try:
            for item in self.instances_of(position, size):
                if isinstance(item, RecordFault):
                    named += item.instances
                    yield item
                else:
                    mask = item.mask
                    with suppress(InputError):  # named when it is decoded
                        mask = (
                            fitted(mask, path, self.options.orientation)
                            if self.fit_masks and path is not None
                            else mask
                        )
                    instances.append(replace(item, index=first + item.index, mask=mask))
        except InputError as error:  # the image cannot be read: nothing of the entry can be used
            yield RecordFault(error, entry.count - named, whole_image=True)
            return
        image = None if entry.image is None else entry.image.as_posix()
        yield ImageRecord(
            path,
            image or entry.stem.as_posix(),
            tuple(instances),
            entry.size,
            image_id=entry.stem.as_posix(),
            file_name=image or entry.usual_name,
            orientation=self.options.orientation,
        )

    def _with_image(self, entry: FolderEntry, tree: ImageTree) -> FolderEntry:
        try:
            image = self.image_of(entry, tree)
        except InputError as error:
            return replace(entry, error=error)
        reason = f"there is no image of that name in {tree.root}"
        missing = InputError(reason, record=entry.record or entry.name.as_posix(), remedy="check --images")
        return replace(entry, image=image, error=None if image else missing)
