"""Which instances are refined; all others pass through unchanged, each with a reason that is counted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from transfiner_refine.errors import InputError
from transfiner_refine.formats import Mask
from transfiner_refine.formats.records import Instance
from transfiner_refine.masks import MaskWindow

__all__ = ["Selection", "category_ids"]


@dataclass(frozen=True)
class Selection:
    """The filters of a run.

    Attributes:
        min_area: foreground pixels below which a coarse mask is left alone.
        score_threshold: detector scores below it are left alone; instances without a score are refined.
        categories: category ids to refine, None for all.
    """

    min_area: int = 0
    score_threshold: float | None = None
    categories: frozenset[int] | None = None

    def reason_to_skip(self, instance: Instance) -> str | None:
        """Why an instance passes through by what is said of it, None if nothing speaks against it."""
        if instance.is_crowd:
            return "crowd or void region"
        if instance.is_stuff:
            return "stuff region"
        if (
            self.score_threshold is not None
            and instance.score is not None
            and instance.score < self.score_threshold
        ):
            return f"score below {self.score_threshold:g}"
        if self.categories is not None and instance.category_id not in self.categories:
            return "category not chosen"
        return None

    def reason_to_skip_mask(self, coarse_mask: Mask | MaskWindow) -> str | None:
        """Why an instance passes through by its mask, None if nothing speaks against it."""
        area = coarse_mask.area
        if area == 0:
            return "empty mask"
        if area < self.min_area:
            return f"area below {self.min_area} pixels"
        return None


def category_ids(chosen: Iterable[int | str], known: Mapping[int, str], file: Path) -> frozenset[int] | None:
    """Category ids from ids and names as a user gives them; None if none are given.

    A name goes before an id; where the file names no categories, ids alone can be given and any is taken.

    Raises:
        InputError: a name or id that the file does not have.
    """
    ids: set[int] = set()
    for choice in chosen:
        named = {category_id for category_id, name in known.items() if name == choice}
        if named:
            ids |= named
        elif _is_whole(choice) and (not known or int(choice) in known):
            ids.add(int(choice))
        else:
            listed = ", ".join(f"{category_id} {name}" for category_id, name in list(known.items())[:8])
            more = ", ..." if len(known) > 8 else ""
            remedy = (
                f"choose among {listed}{more}" if known else "give a category id, for this file has no names"
            )
            raise InputError(f"has no category {str(choice)!r}", file=file, remedy=remedy)
    return frozenset(ids) or None


def _is_whole(choice: int | str) -> bool:
    return isinstance(choice, int) or choice.removeprefix("-").isdecimal()
