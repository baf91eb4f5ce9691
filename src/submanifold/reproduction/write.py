"""Run what a target needs, and write it as Markdown, CSV, HTML and pictures."""

import itertools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import mlflow
import pandas as pd

from submanifold.errors import UserError
from submanifold.figures import as_png
from submanifold.figures.images import DPI
from submanifold.pages import render
from submanifold.reproduction.estimate import training_seconds
from submanifold.reproduction.experiments import Experiment, open_session, run_all
from submanifold.reproduction.targets import TARGETS, Content, Need

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
    """Find the experiments of each target, by label.

    Args:
        names: Of the targets; ``all`` is every one.
        project: Folder of the project.
        env: Environment of the configuration.
        seeds: How many seeds, where a target uses more than one.
        params: Flat parameters, such as ``data.path``, that are changed in all experiments.

    Raises:
        UserError: A name is not known.
    """
    unknown = [name for name in names if name not in (*TARGETS, "all")]
    if unknown:
        raise UserError(
            f"{', '.join(unknown)} cannot be reproduced. Known: {', '.join(TARGETS)}, all."
        )

    def experiments(need: Need, several: bool) -> list[Experiment]:
        experiment = Experiment.from_recipe(need.recipe, project, env)
        for parameter, value in [*(params or {}).items(), *need.changes]:
            experiment = experiment.changed(parameter, value)
        others = range(1, seeds if several else 1)
        return [experiment, *(experiment.changed("seed", seed) for seed in others)]

    return {
        name: {label: experiments(need, target.seeds) for label, need in target.needs.items()}
        for name, target in TARGETS.items()
        if name in names or "all" in names
    }


def state(planned: Plan) -> pd.DataFrame:
    """List the experiments of a plan, what of them is there, and how long the rest will take.

    Returns:
        Columns ``experiment``, ``state`` and ``hours`` of training that are left, on this machine;
        a training that two experiments share counts for the first.
    """
    rows: list[tuple[str, str, float]] = []
    counted: set[str] = set()
    for experiment in unique(planned).values():
        left = {
            key: history
            for history, key in experiment.trainings.items()
            if key not in counted and not experiment.is_trained(history)
        }
        counted |= left.keys()
        finished, seconds = experiment.is_finished, 0.0
        if not finished:
            seconds = sum(training_seconds(experiment, history) for history in left.values())
        told = "finished" if finished else "to train" if left else "trained, to evaluate"
        rows.append((experiment.name, told, seconds / 3600))
    return pd.DataFrame(rows, columns=["experiment", "state", "hours"])


def unique(planned: Plan) -> dict[str, Experiment]:
    """Collect the experiments of a plan by key, each once."""
    found: dict[str, Experiment] = {}
    for runs in planned.values():
        for experiment in itertools.chain.from_iterable(runs.values()):
            found.setdefault(experiment.key, experiment)
    return found


def finished(planned: Plan) -> Plan:
    """Leave out what is not finished, and labels that nothing is left of."""
    kept = {
        name: {label: [each for each in runs if each.is_finished] for label, runs in labels.items()}
        for name, labels in planned.items()
    }
    return {
        name: {label: runs for label, runs in labels.items() if runs}
        for name, labels in kept.items()
        if any(labels.values()) or not labels
    }


def reproduce(planned: Plan, project: Path, env: str | None = None) -> list[Path]:
    """Run what is missing, and write every target of the plan; returns their pages."""
    run_all(unique(planned))
    pages = []
    for name, runs in planned.items():
        folder = project / FOLDER / (env or "base") / name
        pages.append(write(name, TARGETS[name].title, TARGETS[name].make(runs), folder))
        _log_to_mlflow(name, folder, project, env)
    return pages


def write(name: str, title: str, content: Content, folder: Path) -> Path:
    """Write a target's files: ``<name>.md``, ``.csv``, ``.html``, and a PNG and PDF a figure."""
    folder.mkdir(parents=True, exist_ok=True)
    lines, pictures = [f"# {heading(name)}. {title}", ""], {}
    for caption, table in content.tables.items():
        lines += [f"**{caption}**", "", table.to_markdown(index=False, disable_numparse=True), ""]
    for number, (caption, figure) in enumerate(content.figures.items()):
        file = f"{name}-{number + 1}" if number else name
        png = as_png(figure, dpi=2 * DPI)
        (folder / f"{file}.png").write_bytes(png)
        figure.savefig(folder / f"{file}.pdf")
        lines += [f"![{caption}]({file}.png)", "", caption, ""]
        pictures[caption] = png
    lines += [f"- {note}" for note in content.notes]
    (folder / f"{name}.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    if content.data is not None:
        content.data.to_csv(folder / f"{name}.csv", index=False)
    page = folder / f"{name}.html"
    page.write_text(
        render(
            "target.html", heading=heading(name), title=title, content=content, pictures=pictures
        ),
        encoding="utf-8",
    )
    return page


def heading(name: str) -> str:
    """Write a target's name as the paper does: ``table-1`` is Table 1."""
    return name.replace("-", " ").capitalize()


def _log_to_mlflow(name: str, folder: Path, project: Path, env: str | None) -> None:
    """Keep the files of a target as artifacts of a run named after it."""
    with open_session(project, env) as session:
        session.load_context()  # kedro-mlflow sets the store and the experiment
    with mlflow.start_run(run_name=name):
        mlflow.set_tag("submanifold.target", name)
        mlflow.log_artifacts(str(folder))
