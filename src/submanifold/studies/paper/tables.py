"""Tables 1 to 5: the paper's numbers next to those measured here."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from submanifold.evaluation.intervals import ENDS, over_seeds
from submanifold.evaluation.metrics import COMPARED, NONE, is_missing
from submanifold.studies.pages import Content, Params, Runs, Target
from submanifold.studies.paper.claims import claims_of, summary

TITLES = {
    1: "Single-step methods on CelebA, manifolds of dimension 500",
    2: "Hierarchical methods on CelebA, 3072 → 1000 → 500",
    3: "Hierarchical methods and DNF on LSUN bedroom, manifolds of dimension 1000",
    4: "The likelihood's weight halved in the first stage, on LSUN bedroom",
    5: "Hierarchical structure and DNF on LSUN bedroom, manifolds of dimension 700",
}
FLOOR = "training images"
BEDROOMS = " on LSUN bedroom"
PLACES = {1: "", 2: "", 3: BEDROOMS, 4: BEDROOMS, 5: f"{BEDROOMS} at d = 700"}
"""Additions to the methods of a table in claims."""

Cell = tuple[str, str, str]  # data set, method, and dimensions of the stages (3072-1000-500)


def printed_results() -> pd.DataFrame:
    """Read the paper's numbers, by ``metric`` (a :attr:`.Metric.column`); some have no spread."""
    return pd.read_csv(Path(__file__).with_name("paper.csv"))


def paper_cells(table: int) -> list[Cell]:
    """List the methods of one of the paper's tables."""
    results = printed_results()
    cells = results.loc[results["table"] == table, ["dataset", "method", "stage_dims"]]
    return list(cells.drop_duplicates().itertuples(index=False, name=None))


def control_cells(table: int) -> list[Cell]:
    """List methods that the paper's table lacks.

    These are Glow alone, DNF as its code trains it, and in table 4 those of table 3 that the text
    compares with.
    """
    dataset = paper_cells(table)[0][0]
    others = []
    if table == 1:
        others = [(dataset, "DNF-code", "3072-500-500")]
    if table == 4:
        others = [cell for cell in paper_cells(3) if cell[1] in ("H-MM", "H-HH")]
    return [*others, (dataset, "Glow", "3072")]


def needs_of(cells: Sequence[Cell]) -> dict[str, Params]:
    """Return the parameters of methods, by method."""
    return {cell[1]: params_of(*cell) for cell in cells}


def params_of(dataset: str, method: str, stage_dims: str) -> Params:
    """Return the parameters of a cell."""
    _, *dims = stage_dims.split("-")
    stages = {f"stage_{n}.dim": int(dim) for n, dim in enumerate(dims, start=1)}
    return {"dataset": dataset, "method": method.replace("*", "-star"), **stages}


def results_table(table: int, stage_dims: Mapping[str, str], runs: Runs) -> pd.DataFrame:
    """Collect the metrics of the paper's table and of the runs; training images come last.

    ``stage_dims`` are the paper's dimensions by method; those of the result are the models'.
    """
    measured = {method: [run.load("metrics") for run in seeds] for method, seeds in runs.items()}
    printed = printed_results().query(f"table == {table}")
    first = next(iter(measured.values()))[0]
    if first["training_images"]:
        measured[FLOOR] = [{"counts": first["counts"], **first["training_images"]}]
    rows = [
        {
            "method": method,
            "stage_dims": stage_dims.get(method, ""),
            "metric": column,
            **over_seeds([metric.read(metrics) for metrics in seeds]),
            "seeds": len(seeds),
            **{f"n_{name}": seeds[0]["counts"][name] for name in ("train", "test", "samples")},
        }
        for method, seeds in measured.items()
        for column, metric in COMPARED.items()
        if column in set(printed["metric"])
        or any(
            metric.read(metrics) is not None
            for of_seeds in measured.values()
            for metrics in of_seeds
        )
    ]
    printed = printed.rename(columns={"value": "paper", "spread": "paper_spread"})
    keys = ["method", "stage_dims", "metric"]
    frame = pd.DataFrame(rows).astype(dict.fromkeys(ENDS, float))
    frame = frame.merge(printed[[*keys, "paper", "paper_spread"]], "left", keys)
    return frame.assign(stage_dims=frame["method"].map(_trained_dims(runs)).fillna(""))


def readable(results: pd.DataFrame) -> pd.DataFrame:
    """Format the results with one row for each method, each number next to the paper's."""
    in_paper = set(results.loc[results["paper"].notna(), "metric"])
    rows = []
    for method, of_method in results.groupby("method", sort=False):
        first = of_method.iloc[0]
        row = {"method": method, "dimensions": first["stage_dims"].replace("-", " → ")}
        if results["seeds"].max() > 1:
            row["seeds"] = NONE if method == FLOOR else str(first["seeds"])
        for measured in of_method.to_dict("records"):
            metric = COMPARED[measured["metric"]]
            row[metric.label] = metric.write(measured)
            if measured["metric"] in in_paper:
                printed = _as_printed(measured["paper"], measured["paper_spread"])
                row[f"{metric.label}, paper"] = printed
        rows.append(row)
    table = pd.DataFrame(rows)
    kept = {COMPARED[name].label for name in in_paper}
    return table[[c for c in table if (table[c] != NONE).any() or c in kept]]


def _as_printed(value: float, spread: float) -> str:
    if is_missing(value):
        return NONE
    text = f"{value:,g}" if value < 1e5 else f"{value:,.0f}"
    return text if is_missing(spread) else f"{text} ± {spread:g}"


def _target(number: int) -> Target:
    cells = paper_cells(number) + control_cells(number)
    stage_dims = {method: dims for _, method, dims in cells}

    def make(runs: Runs) -> Content:
        results = results_table(number, stage_dims, runs)
        claims = claims_of({name + PLACES[number]: seeds for name, seeds in runs.items()})
        content = Content({TITLES[number]: readable(results)}, data=results)
        content.notes = _notes(results, runs, stage_dims)
        if len(claims):
            content.tables["Claims"] = claims
            content.conclusions = summary(claims)[:1]
        return content

    return Target(TITLES[number], needs_of(cells), make, seeds=True)


def _trained_dims(runs: Runs) -> dict[str, str]:
    """Return the dimensions of the trained stages by method (3072-1000-500)."""
    return {
        method: "-".join(map(str, seeds[0].load("metrics")["dims"]))
        for method, seeds in runs.items()
    }


def _notes(results: pd.DataFrame, runs: Runs, stage_dims: Mapping[str, str]) -> list[str]:
    first = results.iloc[0]
    others = [
        f"{method} {stage_dims[method].replace('-', ' → ')}"
        for method, dims in _trained_dims(runs).items()
        if dims != stage_dims[method]
    ]
    metrics = next(iter(runs.values()))[0].load("metrics")
    seeds = sorted({len(seeds) for seeds in runs.values()})
    groups = metrics["counts"].get("test_groups")
    over = "test images" if groups is None else f"{groups} groups of test images"
    return [
        f"{first['n_train']:,} training images, {first['n_test']:,} test images, "
        f"{first['n_samples']:,} samples, seeds: {' to '.join(map(str, seeds))}. 95% intervals: "
        f"over {over} (bootstrap) or, with several seeds, over seeds (Student's t).",
        "MSE is on pixels in [0, 1], through all stages; the paper does not state its scale.",
        f"Features of precision, recall and KID: {metrics['features']}.",
        *([f"The paper's dimensions: {', '.join(others)}."] if others else []),
    ]


TARGETS = {f"table-{number}": _target(number) for number in TITLES}
