"""Losses and scores to TensorBoard, Weights & Biases or MLflow, where they are installed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

from transfiner_refine.errors import InputError
from transfiner_refine.training.loop import Callback

__all__ = ["LOGGERS", "open_logger"]


def open_logger(name: str, output: Path, facts: Mapping[str, Any]) -> Callback:
    """A callback of ``training.loop.train`` that sends on what it is told.

    Args:
        name: one of ``LOGGERS``.
        output: folder of the run, whose name the logged run has; a resumed run goes on in the same one.
        facts: what the run is made from.

    Raises:
        InputError: its package is not installed, or refuses.
    """
    try:
        return LOGGERS[name](output, facts)
    except ImportError as error:
        raise InputError(f"--log {name} needs a package ({error})", remedy=f"pip install {name}") from error
    except Exception as error:  # no server, not logged in …
        raise InputError(f"--log {name} does not work: {error}", remedy="leave it out") from error


def _tensorboard(output: Path, facts: Mapping[str, Any]) -> Callback:
    from torch.utils.tensorboard import SummaryWriter  # type: ignore[attr-defined,unused-ignore]

    writer = SummaryWriter(str(output / "tensorboard"))
    writer.add_text("run", "\n".join(f"* {key}: {value}" for key, value in facts.items()), 0)

    def write(step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            writer.add_scalar(key, value, step)
        writer.flush()

    return write


def _wandb(output: Path, facts: Mapping[str, Any]) -> Callback:
    import wandb

    key = f"{crc32(str(output.resolve()).encode()):08x}"
    output.mkdir(parents=True, exist_ok=True)
    run = wandb.init(
        project="transfiner-refine", name=output.name, id=key, resume="allow", dir=output, config=dict(facts)
    )
    return lambda step, values: run.log(dict(values), step=step)


def _mlflow(output: Path, facts: Mapping[str, Any]) -> Callback:
    import mlflow

    client, kept = mlflow.MlflowClient(), output / "mlflow_run.txt"
    if kept.exists():
        run = kept.read_text()
    else:
        run = client.create_run("0", run_name=output.name).info.run_id
        for key, value in facts.items():
            client.log_param(run, key, str(value)[:500])
        output.mkdir(parents=True, exist_ok=True)
        kept.write_text(run)

    def write(step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            client.log_metric(run, re.sub(r"[^\w\-. :/]", "_", key), value, step=step)

    return write


LOGGERS = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}
"""By the name of the package."""
