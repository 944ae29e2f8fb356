"""What a run did, counted as it goes; the closing words and the exit code follow from it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any

from transfiner_refine.errors import InputError, counted

CROWD = "crowd or void region"  # the reason to pass such an instance through


@dataclass
class Summary:
    """What one run did."""

    images: int = 0  # that had instances
    images_failed: int = 0  # of which nothing could be refined, because the image is missing or unreadable
    images_turned: int = 0  # whose EXIF orientation was applied, as their masks' size asked for
    refined: int = 0  # instances that got a new mask (in a dry run: that would be handed to the refiner)
    passed_through: Counter[str] = field(default_factory=Counter)  # written unchanged on purpose, by reason
    failed: int = 0  # instances written unchanged because something is wrong with them or their image
    # what is wrong, one for each bad record or image, in the order of the input
    errors: list[InputError] = field(default_factory=list)
    not_written: int = 0  # instances that the output's format cannot hold or that could not be read for it
    overlap_pixels: int = 0  # pixels claimed by several instances in formats that hold one id a pixel
    notes: tuple[str, ...] = ()  # sentences on the input, and on what is another in the output
    # mean over the refined instances of: pixels whose label changed / pixels of the coarse mask's box; above 1 where
    # masks grew far beyond their boxes, 0 where nothing was refined
    mean_changed_share: float = 0.0
    seconds: float = 0.0  # loading of the weights excluded, interrupted parts of the run included
    dry_run: bool = False  # nothing was refined or written
    was_complete: bool = False  # a run that was resumed had nothing left to do; nothing is counted
    output: str = ""  # what was written, and its format
    network: str = ""  # weights, engine, precision and device

    @property
    def instances(self) -> int:
        """All instances of the input."""
        return self.refined + self.passed_through.total() + self.failed

    @property
    def exit_code(self) -> int:
        """0 if every instance was refined or passed through on purpose, 1 if any failed."""
        return 1 if self.errors else 0

    def lines(self) -> list[str]:
        """The closing words for a terminal."""
        if self.was_complete:
            return ["Nothing to do: the run was complete."]
        would = "Would refine" if self.dry_run else "Refined"
        pace = (
            ""
            if self.dry_run
            else f" in {self.seconds:.1f} s ({self.refined / max(self.seconds, 1e-9):.1f}/s)"
        )
        total = f"{counted(self.instances, 'instance')} in {counted(self.images, 'image')}"
        lines = [f"{would} {self.refined} of {total}{pace}."]
        if self.refined and not self.dry_run:
            lines.append(
                f"Pixels changed, mean share of the coarse box: {100 * self.mean_changed_share:.1f} %."
            )
        for reason, number in sorted(self.passed_through.items(), key=lambda item: (-item[1], item[0])):
            lines.append(f"Passed through unchanged: {number}, {reason}.")
        if self.failed:
            images = f" (with {counted(self.images_failed, 'whole image')})" if self.images_failed else ""
            lines.append(f"Failed, passed through unchanged: {counted(self.failed, 'instance')}{images}.")
        if self.not_written:
            lines.append(f"Not in the output, whose format differs: {counted(self.not_written, 'instance')}.")
        if self.images_turned:
            turned = counted(self.images_turned, "image")
            lines.append(f"Turned by their EXIF orientation, as the masks' size asks: {turned}.")
        if self.overlap_pixels:
            lines.append(f"Overlaps resolved, one id a pixel: {counted(self.overlap_pixels, 'pixel')}.")
        if self.instances and self.passed_through[CROWD] == self.instances:
            lines.append("All instances are crowd regions (iscrowd 1); --refine-crowds refines them.")
        lines += self.notes
        lines += [f"Network: {self.network}."] * bool(self.network and self.refined)
        lines += [f"Written: {self.output}."] * bool(self.output)
        return lines

    def as_json(self) -> dict[str, Any]:
        """The same for machines; ``errors`` as their texts."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {
            **values,
            "instances": self.instances,
            "passed_through": dict(self.passed_through),
            "errors": [str(error) for error in self.errors],
        }
