"""From one mask format to another, with an account of what the new one does not hold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transfiner_refine.errors import InputError, counted
from transfiner_refine.formats.records import Format, PngKind, RecordFault, Source
from transfiner_refine.formats.registry import format_for, open_source, recognise
from transfiner_refine.images import MAX_IMAGE_PIXELS, Orientation
from transfiner_refine.output import check_output_file, check_output_folder


@dataclass(frozen=True)
class Converted:
    """What a conversion did."""

    source_format: str
    target_format: str
    images: int  # with instances that are in the output
    instances: int  # in the output
    instances_read: int  # of the input, those at fault included
    overlap_pixels: int  # that several instances claimed, in a format that holds one id a pixel
    notes: tuple[str, ...]  # sentences on the input and on what is another in the output
    errors: tuple[InputError, ...]  # what is not in the output, or is wrong and was copied as it was, and why

    @property
    def exit_code(self) -> int:
        """0 if everything is in the output, else 1."""
        return 1 if self.errors else 0

    def lines(self) -> list[str]:
        """The closing words for a terminal."""
        lines = [
            f"Wrote {self.instances} of {counted(self.instances_read, 'instance')} in "
            f"{counted(self.images, 'image')}, from {self.source_format} to {self.target_format}."
        ]
        if self.overlap_pixels:
            lines.append(f"Overlaps resolved, one id a pixel: {counted(self.overlap_pixels, 'pixel')}.")
        return [*lines, *self.notes]


def convert_masks(
    masks: str | Path,
    output: str | Path,
    *,
    to: str | None = None,
    format: str = "auto",  # noqa: A002  the word for it
    images: str | Path | None = None,
    image_info: str | Path | None = None,
    png_kind: PngKind | Literal["auto"] = "auto",
    class_names: str | Path | None = None,
    fit_masks: bool = False,
    orientation: Orientation = "auto",
    refine_crowds: bool = False,
    background: int | Literal["none"] = 0,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
    polygon_tolerance: float = 0,
    overwrite: bool = False,
    strict: bool = False,
) -> Converted:
    """Writes masks in another format. What cannot be read or held is left out and named, the rest is written.

    Args beside those of ``open_source``:
        output: the file or folder to write.
        to: the format to write; None for that of ``masks``, which copies everything as it is.
        overwrite: an output that exists may be replaced.
        strict: refuse the whole input for one bad record; looks at every mask before it writes.

    Raises:
        InputError: the input cannot be used at all; with ``strict``, some of it cannot. Nothing is written.
        OutputError: the output exists, is an input, or cannot be written.
    """
    masks, output = Path(masks), Path(output)
    entry = recognise(masks, format)
    target = format_for(output, to, entry)
    source = open_source(
        masks,
        images,
        format=entry.name,
        image_info=image_info,
        png_kind=png_kind,
        class_names=class_names,
        fit_masks=fit_masks,
        orientation=orientation,
        refine_crowds=refine_crowds,
        background=background,
        max_image_pixels=max_image_pixels,
        polygon_tolerance=polygon_tolerance,
    )
    inputs = [masks, *(Path(path) for path in (images, image_info, class_names) if path is not None)]
    if entry.beside is not None:
        inputs.append(entry.beside(masks))
    check_destination(target, output, inputs, source=source, overwrite=overwrite)
    if strict:
        _check_all(source)
    if target is entry:
        faults = [item for item in source if isinstance(item, RecordFault)]  # these are copied
        written = source.write(output, {}, overwrite=overwrite)
    else:
        written = target.write(output, source, {})
        faults = list(written.faults)
    return Converted(
        entry.name,
        target.name,
        source.num_images - sum(fault.whole_image for fault in written.faults),
        source.num_instances - sum(fault.instances for fault in written.faults),
        source.num_instances,
        written.overlap_pixels,
        (*source.notes, *written.notes),
        tuple(fault.error for fault in faults),
    )


def check_destination(
    target: Format, output: Path, inputs: Iterable[Path], *, source: Source | None = None, overwrite: bool
) -> None:
    """Says before the work whether masks may be written at ``output`` in that format.

    Raises:
        OutputError: the output is an input, exists already, or cannot be made there.
        InputError: the format cannot hold ``source`` at all.
    """
    inputs = tuple(inputs)
    check = check_output_folder if target.is_folder else check_output_file
    check(output, inputs, overwrite=overwrite)
    if target.beside is not None:
        check_output_folder(target.beside(output), inputs, overwrite=overwrite)
    if target.check is not None and source is not None:
        target.check(source)


def _check_all(source: Source) -> None:
    """Raises the first error there is, decoding every mask."""
    for item in source:
        if isinstance(item, RecordFault):
            raise item.error
        for instance in item.instances:
            try:
                instance.mask.decode()
            except InputError as error:
                raise error.at(record=error.record or f"{item.name}, {instance.label}") from error
