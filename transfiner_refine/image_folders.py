"""The folder of the images, or the one image: finding them by name, by COCO image id, or by the stem of their masks."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import takewhile
from pathlib import Path, PurePosixPath, PureWindowsPath
from urllib.parse import parse_qs, unquote, urlsplit

from transfiner_refine.errors import InputError
from transfiner_refine.images import SUFFIXES
from transfiner_refine.remote import RemotePath

_LONGEST_NAME = 100  # characters of a name that a message quotes
_ADDED = re.compile(r"^coco_[a-z]+\d{4}_|(?:_gtfine|_gtcoarse|_leftimg8bit)+$")


def files_in(folder: Path, *, remedy: str) -> list[PurePosixPath]:
    """All that lies below a folder and is no folder, as paths relative to it, in the order of their names.

    Links that lead nowhere, pipes and sockets are listed too: whoever reads them says what is wrong. Links to
    folders are followed, each folder once, so that a circle of links ends. Names that begin with a dot are left
    out, as the drafts of interrupted runs and of editors are. Of a file, its name alone is listed. Raises
    InputError where a folder cannot be listed.
    """
    if folder.is_file():
        return [PurePosixPath(folder.name)]
    if isinstance(folder, RemotePath):
        return folder.files()
    found, seen = list[PurePosixPath](), {os.path.realpath(folder)}

    def refuse(error: OSError) -> None:  # what cannot be listed must not be passed over as if it held nothing
        reason = f"cannot be listed as a folder ({error.strerror})"
        raise InputError(reason, file=error.filename or folder, remedy=remedy) from error

    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        inside = PurePosixPath(Path(place).relative_to(folder).as_posix())
        visible = sorted((name for name in folders if not name.startswith(".")), reverse=True)
        fresh = {os.path.realpath(Path(place, name)): name for name in visible}
        folders[:] = sorted(name for real, name in fresh.items() if real not in seen)
        seen.update(fresh)
        found += [inside / name for name in files if not name.startswith(".")]
    return sorted(found, key=str)


class ImageFolder:
    """The images of ``--images``, found by name or by COCO image id; never outside the folder.

    "Outside" is what a *file* could ask for: ``../``, absolute paths, drives. Symbolic links inside the folder
    are followed wherever they lead: data sets are often assembled of links. A name that is not there as it is
    spelt may differ in its ending, in case, and in what COCO and Cityscapes add to a name.
    """

    def __init__(self, root: Path) -> None:
        """Lists the folder once; raises InputError where that cannot be done. ``root`` may be a single image, too."""
        self.only = root if root.is_file() else None
        self.root = root.parent if self.only else root
        try:
            names = [root.name] if self.only else sorted(path.name for path in root.iterdir())
        except OSError as error:
            reason = f"cannot be listed as a folder ({error.strerror})"
            raise InputError(
                reason, file=root, remedy="give the folder of the images, or one image"
            ) from error
        self._names = frozenset(names)
        images = [name for name in map(PurePosixPath, names) if name.suffix.lower() in SUFFIXES]
        images.sort(key=lambda name: SUFFIXES.index(name.suffix.lower()))
        preferred = {name.stem: name.name for name in reversed(images)}
        self._by_number: dict[int, list[str]] = {}
        for stem in sorted(preferred):
            if (number := alike(stem)).isascii() and number.isdigit() and len(number) < 20:
                self._by_number.setdefault(int(number), []).append(preferred[stem])

    def named(self, *file_names: str) -> Path:
        """The first image that a file calls by one of these names, at that place in the folder or directly in it.

        Raises InputError where there is none; the text lists the names that were tried.
        """
        paths = list(dict.fromkeys(path for name in file_names for path in paths_of(name)))
        for name in dict.fromkeys(name for path in paths for name in (str(path), path.name)):
            if name in self._names or ("/" in name and not self.only and _is_file(self.root / name)):
                return self.root / name
        return self._alike(paths, f"image {repr(file_names[0])[:_LONGEST_NAME]}", "check --images")

    def with_id(self, image_id: int | str) -> Path:
        """The image of a COCO image id: ``000000000139.jpg``, ``139.jpg``, ``139.png``, any zero padding.

        A text id may be a file name or a stem. Raises InputError where there is none, or several.
        """
        is_text = isinstance(image_id, str)
        stems = [str(image_id)] if is_text else list(dict.fromkeys([f"{image_id:012d}", str(image_id)]))
        tried = [*(stems if is_text else []), *(stem + suffix for stem in stems for suffix in SUFFIXES)]
        found = [name for name in tried if name in self._names][:1]
        if not found and isinstance(image_id, int):
            found = self._by_number.get(image_id, [])
        if len(found) == 1:
            return self.root / found[0]
        remedy = "say which image it is with --image-info annotations.json"
        if found:
            reason = f"image id {image_id} could be {' or '.join(found[:3])}"
            raise InputError(reason, file=self.root, remedy=remedy)
        return self._alike(
            [PurePosixPath(stem) for stem in stems],
            f"the file of image id {repr(image_id)[:_LONGEST_NAME]}",
            remedy,
        )

    def _alike(self, paths: Sequence[PurePosixPath], what: str, remedy: str) -> Path:
        """The image whose name is much like one of these, in a subfolder too if that does not contradict."""
        for path in paths:
            suffix = path.suffix.lower() if path.suffix.lower() in SUFFIXES else ""
            stem = path.with_suffix("") if suffix else path
            found = self._tree.find(stem, suffix) if stem.name else None
            if found is not None:
                return self.root / found
        listed = ", ".join(str(path)[:_LONGEST_NAME] for path in paths)
        reason = f"{what} is not there (tried {listed}, in any case and with any ending)"
        raise InputError(reason, file=self.only or self.root, remedy=remedy)

    @cached_property
    def _tree(self) -> ImageTree:
        return ImageTree(self.only or self.root)


def beginnings(stem: str) -> Iterator[str]:
    """A stem, and what of it comes before an underscore, the longest first: ``a_1_x``, ``a_1``, ``a``."""
    while stem:
        yield stem
        stem = stem.rpartition("_")[0]


def alike(stem: str) -> str:
    """What all spellings of an image's stem have in common: Unicode form, case, what COCO and Cityscapes add."""
    stem = unicodedata.normalize("NFC", stem).casefold()
    return _ADDED.sub("", stem) or stem


def paths_of(name: str) -> Iterator[PurePosixPath]:
    """Paths inside a folder that a name, a path of another machine or an address may mean, the most literal first."""
    texts = [name]
    if "%" in name or "?" in name or "://" in name:
        with suppress(ValueError):
            address = urlsplit(name)
            texts += [
                *parse_qs(address.query).get("d", ()),
                unquote(address.path),
            ]  # Label Studio's local files
    for text in texts:
        path = PurePosixPath(text.replace("\\", "/"))
        # on Windows, root / "C:x.jpg" is not below the root
        if path.is_absolute() or ".." in path.parts or PureWindowsPath(text).drive:
            yield PurePosixPath(
                *(part for part in path.parts if part not in ("/", "//", "..") and ":" not in part)
            )
            path = PurePosixPath(path.name)
        yield path


class ImageTree:
    """The images below ``--images``, for formats that keep them in subfolders (a city, a video, a split)."""

    def __init__(
        self, root: Path, *, without: Collection[Path] = (), key: Callable[[str], str] = str
    ) -> None:
        """Lists the folder once; raises InputError where that cannot be done.

        Args:
            root: the folder of the images, or one image.
            without: files in it that are not images to refine (masks beside them).
            key: what of an image's stem must agree with a mask's, such as ``aachen_000000_000019`` of
                ``aachen_000000_000019_leftImg8bit``.
        """
        self.root = root.parent if root.is_file() else root
        self.images: list[PurePosixPath] = []  # relative to the root, in the order of their names
        self._by_key: dict[str, list[PurePosixPath]] = {}
        self._by_spelling: dict[str, list[PurePosixPath]] = {}
        barred = {os.path.realpath(path) for path in without}  # resolve() has no answer for a circle of links
        for name in files_in(root, remedy="give the folder of the images"):
            is_barred = bool(barred) and os.path.realpath(self.root / name) in barred
            if name.suffix.lower() in SUFFIXES and not is_barred:
                self.images.append(name)
                self._by_key.setdefault(key(name.stem), []).append(name)
                self._by_spelling.setdefault(alike(key(name.stem)), []).append(name)

    def find(self, stem: PurePosixPath, suffix: str = "") -> PurePosixPath | None:
        """The image of ``SUBFOLDER/STEM``, relative to the root; None if there is none.

        Either path may have more leading folders than the other (``480p/bear/00000`` finds ``bear/00000.jpg`` and the
        other way round), but what both have must agree. Raises InputError where several images fit equally well.
        """
        common = {image: _common_end(stem, image) for image in self._called(stem.name)}
        fits = [each for each in common if common[each] >= min(len(stem.parts), len(each.parts)) - 1]
        best = max((common[image] for image in fits), default=0)
        found = [image for image in fits if common[image] == best]
        found = [image for image in found if image.parent == stem.parent] or found
        if len({image.parent for image in found}) > 1:
            reason = f"the image of {stem} could be {' or '.join(map(str, found[:3]))}"
            remedy = "give the one folder that has the images of these masks"
            raise InputError(reason, file=self.root, remedy=remedy)
        # in one folder, several kinds of the same image: the one that is most likely the photo
        ranks = {
            image: (image.suffix.lower() != suffix, SUFFIXES.index(image.suffix.lower())) for image in found
        }
        return min(ranks, key=ranks.__getitem__, default=None)

    def has_key(self, key: str) -> bool:
        """Whether any image has that key, in whatever folder."""
        return bool(self._called(key))

    def _called(self, key: str) -> list[PurePosixPath]:
        return self._by_key.get(key) or self._by_spelling.get(alike(key), [])


def _common_end(a: PurePosixPath, b: PurePosixPath) -> int:
    """In how many folders, counted from the files, two paths agree."""
    pairs = zip(a.parts[-2::-1], b.parts[-2::-1], strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # longer than any name may be, or with characters that no name has
        return False
