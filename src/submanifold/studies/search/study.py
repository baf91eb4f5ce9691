"""An Optuna study of validation bits per dimension and squared error, and its trials.

A trial is a `kedro run` with its own parameters. The whole state of a study is in Optuna's
database, so that several processes can work on it, and a killed one can be replaced.
"""

import json
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
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
from submanifold.config.schema import flatten
from submanifold.evaluation.measure import objectives
from submanifold.pipelines import study as pipeline
from submanifold.pipelines.study.nodes import open_study, trials_of
from submanifold.runs.tracking import Observer, Pruned, observed
from submanifold.studies.experiments import CachedRun
from submanifold.studies.search.spaces import read_space
from submanifold.training.rotation import RotationSettings
from submanifold.training.trainer import Row

log = logging.getLogger(__name__)

SAMPLERS: dict[str, Callable[..., optuna.samplers.BaseSampler]] = {
    "tpe": partial(optuna.samplers.TPESampler, multivariate=True, constant_liar=True),
    "nsga2": partial(optuna.samplers.NSGAIISampler, population_size=20),
    "random": optuna.samplers.RandomSampler,
}
"""TPE: Ozaki et al. 2022. NSGA-II: Deb et al. 2002; it needs hundreds of trials."""
FEWEST_PEERS = 5
EARLIEST_PRUNING = 0.5
"""Fraction of a phase's steps before which no training is pruned."""
ATTEMPTS = 3
"""Processes that may die during one trial before it counts as failed."""
MOST_FAILURES = 3
"""Consecutive failures after which a process stops."""
CHECKED = 16
"""Random combinations that are validated before the first training."""
POLL = 1.0
"""Seconds between looks at the trials of other processes."""
NOT_SETTINGS = ("device", "threads", "launch", "register_as", "sweep", "study")

Objectives = tuple[float, float]
"""Bits per dimension, and mean squared error."""


@dataclass
class Study:
    """A study, opened by one process.

    Attributes:
        name: Name of the study.
        spaces: Search space of each parameter, as on the command line.
        params: Nested runtime parameters of all trials.
        project: Folder of the Kedro project.
        env: Kedro environment.
        trials: Total number of trials, including those of earlier calls.
        sampler: One of :data:`SAMPLERS`.
        prune: Whether dominated trainings end early (:func:`is_dominated`).
    """

    name: str
    spaces: Mapping[str, str]
    params: Mapping[str, Any]
    project: Path
    env: str | None = None
    trials: int = 20
    sampler: str = "tpe"
    prune: bool = True

    def __post_init__(self) -> None:
        self.space = {name: read_space(name, text) for name, text in self.spaces.items()}
        self.base = CachedRun(self.name, self.params, self.project, self.env)
        self.results = self.base.changed("study", self.name)
        path = self.results.load("study_trials")
        self.folder = path.parent
        self.optuna = open_study(path, self.name)

    def experiment(self, chosen: Mapping[str, Any]) -> CachedRun:
        """The experiment of a trial."""
        run = self.base
        for name, value in chosen.items():
            is_list = isinstance(value, str) and value.startswith("[")
            run = run.changed(name, json.loads(value) if is_list else value)
        return run

    def store_search(self) -> None:
        """Validate and store the search and the experiment in a new study.

        Raises:
            UserError: All of some random combinations are invalid, or the study was created with
                another search or experiment.
        """
        if "search" not in self.optuna.user_attrs:
            self._check()
        excluded = tuple(f"{name}." for name in (*self.spaces, *NOT_SETTINGS))
        settings = {name: value for name, value in flatten(self.base.settings.parameters()).items()
                    if not f"{name}.".startswith(excluded)}  # fmt: skip
        settings["data"] = self.base.configuration.artifact_keys["data"]
        given = {"base": settings, "search": dict(self.spaces), "params": flatten(self.params)}
        with locked(self.folder, self.name):
            stored = self.optuna.user_attrs
            if "search" not in stored:
                stored = given
                for name, values in given.items():
                    self.optuna.set_user_attr(name, values)
        before, after = ({**each["base"], **each["search"]} for each in (stored, given))
        differences = [f"{name}={before.get(name)}, got {after.get(name)}"
                       for name in {**before, **after}
                       if before.get(name) != after.get(name)]  # fmt: skip
        if differences:
            raise UserError(
                f"study={self.name}: expected {'; '.join(differences[:3])}. Use the settings of "
                "the study, or another name with --study."
            )

    def _check(self) -> None:
        """Validate random combinations; some may be invalid, with a warning."""
        trials = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        drawn = [trials.ask(self.space).params for _ in range(CHECKED)]
        errors = [
            f"{format_params(chosen)}: {error}"
            for chosen in drawn
            if (error := self.experiment(chosen).error)
        ]
        if len(errors) == CHECKED:
            raise UserError(f"Search space: expected valid combinations, got none: {errors[0]}")
        if errors:
            log.warning(
                "%d of %d random combinations are invalid and will be failed trials, such as %s",
                len(errors), CHECKED, errors[0],
            )  # fmt: skip

    @property
    def is_finished(self) -> bool:
        """Whether all trials have ended."""
        trials = trials_of(self.optuna)
        return len(trials) >= self.trials and all(trial.state.is_finished() for trial in trials)

    def work(self) -> None:
        """Run trials until the study is finished.

        Raises:
            UserError: Several trials in a row have failed.
        """
        failures = 0
        while not self.is_finished:
            with self._next_trial() as trial:
                if trial is None:  # other processes run the last trials, and may die
                    time.sleep(POLL)
                    continue
                failures = 0 if self._run(trial) else failures + 1
            self._write_page()
            if failures == MOST_FAILURES:
                raise UserError(
                    f"study={self.name}: {failures} trials in a row have failed. Give the command "
                    "again to continue."
                )

    @contextmanager
    def _next_trial(self) -> Iterator[optuna.Trial | None]:
        """Start a trial, if one is left, and lock it while it runs.

        A trial that is running but not locked has lost its process, and is repeated.
        """
        trial, resources = None, ExitStack()
        with locked(self.folder, self.name):
            for each in trials_of(self.optuna):
                if each.state == TrialState.RUNNING and not is_locked(self._lock_of(each)):
                    self._repeat(each, each.user_attrs.get("lives", ATTEMPTS) - 1)
            trials = trials_of(self.optuna)
            waiting = any(each.state == TrialState.WAITING for each in trials)
            if waiting or len(trials) < self.trials:
                # a new seed for each trial, or two processes would sample the same parameters
                seed = self.results.settings.seed + len(self.optuna.get_trials(deepcopy=False))
                self.optuna.sampler = SAMPLERS[self.sampler](seed=seed % 2**32)
                trial = self.optuna.ask(self.space)
                resources.callback(self._lock_of(trial).rmdir)
                resources.enter_context(locked(self._lock_of(trial), f"trial {trial.number}"))
        with resources:
            yield trial

    def _lock_of(self, trial: FrozenTrial | optuna.Trial) -> Path:
        return self.folder / f"trial-{trial.number}"

    def _repeat(self, trial: FrozenTrial | optuna.Trial, lives: int) -> None:
        """Fail an interrupted trial, and enqueue its parameters again if it has lives left."""
        self.optuna.tell(trial.number, state=TrialState.FAIL)
        if lives:
            attributes = {"retry_of": trial.number, "lives": lives}
            self.optuna.enqueue_trial(trial.params, user_attrs=attributes)
        else:
            log.warning("Trial %d failed: %d processes died during it", trial.number, ATTEMPTS)

    def _run(self, trial: optuna.Trial) -> bool:
        """Run a trial. Return False on failure; invalid parameters count as success."""
        run, state, is_success = self.experiment(trial.params), TrialState.FAIL, True
        reason = run.error
        if reason is None:
            try:
                self._train(trial, run)
                return True
            except Pruned as pruned:
                state, reason = TrialState.PRUNED, str(pruned)
            except (SystemExit, KeyboardInterrupt):
                with locked(self.folder, self.name):
                    self._repeat(trial, trial.user_attrs.get("lives", ATTEMPTS))
                raise
            except (ClickException, UserError) as error:
                is_success, reason = False, str(error)
            except Exception as error:
                log.exception("Trial %d", trial.number)
                is_success, reason = False, f"{type(error).__name__}: {error}"
        trial.set_user_attr("why", reason)
        self.optuna.tell(trial, state=state)
        return is_success

    def _train(self, trial: optuna.Trial, run: CachedRun) -> None:
        """Run the experiment of a trial, and store its objectives."""
        tags = {"submanifold.study": self.name, "submanifold.trial": str(trial.number)}
        on_run = partial(trial.set_user_attr, "run")
        with observed(Observer(tags, on_run, partial(self._prune, run, {}))):
            run.run()
        self.optuna.tell(trial, measure(trial, run))

    def _prune(
        self, run: CachedRun, seen: dict[str, list[Objectives]], phase: str, step: int, row: Row
    ) -> None:
        """Raise :class:`Pruned` if validation shows that a training is dominated."""
        settings = _comparable(run).get(phase)
        if not self.prune or settings is None or "valid.bits_per_dim" not in row:
            return
        so_far = seen.setdefault(phase, [])
        so_far.append((row["valid.bits_per_dim"], row["valid.mse"]))
        if step < EARLIEST_PRUNING * settings.training.steps:
            return
        complete = self.optuna.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        found = [each.user_attrs.get("validations", {}).get(phase, {}) for each in complete]
        peers = [each[str(step)] for each in found if str(step) in each]
        bits, error = map(min, zip(*so_far, strict=True))
        if is_dominated((bits, error), peers):
            raise Pruned(
                f"at step {step} of {phase} at least half of {len(peers)} complete trials had "
                f"fewer bits per dimension (best here {bits:.3f}) and a smaller squared error "
                f"(best here {error:.5f})"
            )

    def _write_page(self) -> None:
        catalog = self.results.catalog
        catalog["params:study"] = self.name
        with locked(self.folder, self.name):
            SequentialRunner().run(pipeline.create_pipeline(), catalog)


def is_dominated(point: Sequence[float], peers: Collection[Sequence[float]]) -> bool:
    """Return whether at least half of the peers, and at least five, are better in both objectives.

    The median rule (Golovin et al. 2017, section 3.2.1; Optuna's MedianPruner) with the Pareto
    order, since Optuna does not prune studies with two objectives.

    Args:
        point: Smallest validation bits per dimension and squared error so far.
        peers: Those of complete trials at the same step.

    Example:
        >>> is_dominated((2.0, 2.0), [(1.0, 1.0)] * 5)
        True
    """
    better = sum(all(b < a for a, b in zip(point, peer, strict=True)) for peer in peers)
    return len(peers) >= FEWEST_PEERS and 2 * better >= len(peers)


def _comparable(run: CachedRun) -> dict[str, Any]:
    """Phases trained on the data, by name; other phases have different inputs in each trial."""
    phases = run.settings.phases.items()
    return {name: phase for name, phase in phases
            if not isinstance(phase, RotationSettings) and phase.stages[0] == 1}  # fmt: skip


def measure(trial: optuna.Trial, run: CachedRun) -> Objectives:
    """Measure the objectives on validation data; store validations, test metrics and model."""
    validations = {
        name: {
            row["step"]: [row["bits_per_dim"], row["mse"]]
            for row in run.load(f"{name}.history")["valid"]
        }
        for name in _comparable(run)
    }
    trial.set_user_attr("validations", validations)
    metrics = run.load("metrics")
    bits = metrics["bits_per_dim"]
    if bits["value"] is None:
        raise UserError(f"bits per dimension: {bits['why']}.")
    test = {"test_bpd": bits, "test_mse": metrics["mse"]}
    trial.set_user_attr("test", [each["value"] for each in test.values()])
    ends = {f"{name}_{end}": each[end] for name, each in test.items() for end in ("low", "high")}
    trial.set_user_attr("test_ends", ends)
    trial.set_user_attr("model", run.configuration.artifact_keys["model"])
    device = choose_device(run.settings.device)
    return objectives(run.load("hierarchy").to(device), run.load("x_valid"), device)


def format_params(chosen: Mapping[str, Any]) -> str:
    """Format the parameters of a trial on one line."""
    rounded = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in chosen.items()}
    return ", ".join(f"{name}={value}" for name, value in rounded.items())
