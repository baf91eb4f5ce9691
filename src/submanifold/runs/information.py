"""What pages and commands say about a run: its facts, and commands that use its model."""

import copy
import math
import shlex
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from submanifold.common.errors import unexpected
from submanifold.evaluation.audit import EVENTS, audit
from submanifold.evaluation.calibration import Calibration
from submanifold.flows import context_of
from submanifold.inference.predictor import Predictor
from submanifold.inference.records import read_records
from submanifold.models import CrossFitted, Hierarchy, Mixture, Model
from submanifold.models.stage import standard_normal_log_prob

USUAL_ALPHA = 5  # percent of false alarms of the command, if the calibration supports it


def information(model: Path) -> dict[str, Any]:
    """Return facts about this process and its run, None for unknown ones, by its model's file."""
    import mlflow  # loads slowly

    active, folder, program = mlflow.active_run(), Path.cwd(), Path(sys.argv[0])
    command = program.parent.name if program.name == "__main__.py" else program.name
    names = [run.name for run in read_records(folder) if run.key == model.parent.name]
    return {
        "command": shlex.join([command, *sys.argv[1:]]),
        "version": version("submanifold"),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "model": str(model.relative_to(folder) if model.is_relative_to(folder) else model),
        "name": names[-1] if names else None,
        "mlflow_run": active and active.info.run_id,
    }


def facts(model: Model) -> tuple[dict[str, Any], pd.DataFrame | None]:
    """Return texts on a model by name, and a description of the columns of its table, if any."""
    first, parts, texts = model, "", dict[str, Any]()
    if isinstance(model, Mixture):
        first, parts = model.charts[0], f" of {len(model.charts)} charts"
    elif isinstance(model, CrossFitted):
        first, parts = model.manifold, f", with the densities of {len(model.folds)} folds"
    about = first.describe()
    texts["model"] = f"{model.kind}{parts}, {sum(p.numel() for p in model.parameters()):,} weights"
    for number, stage in enumerate(about["stages"], start=1):
        flows = " > ".join(flow["type"] for flow in stage["flows"])
        dim = "" if stage["dim"] is None else f", d = {stage['dim']}"
        texts[f"stage {number}"] = f"{flows}{dim}"
    for number, phase in enumerate(model.notes.get("phases", ()), start=1):
        figures = [
            f"{name} {value:.4g}"
            for name, value in phase.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        ]
        stages = ", ".join(map(str, phase["stages"]))
        figures = ["rotated"] if phase.get("rotated") else figures
        texts[f"phase {number}"] = ", ".join([f"stage {stages}", *figures])
    single = {name: value for name, value in model.data.items() if isinstance(value, int | str)}
    texts["data"] = ", ".join(f"{name} {value}" for name, value in single.items())
    predictor = Predictor(model)
    texts["calibration"] = model.calibration.get("why", "none")
    if (calibration := predictor.calibration) is not None:
        least = calibration.smallest_p_value
        texts["calibration"] = f"{calibration.basis}; the smallest p-value is {least:.3%}"
    table = predictor.columns.description if predictor.is_table else None
    return texts, table


def audit_model(
    model: Model, x: Tensor, held_out: Tensor | None, context: Tensor | None
) -> pd.DataFrame:
    """Audit the density of a model (:func:`.audit`), given the context of one event or None.

    Of a model of folds it is the first one's. A :class:`.UserError` for a model without an exact
    density on R^D, or with noise or charts.
    """
    model = model.folds[0] if isinstance(model, CrossFitted) else model
    stages = getattr(model, "stages", ())
    if not stages or not model.has_density or any(stage.noise for stage in stages):
        expected, got = "a model with an exact density on R^D", "one with an injection or charts"
        raise unexpected("MODEL", expected, got, "Audit its invertible stages")
    # of a view: its coordinates are not normal behind a flow on the code
    hierarchy = Hierarchy(stages).eval()
    models = {dtype: copy.deepcopy(hierarchy).to(dtype) for dtype in (torch.float32, torch.float64)}
    scales = hierarchy.off_manifold_scales

    def rows(x: Tensor) -> Tensor | None:
        if context is None:
            return None
        repeated = context.expand(len(x), *context.shape)
        return repeated.to(x) if context.is_floating_point() else repeated

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        u, v, log_prob = models[x.dtype](x, rows(x))
        z = torch.cat([u, v / scales], 1)
        return z, log_prob - standard_normal_log_prob(z)

    def inverse(z: Tensor) -> Tensor:
        u, v = z.tensor_split([hierarchy.dim], 1)
        return models[z.dtype].decode(u, scales * v, rows(z))

    def sample(count: int) -> Tensor:
        with torch.no_grad():
            latents = torch.randn(count, model.event_dim)
            return torch.cat([*map(inverse, latents.split(EVENTS))])

    return audit(
        lambda x: models[x.dtype].log_prob(x, rows(x)),
        sample,
        x,
        held_out,
        forward,
        inverse,
        models[x.dtype].parameters(),
    )


def usage_commands(model: Model, name: str) -> list[tuple[str, str]]:
    """Return commands that use a model, by the name of its run or its folder, with explanations."""
    command, context = f"submanifold %s {shlex.quote(name)}", context_of(model)
    of_table = "table" in model.data
    info = (command % "info", "architecture, data and training")
    if not of_table and "size" not in model.data:
        return [(f"{command % 'sample'} -n 1000 --out=samples.npz", "samples"), info]
    inputs, sampled = ("new.csv", "-n 1000") if of_table else ("new.jpg", "-n 64")
    lines = [
        ("project", inputs, "default projections onto the manifold"),
        ("encode", inputs, "coordinates on and off the manifold"),
        ("sample", inputs if "condition" in model.data else sampled, "samples"),
    ]
    if (calibration := Calibration.of(model)) is not None:
        least = calibration.smallest_p_value
        alpha, many = max(USUAL_ALPHA, math.ceil(100 * least)), inputs.replace(".jpg", "/")
        text = f"densities, p-values; flags {alpha}% of those that are normal"
        lines.insert(0, ("score", f"{inputs} --alpha={alpha}%", text))
        text = f"for many: on average at most {2 * alpha}% of the flagged are normal"
        lines.insert(1, ("score", f"{many} --fdr={2 * alpha}%", text))
    label = " --label=0" if "classes" in context else ""
    return [*((f"{command % verb} {rest}{label}", text) for verb, rest, text in lines), info]


def model_command(run: Mapping[str, Any], name: str, rest: str) -> str:
    """Return a command that applies the model of a run."""
    return f"submanifold {name} {shlex.quote(run['name'] or run['model'])} {rest}"
