"""Keeps the books of a run: summary and ledger, told of everything once."""

from __future__ import annotations

from collections.abc import Iterable

from transfiner_refine.errors import InputError
from transfiner_refine.formats import Mask, RecordFault
from transfiner_refine.pipeline.ledger import Ledger
from transfiner_refine.pipeline.prepare import InstanceFault
from transfiner_refine.pipeline.read_ahead import ImageAhead
from transfiner_refine.pipeline.summary import Summary

__all__ = ["Place", "Tally"]

# where an instance stands in the source, to sort faults by: position of its image, its own index
Place = tuple[int, int]

_EMPTIED = "refined mask came out empty, coarse mask kept"
_BEFORE_INSTANCES = -1  # what is found when an image is prepared comes before what the refiner says


class Tally:
    """Counts what becomes of each instance and writes it into the ledger.

    The order in which it is told does not show in the summary, so that a run that was interrupted, or that had
    another batch size, ends with the same one.
    """

    def __init__(self, summary: Summary, ledger: Ledger, *, strict: bool, noting: bool) -> None:
        """A tally that starts from nothing.

        Args:
            summary, ledger: what it keeps.
            strict: raise the first fault, before it is written down.
            noting: write into the ledger (a dry run does not).
        """
        self._summary, self._ledger = summary, ledger
        self._strict, self._noting = strict, noting
        self._errors: list[tuple[Place, InputError]] = []

    def record_fault(self, position: int, fault: RecordFault) -> None:
        """Counts what the source itself could not use."""
        self._fail((position, _BEFORE_INSTANCES), fault.error, fault.instances, fault.whole_image)

    def image(self, position: int, image: ImageAhead) -> None:
        """Counts all of an image but what is still to refine."""
        before, now = image.recalled, image.prepared
        for _, has_pixels in before.masks:
            self._count_mask(has_pixels)
        for fault in before.faults:
            self._fail_instances((position, _BEFORE_INSTANCES), fault)
        for fault in before.refused:
            self._fail_instances((position, fault.indexes[0]), fault)
        self._keep(before.kept)
        self._summary.images_turned += before.turned or (now is not None and now.turned)
        if now is None:
            return
        for fault in now.faults:
            self._fail_instances((position, _BEFORE_INSTANCES), fault)
        self._keep(now.kept)
        if self._noting:
            self._ledger.note_image(image.record, before, now)

    def mask(self, index: int, mask: Mask | None, changed_share: float) -> None:
        """Counts a refined mask, None where nothing is left of it."""
        self._ledger.note_mask(index, mask, changed_share)
        self._count_mask(mask is not None)

    def refused(self, place: Place, error: InputError) -> None:
        """Counts an instance that the refiner could not take."""
        self._fail(place, error, 1, whole_image=False)
        self._ledger.note_refused(place[1], error)

    def batch_done(self) -> None:
        """Makes what was counted outlive this process, now that all of a batch is.

        Raises:
            OSError: the disk refused.
        """
        self._ledger.note_batch()
        self._ledger.flush()

    def close(self) -> None:
        """Completes the summary."""
        # a stable sort: of one image, faults of the same kind stay in the order in which they were found
        self._summary.errors += [error for _, error in sorted(self._errors, key=lambda item: item[0])]

    def _count_mask(self, has_pixels: bool) -> None:
        if has_pixels:
            self._summary.refined += 1
        else:
            self._summary.passed_through[_EMPTIED] += 1

    def _keep(self, kept: Iterable[tuple[int, str]]) -> None:
        for _, reason in kept:
            self._summary.passed_through[reason] += 1

    def _fail_instances(self, place: Place, fault: InstanceFault) -> None:
        self._fail(place, fault.error, len(fault.indexes), fault.whole_image)

    def _fail(self, place: Place, error: InputError, instances: int, whole_image: bool) -> None:
        if self._strict:
            raise error
        self._errors.append((place, error))
        self._summary.failed += instances
        self._summary.images_failed += whole_image
