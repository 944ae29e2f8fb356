"""What every format gives (image records, and a source that writes them back), and what describes a format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

from transfiner_refine.errors import InputError
from transfiner_refine.images import MAX_IMAGE_PIXELS, Orientation, image_sizes
from transfiner_refine.masks import Mask, MaskWindow

_SHAPE_SLACK = 0.02  # of a mask's side, by which its shape may differ from that of the image it is fitted to
PngKind: TypeAlias = Literal["binary", "label-map"]
Polygons: TypeAlias = Literal["keep", "rle"]
POLYGON_TOLERANCE = 0.5  # pixels; measured by benchmarks/polygon_tolerance.py


class EncodedMask(Protocol):
    """A mask as it is kept and sent: compact, decoded only where its pixels are needed."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the image the mask belongs to, pixels."""

    def decode(self) -> MaskWindow:
        """The mask inside its bounding box; raises InputError where it is damaged."""


@dataclass(frozen=True)
class FittedMask:
    """A mask of another size than its image, stretched over it."""

    mask: EncodedMask
    size: tuple[int, int]  # (height, width) of the image, pixels

    def decode(self) -> MaskWindow:
        return self.mask.decode().resized(self.size)


def fitted(mask: EncodedMask, image: Path, orientation: Orientation = "auto") -> EncodedMask:
    """A mask in the frame of its image; what is of another shape or turned stays, and is named later.

    Raises InputError where the image or the mask cannot be read.
    """
    (h, w), sizes = mask.size, image_sizes(image, orientation)
    slack = max(2.0, _SHAPE_SLACK * max(h, w))
    for height, width in sizes if (h, w) not in sizes else ():
        if min(abs(h - w * height / width), abs(w - h * width / height)) <= slack:
            return FittedMask(mask, (height, width))
    return mask


@dataclass(frozen=True)
class Instance:
    """One detection: its coarse mask and what the detector said of it. Crowds and stuff are never refined."""

    index: int  # in the source, 0-based over the whole of it; the refined mask goes back under it
    mask: EncodedMask  # in the frame of its image
    label: str  # how a person finds the record in its source: "record 17", "street_002.png"
    category_id: int | None = None  # as the source has it, None where the format has no classes
    score: float | None = None  # the detector's confidence, None where the format has none
    is_crowd: bool = False  # the mask covers a group (COCO ``iscrowd``)
    instance_id: int | None = None  # the source's own: annotation id, value in a label map
    is_stuff: bool = False  # of an uncountable class such as sky (COCO panoptic ``isthing`` 0)


@dataclass(frozen=True)
class ImageRecord:
    """One image and its instances, in the order of the source."""

    path: Path | None  # the image file; None where the source was opened without images
    name: str  # how the source names the image (file name or image id), for messages
    instances: tuple[Instance, ...] = ()
    size: tuple[int, int] | None = None  # (height, width) as the source states it
    image_id: int | str | None = None  # the source's own
    file_name: str | None = None  # path inside the folder of images, with "/"; None where only an id is known
    orientation: Orientation = "auto"  # how the image is turned, if the size of its masks should not decide

    @property
    def indexes(self) -> tuple[int, ...]:
        """``Instance.index`` of each instance."""
        return tuple(instance.index for instance in self.instances)

    def without(self, done: Collection[int]) -> ImageRecord:
        """The same image without some instances, by index."""
        return replace(self, instances=tuple(each for each in self.instances if each.index not in done))

    def read(self) -> tuple[ImageRecord, list[tuple[int, InputError]]]:
        """The image with its instances parsed, and what is wrong with the others, by index."""
        return self, []

    @property
    def stated_pixels(self) -> int:
        """Pixels of the image as far as the source tells without looking at it, else 0."""
        try:
            height, width = self.size or self.instances[0].mask.size
        except (InputError, IndexError):
            return 0
        return height * width


@dataclass(frozen=True)
class RecordFault:
    """Records that cannot be used; they pass through unchanged and the others go on."""

    error: InputError  # why, with file, record and remedy
    instances: int = 1  # number of records it concerns
    whole_image: bool = False  # the image itself is at fault, so none of its records can be refined


@dataclass(frozen=True)
class Written:
    """What writing had to decide because the format cannot hold everything.

    ``covered`` are indexes of instances whose refined mask would have lain entirely under others; their coarse mask was
    written instead, so that no instance is lost. In a conversion, which has nothing to fall back on, they are faults.
    """

    overlap_pixels: int = 0  # that more than one instance claimed, in a format that holds one id a pixel
    covered: tuple[int, ...] = ()
    faults: tuple[RecordFault, ...] = ()  # what could not be read or held, so that it is not in the output
    notes: tuple[str, ...] = ()  # sentences on what is another in the output, such as the numbers of classes


class UnreadSource(ABC):
    """A source that can leave the parsing of records to whoever prepares an image, in another process."""

    @abstractmethod
    def unread(self) -> Iterator[ImageRecord | RecordFault]:
        """As iterating, but images come without instances; ``ImageRecord.read`` parses them."""


class Source(Protocol):
    """The masks of one input in its order: iterate for what there is to refine, then ``write`` it back."""

    @property
    def options(self) -> OpenOptions:
        """What it was opened with."""

    @property
    def num_images(self) -> int:
        """Images that have at least one instance, those at fault included."""

    @property
    def num_instances(self) -> int:
        """Instances (records, files or ids), those at fault included."""

    @property
    def categories(self) -> Mapping[int, str]:
        """Category names by id; empty where the input does not name them."""

    @property
    def notes(self) -> Sequence[str]:
        """What a user should know of how the input was read, though nothing is wrong with it; a sentence each."""

    def __iter__(self) -> Iterator[ImageRecord | RecordFault]:
        """Images with their sound instances, and what is at fault, in the order of the input."""

    def write(
        self,
        output: Path,
        results: Mapping[int, Mask],
        *,
        keep_boxes: bool = False,
        overwrite: bool = False,
    ) -> Written:
        """Writes the input again with the masks of ``results``, all else as it was, and never half of it.

        Args:
            output: a file or a folder, as the input is.
            results: refined masks by ``Instance.index``; instances not in it are written as they came in.
            keep_boxes: leave boxes and areas that the input states beside its masks as they are.
            overwrite: an output that exists may be replaced.

        Raises:
            InputError: the input has changed since it was opened.
            OutputError: the output is the input, exists, or cannot be made there, or the disk refused.
        """


@dataclass(frozen=True)
class OpenOptions:
    """What a reader may be told beside the path of the masks.

    Without ``images``, masks alone are read, as converting does; readers that cannot do without (relative coordinates
    need the image's size) say so as an ``InputError``.
    """

    images: Path | None = None  # the folder of the images
    image_info: Path | None = None  # a COCO file: which image id is which image, names of categories
    png_kind: PngKind | Literal["auto"] = "auto"  # of plain PNG folders, where their pixels should not decide
    class_names: Path | None = (
        None  # a text file with one class name a line, first line = class 0, or data.yaml
    )
    max_image_pixels: int = MAX_IMAGE_PIXELS  # the largest height × width of a mask image that is decoded
    polygon_tolerance: float = 0  # pixels that lines of written polygons may be off, 0 for none
    polygons: Polygons = "keep"  # of COCO records: refined polygons stay polygons, or become RLE
    fit_masks: bool = False  # masks of another size than their image are stretched over it
    background: int | None = 0  # the value of label maps that is no instance; None where every value is one
    orientation: Orientation = "auto"  # how images are turned, if the size of their masks should not decide
    refine_crowds: bool = False  # COCO's crowd regions are instances like all others


@dataclass(frozen=True)
class Format:
    """One format.

    ``write`` writes what any source holds, with the refined masks of ``results`` in the place of the coarse ones, at a
    path that does not exist yet or may be overwritten; never half of it. Instances that the format cannot hold are
    never dropped silently: ``Written`` counts them.
    """

    name: str  # what ``--from`` and ``--to`` take, such as ``coco-results``
    is_folder: bool  # it is a folder of files, not one file
    recognise: Callable[[Path], bool]  # from a cheap look at a path's content; never raises on bad input
    open: Callable[[Path, OpenOptions], Source]  # raises InputError where the input cannot be used at all
    write: Callable[[Path, Source, Mapping[int, Mask]], Written]
    beside: Callable[[Path], Path] | None = None  # the folder that ``write`` fills beside its file
    check: Callable[[Source], None] | None = None  # raises InputError where a source cannot be written at all
    suffixes: tuple[str, ...] = (".json",)  # what the name of its file may end in, where it says something
