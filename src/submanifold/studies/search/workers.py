"""Run an Optuna study in several worker processes."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from click import ClickException
from optuna.trial import FrozenTrial, TrialState

from submanifold.common.errors import UserError
from submanifold.common.processes import terminate_with_parent
from submanifold.config.project import configure
from submanifold.config.schema import flatten
from submanifold.pipelines.study.nodes import DIED, trials_of
from submanifold.runs.store import connect
from submanifold.studies.search.spaces import read_spaces
from submanifold.studies.search.study import POLL, Study, format_params

log = logging.getLogger(__name__)

PATIENCE = 60.0
"""Seconds that a worker has to end."""


def search(
    name: str,
    spaces: Sequence[str],
    params: Mapping[str, Any],
    project: Path,
    env: str | None = None,
    workers: int = 1,
    **options: Any,
) -> Path:
    """Run the missing trials of a study in worker processes, and write the page of all trials.

    The workers share the processor's threads. The trial of a worker that dies is repeated by
    another one, or when the function is called again. The arguments are those of
    :class:`~submanifold.studies.search.study.Study`, with spaces ``<parameter>=<space>``.

    Returns:
        Path of the page.

    Raises:
        UserError: The arguments are invalid or not those of the study, no trial is complete, or
            all workers ended early.
    """
    read = read_spaces(spaces)
    if twice := read.keys() & flatten(params).keys():
        raise UserError(f"{twice.pop()}: expected a search space or --params, got both.")
    study = Study(name, read, params, project, env, **options)
    study.store_search()
    with study.results.session() as session:
        context = session.load_context()
        connect(context.config_loader["mlflow"])  # creates the experiment before the workers start
        if not study.is_finished:
            _supervise(study, workers)
    trials = trials_of(study.optuna)
    if not any(trial.state == TrialState.COMPLETE for trial in trials):
        reasons = [trial.user_attrs["why"] for trial in trials if "why" in trial.user_attrs]
        raise UserError(
            f"study={name}: expected a complete trial, got none; the last error: "
            f"{reasons[-1] if reasons else DIED}. The logs of the workers are in {study.folder}."
        )
    with study.results.session() as session:
        session.run(pipeline_names=["study"])
    if not study.is_finished:
        raise UserError(
            f"study={name}: all workers ended before the last trial; their logs are in "
            f"{study.folder}. Give the command again to continue."
        )
    return project / "data/08_reporting/sweeps" / f"{name}.html"


def _supervise(study: Study, count: int) -> None:
    """Run workers until they end, and log trials that end; stop the workers on an interrupt."""
    logged = {trial.number for trial in trials_of(study.optuna) if trial.state.is_finished()}
    workers = [_start_worker(study, number, count) for number in range(count)]
    running = list(workers)
    handler = signal.signal(signal.SIGTERM, _exit)
    try:
        while running:
            time.sleep(POLL)
            ended = [worker for worker in running if worker.poll() is not None]
            for trial in trials_of(study.optuna):
                if trial.state.is_finished() and trial.number not in logged:
                    logged.add(trial.number)
                    log.info("%s", _summary(trial, len(logged), study.trials))
            for worker in ended:
                running.remove(worker)
                if worker.returncode:
                    log.warning(
                        "A worker ended with exit code %d (logs: %s); %d of %d workers are running",
                        worker.returncode, study.folder, len(running), count,
                    )  # fmt: skip
    finally:
        if running:
            log.info("Stopping. Give the command again to continue")
        for worker in running:
            worker.terminate()
        for worker in running:
            with suppress(subprocess.TimeoutExpired):
                worker.wait(PATIENCE)
            worker.kill()
        signal.signal(signal.SIGTERM, handler)


def _start_worker(study: Study, number: int, count: int) -> subprocess.Popen[bytes]:
    """Start a worker process with its own log file."""
    threads = max(1, torch.get_num_threads() // count)
    path = os.pathsep.join(filter(None, sys.path))
    with open(study.folder / f"worker-{os.getpid()}-{number + 1}.log", "wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", __spec__.name, json.dumps(asdict(study), default=str),
             str(os.getpid())],
            stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C interrupts the supervisor only
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": path},
        )  # fmt: skip


def _work(settings: dict[str, Any], parent: int) -> None:
    """Work on a study: the main function of a worker."""
    signal.signal(signal.SIGTERM, _exit)
    terminate_with_parent(parent)
    settings["project"] = Path(settings["project"])
    configure(settings["project"])
    try:
        Study(**settings).work()
    except (UserError, ClickException) as error:
        log.error("%s", error)
        raise SystemExit(1) from error


def _exit(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)


def _summary(trial: FrozenTrial, number: int, count: int) -> str:
    text = f"Trial {trial.number} ({number} of {count}), {format_params(trial.params)}: "
    if trial.state == TrialState.COMPLETE:
        return text + "BPD {:.3f}, MSE {:.5f}".format(*trial.values)
    state = "pruned" if trial.state == TrialState.PRUNED else "failed"
    return f"{text}{state}, {trial.user_attrs.get('why', DIED)}"


if __name__ == "__main__":
    _work(json.loads(sys.argv[1]), int(sys.argv[2]))
