"""What is trained, and how long and how fast."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

__all__ = ["FROM_SCRATCH", "Schedule", "TrainableModel"]

FROM_SCRATCH = "imagenet"
"""The start of a run whose backbone alone has been trained before."""

_BACKBONE_RATE = 0.4  # learning rate of the backbone, relative to the new layers
_SCRATCH = 6500, 5e-4  # steps and rate
_FINE_TUNING = 1000, 1e-4


class TrainableModel(nn.Module, ABC):
    """A network, whose feature extractor is its child ``backbone``, with its loss.

    Subclasses define ``forward(image, coarse, truth, roi_side)`` → terms of the loss with their ``total``; image
    [B, 3, S, S] in [0, 255], masks [B, 1, S, S] in [0, 1], roi_side [B] in pixels.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @abstractmethod
    def export(self, path: Path, about: dict[str, Any]) -> None:
        """Writes the weights for users, with facts about the run."""

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Backbone at a lower rate; biases, norms and embeddings without weight decay."""
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = defaultdict(list)
        for name, parameter in self.network.named_parameters():
            groups[name.startswith("backbone."), parameter.dim() > 1].append(parameter)
        return [
            {"params": parameters, "lr": learning_rate * (_BACKBONE_RATE if in_backbone else 1)}
            | ({} if decays else {"weight_decay": 0.0})
            for (in_backbone, decays), parameters in groups.items()
        ]


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    Attributes:
        steps: optimiser steps in all; 0 for the usual number, which depends on where the run starts.
        batch_size: samples a step.
        learning_rate: of the new layers, after warm-up and before the decay; 0 for the usual one.
        warmup: steps of linear warm-up.
        decay: share of the steps, at the end, over which the learning rate falls linearly to zero.
        weight_decay: of matrices and kernels.
        clip: largest gradient norm.
        average: decay of the running average of the weights that is exported.
        level: share of the steps, at the end, that count alike in that average, in runs that are long enough for it.
        seed: of data order, augmentation and node sampling.
    """

    steps: int = 0
    batch_size: int = 8
    learning_rate: float = 0.0
    warmup: int = 100
    decay: float = 0.5
    weight_decay: float = 0.04
    clip: float = 1.0
    average: float = 0.999
    level: float = 0.55
    seed: int = 0

    def starting_from(self, start: str) -> Schedule:
        """The same with the usual steps and rate in the place of zeros."""
        steps, rate = _SCRATCH if start == FROM_SCRATCH else _FINE_TUNING
        return replace(self, steps=self.steps or steps, learning_rate=self.learning_rate or rate)

    def rate(self, step: int) -> float:
        """Learning rate of a step, as a share of ``learning_rate``."""
        falling = max(1.0, self.steps * self.decay)
        return min(1.0, (step + 1) / self.warmup, max(0.0, (self.steps - step) / falling))

    def keep(self, step: int) -> float:
        """Share of the average so far that stays in it after a step."""
        horizon = 1 / (1 - self.average)
        # in a short run most of that part is still to come, so there the average goes on fading
        even = self.steps * (1 - self.level) if self.steps * self.level > horizon else self.steps
        fading = min(horizon, (10 + min(step, even)) / 9)  # the first steps should be forgotten soon
        return 1 - 1 / (fading + max(0.0, step - even))
