"""What pages and commands say about a run: its facts, and commands that use its model."""

import math
import shlex
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from submanifold.evaluation.calibration import Calibration
from submanifold.flows import context_of
from submanifold.inference.predictor import Predictor
from submanifold.inference.records import read_records
from submanifold.models import Hierarchy, Mixture, Model

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
    about, texts = getattr(model, "charts", [model])[0].describe(), dict[str, Any]()
    charts = f" of {len(model.charts)} charts" if isinstance(model, Mixture) else ""
    texts["model"] = f"{model.kind}{charts}, {sum(p.numel() for p in model.parameters()):,} weights"
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
    if "groups" in model.calibration:
        least = Calibration.from_dict(model.calibration).smallest_p_value
        alpha, many = max(USUAL_ALPHA, math.ceil(100 * least)), inputs.replace(".jpg", "/")
        text = f"densities, p-values; flags {alpha}% of those that are normal"
        lines.insert(0, ("score", f"{inputs} --alpha={alpha}%", text))
        text = f"for many: on average at most {2 * alpha}% of the flagged are normal"
        lines.insert(1, ("score", f"{many} --fdr={2 * alpha}%", text))
    if isinstance(model, Hierarchy) and not of_table:
        dim = "" if model.has_density else f" --dim={model.dim}"
        options = f"{inputs} --simulate --task=denoise:0.1{dim}"
        lines.append(("restore", options, "noise is added to pictures and removed"))
    label = " --label=0" if "classes" in context else ""
    return [*((f"{command % verb} {rest}{label}", text) for verb, rest, text in lines), info]


def model_command(run: Mapping[str, Any], name: str, rest: str) -> str:
    """Return a command that applies the model of a run."""
    return f"submanifold {name} {shlex.quote(run['name'] or run['model'])} {rest}"
