"""COCO and LVIS files as evaluation needs them: true instances and detections, every record checked once.

Records shrink to what is scored. Above all ``bbox`` stays behind: with one, COCO's evaluators take a
detection's area from its box, and AP by size then follows the detector's boxes instead of the masks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transfiner_refine.errors import InputError
from transfiner_refine.formats.segmentation import compressed_masks, mask_from_segmentation
from transfiner_refine.masks import Mask

__all__ = [
    "Annotations",
    "Detection",
    "Image",
    "TrueInstance",
    "load_annotations",
    "load_match",
    "load_results",
    "rle_of",
]

_CHECKED_AT_ONCE = 1024  # masks
_LONGEST_LABEL = 80  # characters; an id can be anything that JSON can hold


@dataclass(frozen=True, slots=True)
class Image:
    """An image of the annotation file.

    Attributes:
        size: (height, width), pixels.
        file_name: as the file has it, "" where it has none.
        absent: LVIS: categories known not to be in it (``neg_category_ids``).
        incomplete: LVIS: categories not marked exhaustively (``not_exhaustive_category_ids``).
    """

    size: tuple[int, int]
    file_name: str = ""
    absent: tuple[int, ...] = ()
    incomplete: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class TrueInstance:
    """A true mask; ``area`` is the file's, as AP takes it (COCO's are of the polygon, not of its pixels)."""

    id: int
    image_id: int
    category_id: int
    mask: Mask
    area: float
    is_crowd: bool


@dataclass(frozen=True, slots=True)
class Detection:
    """One record of a results file.

    Attributes:
        record: its index in the file.
        mask: of its image's size.
        score: None where the file has none.
        annotation_id: the true instance the record says it belongs to, None where it says nothing.
    """

    record: int
    image_id: int
    category_id: int
    mask: Mask
    score: float | None
    annotation_id: int | None


@dataclass(frozen=True)
class Annotations:
    """An annotation file.

    Attributes:
        file: where it was read from.
        images: by image id.
        categories: names by category id.
        frequencies: LVIS's "r", "c" or "f" by category id; empty for a file that is not LVIS's.
        instances: crowds included, in the order of the file.
    """

    file: Path
    images: dict[int, Image]
    categories: dict[int, str]
    frequencies: dict[int, str]
    instances: list[TrueInstance]

    @property
    def is_lvis(self) -> bool:
        """LVIS annotations: not every category is marked in every image, so AP is taken the federated way."""
        return bool(self.frequencies)


def load_annotations(path: str | Path) -> Annotations:
    """Reads a COCO or LVIS annotation file.

    Raises:
        InputError: no such file, invalid JSON, not an annotation file, or a record that cannot be used.
    """
    path = Path(path)
    content = _read_json(path)
    missing = [key for key in ("images", "annotations", "categories") if key not in _keys(content)]
    if missing:
        raise InputError(
            f"not an annotation file: no {', '.join(missing)}",
            file=path,
            remedy="--annotations takes a COCO file with images, annotations and categories",
        )
    categories, frequencies = {}, {}
    for index, entry in enumerate(content["categories"]):
        with _record(path, f"category {index}"):
            categories[int(entry["id"])] = str(entry.get("name", entry["id"]))
            if "frequency" in entry:
                frequencies[int(entry["id"])] = str(entry["frequency"])
    is_lvis = bool(frequencies) and any("neg_category_ids" in entry for entry in content["images"])
    images = {}
    for index, entry in enumerate(content["images"]):
        with _record(path, f"image {index}"):
            images[int(entry["id"])] = Image(
                (int(entry["height"]), int(entry["width"])),
                str(entry.get("file_name", "")),
                tuple(entry.get("neg_category_ids", ())) if is_lvis else (),
                tuple(entry.get("not_exhaustive_category_ids", ())) if is_lvis else (),
            )
    instances = list(_true_instances(path, content["annotations"], images, categories))
    return Annotations(path, images, categories, frequencies if is_lvis else {}, instances)


def load_results(path: str | Path, annotations: Annotations) -> list[Detection]:
    """Reads detections of annotated images: a COCO results list, or the annotations of an annotation file.

    Crowd regions of an annotation file are no detections and are left out.

    Raises:
        InputError: no such file, invalid JSON, or a record that cannot be used.
    """
    path = Path(path)
    content = _read_json(path)
    records = content.get("annotations") if isinstance(content, dict) else content
    if not isinstance(records, list):
        raise InputError("neither a list of results nor an annotation file", file=path)
    del content
    kept, masks = [], []
    for index, entry in enumerate(records):
        with _record(path, f"record {index}"):
            if entry.get("iscrowd"):
                continue
            image_id, category_id = int(entry["image_id"]), int(entry["category_id"])
            if image_id not in annotations.images:
                raise InputError(f"image id {image_id} is not in {annotations.file}")
            masks.append(_compressed(entry["segmentation"], annotations.images[image_id].size))
            score = entry.get("score")
            if score is not None and not math.isfinite(float(score)):
                raise InputError(f"score is {score}")
            key = entry.get("annotation_id")
            kept.append((index, image_id, category_id, None if score is None else float(score), key))
    del records
    checked = _checked(path, masks, [f"record {entry[0]}" for entry in kept])
    return [
        Detection(index, image_id, category_id, mask, score, key)
        for (index, image_id, category_id, score, key), mask in zip(kept, checked, strict=True)
    ]


def load_match(path: str | Path, length: int) -> list[int | None]:
    """Reads which annotation each record of a results file belongs to.

    Args:
        path: a JSON list as long as the results, of ``{"annotation_id": …}`` or of plain ids; null for none.
        length: number of records in the results file.

    Raises:
        InputError: no such file, invalid JSON, another length, or an entry that is no id.
    """
    path = Path(path)
    content = _read_json(path)
    if not isinstance(content, list) or len(content) != length:
        found = f"{len(content)} entries" if isinstance(content, list) else "no list"
        raise InputError(
            f"{found} for {length} results", file=path, remedy="a match file has one for each result"
        )
    keys: list[int | None] = []
    for index, entry in enumerate(content):
        with _record(path, f"entry {index}"):
            key = entry["annotation_id"] if isinstance(entry, dict) else entry
            keys.append(None if key is None else int(key))
    return keys


def rle_of(mask: Mask) -> dict[str, Any]:
    """A mask as pycocotools and the evaluators take it."""
    return {"size": list(mask.size), "counts": mask.counts}


def _true_instances(
    path: Path, records: list[dict[str, Any]], images: dict[int, Image], categories: dict[int, str]
) -> Iterable[TrueInstance]:
    """The annotations, with their masks compressed and checked."""
    masks, labels = [], []
    for index, entry in enumerate(records):
        known = isinstance(entry, dict) and "id" in entry
        labels.append(
            f"annotation id {entry['id'] if known else f'missing (entry {index})'}"[:_LONGEST_LABEL]
        )
        with _record(path, labels[-1]):
            if int(entry["image_id"]) not in images:
                raise InputError(f"image id {entry['image_id']} is not among the images")
            if int(entry["category_id"]) not in categories:
                raise InputError(f"category id {entry['category_id']} is not among the categories")
            int(entry["id"])
            masks.append(_compressed(entry["segmentation"], images[int(entry["image_id"])].size))
    for entry, mask, label in zip(records, _checked(path, masks, labels), labels, strict=True):
        with _record(path, label):
            instance = TrueInstance(
                int(entry["id"]),
                int(entry["image_id"]),
                int(entry["category_id"]),
                mask,
                float(entry.get("area", mask.area)),
                bool(entry.get("iscrowd", 0)),
            )
        yield instance


def _compressed(segmentation: Any, image_size: tuple[int, int]) -> dict[str, Any] | Mask:
    """A segmentation of any kind as compressed RLE; one that is so already is checked later, in bulk."""
    if isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), str):
        compressed: dict[str, Any] | Mask = segmentation
        stated = segmentation.get("size")
    else:
        compressed = mask_from_segmentation(segmentation, lambda: image_size)
        stated = list(compressed.size)
    expected = list(image_size)
    if stated != expected or any(
        type(side) is not int for side in stated
    ):  # 12.0 and True equal numbers, too
        raise InputError(f"mask of size {stated} in an image of {expected} (height, width)")
    return compressed


def _checked(path: Path, segmentations: list[dict[str, Any] | Mask], labels: list[str]) -> list[Mask]:
    """The masks; a damaged one is reported under its label."""
    found: list[Mask] = []
    for first in range(0, len(segmentations), _CHECKED_AT_ONCE):
        some = segmentations[first : first + _CHECKED_AT_ONCE]
        for value, mask, label in zip(some, compressed_masks(some), labels[first:], strict=False):
            if isinstance(value, Mask):
                found.append(value)
                continue
            with _record(path, label):
                found.append(mask or Mask((value["size"][0], value["size"][1]), value["counts"]))
        Mask.encode(found[first:])
    return found


def _keys(content: Any) -> set[str]:
    """The keys whose values are lists of records, as those of an annotation file are."""
    return (
        {key for key, value in content.items() if isinstance(value, list)}
        if isinstance(content, dict)
        else set()
    )


def _read_json(path: Path) -> Any:
    """The content of a JSON file."""
    try:
        with path.open("rb") as stream:
            return json.load(stream)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=path) from error
    except (ValueError, RecursionError) as error:  # also: not UTF-8, a number of thousands of digits
        raise InputError(f"not valid JSON ({error})", file=path, remedy="is it complete?") from error


class _record:  # noqa: N801 — reads as a statement: with _record(path, "record 17")
    """Names file and record in whatever goes wrong with a record."""

    def __init__(self, path: Path, label: str) -> None:
        self.path, self.label = path, label

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, InputError):
            raise InputError(error.reason, file=self.path, record=self.label, remedy=error.remedy) from error
        if isinstance(error, KeyError):
            raise InputError(f"no {error.args[0]}", file=self.path, record=self.label) from error
        if isinstance(error, TypeError | ValueError | AttributeError | OverflowError):
            raise InputError(f"not a valid record ({error})", file=self.path, record=self.label) from error
