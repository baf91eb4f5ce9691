"""Commands ``train``, ``runs``, ``compare`` and ``info``, of one experiment or of all runs."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from submanifold.common.errors import printable, unexpected
from submanifold.common.files import read_json
from submanifold.common.text_tables import format_table
from submanifold.config.merge import parse_params
from submanifold.config.project import project_folder, session, set_kedro_defaults
from submanifold.inference.commands.options import id_option, model_argument, out_option
from submanifold.inference.outputs import check_output, output
from submanifold.inference.records import (
    RunRecord,
    choose_name,
    find_record,
    model_path,
    read_records,
    records_folder,
)
from submanifold.runs.score import score

if TYPE_CHECKING:
    from mlflow.entities import Run

    from submanifold.evaluation.metrics import Metric

HELP = "Any settings, such as stage_1.dim=300,density.training.steps=200; a list is [8,4,2]."
FIGURES = ("bits_per_dim", "nll", "projection_mse", "encoder_mse", "nearest_mse")  # of a run


class ParamsOption(click.Option):
    """``--params`` as in ``kedro run``, but repeatable and with commas in values."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options |= {"multiple": True, "metavar": "NAME=VALUE,...", "help": HELP}
        super().__init__(*args, callback=self._parse, **options)

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        """Keep the settings of a file (``kedro run --config``)."""
        return value if isinstance(value, Mapping) else super().type_cast_value(ctx, value)

    @staticmethod
    def _parse(ctx: click.Context, param: click.Parameter, value: Any) -> Mapping[str, Any]:
        return value if isinstance(value, Mapping) else parse_params(value)


@click.command()
@click.argument("data", metavar="DATA")
@click.option("--method", help="Training method.  [default: the dataset's, density-first]")
@click.option("--dim", type=click.IntRange(min=1), metavar="D", help="Dimension of the manifold.")
@click.option(
    "--size",
    type=click.IntRange(min=1),
    metavar="PIXELS",
    help="Side of the images after cropping and resizing.  [default: 32]",
)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    help="Time of the run; the evaluation may take a quarter more.",
)
@id_option
@click.option("--name", help="Name of the run.  [default: date and method]")
@click.option("--seed", type=int, help="Seed of the training.  [default: 0]")
@click.option("--device", help="auto, cpu, cuda or cuda:<n>.  [default: auto]")
@click.option("--strict", is_flag=True, help="Refuse a table with columns that are no numbers.")
@click.option("--again", is_flag=True, help="Give the name to this run, whatever run has it.")
@click.option("--params", cls=ParamsOption)
def train(
    data: str,
    dim: int | None,
    size: int | None,
    minutes: float | None,
    identifier: str | None,
    strict: bool,
    again: bool,
    params: dict[str, Any],
    **options: Any,
) -> None:
    """Train a model on DATA: a folder or zip of images, a table, or a dataset such as mnist.

    Tables are CSV, Parquet, Feather, NPY or NPZ files, or a folder of them.

    Writes the model and its report below data/ in the current folder. An interrupted command
    continues when it is repeated.
    """
    project = project_folder()
    set_kedro_defaults()
    from submanifold.runs.selection import select_experiment

    options |= {"data.size": size, "training.minutes": minutes, "data.id": identifier}
    options |= {"data.strict": True} if strict else {}
    record = select_experiment(project, data, options, dim, params, again)
    from submanifold.runs.runner import run_pipeline  # imports MLflow

    run_pipeline(project, "hierarchical", record.params)

    from submanifold.runs.datasets import ModelDataset
    from submanifold.runs.information import usage_commands

    name = choose_name(project, options["name"], record.key, record.method)
    model = project / record.model
    click.echo(f"\nReport: {project / record.report}\nModel:  {model}\n\nUse the model:")
    for command, text in usage_commands(ModelDataset(filepath=str(model)).load(), name):
        click.echo(f"  {command}  # {text}")


@click.command()
@click.argument("name", required=False)
def runs(name: str | None) -> None:
    """List the runs of this folder with their figures, or show the files of the run NAME."""
    project = records_folder()
    if name is not None:
        record = find_record(project, name)
        click.echo(f"state    {record.state(project)}")
        for label in ("dataset", "method", "started"):
            click.echo(f"{label:8} {getattr(record, label)}")
        for label in ("model", "metrics", "report"):
            click.echo(f"{label:8} {project / getattr(record, label)}")
        return
    records = read_records(project)
    if not records:
        click.echo("No runs in this folder. `submanifold train pictures/` starts one.")
        return
    click.echo(format_table([_row(record, project) for record in records]))


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="RUN...")
@out_option(
    "CSV file of the values and the ends of their intervals.  [default: "
    "data/08_reporting/comparison.csv, which is replaced]"
)
def compare(names: tuple[str, ...], out: Path | None) -> None:
    """Compare the metrics of finished runs, with 95% intervals.

    Metrics that nodes of your own have logged to MLflow are the last rows. The table is an artifact
    of the newest run in MLflow, too.
    """
    project = records_folder()
    out = out or project / "data/08_reporting/comparison.csv"
    check_output("--out", out, (".csv",))
    records = [_finished_run(project, name) for name in names]
    set_kedro_defaults()
    import mlflow
    import pandas as pd

    from submanifold.evaluation.intervals import ENDS
    from submanifold.evaluation.metrics import is_missing
    from submanifold.runs.tracking import PART, connect, runs_of

    with session(project, None, {}) as kedro:
        connect(kedro.load_context())
    logged = {record.name: runs_of(record.key) for record in records}
    settings = {record.name: _settings(record, project, logged[record.name]) for record in records}
    measured = {record.name: _measured(record, project) for record in records}
    shown, values = [], []
    for label in next(iter(settings.values())):
        texts = {name: of_run[label] for name, of_run in settings.items()}
        if any(texts.values()):
            shown.append({"metric": label, "better": "", **texts})
    for metric, intervals in _metrics_by_run(measured, logged):
        if not all(is_missing(interval.get("value")) for interval in intervals.values()):
            about = {"metric": metric.name, "unit": metric.unit, "better": metric.better or ""}
            texts = {name: metric.write(interval) for name, interval in intervals.items()}
            shown.append({"metric": metric.label, "better": about["better"], **texts})
            for name, interval in intervals.items():
                values.append({**about, "run": name, **{end: interval.get(end) for end in ENDS}})
    click.echo(format_table(shown))
    with output("--out", out) as partial:
        pd.DataFrame(values).to_csv(partial, index=False)
    click.echo(f"\n{printable(str(out))}")
    newest = max(records, key=lambda record: record.started)
    whole = [run for run in logged[newest.name] if PART not in run.data.tags]
    for run in whole[:1]:
        mlflow.MlflowClient().log_artifact(run.info.run_id, str(out))


def _finished_run(project: Path, name: str) -> RunRecord:
    record = find_record(project, name)
    if (state := record.state(project)) != "finished":
        got = f"{record.name}, which is {state}"
        raise unexpected("RUN", "the names of finished runs", got, "Finish it first")
    return record


def _metrics_by_run(
    measured: Mapping[str, Mapping[str, Any]], logged: "Mapping[str, Sequence[Run]]"
) -> "Iterator[tuple[Metric, dict[str, Any]]]":
    """Yield the metrics of the table and those that nodes of the user have logged to MLflow.

    Each has a mapping with its ``value`` for each run, and mostly with the ends of its interval.
    """
    from submanifold.evaluation.metrics import METRICS, Metric
    from submanifold.runs.tracking import own_metrics

    for metric in METRICS.values():
        values = {name: metric.read(metrics) for name, metrics in measured.items()}
        intervals = {
            name: value if isinstance(value, Mapping) else {"value": value}
            for name, value in values.items()
        }
        yield metric, intervals
    own = {name: own_metrics(runs) for name, runs in logged.items()}
    for label in sorted({label for values in own.values() for label in values}):
        intervals = {name: {"value": values.get(label)} for name, values in own.items()}
        yield Metric(label, label, format="", better=None), intervals


def _settings(record: RunRecord, project: Path, runs: "Sequence[Run]") -> dict[str, str]:
    """Read in what runs differ, from their record, their files, and their runs in MLflow."""
    parameters = dict(pair for run in reversed(runs) for pair in run.data.params.items())
    histories = read_json((project / record.model).with_name("histories.json")) or {}
    steps = sum(history["steps"] for history in histories.values() if "steps" in history)
    dims = (read_json(project / record.metrics) or {}).get("dims") or [""]
    return {
        "dataset": record.dataset,
        "method": record.method,
        "d": str(dims[-1]),
        "steps": f"{steps:,}" if steps else "",
        "size": parameters.get("data.size", ""),
        "seed": parameters.get("seed", ""),
    }


def _measured(record: RunRecord, project: Path) -> dict[str, Any]:
    """Read the metrics of a run, and for synthetic data those of the comparison with the truth."""
    files = (project / record.metrics, (project / record.metrics).with_name("truth.json"))
    return {name: value for file in files for name, value in (read_json(file) or {}).items()}


@click.command()
@model_argument
@click.option(
    "--audit",
    "is_audited",
    is_flag=True,
    help="Print a check of the density instead: on the training and validation data of "
    "a run; on samples if they are not there or the model is conditional.",
)
@click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON.")
def info(model: str, is_audited: bool, as_json: bool) -> None:
    """Print the architecture, the data and the calibration of a model."""
    path = model_path(model)
    from submanifold.inference.predictor import Predictor

    loaded = Predictor.load(path, "cpu").model
    if not is_audited:
        calibration = {
            "calibrated_on": loaded.calibration.get("count"),
            "calibration_groups": loaded.calibration.get("groups"),
        }
        if as_json:
            click.echo(json.dumps({**loaded.describe(), **calibration}, indent=2))
            return
        from submanifold.runs.information import facts

        texts, columns = facts(loaded)
        for name, text in texts.items():
            click.echo(f"{name:11}  {text}")
        if columns is not None:
            click.echo(f"\n{format_table(columns.fillna('').to_dict('records'))}")
        return
    import torch

    from submanifold.evaluation.audit import EVENTS
    from submanifold.flows import context_of
    from submanifold.runs.experiments import load_events
    from submanifold.runs.information import audit_model

    context, rows, condition = None, None, ""
    source = "Training and validation data of the run"
    x, held_out = load_events(path, EVENTS)
    if depends := context_of(loaded):
        context = torch.zeros(depends["columns"]) if "columns" in depends else torch.tensor(0)
        held_out, rows = None, context.expand(EVENTS, *context.shape)
        condition = " given average columns" if context.ndim else " given label 0"
    if x is None or held_out is None:
        source, x = "Samples on the manifold", loaded.sample(EVENTS, context=rows)
    table = audit_model(loaded, x, held_out, context).map(_write)
    click.echo(f"{source}{condition}\n{format_table(table.reset_index().to_dict('records'))}")


def _write(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"


def _row(record: RunRecord, project: Path) -> dict[str, str]:
    from submanifold.evaluation.metrics import METRICS, SUBSET, numbers

    metrics = read_json(project / record.metrics) or {}
    row = {
        "name": record.name,
        "state": record.state(project),
        "started": record.started.replace("T", " "),
        "dataset": record.dataset,
        "method": record.method,
        "d": str((metrics.get("dims") or [""])[-1]),
    }
    values = numbers(metrics)
    for name in FIGURES:
        if name in values:
            row[METRICS[name].label.removesuffix(SUBSET)] = METRICS[name].write(values[name])
    return row


COMMANDS = [train, score, runs, compare, info]
