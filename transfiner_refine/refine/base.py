"""What every refiner offers, whatever network it runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.errors import InputError
from transfiner_refine.masks import MaskWindow

if TYPE_CHECKING:
    from transfiner_refine.trace import Trace

Images: TypeAlias = Sequence[NDArray[np.uint8]]  # H×W×3 RGB each


class BaseRefiner(ABC):
    """What every refiner offers: masks of one image, on top of ``refine_windows``.

    Attributes:
        device: "cpu", "cuda", "cuda:N" or "mps".
        engine: "onnx" or "torch".
        precision: "fp32", "bf16", "fp16" or "int8".
        batch_size: instances it wants at a time.
    """

    device: str
    engine: str
    precision: str
    batch_size: int

    def refine(self, image: NDArray[np.uint8], masks: NDArray[Any], *, soft: bool = False) -> NDArray[Any]:
        """Refines all masks of one image.

        Args:
            image: H×W×3 uint8 RGB.
            masks: N×H×W bool, or float in [0, 1] where the detector's masks are soft.
            soft: return probabilities instead of thresholding them at 0.5.

        Returns:
            N×H×W bool, or float32 in [0, 1] with ``soft``. Empty masks stay empty.

        Raises:
            InputError: shapes or types do not fit.
        """
        image, masks = np.asarray(image), np.asarray(masks)
        if masks.ndim != 3:
            remedy = "expected N×H×W; use masks[None] for one mask"
            raise InputError(f"masks of shape {masks.shape}", remedy=remedy)
        check_image(image)
        if masks.shape[1:] != image.shape[:2]:
            raise InputError(
                f"masks of {masks.shape[1]}×{masks.shape[2]} pixels for an image of "
                f"{image.shape[0]}×{image.shape[1]} (height × width)"
            )
        windows = [window_of(mask) for mask in masks]
        refined = self.refine_windows([image], windows, [0] * len(windows), soft=soft)
        result = np.zeros(masks.shape, np.float32 if soft else bool)
        for mask, window in zip(result, refined, strict=True):
            window.of(mask)[...] = window.values
        return result

    @abstractmethod
    def refine_windows(
        self, images: Images, masks: Sequence[MaskWindow], image_index: Sequence[int], *, soft: bool = False
    ) -> list[MaskWindow]:
        """Refines instances of one or several images.

        Args:
            images: H×W×3 uint8 RGB each.
            masks: coarse masks, bool or float in [0, 1].
            image_index: for each mask, the image it belongs to.
            soft: return probabilities.

        Returns:
            one window per mask, in order: the RoI, bool (float32 with ``soft``). Masks without a pixel ≥ 0.5 come
            back as they are.

        Raises:
            InputError: a mask belongs to an image of another size.
        """

    def trace(self, image: NDArray[np.uint8], mask: MaskWindow) -> Trace:  # noqa: ARG002
        """What ``transfiner_refine.trace.trace`` returns of a mask that is not empty.

        Raises:
            InputError: this refiner keeps no trace.
            DeviceError: it keeps none in its engine.
        """
        raise InputError(f"a {type(self).__name__} keeps no trace")


def check_masks(images: Images, masks: Sequence[MaskWindow], image_index: Sequence[int]) -> None:
    """Raises InputError where an image is none, or a mask belongs to an image of another size."""
    for i, (mask, index) in enumerate(zip(masks, image_index, strict=True)):
        check_image(images[index])
        if mask.image_size != images[index].shape[:2]:
            raise InputError(
                f"mask {i} is for an image of {mask.image_size}, its image is {images[index].shape[:2]}"
            )


def window_of(mask: NDArray[Any]) -> MaskWindow:
    """A full-size mask [H, W] as a window around its values above zero."""
    if np.issubdtype(mask.dtype, np.floating):
        if mask.size and not (np.isfinite(mask).all() and mask.min() >= 0 and mask.max() <= 1):
            raise InputError("soft masks with values outside [0, 1]", remedy="pass probabilities, not logits")
        mask = mask.astype(np.float32)
    elif mask.dtype != bool:
        if mask.size and not np.isin(mask, (0, 1)).all():
            beyond = f"masks of type {mask.dtype} with values beyond 0 and 1"
            raise InputError(beyond, remedy="pass bool or floats in [0, 1]")
        mask = mask.astype(bool)
    above = MaskWindow(mask > 0, 0, 0, (mask.shape[0], mask.shape[1])).tight()
    return replace(above, values=above.of(mask))


def check_image(image: NDArray[Any]) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise InputError(
            f"an image of shape {image.shape} and type {image.dtype}", remedy="expected H×W×3 uint8 RGB"
        )
