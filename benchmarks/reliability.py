"""What is lost when a run is disturbed: killed, told to stop, run twice at once, its files damaged.

    python -m benchmarks.reliability --kills 50

Each trial is a `kedro run --env=test` of the default method's four phases in a project of its own,
with the processor's own arithmetic, so that every undisturbed run has the same bits. It is
disturbed, then given again as it was, and must end with the weights and the metrics of a run that
nothing disturbed. The table goes to `docs/evidence/reliability.md`.
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
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

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
FAULTS = ("failure", "error", "skipped")
CLOCKS = ("seconds", "rows_per_second", "steps_trained")


@dataclass
class Project:
    """A project in a folder of its own."""

    path: Path
    env: dict[str, str] = field(default_factory=lambda: {**os.environ, "OMP_NUM_THREADS": "1"})

    @classmethod
    def make(cls, folder: Path, empty: Path | None = None) -> "Project":
        """Copy what a project needs, and an empty database of MLflow's if there is one."""
        folder.mkdir(parents=True)
        for name in ("conf", "pyproject.toml", ".telemetry"):
            copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy
            copy(REPOSITORY / name, folder / name)
        shutil.rmtree(folder / "conf" / "local", ignore_errors=True)
        for name in ("conf/local", "src"):
            (folder / name).mkdir()
        if empty is not None:
            shutil.copy(empty, folder / "mlflow.db")
        return cls(folder)

    def start(self) -> subprocess.Popen[str]:
        """Give the command."""
        arguments = ["run", "--env=test", f"--params={PARAMS.format(steps=STEPS)}"]
        return subprocess.Popen(
            [sys.executable, "-m", "kedro", *arguments], cwd=self.path, env=self.env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self) -> str:
        """Give the command, and wait; returns what it said."""
        process = self.start()
        said, _ = process.communicate(timeout=600)
        return said if process.returncode == 0 else f"FAILED\n{said}"

    def place(self) -> str:
        """Where a run was when it ended."""
        left = (name for name, pattern in PLACES.items() if not any(self.path.glob(pattern)))
        return next(left, "after the report")

    def result(self) -> dict[str, Any]:
        """All weights and metrics, without what the clock decides."""
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
        """Of MLflow's runs, the oldest first."""
        client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{self.path}/mlflow.db")
        experiment = client.get_experiment_by_name("submanifold")
        order = ["attributes.start_time ASC"]
        runs = client.search_runs([experiment.experiment_id], order_by=order) if experiment else []
        return [run.info.status for run in runs]

    def torn(self) -> list[Path]:
        """Model files in the catalog that are not whole."""
        found = self.path.glob("data/06_models/*/model.safetensors")
        return [path for path in found if not is_intact(path)]


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(each) for key, each in value.items() if key not in CLOCKS}
    return [_timeless(each) for each in value] if isinstance(value, list) else value


Disturb = Callable[[Project], str]
"""Start a run, disturb it, and say where it was; the run has ended."""

Seconds = Mapping[str, float]
"""How long an undisturbed run was in each place."""


def watched(project: Project) -> Seconds:
    """Run to the end, and time each place."""
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
    """Wait until a random moment of a random place; returns where that is."""
    wanted = random.choice(list(PLACES))
    order = list(PLACES)
    while process.poll() is None and (
        (place := project.place()) in PLACES and order.index(place) < order.index(wanted)
    ):
        time.sleep(LOOK)
    time.sleep(random.uniform(0, seconds[wanted]))
    return project.place()


def killed(how: int, seconds: Seconds, grace: float | None = None) -> Disturb:
    """A signal at a random moment; with a grace, SIGKILL follows if it is not heeded."""

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
    """Kill a run at a random moment, and damage a file that it left."""

    def disturb(project: Project) -> str:
        place = killed(signal.SIGKILL, seconds)(project)
        for path in project.path.glob(pattern):
            path.write_bytes(change(path.read_bytes()))
        return place

    return disturb


def torn(content: bytes) -> bytes:
    """Without its last quarter."""
    return content[: len(content) * 3 // 4]


def flipped(content: bytes) -> bytes:
    """With one random bit the other way."""
    place = random.randrange(len(content))
    changed = content[place] ^ (1 << random.randrange(8))
    return content[:place] + bytes([changed]) + content[place + 1 :]


def twice(seconds: Seconds) -> Disturb:
    """Another run of the same at the same time, from a random moment on."""

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
    """Disturb a run, give it again, and hold what came of it against the whole one."""
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
    """Try each fault so often, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--others", type=int, default=5, help="trials of each other fault")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--kept",
        type=Path,
        default=Path(tempfile.gettempdir()) / "reliability.jsonl",
        help="where trials are kept: another call goes on",
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
            "killed, and the last checkpoint torn": (
                options.others, damaged("data/06_models/*/last.safetensors", torn, seconds)),
            "killed, and a bit of the last checkpoint flipped": (
                options.others, damaged("data/06_models/*/last.safetensors", flipped, seconds)),
            "killed, and a bit of every model flipped": (
                options.others, damaged("data/06_models/*/model.safetensors", flipped, seconds)),
            "killed, and a bit of the prepared images flipped": (
                options.others, damaged("data/03_primary/*/train.npy", flipped, seconds)),
            "two runs of the same at once": (options.others, twice(seconds)),
        }  # fmt: skip
        order = [(fault, n) for fault, (count, _) in faults.items() for n in range(count)]
        for fault, number in order:
            if any((each["fault"], each["number"]) == (fault, number) for each in kept):
                continue
            random.seed(f"{options.seed} {fault} {number}")
            # a name of its own: MLflow keeps databases open by their names
            project = Project.make(folder / f"trial-{len(kept)}")
            kept.append({"fault": fault, "number": number, "seconds": sum(seconds.values()),
                         **trial(faults[fault][1], project, whole)})  # fmt: skip
            shutil.rmtree(project.path)
            print(kept[-1], flush=True)
            with options.kept.open("a") as file:
                file.write(json.dumps(kept[-1]) + "\n")
    slow = slow_tests(options.kept.with_suffix(".xml"))
    PAGE.write_text(page(pd.DataFrame(kept), slow), encoding="utf-8")


def read(path: Path) -> list[dict[str, Any]]:
    """The trials that a file has kept."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def slow_tests(report: Path) -> pd.DataFrame:
    """Run the slow tests, except those of docs/evidence/scaling.md, unless their report exists."""
    if not report.exists():
        arguments = ["-m", "slow", "-n", "0", "--ignore=tests/test_scaling.py"]
        subprocess.run(
            [sys.executable, "-m", "pytest", *arguments, f"--junitxml={report}"],
            cwd=REPOSITORY, check=False,
        )  # fmt: skip
    return pd.DataFrame([
        {"test": case.get("name", "").removeprefix("test_").replace("_", " "),
         "seconds": round(float(case.get("time", "0"))),
         "result": "; ".join(each.tag for each in case if each.tag in FAULTS) or "passed"}
        for case in ElementTree.parse(report).iter("testcase")
    ])  # fmt: skip


SUITE = {
    "the disk is full (a small one is mounted), for every kind of file": (
        "one message; the old file stays, and nothing else",
        "tests/test_files.py",
    ),
    "a folder that may only be read": (
        "one message; a finished experiment is found and shown",
        "tests/pipelines/test_faults.py",
    ),
    "a bit of the prepared test images turned": (
        "they are prepared anew; the metrics are the same",
        "tests/pipelines/test_faults.py",
    ),
    "MLflow's database locked, on a full disk, no database, of a killed process": (
        "one message before anything starts, or it is mended",
        "tests/pipelines/test_store.py",
    ),
    "MLflow's server away while a model trains": (
        "the training goes on, and its curves arrive later",
        "tests/pipelines/test_faults.py",
    ),
    "MLflow's server never back": ("all files are there", "tests/pipelines/test_faults.py"),
    "killed while MLflow's database is made": (
        "the next run makes it",
        "tests/pipelines/test_store.py",
    ),
    "a checkpoint of an earlier version": (
        "the training starts anew, and says so",
        "tests/training/test_trainer.py",
    ),
    "a model of an earlier version": ("it is read", "tests/manifold/test_hierarchy.py"),
    "one of several processes that train is killed": (
        "all end with a message; the checkpoint is kept",
        "tests/training/test_launch.py",
    ),
    "one of several processes that decode is killed": (
        "one message; what is prepared is kept",
        "tests/data/test_decoding.py",
    ),
    "another machine's run is gone": ("one message", "tests/training/test_launch.py"),
    "a worker of a study is killed, and all of them are": (
        "its trial is made again",
        "tests/studies/search/test_studies.py",
    ),
}
"""Faults that the test suite tries each time: what happens, and where."""


def page(trials: pd.DataFrame, slow: pd.DataFrame) -> str:
    """Write the page."""
    trials["other weights or metrics"] = trials["lost"].map(bool)
    trials["half-written artifacts"] = trials["unfinished"].map(bool)
    trials["MLflow left unclear"] = ~trials["clear"].astype(bool)
    faults = trials.groupby("fault", sort=False)
    rows = faults.size().rename("tried").to_frame().join(
        faults[["other weights or metrics", "half-written artifacts", "MLflow left unclear"]].sum()
    )  # fmt: skip
    where = trials.groupby(["fault", "place"], sort=False).size().rename("times").reset_index()
    lost = trials[trials["other weights or metrics"] | trials["MLflow left unclear"]]
    notes = "\n".join(
        f"- {each.fault}, in {each.place}: {each.lost}, MLflow's runs {each.statuses}"
        for each in lost.itertuples()
    )
    seconds = trials["seconds"].median()
    suite = pd.DataFrame([(fault, *told) for fault, told in SUITE.items()],
                         columns=["fault", "what happens", "tests"])  # fmt: skip
    return f"""# What is lost when something goes wrong

`python -m benchmarks.reliability` disturbs runs of the default method's four phases (small ones, of
about {seconds:.0f} s with Kedro's start), gives the same command again, and holds all weights and
metrics against those of a run that nothing disturbed, bit for bit. An artifact is half-written if
its file is there under its name and not whole, before the command is given again: models are where
the study itself turns their bits. MLflow is left clear if no run says that it is running, and the
last has finished.

{rows.reset_index().to_markdown(index=False)}

Where the runs were when they were disturbed:

{where.to_markdown(index=False)}

{notes or "Nothing was lost."}

What the test suite tries each time that it runs:

{suite.to_markdown(index=False)}

What takes longer and is tried by `pytest -m slow` alone, with what came of it when this page was
written (its tests of size are in [scaling.md](scaling.md)):

{slow.to_markdown(index=False)}
"""


if __name__ == "__main__":
    main()
