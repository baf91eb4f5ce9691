"""Run an Optuna study in several worker processes."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from click import ClickException
from kedro.framework.startup import bootstrap_project
from optuna.trial import FrozenTrial, TrialState

from submanifold.common.errors import UserError
from submanifold.common.processes import terminate_with_parent
from submanifold.config.schema import flatten
from submanifold.pipelines.study.nodes import DIED, trials_of
from submanifold.studies.search.spaces import Search, read_spaces
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
    another one, or when the function is called again.

    Args:
        name: Name of the study.
        spaces: Search spaces (:func:`~submanifold.studies.search.spaces.read_spaces`).
        params: Nested runtime parameters of all trials.
        project: Folder of the Kedro project.
        env: Kedro environment.
        workers: Number of worker processes.
        **options: ``trials``, ``sampler`` and ``prune`` of
            :class:`~submanifold.studies.search.spaces.Search`.

    Returns:
        Path of the page.

    Raises:
        UserError: The arguments are invalid or not those of the study, no trial is complete, or
            all workers ended early.
    """
    what = Search(name, read_spaces(spaces), params, project, env, **options)
    if twice := what.spaces.keys() & flatten(params).keys():
        raise UserError(f"{twice.pop()}: expected a search space or --params, got both.")
    study = Study(what)
    study.check()
    study.store_search()
    with study.results.session() as session:
        session.load_context()  # creates the MLflow experiment before the workers start
        died = _supervise(study, workers)
        trials = trials_of(study.optuna)
        if not any(trial.state == TrialState.COMPLETE for trial in trials):
            reasons = [trial.user_attrs["why"] for trial in trials if "why" in trial.user_attrs]
            raise UserError(
                f"study={name}: expected a complete trial, got none"
                f"{f'; the last error: {reasons[-1]}' if reasons else '.'}"
                + (f" The logs of the workers are in {study.folder}." if died else "")
            )
    with study.results.session() as session:
        session.run(pipeline_names=["study"])
    if not study.is_finished:
        raise UserError(
            f"study={name}: all workers ended before the last trial; their logs are in "
            f"{study.folder}. Give the command again to continue."
        )
    return project / "data/08_reporting/sweeps" / f"{name}.html"


def _supervise(study: Study, count: int) -> bool:
    """Run workers, and log ended trials. Return whether any worker died."""
    logged = {trial.number for trial in trials_of(study.optuna) if trial.state.is_finished()}
    count = 0 if study.is_finished else count
    workers = [_Worker(study, number, count) for number in range(count)]
    running, died = workers, False
    handler = _on_term(_exit)
    try:
        while running:
            time.sleep(POLL)
            ended = [worker for worker in running if worker.process.poll() is not None]
            running = [worker for worker in running if worker not in ended]
            for trial in trials_of(study.optuna):
                if trial.state.is_finished() and trial.number not in logged:
                    logged.add(trial.number)
                    log.info("%s", _summary(trial, len(logged), study.search.trials))
            for worker in ended:
                if code := worker.process.returncode:
                    died = True
                    log.warning(
                        "A worker ended with exit code %d (log: %s); %d of %d workers are running",
                        code, worker.log, len(running), count,
                    )  # fmt: skip
    finally:
        if running:
            log.info("Stopping. Give the command again to continue")
        for worker in running:
            worker.process.terminate()
        for worker in workers:
            worker.end()
        _on_term(handler)
    return died


class _Worker:
    """A worker process with its own log file."""

    def __init__(self, study: Study, number: int, count: int):
        self.log = study.folder / f"worker-{os.getpid()}-{number + 1}.log"
        threads = str(max(1, torch.get_num_threads() // count))
        path = os.pathsep.join(filter(None, sys.path))
        search = json.dumps({**vars(study.search), "project": str(study.search.project)})
        with open(self.log, "wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", __spec__.name, search, str(os.getpid())],
                stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C interrupts the supervisor only
                env={**os.environ, "OMP_NUM_THREADS": threads, "PYTHONPATH": path},
            )  # fmt: skip

    def end(self) -> None:
        """Wait for the process to end; kill it after :data:`PATIENCE` seconds."""
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _work(search: str, parent: int) -> None:
    """Work on a study: the main function of a worker."""
    _on_term(_exit)
    terminate_with_parent(parent)
    settings = json.loads(search)
    project = Path(settings.pop("project"))
    bootstrap_project(project)
    try:
        Study(Search(**settings, project=project)).work()
    except (UserError, ClickException) as error:
        log.error("%s", error)
        raise SystemExit(1) from error


def _exit(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)


def _on_term(handler: Any) -> Any:
    """Set the handler of SIGTERM, and return the previous one; only in the main thread."""
    if threading.current_thread() is threading.main_thread():
        return signal.signal(signal.SIGTERM, handler)
    return None


def _summary(trial: FrozenTrial, number: int, count: int) -> str:
    text = f"Trial {trial.number} ({number} of {count}), {format_params(trial.params)}: "
    if trial.state == TrialState.COMPLETE:
        return text + "BPD {:.3f}, MSE {:.5f}".format(*trial.values)
    state = "pruned" if trial.state == TrialState.PRUNED else "failed"
    return f"{text}{state}, {trial.user_attrs.get('why', DIED)}"


if __name__ == "__main__":
    _work(sys.argv[1], int(sys.argv[2]))
