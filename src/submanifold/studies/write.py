"""Run what a target needs, and write it as Markdown, CSV, HTML and pictures."""

import itertools
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from click import ClickException

from submanifold.common.errors import UserError
from submanifold.common.files import atomic_write
from submanifold.common.progress import ProgressBar
from submanifold.plots.images import DPI, as_png
from submanifold.plots.pages import render
from submanifold.studies.experiments import Experiment, run_all
from submanifold.studies.targets import TARGETS, Content, Need, Target
from submanifold.training.cost import training_seconds

log = logging.getLogger(__name__)

FOLDER = Path("data/08_reporting/paper")

Plan = dict[str, dict[str, list[Experiment]]]


def plan(
    names: Sequence[str],
    project: Path,
    env: str | None = None,
    seeds: int = 1,
    params: Mapping[str, object] | None = None,
) -> Plan:
    """Find the experiments of each target, by label; ``all`` is every target.

    There are several seeds where a target uses more than one. The flat parameters, such as
    ``data.path``, are changed in all experiments.
    """
    if unknown := [name for name in names if name not in (*TARGETS, "all")]:
        raise UserError(
            f"{', '.join(unknown)} cannot be reproduced. Known: {', '.join(TARGETS)}, all."
        )

    def experiments(need: Need, target: Target) -> list[Experiment]:
        recipe = Experiment.from_recipe(need.recipe, project, env)
        experiment = replace(recipe, evaluated=target.evaluated)
        for parameter, value in [*(params or {}).items(), *need.changes]:
            experiment = experiment.changed(parameter, value)
        others = range(1, seeds if target.seeds else 1)
        return [experiment, *(experiment.changed("seed", seed) for seed in others)]

    return {
        name: {label: experiments(need, target) for label, need in target.needs.items()}
        for name, target in TARGETS.items()
        if name in names or "all" in names
    }


def state(planned: Plan, timed: bool = False) -> pd.DataFrame:
    """List the experiments of a plan, what of them is there, and how long the rest will take.

    A training takes as long as a finished one of the plan that differs in its data or seed alone.

    Args:
        planned: The plan.
        timed: Whether some steps are timed of each training of which none is finished.

    Returns:
        Columns ``experiment``, ``state``, ``hours`` of training that are left on this machine, NaN
        where they are not known, and ``unknown``, the number of trainings of which no time is
        known; a training that two experiments share counts for the first. The state of what cannot
        be run is the reason.
    """
    experiments, refused = _sorted_out(planned)
    took: dict[str, float] = {}
    left: dict[str, list[str]] = {}
    waiting: dict[str, tuple[Experiment, int]] = {}
    counted: set[str] = set()
    for key, experiment in experiments.items():
        left[key] = []
        for number, (history, phase) in enumerate(experiment.trainings.items(), start=1):
            kind = repr(_cost_arguments(experiment, number))
            if experiment.catalog.exists(history):
                took[kind] = experiment.load(history)["seconds"]
            elif phase not in counted:
                counted.add(phase)
                left[key].append(kind)
                waiting.setdefault(kind, (experiment, number))
    if timed:
        unknown = [kind for kind in waiting if kind not in took]
        with ProgressBar("timing", "trainings", len(unknown)) as meter:
            for kind in unknown:
                experiment, number = waiting[kind]
                took[kind] = training_seconds(*_cost_arguments(experiment, number))
                meter.update(1)
    rows: list[tuple[str, str, float, int]] = []
    for key, experiment in experiments.items():
        hours = sum(took.get(kind, math.nan) for kind in left[key]) / 3600
        unknown_here = sum(kind not in took for kind in left[key])
        if experiment.is_finished:
            rows.append((experiment.name, "finished", 0.0, 0))
        else:
            state = "to train" if left[key] else "trained, to evaluate"
            rows.append((experiment.name, state, hours, unknown_here))
    rows += [(name, why, math.nan, 0) for name, why in refused.items()]
    return pd.DataFrame(rows, columns=["experiment", "state", "hours", "unknown"])


def _cost_arguments(experiment: Experiment, number: int) -> tuple[Any, ...]:
    """What the duration of a phase depends on: arguments of :func:`training_seconds`."""
    of = experiment.configuration.experiment
    return of.model, list(of.phases.values())[number - 1], of.data.event_shape, of.device


def unique(planned: Plan) -> dict[str, Experiment]:
    """Collect the experiments of a plan by key, each once: evaluated, if one target wants that.

    Raises:
        ClickException: One of them cannot be run.
    """
    return _by_key(_every(planned))


def _every(planned: Plan) -> list[Experiment]:
    return [each for labels in planned.values() for each in itertools.chain(*labels.values())]


def _by_key(experiments: Iterable[Experiment]) -> dict[str, Experiment]:
    found: dict[str, Experiment] = {}
    for experiment in experiments:
        if experiment.key not in found or experiment.evaluated:
            found[experiment.key] = experiment
    return found


def _sorted_out(planned: Plan) -> tuple[dict[str, Experiment], dict[str, str]]:
    """The experiments of a plan that can be run, by key; and by name what stands against others."""
    every = _every(planned)
    against = {each.name: why for each in every if (why := _against(each)) is not None}
    return _by_key(each for each in every if each.name not in against), against


def _against(experiment: Experiment) -> str | None:
    """What stands against running an experiment, such as data that are nowhere."""
    try:
        experiment.parameters  # noqa: B018
    except ClickException as error:
        return error.message
    return None


def finished(planned: Plan) -> Plan:
    """Leave out what is not finished, and labels that nothing is left of."""
    found = {}
    for name, labels in planned.items():
        done = {
            key: [run for run in runs if _against(run) is None and run.is_finished]
            for key, runs in labels.items()
        }
        if any(done.values()) or not labels:
            found[name] = {label: runs for label, runs in done.items() if runs}
    return found


def reproduce(planned: Plan, project: Path, env: str | None = None) -> list[Path]:
    """Run what is missing, and write every target of the plan; returns their pages."""
    run_all(unique(planned).values())
    pages = []
    for name, runs in planned.items():
        folder = project / FOLDER / (env or "base") / name
        pages.append(write(name, TARGETS[name].title, TARGETS[name].make(runs), folder))
        with Experiment(name, {}, project, env).session() as session:
            session.load_context()  # kedro-mlflow sets the store and the experiment
        with mlflow.start_run(run_name=name):
            mlflow.set_tag("submanifold.target", name)
            mlflow.log_artifacts(str(folder))
    return pages


def write(name: str, title: str, content: Content, folder: Path) -> Path:
    """Write a target's files: ``<name>.md``, ``.csv``, ``.html``, and a PNG and PDF a figure."""
    heading = name.replace("-", " ").capitalize()
    lines, pictures = [f"# {heading}. {title}", ""], {}
    for caption, table in content.tables.items():
        lines += [f"**{caption}**", "", table.to_markdown(index=False, disable_numparse=True), ""]
    for number, (caption, figure) in enumerate(content.figures.items()):
        file = f"{name}-{number + 1}" if number else name
        pictures[caption] = as_png(figure, dpi=2 * DPI)
        with (
            atomic_write(folder / f"{file}.png") as png,
            atomic_write(folder / f"{file}.pdf") as pdf,
        ):
            png.write_bytes(pictures[caption])
            figure.savefig(pdf)
        lines += [f"![{caption}]({file}.png)", "", caption, ""]
    lines += [f"- {note}" for note in content.notes]
    about = {"heading": heading, "title": title, "content": content, "pictures": pictures}
    texts = {
        "md": "\n".join(lines).rstrip() + "\n",
        "html": render("target.html", **about),
        "csv": "" if content.data is None else content.data.to_csv(index=False),
    }
    for ending, text in texts.items():
        if text:
            with atomic_write(folder / f"{name}.{ending}") as partial:
                partial.write_text(text, encoding="utf-8")
    return folder / f"{name}.html"
