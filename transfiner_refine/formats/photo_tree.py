"""Photos in a folder and its subfolders, found by where a mask lies and what it is called."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path, PurePosixPath

from transfiner_refine.errors import InputError
from transfiner_refine.formats.folder_files import files_in
from transfiner_refine.formats.images import SUFFIXES

__all__ = ["PhotoTree"]


class PhotoTree:
    """The photos below ``--images``, for formats that keep them in subfolders (a city, a video, a split)."""

    def __init__(
        self,
        root: Path,
        *,
        without: Collection[Path] = (),
        key: Callable[[str], str] = str,
    ) -> None:
        """Lists the folder once.

        Args:
            root: the folder of the photos.
            without: files in it that are no photos.
            key: what of a photo's stem must agree with a mask's, such as ``aachen_000000_000019`` of
                ``aachen_000000_000019_leftImg8bit``.

        Raises:
            InputError: there is no such folder, or it cannot be listed.
        """
        self.root = root
        self._by_key: dict[str, list[PurePosixPath]] = {}
        barred = {path.resolve() for path in without}
        for name in files_in(root, remedy="give the folder of the photos"):
            if name.suffix.lower() in SUFFIXES and (not barred or (root / name).resolve() not in barred):
                self._by_key.setdefault(key(name.stem), []).append(name)

    def find(self, stem: PurePosixPath) -> PurePosixPath | None:
        """The photo of ``SUBFOLDER/STEM``, relative to the root; None if there is none.

        Either path may have more leading folders than the other (``480p/bear/00000`` finds
        ``bear/00000.jpg`` and the other way round), but what both have must agree.

        Raises:
            InputError: several photos fit equally well; the text names them.
        """
        best, found = -1, list[PurePosixPath]()
        for photo in self._by_key.get(stem.name, ()):
            common = _common_end(stem.parts[:-1], photo.parts[:-1])
            if common < min(len(stem.parts), len(photo.parts)) - 1:
                continue
            if common > best:
                best, found = common, []
            if common == best:
                found.append(photo)
        exact = [photo for photo in found if photo.parent == stem.parent] or found
        folders = {photo.parent for photo in exact}
        if len(folders) > 1:
            raise InputError(
                f"the photo of {stem} could be {' or '.join(map(str, exact[:3]))}",
                file=self.root,
                remedy="give the one folder that has the photos of these masks",
            )
        # in one folder, several kinds of the same photo: the one that is most likely the photo
        return min(exact, key=lambda photo: SUFFIXES.index(photo.suffix.lower()), default=None)

    def has_key(self, key: str) -> bool:
        """Whether any photo has that key, in whatever folder."""
        return key in self._by_key


def _common_end(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    """Number of parts in which the ends of two paths agree."""
    count = 0
    for left, right in zip(reversed(a), reversed(b), strict=False):
        if left != right:
            break
        count += 1
    return count
