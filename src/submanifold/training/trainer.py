"""The training loop."""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from submanifold.common import distributed
from submanifold.common.device import autocast, choose_precision
from submanifold.common.errors import UserError
from submanifold.common.progress import ProgressBar
from submanifold.common.threads import ThreadTuner
from submanifold.data.batches import Batches
from submanifold.flows import initialize, set_activation_checkpointing, with_noise_scale
from submanifold.losses import Objective
from submanifold.losses.forward_pass import ForwardPass
from submanifold.models import Model
from submanifold.training import monitor
from submanifold.training.checkpoint import (
    EARLIER,
    LAST,
    Checkpoint,
    Row,
    TrainState,
    first_intact,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from submanifold.training.optimizers import EMA, optimizers_for
from submanifold.training.settings import TrainingSettings, lr_factor

log = logging.getLogger(__name__)

LOG_EVERY = 10
MAX_ROLLBACKS = 3
INITIAL_ROWS = 8192
"""Rows that initialize a flow with log-uniform noise scales."""

Log = Callable[[int, Row], None]


class Trainer:
    """A model in training with its optimizers, average and progress.

    Args:
        model: The stages in training, on their device.
        objective: The loss.
        settings: How to train.

    Attributes:
        state: Progress.
        best: ``state_dict`` of the model with averaged weights at the best validation.
    """

    def __init__(
        self,
        model: Model,
        objective: Objective,
        settings: TrainingSettings,
    ):
        self.model, self.objective, self.settings = model, objective, settings
        self.shards = distributed.shards(settings.grad_accumulation_steps)
        self.weights = list(model.parameters())
        set_activation_checkpointing(model, settings.activation_checkpointing)
        self.optimizers = optimizers_for(model, settings.learning_rate, settings.muon_lr)
        self.ema = EMA(model, settings.ema)
        self.precision = choose_precision(settings.precision, self.weights[0])
        self.best: dict[str, Tensor] = {}
        self.state = TrainState()

    def step(
        self,
        batch: Tensor,
        generator: torch.Generator | None = None,
        context: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Make one step without waiting for the device.

        Each process computes its shards of the full batch. The objective draws its random numbers
        from the generator. A conditional model receives the context of each event of the batch.
        Returns the objective's values and ``gradient_norm``.
        """
        factor = lr_factor(self.state.step, self.settings) * 0.5**self.state.rollbacks
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = factor * optimizer.defaults["lr"]
        values = self._backward(batch, generator, context)
        distributed.average([w.grad for w in self.weights if w.grad is not None])
        largest = self.settings.clip or math.inf
        norm = nn.utils.clip_grad_norm_(self.weights, largest, foreach=True)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.ema.update(self.state.step)
        self.state.step += 1
        return {**values, "gradient_norm": norm}

    def _backward(
        self, batch: Tensor, generator: torch.Generator | None, context: Tensor | None
    ) -> dict[str, Tensor]:
        """Accumulate gradients over this process's shards; returns the means of the values."""
        several = len(self.shards) > 1
        random_state = generator.get_state() if generator is not None and several else None
        results: list[dict[str, Tensor]] = []
        for shard in self.shards:
            if generator is not None and random_state is not None:
                generator.set_state(random_state)  # each shard takes its rows of the same draws
            of_shard = None if context is None else shard.rows(context)
            with autocast(self.weights[0].device, self.precision):
                values = self.objective(
                    self.model, shard.rows(batch), generator, shard, context=of_shard
                )
            (values["loss"] / len(self.shards)).backward()
            results.append({name: value.detach() for name, value in values.items()})
        if not several:
            return results[0]
        return {name: torch.stack([r[name] for r in results]).mean(0) for name in results[0]}

    @torch.no_grad()
    def validate(self, valid: Batches) -> Row:
        """Append a validation of the averaged weights, and keep these weights if it is the best."""
        self.ema.swap()
        row = {"step": self.state.step, **validate(self.model, self.objective, valid)}
        row |= monitor.diagnose(self.model, valid)
        best = self.state.best_row
        # a loss that is not a number is the worst
        if best is None or row["loss"] < best["loss"] or math.isnan(best["loss"]):
            self.state.best_step = self.state.step
            self.best = {name: t.detach().clone() for name, t in self.model.state_dict().items()}
        self.ema.swap()
        self.state.valid.append(row)
        return row

    def save(self, folder: Path) -> None:
        """Write a checkpoint for :meth:`restore`, and keep the one before it."""
        distributed.barrier()  # other processes may still read the last one
        if distributed.rank() == 0:
            state = asdict(self.state)
            save_checkpoint(folder / LAST, self.model, self.ema, self.optimizers, state, self.best,
                            folder / EARLIER)  # fmt: skip
        distributed.barrier()

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore a checkpoint, or raise a UserError if it belongs to another architecture."""
        state, self.best = load_checkpoint(checkpoint, self.model, self.ema, self.optimizers)
        self.state = TrainState(**state)

    def roll_back(self, folder: Path, name: str, problem: str) -> None:
        """Go back to the last checkpoint and halve the learning rates, or raise a UserError."""
        step, rollbacks, warnings = self.state.step, self.state.rollbacks + 1, self.state.warnings
        if rollbacks > MAX_ROLLBACKS:
            settings = self.settings
            lower = [f"training.learning_rate (now {settings.learning_rate})"]
            if settings.muon_lr is not None:
                lower.append(f"training.muon_lr (now {settings.muon_lr})")
            raise UserError(
                f"{name}: the loss or its gradient was {problem} at step {step}, after the "
                f"learning rate had been halved {MAX_ROLLBACKS} times. Lower "
                f"{' or '.join(lower)}, set training.clip (now {settings.clip or 'null'}), or "
                "lower reconstruction.weight. Warnings of earlier phases may name the cause."
            )
        self.model.zero_grad()
        self.restore(read_checkpoint(folder / LAST))
        self.state.rollbacks, self.state.warnings = rollbacks, warnings
        self.save(folder)
        log.warning("%s: %s at step %d; back to step %d with the learning rate halved (%d of %d)",
                    name, problem, step, self.state.step, rollbacks, MAX_ROLLBACKS)  # fmt: skip


def fit(
    model: Model,
    objective: Objective,
    train: Batches,
    valid: Batches,
    settings: TrainingSettings,
    folder: Path,
    name: str = "training",
    on_log: Log | None = None,
    fresh: Sequence[nn.Module] | None = None,
) -> dict[str, Any]:
    """Train a model in place; it ends with the averaged weights of the best validation.

    The best validation has the lowest loss.

    The result is a function of the initial weights, the seed of ``train`` and the settings. A
    killed training resumes from its folder and ends with the same weights, bit for bit if the
    number of threads is fixed (:func:`.use_threads`). Processes
    (:mod:`submanifold.common.distributed`), accumulation steps and numbers of threads change it by
    rounding only.

    Args:
        model: The stages in training, on their device.
        objective: The loss.
        train: Training batches.
        valid: Validation batches.
        settings: How to train.
        folder: Folder of the last two checkpoints.
        name: Name in messages.
        on_log: Called as (step, values) with values ``train.*`` and ``valid.*``; a resumed training
            repeats earlier rows first. It may raise to interrupt the training.
        fresh: Untrained modules, which the first batch initializes; None is the entire model.

    Returns:
        The history: ``name``, rows by step in ``train`` and ``valid``, ``best_step``, ``steps``,
        ``rollbacks``, ``warnings``, ``seconds``, and ``steps_trained`` by this call.

    Raises:
        UserError: The training diverged again after :data:`MAX_ROLLBACKS` rollbacks, the checkpoint
            has another architecture, or the batch size is not divisible by the number of shards.
    """
    trainer = Trainer(model, objective, settings)
    if train.batch_size % trainer.shards[0].count:
        raise UserError(
            f"{name}.training.batch_size: expected a multiple of {trainer.shards[0].count} (ranks "
            "times training.grad_accumulation_steps), at most the number of training images, got "
            f"{train.batch_size}. Change either."
        )
    _restore_or_initialize(trainer, train, folder, name, fresh)
    log_rows(vars(trainer.state), on_log)
    before, seconds, started = trainer.state.step, trainer.state.seconds, time.monotonic()
    tuner, threads = ThreadTuner(train.device), Counter(trainer.state.threads)
    generator = torch.Generator(train.device)
    model.train()
    with ProgressBar(name, "steps", settings.steps, done=before) as meter:
        while (step := trainer.state.step) < settings.steps:
            x, context = train.at(step, generator)
            with tuner.unit():
                values = trainer.step(x, generator, context)
            step, state = trainer.state.step, trainer.state
            validates = step % settings.validate_every == 0 or step == settings.steps
            if step % LOG_EVERY != 0 and not validates:
                continue

            row = {"step": step, **read(values)}
            if (problem := monitor.divergence(row, state.train)) is not None:
                trainer.roll_back(folder, name, problem)
                continue
            doubtful = monitor.is_far_above(row, state.train) and step < settings.steps
            elapsed = time.monotonic() - started
            row["rows_per_second"] = (step - before) * train.batch_size / elapsed
            state.train.append(row)
            _log_row("train", row, on_log)
            meter.update(step - meter.n, _summary(row))

            if validates:
                row = trainer.validate(valid)
                for kind, text in monitor.warnings(
                    row, state.train[-1] if state.train else None
                ).items():
                    if kind not in state.warnings:
                        state.warnings[kind] = text
                        log.warning("%s: %s", name, text)
                state.seconds = seconds + time.monotonic() - started
                state.threads = dict(threads + tuner.used)
                if not doubtful:
                    trainer.save(folder)
                _log_row("valid", row | {"seconds": state.seconds}, on_log)

    if distributed.rank() == 0:
        (folder / EARLIER).unlink(missing_ok=True)
    model.load_state_dict(trainer.best)
    model.notes = trainer.state.best_row or {}
    model.eval()
    set_activation_checkpointing(model, False)
    return {"name": name, **trainer.state.history(), "steps": settings.steps,
            "steps_trained": max(trainer.state.step - before, 0)}  # fmt: skip


def _restore_or_initialize(
    trainer: Trainer, train: Batches, folder: Path, name: str, fresh: Sequence[nn.Module] | None
) -> None:
    checkpoint = first_intact(folder / LAST, folder / EARLIER)
    distributed.barrier()  # before another process writes a checkpoint
    if checkpoint is not None:
        trainer.restore(checkpoint)
        if trainer.state.step < trainer.settings.steps:
            log.info("%s: resuming at step %d of %d",
                     name, trainer.state.step, trainer.settings.steps)  # fmt: skip
        return
    if (folder / LAST).exists():
        log.warning("%s: training restarts from the beginning", name)
    _initialize(trainer, train, fresh)
    trainer.ema.reset()
    trainer.save(folder)


@torch.no_grad()
def _initialize(trainer: Trainer, train: Batches, fresh: Sequence[nn.Module] | None) -> None:
    """Initialize from the first batch, or for log-uniform noise scales from noisy batches."""
    objective, generator = trainer.objective, torch.Generator(train.device)
    if objective.input_noise_min is None:
        x, context = train.at(0, generator)
        initialize(trainer.model, x, fresh, context)
        return
    # at the small scales one batch would determine the widths of narrow columns badly
    count = max(1, min(train.steps_per_epoch, INITIAL_ROWS // train.batch_size))
    drawn = [train.at(step, generator) for step in range(count)]
    clean = torch.cat([x for x, _ in drawn])
    contexts = [context for _, context in drawn if context is not None]
    noisy, scale = objective.add_noise(
        ForwardPass(trainer.model, clean, clean, generator=generator)
    )
    context = with_noise_scale(torch.cat(contexts) if contexts else None, scale)
    initialize(trainer.model, noisy, fresh, context)


@torch.no_grad()
def validate(model: Model, objective: Objective, valid: Batches) -> Row:
    """Average the objective's values over all rows, in the precision of the weights."""
    sums: dict[str, Tensor] = {}
    count = distributed.world_size()
    count = count if len(valid) >= count * valid.batch_size else 1
    generator = torch.Generator(valid.device)
    for number, (x, context) in enumerate(valid.in_order(generator)):
        if number % count == distributed.rank() % count:
            values = objective(model, x, generator, training=False, context=context)
            for key, value in values.items():
                sums[key] = sums.get(key, 0) + value * len(x)
    return {key: value * count / len(valid) for key, value in read(sums).items()}


def read(values: Mapping[str, Tensor]) -> Row:
    """Copy scalars from the device in one transfer, averaged over processes."""
    numbers = torch.stack([value.detach().double() for value in values.values()])
    distributed.average([numbers])
    return dict(zip(values, numbers.tolist(), strict=True))


def log_rows(history: Mapping[str, Any], on_log: Log | None) -> None:
    """Call ``on_log`` with all rows of a history."""
    for kind in ("train", "valid"):
        for row in history[kind]:
            _log_row(kind, row, on_log)


def _log_row(kind: str, row: Row, on_log: Log | None) -> None:
    if on_log:
        on_log(int(row["step"]), {f"{kind}.{key}": v for key, v in row.items() if key != "step"})


def _summary(row: Row) -> str:
    names = {"loss": "loss", "bits_per_dim": "BPD", "mse": "MSE"}
    shown = [f"{label} {row[key]:.4g}" for key, label in names.items() if key in row]
    return ", ".join([*shown, f"{row['rows_per_second']:.0f} rows/s"])
