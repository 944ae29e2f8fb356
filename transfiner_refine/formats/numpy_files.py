"""Masks as NumPy arrays: ``.npz`` and ``.npy`` files, one an image or one for several images.

    masks/street.npz     pred_masks [N, H, W], scores [N], pred_classes [N], and whatever else
    masks/street.npy     [N, H, W], [H, W, N] or [H, W]

An [H, W] array of whole numbers is a label map. In a stack each mask is 0 and one other value, or soft: 0 ... 255 in
uint8, 0 ... 1 in floats. A file of several images has the keys STEM, or STEM/pred_masks and so on. Refined masks go
back into their array, in its own type and order; all other arrays stay byte for byte. Arrays of Python objects are
pickles, which may run code, and are never loaded.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from math import isnan
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.errors import InputError, short
from transfiner_refine.formats.array_files import PICKLED, ArrayFile, ArrayHeader, add_arrays, is_array_file
from transfiner_refine.formats.folders import FolderEntry, FolderSource, first_files
from transfiner_refine.formats.label_map_formats import LABEL_MAPS
from transfiner_refine.formats.label_maps import (
    LabelMask,
    Shared,
    exchanged,
    kind_of,
    places_of,
    shared_map,
    stretched,
    zero_of,
)
from transfiner_refine.formats.png import MaskPixels
from transfiner_refine.formats.records import (
    Format,
    ImageRecord,
    Instance,
    OpenOptions,
    RecordFault,
    Source,
    Written,
)
from transfiner_refine.formats.writing import Conversion
from transfiner_refine.image_folders import ImageTree, beginnings
from transfiner_refine.images import SUFFIXES, check_pixels, upright_size
from transfiner_refine.inputs import mask_values, window_around
from transfiner_refine.masks import Mask, MaskWindow
from transfiner_refine.output import atomic_binary_file, atomic_folder

_SUFFIXES = (".npz", ".npy")
_MASKS = (
    "pred_masks",
    "masks",
    "mask",
    "instance_masks",
    "segmentation",
    "segmentations",
    "label_map",
    "labels",
)
# what is said of each mask: of these keys the first that has as many values as there are masks
_SAID = {
    "score": ("scores", "pred_scores", "score", "confidence", "confidences", "conf"),
    "category_id": ("pred_classes", "classes", "labels", "class_ids", "category_ids"),
    "is_crowd": ("iscrowd",),
}
_FEW = 16  # as the last of three axes, rather the number of masks than the width of an image


class _Layout(NamedTuple):
    """How an array of masks lies."""

    shape: tuple[int, int, int]  # N, H, W
    single: int | None = None  # the axis of four that has length 1
    is_last: bool = False  # the masks are counted along the last axis

    def stack(self, array: NDArray[Any]) -> NDArray[Any]:
        """[N, H, W]: a view of the array."""
        array = array if self.single is None else np.moveaxis(array, self.single, 0)[0]
        return array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0) if self.is_last else array

    def array(self, stack: NDArray[Any], ndim: int) -> NDArray[Any]:
        """The array of which a stack is the view."""
        stack = np.moveaxis(stack, 0, -1) if self.is_last else stack
        stack = stack if self.single is None else np.expand_dims(stack, self.single)
        return stack[0] if ndim < stack.ndim else stack


class _Masks(NamedTuple):
    """The masks of one image."""

    key: str
    layout: _Layout
    said: Mapping[str, str]  # keys of what is said of each mask, by the field of ``Instance``
    ids: Collection[int] | None = None  # of a label map
    zero: int | None = None  # which of them is 0 in the array


_NONE = _Masks("", _Layout((0, 0, 0)), {})


def _read_stack(path: Path, key: str, layout: _Layout) -> NDArray[Any]:
    return layout.stack(ArrayFile(path).read(key))


@dataclass(frozen=True)
class ArrayMask:
    """One mask of an array; ``size`` is (height, width), pixels."""

    stack: Shared[NDArray[Any]]
    index: int
    size: tuple[int, int]

    def decode(self) -> MaskWindow:
        """The mask inside its bounding box: bool, or float32 in [0, 1] where it is soft; raises InputError."""
        return window_around(mask_values(self.stack.get()[self.index][None])[0])


def _full(plane: NDArray[Any]) -> float:
    """The value of full foreground in an [H, W] mask."""
    largest = plane.max(initial=0)
    if plane.dtype.kind == "f":
        return float(max(largest, 1))
    return int(largest or 1) if ((plane == 0) | (plane == largest)).all() else 255


def _map_pixels(array: NDArray[Any], background: int | None) -> MaskPixels:
    if array.size and not 0 <= array.min() <= array.max() < 1 << 31:
        reason = f"has ids from {array.min()} to {array.max()}"
        raise InputError(reason, remedy=f"save ids from 0 to {(1 << 31) - 1}")
    white = 255 if array.dtype == np.uint8 else (1 << 31) - 1
    return MaskPixels(exchanged(array.astype(np.uint32), background), white, False, [])


def _read_map(path: Path, key: str, layout: _Layout, background: int | None) -> MaskPixels:
    return _map_pixels(layout.stack(ArrayFile(path).read(key))[0], background)


def _layout(shape: tuple[int, ...], counts: Collection[int], size: tuple[int, int] | None) -> _Layout | None:
    """How an array lies, where the image has a size and some lists of numbers a length; None where it is none."""
    single = None
    if len(shape) == 4:
        single = next((axis for axis in (1, 3, 0) if shape[axis] == 1), None)
        shape = shape if single is None else shape[:single] + shape[single + 1 :]
    if len(shape) == 2:
        return _Layout((1, shape[0], shape[1]), single)
    if len(shape) != 3:
        return None
    a, b, c = shape
    first, last = (b, c) == size, (a, b) == size
    if first == last:
        first, last = a in counts, c in counts
    if first == last:
        last = c < _FEW <= min(a, b)
    return _Layout((c, a, b) if last and not first else (a, b, c), single, last and not first)


class NumpySource(FolderSource):
    """The arrays of a file, or of the files of a folder and its subfolders."""

    def __init__(self, path: Path, options: OpenOptions) -> None:
        """Reads what the arrays are, and label maps, to know their ids; raises InputError where there are none."""
        super().__init__(path, options)
        self.fit_masks = options.fit_masks
        self._tree = None if options.images is None else ImageTree(options.images)
        self._masks: list[_Masks] = []  # of each entry
        self._edited: tuple[Path, PurePosixPath, dict[str, NDArray[Any]]] | None = None
        entries = list[FolderEntry]()
        names = [name for name in self.files if path.is_file() or name.suffix.lower() in _SUFFIXES]
        for name in names:
            try:
                found = list(self._entries(name))
            except InputError as error:
                found = [(FolderEntry(name, name, 1, error=error.at(self.folder / name)), _NONE)]
            entries += [entry for entry, _ in found]
            self._masks += [masks for _, masks in found]
        self.entries = tuple(entries)
        if not names:
            raise InputError("holds no NumPy files", file=path, remedy="give a folder of .npz or .npy")
        self.find_images(self._tree)

    def instances_of(
        self,
        position: int,
        size: Callable[[], tuple[int, int]],  # noqa: ARG002  arrays have sizes of their own
    ) -> Iterator[Instance | RecordFault]:
        name, masks = self.entries[position].name, self._masks[position]
        path, (count, height, width) = self.folder / name, masks.layout.shape
        if masks.ids is not None:
            read = partial(_read_map, path, masks.key, masks.layout, self.options.background)
            label_map = shared_map(read)
            for number, value in enumerate(masks.ids):
                mask, stored = (
                    LabelMask(label_map, value, (height, width)),
                    0 if value == masks.zero else value,
                )
                yield Instance(number, mask, f"{name} id {stored}", instance_id=stored)
            return
        stack = Shared(partial(_read_stack, path, masks.key, masks.layout))
        said = {field: ArrayFile(path).read(key).tolist() for field, key in masks.said.items()}
        for index in range(count):
            fields: dict[str, Any] = {field: values[index] for field, values in said.items()}
            if isnan(fields.get("score", 0.0)):
                del fields["score"]
            if fields.get("category_id", 0) < 0:
                del fields["category_id"]
            label = f"{name} {masks.key}[{index}]" if masks.key else f"{name} [{index}]"
            yield Instance(index, ArrayMask(stack, index, (height, width)), label, **fields)

    def write_image(self, position: int, masks: Mapping[int, Mask], draft: Path) -> Written:
        name, own = self.entries[position].name, self._masks[position]
        self.read(name)  # which refuses what has changed
        array = ArrayFile(self.folder / name).read(own.key)
        stack, size, written = own.layout.stack(array), next(iter(masks.values())).size, Written()
        if stack.shape[1:] != size:
            resized = np.empty((len(stack), *size), stack.dtype)
            for plane, old in zip(resized, stack, strict=True):
                plane[...] = stretched(old, size)
            stack, array = resized, own.layout.array(resized, array.ndim)
        if own.ids is not None:
            ids, background = list(own.ids), self.options.background
            merged = LABEL_MAPS.on(background).update(
                _map_pixels(stack[0], background).values, [(ids[n], mask) for n, mask in masks.items()]
            )
            stack[0] = exchanged(merged.values, background, own.zero)
            written = Written(merged.overlap_pixels, tuple(ids.index(value) for value in merged.covered))
        else:
            for index, mask in masks.items():
                plane = stack[index]
                plane[...] = np.where(mask.decode().paste(), _full(plane), 0)
        if self._edited is not None and self._edited[:2] != (draft, name):
            self._flush(draft)
        self._edited = (draft, name, {} if self._edited is None else self._edited[2])
        self._edited[2][own.key] = array
        return written

    def _entries(self, name: PurePosixPath) -> Iterator[tuple[FolderEntry, _Masks]]:
        """The images of a file."""
        self.read(name)  # to notice changes
        file = ArrayFile(self.folder / name)
        headers = file.headers()
        chosen: dict[str, str] = {}  # the key of the masks by what stands before the last /
        for wanted in _MASKS:
            for key, header in headers.items():
                prefix, _, last = key.rpartition("/")
                if last == wanted and len(header.shape) > 1:
                    chosen.setdefault(prefix, key)
        if not chosen:
            others = [key for key, header in headers.items() if 2 <= len(header.shape) <= 4]
            chosen = {"": others[0]} if len(others) == 1 else {key: key for key in others}
        if any(
            header.dtype.hasobject for key, header in headers.items() if not chosen or key in chosen.values()
        ):
            raise InputError(PICKLED, remedy="save arrays of numbers")
        if not chosen:
            keys = (
                ", ".join(f"{key} {list(header.shape)}" for key, header in list(headers.items())[:4])
                or "none"
            )
            remedy = "save them as pred_masks [N, H, W]"
            raise InputError(f"holds no masks (arrays: {keys})", remedy=remedy)
        for prefix, key in chosen.items():
            stem = self._stem(name, prefix)
            masks = self._masks_of(file, key, headers, stem)
            count, height, width = masks.layout.shape
            check_pixels(height, width, self.options.max_image_pixels)
            yield (
                FolderEntry(name, stem, count if masks.ids is None else len(masks.ids), size=(height, width)),
                masks,
            )

    def _stem(self, name: PurePosixPath, prefix: str) -> PurePosixPath:
        """Where the image of an array must lie and what it must be called, without ending."""
        if prefix:
            path = PurePosixPath(prefix)
            return path.with_suffix("") if path.suffix.lower() in SUFFIXES else path
        stem, tree = name.with_suffix(""), self._tree
        if tree is None:
            return stem
        known = next((each for each in beginnings(stem.name) if tree.has_key(each)), None)
        if known is None and len(tree.images) == len(self.files) == 1:
            return tree.images[0].with_suffix("")
        return stem if known is None else stem.with_name(known)

    def _masks_of(
        self, file: ArrayFile, key: str, headers: Mapping[str, ArrayHeader], stem: PurePosixPath
    ) -> _Masks:
        shape, _, dtype = headers[key]
        before = key[: key.rfind("/") + 1]
        lists = {each: found.shape[0] for each, found in headers.items() if len(found.shape) == 1}
        said = {
            field: [before + each for each in keys if before + each in lists] for field, keys in _SAID.items()
        }
        counts = {lists[each] for keys in said.values() for each in keys}
        size: tuple[int, int] | None = None
        with suppress(InputError):
            if self._tree is not None and self.image_folder and (image := self._tree.find(stem)) is not None:
                size = upright_size(self.image_folder / image)
        layout = _layout(shape, counts, size)
        if layout is None:
            reason = f"has {key or 'an array'} of the shape {list(shape)}"
            raise InputError(reason, remedy="save masks as [N, H, W]")
        if len(shape) - (layout.single is not None) == 2 and dtype.kind in "iu":
            values = layout.stack(file.read(key))[0]
            background, kind = self.options.background, self.options.png_kind
            if (background or 0) > np.iinfo(dtype).max:
                raise InputError(
                    f"holds {dtype} values, and --background is {background}", remedy="correct it"
                )
            pixels = _map_pixels(values, 0)
            if kind == "label-map" or (
                kind == "auto" and (background != 0 or kind_of(pixels) == "label-map")
            ):
                zero = zero_of(pixels.values, background)
                return _Masks(key, layout, {}, list(places_of(exchanged(pixels.values, background))), zero)
        fitting = {
            field: [each for each in keys if lists[each] == layout.shape[0]] for field, keys in said.items()
        }
        return _Masks(key, layout, {field: keys[0] for field, keys in fitting.items() if keys})

    def _flush(self, draft: Path) -> None:
        """Writes the file whose arrays were edited last."""
        if self._edited is not None and self._edited[0] == draft:
            _, name, arrays = self._edited
            ArrayFile(self.folder / name).write(arrays, draft / name)
        self._edited = None

    def copy_rest(self, draft: Path, without: Collection[PurePosixPath] = ()) -> None:
        self._flush(draft)
        super().copy_rest(draft, without)


def _recognise(path: Path) -> bool:
    """A folder with more files of arrays than pictures that lose nothing."""
    found = first_files(path, _SUFFIXES)
    return len(found) > len(first_files(path, (".png", ".tif", ".tiff", ".bmp"))) and any(
        map(is_array_file, found)
    )


def _arrays_of(image: ImageRecord, size: tuple[int, int]) -> dict[str, NDArray[Any]]:
    """The arrays of an image whose masks are decoded, under the keys of detectron2."""
    instances = image.instances
    is_soft = any(each.mask.decode().values.dtype != bool for each in instances)
    masks = np.zeros((len(instances), *size), np.float32 if is_soft else bool)
    for plane, each in zip(masks, instances, strict=True):
        window = each.mask.decode()
        window.of(plane)[...] = window.values
    arrays: dict[str, NDArray[Any]] = {"pred_masks": masks}
    if any(each.score is not None for each in instances):
        arrays["scores"] = np.array([np.nan if each.score is None else each.score for each in instances])
    if any(each.category_id is not None for each in instances):
        classes = [-1 if each.category_id is None else each.category_id for each in instances]
        arrays["pred_classes"] = np.array(classes, np.int64)
    if any(each.is_crowd for each in instances):
        arrays["iscrowd"] = np.array([each.is_crowd for each in instances])
    return arrays


def _without_huge_classes(image: ImageRecord, conversion: Conversion) -> ImageRecord:
    kept = []
    for instance in image.instances:
        if abs(instance.category_id or 0) < 1 << 63:
            kept.append(instance)
        else:
            reason = f"its category is {short(instance.category_id)}"
            conversion.leave_out(
                image, instance, reason, "write another format, for NumPy has no such number"
            )
    return replace(image, instances=tuple(kept))


def _write_folder(output: Path, source: Source, results: Mapping[int, Mask]) -> Written:
    """Writes an ``.npz`` file an image."""
    conversion = Conversion(source, results, ending=".npz")
    with atomic_folder(output) as draft:
        for stem, size, image in conversion:
            path = draft / f"{stem}.npz"
            path.parent.mkdir(parents=True, exist_ok=True)
            with zipfile.ZipFile(path, "w") as archive:
                add_arrays(archive, "", _arrays_of(_without_huge_classes(image, conversion), size))
    return conversion.written()


def _write_file(output: Path, source: Source, results: Mapping[int, Mask]) -> Written:
    """Writes one ``.npz`` file, with the stems of the images before the keys."""
    conversion = Conversion(source, results)
    with atomic_binary_file(output) as file, zipfile.ZipFile(file, "w") as archive:
        for stem, size, image in conversion:
            add_arrays(archive, f"{stem}/", _arrays_of(_without_huge_classes(image, conversion), size))
    return conversion.written()


NUMPY = Format("numpy", True, _recognise, NumpySource, _write_folder)
NUMPY_FILE = Format("numpy-file", False, is_array_file, NumpySource, _write_file, suffixes=_SUFFIXES)
