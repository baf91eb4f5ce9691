"""Reliability of runs that are killed, interrupted, started twice, or whose files are damaged.

    python -m benchmarks.reliability --kills 50

Each trial is a `kedro run --env=test` of four phases of the default method in a separate project
on the CPU, so that undisturbed runs are equal bit for bit. The run is disturbed, the command is
repeated, and must end with the weights and metrics of an undisturbed run. The results are written
to `docs/evidence/reliability.md`.
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
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd

from submanifold.models.io import is_intact, load_tensors

REPOSITORY = Path(__file__).parents[1]
PAGE = REPOSITORY / "docs" / "evidence" / "reliability.md"
STEPS = 120
PARAMS = (
    "method=nested,device=cpu,density.training.steps={steps},reconstruction.training.steps={steps}"
)
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


@dataclass
class Project:
    """A separate project."""

    path: Path
    env: dict[str, str] = field(default_factory=lambda: {**os.environ, "OMP_NUM_THREADS": "1"})

    @classmethod
    def make(cls, folder: Path, empty: Path | None = None) -> "Project":
        """Copy the configuration, and an empty MLflow database if given."""
        folder.mkdir(parents=True)
        for name in ("conf", "pyproject.toml", ".telemetry"):
            copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy
            copy(REPOSITORY / name, folder / name)
        shutil.rmtree(folder / "conf" / "local", ignore_errors=True)
        for name in ("conf/local", "src"):
            (folder / name).mkdir()
        if empty is not None:
            (folder / "data").mkdir()
            shutil.copy(empty, folder / "data" / "mlflow.db")
        return cls(folder)

    def start(self) -> subprocess.Popen[str]:
        """Start the command."""
        arguments = ["run", "--env=test", f"--params={PARAMS.format(steps=STEPS)}"]
        return subprocess.Popen(
            [sys.executable, "-m", "kedro", *arguments], cwd=self.path, env=self.env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self) -> str:
        """Run the command; returns its output."""
        process = self.start()
        said, _ = process.communicate(timeout=600)
        return said if process.returncode == 0 else f"FAILED\n{said}"

    def place(self) -> str:
        """Return the first part of the run that is not finished."""
        left = (name for name, pattern in PLACES.items() if not any(self.path.glob(pattern)))
        return next(left, "after the report")

    def result(self) -> dict[str, Any]:
        """Return all weights and metrics, without times."""
        found: dict[str, Any] = {}
        for path in sorted(self.path.glob("data/06_models/*/*.safetensors")):
            if path.name not in ("last.safetensors", "earlier.safetensors"):
                tensors, _ = load_tensors(path)
                found[str(path.relative_to(self.path))] = {
                    name: each.numpy().tobytes() for name, each in tensors.items()
                }
        for path in sorted(self.path.glob("data/07_model_output/*/metrics.json")):
            found["metrics"] = _timeless(json.loads(path.read_text()))
        return found

    def statuses(self) -> list[str]:
        """Return the states of the runs in MLflow, oldest first."""
        client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{self.path}/data/mlflow.db")
        experiment = client.get_experiment_by_name("submanifold")
        order = ["attributes.start_time ASC"]
        runs = client.search_runs([experiment.experiment_id], order_by=order) if experiment else []
        return [run.info.status for run in runs]

    def torn(self) -> list[Path]:
        """Return model files that do not match their checksums."""
        found = self.path.glob("data/06_models/*/model.safetensors")
        return [path for path in found if not is_intact(path)]


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(each) for key, each in value.items() if key not in CLOCKS}
    return [_timeless(each) for each in value] if isinstance(value, list) else value


Disturb = Callable[[Project], str]
"""Start a run, disturb it until it ends, and return where it was."""

Seconds = Mapping[str, float]
"""Duration of each part of an undisturbed run."""


def watched(project: Project) -> Seconds:
    """Run to the end, and time each part."""
    process, seconds = project.start(), dict.fromkeys(PLACES, 0.0)
    with tempfile.TemporaryFile("w+") as said, process:
        reader = threading.Thread(target=lambda: said.write(process.communicate()[0]))
        reader.start()
        before = time.monotonic()
        while reader.is_alive():
            time.sleep(LOOK)
            now = time.monotonic()
            if (place := project.place()) in seconds:
                seconds[place] += now - before
            before = now
        said.seek(0)
        assert process.returncode == 0, said.read()
    return seconds


def random_moment(project: Project, process: subprocess.Popen[str], seconds: Seconds) -> str:
    """Wait until a random moment of a random part; returns the part."""
    wanted = random.choice(list(PLACES))
    order = list(PLACES)
    while process.poll() is None and (
        (place := project.place()) in PLACES and order.index(place) < order.index(wanted)
    ):
        time.sleep(LOOK)
    time.sleep(random.uniform(0, seconds[wanted]))
    return project.place()


def killed(how: int, seconds: Seconds, grace: float | None = None) -> Disturb:
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


def damaged(pattern: str, change: Callable[[bytes], bytes], seconds: Seconds) -> Disturb:
    """Kill a run at a random moment, and damage a file."""

    def disturb(project: Project) -> str:
        place = killed(signal.SIGKILL, seconds)(project)
        for path in project.path.glob(pattern):
            path.write_bytes(change(path.read_bytes()))
        return place

    return disturb


def torn(content: bytes) -> bytes:
    """Remove the last quarter."""
    return content[: len(content) * 3 // 4]


def flipped(content: bytes) -> bytes:
    """Flip one random bit."""
    place = random.randrange(len(content))
    changed = content[place] ^ (1 << random.randrange(8))
    return content[:place] + bytes([changed]) + content[place + 1 :]


def twice(seconds: Seconds) -> Disturb:
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
    return {"place": place, "lost": lost, "unfinished": unfinished, "statuses": statuses,
            "clear": clear}  # fmt: skip


def main() -> None:
    """Run all trials, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--others", type=int, default=5, help="trials of each other fault")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--kept",
        type=Path,
        default=Path(tempfile.gettempdir()) / "reliability.jsonl",
        help="file of finished trials, which are not repeated",
    )
    options = parser.parse_args()
    kept = read(options.kept)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reference = Project.make(folder / "whole")
        seconds = watched(reference)
        whole = reference.result()
        faults: dict[str, tuple[int, Disturb]] = {
            "SIGKILL at a random moment": (options.kills, killed(signal.SIGKILL, seconds)),
            "SIGTERM with ten seconds of grace": (
                options.others, killed(signal.SIGTERM, seconds, grace=10.0)),
            "Ctrl-C": (options.others, killed(signal.SIGINT, seconds)),
            "killed, and the last checkpoint truncated": (
                options.others, damaged("data/06_models/*/last.safetensors", torn, seconds)),
            "killed, and a bit of the last checkpoint flipped": (
                options.others, damaged("data/06_models/*/last.safetensors", flipped, seconds)),
            "killed, and a bit of every model flipped": (
                options.others, damaged("data/06_models/*/model.safetensors", flipped, seconds)),
            "killed, and a bit of the prepared images flipped": (
                options.others, damaged("data/03_primary/*/train.npy", flipped, seconds)),
            "the same run started twice": (options.others, twice(seconds)),
        }  # fmt: skip
        order = [(fault, n) for fault, (count, _) in faults.items() for n in range(count)]
        for fault, number in order:
            if any((each["fault"], each["number"]) == (fault, number) for each in kept):
                continue
            random.seed(f"{options.seed} {fault} {number}")
            # a unique name: MLflow keeps databases open by their names
            project = Project.make(folder / f"trial-{len(kept)}")
            kept.append({"fault": fault, "number": number, "seconds": sum(seconds.values()),
                         **trial(faults[fault][1], project, whole)})  # fmt: skip
            shutil.rmtree(project.path)
            print(kept[-1], flush=True)
            with options.kept.open("a") as file:
                file.write(json.dumps(kept[-1]) + "\n")
    PAGE.write_text(page(pd.DataFrame(kept)), encoding="utf-8")


def read(path: Path) -> list[dict[str, Any]]:
    """Read the finished trials of a file."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


SUITE = {
    "full disk (a small one is mounted), for every kind of file": (
        "one message; the old file stays, and no partial file",
        "tests/common/test_files.py",
    ),
    "read-only folder": (
        "one message; a finished experiment is found and shown",
        "tests/pipelines/test_faults.py",
    ),
    "flipped bit of the prepared test images": (
        "they are prepared again; the metrics are the same",
        "tests/pipelines/test_faults.py",
    ),
    "MLflow's database: locked, on a full disk, read-only, not a database, half-created": (
        "one message before the run starts, or the database is created again",
        "tests/runs/test_store.py",
    ),
    "MLflow's server unreachable during a training": (
        "the training continues; its curves are sent when the server is back",
        "tests/pipelines/test_faults.py",
    ),
    "MLflow's server never back": ("all files are written", "tests/pipelines/test_faults.py"),
    "one of several training processes is killed": (
        "all processes end with a message; the checkpoint is kept",
        "tests/training/test_launch.py",
    ),
    "one of several decoding processes is killed": (
        "one message; the prepared images are kept",
        "tests/data/test_prepare.py",
    ),
    "another machine of the run disappears": ("one message", "tests/training/test_launch.py"),
    "one or all workers of a study are killed": (
        "their trials are repeated",
        "tests/studies/search/test_studies.py",
    ),
}
"""Faults in the test suite: what happens, and the tests."""

CONCLUSIONS = """\
- {total} disturbed runs, {kills} of them killed at random moments, ended with the weights and
  metrics of an undisturbed run, bit for bit, after the command was repeated{except_for}.
- No interruption left a partial file under its final name. Damaged files are detected by checksums
  and made again.
- MLflow's record of runs was correct in every case{unclear}."""


def page(trials: pd.DataFrame) -> str:
    """Write the page."""
    trials["other weights or metrics"] = trials["lost"].map(bool)
    trials["damaged models found"] = trials["unfinished"].map(bool)
    trials["wrong state in MLflow"] = ~trials["clear"].astype(bool)
    faults = trials.groupby("fault", sort=False)
    columns = ["other weights or metrics", "damaged models found", "wrong state in MLflow"]
    rows = faults.size().rename("runs").to_frame().join(faults[columns].sum())
    where = pd.crosstab(trials["fault"], trials["place"])
    places = [place for place in (*PLACES, "after the report") if place in where]
    others = [place for place in where if place not in places]
    where = where.loc[rows.index, [*places, *others]]
    wrong = trials[trials["other weights or metrics"] | trials["wrong state in MLflow"]]
    notes = "\n".join(
        f"- {each.fault}, in {each.place}: {each.lost}, states in MLflow {each.statuses}"
        for each in wrong.itertuples()
    )
    lost, unclear = (int(trials[column].sum()) for column in (columns[0], columns[2]))
    conclusions = CONCLUSIONS.format(
        total=len(trials),
        kills=int(trials["fault"].str.startswith("SIGKILL").sum()),
        except_for=f", except {lost}" * bool(lost),
        unclear=f", except {unclear}" * bool(unclear),
    )
    seconds = trials["seconds"].median()
    suite = pd.DataFrame([(fault, *found) for fault, found in SUITE.items()],
                         columns=["fault", "what happens", "tests"])  # fmt: skip
    return f"""# Reliability

{conclusions}

Measured with version {version("submanifold")} on {date.today()}. Regenerate this page with
`python -m benchmarks.reliability`. It interrupts small runs of the method `nested` (about
{seconds:.0f} s each), repeats the command, and compares all weights and metrics with those of a
run that was not interrupted. The column *damaged models found* counts the runs in which a model
file did not match its checksum before the command was repeated; one of the faults flips bits of
models. The state in MLflow is correct if no run is marked as running, and the last one as finished.

{rows.reset_index().to_markdown(index=False)}

{notes or "No run lost anything."}

## Where the runs were interrupted

{where.reset_index().to_markdown(index=False)}

## Faults in the test suite

These are tested in every run of the tests.

{suite.to_markdown(index=False)}
"""


if __name__ == "__main__":
    main()
