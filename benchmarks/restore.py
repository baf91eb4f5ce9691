"""Restorations compared with other methods, on test images.

    python -m benchmarks.restore photos=MODEL:FOLDER celeba=MODEL:FOLDER ...

MODEL is a hierarchy.safetensors file, and FOLDER has the train.npy, valid.npy, test.npy and, if
images depend on each other, groups.json of its data, such as data/03_primary/photos-468160c18a.
Prints the tables of docs/evidence/restore.md: PSNR of 256 evenly spaced test images and its 95%
interval, the gain over the best baseline, and the coverage of the posterior's 90% intervals.

Each finished task is kept in --folder, and a repeated command continues after it.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from submanifold.common.files import read_json, write_json
from submanifold.data.prepare import read_groups
from submanifold.data.splits import groups_of
from submanifold.evaluation.metrics import format_interval, format_percent
from submanifold.evaluation.reconstruction import evenly_spaced
from submanifold.inverse import parse
from submanifold.inverse.comparison import LABELS, LEVEL, MODE, OURS, Baselines, compare
from submanifold.models import Model

TASKS = ("denoise:0.05", "denoise:0.1", "denoise:0.2", "inpaint:12", "superresolve:4", "sense:600")


def measure(
    name: str, model: Model, folder: Path, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Measure all tasks on one data set, or read those that are kept."""
    arrays = {each: np.load(folder / f"{each}.npy", mmap_mode="r")
              for each in ("train", "valid", "test")}  # fmt: skip
    numbers = evenly_spaced(np.arange(len(arrays["test"])), options.images)
    groups = groups_of(read_groups(folder), "test")
    fitted, found = None, []
    for text in options.tasks:
        kept = options.folder / f"{name}-{text.replace(':', '-')}-{options.images}.json"
        if not kept.exists():
            fitted = fitted or Baselines(arrays["train"], arrays["valid"])
            task = parse(text, model.event_shape)
            images, grouped = arrays["test"][numbers], None if groups is None else groups[numbers]
            write_json(kept, compare(model, fitted, images, task, grouped)[0])
        found.append(read_json(kept))
    return found


def table(found: list[dict[str, Any]]) -> str:
    """Write the measures of a data set as a table, one column for each task."""
    names = [name for name in LABELS if any(name in each["psnr"] for each in found)]
    columns: dict[str, list[str]] = {
        "PSNR, dB": [*(LABELS[name] for name in names), "gain", "gain, mode",
                     f"coverage at {LEVEL:.0%}", "acceptance rate", "R-hat"]
    }  # fmt: skip
    for each in found:
        columns[each["task"]] = [
            *(format_interval(each["psnr"].get(name), ".2f") for name in names),
            format_interval(each["gain"][OURS], "+.2f"),
            format_interval(each["gain"].get(MODE), "+.2f"),
            format_percent(each["coverage"][f"{LEVEL:g}"]),
            f"{each['acceptance']:.2f}",
            f"{each['r_hat']:.1f}",
        ]
    return pd.DataFrame(columns).to_markdown(index=False, disable_numparse=True)


def main() -> None:
    """Measure the models of the command line."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("models", nargs="+", metavar="NAME=MODEL:FOLDER")
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--folder", type=Path, default=Path("data/08_reporting/restore"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    for argument in options.models:
        name, _, paths = argument.partition("=")
        path, _, folder = paths.partition(":")
        found = measure(name, Model.load(path), Path(folder), options)
        print(f"### {name}\n\n{table(found)}\n", flush=True)


if __name__ == "__main__":
    main()
