"""Whether the differences that decide the paper keep their sign in longer trainings."""

from collections.abc import Iterator

import pandas as pd

from submanifold.evaluation.intervals import Interval
from submanifold.evaluation.metrics import METRICS
from submanifold.plots.paper import differences_by_steps
from submanifold.studies.pages import Content, Runs, Target
from submanifold.studies.paper.claims import Finding, difference, judge
from submanifold.studies.paper.tables import params_of

STEPS = (300, 600, 1200, 2400)  # of each phase
METHODS = {
    "DNF": "3072-500-500",
    "PR-H": "3072-500",
    "PR-M": "3072-500",
    "EE-H": "3072-1000-500",
    "H-HH": "3072-1000-500",
}
CLAIMS = (  # metric, the method that has less of it by the paper, the other method
    ("bits_per_dim", "PR-H", "DNF"),
    ("mse", "PR-M", "PR-H"),
    ("bits_per_dim", "H-HH", "EE-H"),
    ("kid", "H-HH", "EE-H"),
)


def compare_lengths(runs: Runs) -> Content:
    """Judge each claim after each number of steps for which both methods are trained."""
    findings: list[Finding] = []
    panels: dict[str, dict[int, Interval]] = {}
    for metric, first, second in CLAIMS:
        name = f"{first} against {second}"
        by_steps = dict(_differences(runs, metric, first, second))
        for steps, found in by_steps.items():
            findings.append(judge(name, f"{steps:,} steps", found, metric, "less"))
        if drawn := {steps: found for steps, found in by_steps.items() if "low" in found}:
            panels[f"{METRICS[metric].label}\n{name}"] = drawn
    table = pd.DataFrame(findings, columns=Finding._fields)
    caption = "Below zero the paper's claim holds. Bars: 95%."
    figures = {caption: differences_by_steps(panels)} if panels else {}
    return Content(tables={"Claims": table}, figures=figures, data=table)


def _differences(
    runs: Runs, metric: str, first: str, second: str
) -> Iterator[tuple[int, Interval]]:
    for steps in STEPS:
        labels = _label(first, steps), _label(second, steps)
        if {*labels} <= runs.keys():
            seeds = zip(*(runs[label] for label in labels), strict=False)
            yield steps, difference([[run.load("metrics")[metric] for run in of] for of in seeds])


def _label(method: str, steps: int) -> str:
    return f"{method} after {steps} steps"


TARGET = Target(
    "The paper's claims by the length of the training",
    {
        _label(method, steps): {
            **params_of("celeba", method, stage_dims),
            "training.steps": steps,
        }
        for steps in STEPS
        for method, stage_dims in METHODS.items()
    },
    compare_lengths,
    seeds=True,
)
