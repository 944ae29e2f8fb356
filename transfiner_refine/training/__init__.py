"""Training of native refiners: data, simulated coarse masks, objective, loop."""

from transfiner_refine.training.datasets import open_dataset
from transfiner_refine.training.job import TrainingJob, run_training
from transfiner_refine.training.schedule import Schedule

__all__ = ["Schedule", "TrainingJob", "open_dataset", "run_training"]
