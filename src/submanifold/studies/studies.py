"""A study of Optuna's, and how a process makes its trials.

A study looks for few bits per dimension and a small squared error at once, both of validation data,
and its trials that no other beats in both are its front. A trial is what ``kedro run`` does with
its parameters, in a run of MLflow's. All that a study knows is in Optuna's database: whoever opens
it under the same name joins, and goes on where another was killed.
"""

import json
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from click import ClickException
from kedro.runner import SequentialRunner
from optuna.trial import FrozenTrial, TrialState

from submanifold.common.device import choose_device
from submanifold.common.errors import UserError
from submanifold.common.files import is_locked, locked
from submanifold.config import flatten
from submanifold.evaluation.measure import objectives
from submanifold.pipelines import study as pipeline
from submanifold.pipelines.study.nodes import open_study, trials_of
from submanifold.runs.tracking import Observer, Pruned, observed
from submanifold.studies.experiments import Experiment
from submanifold.studies.spaces import Search
from submanifold.training.rotation import RotationSettings
from submanifold.training.trainer import Row

log = logging.getLogger(__name__)

SAMPLERS: dict[str, Callable[..., optuna.samplers.BaseSampler]] = {
    "tpe": partial(optuna.samplers.TPESampler, multivariate=True, constant_liar=True),
    "nsga2": partial(optuna.samplers.NSGAIISampler, population_size=20),
    "random": optuna.samplers.RandomSampler,
}
"""TPE: Ozaki et al. 2022; NSGA-II: Deb et al. 2002, which needs hundreds of trials."""
FEWEST_PEERS = 5
EARLIEST = 0.5  # share of a phase's steps before which it may overtake the others yet
LIVES = 3  # processes that may die of a trial
IN_A_ROW = 3  # failures that are no coincidence
DRAWN = 16  # combinations that are looked at before any is trained
LOOK = 1.0  # seconds between looks at what others have done
NO_SETTING = ("device", "launch", "register_as", "sweep", "study")

Point = tuple[float, float]
"""Bits per dimension, and squared error."""


class Study:
    """A study as a process has it open."""

    def __init__(self, search: Search):
        self.search = search
        self.drawn = search.base.changed("study", search.name)
        path = self.drawn.load("study_trials")
        self.folder, self.space = path.parent, search.distributions
        self.optuna = open_study(path, search.name)

    def agree(self) -> None:
        """Write down what the study is of, or refuse another search or another experiment."""
        base = self.search.base
        settings = flatten(base.parameters)
        left_out = tuple(f"{name}." for name in (*self.search.spaces, *NO_SETTING))
        now = {k: v for k, v in settings.items() if not f"{k}.".startswith(left_out)}
        now["data"] = base.configuration.artifact_keys["data"]
        asked = {"search": dict(self.search.spaces), "base": json.loads(json.dumps(now))}
        with locked(self.folder, self.search.name):
            known = self.optuna.user_attrs
            for name in asked.keys() - known.keys():
                self.optuna.set_user_attr(name, asked[name])
        for name, what in ("search", "searches"), ("base", "is of"):
            before, after = known.get(name, asked[name]), asked[name]
            differs = [f"{key}={_shown(before, key)}, not {_shown(after, key)}"
                       for key in {**before, **after}
                       if _shown(before, key) != _shown(after, key)]  # fmt: skip
            if differs:
                raise UserError(
                    f"study={self.search.name} {what} {'; '.join(differs[:3])}"
                    f"{f'; and {len(differs) - 3} more' if len(differs) > 3 else ''}. Give it the "
                    "same as before, or another name with --study."
                )

    def check(self) -> None:
        """Refuse a search of which nothing can work, before anything is trained.

        Raises:
            UserError: None of some combinations that are drawn can; of some a warning tells.
        """
        if "search" in self.optuna.user_attrs:
            return
        quietly = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        refused = []
        for _ in range(DRAWN):
            chosen = quietly.ask(self.space).params
            try:
                self.search.experiment(chosen).parameters  # noqa: B018
            except ClickException as error:
                refused.append(f"{named(chosen)}: {error.message}")
        if len(refused) == DRAWN:
            raise UserError(f"No combination that was drawn can work, such as {refused[0]}")
        if refused:
            log.warning(
                "%d of %d combinations that were drawn cannot work, and will be failed trials, "
                "such as %s", len(refused), DRAWN, refused[0],
            )  # fmt: skip

    @property
    def is_made(self) -> bool:
        """Whether all trials have ended."""
        trials = trials_of(self.optuna)
        return len(trials) >= self.search.trials and all(t.state.is_finished() for t in trials)

    def work(self) -> None:
        """Make trials until there are enough, and none is left that another process might lose."""
        failures = 0
        while not self.is_made:
            with self._next() as trial:
                if trial is None:  # others are at the last ones
                    time.sleep(LOOK)
                    continue
                failures = 0 if self._make(trial) else failures + 1
            self._draw()
            if failures == IN_A_ROW:
                raise UserError(f"{IN_A_ROW} trials in a row have failed; the study can go on.")

    @contextmanager
    def _next(self) -> Iterator[optuna.Trial | None]:
        """Begin a trial, unless there are enough: one that is locked as long as it is made.

        What runs and is not locked has lost its process.
        """
        trial, made = None, ExitStack()
        with locked(self.folder, self.search.name):
            trials = trials_of(self.optuna)
            for each in trials:
                if each.state == TrialState.RUNNING and not is_locked(self._place(each)):
                    self._again(each, each.user_attrs.get("lives", LIVES) - 1)
            trials = trials_of(self.optuna)
            waiting = any(each.state == TrialState.WAITING for each in trials)
            if waiting or len(trials) < self.search.trials:
                # a new seed for each, or processes would draw the same, and a second call again
                seed = self.drawn.parameters["seed"] + len(self.optuna.get_trials(deepcopy=False))
                self.optuna.sampler = SAMPLERS[self.search.sampler](seed=seed % 2**32)
                trial = self.optuna.ask(self.space)
                made.callback(self._place(trial).rmdir)
                made.enter_context(locked(self._place(trial), f"trial {trial.number}"))
        with made:
            yield trial

    def _place(self, trial: FrozenTrial | optuna.Trial) -> Path:
        return self.folder / f"trial-{trial.number}"

    def _again(self, trial: FrozenTrial | optuna.Trial, lives: int) -> None:
        """End a trial that has lost its process, and let another have its parameters."""
        self.optuna.tell(trial.number, state=TrialState.FAIL)
        if lives:
            attributes = {"retry_of": trial.number, "lives": lives}
            self.optuna.enqueue_trial(trial.params, user_attrs=attributes)
        else:
            log.warning("Trial %d is given up: %d processes have died of it", trial.number, LIVES)

    def _make(self, trial: optuna.Trial) -> bool:
        """Run a trial to its end, and say whether it was well; a refusal is."""
        experiment = self.search.experiment(trial.params)
        try:
            experiment.parameters  # noqa: B018
        except ClickException as error:
            self._fail(trial, error.message)
            return True
        tags = {"submanifold.study": self.search.name, "submanifold.trial": str(trial.number)}
        started = partial(trial.set_user_attr, "run")
        observer = Observer(tags, started, partial(self._look, experiment, {}))
        try:
            with observed(observer):
                experiment.run()
            self.optuna.tell(trial, _measure(trial, experiment))
        except Pruned as why:
            trial.set_user_attr("why", str(why))
            self.optuna.tell(trial, state=TrialState.PRUNED)
        except (SystemExit, KeyboardInterrupt):  # told to stop, which is not its fault
            with locked(self.folder, self.search.name):
                self._again(trial, trial.user_attrs.get("lives", LIVES))
            raise
        except Exception as error:
            known = isinstance(error, ClickException | UserError)
            if not known:
                log.exception("Trial %d", trial.number)
            self._fail(trial, str(error) if known else f"{type(error).__name__}: {error}")
            return False
        return True

    def _fail(self, trial: optuna.Trial, why: str) -> None:
        trial.set_user_attr("why", why)
        self.optuna.tell(trial, state=TrialState.FAIL)

    def _look(
        self, experiment: Experiment, seen: dict[str, list[Point]], phase: str, step: int, row: Row
    ) -> None:
        """Prune a training that at a validation others have left behind."""
        settings = _comparable(experiment).get(phase)
        if not self.search.prune or settings is None or "valid.bits_per_dim" not in row:
            return
        so_far = seen.setdefault(phase, [])
        so_far.append((row["valid.bits_per_dim"], row["valid.mse"]))
        if step < EARLIEST * settings.training.steps:
            return
        complete = self.optuna.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        found = [each.user_attrs.get("validations", {}).get(phase, {}) for each in complete]
        peers = [each[str(step)] for each in found if str(step) in each]
        bits, error = map(min, zip(*so_far, strict=True))
        if is_dominated((bits, error), peers):
            raise Pruned(
                f"at step {step} of {phase} at least half of {len(peers)} complete trials had "
                f"fewer bits than it up to there ({bits:.3f}) and a smaller error ({error:.5f})"
            )

    def _draw(self) -> None:
        catalog = self.drawn.catalog
        catalog["params:study"] = self.search.name
        with locked(self.folder, self.search.name):
            SequentialRunner().run(pipeline.create_pipeline(), catalog)


def is_dominated(point: Sequence[float], peers: Collection[Sequence[float]]) -> bool:
    """Whether a training is left behind by what complete ones had at the same step.

    The median rule (Golovin et al. 2017, section 3.2.1; Optuna's MedianPruner) with Pareto's order
    in the place of a number's, for Optuna prunes no study of two objectives: at least half of the
    peers, of which there have to be five, are better in bits per dimension and in squared error
    both. What is best at a compromise of its own is kept. Losses are not compared, since the
    penalty's weight is in them.

    Args:
        point: The least bits per dimension and the least squared error on validation data so far.
        peers: What complete trials had at this step.
    """
    better = sum(all(b < a for a, b in zip(point, peer, strict=True)) for peer in peers)
    return len(peers) >= FEWEST_PEERS and 2 * better >= len(peers)


def _comparable(experiment: Experiment) -> dict[str, Any]:
    """The trainings that begin at the data, by name.

    Coordinates u are others in each trial: bits and errors of them compare with nothing.
    """
    phases = experiment.configuration.experiment.phases.items()
    return {name: phase for name, phase in phases
            if not isinstance(phase, RotationSettings) and phase.stages[0] == 1}  # fmt: skip


def _measure(trial: optuna.Trial, experiment: Experiment) -> Point:
    """Measure what a study chooses by, and keep what was reported of test data beside it.

    And what validations have found, those of phases that were there before among them.
    """
    validations = {
        history["name"]: {
            row["step"]: [row["bits_per_dim"], row["mse"]] for row in history["valid"]
        }
        for history in experiment.histories()
        if history["name"] in _comparable(experiment)
    }
    trial.set_user_attr("validations", validations)
    metrics = experiment.load("metrics")
    bits = metrics["bits_per_dim"]
    if bits["value"] is None:
        raise UserError(f"bits per dimension: {bits['why']}.")
    trial.set_user_attr("test", [bits["value"], metrics["mse"]["value"]])
    device = choose_device(experiment.parameters["device"])
    return objectives(experiment.load("hierarchy").to(device), experiment.load("x_valid"), device)


def named(chosen: Mapping[str, Any]) -> str:
    """Write down what a trial has, on a line."""
    written = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in chosen.items()}
    return ", ".join(f"{name}={value}" for name, value in written.items())


def _shown(values: Mapping[str, Any], name: str) -> str:
    return str(values[name]) if name in values else "nothing"
