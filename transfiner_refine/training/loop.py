"""The training loop: slices that can be interrupted, exact resume, averaged weights, several processes through DDP."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, TypeAlias

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

from transfiner_refine.errors import CheckpointError, DeviceError, InputError
from transfiner_refine.training.augment import jitter_colours
from transfiner_refine.training.run import Run
from transfiner_refine.training.samples import RefinementSamples
from transfiner_refine.training.schedule import FROM_SCRATCH, Schedule, TrainableModel

__all__ = ["Callback", "is_main", "process_group", "train"]

Callback: TypeAlias = Callable[[int, Mapping[str, float]], None]
"""Is told numbers by name, such as "loss/total" or "score/SET IoU", with the step they belong to."""

_EVALUATION = timedelta(hours=1)  # while the main process scores a checkpoint, the others wait
_ECHO = 1.0  # seconds in which a second signal is the first one again, as launchers pass it on


def is_main() -> bool:
    """Whether this process logs, saves and scores."""
    return not distributed.is_initialized() or distributed.get_rank() == 0


@contextmanager
def process_group() -> Iterator[None]:
    """Joins the processes that ``torchrun`` started, if it did, and leaves them at the end.

    Raises:
        DeviceError: the processes do not find each other.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or distributed.is_initialized():
        yield
        return
    try:
        backend = "nccl" if torch.cuda.is_available() and distributed.is_nccl_available() else "gloo"
        distributed.init_process_group(backend, timeout=_EVALUATION)
    except (RuntimeError, ValueError) as error:
        reason = f"the {size} training processes do not find each other ({error})"
        raise DeviceError(reason, remedy="start them with torchrun") from error
    try:
        yield
        distributed.barrier()  # a process that leaves while another is connected may make that one abort
    finally:  # a process that ends with the connection's threads alive may abort after its work is done
        distributed.destroy_process_group()


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM as entries of a list, so that the step under way ends well; a second one acts as usual."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    usual = {number: signal.getsignal(number) or signal.SIG_DFL for number in (signal.SIGINT, signal.SIGTERM)}
    usual = {number: handler for number, handler in usual.items() if handler != signal.SIG_IGN}
    first = 0.0

    def restore() -> None:
        for number, handler in usual.items():
            signal.signal(number, handler)

    def catch(number: int, _: FrameType | None) -> None:
        nonlocal first
        if not caught:
            first = time.monotonic()
            caught.append(number)
        elif time.monotonic() - first > _ECHO:
            restore()
            signal.raise_signal(number)

    try:
        for number in usual:
            signal.signal(number, catch)
        yield caught
    finally:
        restore()


def _ignore_signals(_: int) -> None:
    """For the processes that prepare samples: a signal goes to all processes, and the main one ends them in order."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def train(
    model: TrainableModel,
    samples: RefinementSamples,
    schedule: Schedule,
    output: Path,
    *,
    made_from: Mapping[str, Any] | None = None,
    minutes: float | None = None,
    workers: int = 1,
    autocast: torch.dtype | None = None,
    save_every: float = 60.0,
    log_every: int = 20,
    evaluate_every: int = 0,
    evaluate: Callable[[Path], dict[str, float]] | None = None,
    evaluate_start: bool = False,
    callbacks: Sequence[Callback] = (),
    progress: bool = False,
    say: Callable[[str], None] = print,
) -> bool:
    """Trains until ``schedule.steps`` or until the time is over; goes on from ``output`` if it holds a run.

    Inside ``process_group`` every process works on its share of each batch; only the main one logs and writes.

    Args:
        model: trained in place, already on its device.
        samples: sample i must depend on i alone.
        schedule: what it leaves open is as for a run from scratch.
        output: folder for ``run.json``, ``state.pt`` (until the run is finished), ``refiner.safetensors`` (averaged
            weights), ``best.safetensors``, ``loss.csv`` and ``scores.csv``.
        made_from: what else than the schedule defines the run, by name; a run made from something else is refused.
        minutes: stop cleanly after the step in which this long is over.
        workers: processes that prepare samples.
        autocast: precision of the forward pass.
        save_every: seconds between checkpoints.
        log_every: steps between lines of ``loss.csv``.
        evaluate: scores the exported weights, every ``evaluate_every`` steps (0: never) and at the end.
        evaluate_start: also before the first step.
        callbacks: are told losses and scores.
        progress: show a bar on stderr; else ``say`` is given a line every ``log_every`` steps.

    Returns:
        whether training is complete.

    Raises:
        InputError: a batch cannot be shared out evenly, or ``output`` holds a run that was made from something else.
        CheckpointError: the loss is no longer finite, or the state in ``output`` cannot be used. Steps that were made
            are kept, whatever ends a run.
        KeyboardInterrupt: after Ctrl-C, when the step under way is done and saved. SIGTERM acts then, too.
    """
    schedule = schedule.starting_from(FROM_SCRATCH)
    run = Run(model, schedule, output, made_from or {})
    if schedule.batch_size % run.size:
        reason = f"a batch of {schedule.batch_size} cannot be shared out among {run.size} processes"
        raise InputError(reason, remedy="give a --batch-size that is a multiple of them")
    if run.open():
        say(f"the run in {output} is finished; to train its weights on, give them as --start of another run")
        return True
    with _signals() as caught, _Log(run, log_every, callbacks, progress, say) as log:
        if run.step:
            log.say(f"resumed at step {run.step}")
        elif evaluate and evaluate_start and run.rank == 0:
            log.score(evaluate)
        start = saved = time.monotonic()
        before = run.seconds - start, run.cpu_seconds - time.process_time()
        with run.kept_on_errors():
            for terms, over in _steps(run, samples, workers, autocast, minutes, caught):
                run.seconds, run.cpu_seconds = before[0] + time.monotonic(), before[1] + time.process_time()
                if run.rank == 0:
                    done = run.step >= schedule.steps
                    log.step(terms, is_last=done)
                    if evaluate and (done or (evaluate_every and run.step % evaluate_every == 0)):
                        log.score(evaluate)
                    over |= bool(caught) and run.size == 1  # several agree on it in a step
                    if done:
                        run.finish()
                    elif over or time.monotonic() - saved > save_every:
                        run.save()
                        saved = time.monotonic()
                if over:
                    break
    if caught and run.step < schedule.steps:
        reason = f"interrupted; the same command goes on at step {run.step} of {schedule.steps}"
        if caught[0] == signal.SIGTERM:
            say(reason)
            signal.raise_signal(signal.SIGTERM)
        raise KeyboardInterrupt(reason)
    return run.step >= schedule.steps


class _Log:
    """What a run says of itself: a bar or lines, the tables, the callbacks."""

    def __init__(
        self,
        run: Run,
        every: int,
        callbacks: Sequence[Callback],
        progress: bool,
        say: Callable[[str], None],
    ) -> None:
        self.run, self.every, self.callbacks, self._say = run, every, callbacks, say
        shown = None if progress and run.rank == 0 else True  # None: if stderr is a terminal
        steps = run.schedule.steps
        self.bar = tqdm(total=steps, initial=run.step, desc="training", unit="step", disable=shown)
        self.start, self.first = time.monotonic(), run.step

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def say(self, text: str) -> None:
        with self.bar.external_write_mode():
            self._say(text)

    def step(self, terms: Mapping[str, float], *, is_last: bool) -> None:
        run, steps = self.run, self.run.schedule.steps
        rate = run.schedule.learning_rate * run.schedule.rate(run.step - 1)
        self.bar.set_postfix_str(f"loss {terms['total']:.3f}, rate {rate:.1e}", refresh=False)
        self.bar.update()
        if run.step % self.every and not is_last:
            return
        run.log(terms, rate)
        for callback in self.callbacks:
            callback(
                run.step, {"learning_rate": rate} | {f"loss/{key}": value for key, value in terms.items()}
            )
        if self.bar.disable:
            left = (time.monotonic() - self.start) / (run.step - self.first) * (steps - run.step)
            times = f"{tqdm.format_interval(run.seconds)}, {tqdm.format_interval(left)} to go"
            self.say(f"step {run.step}/{steps}  loss {terms['total']:.3f}  rate {rate:.1e}  {times}")

    def score(self, evaluate: Callable[[Path], dict[str, float]]) -> None:
        scores = evaluate(self.run.export())
        is_best = self.run.add_scores(scores)
        for callback in self.callbacks:
            callback(self.run.step, {f"score/{key}": value for key, value in scores.items()})
        gains = (f"{name} {value:+.2f}" for name, value in scores.items())
        self.say("  ".join((f"step {self.run.step}", *gains)) + " (best so far)" * is_best)


def _steps(
    run: Run,
    samples: RefinementSamples,
    workers: int,
    autocast: torch.dtype | None,
    minutes: float | None,
    caught: Sequence[int],
) -> Iterator[tuple[dict[str, float], bool]]:
    """Makes the steps that are left; gives the terms of the loss, and whether to stop, after each."""
    schedule, rank, size = run.schedule, run.rank, run.size
    # a process of several may draw blocks of the backbone, or nodes, that leave others' parameters unused
    replica = DistributedDataParallel(run.model, find_unused_parameters=True) if size > 1 else run.model
    device = next(run.model.parameters()).device
    loader = DataLoader(
        samples,
        batch_size=schedule.batch_size // size,
        sampler=range(run.step * schedule.batch_size + rank, schedule.steps * schedule.batch_size, size),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=device.type == "cuda",
        drop_last=True,
        worker_init_fn=_ignore_signals,
    )
    start = time.monotonic()
    run.model.train()
    for batch in loader:
        for group, peak in zip(run.optimizer.param_groups, run.peaks, strict=True):
            group["lr"] = peak * schedule.rate(run.step)
        # a step's randomness depends on its number alone, so a resumed run draws what the whole run would have drawn
        torch.manual_seed((schedule.seed * 1_000_003 + run.step) * size + rank)
        over = bool(caught) or (minutes is not None and time.monotonic() - start > 60 * minutes)
        parts = [part.to(device, non_blocking=True) for part in batch]
        terms, over = _step(run, replica, parts, autocast, over)
        run.step += 1
        yield terms, over


def _step(
    run: Run, replica: nn.Module, batch: list[Tensor], autocast: torch.dtype | None, over: bool
) -> tuple[dict[str, float], bool]:
    """One step; gives the terms of the loss, and whether any process's time is over."""
    pixels, masks, side = batch
    image = jitter_colours(pixels.float()).contiguous(memory_format=torch.channels_last)
    masks = masks.float() / 255
    with torch.autocast(image.device.type, autocast, enabled=autocast is not None):
        terms = replica(image, masks[:, :1], masks[:, 1:], side)
    run.optimizer.zero_grad(set_to_none=True)
    terms["total"].backward()
    facts = torch.stack([*(term.detach().float() for term in terms.values()), image.new_tensor(over)])
    if run.size > 1:
        distributed.all_reduce(facts)
    if not torch.isfinite(facts).all():
        reason = f"the loss is no longer a number at step {run.step}"
        raise CheckpointError(reason, remedy="lower the learning rate or use fp32")
    nn.utils.clip_grad_norm_(run.model.parameters(), run.schedule.clip)
    run.optimizer.step()
    run.average.update_parameters(run.model)
    *means, overs = (facts / run.size).tolist()
    return dict(zip(terms, means, strict=True)), overs > 0
