"""The refine step in PyTorch, on any device."""

from __future__ import annotations

import copy
from threading import Lock, Thread

import numpy as np
import torch
from numpy.typing import NDArray

from transfiner_refine.device import choose_device, choose_precision, precision_name
from transfiner_refine.model.backbone import fold_norms
from transfiner_refine.model.config import ATTENTION_GRIDS
from transfiner_refine.model.network import MaskTransfiner, RefineStep, StepOutput, TreeOutput
from transfiner_refine.model.propagate import LevelMap, area_pyramid
from transfiner_refine.model.quadtree import BudgetSelector
from transfiner_refine.refine.engine import SizeClass

_SETTING_THREADS = Lock()


class TorchEngine:
    """Runs the step of a network.

    Args:
        network: a native network; a copy of it is used.
        device, precision: as for ``load_refiner``.

    Raises:
        DeviceError: the device or the precision is not available.
    """

    name = "torch"

    def __init__(self, network: MaskTransfiner, device: str = "auto", precision: str = "auto") -> None:
        self.torch_device = choose_device(device)
        self.dtype = choose_precision(precision, self.torch_device)
        self.device, self.precision = str(self.torch_device), precision_name(self.dtype)
        self.config = network.config
        network = copy.deepcopy(network).eval()
        fold_norms(network.backbone)
        self.network = network.to(self.torch_device, self.dtype).to(memory_format=torch.channels_last)
        self._steps: dict[SizeClass, RefineStep] = {}

    def step(
        self, size: SizeClass, pixels: NDArray[np.uint8], coarse: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """See ``Engine``."""
        output = self.run(size, torch.from_numpy(pixels), torch.from_numpy(coarse))
        return output.probability.cpu().numpy(), output.relabelled.cpu().numpy()

    @torch.inference_mode()
    def run(self, size: SizeClass, pixels: torch.Tensor, coarse: torch.Tensor) -> StepOutput:
        """The step on tensors of any device."""
        if size not in self._steps:
            self._steps[size] = RefineStep(self.network, size.depth, nodes=size.nodes)
        pixels = pixels.to(self.torch_device).contiguous(memory_format=torch.channels_last)
        with self._autocast():
            output: StepOutput = self._steps[size](pixels, coarse.to(self.torch_device))
        return output

    @torch.inference_mode()
    def stages(
        self, size: SizeClass, pixels: NDArray[np.uint8], coarse: NDArray[np.float32]
    ) -> tuple[TreeOutput, dict[int, torch.Tensor], list[LevelMap]]:
        """The step's intermediate results: the tree, and the coarse and the new mask on every grid."""
        mask = torch.from_numpy(coarse).to(self.torch_device)
        selector = BudgetSelector(self.config) if size.nodes else None
        with self._autocast():
            image = torch.from_numpy(pixels).to(self.torch_device).float()
            output = self.network(image, mask, selector, size.depth)
            maps = self.network.maps(output, mask, self.config)
        return output, area_pyramid(mask, ATTENTION_GRIDS[0]), maps

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.torch_device.type, self.dtype, enabled=self.dtype != torch.float32)

    def prepare_thread(self) -> None:
        """One core a call, for the tensors of an instance are too small for more; other threads keep their number."""
        with _SETTING_THREADS:
            others = torch.get_num_threads()
            torch.set_num_threads(1)  # this thread's number, and that of threads still to come
            restore = Thread(target=torch.set_num_threads, args=(others,))
            restore.start()
            restore.join()
