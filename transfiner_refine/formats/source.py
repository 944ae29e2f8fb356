"""What every format gives the pipeline: a source of image records that can also write them back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from transfiner_refine.formats.rle import RleMask
from transfiner_refine.types import ImageRecord, InputError

__all__ = ["RecordFault", "Source", "UnreadSource", "Written"]


@dataclass(frozen=True)
class RecordFault:
    """Records that cannot be used; they pass through unchanged and the others go on.

    Attributes:
        error: why, with file, record and remedy.
        instances: number of records it concerns.
        whole_image: the image itself is at fault, so none of its records can be refined.
    """

    error: InputError
    instances: int = 1
    whole_image: bool = False


@dataclass(frozen=True)
class Written:
    """What writing had to decide because the format cannot hold everything.

    Attributes:
        overlap_pixels: pixels that more than one instance claimed in a format that holds one id a pixel.
        covered: indexes of instances whose refined mask would have lain entirely under others; their coarse
            mask was written instead, so that no instance is lost. In a conversion, where there is nothing to
            fall back on, they are not in the output.
        faults: records that could not be read or that the format cannot hold, so that they are not in the output.
    """

    overlap_pixels: int = 0
    covered: tuple[int, ...] = ()
    faults: tuple[RecordFault, ...] = ()


class UnreadSource(ABC):
    """A source that can leave the parsing of records to whoever prepares an image, in another process."""

    @abstractmethod
    def unread(self) -> Iterator[ImageRecord | RecordFault]:
        """As iterating, but images come without instances; ``ImageRecord.read`` parses them."""


class Source(Protocol):
    """The masks of one input in its order: iterate for what there is to refine, then ``write`` it back."""

    @property
    def num_images(self) -> int:
        """Images that have at least one instance, those at fault included."""

    @property
    def num_instances(self) -> int:
        """Instances (records, files or ids), those at fault included."""

    @property
    def categories(self) -> Mapping[int, str]:
        """Category names by id; empty where the input does not name them."""

    def __iter__(self) -> Iterator[ImageRecord | RecordFault]:
        """Images with their sound instances, and what is at fault, in the order of the input."""

    def check_output(self, output: Path, *, overwrite: bool) -> None:
        """Says before the work whether ``write`` may write there.

        Raises:
            OutputError: the output is the input, exists already, or cannot be made there.
        """

    def write(
        self,
        output: Path,
        results: Mapping[int, RleMask],
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
            OutputError: as for ``check_output``, or the disk refused.
        """
