"""Several processes that train one network, as ``torchrun`` starts them; a single process is a team of one.

Each member works on its share of every batch. The gradients are averaged before the step, so all members make the
same step and hold the same weights at any time; nothing but gradients, the loss and the wish to stop is exchanged.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn

from transfiner_refine.errors import DeviceError

__all__ = ["Team"]

_PATIENCE = timedelta(hours=1)  # while the first member scores a checkpoint, the others wait


@dataclass(frozen=True)
class Team:
    """One member's view; a context manager, so that the members part before their processes end.

    Attributes:
        rank: this member's number; 0 logs, saves and scores.
        size: number of members.
        local_rank: this member's number on its machine, hence its GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def join(cls) -> Team:
        """The team that ``torchrun`` announces in the environment; a team of one without it.

        Raises:
            DeviceError: the members do not find each other.
        """
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        try:
            if not distributed.is_initialized():
                backend = "nccl" if torch.cuda.is_available() and distributed.is_nccl_available() else "gloo"
                distributed.init_process_group(backend, timeout=_PATIENCE)
        except (RuntimeError, ValueError) as error:
            raise DeviceError(
                f"the {size} training processes do not find each other ({error})",
                remedy="start them with torchrun",
            ) from error
        return cls(distributed.get_rank(), size, int(os.environ.get("LOCAL_RANK", "0")))

    def __enter__(self) -> Team:
        return self

    def __exit__(self, *_: object) -> None:
        # a process that ends with the connection's threads alive may abort, after its work is done
        if distributed.is_initialized():
            distributed.destroy_process_group()

    @property
    def leads(self) -> bool:
        """Whether this member logs, saves and scores."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """``name`` ("auto", "cpu", "cuda", …), with this member's own GPU where it is to be one."""
        if self.size > 1 and name in ("auto", "cuda") and torch.cuda.is_available():
            return f"cuda:{self.local_rank}"
        return name

    def average(self, parameters: Iterable[nn.Parameter], facts: Tensor) -> Tensor:
        """Gives the gradients their mean over the team, in place; a parameter no member has a gradient for keeps none.

        Args:
            parameters: of the network, in the same order everywhere.
            facts: [n] float32, numbers to be summed over the team on the way.

        Returns:
            the sums of ``facts``.
        """
        if self.size == 1:
            return facts
        listed = list(parameters)
        has = torch.tensor([p.grad is not None for p in listed], dtype=torch.float32, device=facts.device)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in listed]
        flat = torch.cat([g.float().reshape(-1) for g in gradients] + [has, facts])
        distributed.all_reduce(flat)
        sums = flat[-len(facts) :].clone()
        anyone = flat[-len(facts) - len(listed) : -len(facts)] > 0
        start = 0
        for parameter, gradient, used in zip(listed, gradients, anyone.tolist(), strict=True):
            count = parameter.numel()
            if used:
                mean = flat[start : start + count].view_as(parameter) / self.size
                parameter.grad = gradient.copy_(mean)
            start += count
        return sums
