"""Writing what any source holds in another format: names, masks and sizes, and what gets lost on the way."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from transfiner_refine.errors import InputError
from transfiner_refine.formats.records import ImageRecord, Instance, RecordFault, Source, Written
from transfiner_refine.images import SUFFIXES, image_sizes
from transfiner_refine.masks import Mask

_NO_LETTERS = ("Cc", "Cs")  # control characters, and what stands for bytes that are no text
_LONGEST_NAME = 200  # bytes of one part of a path; file systems end at 255, and formats add their endings


class Conversion:
    """Walks over a source for a writer, and keeps account of what does not arrive."""

    def __init__(
        self,
        source: Source,
        results: Mapping[int, Mask],
        named: Callable[[PurePosixPath], PurePosixPath] = PurePosixPath,
        ending: str = "",
    ) -> None:
        """Takes a source, its refined masks by ``Instance.index``, and what the format makes of an image's stem.

        Of two images with one name the second is refused; also where the file of one, its name with ``ending``, is
        a folder of the other.
        """
        self._source, self._results, self._named, self._ending = source, results, named, ending
        self.tolerance = source.options.polygon_tolerance  # pixels
        self._faults: list[RecordFault] = []
        self._overlap_pixels = 0

    def __iter__(self) -> Iterator[tuple[PurePosixPath, tuple[int, int], ImageRecord]]:
        """The images that can be written; all else is kept as a fault.

        Yields:
            the image's name in the new format: a relative path without ending, safe to write at;
            (height, width) that all its masks have;
            its record, with the sound instances only. Their masks are decoded ``MaskWindow``s, the refined ones
            where there are any: bool in the tightest window, or float32 in [0, 1] where the source is soft and
            nothing was refined.
        """
        files, folders = set[PurePosixPath](), set[PurePosixPath]()
        for item in self._source:
            if isinstance(item, RecordFault):
                self._faults.append(item)
                continue
            instances = len(item.instances)
            try:
                stem = self._named(stem_of(item))
                file = PurePosixPath(f"{stem}{self._ending}")
                above = file.parents if self._ending else ()  # folders that it would lie in
                if file in files or file in folders or not files.isdisjoint(above):
                    reason = f"is called {stem} like another image"
                    if file not in files:
                        reason = f"its {file} and that of another image would be file and folder of one name"
                    raise InputError(reason, record=item.name, remedy="rename one of them")
                files.add(file)
                folders.update(above)
                image = self._decoded(item)
                instances = 0  # an image whose size is not known has none, or all were named one by one
                size = self._size(image)
            except InputError as error:
                self._faults.append(RecordFault(error, instances, whole_image=True))
                continue
            for instance in image.instances:
                if instance.mask.size != size:
                    (h, w), (height, width) = instance.mask.size, size
                    reason = f"the mask is {h}×{w} (height × width), others of its image are {height}×{width}"
                    self._blame(item, instance, InputError(reason))
            kept = tuple(instance for instance in image.instances if instance.mask.size == size)
            yield stem, size, replace(image, instances=kept)

    def leave_out(self, image: ImageRecord, instance: Instance, reason: str, remedy: str) -> None:
        """Keeps account of an instance that the format cannot hold."""
        self._blame(image, instance, InputError(reason, remedy=remedy))

    def overlap(self, image: ImageRecord, pixels: int, covered: Collection[Instance]) -> None:
        """Keeps account of one image whose instances share pixels in a format of one id a pixel."""
        self._overlap_pixels += pixels
        reason = "is not in the output, for others cover it or its mask is empty, and the format holds one id a pixel"
        for instance in covered:
            self.leave_out(image, instance, reason, "write one whose masks may overlap, such as coco-results")

    def written(self) -> Written:
        """The account."""
        return Written(self._overlap_pixels, faults=tuple(self._faults))

    def _decoded(self, image: ImageRecord) -> ImageRecord:
        found = []
        for instance in image.instances:
            try:
                mask = self._results.get(instance.index, instance.mask).decode()
            except InputError as error:
                self._blame(image, instance, error)
                continue
            # a soft mask keeps its faint pixels
            found.append(replace(instance, mask=mask.tight() if mask.values.dtype == bool else mask))
        return replace(image, instances=tuple(found))

    def _size(self, image: ImageRecord) -> tuple[int, int]:
        if image.instances:  # the masks know their own frame; an image file's may be turned
            return image.instances[0].mask.size
        if image.size is not None:
            return image.size
        if image.path is None:
            reason, remedy = "has no masks and no stated size", "give its image with --images"
            raise InputError(reason, record=image.name, remedy=remedy)
        return image_sizes(image.path, image.orientation)[0]

    def _blame(self, image: ImageRecord, instance: Instance, error: InputError) -> None:
        label = error.record or instance.label
        self._faults.append(RecordFault(error.at(record=label if error.file else f"{image.name}, {label}")))


def stem_of(record: ImageRecord) -> PurePosixPath:
    """The path an image's files get in a new folder, without ending: that of its file, or its id, or its name.

    Raises InputError where the source calls the image something that lies outside of every folder.
    """
    if record.file_name:
        text = record.file_name
    elif isinstance(record.image_id, int):
        text = f"{record.image_id:012d}"  # as COCO names its images
    else:
        text = record.image_id or record.name
    path = PurePosixPath(text.replace("\\", "/"))
    unsafe = path.is_absolute() or ".." in path.parts or not path.name
    unsafe = unsafe or any(unicodedata.category(letter) in _NO_LETTERS for letter in text)
    if unsafe or ":" in path.parts[0] or any(part.startswith(".") for part in path.parts):
        reason = f"the name {text[:100]!r} is not that of a file inside a folder"
        raise InputError(reason, remedy="rename the image")
    if max(len(part.encode()) for part in path.parts) > _LONGEST_NAME:
        raise InputError(f"the name {text[:100]!r}... is too long for a file", remedy="rename the image")
    return path.with_suffix("") if path.suffix.lower() in SUFFIXES else path


def by_importance(instances: Sequence[Instance]) -> list[Instance]:
    """Instances by falling score, then in their order; those without a score come last."""
    return sorted(instances, key=lambda each: math.inf if each.score is None else -each.score)
