"""What the Python API takes for an image and for masks, as the arrays that a refiner works on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from transfiner_refine.errors import InputError
from transfiner_refine.formats.label_maps import kind_of, places_of
from transfiner_refine.formats.png import MaskPixels
from transfiner_refine.images import opened, pixels_of, read_image
from transfiner_refine.masks import MaskWindow

if TYPE_CHECKING:
    from torch import Tensor

#: A path, a Pillow image, or an array or tensor: H×W, H×W×C or C×H×W with 1 to 4 channels.
ImageLike: TypeAlias = Union[str, Path, Image.Image, NDArray[Any], "Tensor"]
#: A path, a Pillow image or an array: H×W, N×H×W or N×1×H×W; or a list of single masks.
MaskLike: TypeAlias = str | Path | Image.Image | NDArray[Any] | Sequence[Any]

Size: TypeAlias = tuple[int, int]  # (height, width), pixels
_CHANNELS = (1, 2, 3, 4)


def to_numpy(values: Any) -> NDArray[Any]:
    """An array, or a torch tensor on any device, of any type, with or without a gradient, as a numpy array."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if values.dtype.is_floating_point else values  # numpy has no bfloat16
    return np.asarray(values)


def like(values: NDArray[Any], original: Any) -> Any:
    """Numbers as a tensor on the device of ``original``, if that is one, else as they are."""
    if not hasattr(original, "detach"):
        return values
    import torch  # here, because an array needs none

    return torch.from_numpy(np.ascontiguousarray(values)).to(original.device)


@dataclass(frozen=True)
class GivenMasks:
    """Masks as they were given.

    Attributes:
        values: [N, H, W] bool, or float32 in [0, 1].
        shaped: puts [N, H, W] results into the shape and the kind (array or tensor) of what was given.
    """

    values: NDArray[Any]
    shaped: Callable[[NDArray[Any]], Any]

    def pasted(self, windows: Iterable[MaskWindow], dtype: Any) -> NDArray[Any]:
        """[N, H, W] of windows, one for each mask."""
        full = np.zeros(self.values.shape, dtype)
        for values, mask in zip(full, windows, strict=True):
            mask.of(values)[...] = mask.values
        return full


def image_and_masks(image: Any, masks: Any, *, bgr: bool = False) -> tuple[NDArray[np.uint8], GivenMasks]:
    """An image [H, W, 3] uint8 RGB and its masks.

    Raises:
        InputError: of no known kind, damaged, or masks of another size than the image's.
    """
    given = as_masks(masks)
    size: Size = (given.values.shape[1], given.values.shape[2])
    if given.values.ndim == 3 and not len(given.values):
        pixels = as_image(image, None, bgr=bgr)
        if 0 in size:  # no masks of no size, as a detector without detections has them
            values = np.zeros((0, *pixels.shape[:2]), given.values.dtype)
            return pixels, GivenMasks(values, given.shaped)
    pixels = as_image(image, size, bgr=bgr)
    if size != pixels.shape[:2]:
        raise InputError(
            f"masks of {size[0]}×{size[1]} pixels for an image of {pixels.shape[0]}×{pixels.shape[1]} "
            "(height × width)"
        )
    return pixels, given


def as_image(image: Any, size: Size | None = None, *, bgr: bool = False) -> NDArray[np.uint8]:
    """An image as [H, W, 3] uint8 RGB.

    Args:
        image: see ``ImageLike``. Floats lie in [0, 1]; 16-bit integers in 0 … 65535, others in 0 … 255.
        size: (height, width) of its masks, which decides how a file is turned, and where channels are.
        bgr: channels are blue, green, red. Files and Pillow images know their order.

    Raises:
        InputError: it is of no known kind, or a file that cannot be read.
    """
    if isinstance(image, (str, Path)):
        return read_image(Path(image), [size] if size else ())[0]
    if isinstance(image, Image.Image):
        return pixels_of(image, size)
    values = to_numpy(image)
    stated = f"an image of shape {values.shape} and type {values.dtype}"
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3:
        raise InputError(stated, remedy="expected H×W×3, H×W or 3×H×W; give several images as a list")
    is_first = values.shape[0] in _CHANNELS and (size is not None and values.shape[1:] == size)
    if values.shape[2] not in _CHANNELS or (is_first and values.shape[:2] != size):
        values = values.transpose(1, 2, 0)
    if values.shape[2] not in _CHANNELS:
        raise InputError(stated, remedy="expected 1 to 4 channels, as H×W×C or C×H×W")
    pixels = _bytes(values, stated)
    if pixels.shape[2] < 3:  # grey, with or without alpha
        pixels = pixels[..., :1].repeat(3, axis=2)
    pixels = pixels[..., :3]  # alpha goes
    return np.ascontiguousarray(pixels[..., ::-1] if bgr else pixels)


def _bytes(values: NDArray[Any], stated: str) -> NDArray[np.uint8]:
    if values.dtype == np.uint8:
        return values
    if values.dtype == bool:
        return values.astype(np.uint8) * np.uint8(255)
    least, most = (values.min(), values.max()) if values.size else (0, 0)
    if np.issubdtype(values.dtype, np.floating):
        if not (least >= 0 and most <= 1):
            remedy = "give uint8, or floats in [0, 1]; undo the detector's normalisation"
            raise InputError(f"{stated} with values from {least:g} to {most:g}", remedy=remedy)
        return np.rint(values * 255.0).astype(np.uint8)
    if values.dtype == np.uint16:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if not (np.issubdtype(values.dtype, np.integer) and least >= 0 and most <= 255):
        raise InputError(f"{stated} with values from {least} to {most}", remedy="give uint8 in 0 … 255")
    return values.astype(np.uint8)


def as_masks(masks: Any) -> GivenMasks:
    """Masks as [N, H, W] bool or float32.

    Args:
        masks: see ``MaskLike``; tensors, too. bool, 0/1, 0/255, floats in [0, 1], or 0 … 255 where an 8-bit mask is
            soft. A file that is a label map gives one mask an id.

    Raises:
        InputError: they are of no known kind, of several sizes, or have other values.
    """
    if isinstance(masks, (list, tuple)):
        parts = [as_masks(mask) for mask in masks]
        sizes = sorted({part.values.shape[1:] for part in parts})
        if len(sizes) > 1 or any(len(part.values) != 1 for part in parts):
            what = (
                f"a list of masks of {len(sizes)} sizes" if len(sizes) > 1 else "a list of several masks each"
            )
            raise InputError(
                what, remedy="one image takes masks of one size; of several images give a list of lists"
            )
        if not parts:
            return GivenMasks(np.zeros((0, 0, 0), bool), lambda refined: refined)
        first = masks[0]
        return GivenMasks(
            np.concatenate([part.values for part in parts]), lambda refined: like(refined, first)
        )
    if isinstance(masks, (str, Path, Image.Image)):
        if isinstance(masks, Image.Image):
            found, is_map = _masks_in(masks, None)
        else:
            with opened(Path(masks)) as image:
                image.load()
                found, is_map = _masks_in(image, Path(masks))
        return GivenMasks(found, lambda refined: refined if is_map else refined[0])
    values = to_numpy(masks)
    shape = values.shape
    if len(shape) == 4 and shape[1] == 1:
        values = values[:, 0]
    elif len(shape) == 2:
        values = values[None]
    elif len(shape) != 3:
        remedy = "expected H×W, N×H×W or N×1×H×W; of several images give a list"
        raise InputError(f"masks of shape {shape}", remedy=remedy)

    def shaped(refined: NDArray[Any]) -> Any:
        return like(
            refined[:, None] if len(shape) == 4 else refined[0] if len(shape) == 2 else refined, masks
        )

    return GivenMasks(mask_values(values), shaped)


def mask_values(values: NDArray[Any]) -> NDArray[Any]:
    """Numbers of any type as bool, or float32 in [0, 1] where they are soft.

    Raises:
        InputError: they are neither, as logits and label maps are.
    """
    if values.dtype == bool or not values.size:
        return (
            values.astype(bool) if not np.issubdtype(values.dtype, np.floating) else values.astype(np.float32)
        )
    least, most = values.min(), values.max()
    if np.issubdtype(values.dtype, np.floating):
        if least >= 0 and most <= 1:  # NaN is neither
            return values.astype(np.float32)
        if least == 0 and most == 255 and np.isin(values, (0, 255)).all():
            return values > 0
        raise InputError("soft masks with values outside [0, 1]", remedy="pass probabilities, not logits")
    if np.issubdtype(values.dtype, np.integer) and least >= 0:
        if most <= 1:
            return values.astype(bool)
        if np.isin(values, (0, most)).all():
            return values > 0
        if values.dtype == np.uint8 and not any(_is_label_map(mask) for mask in values):
            return values.astype(np.float32) / 255
        remedy = "give one mask an id: np.stack([labels == i for i in ids]); or 0/1, 0/255 or probabilities"
        raise InputError(f"masks of type {values.dtype} with values beyond 0 and 1", remedy=remedy)
    raise InputError(f"masks of type {values.dtype} with values from {least} to {most}", remedy="pass bool")


def _is_label_map(values: NDArray[np.uint8]) -> bool:
    return kind_of(MaskPixels(values, 255, False, [])) == "label-map"


def _masks_in(image: Image.Image, path: Path | None) -> tuple[NDArray[Any], bool]:
    """[N, H, W] bool or float32 of a Pillow image, and whether it is a label map.

    Where some pixels are not opaque, the alpha channel is the mask.
    """
    has_palette = image.mode == "P"
    values: NDArray[Any] = np.asarray(image)
    if image.mode in ("LA", "RGBA", "PA"):
        alpha = values[..., -1]
        values = alpha if (alpha < 255).any() else values[..., :-1]
    if values.ndim == 3:
        if (values[..., 1:] != values[..., :1]).any():
            remedy = "save it with one channel, a palette, or the mask as alpha"
            raise InputError("is in colours, which no mask is", file=path, remedy=remedy)
        values = np.ascontiguousarray(values[..., 0])
    if image.format == "JPEG":  # its noise makes ramps of edges, and specks on plains
        values = values >= 128
    if values.dtype.kind not in "ui":
        return mask_values(values[None]), False
    white = 255 if values.dtype == np.uint8 else 65535
    ids = list(places_of(values))
    if len(ids) > 1 and kind_of(MaskPixels(values, white, has_palette, [])) == "label-map":
        ids = [each for each in ids if not (has_palette and each == 255)]  # 255 in a palette is "void"
        return np.stack([values == each for each in ids]), True
    return (values > 0 if len(ids) < 2 else values.astype(np.float32) / white)[None], False


def window_around(values: NDArray[Any]) -> MaskWindow:
    """A full-size mask [H, W], bool or soft, as a window around its values above zero."""
    above = MaskWindow(values > 0, 0, 0, (values.shape[0], values.shape[1])).tight()
    return replace(above, values=above.of(values))
