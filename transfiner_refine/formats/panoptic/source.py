"""COCO panoptic: a JSON file and the folder of its PNGs, refined so that every image stays a partition."""

from __future__ import annotations

import shutil
from array import array
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from transfiner_refine.errors import InputError
from transfiner_refine.formats.coco.photos import (
    ImageId,
    ImageList,
    Listing,
    Photo,
    check_any_found,
    find_photo,
    image_id_of,
    pass_over,
    read_listing,
    scan_listing,
)
from transfiner_refine.formats.id_map import IdMap, IdMask
from transfiner_refine.formats.json_scan import JsonValues, Scanner, short
from transfiner_refine.formats.panoptic.partition import repartition
from transfiner_refine.formats.panoptic.pixels import id_boxes, read_ids, write_ids
from transfiner_refine.formats.panoptic.segments import segment_of, with_boxes
from transfiner_refine.formats.png_pixels import png_size
from transfiner_refine.formats.records import ImageRecord, Instance, OpenOptions, RecordFault, Written
from transfiner_refine.formats.text_file import TextFile, text_output
from transfiner_refine.images import ImageFolder
from transfiner_refine.masks import Mask
from transfiner_refine.output import (
    atomic_folder,
    check_output_file,
    check_output_folder,
    remove_drafts,
)

__all__ = ["PanopticSource", "png_folder"]


class PanopticSource:
    """A panoptic JSON file, its PNGs, and the photos they belong to. Things are refined; stuff and crowds are not."""

    def __init__(self, path: Path, options: OpenOptions) -> None:
        """Walks over the JSON once; looks for the photos, and into no PNG yet.

        Args:
            path: the JSON file, plain or gzip. Its PNGs are in the folder of the same name without ``.json``, or
                beside it.
            options: ``image_info`` may name images and categories where the file does not.

        Raises:
            InputError: invalid JSON, no annotations, or no word on which categories are things.
        """
        self._path, self._image_info = path, options.image_info
        self._max_pixels = options.max_image_pixels
        self._folder = png_folder(path) if png_folder(path).is_dir() else path.parent
        self._text = TextFile(path)
        self._annotations, self._first = JsonValues(self._text), array("q")
        self._listing = self._walk()
        if options.image_info is not None:
            if len(self._listing.images) and self._listing.categories:
                raise InputError("names its images itself", file=path, remedy="leave --image-info out")
            self._listing = read_listing(options.image_info)
        if not self._listing.categories:
            raise InputError(
                "does not say which categories are things",
                file=path,
                remedy="give --image-info with a panoptic annotation file",
            )
        self._photos = None if options.images is None else ImageFolder(options.images)
        ids = (image_id_of(self._annotations.value(i), "image_id") for i in range(len(self._annotations)))
        check_any_found((image_id for image_id in ids if image_id is not None), self._photo)

    @property
    def num_images(self) -> int:
        return len(self._annotations)

    @property
    def num_instances(self) -> int:
        return self._first[-1]

    @property
    def categories(self) -> Mapping[int, str]:
        return self._listing.categories

    @property
    def stuff(self) -> Collection[int]:
        """Ids of categories that are no things."""
        return self._listing.stuff

    def __iter__(self) -> Iterator[ImageRecord | RecordFault]:
        for position in range(len(self._annotations)):
            first, end = self._first[position], self._first[position + 1]
            try:
                annotation = self._annotations.value(position)
                path, _ = self._png(annotation)
                size = png_size(path)
                image_id = image_id_of(annotation, "image_id")
                if image_id is None:
                    raise InputError(
                        f"image_id is {short(annotation.get('image_id'))}", remedy="write an image's id"
                    )
                photo = self._photo(image_id)
            except InputError as error:
                yield RecordFault(self._blame(error, f"annotation {position}"), end - first, whole_image=True)
                continue
            id_map = IdMap(partial(read_ids, path, self._max_pixels))
            instances, taken = [], set[int]()
            for place, segment in enumerate(annotation["segments_info"]):
                label = f"{photo.name}, segment {place}"
                try:
                    found = segment_of(segment, self._listing, taken)
                except InputError as error:
                    yield RecordFault(self._blame(error, label))
                    continue
                taken.add(found.id)
                instances.append(
                    Instance(
                        first + place,
                        IdMask(id_map, found.id, size),
                        f"{photo.name} id {found.id}",
                        category_id=found.category_id,
                        score=found.score,
                        is_crowd=found.is_crowd,
                        instance_id=found.id,
                        is_stuff=found.is_stuff,
                    )
                )
            yield ImageRecord(photo.path, photo.name, tuple(instances), size, image_id, photo.file_name)

    def check_output(self, output: Path, *, overwrite: bool) -> None:
        inputs = [self._path] if self._image_info is None else [self._path, self._image_info]
        check_output_file(output, inputs, overwrite=overwrite)
        check_output_folder(png_folder(output), [self._folder], overwrite=overwrite)

    def write(
        self,
        output: Path,
        results: Mapping[int, Mask],
        *,
        keep_boxes: bool = False,
        overwrite: bool = False,
    ) -> Written:
        self.check_output(output, overwrite=overwrite)
        self._text.check_unchanged()
        remove_drafts(png_folder(output))
        overlap_pixels, covered, at = 0, list[int](), 0
        with text_output(output) as file, atomic_folder(png_folder(output)) as draft:
            for position in range(len(self._annotations)):
                indexes = range(self._first[position], self._first[position + 1])
                masks = {index: mask for index in indexes if (mask := results.get(index)) is not None}
                if not masks:
                    self._copy(position, draft)
                    continue
                start, end = self._annotations.place(position)
                for piece in self._text.pieces(at, start):
                    file.write(piece)
                text = self._annotations.text(position)
                overlaps, kept_coarse, text = self._write_image(position, text, masks, draft, keep_boxes)
                file.write(text.encode())
                at = end
                overlap_pixels += overlaps
                covered += kept_coarse
            for piece in self._text.pieces(at):
                file.write(piece)
            self._text.check_unchanged()
            # the JSON gets its name after the PNGs: where there is one, all that it speaks of is there
            file.flush()
            output.unlink(missing_ok=True)
        return Written(overlap_pixels, tuple(covered))

    def _write_image(
        self, position: int, text: str, masks: Mapping[int, Mask], draft: Path, keep_boxes: bool
    ) -> tuple[int, list[int], str]:
        """Writes the PNG of an image with refined masks by index.

        Gives the pixels that were claimed twice, the instances that kept their coarse mask, and the annotation.
        """
        annotation, first = self._annotations.value(position), self._first[position]
        path, name = self._png(annotation)
        segments, taken = dict[int, Any](), set[int]()
        for place, segment in enumerate(annotation["segments_info"]):
            try:
                found = segment_of(segment, self._listing, taken)
            except InputError:  # named when the source was iterated; keeps its pixels
                continue
            taken.add(found.id)
            segments[first + place] = found
        refined = [(segments[index], mask) for index, mask in masks.items()]
        refined.sort(key=lambda item: -(item[0].score or 0.0))
        stuff = [found.id for found in segments.values() if found.is_stuff and not found.is_crowd]
        partition = repartition(
            read_ids(path, self._max_pixels), [(found.id, mask) for found, mask in refined], stuff
        )
        write_ids(draft / name, partition.ids)
        index_of = {found.id: index for index, found in segments.items()}
        if not keep_boxes:
            text = with_boxes(text, id_boxes(partition.ids))
        return partition.overlap_pixels, [index_of[value] for value in partition.covered], text

    def _copy(self, position: int, draft: Path) -> None:
        """Copies the PNG of an image of which nothing was refined, if it has one."""
        try:
            path, name = self._png(self._annotations.value(position))
        except InputError:  # named when the source was iterated
            return
        if path.is_file():
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, draft / name)

    def _walk(self) -> Listing:
        scanner, listing = Scanner(self._text), Listing(ImageList(self._text))
        found, total = False, 0
        if scanner.peek() == "{":
            for key in scanner.members():
                if key == "annotations" and scanner.peek() == "[":
                    found = True
                    for annotation in scanner.elements():
                        self._annotations.add(scanner.start, scanner.end)
                        self._first.append(total)
                        segments = _segments(annotation)
                        total += 1 if segments is None else len(segments)
                elif not scan_listing(listing, key, scanner):
                    pass_over(scanner)
            scanner.finish()
        self._first.append(total)
        if not found or not len(self._annotations):
            raise InputError("holds no annotations", file=self._path, remedy="give COCO panoptic annotations")
        return listing

    def _png(self, annotation: Any) -> tuple[Path, PurePosixPath]:
        """The PNG of an annotation and its name in the folder.

        Raises:
            InputError: the annotation is damaged, or names a file outside of the folder.
        """
        file_name = annotation.get("file_name") if isinstance(annotation, dict) else None
        if not isinstance(file_name, str) or _segments(annotation) is None:
            raise InputError("has no file_name or no segments_info", remedy="check that the file is complete")
        name = PurePosixPath(file_name)
        if name.is_absolute() or ".." in name.parts or "\0" in file_name or not name.name:
            raise InputError(
                f"file_name {short(file_name)} is not in the folder of the PNGs", remedy="correct it"
            )
        return self._folder / name, name

    def _photo(self, image_id: ImageId) -> Photo:
        return find_photo(image_id, self._listing if len(self._listing.images) else None, None, self._photos)

    def _blame(self, error: InputError, label: str) -> InputError:
        if error.file:
            return error
        return InputError(error.reason, file=self._path, record=error.record or label, remedy=error.remedy)


def png_folder(path: Path) -> Path:
    """The folder of PNGs that belongs to a panoptic JSON file by its name: without ``.json`` and ``.gz``."""
    name = path.name
    for suffix in (".gz", ".json"):
        name = name.removesuffix(suffix) if name != suffix else name
    return path.with_name(name if name != path.name else f"{name}_png")


def _segments(annotation: Any) -> list[Any] | None:
    segments = annotation.get("segments_info") if isinstance(annotation, dict) else None
    return segments if isinstance(segments, list) else None
