"""ood: how well a trained model's scores tell them, and its bits beside published flows'."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from submanifold.evaluation.calibration import COMBINATION
from submanifold.evaluation.ood import LINEAR, LINEAR_COMBINATION, MEASURES, describe_scores
from submanifold.plots.comparisons import auroc_dots
from submanifold.studies.experiments import Experiment
from submanifold.studies.paper import published
from submanifold.studies.tables import over_seeds, written

PLAIN = (*LINEAR, LINEAR_COMBINATION)


class Pair(NamedTuple):
    """Normal images, and others that are to be found among them.

    Attributes:
        normal: Recipe of the model.
        ood: What `ood` is set to.
        goal: The AUROC that is wanted without any look at ood; None is the linear scores'.
    """

    normal: str
    ood: str
    goal: float | None = None


PAIRS = {
    "Fashion-MNIST → MNIST": Pair("fashion_mnist", "mnist", 0.99),
    "MNIST → Fashion-MNIST": Pair("mnist", "fashion_mnist", 0.995),
    "PneumoniaMNIST, normal → pneumonia": Pair("medmnist", "medmnist"),
    "CelebA → rooms": Pair("celeba-Glow", "lsun_bedroom"),
    "rooms → CelebA": Pair("lsun_bedroom-Glow", "celeba"),
}
UNPADDED = (("data.size", 28), ("data.margin", 0), ("stage_1.flow.levels", 2),
         ("stage_1.flow.steps", [8, 4]))  # fmt: skip
DENSITIES = {
    f"{name}, {form}": (name, changes)
    for name in ("mnist", "fashion_mnist")
    for form, changes in (("padded to 32 x 32", ()), ("28 x 28", UNPADDED))
}
PIXELS = 28 * 28


def make(runs: Mapping[str, Sequence[Experiment]], content: Callable[..., Any]) -> Any:
    """Make the page: each pair's scores, what of them reaches its goal, and bits per dimension."""
    measured = {
        pair: [each.load("ood_metrics") for each in runs[pair]] for pair in PAIRS if pair in runs
    }
    scores = {pair: _over_seeds(each) for pair, each in measured.items()}
    tables = {"Goals": _goals(scores)} if scores else {}
    for pair, each in scores.items():
        tables[f"{pair} (AUROC, {_counted(measured[pair])})"] = _table(each)
    bits = _bits(runs)
    if len(bits):
        tables["Bits per dimension of test images"] = bits
    for caption, table in published("ood").items():
        tables[f"Published: {caption}"] = table
    figures = {}
    if scores:
        figures["AUROC of each score on each pair; grey are linear"] = auroc_dots(
            {pair: {name: each["auroc"]["value"] for name, each in found.items()}
             for pair, found in scores.items()}, PLAIN,
        )  # fmt: skip
    data = pd.DataFrame([
        {"pair": pair, "seed": seed, "score": score, "measure": name, **value}
        for pair, seeds in measured.items()
        for seed, found in enumerate(seeds)
        for score, each in found["scores"].items()
        for name, value in each.items()
    ])  # fmt: skip
    notes = [
        "Every score is larger for what is stranger. What is calibrated or combined is so on "
        "validation images of the normal kind alone: no choice here has seen an ood.",
        "Intervals are 95%: over test images and ood, or the groups that they have, by the "
        "bootstrap with one seed, of the mean over seeds by Student's t with more.",
        "Published figures are of other models, and some of other splits of the same test images.",
    ]
    return content(tables, figures, data, [*notes, *_reasons(scores)])


def _over_seeds(measured: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Each measure of each score, over seeds."""
    return {
        score: {name: _share(over_seeds([each["scores"][score][name] for each in measured]))
                for name in MEASURES}
        for score in measured[0]["scores"]
    }  # fmt: skip


def _share(measured: Mapping[str, Any]) -> dict[str, Any]:
    """A share and its interval, which Student's t may take out of [0, 1]."""
    return {name: None if value is None else min(max(value, 0.0), 1.0)
            for name, value in measured.items()}  # fmt: skip


def _counted(measured: Sequence[Mapping[str, Any]]) -> str:
    counts = measured[0]["counts"]
    seeds = "one seed" if len(measured) == 1 else f"{len(measured)} seeds"
    return f"{counts['normal']:,} normal images, {counts['ood']:,} others, {seeds}"


def _table(scores: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame([
        {"score": name, "what it is": text,
         **{label: written(scores[name][measure]) for measure, label in MEASURES.items()}}
        for name, text in describe_scores(scores).items()
    ])  # fmt: skip


def _goals(scores: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Whether the combination is as good as is wanted, and better than every linear score."""
    rows = []
    for pair, found in scores.items():
        ours = found[COMBINATION]["auroc"]
        linear = {name: found[name]["auroc"] for name in PLAIN if name in found}
        best = max(linear, key=lambda name: linear[name]["value"]) if linear else None
        wanted = [("above the best linear score", linear[best]["value"])] if best else []
        if (goal := PAIRS[pair].goal) is not None:
            wanted.insert(0, (f"at least {goal:g}", goal))
        alone = {name: each["auroc"] for name, each in found.items()
                 if name not in (*PLAIN, COMBINATION)}  # fmt: skip
        first = max(alone, key=lambda name: alone[name]["value"])
        missed = [f"{text}: missed by {value - ours['value']:.4f}"
                  for text, value in wanted if ours["value"] < value]  # fmt: skip
        rows.append({
            "pair": pair,
            "wanted": ", ".join(text for text, _ in wanted),
            "combination": written(ours),
            "best linear score": f"{written(linear[best])} ({best})" if best else "–",
            "": "; ".join(missed) or "met",
            "best single score, picked with the labels": f"{written(alone[first])} ({first})",
        })  # fmt: skip
    return pd.DataFrame(rows)


def _reasons(scores: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say of each pair on which a linear score is better what stands behind it."""
    reasons = []
    for pair, found in scores.items():
        auroc = {name: each["auroc"]["value"] for name, each in found.items()}
        linear = max(auroc[name] for name in PLAIN if name in auroc)
        own = {name: value for name, value in auroc.items() if name not in PLAIN}
        if auroc[COMBINATION] >= linear:
            continue
        if linear > 0.9995:
            reasons.append(f"{pair}: a linear score makes next to no mistake: none is better.")
        elif (best := max(own, key=lambda name: own[name])) != COMBINATION:
            reasons.append(
                f"{pair}: of the model's scores {best} alone has {own[best]:.4f}. The combination "
                "gives it no more weight than those that say nothing here, for nobody told it, and "
                "knows their joint distribution by the validation images alone, here few."
            )
    return reasons


def _bits(runs: Mapping[str, Sequence[Experiment]]) -> pd.DataFrame:
    """Bits for each dimension that is modelled, and for each pixel of the picture itself."""
    rows = []
    for label, experiments in runs.items():
        if label not in DENSITIES:
            continue
        metrics = [each.load("metrics") for each in experiments]
        bits = over_seeds([each["bits_per_dim"] for each in metrics])
        share = metrics[0]["dims"][0] / PIXELS
        seconds = [sum(part["seconds"] for part in each.histories()) for each in experiments]
        rows.append({
            "model": label,
            "parameters": f"{metrics[0]['parameters']:,}",
            "seconds of training": f"{sum(seconds) / len(seconds):.0f}",
            "seeds": len(experiments),
            "bits per dimension": written(bits, ".3f"),
            "bits per pixel of 28 x 28": written(
                {name: None if value is None else share * value for name, value in bits.items()},
                ".3f",
            ),
        })  # fmt: skip
    return pd.DataFrame(rows)
