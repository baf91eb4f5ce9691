"""One readable loop over one object that steps, validates, saves and restores."""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from submanifold.common import distributed
from submanifold.common.device import autocast, choose_precision
from submanifold.common.errors import UserError
from submanifold.common.progress import ProgressBar
from submanifold.common.settings import Settings
from submanifold.data.batches import Batches
from submanifold.flows import initialize, set_activation_checkpointing
from submanifold.losses import Objective
from submanifold.models import Model
from submanifold.models.diagnostics import (
    LARGEST_INVERSE_ERROR,
    inverse_error,
    is_overfitted,
    manifold_overfitting,
)
from submanifold.training.checkpoint import (
    EARLIER,
    EMA,
    LAST,
    Checkpoint,
    load_checkpoint,
    newest_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from submanifold.training.optimizers import optimizers_for

log = logging.getLogger(__name__)

LOG_EVERY = 10
MAX_ROLLBACKS = 3

Row = dict[str, float]
Log = Callable[[int, Row], None]


class TrainingSettings(Settings):
    """How a phase is trained."""

    steps: int = Field(gt=0, description="optimizer steps")
    batch_size: int = Field(gt=0)
    learning_rate: float = Field(gt=0, description="Adam's, at its peak")
    muon_lr: float | None = Field(
        None,
        gt=0,
        description="Muon's, for the matrices of coupling nets; null leaves them to Adam",
    )
    lr_scale: float = Field(1.0, gt=0, description="factor on both learning rates")
    warmup: int = Field(ge=0, description="steps over which the learning rate rises to its peak")
    cooldown_fraction: float = Field(
        ge=0, le=1, description="share of the steps, the last, in which the rates fall to nothing"
    )
    clip: float | None = Field(None, gt=0, description="largest norm of the gradient; null: any")
    ema: float = Field(ge=0, lt=1, description="decay of the averaged weights that are kept")
    validate_every: int = Field(gt=0, description="steps between validations and checkpoints")
    precision: Literal["auto", "float32", "bfloat16"]
    activation_checkpointing: bool = Field(
        False, description="compute hidden layers twice, not keep them"
    )
    rotate_every: int | None = Field(
        None, gt=0, description="steps between fits of the last stage's rotation; null: none"
    )


class Trainer:
    """A model in training, and all that a training carries from step to step.

    Args:
        model: The stages in training, on their device.
        objective: The loss, as (model, batch, generator) -> terms.
        settings: How to train.

    Attributes:
        state: JSON-able: ``step``, rows by step of ``train`` and ``valid``, ``best_step``,
            ``rollbacks``, ``warnings`` and ``seconds``.
        best: The model's state with the best validation so far (:meth:`rank`), averaged weights.
    """

    def __init__(self, model: Model, objective: Objective, settings: TrainingSettings):
        self.model, self.objective, self.settings = model, objective, settings
        self.multipliers = getattr(objective, "multipliers", {})
        self.weights = list(model.parameters())
        set_activation_checkpointing(model, settings.activation_checkpointing)
        self.optimizers = optimizers_for(model, settings.learning_rate, settings.muon_lr)
        self.ema = EMA(model, settings.ema)
        self.precision = choose_precision(settings.precision, self.weights[0])
        self.best: dict[str, Tensor] = {}
        self.state: dict[str, Any] = {
            "step": 0, "train": [], "valid": [], "best_step": 0, "rollbacks": 0, "warnings": {},
            "seconds": 0.0,
        }  # fmt: skip

    def step(self, batch: Tensor, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Make one step, without waiting for the device; returns the loss, its terms, the norm."""
        share = schedule(self.state["step"], self.settings) * 0.5 ** self.state["rollbacks"]
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = share * optimizer.defaults["lr"]
        values = self._gradients(batch, generator)
        if self.multipliers:
            self.objective.ascend(values)
        distributed.average([w.grad for w in self.weights if w.grad is not None])
        largest = self.settings.clip or math.inf
        norm = nn.utils.clip_grad_norm_(self.weights, largest, foreach=True)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.ema.update(self.state["step"])
        self.state["step"] += 1
        return {**values, "gradient_norm": norm}

    def _gradients(self, batch: Tensor, generator: torch.Generator | None) -> dict[str, Tensor]:
        """Add a batch's gradient to the weights', part by part; returns the objective's means."""
        count = distributed.parts()
        state = generator.get_state() if generator is not None and count > 1 else None
        found: list[dict[str, Tensor]] = []
        for part in distributed.each_part(batch):
            if generator is not None and state is not None:
                generator.set_state(state)  # each part takes its rows of the same draws
            with autocast(self.weights[0].device, self.precision):
                found.append(self.objective(self.model, part, generator))
            (found[-1]["loss"] / count).backward()
            found[-1] = {name: value.detach() for name, value in found[-1].items()}
        if count == 1:
            return found[0]
        return {name: torch.stack([each[name] for each in found]).mean(0) for name in found[0]}

    @torch.no_grad()
    def validate(self, valid: Batches) -> Row:
        """Score the averaged weights, in their own precision; the objective's means over all rows.

        Averaged weights stay in the model until :meth:`EMA.swap` puts them back.
        """
        self.ema.swap()
        return validate(self.model, self.objective, valid) | diagnose(self.model, valid)

    def keep_best(self) -> None:
        """Take the weights that are in the model for the best so far."""
        self.best = {name: each.detach().clone() for name, each in self.model.state_dict().items()}

    def save(self, folder: Path) -> None:
        """Write all that :meth:`restore` needs, and keep the checkpoint before it."""
        self.state["multipliers"] = {name: each.item() for name, each in self.multipliers.items()}
        distributed.wait()  # for who still reads the last one
        if distributed.rank() == 0:
            save_checkpoint(folder / LAST, self.model, self.ema, self.optimizers, self.state,
                            self.best, folder / EARLIER)  # fmt: skip
        distributed.wait()

    def restore(self, checkpoint: Checkpoint) -> None:
        """Resume where a checkpoint was written.

        Raises:
            UserError: It belongs to another architecture.
        """
        self.state, self.best = load_checkpoint(checkpoint, self.model, self.ema, self.optimizers)
        for name, value in self.state.pop("multipliers", {}).items():
            self.multipliers[name] = torch.tensor(value, device=self.weights[0].device)

    def rank(self, row: Row) -> tuple[float, float]:
        """Order validations: the lowest excess over the targets, then the lowest loss.

        The loss leaves out terms with a target, whose weights differ from step to step.
        """
        excess, loss = 0.0, row["loss"]
        for name in self.multipliers:
            excess += self.objective.active[name].target.excess(row)  # type: ignore[attr-defined]
            loss -= row[name]
        return (math.inf, math.inf) if math.isnan(excess + loss) else (excess, loss)

    @property
    def best_rank(self) -> tuple[float, float]:
        """Rank of the best validation so far."""
        ranks = [self.rank(row) for row in self.state["valid"]
                 if row["step"] == self.state["best_step"]]  # fmt: skip
        return ranks[0] if ranks else (math.inf, math.inf)


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
    rotate: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """Train in place, and leave the averaged weights with the best validation in the model.

    The best validation has the lowest loss. With a target (:class:`.Target`) it is the one with the
    lowest rest of the loss among those that reach the target, or the one with the lowest error if
    none does.

    Everything is a function of the initial weights, the seed of ``train`` and the settings: killed
    at any moment and called again with the same folder, it ends with the same weights. Several
    processes (:mod:`submanifold.common.distributed`) share the rows of each batch, and make the
    same steps as one
    within rounding, as do parts of a batch that are computed one after the other; the first process
    alone writes files.

    Args:
        model: The stages in training, on their device.
        objective: The loss, as (model, batch, generator) -> terms.
        train: Training batches.
        valid: Validation batches; the same noise every time.
        settings: How to train.
        folder: Where the last checkpoint is kept, and the one before it.
        name: What the progress bar calls it.
        on_log: Called as (step, values), values named ``train.*`` and ``valid.*``, the latter when
            the checkpoint is written; a training that goes on hands out its earlier rows first. It
            may raise, which ends the training; called again with the folder, it goes on there.
        fresh: The parts that were never trained, whose actnorms the first batch sets; all if None.
        rotate: Called with the step every ``rotate_every`` steps, to fit the model's rotation.

    Returns:
        The history: ``name``, ``train`` and ``valid`` rows by step, ``best_step``, ``steps``,
        ``rollbacks``, ``warnings`` by kind, ``seconds`` of training, and ``steps_trained``, the
        steps of this very call.

    Raises:
        UserError: The training failed (:func:`fault`) again after the learning rates were halved
            three times, the folder holds a checkpoint of another architecture, or a batch cannot be
            shared equally.
    """
    if train.batch_size % (distributed.size() * distributed.parts()):
        raise UserError(
            f"{name}: a batch of {train.batch_size} rows cannot be shared by {distributed.size()} "
            f"processes in {distributed.parts()} parts each. Choose a training.batch_size, no "
            f"more than "
            "there are images, that is a multiple of launch.processes x machines x parts."
        )
    trainer = Trainer(model, objective, settings)
    checkpoint = newest_checkpoint(folder)
    distributed.wait()  # or one would find what another has begun
    if checkpoint is not None:
        trainer.restore(checkpoint)
        if trainer.state["step"] < settings.steps:
            log.info("%s: resuming at step %d of %d", name, trainer.state["step"], settings.steps)
        log_rows(trainer.state, on_log)
    else:
        if (folder / LAST).exists():
            log.warning("%s: training starts anew", name)
        initialize(model, train.at(0), fresh)
        trainer.ema.reset()
        trainer.save(folder)

    before, seconds, started = trainer.state["step"], trainer.state["seconds"], time.monotonic()
    model.train()
    with ProgressBar(name, "steps", settings.steps, done=before) as meter:
        while (step := trainer.state["step"]) < settings.steps:
            if rotate and settings.rotate_every and step and step % settings.rotate_every == 0:
                rotate(step)
            values = trainer.step(distributed.share(train.at(step)), train.generator)
            step += 1
            validates = step % settings.validate_every == 0 or step == settings.steps
            if step % LOG_EVERY != 0 and not validates:
                continue

            row = read(values)
            if (what := fault(row, trainer.state["train"])) is not None:
                _roll_back(trainer, folder, name, what)
                continue
            doubtful = far_above(row, trainer.state["train"]) and step < settings.steps
            elapsed = time.monotonic() - started
            row["rows_per_second"] = (step - before) * train.batch_size / elapsed
            trainer.state["train"].append({"step": step, **row})
            _hand_out(step, "train", row, on_log)
            meter.update(step - meter.n, _brief(row))

            if validates:
                row = trainer.validate(valid)
                _warn(trainer.state["warnings"], row, step, name)
                if not trainer.state["valid"] or trainer.rank(row) < trainer.best_rank:
                    trainer.state["best_step"] = step
                    trainer.keep_best()
                trainer.ema.swap()
                trainer.state["valid"].append({"step": step, **row})
                trainer.state["seconds"] = seconds + time.monotonic() - started
                if not doubtful:
                    trainer.save(folder)
                _hand_out(step, "valid", row, on_log)

    if distributed.rank() == 0:
        (folder / EARLIER).unlink(missing_ok=True)
    model.load_state_dict(trainer.best)
    rows = [row for row in trainer.state["valid"] if row["step"] == trainer.state["best_step"]]
    model.notes = rows[-1]
    model.eval()
    set_activation_checkpointing(model, False)
    trainer.state.pop("multipliers", None)
    steps_trained = max(trainer.state.pop("step") - before, 0)
    return {"name": name, **trainer.state, "steps": settings.steps, "steps_trained": steps_trained}


@torch.no_grad()
def validate(model: Model, objective: Objective, valid: Batches) -> Row:
    """Average the objective's terms over all rows, in the weights' own precision."""
    sums: dict[str, Tensor] = {}
    size = distributed.size() if len(valid) >= distributed.size() * valid.batch_size else 1
    for number, batch in enumerate(valid):
        if number % size == distributed.rank() % size:
            for key, value in objective(model, batch, valid.generator).items():
                sums[key] = sums.get(key, 0) + value * len(batch)
    return {key: value * size / len(valid) for key, value in read(sums).items()}


def read(values: Mapping[str, Tensor]) -> Row:
    """Bring values from the device, waiting for it once: their mean over processes."""
    numbers = torch.stack([value.detach().double() for value in values.values()])
    distributed.average([numbers])
    return dict(zip(values, numbers.tolist(), strict=True))


def diagnose(model: Model, valid: Batches) -> Row:
    """Measure what would make a validation worthless.

    Returns:
        ``inverse_error`` on the first batch; on continuous data, which may have no noise,
        ``thickness`` and ``neighbour_correlation`` of all of it (:func:`manifold_overfitting`).
    """
    row = {"inverse_error": inverse_error(model, next(iter(valid)))}
    if valid.is_continuous:
        thickness, correlation = manifold_overfitting(model, torch.cat(list(valid)))
        row |= {"thickness": thickness, "neighbour_correlation": correlation}
    return row


def schedule(step: int, settings: TrainingSettings) -> float:
    """Share of the learning rates at a step: a linear rise, the peak, a linear fall to nothing."""
    rise = (step + 1) / settings.warmup if settings.warmup else 1.0
    fall = (
        (settings.steps - step) / (settings.cooldown_fraction * settings.steps)
        if settings.cooldown_fraction
        else 1.0
    )
    return settings.lr_scale * min(rise, 1.0, fall)


def fault(row: Row, earlier: Sequence[Row]) -> str | None:
    """Say what is wrong with a training that cannot recover by itself, if anything is.

    A step of too large a rate need not end in what is not finite: it may leave a finite loss that
    is worse than before the training. One such row alone is none: a rare image may have so small a
    density that it outweighs its batch, and the step after it, whose gradient is clipped, is well.
    """
    if not all(map(math.isfinite, row.values())):
        return "not finite"
    if earlier and far_above(row, earlier) and far_above(earlier[-1], earlier):
        start = start_loss(row, earlier)
        return f"{row['loss']:.3g}, far above the {start:.3g} of the start"
    return None


def far_above(row: Row, earlier: Sequence[Row]) -> bool:
    """Whether a loss is far above that of the first row."""
    start = start_loss(row, earlier)
    return row["loss"] > start + max(1.0, abs(start))


def start_loss(row: Row, earlier: Sequence[Row]) -> float:
    """Loss of the first row at the weights of this row.

    Dual ascent raises a weight, and the loss with it, although the model improves.
    """
    if not earlier:
        return math.inf
    start = earlier[0]
    ratios = {name: row[f"{name}_weight"] / start[f"{name}_weight"]
              for name in start if f"{name}_weight" in start}  # fmt: skip
    return start["loss"] + sum((ratio - 1) * start[name] for name, ratio in ratios.items())


def _roll_back(trainer: Trainer, folder: Path, name: str, what: str) -> None:
    """Go back to the last checkpoint with half the learning rates."""
    step, rollbacks = trainer.state["step"], trainer.state["rollbacks"] + 1
    settings = trainer.settings
    if rollbacks > MAX_ROLLBACKS:
        lower = [f"training.learning_rate (now {settings.learning_rate})"]
        if settings.muon_lr is not None:
            lower.append(f"training.muon_lr (now {settings.muon_lr})")
        raise UserError(
            f"{name}: the loss or its gradient was {what} at step {step}, again after the learning "
            f"rate had been halved {MAX_ROLLBACKS} times. Lower {' or '.join(lower)}, set "
            f"training.clip "
            f"(now {settings.clip or 'null'}), or lower reconstruction.weight."
        )
    trainer.model.zero_grad()
    warnings = trainer.state["warnings"]
    trainer.restore(read_checkpoint(folder / LAST))
    trainer.state |= {"rollbacks": rollbacks, "warnings": warnings}
    trainer.save(folder)
    log.warning(
        "%s: %s at step %d; back to step %d with the learning rate halved (%d of %d)",
        name, what, step, trainer.state["step"], rollbacks, MAX_ROLLBACKS,
    )  # fmt: skip


def _warn(warnings: dict[str, str], row: Row, step: int, name: str) -> None:
    """Say once for each kind what :func:`diagnose` has found."""
    found = {}
    if not row["inverse_error"] <= LARGEST_INVERSE_ERROR:
        found["inverse"] = (
            f"at step {step} the inverse misses its input by {row['inverse_error']:.2g} of the "
            f"data's spread (limit {LARGEST_INVERSE_ERROR}): samples and projections are not those "
            "of this density. Lower training.learning_rate, or take fewer steps or couplings"
        )
    if "thickness" in row and is_overfitted(row["thickness"], row["neighbour_correlation"]):
        found["overfitting"] = (
            f"manifold overfitting at step {step}: what is left off the manifold is "
            f"{row['thickness']:.2g} of the data's spread, and is alike for points that are "
            f"neighbours on it (correlation {row['neighbour_correlation']:.2f}): the data have no "
            "noise there. Their likelihood has no maximum and bits per dimension mean nothing. Add "
            "noise: data.noise, or input_noise"
        )
    for kind in found.keys() - warnings.keys():
        warnings[kind] = found[kind]
        log.warning("%s: %s", name, found[kind])


def _hand_out(step: int, kind: str, row: Row, on_log: Log | None) -> None:
    if on_log:
        on_log(step, {f"{kind}.{key}": value for key, value in row.items() if key != "step"})


def log_rows(state: Mapping[str, Any], on_log: Log | None) -> None:
    """ForwardPass the rows of a history, or of a checkpoint's state, to a callback again."""
    for kind in ("train", "valid"):
        for row in state[kind]:
            _hand_out(row["step"], kind, row, on_log)


def _brief(row: Row) -> str:
    names = {"loss": "loss", "bits_per_dim": "BPD", "mse": "MSE"}
    shown = [f"{label} {row[key]:.4g}" for key, label in names.items() if key in row]
    return ", ".join([*shown, f"{row['rows_per_second']:.0f} rows/s"])
