"""Plan, run and write the targets of `submanifold reproduce`."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean

import mlflow

from submanifold.common.errors import did_you_mean, list_names, unexpected
from submanifold.config.loader import load_configuration
from submanifold.config.project import conf_source, session
from submanifold.config.schema import nest
from submanifold.runs.experiments import CachedRun, message_of, run_all
from submanifold.runs.tracking import connect
from submanifold.studies.comparisons import beyond, ood, related
from submanifold.studies.pages import Params, Target, write
from submanifold.studies.paper import convergence, figures, findings, tables

PAPER = {**tables.TARGETS, **figures.TARGETS, "findings": findings.TARGET}
TARGETS = {
    **PAPER,
    "convergence": convergence.TARGET,
    "beyond": beyond.TARGET,
    "ood": ood.TARGET,
    "related": related.TARGET,
}
TARGET_SETS = {"paper": [*PAPER], "all": [*TARGETS]}  # names that stand for several targets

FINISHED, TO_RUN = "finished", "to run"

Plan = dict[str, dict[str, list[CachedRun]]]  # runs by target and label, one for each seed


def plan(
    names: Sequence[str],
    project: Path,
    env: str | None = None,
    seeds: int = 1,
    params: Mapping[str, object] | None = None,
) -> Plan:
    """List the runs of targets, of which ``paper`` and ``all`` are several.

    ``seeds`` is the number of seeds of the targets that use several; ``params`` are parameters of
    all experiments by names with dots, such as ``data.path``.
    """
    if unknown := [name for name in names if name not in (*TARGETS, *TARGET_SETS)]:
        expected = list_names([*TARGET_SETS, *TARGETS], unknown[0])
        hint = did_you_mean(unknown[0], TARGETS)
        raise unexpected("TARGETS", expected, ", ".join(unknown), hint=hint)
    chosen = {target for name in names for target in TARGET_SETS.get(name, [name])}
    changed = dict(params or {})
    for target in chosen:
        needs = TARGETS[target].needs.values()
        kinds, left = (
            {json.dumps({**need, **changes}, sort_keys=True) for need in needs}
            for changes in ({}, changed)
        )
        if len(left) < len(kinds) or ("seed" in changed and seeds > 1):
            expected = f"settings in which trainings of {target} do not differ"
            raise unexpected("--params", expected, ", ".join(changed), "Omit some")
    parameters = load_configuration(conf_source(project), env=env).tables

    def runs(name: str, need: Params, target: Target) -> list[CachedRun]:
        values = nest({**need, **changed})
        run = CachedRun(name, values, project, env, target.evaluated, parameters)
        others = range(1, seeds if target.seeds else 1)
        return [run, *(run.with_params({"seed": seed}) for seed in others)]

    return {
        name: {label: runs(f"{name} {label}", need, target) for label, need in target.needs.items()}
        for name, target in TARGETS.items()
        if name in chosen
    }


def state(planned: Plan) -> dict[str, str]:
    """Return the state of each run of a plan by its name, or the error that prevents it."""
    return {run.name: text for run, text in _states(planned)}


def _states(planned: Plan) -> Iterator[tuple[CachedRun, str]]:
    by_data: dict[str, str | None] = {}
    for run in unique(_all_runs(planned)).values():
        if error := run.error:
            yield run, error
            continue
        key = run.configuration.artifact_keys["data"]
        if not run.is_finished and key not in by_data:
            by_data[key] = message_of(run.configuration.check_images)
        yield run, FINISHED if run.is_finished else by_data[key] or TO_RUN


def overview(planned: Plan) -> list[str]:
    """List each missing input once, then the other runs, and the time that all will take."""
    names_by_state: dict[str, list[str]] = {TO_RUN: [], FINISHED: []}
    seconds_by_method: dict[str, list[float]] = {}
    waiting = []
    for run, text in _states(planned):
        names_by_state.setdefault(text, []).append(run.name)
        method = str(run.params.get("method"))
        if text == FINISHED:
            seconds_by_method.setdefault(method, []).append(_seconds(run))
        else:
            waiting.append(method)
    known = {text: names_by_state.pop(text) for text in (TO_RUN, FINISHED)}
    lines = [f"{error}\n  Needed by {', '.join(names)}." for error, names in names_by_state.items()]
    width = max((len(name) for names in known.values() for name in names), default=0)
    lines += [f"{name:<{width}}  {text}" for text, names in known.items() for name in names]
    total = len(waiting) + len(known[FINISHED])
    lines.append(f"{len(known[FINISHED])} of {total} runs are finished.")
    if waiting:
        seconds = estimate(seconds_by_method, waiting)
        lines[-1] += (
            " How long the others take is known when one is finished."
            if seconds is None
            else f" The others take about {seconds / 3600:.1f} hours, as measured on this machine."
        )
    return lines


def _seconds(run: CachedRun) -> float:
    """Return the duration of the training and, if there was one, of the evaluation."""
    if not run.catalog.exists("metrics"):
        return run.seconds()
    return float(sum(run.load("metrics")["seconds"].values()))


def estimate(seconds_by_method: Mapping[str, list[float]], waiting: Iterable[str]) -> float | None:
    """Sum the mean seconds of the methods to run, given those of finished runs.

    A method without finished runs takes the mean of all. None if no run is finished.

    Example:
        >>> estimate({"PR-D": [100.0, 200.0], "PR-M": [300.0]}, ["PR-D", "DNF"])
        350.0
    """
    measured = [seconds for runs in seconds_by_method.values() for seconds in runs]
    if not measured:
        return None
    return sum(fmean(seconds_by_method.get(method, measured)) for method in waiting)


def _all_runs(planned: Plan) -> list[CachedRun]:
    return [run for labels in planned.values() for runs in labels.values() for run in runs]


def unique(runs: Iterable[CachedRun]) -> dict[str, CachedRun]:
    """Return runs by cache key, or by parameters if these are invalid; evaluated if one is."""
    by_key: dict[str, CachedRun] = {}
    for run in runs:
        key = json.dumps(run.params, sort_keys=True) if run.error else run.key
        if key not in by_key or run.evaluated:
            by_key[key] = run
    return by_key


def finished(planned: Plan) -> Plan:
    """Keep the finished runs, and the targets that have some or need none."""
    kept = {}
    for name, labels in planned.items():
        done = {
            label: [run for run in runs if run.error is None and run.is_finished]
            for label, runs in labels.items()
        }
        if any(done.values()) or not labels:
            kept[name] = {label: runs for label, runs in done.items() if runs}
    return kept


def reproduce(
    planned: Plan, project: Path, env: str | None = None, options: str = ""
) -> list[Path]:
    """Run what is missing, write every target, and log it to MLflow; returns the Markdown pages.

    A page has its command, with the ``options`` of the command line.
    """
    run_all(unique(_all_runs(planned)).values())
    pages = []
    for name, runs in planned.items():
        target = TARGETS[name]
        folder = project / "data/08_reporting/paper" / (env or "base") / name
        pages.append(write(name, target.title, target.content(runs), folder, options))
        with session(project, env, {}) as kedro:
            connect(kedro.load_context())
        with mlflow.start_run(run_name=name):
            mlflow.log_artifacts(str(folder))
    return pages
