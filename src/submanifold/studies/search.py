"""A search by several processes, which make the trials of one study."""

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
from submanifold.config import flatten
from submanifold.pipelines.study.nodes import DIED, trials_of
from submanifold.studies.spaces import Search, read_spaces
from submanifold.studies.studies import LOOK, Study, named

log = logging.getLogger(__name__)

PATIENCE = 60.0  # seconds that a process has to end


def search(
    name: str,
    spaces: Sequence[str],
    params: Mapping[str, Any],
    project: Path,
    env: str | None = None,
    workers: int = 1,
    **how: Any,
) -> Path:
    """Make the trials that a study lacks, by so many processes, and draw them all.

    Each process has its share of the processor's threads. The trial of one that dies is taken up by
    another, or when the study is called again.

    Args:
        name: Of the study.
        spaces: What is searched, each as :func:`~submanifold.studies.spaces.read_spaces`
            says.
        params: What all trials have, nested.
        project: Folder of the project.
        env: Environment of the configuration.
        workers: Processes that make trials at once.
        **how: ``trials``, ``sampler`` and ``prune`` of
            :class:`~submanifold.studies.spaces.Search`.

    Returns:
        The page with the front.

    Raises:
        UserError: What is asked cannot work, or is not what the study was made of; or no trial is
            complete, or the processes ended before all trials were made.
    """
    what = Search(name, read_spaces(spaces), params, project, env, **how)
    if twice := what.spaces.keys() & flatten(params).keys():
        raise UserError(f"{twice.pop()} is searched, and given with --params. Leave out either.")
    study = Study(what)
    study.check()
    study.agree()
    with study.drawn.session() as session:
        session.load_context()  # makes MLflow's experiment, which two at once could not
    died = _supervise(study, workers)
    trials = trials_of(study.optuna)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if not complete:
        told = [trial.user_attrs["why"] for trial in trials if "why" in trial.user_attrs]
        raise UserError(
            f"No trial of study={what.name} is complete{f'; the last: {told[-1]}' if told else ''}"
            + (f" {study.folder} has the logs of its workers." if died else "")
        )
    with study.drawn.session() as session:
        session.run(pipeline_names=["study"])
    if not study.is_made:
        raise UserError(
            f"All workers have ended before the trials were made; {study.folder} has their logs. "
            "Give the command again to go on."
        )
    return what.project / "data/08_reporting/sweeps" / f"{what.name}.html"


def _supervise(study: Study, count: int) -> bool:
    """Let processes work, and tell what comes of it; whether any has died."""
    told = {trial.number for trial in trials_of(study.optuna) if trial.state.is_finished()}
    workers = [] if study.is_made else [_Worker(study, number, count) for number in range(count)]
    running, died = workers, 0
    before = _on_term(_exit)
    try:
        while running:
            time.sleep(LOOK)
            ended = [each for each in running if each.process.poll() is not None]
            running = [each for each in running if each not in ended]
            for trial in trials_of(study.optuna):
                if trial.state.is_finished() and trial.number not in told:
                    told.add(trial.number)
                    log.info("%s", _line(trial, len(told), study.search.trials))
            for each in ended:
                if code := each.process.returncode:
                    died += 1
                    log.warning(
                        "A worker has ended with exit code %d, its log is %s; %s", code, each.log,
                        f"{len(running)} of {count} go on" if running else "none is left",
                    )  # fmt: skip
    finally:
        if running:
            log.info("Stopping; given again, the command goes on")
        for each in running:
            each.process.terminate()
        for each in workers:
            each.end()
        _on_term(before)
    return died > 0


class _Worker:
    """A process that works at a study, with a log of its own and its share of the threads."""

    def __init__(self, study: Study, number: int, count: int):
        self.log = study.folder / f"worker-{os.getpid()}-{number + 1}.log"
        threads = str(max(1, torch.get_num_threads() // count))
        path = os.pathsep.join(filter(None, sys.path))
        told = json.dumps({**vars(study.search), "project": str(study.search.project)})
        with open(self.log, "wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", __spec__.name, told, str(os.getpid())],
                stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for who started it
                env={**os.environ, "OMP_NUM_THREADS": threads, "PYTHONPATH": path},
            )  # fmt: skip

    def end(self) -> None:
        """Wait for its end, but not for ever."""
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _work(told: str, parent: int) -> None:
    """What such a process does."""
    _on_term(_exit)
    terminate_with_parent(parent)
    search = json.loads(told)
    search = Search(**{**search, "project": Path(search["project"])})
    bootstrap_project(search.project)
    try:
        Study(search).work()
    except (UserError, ClickException) as error:
        log.error("%s", error)
        raise SystemExit(1) from error


def _exit(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)


def _on_term(handler: Any) -> Any:
    """Set what SIGTERM does, where Python allows it; what it did before."""
    if threading.current_thread() is threading.main_thread():
        return signal.signal(signal.SIGTERM, handler)
    return None


def _line(trial: FrozenTrial, number: int, count: int) -> str:
    what = f"Trial {trial.number} ({number} of {count}), {named(trial.params)}: "
    if trial.state == TrialState.COMPLETE:
        return what + "BPD {:.3f}, MSE {:.5f}".format(*trial.values)
    state = "pruned" if trial.state == TrialState.PRUNED else "failed"
    return f"{what}{state}, {trial.user_attrs.get('why', DIED)}"


if __name__ == "__main__":
    _work(sys.argv[1], int(sys.argv[2]))
