"""Command ``score``, also of the images or rows that a model was trained on."""

import logging
import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from submanifold.common.errors import UserError, printable, unexpected
from submanifold.config.project import configure, set_kedro_defaults
from submanifold.inference.commands.options import (
    MAX_TRAINING,
    ExpandedPath,
    as_sheet,
    check_path,
    id_option,
    input_options,
    load_predictor,
    out_option,
    read_inputs,
    training_share_of,
    write_rows,
)
from submanifold.inference.outputs import TABLES, default_output, output
from submanifold.inference.records import find_record, records_folder

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from submanifold.data.events import Events
    from submanifold.evaluation.calibration import Calibration
    from submanifold.inference.inputs import Inputs
    from submanifold.inference.predictor import Predictor
    from submanifold.models import Model
    from submanifold.runs.experiments import CachedRun

log = logging.getLogger(__name__)

MAX_SHEET = 32  #: Number of most and of least anomalous images on a sheet.
MIN_OWN = 200  #: Images or rows of which halves can train a model.
USUAL = 0.9  #: Quantile of a score above which images or rows of a half do not calibrate.
LISTED = 5  # most anomalous images or rows that are printed
RARE = 0.01  # fraction of anomalies for which advice on the size of the calibration is
VALIDATION = 10  # one in ten images of a half is for validation


def _rate(ctx: click.Context, param: click.Parameter, text: str | None) -> float | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d*\.?\d+)\s*(%?)", text.strip(), re.ASCII)
    value = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    if not 0 < value < 1:
        expected = "a rate between 0 and 1, such as 1% or 0.01"
        raise click.BadParameter(f"expected {expected}, got {text}.")
    return value


@click.command()
@input_options
@id_option
@out_option("CSV or Parquet file of the scores.  [default: scores.csv]")
@click.option(
    "--sheet",
    type=ExpandedPath(path_type=Path),
    help="PNG file of the most and the least anomalous images.",
)
@click.option(
    "--alpha",
    callback=_rate,
    metavar="RATE",
    help="False-positive rate: images or rows "
    "with a p-value of at most RATE, such as 1%, are out-of-distribution.",
)
@click.option(
    "--fdr",
    callback=_rate,
    metavar="RATE",
    help="False discovery rate, instead of "
    "--alpha: of the images or rows that are out-of-distribution, at most RATE, such as "
    "10%, are normal on average.",
)
@click.option(
    "--explain",
    is_flag=True,
    help="Write the columns of a table that contribute most "
    "to the anomaly of flagged rows, or else of the 16 most anomalous, to a file next to "
    "the scores, such as scores_columns.csv.",
)
@click.option(
    "--own",
    is_flag=True,
    help="Rank INPUTS that the run MODEL was trained on: two "
    "models of halves, trained as MODEL was, score the other half.",
)
def score(**options: Any) -> None:
    """Write the densities, distances from the manifold, and p-values of INPUTS.

    The p-value is the fraction of held-out training-like images or rows that score at least as
    high. The log-density of rows is in the units of the table.

    --alpha bounds how many normal inputs are flagged, --fdr how many of the flagged are normal.
    """
    _score(_Options(**options))


@dataclass(frozen=True)
class _Options:
    """Arguments and options of the command, by their names."""

    model: str
    inputs: tuple[str, ...]
    out: Path | None
    sheet: Path | None
    alpha: float | None
    fdr: float | None
    explain: bool
    own: bool
    nearest: bool
    label: int | None
    device: str
    identifier: str | None

    def check(self) -> None:
        """Raise a UserError for several ways to flag inputs."""
        rates = {"--own": self.own or None, "--alpha": self.alpha, "--fdr": self.fdr}
        if len(several := [option for option, rate in rates.items() if rate is not None]) > 1:
            raise UserError(f"{' and '.join(several)}: expected one of them. Omit the other.")

    def check_for(self, predictor: "Predictor") -> None:
        """Raise a UserError for an option that is not for the data of a model."""
        of_tables = {"--id": self.identifier, "--explain": self.explain}
        unusable = {"--sheet": self.sheet} if predictor.is_table else of_tables
        for option, value in unusable.items():
            if value:
                expected = f"none for a model of {_unit(predictor)}"
                raise UserError(f"{option}: expected {expected}. Omit it.")

    def files(self, predictor: "Predictor") -> "_Files":
        """Return the files to write; a UserError for those that cannot be written."""
        others = ["_columns.csv"] * self.explain + [".png"] * self.own
        out = self.out or default_output("scores", ".csv", *others)
        columns = out.with_stem(f"{out.stem}_columns") if self.explain else None
        sheet = self.sheet
        if self.own and sheet is None and predictor.is_image:
            sheet = out.with_suffix(".png")
        for option, path, suffixes in (
            ("--out", out, TABLES),
            ("--sheet", sheet, (".png",)),
            ("--explain", columns, TABLES),
        ):
            if path is not None:
                check_path(option, path, suffixes, predictor, self.model, self.inputs)
        return _Files(out, sheet, columns)


class _Files(NamedTuple):
    """Files that the command writes."""

    scores: Path
    sheet: Path | None
    columns: Path | None


def _score(options: _Options) -> None:
    options.check()
    predictor = load_predictor(options.model, options.device)
    options.check_for(predictor)
    files = options.files(predictor)
    import numpy as np

    calibration = None  # with --own the halves have their own
    if options.fdr is not None:
        calibration = predictor.calibrated(options.fdr, "fdr")
    elif not options.own:
        calibration = predictor.calibrated(options.alpha)
    read = read_inputs(predictor, options.inputs, options.identifier)
    if options.own:
        parts = fit_halves(options.model, predictor, read)
    else:
        parts = [(np.arange(len(read.names)), predictor)]
    scores = _score_parts(options, parts, read)
    ranked = scores.sort_values("anomaly_score", ascending=False, kind="stable")
    write_rows(files.scores, (ranked if options.own else scores).copy(), read)
    if not options.own:
        _warn_of_training_events(predictor, read, options.label)
    click.echo(f" p-value  {read.label}, the most anomalous first")
    for number in ranked.index[:LISTED]:
        click.echo(f"{ranked['p_value'][number]:8.4f}  {read.names[number]}")
    unit = _unit(predictor)
    if calibration and options.alpha is not None:
        click.echo(_alpha_summary(ranked, options.alpha, calibration, unit))
    if calibration and options.fdr is not None:
        click.echo(_fdr_summary(ranked, options.fdr, calibration, unit, options.model))
    if files.columns is not None:
        _explain(ranked, parts, read, files.columns, options.label)
    if files.sheet is not None:
        _write_sheet(files.sheet, read.events[ranked.index.to_numpy()])


def _score_parts(
    options: _Options, parts: "Sequence[tuple[np.ndarray, Predictor]]", read: "Inputs"
) -> "pd.DataFrame":
    """Score each part of the inputs by its predictor; the index is their numbers."""
    import pandas as pd

    (_, predictor), *_ = parts
    events = read.events.loc if predictor.is_table else read.events
    of_parts = [
        fitted.score(
            events[part], options.nearest, alpha=options.alpha, label=options.label
        ).set_axis(part)
        for part, fitted in parts
    ]
    scores = pd.concat(of_parts).sort_index()
    if options.own:
        ranks = scores["anomaly_score"].rank(ascending=False, method="max", pct=True)
        scores["p_value"] = ranks
    if options.fdr is not None:
        scores["ood"] = predictor.select(scores["p_value"].to_numpy(), options.fdr)
    return scores


def _unit(predictor: "Predictor") -> str:
    return "rows" if predictor.is_table else "images"


def _warn_of_training_events(predictor: "Predictor", read: "Inputs", label: int | None) -> None:
    if (share := training_share_of(predictor, read, label)) > MAX_TRAINING:
        unit = _unit(predictor)
        log.warning(
            "INPUTS: expected new %s, got about %.0f%% training %s, whose p-values are "
            "too large. Score others, or add --own.",
            unit,
            100 * share,
            unit,
        )


def _alpha_summary(
    scores: "pd.DataFrame", alpha: float, calibration: "Calibration", unit: str
) -> str:
    """Say how many are flagged, and how many would be if all were normal."""
    from submanifold.evaluation.intervals import false_alarm_range

    count = len(scores)
    low, high = false_alarm_range(alpha, count, calibration.groups)
    return (
        f"{scores['ood'].sum()} of {count} {unit} are flagged (p-value at most {alpha:g}); if all "
        f"were like the training {unit}, {count * low:.0f} to {count * high:.0f} would be in 95% "
        "of cases."
    )


def _fdr_summary(
    scores: "pd.DataFrame", fdr: float, calibration: "Calibration", unit: str, model: str
) -> str:
    """Say how many are flagged and, if none is, which calibration it takes."""
    from submanifold.evaluation.discoveries import blocking, false_discovery_bound

    p_values = scores["p_value"].to_numpy()
    count, is_any = len(scores), scores["ood"].any()
    least = math.ceil(count * calibration.smallest_p_value / fdr)
    lines = [
        f"{scores['ood'].sum()} of {count} {unit} are flagged; on average at most "
        f"{100 * fdr:.3g}% of the flagged are like the training {unit}. Fewer than {least} of "
        f"{count} cannot be flagged with a calibration on {calibration.basis}."
    ]
    if is_any:
        bound = false_discovery_bound(p_values, fdr, calibration.groups)
        lines.append(
            f"At most {bound} of the flagged are like the training {unit}, with 95% confidence."
        )
    few = math.ceil(RARE * count)
    rows = [] if is_any else calibration.most_anomalous(blocking(p_values, fdr, calibration.groups))
    if rows:
        lines.append(
            "Some would be flagged without the most anomalous rows of the calibration: "
            f"{', '.join(map(printable, rows))}. If these are anomalies, set them aside: "
            f"submanifold calibrate {model} --without={','.join(map(printable, rows))}"
        )
    elif not is_any and least > few:
        needed = math.ceil(count / (fdr * few)) - 1
        kind = unit if calibration.groups == calibration.count else "groups"
        lines.append(
            f"To flag {few}, it takes a calibration on {needed:,} {kind}: train with "
            f"--params=data.counts.valid={needed}, or run `submanifold calibrate`."
        )
    elif not is_any:
        lines.append(
            f"If some of these {calibration.basis} are anomalies, they hide others: "
            "`submanifold calibrate` takes normal ones."
        )
    return "\n".join(lines)


def _explain(
    scores: "pd.DataFrame",
    parts: "Sequence[tuple[np.ndarray, Predictor]]",
    read: "Inputs",
    path: Path,
    label: int | None,
) -> None:
    """Write and print the columns that contribute most to the anomaly of the first rows."""
    import pandas as pd

    from submanifold.evaluation.attribution import EXPLAINED_ROWS

    is_any = "ood" in scores and scores["ood"].any()
    rows = scores[scores["ood"]] if is_any else scores[:EXPLAINED_ROWS]
    of_parts = [
        fitted.explain(read.events.loc[chosen], label=label)
        for part, fitted in parts
        if len(chosen := rows.index.intersection(pd.Index(part)))
    ]
    explained = pd.concat(of_parts).loc[rows.index]
    kind = "flagged" if is_any else "most anomalous"
    only = f", the first {LISTED}" if len(rows) > LISTED else ""
    click.echo(f"Columns that contribute most to the anomaly of the {len(rows)} {kind} rows{only}")
    for number in rows.index[:LISTED]:
        texts = [
            "{column} = {value} (+{contribution:.3g} with {usual})".format_map(entry)
            for entry in explained.loc[[number]].to_dict("records")
            if entry["contribution"]
        ]
        click.echo(f"{read.names[number]}: {'; '.join(texts) or 'no single column'}")
    write_rows(path, explained, read)


def _write_sheet(path: Path, images: "np.ndarray") -> None:
    """Write the most and the least anomalous of images in this order, with a gap between them."""
    import numpy as np

    shown = max(1, min(MAX_SHEET, len(images) // 2))
    blank = np.full((-shown % 8 + 8, *images.shape[1:]), 255, np.uint8)
    pictures = np.concatenate([images[:shown], blank, images[::-1][:shown]])
    with output("--sheet", path) as partial:
        partial.write_bytes(as_sheet(pictures, columns=8))


class Half(NamedTuple):
    """Numbers of the inputs that train and validate the model of a half, and that it scores."""

    train: "np.ndarray"
    valid: "np.ndarray"
    scored: "np.ndarray"


def split_halves(group: "np.ndarray", seed: int) -> list[Half]:
    """Split inputs at random by the numbers of their groups, 0, 1, ..., (N,)."""
    import numpy as np

    order = np.random.default_rng(seed).permutation(group.max() + 1)[group]
    is_first, is_valid = order % 2 == 0, order // 2 % VALIDATION == 0
    return [
        Half(*map(np.flatnonzero, (is_own & ~is_valid, is_own & is_valid, ~is_own)))
        for is_own in (is_first, ~is_first)
    ]


def fit_halves(
    name: str, predictor: "Predictor", read: "Inputs"
) -> "list[tuple[np.ndarray, Predictor]]":
    """Train a model on each half of the inputs as a run was, to rank the other half.

    An interrupted training continues. Groups of images are in one half. Returns the numbers of the
    inputs of a half and the predictor that has not seen them, for both halves. It is calibrated on
    these inputs except those with one of the highest scores.
    """
    from submanifold.evaluation.defensive import with_defensive_component
    from submanifold.inference.predictor import Predictor
    from submanifold.training.cost import with_steps
    from submanifold.training.phases import train_phases

    run, model_folder = _run_of(name)
    experiment = run.settings
    group = _groups_of_inputs(run, predictor, read)
    unit, count = _unit(predictor), len(read.names)
    click.echo(
        f"Two models, trained as {name} on half of the {count:,} {unit} each, score the other half,"
        f" in about {run.seconds() / 30:.0f} min. P-values are ranks, at least 1/{count} "
        f"({1 / count:.2%}). --fdr can flag none of {unit} that are compared with one another: it "
        "needs a calibration on normal ones, by `submanifold calibrate`."
    )
    steps, events = run.load("schedule")["steps"], predictor.events(read.events)
    phases = {name: with_steps(phase, steps[name]) for name, phase in experiment.phases.items()}
    folder = model_folder / "own" / f"{zlib.crc32(events.x.tobytes()):08x}"
    parts = []
    for number, half in enumerate(split_halves(group, experiment.seed), 1):
        log.info("Half %d of 2", number)
        train, valid = events[half.train], events[half.valid]
        model = train_phases(
            phases,
            experiment.model,
            train,
            valid,
            experiment.seed,
            predictor.device,
            folder / f"half_{number}",
            predictor.preprocessor,
        )
        model = model.with_facts(data=predictor.model.data)
        model = with_defensive_component(model, train, valid, predictor.device)
        scored = replace(events[half.scored], groups=group[half.scored])
        calibrated = _calibrate_on_usual(model, scored, predictor, train)
        parts.append((half.scored, Predictor(calibrated)))
    return parts


def _run_of(name: str) -> "tuple[CachedRun, Path]":
    """Return a run of this version and the folder of its model."""
    set_kedro_defaults()
    from submanifold.runs.experiments import CachedRun

    project = records_folder()
    record = find_record(project, name, "MODEL: expected the name of a run with --own")
    configure(project)
    run = CachedRun(record.name, record.params, project)
    run.configuration.validate()
    if run.configuration.artifact_keys["model"] != record.key:
        fix = "Train it again with `submanifold train --again`"
        raise unexpected("MODEL", "a run of this version and these data", name, fix)
    return run, (project / record.model).parent


def _groups_of_inputs(run: "CachedRun", predictor: "Predictor", read: "Inputs") -> "np.ndarray":
    """Return the numbers of the groups of inputs, 0, 1, ..., (N,), which are in one half each."""
    import numpy as np

    from submanifold.data.splits import group_images

    groups = getattr(run.settings.data, "groups", None)
    if predictor.is_conditional or (groups and predictor.is_table):
        kind = "a condition" if predictor.is_conditional else "groups of rows"
        raise UserError(f"--own: expected a model without {kind}. Omit it.")
    members = group_images(groups, read.members).values() if groups else range(len(read.names))
    numbers, group = np.unique([*members], return_inverse=True)
    if len(numbers) < MIN_OWN:
        raise unexpected("INPUTS", f"at least {MIN_OWN} with --own", len(numbers), "Add more")
    return group


def _calibrate_on_usual(
    model: "Model",
    events: "Events",
    predictor: "Predictor",
    train: "Events",
) -> "Model":
    """Calibrate a model on events without the highest scores: anomalies hide one another."""
    import numpy as np

    from submanifold.evaluation.calibration import calibrate
    from submanifold.evaluation.scores import score as score_events

    on_all = model.with_facts(calibration=calibrate(model, events, predictor.device, train))
    scores = score_events(on_all, events, on_all.calibration["combined"])
    is_usual = np.all([x <= np.quantile(x, USUAL) for x in scores.values()], axis=0)
    return model.with_facts(calibration=calibrate(on_all, events[is_usual], predictor.device))
