"""The training loop."""

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from submanifold.common import distributed
from submanifold.common.device import SeededRandom
from submanifold.common.errors import UserError
from submanifold.common.progress import ProgressBar
from submanifold.common.threads import ThreadTuner
from submanifold.data.batches import Batches
from submanifold.flows import initialize, with_noise_scale
from submanifold.flows.context import Context
from submanifold.losses import draws
from submanifold.models import NormalComponents
from submanifold.models.io import describe
from submanifold.training import monitor
from submanifold.training.monitor import LOG_EVERY, Row
from submanifold.training.phase import Phase
from submanifold.training.trainer import EARLIER, LAST, Trainer, read

log = logging.getLogger(__name__)

INITIAL_ROWS = 8192  #: Rows that initialize a flow with log-uniform noise scales.
DEFENSIVE_WEIGHT = 0.05  #: Of the component of densities that validations compare.

Log = Callable[[int, Row], None]


def fit(
    phase: Phase,
    train: Batches,
    valid: Batches,
    folder: str | Path,
    name: str = "training",
    on_log: Log | None = None,
    random: SeededRandom | None = None,
) -> dict[str, Any]:
    """Train the model of a phase in place, to the averaged weights of its best validation.

    The result is a function of the initial weights, the seed of ``train`` and the settings. A
    killed training resumes from its folder and ends with the same weights, bit for bit if the
    number of threads is fixed (:func:`.use_threads`). Processes
    (:mod:`submanifold.common.distributed`), accumulation steps and numbers of threads change it by
    rounding only.

    ``folder`` has the last two checkpoints. ``on_log`` is called as (step, values) with values
    ``train.*`` and ``valid.*``; a resumed training repeats earlier rows first. It may raise to
    interrupt the training. The first batch initializes the ``fresh`` modules of the phase; without
    any, the weights that the phase starts from are validated, too, as step 0. ``random`` has the
    global random numbers of that initialization; steps draw others from generators.

    Returns the history: ``name``, rows by step in ``train`` and ``valid``, ``best_step``,
    ``steps``, ``rollbacks``, ``warnings``, ``seconds``, and ``steps_trained`` by this call. A
    UserError says that the training diverged again after three rollbacks (a phase without ``fresh``
    modules then ends, with a warning), that the checkpoint is of another phase, that the model
    could not be saved, or that the batch size is not divisible by the number of shards.
    """
    describe(phase.model)
    trainer = Trainer(phase, phase.identity(train), _defensive_component(phase, train))
    if train.batch_size % trainer.shards[0].count:
        raise UserError(
            f"{name}.training.batch_size: expected a multiple of {trainer.shards[0].count} (ranks "
            "times training.grad_accumulation_steps), at most the number of training images, got "
            f"{train.batch_size}. Change either."
        )
    _restore_or_initialize(trainer, train, valid, Path(folder), name, random)
    log_row = partial(_log_row, on_log)
    for kind in ("train", "valid"):
        for row in getattr(trainer.state, kind):
            log_row(kind, row)
    loop = _Loop(trainer, train, valid, Path(folder), name, log_row)
    loop.run()
    if distributed.rank() == 0:
        Path(folder, EARLIER).unlink(missing_ok=True)
    phase.model.load_state_dict(trainer.best)
    phase.model.eval()
    steps_trained = max(trainer.state.step - loop.first_step, 0)
    return {"name": name, **trainer.state.history(), "steps_trained": steps_trained}


class _Loop:
    """The steps that a training has left, and what happens between them.

    Rows of the history are logged every ten steps and at each validation, after which the training
    is saved. A training that diverges goes back to where it was saved.
    """

    def __init__(
        self,
        trainer: Trainer,
        train: Batches,
        valid: Batches,
        folder: Path,
        name: str,
        log_row: Callable[[str, Row], None],
    ) -> None:
        self.trainer, self.train, self.valid = trainer, train, valid
        self.folder, self.name, self.log_row = folder, name, log_row
        self.first_step, self.seconds_before = trainer.state.step, trainer.state.seconds
        self.started = time.monotonic()

    def run(self) -> None:
        """Make the steps."""
        trainer, device = self.trainer, self.train.device
        tuner, generator = ThreadTuner(device), torch.Generator(device)
        trainer.model.train()
        with ProgressBar(self.name, "steps", trainer.state.steps, done=self.first_step) as meter:
            while trainer.state.step < trainer.state.steps:
                x, context = self.train.at(trainer.state.step, generator)
                with tuner.unit():
                    values = trainer.step(x, generator, context)
                self._after_step(values, meter)

    def _after_step(self, values: Mapping[str, Tensor], meter: ProgressBar) -> None:
        """Log and validate, if it is time for that, or roll back."""
        state = self.trainer.state
        if state.step % LOG_EVERY == 0 and state.step < state.steps:
            elapsed = self._elapsed()
            per_step = elapsed / max(1, state.step - self.first_step)
            self.trainer.keep_time(self.seconds_before + elapsed, per_step)
            meter.total = state.steps
        validates = (
            state.step % self.trainer.settings.validate_every == 0 or state.step == state.steps
        )
        if state.step % LOG_EVERY and not validates:
            return
        row = {"step": state.step, **read(values)}
        if (problem := monitor.divergence(row, state.train)) is not None:
            self.trainer.roll_back(self.folder, self.name, problem)
            return
        is_finite = monitor.is_finite(row)
        is_usual = is_finite and not monitor.is_far_above(row, state.train)
        if is_finite:
            trained = (state.step - self.first_step) * self.train.batch_size
            row["rows_per_second"] = trained / self._elapsed()
            state.train.append(row)
            self.log_row("train", row)
            meter.update(state.step - meter.n, _summary(row))
        if validates:
            self._validate(is_usual)
            meter.total = self.trainer.state.steps

    def _validate(self, is_usual: bool) -> None:
        """Validate, and save a training that is as usual or ends, or roll back."""
        state = self.trainer.state
        row = self.trainer.validate(self.valid)
        if (problem := monitor.validation_divergence(state.valid)) is not None:
            self.trainer.roll_back(self.folder, self.name, problem)
            return
        if state.best_step == state.step:  # other weights are not kept
            for kind, text in monitor.warnings(row, state.train[-1]).items():
                if kind not in state.warnings:
                    state.warnings[kind] = text
                    log.warning("%s: %s", self.name, text)
        self.trainer.stop_early()
        state.seconds = self.seconds_before + self._elapsed()
        if is_usual or state.step == state.steps:
            self.trainer.save(self.folder)
        self.log_row("valid", row | {"seconds": state.seconds})

    def _elapsed(self) -> float:
        return time.monotonic() - self.started


def _defensive_component(phase: Phase, train: Batches) -> NormalComponents | None:
    """Fit the component that bounds the influence of a single event on a validation."""
    if phase.noise.smallest is None or len(phase.model.event_shape) > 1:
        return None
    component = NormalComponents.fit(train.events.x, DEFENSIVE_WEIGHT)
    return component.to(train.device, train.rows.dtype)


def _restore_or_initialize(
    trainer: Trainer,
    train: Batches,
    valid: Batches,
    folder: Path,
    name: str,
    random: SeededRandom | None,
) -> None:
    is_restored = trainer.restore(folder)
    distributed.barrier()  # before another process writes a checkpoint
    step, steps = trainer.state.step, trainer.state.steps
    if is_restored and step < steps:
        log.info("%s: resuming at step %d of %d", name, step, steps)
    elif is_restored:
        log.info("%s: trained before; delete %s to train again", name, folder)
    else:
        if (folder / LAST).exists():
            log.warning("%s: training restarts from the beginning", name)
        with random.block() if random else nullcontext():
            _initialize(trainer.phase, train)
        trainer.reset_average()
        if trainer.phase.is_continued:
            trainer.validate(valid)  # the weights of an earlier phase can be the best
        trainer.save(folder)


@torch.no_grad()
def _initialize(phase: Phase, train: Batches) -> None:
    """Initialize from the first batch, or for log-uniform noise scales from noisy batches."""
    generator, count = torch.Generator(train.device), 1
    if phase.noise.smallest is not None:
        # at the small scales one batch would determine the widths of narrow columns badly
        count = max(1, min(train.steps_per_epoch, INITIAL_ROWS // train.batch_size))
    batches, contexts = zip(*(train.at(step, generator) for step in range(count)), strict=True)
    x, context = torch.cat(batches), None
    if contexts[0] is not None:
        context = Context(torch.cat([of_batch.values for of_batch in contexts]))
    if phase.noise.smallest is not None:
        x, scale = phase.noise.add(phase.model, x, draws(x, generator))
        context = with_noise_scale(context, scale)
    initialize(phase.model, x, phase.fresh, context)


def _log_row(on_log: Log | None, kind: str, row: Row) -> None:
    if on_log:
        values = {f"{kind}.{key}": value for key, value in row.items() if key != "step"}
        on_log(int(row["step"]), values)


def _summary(row: Row) -> str:
    labels = {"loss": "loss", "bits_per_dim": "BPD", "mse": "MSE"}
    if row["loss"] == row.get("bits_per_dim"):
        del labels["loss"]
    return ", ".join(f"{label} {row[key]:.4g}" for key, label in labels.items() if key in row)
