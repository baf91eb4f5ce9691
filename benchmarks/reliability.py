"""Reliability of runs that are killed, interrupted, started twice, or whose files are damaged.

    python -m benchmarks.reliability --kills 50

Each trial is a `kedro run --env=test` of the four phases of `nested` in a separate project
on the CPU, so that undisturbed runs are equal bit for bit. The run is disturbed, the command is
repeated, and must end with the weights and metrics of an undisturbed run. Prints the tables of
`docs/evidence/reliability.md`.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from safetensors import SafetensorError

from submanifold.models.io import load_tensors

REPOSITORY = Path(__file__).parents[1]
KEPT = Path("data/08_reporting/reliability.jsonl")  # finished trials, which are not repeated
PARAMS = "method=nested,device=cpu,density.training.steps=120,reconstruction.training.steps=120"
PLACES = {  # the first of these that a disturbed run has not left is where it was
    "data": "data/03_primary/*/manifest.json",
    "density": "data/06_models/photos-density-*/model.safetensors",
    "rotation": "data/06_models/photos-rotation-*/model.safetensors",
    "reconstruction": "data/06_models/photos-reconstruction-*/model.safetensors",
    "rotation_2": "data/06_models/photos-rotation_2-*/model.safetensors",
    "evaluation": "data/07_model_output/photos-nested-*/metrics.json",
    "report": "data/08_reporting/photos-nested-*/report.html",
}
LOOK = 0.05  # seconds
CLOCKS = ("seconds", "rows_per_second", "steps_trained")


class Project:
    def __init__(self, path: Path):
        self.path = path
        (path / "src").mkdir(parents=True)
        shutil.copytree(REPOSITORY / "conf", path / "conf", ignore=shutil.ignore_patterns("local"))
        (path / "conf" / "local").mkdir()
        for name in ("pyproject.toml", ".telemetry"):
            shutil.copy(REPOSITORY / name, path / name)

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "kedro", "run", "--env=test", f"--params={PARAMS}"],
            cwd=self.path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def run(self) -> str:
        process = self.start()
        said, _ = process.communicate(timeout=600)
        return said if process.returncode == 0 else f"FAILED\n{said}"

    def place(self) -> str:
        """Return the first part of the run that is not finished."""
        left = (name for name, pattern in PLACES.items() if not any(self.path.glob(pattern)))
        return next(left, "after the report")

    def result(self) -> dict[str, Any]:
        """Return all weights and metrics, without times."""
        contents: dict[str, Any] = {}
        for path in sorted(self.path.glob("data/06_models/*/*.safetensors")):
            if path.name not in ("last.safetensors", "earlier.safetensors"):
                tensors, _ = load_tensors(path)
                contents[str(path.relative_to(self.path))] = {
                    name: tensor.numpy().tobytes() for name, tensor in tensors.items()
                }
        for path in sorted(self.path.glob("data/07_model_output/*/metrics.json")):
            contents["metrics"] = _timeless(json.loads(path.read_text()))
        return contents

    def statuses(self) -> list[str]:
        """Return the states of the runs in MLflow, oldest first."""
        client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{self.path}/data/mlflow.db")
        experiment = client.get_experiment_by_name("submanifold")
        order = ["attributes.start_time ASC"]
        runs = client.search_runs([experiment.experiment_id], order_by=order) if experiment else []
        return [run.info.status for run in runs]

    def torn(self) -> list[Path]:
        return [
            path
            for path in self.path.glob("data/06_models/*/model.safetensors")
            if not _is_intact(path)
        ]


def _is_intact(path: Path) -> bool:
    try:
        load_tensors(path)
        return True
    except (SafetensorError, ValueError):
        return False


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if key not in CLOCKS}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


Disturb = Callable[[Project], str]  # starts a run, disturbs it until it ends, returns where it was


def random_moment(project: Project, process: subprocess.Popen[str], seconds: float) -> str:
    """Wait until a random moment of a random part; returns the part."""
    wanted = random.randrange(len(PLACES))
    while process.poll() is None and project.place() in [*PLACES][:wanted]:
        time.sleep(LOOK)
    time.sleep(random.uniform(0, seconds / len(PLACES)))
    return project.place()


def killed(how: int, seconds: float, grace: float | None = None) -> Disturb:
    """Send a signal at a random moment; with ``grace``, send SIGKILL after so many seconds."""

    def disturb(project: Project) -> str:
        process = project.start()
        place = random_moment(project, process, seconds)
        if process.poll() is not None:
            return "after its end"
        process.send_signal(how)
        try:
            process.communicate(timeout=grace or 60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return f"{place}: not within {grace} s"
        return place

    return disturb


def damaged(pattern: str, change: Callable[[bytes], bytes], seconds: float) -> Disturb:
    """Kill a run at a random moment, and damage a file."""

    def disturb(project: Project) -> str:
        place = killed(signal.SIGKILL, seconds)(project)
        for path in project.path.glob(pattern):
            path.write_bytes(change(path.read_bytes()))
        return place

    return disturb


def torn(content: bytes) -> bytes:
    return content[: len(content) * 3 // 4]


def flipped(content: bytes) -> bytes:
    changed = bytearray(content)
    changed[random.randrange(len(content))] ^= 1 << random.randrange(8)
    return bytes(changed)


def twice(seconds: float) -> Disturb:
    """Start the same run a second time at a random moment."""

    def disturb(project: Project) -> str:
        first = project.start()
        place = random_moment(project, first, seconds)
        second = project.start()
        for process in (first, second):
            process.communicate(timeout=600)
        ended = [process.returncode for process in (first, second)]
        return place if ended == [0, 0] else f"{place}: ended with {ended}"

    return disturb


def trial(disturb: Disturb, project: Project, whole: dict[str, Any]) -> dict[str, Any]:
    """Disturb a run, repeat the command, and compare the result with the reference."""
    place = disturb(project)
    unfinished = [path.name for path in project.torn()]
    said = project.run()
    result, statuses = project.result(), project.statuses()
    lost = [name for name in whole if result.get(name) != whole[name]]
    lost += [name for name in result if name not in whole]
    if said.startswith("FAILED"):
        lost.append("the run: " + said.strip().splitlines()[-1][:200])
    clear = "RUNNING" not in statuses and "FINISHED" in statuses
    return {
        "place": place,
        "lost": lost,
        "unfinished": unfinished,
        "statuses": statuses,
        "clear": clear,
    }


def faults_of(seconds: float, options: argparse.Namespace) -> dict[str, tuple[int, Disturb]]:
    """Return the number of trials of each fault, and how it disturbs a run."""
    checkpoint = "data/06_models/*/last.safetensors"
    others = {
        "SIGTERM with ten seconds of grace": killed(signal.SIGTERM, seconds, grace=10.0),
        "Ctrl-C": killed(signal.SIGINT, seconds),
        "killed, and the last checkpoint truncated": damaged(checkpoint, torn, seconds),
        "killed, and a bit of the last checkpoint flipped": damaged(checkpoint, flipped, seconds),
        "the same run started twice": twice(seconds),
    }
    kills = {"SIGKILL at a random moment": (options.kills, killed(signal.SIGKILL, seconds))}
    return kills | {fault: (options.others, disturb) for fault, disturb in others.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--others", type=int, default=5, help="trials of each other fault")
    options = parser.parse_args()
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    kept = [json.loads(line) for line in KEPT.read_text().splitlines()] if KEPT.exists() else []
    done = {(trial["fault"], trial["number"]) for trial in kept}
    with tempfile.TemporaryDirectory() as name:
        reference = Project(Path(name) / "whole")
        started = time.monotonic()
        said = reference.run()
        assert not said.startswith("FAILED"), said
        seconds = time.monotonic() - started
        whole = reference.result()
        for fault, (count, disturb) in faults_of(seconds, options).items():
            for number in [n for n in range(count) if (fault, n) not in done]:
                random.seed(f"0 {fault} {number}")
                # a unique name: MLflow keeps databases open by their names
                project = Project(Path(name) / f"trial-{len(kept)}")
                kept.append(
                    {
                        "fault": fault,
                        "number": number,
                        "date": str(date.today()),
                        "seconds": seconds,
                        **trial(disturb, project, whole),
                    }
                )
                shutil.rmtree(project.path)
                print(kept[-1], flush=True)
                with KEPT.open("a") as file:
                    file.write(json.dumps(kept[-1]) + "\n")
    print(report(pd.DataFrame(kept)))


def report(trials: pd.DataFrame) -> str:
    """Count what went wrong by fault, and where the runs were interrupted; list wrong runs."""
    wrong = {
        "other weights or metrics": trials["lost"].map(bool),
        "damaged models found": trials["unfinished"].map(bool),
        "wrong state in MLflow": ~trials["clear"].astype(bool),
    }
    faults = trials.assign(runs=1, **wrong).groupby("fault", sort=False)
    where = pd.crosstab(trials["fault"], trials["place"])
    listed = trials[wrong["other weights or metrics"] | wrong["wrong state in MLflow"]]
    tables = faults[["runs", *wrong]].sum(), where, listed[["fault", "place", "lost", "statuses"]]
    return "\n\n".join(table.to_markdown() for table in tables)


if __name__ == "__main__":
    main()
