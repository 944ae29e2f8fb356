"""What the folder formats have in common: one list of files, each written again or copied."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from transfiner_refine.errors import InputError
from transfiner_refine.formats.folder_files import copy_rest, files_in
from transfiner_refine.formats.images import upright_size
from transfiner_refine.formats.photo_tree import PhotoTree
from transfiner_refine.formats.records import ImageRecord, Instance, RecordFault, Written
from transfiner_refine.masks import Mask
from transfiner_refine.output import atomic_folder, check_output_folder

__all__ = ["FolderImage", "FolderSource"]


@dataclass(frozen=True)
class FolderImage:
    """One image of a folder format.

    Attributes:
        name: its main file (a map, a list of lines), relative to the folder.
        stem: where its photo must lie and what it must be called, without ending.
        count: number of instances, those at fault included.
        photo: the photo, relative to the folder of photos; None without such a folder, or where there is none.
        error: why nothing of it can be used.
    """

    name: PurePosixPath
    stem: PurePosixPath
    count: int
    photo: PurePosixPath | None = None
    error: InputError | None = None


class FolderSource(ABC):
    """A folder of which some files hold masks; all others are copied when it is written again.

    A reader lists ``images`` and gives their instances; finding photos, counting and writing are here.
    """

    def __init__(self, folder: Path, images: Path | None) -> None:
        """Lists the folder.

        Args:
            folder: the folder of the masks.
            images: the folder of the photos, None to do without them.

        Raises:
            InputError: there is no such folder, or it cannot be listed.
        """
        self.folder, self.photo_folder = folder, images
        self.files = files_in(folder, remedy="give the folder of the masks")
        self.images: tuple[FolderImage, ...] = ()

    @abstractmethod
    def instances_of(
        self, position: int, size: Callable[[], tuple[int, int]]
    ) -> Iterator[Instance | RecordFault]:
        """The instances of image ``position``, their indexes counted from 0 in the image.

        ``size`` gives (height, width) of the photo; it raises InputError where there is none.
        """

    @abstractmethod
    def stated_size(self, position: int) -> tuple[int, int] | None:
        """(height, width) that the format states for an image, None where it states none."""

    @abstractmethod
    def write_image(self, position: int, masks: Mapping[int, Mask], draft: Path) -> Written:
        """Writes the files of one image with refined masks, by their position in the image, into ``draft``.

        Covered instances are named by their position in the image too.
        """

    @property
    def num_images(self) -> int:
        return sum(image.count > 0 for image in self.images)

    @property
    def num_instances(self) -> int:
        return sum(image.count for image in self.images)

    @property
    def categories(self) -> Mapping[int, str]:
        return {}

    def __iter__(self) -> Iterator[ImageRecord | RecordFault]:
        first = 0
        for position, image in enumerate(self.images):
            if image.error is not None:
                yield RecordFault(image.error, image.count, whole_image=True)
            else:
                yield from self._record(position, image, first)
            first += image.count

    def check_output(self, output: Path, *, overwrite: bool) -> None:
        inputs = [self.folder] if self.photo_folder is None else [self.folder, self.photo_folder]
        check_output_folder(output, inputs, overwrite=overwrite)

    def write(
        self,
        output: Path,
        results: Mapping[int, Mask],
        *,
        keep_boxes: bool = False,  # noqa: ARG002  none of these formats states boxes beside masks
        overwrite: bool = False,
    ) -> Written:
        self.check_output(output, overwrite=overwrite)
        overlap_pixels, covered, first = 0, list[int](), 0
        with atomic_folder(output) as draft:
            for position, image in enumerate(self.images):
                masks = {
                    number: results[first + number]
                    for number in range(image.count)
                    if first + number in results
                }
                if masks:
                    written = self.write_image(position, masks, draft)
                    overlap_pixels += written.overlap_pixels
                    covered += [first + number for number in written.covered]
                first += image.count
            copy_rest(self.folder, self.files, draft)
        return Written(overlap_pixels, tuple(covered))

    def find_photos(self, photos: PhotoTree | None) -> None:
        """Gives each image its photo, or the error that there is none.

        Raises:
            InputError: no image has a photo.
        """
        if photos is None:
            return
        found = [image if image.error is not None else _with_photo(image, photos) for image in self.images]
        owners: dict[PurePosixPath, list[FolderImage]] = {}
        for image in found:
            if image.photo is not None:
                owners.setdefault(image.photo, []).append(image)
        self.images = tuple(
            _contested(image, owners[image.photo], photos)
            if image.photo is not None and len(owners[image.photo]) > 1
            else image
            for image in found
        )
        errors = [image.error for image in self.images if image.error is not None]
        if errors and len(errors) == len(self.images):
            first = errors[0]
            if len(errors) == 1:
                raise first
            raise InputError(
                f"none of the {len(errors)} images can be used; the first: {first.reason}",
                file=first.file,
                record=first.record,
                remedy=first.remedy,
            )

    def _record(self, position: int, image: FolderImage, first: int) -> Iterator[ImageRecord | RecordFault]:
        root = self.photo_folder
        path = None if root is None or image.photo is None else root / image.photo
        instances = []

        def size() -> tuple[int, int]:
            if path is None:
                raise InputError(
                    "holds shares of its photo's size, which is not known",
                    file=self.folder / image.name,
                    remedy="give the folder of the photos with --images",
                )
            return upright_size(path)

        try:
            for item in self.instances_of(position, size):
                if isinstance(item, RecordFault):
                    yield item
                else:
                    instances.append(replace(item, index=first + item.index))
            stated = self.stated_size(position)
        except InputError as error:  # the photo is no image: nothing of it can be used
            yield RecordFault(error, image.count, whole_image=True)
            return
        yield ImageRecord(
            path,
            image.stem.as_posix() if image.photo is None else image.photo.as_posix(),
            tuple(instances),
            stated,
            image_id=image.stem.as_posix(),
            file_name=self.usual_photo_name(position) if image.photo is None else image.photo.as_posix(),
        )

    def usual_photo_name(self, position: int) -> str | None:  # noqa: ARG002  the formats differ
        """What a photo is called by the custom of the format, for sources without photos."""
        return None


def _with_photo(image: FolderImage, photos: PhotoTree) -> FolderImage:
    try:
        photo = photos.find(image.stem)
    except InputError as error:
        return replace(image, error=error)
    if photo is None:
        missing = InputError(
            f"there is no photo of that name in {photos.root}",
            record=image.name.as_posix(),
            remedy="check --images",
        )
        return replace(image, error=missing)
    return replace(image, photo=photo)


def _contested(image: FolderImage, owners: list[FolderImage], photos: PhotoTree) -> FolderImage:
    """The image with an error: several claim its photo, and at most one can be right."""
    names = " and ".join(owner.name.as_posix() for owner in owners[:3])
    error = InputError(
        f"{names} would belong to the same photo {image.photo}",
        file=photos.root,
        remedy="give a folder of photos with the same subfolders as the masks",
    )
    return replace(image, error=error, photo=None)
