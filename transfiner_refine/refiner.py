"""The public API: load a refiner, give it an image and coarse masks, get sharp masks back."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.errors import InputError
from transfiner_refine.masks import Mask, MaskWindow
from transfiner_refine.model.weights import DEFAULT_WEIGHTS, find_weights, is_native, read_config
from transfiner_refine.refine.engine import Engine, engine_name, require_torch, usable_cores
from transfiner_refine.refine.instance import harden, refine_instance
from transfiner_refine.refine.roi import Images
from transfiner_refine.renamed import renamed

if TYPE_CHECKING:
    from transfiner_refine.refine.device_queue import BatchedPasses
    from transfiner_refine.trace import Trace

_CPU_BATCH = 32


@renamed(close_ups="tiles")
def load_refiner(
    weights: str | Path = DEFAULT_WEIGHTS,
    *,
    device: str = "auto",
    engine: str = "auto",
    precision: str = "auto",
    batch_size: int | None = None,
    tiles: bool = True,
) -> BaseRefiner:
    """Loads a refiner.

    Args:
        weights: name of a built-in model, or a path to a checkpoint: of this package, or of the authors
            (``.pth``, ``.pkl`` or converted), told apart by content.
        device: ``auto`` (CUDA, then MPS, then the CPU), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        engine: ``onnx`` (onnxruntime, on a CPU, needs no PyTorch), ``torch``, or ``auto``: ``onnx`` on a CPU for
            weights that were exported (the built-in ones are), ``torch`` otherwise.
        precision: ``auto``, ``fp32``, ``bf16``, ``fp16`` or ``int8``. ``auto`` is ``int8`` on the ``onnx`` engine where
            the processor has instructions for it, half precision on a GPU that has it, and ``fp32`` elsewhere.
        batch_size: instances handed to the device at once; masks do not depend on it.
        tiles: refine large objects once more in tiles. Sharper, and they take about two and a half times as
            long. The authors' networks have no tiles.

    Raises:
        CheckpointError: the weights are missing, damaged or of another kind.
        DeviceError: the device, the engine or the precision is not available.
    """
    path = find_weights(weights)
    if not is_native(path):
        require_torch()
        from transfiner_refine.official import load_official_refiner  # here, because it imports torch

        return load_official_refiner(
            path, device=device, engine=engine, precision=precision, batch_size=batch_size
        )
    runs: Engine
    if engine_name(engine, device, precision, path) == "onnx":
        from transfiner_refine.refine.onnx_engine import OnnxEngine  # without PyTorch

        runs = OnnxEngine(path, read_config(path), precision)
    else:
        from transfiner_refine.model.checkpoint import load_network
        from transfiner_refine.refine.torch_engine import TorchEngine

        runs = TorchEngine(load_network(path), device, precision)
    return Refiner(runs, batch_size=batch_size, tiles=tiles)


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


class Refiner(BaseRefiner):
    """Refines coarse instance masks (Mask Transfiner, CVPR 2022, applied after the fact).

    Args:
        engine: runs the network.
        batch_size, tiles: as in ``load_refiner``.
    """

    def __init__(self, engine: Engine, *, batch_size: int | None = None, tiles: bool = True) -> None:
        if batch_size is not None and batch_size < 1:
            raise InputError(f"batch size {batch_size}", remedy="it must be at least 1")
        self.device, self.engine, self.precision = engine.device, engine.name, engine.precision
        self.tiles, self.config, self.runs = tiles, engine.config, engine
        self.batch_size = batch_size or _CPU_BATCH
        self._batched: BatchedPasses | None = None
        if engine.device != "cpu":
            from transfiner_refine.refine.device_queue import BatchedPasses, fitting_batch  # imports torch
            from transfiner_refine.refine.torch_engine import TorchEngine

            assert isinstance(engine, TorchEngine)
            self.batch_size = batch_size or fitting_batch(engine.torch_device)
            self._batched = BatchedPasses(engine, self.batch_size, tiles=tiles)

    def refine_windows(
        self, images: Images, masks: Sequence[MaskWindow], image_index: Sequence[int], *, soft: bool = False
    ) -> list[MaskWindow]:
        """See ``BaseRefiner``."""
        check_masks(images, masks, image_index)
        if self._batched is None:
            refined = list(self._one_by_one(images, masks, image_index))
        else:
            given = [Mask.from_window(mask) if mask.values.dtype == bool else mask for mask in masks]
            refined = [mask.decode() for mask in self._batched.refine(images, given, image_index, soft=soft)]
        return refined if soft else [harden(mask) for mask in refined]

    def refine_masks(
        self, images: Images, masks: Sequence[Mask | MaskWindow], image_index: Sequence[int]
    ) -> Iterator[Mask]:
        """The same for encoded masks, and windows where masks are soft; on a CPU each comes as soon as it is there."""
        if self._batched is not None:
            for mask in self._batched.refine(images, masks, image_index):
                yield mask if isinstance(mask, Mask) else Mask.from_window(mask)
            return
        windows = [mask.decode() for mask in masks]
        found = self._one_by_one(images, windows, image_index)
        for given, window, refined in zip(masks, windows, found, strict=True):
            yield given if refined is window and isinstance(given, Mask) else Mask.from_window(refined)

    def _one_by_one(
        self, images: Images, masks: Sequence[MaskWindow], image_index: Sequence[int]
    ) -> Iterator[MaskWindow]:
        """Refined probabilities, or given masks that stay, one instance a core at a time."""

        def refine(mask: MaskWindow, index: int) -> MaskWindow:
            if not mask.area:
                return mask
            return refine_instance(self.runs, images[index], mask, tiles=self.tiles)

        waiting = [self._workers.submit(refine, *each) for each in zip(masks, image_index, strict=True)]
        try:
            for each in waiting:
                yield each.result()
        finally:  # after Ctrl-C nobody waits for the rest
            for each in waiting:
                each.cancel()

    def trace(self, image: NDArray[np.uint8], mask: MaskWindow) -> Trace:
        """See ``BaseRefiner``; the ``torch`` engine alone keeps one."""
        from transfiner_refine.trace import native_trace  # here, because it imports torch

        return native_trace(self.runs, image, mask, tiles=self.tiles)

    @cached_property
    def _workers(self) -> ThreadPoolExecutor:
        """A thread a core, no more than OMP_NUM_THREADS where that is set, each with an instance of its own.

        That keeps the cores busier than one instance on all of them, for its tensors are small. And an instance that
        is alone in its step cannot depend on others, not even by rounding.
        """
        limit = os.environ.get("OMP_NUM_THREADS", "")
        cores = min(usable_cores(), max(1, int(limit))) if limit.isdigit() else usable_cores()
        return ThreadPoolExecutor(cores, "transfiner-refine", initializer=self.runs.prepare_thread)


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
