"""Writing what any source holds in another format: names, masks and sizes, and what gets lost on the way."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from transfiner_refine.errors import InputError
from transfiner_refine.formats.images import SUFFIXES, upright_size
from transfiner_refine.formats.records import ImageRecord, Instance, RecordFault, Source, Written
from transfiner_refine.masks import Mask, MaskWindow

__all__ = ["Conversion", "ConvertedImage", "ConvertedInstance", "by_importance", "stem_of"]

_NO_LETTERS = ("Cc", "Cs")  # control characters, and what stands for bytes that are no text
_LONGEST_NAME = 200  # bytes of one part of a path; file systems end at 255, and formats add their endings


@dataclass(frozen=True)
class ConvertedInstance:
    """One instance on its way into another format.

    Attributes:
        instance: what the source says of it.
        mask: its mask: bool in the tightest window, or float32 in [0, 1] where the source is soft and nothing was
            refined.
    """

    instance: Instance
    mask: MaskWindow

    def hard(self) -> MaskWindow:
        """The mask cut at 0.5."""
        if self.mask.values.dtype == bool:
            return self.mask
        return MaskWindow(self.mask.values >= 0.5, self.mask.x, self.mask.y, self.mask.image_size).tight()


@dataclass(frozen=True)
class ConvertedImage:
    """One image on its way into another format.

    Attributes:
        record: what the source says of it.
        stem: its name in the new format: a relative path without ending, safe to write at.
        size: (height, width) that all its masks have.
        instances: those whose masks are sound.
    """

    record: ImageRecord
    stem: PurePosixPath
    size: tuple[int, int]
    instances: tuple[ConvertedInstance, ...]


class Conversion:
    """Walks over a source for a writer, and keeps account of what does not arrive."""

    def __init__(self, source: Source, results: Mapping[int, Mask]) -> None:
        """Args: ``source`` is what to write; ``results`` its refined masks by ``Instance.index``."""
        self._source, self._results = source, results
        self._faults: list[RecordFault] = []
        self._covered: list[int] = []
        self._overlap_pixels = 0

    def __iter__(self) -> Iterator[ConvertedImage]:
        """The images that can be written; all else is kept as a fault."""
        taken: set[PurePosixPath] = set()
        for item in self._source:
            if isinstance(item, RecordFault):
                self._faults.append(item)
                continue
            try:
                stem = stem_of(item)
                if stem in taken:
                    raise InputError(
                        f"is called {stem} like another image", record=item.name, remedy="rename one of them"
                    )
                taken.add(stem)
            except InputError as error:
                self._faults.append(RecordFault(error, len(item.instances), whole_image=True))
                continue
            try:
                image = self._image(item, stem)
            except (
                InputError
            ) as error:  # of an image without masks, or whose masks were all blamed one by one
                self._faults.append(RecordFault(error, 0, whole_image=True))
                continue
            yield image

    def leave_out(self, image: ConvertedImage, item: ConvertedInstance, reason: str, remedy: str) -> None:
        """Keeps account of an instance that the format cannot hold."""
        self._blame(image.record, item.instance, InputError(reason, remedy=remedy))

    def overlap(self, pixels: int, covered: Sequence[ConvertedInstance]) -> None:
        """Keeps account of one image whose instances share pixels in a format of one id a pixel."""
        self._overlap_pixels += pixels
        self._covered += [item.instance.index for item in covered]

    def written(self) -> Written:
        """The account."""
        return Written(self._overlap_pixels, tuple(sorted(self._covered)), tuple(self._faults))

    def _image(self, record: ImageRecord, stem: PurePosixPath) -> ConvertedImage:
        found = []
        for instance in record.instances:
            try:
                refined = self._results.get(instance.index)
                mask = (instance.mask if refined is None else refined).decode()
            except InputError as error:
                self._blame(record, instance, error)
                continue
            # a soft mask keeps its faint pixels
            found.append(ConvertedInstance(instance, mask.tight() if mask.values.dtype == bool else mask))
        # the masks know their own frame; a photo's may be turned
        size = found[0].mask.image_size if found else record.size
        if size is None:
            if record.path is None:
                raise InputError(
                    "has no masks and no stated size",
                    record=record.name,
                    remedy="give its photo with --images",
                )
            size = upright_size(record.path)
        for item in found:
            if item.mask.image_size != size:
                (h, w), (height, width) = item.mask.image_size, size
                reason = f"the mask is {h}×{w} (height × width), others of its image are {height}×{width}"
                self._blame(record, item.instance, InputError(reason))
        return ConvertedImage(
            record, stem, size, tuple(item for item in found if item.mask.image_size == size)
        )

    def _blame(self, record: ImageRecord, instance: Instance, error: InputError) -> None:
        label = error.record or instance.label
        self._faults.append(
            RecordFault(
                InputError(
                    error.reason,
                    file=error.file,
                    record=label if error.file else f"{record.name}, {label}",
                    remedy=error.remedy,
                )
            )
        )


def stem_of(record: ImageRecord) -> PurePosixPath:
    """The path an image's files get in a new folder, without ending: that of its photo, or its id, or its name.

    Raises:
        InputError: the source calls the image something that lies outside of every folder.
    """
    if record.file_name:
        text = record.file_name
    elif isinstance(record.image_id, int):
        text = f"{record.image_id:012d}"  # as COCO names its photos
    else:
        text = record.image_id or record.name
    path = PurePosixPath(text.replace("\\", "/"))
    unsafe = path.is_absolute() or ".." in path.parts or not path.name
    unsafe = unsafe or any(unicodedata.category(letter) in _NO_LETTERS for letter in text)
    if unsafe or ":" in path.parts[0] or any(part.startswith(".") for part in path.parts):
        raise InputError(
            f"the name {text[:100]!r} is not that of a file inside a folder", remedy="rename the image"
        )
    if max(len(part.encode()) for part in path.parts) > _LONGEST_NAME:
        raise InputError(f"the name {text[:100]!r}... is too long for a file", remedy="rename the image")
    return path.with_suffix("") if path.suffix.lower() in SUFFIXES else path


def by_importance(items: Sequence[ConvertedInstance]) -> list[ConvertedInstance]:
    """Instances by falling score, then in their order; those without a score come last."""

    def rank(item: ConvertedInstance) -> float:
        return math.inf if item.instance.score is None else -item.instance.score

    return sorted(items, key=rank)
