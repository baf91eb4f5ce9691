"""Commands ``train`` and ``runs``: one experiment from a few options, and the list of all runs."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from submanifold.common.files import read_json
from submanifold.common.imports import without_garbage_collection
from submanifold.config.project import project_folder, set_kedro_defaults
from submanifold.inference.records import RunRecord, find_record, read_records, records_folder

if TYPE_CHECKING:
    from submanifold.models import Model

FIGURES = ("bits_per_dim", "nll", "projection_mse", "encoder_mse", "nearest_mse")
"""Metrics in the list of runs."""
USUAL_ALPHA = 5
"""False-positive rate in percent of the command that is printed."""


@click.command()
@click.argument("data", metavar="DATA")
@click.option("--method", help="Training method.  [default: the dataset's, density-first]")
@click.option("--dim", type=click.IntRange(min=1), metavar="D",
              help="Dimension of the manifold.")  # fmt: skip
@click.option("--size", type=click.IntRange(min=1), metavar="PIXELS",
              help="Side of the images after cropping and resizing.  [default: 32]")  # fmt: skip
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True),
              help="Time of training: scales all steps (training.minutes).")  # fmt: skip
@click.option("--name", help="Name of the run.  [default: date and method]")
@click.option("--seed", type=int, help="Seed of the training.  [default: 0]")
@click.option("--device", help="auto, cpu, cuda or cuda:<n>.  [default: auto]")
@click.option("--set", "settings", multiple=True, metavar="SETTING=VALUE",
              help="Any other setting, such as stage_1.flow.width=128; repeatable.")  # fmt: skip
def train(
    data: str, method: str | None, dim: int | None, size: int | None, minutes: float | None,
    name: str | None, seed: int | None, device: str | None, settings: tuple[str, ...],
) -> None:  # fmt: skip
    """Train a model on DATA: a folder or zip of images, a table, or a dataset such as mnist.

    Tables are CSV, Parquet, Feather, NPY or NPZ files, or a folder of them.

    Writes the model and its report below data/ in the current folder. An interrupted command
    continues when it is repeated.
    """
    project = project_folder()
    set_kedro_defaults()
    with without_garbage_collection():
        from submanifold.runs.train import run, select

    chosen = {"method": method, "name": name, "seed": seed, "device": device}
    given = {key: value for key, value in chosen.items() if value is not None}
    selected = select(project, data, given, dim, size, minutes, settings)
    record = selected.record
    if record.state(project) != "finished":
        click.echo(f"Run {record.name}. If it is interrupted, the same command continues it.")
    run(selected, project)
    from submanifold.models import Model

    model = project / record.model
    click.echo(f"\nReport: {project / record.report}\nModel:  {model}\n\nUse the model:")
    for command in usage_commands(Model.load(model), record.name):
        click.echo(f"  submanifold {command}")


def usage_commands(model: "Model", name: str) -> list[str]:
    """Return the commands that apply a model, with options that work for it."""
    from submanifold.evaluation.calibration import Calibration
    from submanifold.flows import context_of

    of_table = "table" in model.data
    if "size" not in model.data and not of_table:
        return [f"info {name}", f"sample {name} -n 1000 --out=samples.npz"]
    inputs = "new.csv" if of_table else "new.jpg"
    first = f"encode {name} {inputs}"
    if "groups" in model.calibration:
        least = Calibration.from_dict(model.calibration).smallest_p_value
        first = f"score {name} {inputs} --alpha={max(USUAL_ALPHA, math.ceil(100 * least))}%"
    sample = f"sample {name} -n {1000 if of_table else 64}"
    context = context_of(model)
    if "columns" in context:
        sample = f"sample {name} {inputs}"
    label = " --label=0" if "classes" in context else ""
    return [each + label for each in (first, f"project {name} {inputs}", sample)]


@click.command()
@click.argument("name", required=False)
def runs(name: str | None) -> None:
    """List the runs of this folder with their figures, or show the files of the run NAME."""
    project = records_folder()
    if name is not None:
        record = find_record(project, name)
        lines = {
            "state": record.state(project),
            "dataset": record.dataset,
            "method": record.method,
            "started": record.started,
            "model": project / record.model,
            "metrics": project / record.metrics,
            "report": project / record.report,
        }
        click.echo("\n".join(f"{label:8} {value}" for label, value in lines.items()))
        return
    records = read_records(project)
    if not records:
        click.echo("No runs in this folder. `submanifold train pictures/` starts one.")
        return
    import pandas as pd

    table = pd.DataFrame([_row(each, project) for each in records]).fillna("")
    click.echo(table.to_markdown(index=False, tablefmt="simple", disable_numparse=True))


def _row(record: RunRecord, project: Path) -> dict[str, str]:
    from submanifold.evaluation.metrics import METRICS, SUBSET

    metrics = read_json(project / record.metrics) or {}
    row = {
        "name": record.name,
        "state": record.state(project),
        "started": record.started.replace("T", " "),
        "dataset": record.dataset,
        "method": record.method,
        "d": str((metrics.get("dims") or [""])[-1]),
    }
    for metric in map(METRICS.__getitem__, FIGURES):
        found = metric.read(metrics)
        value = found.get("value") if isinstance(found, Mapping) else found
        if value is not None:
            row[metric.label.removesuffix(SUBSET)] = metric.write(value)
    return row


COMMANDS = [train, runs]
