"""Time from the start of a process to its answer, for commands of ``submanifold`` and Kedro.

    python -m benchmarks.startup                         # the table, 5 processes of each command
    python -m benchmarks.startup --imports "kedro --help"    # the imports that take longest

The commands run in turn in a temporary copy of the project, with prepared data and a trained model.
Processor time includes child processes. The last command ends before its first training step.
"""

import argparse
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

import submanifold

FAST = "training.steps=2,training.batch_size=16,rotation.probes=64,rotation_2.probes=64,name=fast"
FIRST_STEP = """
import os, runpy, sys
from submanifold.training.trainer import Trainer
Trainer.step = lambda *arguments: os._exit(0)
sys.argv = ["kedro", "run", "--params=seed=1"]
runpy.run_module("kedro", run_name="__main__")
"""
COMMANDS = {
    "python -c 'import torch'": (["-c", "import torch"], None),
    "submanifold --help": (["-m", "submanifold", "--help"], 0.5),
    "kedro --help": (["-m", "kedro", "--help"], 0.5),
    "submanifold info fast": (["-m", "submanifold", "info", "fast"], None),
    "submanifold train photos --set traning.steps=5":
        (["-m", "submanifold", "train", "photos", "--set", "traning.steps=5"], 2.0),
    "kedro run --params=traning.steps=5": (["-m", "kedro", "run", "--params=traning.steps=5"], 2.0),
    "submanifold score fast one.png": (["-m", "submanifold", "score", "fast", "one.png"], 2.5),
    "kedro run, to the first training step": (["-c", FIRST_STEP], 6.0),
}  # fmt: skip
"""Arguments of Python and goal in seconds, by the text in the table."""


def main() -> None:
    """Print the table, or the imports of one command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--imports", metavar="COMMAND", choices=COMMANDS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        project = make_project(Path(folder))
        if options.imports:
            print_imports(COMMANDS[options.imports][0], project)
        else:
            print_table(project, options.rounds)


def make_project(folder: Path) -> Path:
    """Copy the configuration of the package, prepare the data, and train a model."""
    checkout = Path(submanifold.__file__).parents[2]
    shutil.copytree(checkout / "conf", folder / "conf")
    for name in ("pyproject.toml", ".telemetry"):
        shutil.copy(checkout / name, folder)
    (folder / "src").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "one.png")
    train = ["-m", "kedro", "run", "--to-outputs=hierarchy", f"--params={FAST}"]
    start(train, folder, check=True)
    return folder


def start(arguments: list[str], folder: Path, check: bool = False) -> tuple[float, float]:
    """Run Python; return the seconds of wall time and of processor time."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if check and done.returncode:
        sys.exit(done.stdout + done.stderr)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def print_table(project: Path, rounds: int) -> None:
    """Print medians over some rounds, in each of which all commands run once."""
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, (arguments, _) in COMMANDS.items():
            samples[name].append(start(arguments, project))
    print("| command | processor time, s | wall time, s | goal, s |\n| --- | --- | --- | --- |")
    for name, (_, goal) in COMMANDS.items():
        wall, processor = (statistics.median(each) for each in zip(*samples[name], strict=True))
        print(f"| `{name}` | {processor:.2f} | {wall:.2f} | {goal or ''} |")


def print_imports(arguments: list[str], project: Path, count: int = 40) -> None:
    """Print the modules with the longest imports, including those that they import."""
    command = [sys.executable, "-X", "importtime", *arguments]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    rows = (line.split("|") for line in done.stderr.splitlines() if line.startswith("import time:"))
    found = [(int(row[1]), row[2].strip()) for row in rows if row[1].strip().isdigit()]
    for microseconds, name in sorted(found, reverse=True)[:count]:
        print(f"{microseconds / 1000:8.0f} ms  {name}")


if __name__ == "__main__":
    main()
