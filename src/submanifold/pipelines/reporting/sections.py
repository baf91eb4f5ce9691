"""Sections of the report page: what its template shows, from metrics, scores and images."""

import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from submanifold.config.schema import Kind
from submanifold.data.tables import Preprocessor
from submanifold.evaluation.calibration import Calibration, false_alarms
from submanifold.evaluation.illustrations import pixel_errors
from submanifold.evaluation.metrics import (
    METRICS,
    PROJECTION_ERRORS,
    events_of,
    format_interval,
)
from submanifold.evaluation.split_scores import (
    NLL,
    density_column,
    generalization_gap,
    group_numbers,
    split_means,
)
from submanifold.flows import context_of
from submanifold.models import Hierarchy, Model
from submanifold.plots.likelihood import density_histogram
from submanifold.plots.sparklines import sparkline
from submanifold.plots.strips import spectrum, strip

COLUMNS = 8
EXTREMES = 16
TOO_LARGE = 2.0
"""Ratio of the encoder projection's error to PCA's above which the report warns."""
HUGE = 1e20
"""Contribution above which a row has no density without the change of a column."""

Metrics = dict[str, Any]
Arrays = Mapping[str, np.ndarray]


def written(name: str, measured: Any) -> str:
    """Write the value of a metric without its interval."""
    return METRICS[name].write(measured).partition(" [")[0]


def tiles(metrics: Metrics) -> list[dict[str, str]]:
    """Return the key figures of a model of images or of a table."""
    variance = metrics["curve"]["variance"]
    name, text = "bits_per_dim", "bits per dimension"
    if variance is not None:
        name, text = NLL, "nats per row, the negative log-density in the units of the table"
    if gaussian := (metrics["baselines"]["gaussian"] or {}).get(name):
        text += f"; Gaussian: {written(name, gaussian)}"
    density = {"value": written(name, metrics[name]), "text": text}
    kind, name = next(item for item in PROJECTION_ERRORS.items() if item[1] in metrics)
    if variance is None:
        psnr = name.replace("mse", "psnr")
        quality = f"{written(psnr, metrics[psnr])} dB", f"PSNR of {kind} projections"
    else:
        error = metrics[name]["value"]
        share = "–" if error is None or not variance else f"{1 - error / variance:.1%}"
        quality = share, f"of the variance is explained by {kind} projections"
    explained = dict(zip(("value", "text"), quality, strict=True))
    return [density, *_error_tiles(metrics), explained, _size_tile(metrics)]


def _error_tiles(metrics: Metrics) -> list[dict[str, str]]:
    pca, tiles = metrics["baselines"]["pca_subset"].get("mse"), []
    for kind, name in PROJECTION_ERRORS.items():
        if name in metrics:
            text = f"mean squared error of {kind} projections"
            if kind == "nearest":
                text += " (upper bound)"
            if pca:
                text += f"; PCA: {written('mse', pca)}"
            tiles.append({"value": written(name, metrics[name]), "text": text})
    return tiles


def against_pca(metrics: Metrics) -> tuple[str | None, str | None]:
    """Compare the errors of projections with PCA's.

    Returns:
        A sentence with their ratios, and a warning if the training was probably too short.
    """
    pca = metrics["baselines"]["pca_subset"].get("mse")
    if not pca or not pca["value"]:
        return None, None
    ratios = {kind: metrics[name]["value"] / pca["value"]
              for kind, name in PROJECTION_ERRORS.items() if name in metrics}  # fmt: skip
    parts = [
        f"{ratio:.2g} times that of PCA ({kind} projections)" for kind, ratio in ratios.items()
    ]
    count = metrics["encoder_mse"]["n"]
    sentence = f"The mean squared error is {', '.join(parts)}."
    if count < metrics["counts"]["test"]:
        sentence += (
            f" These errors and those above are of {count} evenly spaced test {events_of(metrics)}."
        )
    if ratios["encoder"] > TOO_LARGE and min(ratios.values()) > 1:
        return sentence, "The errors are larger than PCA's: train for more steps"
    return sentence, None


def point_tiles(metrics: Metrics, truth: Metrics) -> list[dict[str, str]]:
    """Return the key figures of a model of points."""
    divergence = {"value": "–", "text": "KL divergence from the truth, in nats"}
    if "divergence" in truth:
        divergence["value"] = written("divergence", truth["divergence"])
    if "true_nll" in truth:
        divergence["text"] += f"; the true NLL is {written('nll', truth['true_nll'])}"
    projection, sample = (truth[f"{each}_distance"] for each in ("projection", "sample"))
    return [
        divergence,
        {"value": written("projection_distance", projection),
         "text": f"distance between encoder and true projections; the noise is {truth['noise']}"},
        {"value": written("sample_distance", sample),
         "text": "distance of samples from the true manifold"},
        _size_tile(metrics),
    ]  # fmt: skip


def column_table(preprocessor: Preprocessor) -> pd.DataFrame:
    """Return the columns of a table with their kinds and ranges, as text."""
    rows = []
    for column in preprocessor.columns:
        ends = f"{column.low:.5g} to {column.high:.5g}"
        text = {
            "continuous": ends,
            "quantized": f"{ends} in steps of {column.step or 0:.5g}",
            "constant": f"{column.names[0] if column.names else f'{column.low:.5g}'}, not used",
            "categorical": ", ".join(column.names),
        }[column.kind]
        rows.append({
            "column": column.name,
            "kind": "categorical" if column.names else column.kind,
            "values": text,
            "bits": f"{column.bits:.1f}" if column.kind == "quantized" else "–",
        })  # fmt: skip
    return pd.DataFrame(rows)


def _size_tile(metrics: Metrics) -> dict[str, str]:
    text = f"parameters; training took {metrics['seconds']['training']:,.0f} s"
    count = metrics["parameters"]
    return {"value": f"{count / 1e6:.2g} M" if count >= 1e5 else f"{count:,}", "text": text}


def facts(
    run: Metrics, metrics: Metrics, histories: Mapping[str, Metrics], seed: int, device: str
) -> list[tuple[str, Any]]:
    """Return the facts about a run for the header; None for unknown ones."""
    durations = [f"{each['name']} {each['seconds']:,.0f} s" for each in histories.values()]
    durations.append(f"evaluation {metrics['seconds']['evaluation']:,.0f} s")
    version = " ".join(
        filter(None, [run["version"], run["commit"] and f"(commit {run['commit']})"])
    )
    return [
        ("command", run["command"]),
        ("submanifold", version or None),
        ("date, seed", f"{run['date']}, seed {seed}"),
        ("device", ", ".join([device, *_threads(histories)])),
        ("durations", ", ".join(durations)),
        ("model", run["model"]),
        ("MLflow run", run["mlflow_run"]),
    ]


def _threads(histories: Mapping[str, Metrics]) -> list[str]:
    """Describe the numbers of threads of the training steps, the most frequent first."""
    used: Counter[str] = Counter()
    for history in histories.values():
        used.update(history.get("threads", {}))
    total, several = used.total(), len(used) > 1
    return [
        f"{count} thread{'' if count == '1' else 's'}"
        + (f" in {100 * steps / total:.0f}% of the steps" if several else "")
        for count, steps in used.most_common()
    ]


def usage(
    name: str | None, path: str, hierarchy: Model, kind: Kind
) -> tuple[list[tuple[str, str]], str]:
    """Return commands that use a model, with explanations, and the same in Python.

    Args:
        name: Name of the model's run, or None.
        path: Path of the model.
        hierarchy: The model.
        kind: Kind of the data.
    """
    command = "submanifold {} " + shlex.quote(name or str(Path(path).parent))
    pairs = [(command.format("info"), "architecture, data and training")]
    if kind == "points":
        pairs.insert(0, (f"{command.format('sample')} -n 1000 --out=samples.npz", "samples"))
        read = 'x = torch.tensor(numpy.load("points.npy"))  # (N, D), float64'
        imports = "import numpy\nimport torch\n"
    else:
        alpha, file = "", "TABLE" if kind == "table" else "PICTURES"
        if "groups" in hierarchy.calibration:
            least = 100 * Calibration.from_dict(hierarchy.calibration).smallest_p_value
            alpha = f" --alpha={max(5, math.ceil(least))}%"
        pairs = [
            (f"{command.format('score')} {file}{alpha}", "densities, p-values, anomalies"),
            (f"{command.format('project')} {file}", "default projections onto the manifold"),
            (f"{command.format('encode')} {file}", "coordinates on and off the manifold"),
            *pairs,
        ]
    if kind == "table":
        pairs.insert(3, (f"{command.format('sample')} -n 1000", "samples"))
        read = (
            'preprocessor = Preprocessor.from_dict(model.data["table"])\n'
            'table = pandas.read_csv("table.csv")\n'
            "x = torch.from_numpy(preprocessor.transform(table))  # standardized, (N, D)"
        )
        imports = ("import pandas\nimport torch\n\n"
                   "from submanifold.data.tables import Preprocessor\n")  # fmt: skip
    if kind == "images":
        pairs[3:3] = [
            (f"{command.format('sample')} -n 64", "samples"),
        ]
        if isinstance(hierarchy, Hierarchy):
            dim = "" if hierarchy.has_density else f" --dim={hierarchy.dim}"
            restore = f"{command.format('restore')} PICTURES --simulate --task=denoise:0.1{dim}"
            pairs.insert(4, (restore, "noise is added to pictures and removed"))
        read = ("x = dequantize(torch.from_numpy(load_pictures([\"a.jpg\"], **model.data)))"
                "  # in [-0.5, 0.5)")  # fmt: skip
        imports = ("import torch\n\nfrom submanifold.data import dequantize\n"
                   "from submanifold.data.images import load_pictures\n")  # fmt: skip
    context = context_of(hierarchy)
    given, count = (", context=context", "len(x)") if context else ("", "64")
    density = f"model.log_prob(x{given})  # exact log-density, in nats"
    if kind == "table":
        density = (f"model.log_prob(x{given}) + torch.from_numpy(preprocessor.log_det(table))"
                   "  # in nats, in the units of the table")  # fmt: skip
    if not hierarchy.has_density:
        density = f"on_manifold(model, x{given}).log_prob  # log-density on the manifold, in nats"
    names = "Model" if hierarchy.has_density else "Model, on_manifold"
    calls = (
        f"{density}\n"
        f"u, v = model.encode(x{given})  # coordinates on and off the manifold\n"
        f"model.project(x{given})  # default projection\n"
        f"model.project(x, exact=True{given})  # nearest projection\n"
        f"model.encoder_projection(x{given})\n"
        f"model.sample({count}{given})"
    )
    if context:
        if "classes" in context:
            pairs = [(line if line == command.format("info") else f"{line} --label=0", text)
                     for line, text in pairs]  # fmt: skip
            read += "\ncontext = torch.zeros(len(x), dtype=torch.long)  # the label of each image"
        else:
            sample = command.format("sample")
            pairs = [
                (f"{sample} TABLE", "one sample for each row")
                if line.startswith(sample)
                else (line, text)
                for line, text in pairs
            ]
            read += (
                '\ncondition = Preprocessor.from_dict(model.data["condition"])\n'
                "context = torch.from_numpy(condition.transform(table))"
            )
    python = (
        f"{imports}from submanifold.models import {names}\n\n"
        f'model = Model.load("{path}")\n{read}\n{calls}'
    )
    return pairs, python


def remarks(metrics: Metrics) -> list[tuple[str, str]]:
    """Return remarks on the computation of the metrics."""
    found = []
    if metrics.get("overflows"):
        count = f"{metrics['overflows']} projections overflowed"
        found.append(("Overflows", f"{count} because the decoder is nearly singular there."))
    if why := metrics["bits_per_dim"].get("why"):
        found.append(("Missing bits per dimension", f"{why}."))
    if "bits_per_dim_importance" in metrics:
        draws = metrics["bits_per_dim_importance"]["draws"]
        found.append(("Importance-weighted bound", f"{draws} dequantizations per image."))
    if "manifold_nll" in metrics:
        found.append(("NLL on the manifold", f"Measured on {metrics['manifold_nll']['n']} images."))
    if gaussian := metrics["baselines"]["gaussian"]:
        text = f"Shrinkage {gaussian['shrinkage']:.2g} of the covariance, from validation data."
        found.append(("Gaussian", text))
    if why := metrics.get("fid", {}).get("why"):
        found.append(("Missing FID", f"{why}."))
    if metrics.get("kid", {}).get("value") is not None:
        features = "Inception features"
        if metrics["features"] != "inception":
            features = (f"{metrics['features']}, fitted to the training images; published values "
                        "use a trained network and are not comparable")  # fmt: skip
        text = (f"{metrics['kid']['n_real']:,} test images and as many samples, with {features}. "
                "Compare only values with equal counts and features.")  # fmt: skip
        found.append(("KID, precision, recall", text))
    return found


def likelihood(scored: pd.DataFrame) -> dict[str, Any]:
    """Return the histogram of densities and a sentence on their means; None without a density."""
    column = density_column(scored)
    if not scored[column].notna().any():
        return {"histogram": None, "sentence": None}
    by_split = scored.groupby("split", sort=False)[column]
    values = {str(split): each.to_numpy() for split, each in by_split}
    if column == NLL:
        values = {split: -each for split, each in values.items()}
        histogram = density_histogram(values, "log-density, nats", "rows")
    else:
        histogram = density_histogram(values)
    return {"histogram": histogram, "sentence": describe_gap(scored)}


def extremes(scored: pd.DataFrame, test: np.ndarray) -> list[dict[str, Any]]:
    """Return the most and the least likely test images."""
    own = scored[scored["split"] == "test"]
    has_density = bool(own["bits_per_dim"].notna().any())
    column = "bits_per_dim" if has_density else "encoder_mse"
    order = own.sort_values(column, kind="stable")
    count = min(EXTREMES, len(order) // 2)
    names = ("Most likely", "Least likely")
    if not has_density:
        names = ("Smallest encoder error", "Largest encoder error")
    found = []
    for name, rows in zip(names, (order[:count], order[::-1][:count]), strict=True):
        if count:
            low, high = rows[column].min(), rows[column].max()
            text = f"{low:.2f} to {high:.2f} bits per dimension"
            if not has_density:
                text = f"mean squared error {low:.2g} to {high:.2g}"
            images = strip(test[rows["number"].to_numpy()], COLUMNS)
            found.append({"name": f"{name} test images", "strip": images, "text": text})
    return found


def describe_gap(scored: pd.DataFrame) -> str:
    """Say whether training data are more likely than test data."""
    column = density_column(scored)
    events, unit = "images", "bits per dimension"
    if column == NLL:
        events, unit = "rows", "nats (negative log-density)"
    by_split = split_means(scored)
    means = {split: written(column, each) for split, each in by_split.items()}
    gap = generalization_gap(by_split)
    difference = format_interval(gap, ".3f", signed=True)
    text = (
        f"Training {events} have {means['train']}, validation {events} {means['valid']} and test "
        f"{events} {means['test']} {unit} on average; test minus training: {difference}. "
    )
    if gap["low"] is None:
        return text + f"There are too few {events} for an interval of the difference."
    if gap["low"] > 0:
        return text + f"The model fits training {events} better than new {events}: it overfits."
    if gap["high"] < 0:
        return text + f"Test {events} are easier than training {events}: the splits differ."
    return text + "The interval contains zero."


def anomalies(explained: pd.DataFrame) -> pd.DataFrame | None:
    """Return the most anomalous test rows with the columns that contribute most, as text.

    Args:
        explained: Result of :func:`submanifold.pipelines.evaluation.nodes.explain`.
    """
    if explained.empty:
        return None
    rows = []
    for number, columns in explained.groupby("row", sort=False):
        parts = []
        for entry in columns.to_dict("records"):
            gain = f"+{entry['contribution']:.3g}"  # of the log-density; non-finite ones are huge
            gain = "possible only" if entry["contribution"] > HUGE else gain
            if entry["contribution"] > 0:
                parts.append(f"{entry['column']} = {entry['value']} ({gain} with {entry['usual']})")
        first = columns.iloc[0]
        rows.append({
            "row": str(number),
            "p-value": f"{first['p_value']:.4f}",
            "log-density": f"{-first['nll']:.2f}",
            "columns": "; ".join(parts) or "no single column",
        })  # fmt: skip
    table = pd.DataFrame(rows)
    kept = [name for name in table if not table[name].str.contains("nan").all()]
    return table[kept]


def alarms(scored: pd.DataFrame, calibration: Metrics) -> dict[str, Any] | None:
    """Return promised and observed rates of false alarms on test images; None without p-values."""
    if "p_value" not in scored or "groups" not in calibration:
        return None
    fitted = Calibration.from_dict(calibration)
    own = scored[scored["split"] == "test"]
    rows = false_alarms(own["p_value"].to_numpy(), fitted.groups, group_numbers(own))
    if not rows:
        return None
    table = pd.DataFrame({
        "promised rate": [_percents([row["rate"]]) for row in rows],
        "flagged": [f"{row['flagged']:,} of {len(own):,}" for row in rows],
        "observed rate": [f"{row['observed']['value']:.1%}" for row in rows],
        "range if normal": ["{low:.1%} to {high:.1%}".format(**row["expected"]) for row in rows],
    })  # fmt: skip
    fewer = [row["rate"] for row in rows if row["observed"]["value"] < row["expected"]["low"]]
    more = [row["rate"] for row in rows if row["observed"]["value"] > row["expected"]["high"]]
    events = fitted.events
    sentence = f"All observed rates are in the ranges of normal {events}."
    if fewer or more:
        parts = {"Fewer": fewer, "More": more}
        sentence = " ".join(
            f"{word} test {events} are flagged than promised at {_percents(rates)}."
            for word, rates in parts.items() if rates
        )  # fmt: skip
    return {"table": table, "sentence": f"{sentence} {describe_calibration(calibration)}"}


def describe_calibration(calibration: Metrics) -> str:
    """Say what the p-values are based on, or why there are none."""
    if "why" in calibration:
        return f"The model has no p-values. {calibration['why']}"
    fitted = Calibration.from_dict(calibration)
    smallest = f"{fitted.smallest_p_value:.2g}"
    return (
        f"The calibration uses {fitted.basis} for validation; its smallest p-value is {smallest}."
    )


def _percents(rates: Sequence[float]) -> str:
    return ", ".join(f"{100 * rate:g}%" for rate in rates)


def neighbors(samples: np.ndarray, test: np.ndarray, found: Arrays) -> dict[str, Any]:
    """Return samples next to the training images with the smallest pixel distance."""
    nearest, of_test = found["sample_neighbors"], found["test_neighbors"]
    count = len(nearest)
    blocks = []
    for start in range(0, count, COLUMNS):
        part = slice(start, start + COLUMNS)
        named = {"samples": samples[part], "nearest training images": nearest[part]}
        blocks.append([{"name": k, "strip": strip(v, COLUMNS)} for k, v in named.items()])
    errors = {
        "samples": pixel_errors(nearest, np.asarray(samples[:count])),
        "test images": pixel_errors(of_test, np.asarray(test[: len(of_test)])),
    }
    means = {name: math.sqrt(each.mean()) for name, each in errors.items()}
    text = (
        "The nearest training image has the smallest Euclidean distance of pixels, which finds "
        "copies but not similar content. The root mean square difference of pixels in [0, 1] is "
        f"{means['samples']:.2f} for these samples and {means['test images']:.2f} for as many test "
        "images; a model that copies training images has much smaller values for samples."
    )
    return {"blocks": blocks, "text": text}


def traversal(found: Arrays, has_rotation: bool) -> dict[str, Any]:
    """Return images with one changed coordinate per row."""
    images = found["traversal"]
    count, steps = images.shape[:2]
    what = "first coordinates of the manifold"
    if has_rotation:
        what = "directions of the largest eigenvalues of E[JᵀJ] (the rotation's first axes)"
    text = (f"of a test image along the {count} {what}, one per row, from -3 to 3 standard "
            "deviations over test images")  # fmt: skip
    return {"strip": strip(images.reshape(count * steps, *images.shape[2:]), steps), "text": text}


def phases(histories: Mapping[str, Metrics], event_dim: int) -> list[dict[str, Any]]:
    """Return the phases for the table of the training, rotations with their spectrum."""
    label = "Eigenvalues by dimension, logarithmic axes"
    return [
        history | {"spectrum": sparkline(spectrum(history["rotation"], event_dim), label)}
        if "rotation" in history
        else history
        for history in histories.values()
    ]
