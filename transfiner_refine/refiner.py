"""The public API: load a refiner, give it an image and coarse masks, get sharp masks back."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from transfiner_refine.errors import InputError
from transfiner_refine.inputs import (
    GivenMasks,
    ImageLike,
    MaskLike,
    image_and_masks,
    mask_values,
    window_around,
)
from transfiner_refine.masks import Mask, MaskWindow
from transfiner_refine.model.weights import DEFAULT_WEIGHTS, find_weights, is_native, read_config
from transfiner_refine.refine.engine import IN_PROGRAMS, Engine, engine_name, require_torch, usable_cores
from transfiner_refine.refine.instance import harden, refine_instance
from transfiner_refine.refine.roi import Images
from transfiner_refine.refined import Refined
from transfiner_refine.renamed import renamed

if TYPE_CHECKING:
    import torch

    from transfiner_refine.refine.device_queue import BatchedPasses
    from transfiner_refine.trace import Trace

_CPU_BATCH = 32
_LOG = logging.getLogger("transfiner_refine")
_DTYPES = {"torch.float32": "fp32", "torch.bfloat16": "bf16", "torch.float16": "fp16"}
Progress = Callable[[int, int], object]  # masks that are done, and all of them


@renamed(close_ups="tiles")
def load_refiner(
    weights: str | Path = DEFAULT_WEIGHTS,
    *,
    device: str | torch.device = "auto",
    engine: str = "auto",
    precision: str | torch.dtype = "auto",
    batch_size: int | None = None,
    tiles: bool = True,
    **settings: Any,
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
        settings: any of ``model.config.RefineSettings`` in place of what the weights file says, such as
            ``roi_margin=0.5``. Exported programs hold some of them; with these, ``auto`` takes ``torch``.

    Raises:
        InputError: there is no such setting, or it cannot have that value.
        CheckpointError: the weights are missing, damaged or of another kind.
        DeviceError: the device, the engine or the precision is not available.
    """
    path, device, precision = find_weights(weights), str(device), _DTYPES.get(str(precision), str(precision))
    refiner: BaseRefiner
    if not is_native(path):
        require_torch()
        from transfiner_refine.official import load_official_refiner  # here, because it imports torch

        if settings:
            raise InputError(f"{', '.join(settings)}: settings of the built-in networks, not of the authors'")
        refiner = load_official_refiner(
            path, device=device, engine=engine, precision=precision, batch_size=batch_size
        )
    else:
        config = read_config(path).with_settings(settings)
        if (exported := IN_PROGRAMS & settings.keys()) and engine != "torch":
            if engine == "onnx":
                what = f"{', '.join(sorted(exported))}: held by the exported programs"
                raise InputError(what, remedy='give engine="torch"')
            engine = "torch"
        runs: Engine
        if engine_name(engine, device, precision, path) == "onnx":
            from transfiner_refine.refine.onnx_engine import OnnxEngine  # without PyTorch

            runs = OnnxEngine(path, config, precision)
        else:
            from transfiner_refine.model.checkpoint import load_network
            from transfiner_refine.refine.torch_engine import TorchEngine

            network = load_network(path)
            network.config = config
            runs = TorchEngine(network, device, precision)
        refiner = Refiner(runs, batch_size=batch_size, tiles=tiles)
    refiner.weights = str(weights)
    _LOG.info("loaded %r", refiner)
    return refiner


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

    weights: str = "weights of your own"

    @overload
    def refine(
        self,
        image: ImageLike,
        masks: torch.Tensor,
        *,
        soft: bool = False,
        bgr: bool = False,
        progress: Progress | None = None,
    ) -> torch.Tensor: ...
    @overload
    def refine(
        self,
        image: ImageLike,
        masks: MaskLike,
        *,
        soft: Literal[False] = False,
        bgr: bool = False,
        progress: Progress | None = None,
    ) -> NDArray[np.bool_]: ...
    @overload
    def refine(
        self,
        image: ImageLike,
        masks: MaskLike,
        *,
        soft: Literal[True],
        bgr: bool = False,
        progress: Progress | None = None,
    ) -> NDArray[np.float32]: ...
    @overload
    def refine(
        self,
        image: list[Any] | tuple[Any, ...],
        masks: Sequence[Any],
        *,
        soft: bool = False,
        bgr: bool = False,
        progress: Progress | None = None,
    ) -> list[Any]: ...
    def refine(
        self,
        image: Any,
        masks: Any,
        *,
        soft: bool = False,
        bgr: bool = False,
        progress: Progress | None = None,
    ) -> Any:
        """Refines all masks of one image, or of a list of images in one go.

        Args:
            image: H×W×3 uint8 RGB; or grey, RGBA, channels first, floats in [0, 1], 16 bits, a tensor, a Pillow image
                or a path. Or a list of these.
            masks: N×H×W, H×W or N×1×H×W, array or tensor of any type: bool, 0/1, 0/255, or probabilities in [0, 1]
                where the detector's masks are soft (also 0 … 255 in 8 bits). Or a Pillow image, a path (a label map
                gives one mask an id), a list of single masks. For a list of images a list with the masks of each.
            soft: return probabilities instead of thresholding them at 0.5.
            bgr: arrays and tensors have blue first, as OpenCV reads them.
            progress: called with the number of masks done and of all masks.

        Returns:
            bool, or float32 in [0, 1] with ``soft``, in the shape of ``masks``; a tensor on the same device where a
            tensor was given. Empty masks stay empty. A list for a list of images.

        Raises:
            InputError: shapes or types do not fit.
        """
        several = isinstance(image, (list, tuple))
        batch = (image, masks) if several else ([image], [masks])
        found = [
            given.shaped(given.pasted(windows, np.float32 if soft else bool))
            for given, windows in self._refine_batch(*batch, soft=soft, bgr=bgr, progress=progress)
        ]
        return found if several else found[0]

    def refine_detailed(
        self, image: Any, masks: Any, *, bgr: bool = False, progress: Progress | None = None
    ) -> Refined:
        """``refine`` of one image, with what there is to say of each mask; arguments as there."""
        (found,) = self._refine_batch([image], [masks], soft=True, bgr=bgr, progress=progress)
        given, windows = found
        probabilities = given.pasted(windows, np.float32)
        return Refined.of(given.values, probabilities)

    def _refine_batch(
        self, images: Sequence[Any], masks: Any, *, soft: bool, bgr: bool, progress: Progress | None
    ) -> list[tuple[GivenMasks, list[MaskWindow]]]:
        """What was given for each image, and its masks refined."""
        if not isinstance(masks, (list, tuple)) or len(masks) != len(images):
            stated = len(masks) if isinstance(masks, (list, tuple)) else f"a {type(masks).__name__}"
            raise InputError(
                f"{len(images)} images with masks for {stated}", remedy="give a list with the masks of each"
            )
        pixels, given = [], list[GivenMasks]()
        for number, pair in enumerate(zip(images, masks, strict=True)):
            try:
                image, its_masks = image_and_masks(*pair, bgr=bgr)
            except InputError as error:
                raise (error.at(record=f"image {number}") if len(images) > 1 else error) from None
            pixels.append(image)
            given.append(its_masks)
        windows = [window_of(mask) for each in given for mask in each.values]
        index = [number for number, each in enumerate(given) for _ in each.values]
        refined = list[MaskWindow]()
        for mask in self._one_after_another(pixels, windows, index, soft=soft):
            refined.append(mask)
            if progress is not None:
                progress(len(refined), len(windows))
        rest = iter(refined)
        return [(each, list(islice(rest, len(each.values)))) for each in given]

    def _one_after_another(
        self, images: Images, masks: Sequence[MaskWindow], image_index: Sequence[int], *, soft: bool
    ) -> Iterator[MaskWindow]:
        """``refine_windows``, giving each mask as soon as it is there."""
        yield from self.refine_windows(images, masks, image_index, soft=soft)

    @property
    def network(self) -> str:
        """Weights, engine, precision and device in words."""
        return f"{self.weights}, {self.engine} in {self.precision} on {self.device}"

    def __repr__(self) -> str:
        names = ("weights", "device", "engine", "precision", "batch_size")
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    __call__ = refine

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
        return list(self._one_after_another(images, masks, image_index, soft=soft))

    def _one_after_another(
        self, images: Images, masks: Sequence[MaskWindow], image_index: Sequence[int], *, soft: bool
    ) -> Iterator[MaskWindow]:
        check_masks(images, masks, image_index)
        if self._batched is None:
            found = self._one_by_one(images, masks, image_index)
        else:
            given = [Mask.from_window(mask) if mask.values.dtype == bool else mask for mask in masks]
            found = (mask.decode() for mask in self._batched.refine(images, given, image_index, soft=soft))
        return found if soft else map(harden, found)

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
    return window_around(mask_values(mask[None])[0])


def check_image(image: NDArray[Any]) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise InputError(
            f"an image of shape {image.shape} and type {image.dtype}", remedy="expected H×W×3 uint8 RGB"
        )
