"""A phase in training: its steps, validations and checkpoints."""

import logging
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from submanifold.common import distributed
from submanifold.common.device import autocast, choose_precision
from submanifold.common.distributed import Shard
from submanifold.common.errors import UserError, unexpected
from submanifold.data.batches import Batches
from submanifold.flows.context import Context
from submanifold.losses.encoding import ScoringScale
from submanifold.models import DefensiveComponent
from submanifold.training import checkpoint
from submanifold.training.checkpoint import Identity
from submanifold.training.monitor import SCORED_LOSS, Row, diagnose
from submanifold.training.optimizers import optimizers_for
from submanifold.training.phase import Phase

log = logging.getLogger(__name__)

LAST, EARLIER = "last.safetensors", "earlier.safetensors"
MAX_ROLLBACKS = 3
FINITE = "finite events"
LIKELIHOOD = "likelihood"  # the term of a loss
FAR = 10  # one validation event in ten is far from the others


@dataclass
class TrainState:
    """Progress of a training, apart from tensors; a row has its ``step``."""

    steps: int  # of all, which are fewer than in the settings after a slow start
    step: int = 0
    train: list[Row] = field(default_factory=list)
    valid: list[Row] = field(default_factory=list)
    best_step: int = 0  # of the best validation
    rollbacks: int = 0  # to a checkpoint, each with half of the learning rates
    warnings: dict[str, str] = field(default_factory=dict)  # by kind
    seconds: float = 0.0

    @property
    def best_row(self) -> Row | None:
        """The best validation, if there was any."""
        return next((row for row in self.valid if row["step"] == self.best_step), None)

    def history(self) -> dict[str, Any]:
        """What :func:`.fit` returns of it."""
        return {name: value for name, value in asdict(self).items() if name != "step"}


class Trainer:
    """A phase in training with its optimizers, average and progress.

    The average of the weights is exponential. Its decay grows as (1 + t) / (10 + t) up to
    ``settings.ema``, so that the average of a short training does not include its start.

    Attributes:
        state: Progress.
        average: Averages of ``weights``.
        best: ``state_dict`` of the model with averaged weights at the best validation.
        identity: What a checkpoint must agree with.
        defensive: Component of the density that validations of log-uniform noise scales compare.
    """

    def __init__(
        self,
        phase: Phase,
        identity: Identity | None = None,
        defensive: DefensiveComponent | None = None,
    ):
        self.phase, self.model, self.settings = phase, phase.model, phase.settings
        self.identity, self.state, self.best = (
            identity or {},
            TrainState(self.settings.steps),
            dict[str, Tensor](),
        )
        self.defensive = defensive
        self.shards = distributed.shards(self.settings.grad_accumulation_steps)
        self.weights: list[Tensor] = list(self.model.parameters())
        rates = self.settings.learning_rate, self.settings.muon_lr
        self.optimizers = optimizers_for(self.model, *rates)
        self.precision = choose_precision(self.settings.precision, self.weights[0])
        self.reset_average()

    def reset_average(self) -> None:
        """Set the average to the current weights."""
        self.average = [weight.detach().clone() for weight in self.weights]

    def step(
        self,
        batch: Tensor,
        generator: torch.Generator | None = None,
        context: Context | None = None,
    ) -> dict[str, Tensor]:
        """Make one step without waiting for the device.

        Each process computes its shards of the full batch. A gradient that is not finite counts as
        zero. The loss draws its random numbers from the generator. A conditional model receives the
        context of each event of the batch. Returns the loss's values and ``gradient_norm``.
        """
        factor = self.settings.lr_factor(self.state.step, self.state.steps)
        factor *= 0.5**self.state.rollbacks
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = factor * optimizer.defaults["lr"]
        values = self._backward(batch, generator, context)
        gradients = [weight.grad for weight in self.weights if weight.grad is not None]
        distributed.average(gradients)
        norm = nn.utils.clip_grad_norm_(self.weights, self.settings.clip or math.inf, foreach=True)
        # an event that overflows must not end the training; the CPU need not wait to know of it
        if norm.device.type != "cpu" or not norm.isfinite():
            for gradient in gradients:
                gradient.nan_to_num_(0.0, 0.0, 0.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        decay = min(self.settings.ema, (1 + self.state.step) / (10 + self.state.step))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.weights, 1 - decay)
        self.state.step += 1
        return {**values, "gradient_norm": norm}

    def _backward(
        self, batch: Tensor, generator: torch.Generator | None, context: Context | None
    ) -> dict[str, Tensor]:
        """Accumulate gradients over this process's shards; returns the means of the values."""
        random_state: Any = None if generator is None else generator.get_state()
        results: list[dict[str, Tensor]] = []
        for shard in self.shards:
            if generator is not None and results:  # each shard takes its rows of the same draws
                generator.set_state(random_state)
            x, of_x = shard.rows(batch), None if context is None else shard.rows(context)
            with autocast(batch.device, self.precision):
                values = self.phase.evaluate(x, of_x, generator, shard)
            (values["loss"] / len(self.shards)).backward()
            results.append({name: value.detach() for name, value in values.items()})
        return {name: torch.stack([r[name] for r in results]).mean(0) for name in results[0]}

    @torch.no_grad()
    def validate(self, valid: Batches) -> Row:
        """Append a validation of the averaged weights, and keep these weights if it is the best."""
        self.swap_average()
        row = {"step": self.state.step, **validate(self.phase, valid)}
        if self.phase.noise.smallest is not None:
            row[SCORED_LOSS] = self._scored_loss(valid)
        row |= diagnose(self.model, valid)
        best = self.state.best_row
        if best is None or _compared_loss(row) < _compared_loss(best):
            self.state.best_step = self.state.step
            self.best = {name: t.detach().clone() for name, t in self.model.state_dict().items()}
        self.swap_average()
        self.state.valid.append(row)
        return row

    def _scored_loss(self, valid: Batches) -> float:
        """Loss as events are scored: at one noise scale (:func:`.best_noise_scale`).

        The density of vectors is mixed with a defensive component, and penalties are those of the
        nine tenths of the events to which it gives the largest density: otherwise a single event
        far away would decide which weights are kept.
        """
        from submanifold.evaluation.scores import best_noise_scale  # imports pandas

        noise, chosen = self.phase.noise, best_noise_scale(self.model, valid.events)
        scoring = ScoringScale(noise.scale, noise.smallest, chosen, self.defensive)
        at_scale = replace(self.phase, noise=scoring)
        row = validate(at_scale, valid)
        if self.defensive is None or row["loss"] == row.get(LIKELIHOOD):
            return row["loss"]
        order = self.defensive.log_prob(valid.rows.to(valid.device)).argsort().cpu().numpy()
        near = valid.events[order[len(valid) // FAR :]]
        of_near = validate(at_scale, Batches(near, valid.batch_size, valid.seed, valid.device))
        return of_near["loss"] - of_near.get(LIKELIHOOD, 0.0) + row.get(LIKELIHOOD, 0.0)

    def stop_early(self) -> None:
        """End the training after the present step if the last validations were no better."""
        later = sum(row["step"] > self.state.best_step for row in self.state.valid)
        if self.settings.patience is not None and later >= self.settings.patience:
            self.state.steps = self.state.step

    def keep_time(self, seconds: float, step_seconds: float) -> None:
        """Reduce the steps that are left if they would take longer than the settings allow.

        ``seconds`` have passed, and a step takes ``step_seconds``; processes average both.
        """
        if self.settings.seconds is None:
            return
        times = torch.tensor([seconds, step_seconds], dtype=torch.float64)
        distributed.average([times])
        passed, per_step = times.tolist()
        affordable = self.state.step + max(1, int((self.settings.seconds - passed) / per_step))
        self.state.steps = min(self.state.steps, affordable)

    def swap_average(self) -> None:
        """Exchange the memory of weights and average."""
        for weight, average in zip(self.weights, self.average, strict=True):
            weight.data, average.data = average.data, weight.data

    def save(self, folder: str | Path) -> None:
        """Write a checkpoint for :meth:`restore`, and keep the one before it."""
        tensors = {f"model/{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"best/{name}": value for name, value in self.best.items()}
        named = zip(self.model.named_parameters(), self.average, strict=True)
        for (name, weight), average in named:
            tensors[f"average/{name}"] = average
            for optimizer in self.optimizers:
                moments = optimizer.state.get(weight, {})
                tensors |= {f"{kind}/{name}": value for kind, value in moments.items()}
        distributed.barrier()  # other processes may still read the last one
        last, earlier = Path(folder, LAST), Path(folder, EARLIER)
        checkpoint.write(last, self.identity, tensors, earlier, state=asdict(self.state))
        distributed.barrier()

    @torch.no_grad()
    def restore(self, folder: str | Path) -> bool:
        """Restore the last intact checkpoint of a folder; returns whether there is one."""
        stored = checkpoint.read(self.identity, Path(folder, LAST), Path(folder, EARLIER))
        if stored is None:
            return False
        self.state = TrainState(**stored[1]["state"])
        groups: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for label, tensor in stored[0].items():
            group, _, name = label.partition("/")
            groups[group][name] = tensor
        self.model.load_state_dict(groups.pop("model"))
        self.best, averages = groups.pop("best", {}), groups.pop("average")
        owners: dict[Tensor, Optimizer] = {}
        for optimizer in self.optimizers:
            optimizer.state.clear()
            for weights in optimizer.param_groups:
                owners |= dict.fromkeys(weights["params"], optimizer)
        named = zip(self.model.named_parameters(), self.average, strict=True)
        for (name, weight), average in named:
            average.copy_(averages[name])
            for kind in [kind for kind, values in groups.items() if name in values]:
                value = groups[kind][name]
                if value.ndim:  # fused Adam walks through weights and moments in memory order
                    value = torch.empty_like(weight, dtype=value.dtype).copy_(value)
                owners[weight].state[weight][kind] = value.to(weight.device)
        return True

    def roll_back(self, folder: str | Path, name: str, problem: str) -> None:
        """Go back to the last checkpoint and halve the learning rates, at most three times.

        Then a phase that continues others ends with the weights of its best validation, which may
        be those that it started from; another one raises a UserError.
        """
        step, rollbacks, warnings = self.state.step, self.state.rollbacks + 1, self.state.warnings
        if rollbacks > MAX_ROLLBACKS:
            settings = self.settings
            muon = f" or training.muon_lr (now {settings.muon_lr})" if settings.muon_lr else ""
            text = (
                f"the loss or its gradient was {problem} at step {step}, after the learning rate "
                f"had been halved {MAX_ROLLBACKS} times"
            )
            fix = (
                f"Lower training.learning_rate (now {settings.learning_rate}){muon}, set "
                f"training.clip (now {settings.clip or 'null'}), or lower reconstruction.weight. "
                "Warnings of earlier phases may name the cause."
            )
            if not self.phase.is_continued:
                raise UserError(f"{name}: {text}. {fix}")
            text += f"; the weights of step {self.state.best_step} are kept"
            log.warning("%s: %s. %s", name, text, fix)
            self.state.warnings["divergence"] = f"{text}. {fix}"
            self.state.steps = step
            return
        self.model.zero_grad()
        if not self.restore(folder):
            fix = "Train again, with a lower training.learning_rate"
            expected = f"an intact checkpoint to go back to, as {name} was {problem} at step {step}"
            raise unexpected(folder, expected, "none", fix)
        self.state.rollbacks, self.state.warnings = rollbacks, warnings
        self.save(folder)
        log.warning(
            "%s: %s at step %d; back to step %d with the learning rate halved (%d of %d)",
            name,
            problem,
            step,
            self.state.step,
            rollbacks,
            MAX_ROLLBACKS,
        )


def _compared_loss(row: Row) -> float:
    """The loss by which the best validation is chosen; one that is not finite is the worst."""
    loss = row.get(SCORED_LOSS, row["loss"])
    return loss if math.isfinite(loss) else math.inf


@torch.no_grad()
def validate(phase: Phase, valid: Batches) -> Row:
    """Average the loss's values over all events, in the precision of the weights.

    Events whose loss is not finite are left out, and ``not_finite`` is their number, if there are
    any. If there are no others, the values are not finite.
    """
    sums, count = dict[str, Tensor](), distributed.world_size()
    count = count if len(valid) >= count * valid.batch_size else 1
    generator = torch.Generator(valid.device)
    for number, (x, context) in enumerate(valid.in_order(generator)):
        if number % count == distributed.rank() % count:
            for values, events in _evaluate_finite(phase, x, context, generator):
                is_finite = values["loss"].isfinite()
                sums[FINITE] = sums.get(FINITE, 0) + events * is_finite
                for key, value in values.items():
                    sums[key] = sums.get(key, 0) + torch.where(is_finite, value * events, 0)
    totals = {key: value * count for key, value in read(sums).items()}
    finite = round(totals.pop(FINITE))
    row = {key: value / finite if finite else math.nan for key, value in totals.items()}
    return row if finite == len(valid) else {**row, "not_finite": len(valid) - finite}


def _evaluate_finite(
    phase: Phase, x: Tensor, context: Context | None, generator: torch.Generator
) -> Iterator[tuple[dict[str, Tensor], int]]:
    """Yield the loss's values of a batch with its size; of halves, if the loss is not finite."""
    values = phase.evaluate(x, context, generator)
    if len(x) == 1 or values["loss"].isfinite():
        yield values, len(x)
        return
    for half in (Shard(0, 2), Shard(1, 2)):
        of_half = None if context is None else half.rows(context)
        yield from _evaluate_finite(phase, half.rows(x), of_half, generator)


def read(values: Mapping[str, Tensor]) -> Row:
    """Copy scalars from the device in one transfer, averaged over processes."""
    numbers = torch.stack([value.detach().double() for value in values.values()])
    distributed.average([numbers])
    return dict(zip(values, numbers.tolist(), strict=True))
