"""Optuna studies in a database, whose trials are runs and are repeated if their process dies."""

import json
import logging
import math
import statistics
import time
import warnings
from contextvars import copy_context
from functools import partial
from pathlib import Path
from typing import Any, Literal

import optuna
import yaml
from click import ClickException
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState
from pydantic import Field, PositiveInt
from sqlalchemy.exc import SQLAlchemyError

from submanifold.common.device import choose_device
from submanifold.common.errors import UserError
from submanifold.common.files import locked
from submanifold.common.settings import Settings, read_settings
from submanifold.evaluation.measure import objectives
from submanifold.runs.experiments import CachedRun
from submanifold.runs.tracking import Observer, Pruned, observer
from submanifold.training.trainer import Row

log = logging.getLogger(__name__)
warnings.filterwarnings("ignore", ".*experimental|The reported value is ignored")

POLL = 5.0  # seconds between looks at the last trials of other processes
CHECKED = 4  # random combinations of settings that are checked before the first trial
FEWEST_PEERS = 5  # complete trials below which no training is pruned
RETRY = RetryHeartbeatStaleTrialCallback(max_retry=3)
STORAGE = partial(RDBStorage, heartbeat_interval=60, heartbeat_stale_trial_callback=RETRY)


class StudySettings(Settings):
    """The content of a study's file."""

    search: dict[str, Any] = Field(min_length=1)  # choices, or low, high, log and step, by name
    params: dict[str, Any] = Field(default_factory=dict)  # of all trials
    trials: PositiveInt = 20  # at most the size of a grid
    sampler: Literal["tpe", "grid"] = "tpe"  # Ozaki et al. 2022, or all combinations of choices
    # minimized on validation data; trials are pruned if it is one
    objectives: list[Literal["bits_per_dim", "mse"]] = Field(["bits_per_dim"], min_length=1)

    def suggest(self, trial: optuna.Trial, name: str) -> Any:
        """Choose the value of a parameter in a trial."""
        space = self.search[name]
        try:
            if isinstance(space, list):
                stored = [json.dumps(v) if isinstance(v, list | dict) else v for v in space]
                return space[stored.index(trial.suggest_categorical(name, stored))]
            if self.sampler == "grid":
                raise ValueError("a grid needs choices")
            are_integers = {type(space["low"]), type(space["high"])} == {int}
            return (trial.suggest_int if are_integers else trial.suggest_float)(name, **space)
        except (ValueError, TypeError, KeyError) as error:
            expected = "expected a list of choices, or a range such as {low: 1, high: 9, log: true}"
            raise UserError(f"search.{name}: {expected}, got {space} ({error}).") from error


class SecondsPruner(optuna.pruners.BasePruner):
    """The median rule (Golovin et al. 2017) at equal seconds of training.

    A training is pruned if its best validation is worse than the median of those that complete
    trials reached in the same time, but not in the first half of their usual time. Steps are not
    comparable: they take longer in larger models, and a time budget sets their number.
    """

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Return whether to end a trial; its values are reported by seconds."""
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        peers = [peer.intermediate_values for peer in complete if peer.intermediate_values]
        seconds = max(trial.intermediate_values, default=0)
        if len(peers) < FEWEST_PEERS or 2 * seconds < statistics.median(map(max, peers)):
            return False
        best = [min([value for at, value in values.items() if at <= seconds], default=math.inf)
                for values in (*peers, trial.intermediate_values)]  # fmt: skip
        return best[-1] > statistics.median(best[:-1])


def search(path: Path, project: Path, env: str | None, storage: str) -> list[str]:
    """Run the missing trials of the study in a file, as other processes may; return the best."""
    optuna.logging.disable_default_handler()
    try:
        content = dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path}: expected YAML with search and params, got: {error}") from error
    settings = read_settings(StudySettings, content, "", f"Change it in {path}.")
    base = CachedRun(path.stem, {}, project, env, evaluated=False)
    drawn = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    if all(errors := [_experiment(settings, base, drawn.ask()).error for _ in range(CHECKED)]):
        raise UserError(f"{path}: {errors[0]}")
    optuna.logging.enable_propagation()
    study, count = _open(settings, base, path, storage), settings.trials
    if settings.sampler == "grid":
        study.sampler = optuna.samplers.BruteForceSampler()
        count = min(count, math.prod(map(len, settings.search.values())))
    while True:
        optuna.storages.fail_stale_trials(study)
        trials = study.get_trials(deepcopy=False)
        states = {trial.state for trial in trials}
        # one that failed for no reason of its own is repeated
        started = [t for t in trials if t.state != TrialState.FAIL or "why" in t.user_attrs]
        if len(started) < count or TrialState.WAITING in states:
            if settings.sampler == "tpe":  # processes with equal seeds would choose equal values
                study.sampler = optuna.samplers.TPESampler(seed=len(trials), constant_liar=True)
            study.optimize(partial(_run, settings, base), n_trials=1)
        elif TrialState.RUNNING not in states:
            break
        else:  # in another process, which may die
            time.sleep(POLL)
    if TrialState.COMPLETE not in states:
        raise UserError(f"{path}: no trial is complete: {started[-1].user_attrs.get('why')}")
    best = study.best_trials
    return [f"Trial {trial.number}: {trial.values} with {trial.params}" for trial in best]


def _open(settings: StudySettings, base: CachedRun, path: Path, url: str) -> optuna.Study:
    now = settings.model_dump(mode="json", exclude={"trials"}) | {"env": base.env}
    with locked(base.project / "data", "the database of studies"):
        try:
            study = optuna.create_study(
                storage=STORAGE(url), study_name=path.stem, load_if_exists=True,
                directions=["minimize"] * len(settings.objectives), pruner=SecondsPruner(),
            )  # fmt: skip
        except (ImportError, SQLAlchemyError, optuna.exceptions.OptunaError) as error:
            raise UserError(f"--storage: expected the URL of a database, got {error}") from error
        if (begun := study.user_attrs.get("settings", now)) != now:
            raise UserError(f"{path}: expected the settings with which this study began, {begun}. "
                            "Rename the file to begin another study.")  # fmt: skip
        study.set_user_attr("settings", now)
        study.set_metric_names(list(settings.objectives))
    return study


def _experiment(settings: StudySettings, base: CachedRun, trial: optuna.Trial) -> CachedRun:
    chosen = {name: settings.suggest(trial, name) for name in settings.search}
    return base.with_params(settings.params | chosen)


def _run(settings: StudySettings, base: CachedRun, trial: optuna.Trial) -> list[float]:
    """Run a trial, and return its objectives; NaN if the run fails."""
    run = _experiment(settings, base, trial)
    tags = {"submanifold.study": base.name, "submanifold.trial": str(trial.number)}
    report = partial(_report, settings, run, trial)
    try:
        context = copy_context()  # the observer is that of this run only
        set_run = partial(trial.set_user_attr, "mlflow_run")
        context.run(observer.set, Observer(tags, set_run, report))
        context.run(run.run)
        device = choose_device(run.settings.device)
        reached = objectives(run.load_model(), run.load("x_valid"), device)
        values = [reached[name] for name in settings.objectives]
        if not all(map(math.isfinite, values)):
            raise UserError(f"objectives: expected numbers, got {reached}.")
        return values
    except Pruned as pruned:
        raise optuna.TrialPruned(str(pruned)) from pruned
    except (KeyboardInterrupt, SystemExit) as stop:  # the next process continues it at once
        trial.study.tell(trial, state=TrialState.FAIL)
        RETRY(trial.study, trial.study.trials[trial.number])
        raise SystemExit(getattr(stop, "code", 130)) from stop
    except ClickException as error:
        log.warning("Trial %d: %s", trial.number, error)
        trial.set_user_attr("why", str(error))
        return [math.nan] * len(settings.objectives)


def _report(
    settings: StudySettings, run: CachedRun, trial: optuna.Trial, phase: str, step: int, values: Row
) -> None:
    """Report a validation by its seconds of training, and raise :class:`Pruned` if it is bad."""
    name, phases = f"valid.{settings.objectives[0]}", list(run.settings.phases)
    is_of_data = run.settings.phases[phase].stages[0] == 1  # others have inputs of their own
    if len(settings.objectives) > 1 or not is_of_data or not {name, "valid.seconds"} <= {*values}:
        return
    earlier = [run.load(f"{name}.history")["seconds"] for name in phases[: phases.index(phase)]]
    seconds = int(sum(earlier) + values["valid.seconds"])
    if math.isfinite(values[name]):
        trial.report(values[name], seconds)
        if trial.should_prune():
            raise Pruned(f"After {seconds} s of training, {values[name]:.4g} is above the median")
