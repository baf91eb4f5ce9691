"""Optuna studies in a database, whose trials are runs and are repeated if their process dies."""

import json
import logging
import math
import warnings
from contextvars import copy_context
from functools import partial
from pathlib import Path
from typing import Any, Literal

import optuna
from click import ClickException
from optuna.pruners import MedianPruner
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.study import MaxTrialsCallback
from optuna.trial import TrialState
from pydantic import Field, PositiveInt
from sqlalchemy.exc import SQLAlchemyError

from submanifold.common.device import choose_device
from submanifold.common.errors import UserError
from submanifold.common.files import locked
from submanifold.common.settings import Settings, parse_yaml, read_settings
from submanifold.evaluation.measure import objective
from submanifold.runs.experiments import CachedRun
from submanifold.runs.tracking import Observer, Pruned, observer
from submanifold.training.trainer import Row

log = logging.getLogger(__name__)
warnings.filterwarnings("ignore", ".*experimental|The reported value is ignored")

CHECKED = 4  # random combinations of settings that are checked before the first trial
FINISHED = TrialState.COMPLETE, TrialState.PRUNED  # others are repeated
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


def search(path: Path, project: Path, env: str | None, storage: str) -> list[str]:
    """Run the missing trials of the study in a file, as other processes may; return the best."""
    optuna.logging.disable_default_handler()
    try:
        content = dict(parse_yaml(path.read_text(encoding="utf-8")))
    except Exception as error:  # parsers of YAML raise many kinds of errors
        raise UserError(f"{path}: expected YAML with search and params, got: {error}") from error
    settings = read_settings(StudySettings, content, "", f"Change it in {path}.")
    base = CachedRun(path.stem, {}, project, env, evaluated=False)
    drawn = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    if all(errors := [_experiment(settings, base, drawn.ask()).error for _ in range(CHECKED)]):
        raise UserError(f"{path}: {errors[0]}")
    optuna.logging.enable_propagation()
    study, count = _open(settings, base, path, storage), settings.trials
    study.sampler = optuna.samplers.TPESampler(constant_liar=True)
    if settings.sampler == "grid":
        study.sampler = optuna.samplers.BruteForceSampler(avoid_premature_stop=True)
        count = min(count, math.prod(map(len, settings.search.values())))
    if len(study.get_trials(deepcopy=False, states=FINISHED)) < count:
        stop = MaxTrialsCallback(count, states=FINISHED)
        study.optimize(partial(_run, settings, base), callbacks=[stop])
    if not study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]):
        why = study.get_trials(deepcopy=False, states=FINISHED)[-1].user_attrs.get("why")
        raise UserError(f"{path}: no trial is complete: {why}")
    best = study.best_trials
    return [f"Trial {trial.number}: {trial.values} with {trial.params}" for trial in best]


def _open(settings: StudySettings, base: CachedRun, path: Path, url: str) -> optuna.Study:
    now = settings.model_dump(mode="json", exclude={"trials"}) | {"env": base.env}
    with locked(base.project / "data", "the database of studies"):
        try:
            study = optuna.create_study(
                storage=STORAGE(url),
                study_name=path.stem,
                load_if_exists=True,
                directions=["minimize"] * len(settings.objectives),
                pruner=MedianPruner(),
            )
        except (ImportError, SQLAlchemyError, optuna.exceptions.OptunaError) as error:
            raise UserError(f"--storage: expected the URL of a database, got {error}") from error
        if (begun := study.user_attrs.get("settings", now)) != now:
            raise UserError(
                f"{path}: expected the settings with which this study began, {begun}. "
                "Rename the file to begin another study."
            )
        study.set_user_attr("settings", now)
        study.set_metric_names(list(settings.objectives))
    return study


def _experiment(settings: StudySettings, base: CachedRun, trial: optuna.Trial) -> CachedRun:
    chosen = {name: settings.suggest(trial, name) for name in settings.search}
    return base.with_params(settings.params | chosen)


def _run(settings: StudySettings, base: CachedRun, trial: optuna.Trial) -> list[float]:
    """Run a trial, and return its objectives; a trial whose run fails is pruned."""
    run = _experiment(settings, base, trial)
    tags = {"submanifold.study": base.name, "submanifold.trial": str(trial.number)}
    report = partial(_report, settings, run, trial)
    try:
        context = copy_context()  # the observer is that of this run only
        set_run = partial(trial.set_user_attr, "mlflow_run")
        context.run(observer.set, Observer(tags, set_run, report))
        context.run(run.run)
        model, events = run.load_model(), run.load("x_valid")
        device = choose_device(run.settings.device)
        values = [objective(name, model, events, device) for name in settings.objectives]
        if not all(map(math.isfinite, values)):
            raise UserError(f"objectives: expected numbers, got {values}.")
        return values
    except Pruned as pruned:
        raise optuna.TrialPruned(str(pruned)) from pruned
    except (KeyboardInterrupt, SystemExit) as stop:  # the next process continues it at once
        trial.study.tell(trial, state=TrialState.FAIL)
        RETRY(trial.study, trial.study.trials[trial.number])
        raise SystemExit(getattr(stop, "code", 130)) from stop
    except ClickException as error:  # failed trials would be repeated
        log.warning("Trial %d: %s", trial.number, error)
        trial.set_user_attr("why", str(error))
        raise optuna.TrialPruned(str(error)) from error


def _report(
    settings: StudySettings, run: CachedRun, trial: optuna.Trial, phase: str, step: int, values: Row
) -> None:
    """Report a validation by its step in all phases, and raise :class:`Pruned` if it is bad."""
    name, phases = f"valid.{settings.objectives[0]}", list(run.settings.phases)
    is_of_data = run.settings.phases[phase].stages[0] == 1  # others have inputs of their own
    value = values.get(name, math.nan)
    if len(settings.objectives) > 1 or not is_of_data or not math.isfinite(value):
        return
    earlier = [run.load(f"{name}.history")["steps"] for name in phases[: phases.index(phase)]]
    trial.report(value, step := step + sum(earlier))
    if trial.should_prune():
        raise Pruned(f"After {step} steps, {value:.4g} is above the median")
