"""Where the refined masks go: checked before the work, written after it, and what writing had to decide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from transfiner_refine.formats import Mask, Source, Written
from transfiner_refine.formats.convert import check_destination, covered_errors
from transfiner_refine.formats.records import Format
from transfiner_refine.output import remove_drafts
from transfiner_refine.pipeline.run import Outcome, mean_share

__all__ = ["Destination"]

_COVERED = "refined mask lies entirely under others in a format of one id a pixel, coarse mask kept"


@dataclass(frozen=True)
class Destination:
    """The output of a run.

    Attributes:
        source: the masks, which know how to write themselves again.
        output: the file or folder.
        other_format: the format to write, None for that of the source.
        inputs: paths that must not be written over.
        keep_boxes: leave boxes and areas that the input states as they are.
    """

    source: Source
    output: Path
    other_format: Format | None
    inputs: Sequence[Path]
    keep_boxes: bool

    def check(self, *, overwrite: bool) -> None:
        """Raises OutputError where the output may not be written."""
        if self.other_format is None:
            self.source.check_output(self.output, overwrite=overwrite)
        else:
            check_destination(self.other_format, self.output, self.inputs, overwrite=overwrite)

    def clear(self) -> None:
        """Removes what a killed run had begun to write."""
        remove_drafts(self.output)
        if self.other_format is not None and self.other_format.beside is not None:
            remove_drafts(self.other_format.beside(self.output))

    def write(self, masks: Mapping[int, Mask]) -> Written:
        """Writes the output, over what is there.

        Raises:
            OutputError: the disk refused.
        """
        if self.other_format is None:
            return self.source.write(self.output, masks, keep_boxes=self.keep_boxes, overwrite=True)
        return self.other_format.write(self.output, self.source, masks)

    def account(self, written: Written, outcome: Outcome) -> None:
        """Takes what writing had to decide into the summary."""
        summary = outcome.summary
        summary.overlap_pixels = written.overlap_pixels
        known = {str(error) for error in summary.errors}  # most of them have been met in refining already
        summary.errors += [fault.error for fault in written.faults if str(fault.error) not in known]
        summary.not_written = sum(fault.instances for fault in written.faults)
        if self.other_format is None:
            for _ in written.covered:
                summary.take_back(_COVERED)
            summary.mean_changed_share = mean_share(outcome.changed_shares, written.covered)
        else:
            summary.not_written += len(written.covered)
            summary.errors += covered_errors(self.source, written.covered, self.other_format)
