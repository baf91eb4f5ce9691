"""A search over several parameters of one experiment: Optuna's study, by several processes.

A study looks for few bits per dimension and a small squared error at once, both of validation data,
and its trials that no other beats in both are its front. A trial is what ``kedro run`` does with
its parameters, in a run of MLflow's. All that a study knows is in Optuna's database: whoever opens
it under the same name joins, and goes on where another was killed.
"""

import json
import logging
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import optuna
import torch
import yaml
from click import ClickException
from kedro.framework.startup import bootstrap_project
from kedro.runner import SequentialRunner
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState

from submanifold.device import choose_device
from submanifold.errors import UserError
from submanifold.evaluation.measure import objectives
from submanifold.experiment import flatten
from submanifold.files import is_locked, locked
from submanifold.pipelines import study as pipeline
from submanifold.pipelines.study.nodes import DIED, open_study, trials_of
from submanifold.pipelines.tracking import Observer, Pruned, observed
from submanifold.reproduction.experiments import Experiment
from submanifold.training.rotation import RotationSettings
from submanifold.training.trainer import Row

log = logging.getLogger(__name__)

SAMPLERS: dict[str, Callable[..., optuna.samplers.BaseSampler]] = {
    "tpe": partial(optuna.samplers.TPESampler, multivariate=True, constant_liar=True),
    "nsga2": partial(optuna.samplers.NSGAIISampler, population_size=20),
    "random": optuna.samplers.RandomSampler,
}
"""TPE: Ozaki et al. 2022; NSGA-II: Deb et al. 2002, which needs hundreds of trials."""
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")
RANGE = re.compile(r"(log:)?(.+?)\.\.(.+)")
FEWEST_PEERS = 5
EARLIEST = 0.5  # share of a phase's steps before which it may overtake the others yet
LIVES = 3  # processes that may die of a trial
IN_A_ROW = 3  # failures that are no coincidence
DRAWN = 16  # combinations that are looked at before any is trained
LOOK = 1.0  # seconds between looks at what others have done
PATIENCE = 60.0  # seconds that a process has to end
NO_SETTING = ("device", "launch", "register_as", "sweep", "study")

Point = tuple[float, float]
"""Bits per dimension, and squared error."""


@dataclass(frozen=True)
class Search:
    """What a study searches, and how.

    Attributes:
        name: Of the study.
        spaces: How each parameter is searched, as on the command line.
        params: What all trials have, as on the command line of `kedro run`, nested.
        project: Folder of the project.
        env: Environment of the configuration.
        trials: How many the study is to have, those of earlier calls counted.
        sampler: Of :data:`SAMPLERS`.
        prune: Whether trainings that do worse than others end early (:func:`is_dominated`).
    """

    name: str
    spaces: Mapping[str, str]
    params: Mapping[str, Any]
    project: Path
    env: str | None = None
    trials: int = 20
    sampler: str = "tpe"
    prune: bool = True

    @property
    def base(self) -> Experiment:
        """The experiment without what is searched."""
        return Experiment(self.name, self.params, self.project, self.env)

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The spaces as Optuna's; a UserError for what is none."""
        return {name: read_space(name, text) for name, text in self.spaces.items()}

    def experiment(self, chosen: Mapping[str, Any]) -> Experiment:
        """The experiment of a trial."""
        experiment = self.base
        for name, value in chosen.items():
            is_list = isinstance(value, str) and value.startswith("[")
            experiment = experiment.changed(name, json.loads(value) if is_list else value)
        return experiment


def read_spaces(texts: Sequence[str]) -> dict[str, str]:
    """Read how parameters are searched, each ``<name>=<space>`` (:func:`read_space`).

    Raises:
        UserError: One has no space, or one that cannot be read, or stands there twice.
    """
    spaces: dict[str, str] = {}
    for text in texts:
        name, sign, space = (part.strip() for part in text.partition("="))
        if not (name and sign and space):
            raise UserError(
                f"{text!r} does not say what to search. Write <parameter>=<low>..<high>, "
                "=log:<low>..<high> or =<value>,<value>."
            )
        if name in spaces:
            raise UserError(f"{name} is searched twice. Leave one of them out.")
        read_space(name, space)
        spaces[name] = space
    return spaces


def read_space(name: str, text: str) -> BaseDistribution:
    """Read what a parameter may be.

    - ``50..500``: whole numbers, the ends among them; ``0.1..0.5``: any numbers. One end with a
      point or an exponent makes it these.
    - ``log:0.1..100``: the same, evenly on a logarithmic scale.
    - ``PR-M,PR-D`` or ``[8,4],[4,2]``: one of these values, as in a file of YAML.

    Raises:
        UserError: It is none of these.
    """
    said, allowed = f"{name}={text} cannot be searched", "Allowed: 50..500, log:0.1..100, or a,b,c."
    if (found := RANGE.fullmatch(text)) is not None:
        low, high = map(_number, found.groups()[1:])
        if low is None or high is None:
            raise UserError(f"{said}: the ends of a range are numbers. {allowed}")
        if not low < high:
            raise UserError(f"{said}: {found[2]} is not below {found[3]}. {allowed}")
        if found[1] and not low > 0:
            raise UserError(f"{said}: a logarithmic scale begins above 0. {allowed}")
        whole = isinstance(low, int) and isinstance(high, int)
        kind: Any = IntDistribution if whole else FloatDistribution
        return kind(low, high, log=bool(found[1]))
    try:
        values = yaml.safe_load(f"[{text}]")
    except yaml.YAMLError as error:
        raise UserError(f"{said}: it cannot be read as YAML. {allowed}") from error
    if text.startswith("log:") or any(isinstance(value, dict) for value in values):
        raise UserError(f"{said}: it is neither a range nor values. {allowed}")
    if len(values) < 2:
        raise UserError(f"{said}: it is one value, to be given with --params. {allowed}")
    plain = [json.dumps(value) if isinstance(value, list) else value for value in values]
    return CategoricalDistribution(plain)


def _number(text: str) -> int | float | None:
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        return number if math.isfinite(number) else None
    return None


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
        spaces: What is searched, each as :func:`read_spaces` says.
        params: What all trials have, nested.
        project: Folder of the project.
        env: Environment of the configuration.
        workers: Processes that make trials at once.
        **how: ``trials``, ``sampler`` and ``prune`` of :class:`Search`.

    Returns:
        The page with the front.

    Raises:
        UserError: What is asked cannot work, or is not what the study was made of; or no trial is
            complete, or the processes ended before all trials were made.
    """
    if not NAME.fullmatch(name):
        raise UserError(
            f"study={name} cannot be used: it names files. Allowed: a letter, then letters, "
            "digits, '.', '_' and '-'. Change it with --study=<name>."
        )
    what = Search(name, read_spaces(spaces), params, project, env, **how)
    if twice := what.spaces.keys() & flatten(params).keys():
        raise UserError(f"{twice.pop()} is searched, and given with --params. Leave out either.")
    study = _Study(what)
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


class _Study:
    """A study as a process has it open."""

    def __init__(self, search: Search):
        self.search = search
        self.drawn = search.base.changed("study", search.name)
        path = self.drawn.load("study_trials")
        self.folder, self.space = path.parent, search.distributions
        self.optuna = open_study(path, search.name)

    def agree(self) -> None:
        """Write down what the study is of, or refuse another search or another experiment."""
        base = self.search.base
        settings = flatten(base.parameters)
        left_out = tuple(f"{name}." for name in (*self.search.spaces, *NO_SETTING))
        now = {k: v for k, v in settings.items() if not f"{k}.".startswith(left_out)}
        now["data"] = base.configuration.keys_of["data"]
        asked = {"search": dict(self.search.spaces), "base": json.loads(json.dumps(now))}
        with locked(self.folder, self.search.name):
            known = self.optuna.user_attrs
            for name in asked.keys() - known.keys():
                self.optuna.set_user_attr(name, asked[name])
        for name, what in ("search", "searches"), ("base", "is of"):
            before, after = known.get(name, asked[name]), asked[name]
            differs = [f"{key}={_shown(before, key)}, not {_shown(after, key)}"
                       for key in {**before, **after}
                       if _shown(before, key) != _shown(after, key)]  # fmt: skip
            if differs:
                raise UserError(
                    f"study={self.search.name} {what} {'; '.join(differs[:3])}"
                    f"{f'; and {len(differs) - 3} more' if len(differs) > 3 else ''}. Give it the "
                    "same as before, or another name with --study."
                )

    def check(self) -> None:
        """Refuse a search of which nothing can work, before anything is trained.

        Raises:
            UserError: None of some combinations that are drawn can; of some a warning tells.
        """
        processes = self.search.base.parameters["launch"]["processes"]
        if self.search.prune and processes > 1:
            raise UserError(
                f"launch.processes={processes} trains a phase by processes that cannot be pruned. "
                "Add --no-prune, or leave it out and choose more --workers."
            )
        if "search" in self.optuna.user_attrs:
            return
        quietly = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        refused = []
        for _ in range(DRAWN):
            chosen = quietly.ask(self.space).params
            try:
                self.search.experiment(chosen).parameters  # noqa: B018
            except ClickException as error:
                refused.append(f"{_named(chosen)}: {error.message}")
        if len(refused) == DRAWN:
            raise UserError(f"No combination that was drawn can work, such as {refused[0]}")
        if refused:
            log.warning(
                "%d of %d combinations that were drawn cannot work, and will be failed trials, "
                "such as %s", len(refused), DRAWN, refused[0],
            )  # fmt: skip

    @property
    def is_made(self) -> bool:
        """Whether all trials have ended."""
        trials = trials_of(self.optuna)
        return len(trials) >= self.search.trials and all(t.state.is_finished() for t in trials)

    def work(self) -> None:
        """Make trials until there are enough, and none is left that another process might lose."""
        failures = 0
        while not self.is_made:
            with self._next() as trial:
                if trial is None:  # others are at the last ones
                    time.sleep(LOOK)
                    continue
                failures = 0 if self._make(trial) else failures + 1
            self._draw()
            if failures == IN_A_ROW:
                raise UserError(f"{IN_A_ROW} trials in a row have failed; the study can go on.")

    @contextmanager
    def _next(self) -> Iterator[optuna.Trial | None]:
        """Begin a trial, unless there are enough: one that is locked as long as it is made.

        What runs and is not locked has lost its process.
        """
        trial, made = None, ExitStack()
        with locked(self.folder, self.search.name):
            trials = trials_of(self.optuna)
            for each in trials:
                if each.state == TrialState.RUNNING and not is_locked(self._place(each)):
                    self._again(each, each.user_attrs.get("lives", LIVES) - 1)
            trials = trials_of(self.optuna)
            waiting = any(each.state == TrialState.WAITING for each in trials)
            if waiting or len(trials) < self.search.trials:
                # a new seed for each, or processes would draw the same, and a second call again
                seed = self.drawn.parameters["seed"] + len(self.optuna.get_trials(deepcopy=False))
                self.optuna.sampler = SAMPLERS[self.search.sampler](seed=seed % 2**32)
                trial = self.optuna.ask(self.space)
                made.callback(self._place(trial).rmdir)
                made.enter_context(locked(self._place(trial), f"trial {trial.number}"))
        with made:
            yield trial

    def _place(self, trial: FrozenTrial | optuna.Trial) -> Path:
        return self.folder / f"trial-{trial.number}"

    def _again(self, trial: FrozenTrial | optuna.Trial, lives: int) -> None:
        """End a trial that has lost its process, and let another have its parameters."""
        self.optuna.tell(trial.number, state=TrialState.FAIL)
        if lives:
            attributes = {"retry_of": trial.number, "lives": lives}
            self.optuna.enqueue_trial(trial.params, user_attrs=attributes)
        else:
            log.warning("Trial %d is given up: %d processes have died of it", trial.number, LIVES)

    def _make(self, trial: optuna.Trial) -> bool:
        """Run a trial to its end, and say whether it was well; a refusal is."""
        experiment = self.search.experiment(trial.params)
        try:
            experiment.parameters  # noqa: B018
        except ClickException as error:
            self._fail(trial, error.message)
            return True
        tags = {"submanifold.study": self.search.name, "submanifold.trial": str(trial.number)}
        started = partial(trial.set_user_attr, "run")
        observer = Observer(tags, started, partial(self._look, experiment, {}))
        try:
            with observed(observer):
                experiment.run()
            self.optuna.tell(trial, _measure(trial, experiment))
        except Pruned as why:
            trial.set_user_attr("why", str(why))
            self.optuna.tell(trial, state=TrialState.PRUNED)
        except (SystemExit, KeyboardInterrupt):  # told to stop, which is not its fault
            with locked(self.folder, self.search.name):
                self._again(trial, trial.user_attrs.get("lives", LIVES))
            raise
        except Exception as error:
            known = isinstance(error, ClickException | UserError)
            if not known:
                log.exception("Trial %d", trial.number)
            self._fail(trial, str(error) if known else f"{type(error).__name__}: {error}")
            return False
        return True

    def _fail(self, trial: optuna.Trial, why: str) -> None:
        trial.set_user_attr("why", why)
        self.optuna.tell(trial, state=TrialState.FAIL)

    def _look(
        self, experiment: Experiment, seen: dict[str, list[Point]], phase: str, step: int, row: Row
    ) -> None:
        """Prune a training that at a validation others have left behind."""
        settings = _comparable(experiment).get(phase)
        if not self.search.prune or settings is None or "valid.bits_per_dim" not in row:
            return
        so_far = seen.setdefault(phase, [])
        so_far.append((row["valid.bits_per_dim"], row["valid.mse"]))
        if step < EARLIEST * settings.training.steps:
            return
        complete = self.optuna.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        found = [each.user_attrs.get("validations", {}).get(phase, {}) for each in complete]
        peers = [each[str(step)] for each in found if str(step) in each]
        bits, error = map(min, zip(*so_far, strict=True))
        if is_dominated((bits, error), peers):
            raise Pruned(
                f"at step {step} of {phase} at least half of {len(peers)} complete trials had "
                f"fewer bits than it up to there ({bits:.3f}) and a smaller error ({error:.5f})"
            )

    def _draw(self) -> None:
        catalog = self.drawn.catalog
        catalog["params:study"] = self.search.name
        with locked(self.folder, self.search.name):
            SequentialRunner().run(pipeline.create_pipeline(), catalog)


def is_dominated(point: Sequence[float], peers: Collection[Sequence[float]]) -> bool:
    """Whether a training is left behind by what complete ones had at the same step.

    The median rule (Golovin et al. 2017, section 3.2.1; Optuna's MedianPruner) with Pareto's order
    in the place of a number's, for Optuna prunes no study of two objectives: at least half of the
    peers, of which there have to be five, are better in bits per dimension and in squared error
    both. What is best at a compromise of its own is kept. Losses are not compared, since the
    penalty's weight is in them.

    Args:
        point: The least bits per dimension and the least squared error on validation data so far.
        peers: What complete trials had at this step.
    """
    better = sum(all(b < a for a, b in zip(point, peer, strict=True)) for peer in peers)
    return len(peers) >= FEWEST_PEERS and 2 * better >= len(peers)


def _comparable(experiment: Experiment) -> dict[str, Any]:
    """The trainings that begin at the data, by name.

    Coordinates u are others in each trial: bits and errors of them compare with nothing.
    """
    phases = enumerate(experiment.configuration.experiment.phases, start=1)
    return {f"phase_{n}": phase for n, phase in phases
            if not isinstance(phase, RotationSettings) and phase.stages[0] == 1}  # fmt: skip


def _measure(trial: optuna.Trial, experiment: Experiment) -> Point:
    """Measure what a study chooses by, and keep what was reported of test data beside it.

    And what validations have found, those of phases that were there before among them.
    """
    validations = {
        history["name"]: {
            row["step"]: [row["bits_per_dim"], row["mse"]] for row in history["valid"]
        }
        for history in experiment.histories()
        if history["name"] in _comparable(experiment)
    }
    trial.set_user_attr("validations", validations)
    metrics = experiment.load("metrics")
    bits = metrics["bits_per_dim"]
    if bits["value"] is None:
        raise UserError(f"bits per dimension: {bits['why']}.")
    trial.set_user_attr("test", [bits["value"], metrics["mse"]["value"]])
    device = choose_device(experiment.parameters["device"])
    return objectives(experiment.load("hierarchy").to(device), experiment.load("x_valid"), device)


def _supervise(study: _Study, count: int) -> bool:
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

    def __init__(self, study: _Study, number: int, count: int):
        self.log = study.folder / f"worker-{os.getpid()}-{number + 1}.log"
        threads = str(max(1, torch.get_num_threads() // count))
        path = os.pathsep.join(filter(None, sys.path))
        with open(self.log, "wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", __spec__.name], stdin=subprocess.PIPE, stdout=file,
                stderr=subprocess.STDOUT, start_new_session=True,  # Ctrl-C is for who started it
                env={**os.environ, "OMP_NUM_THREADS": threads, "PYTHONPATH": path},
            )  # fmt: skip
        told = json.dumps({**vars(study.search), "project": str(study.search.project)})
        with suppress(BrokenPipeError):  # its log says why
            self._pipe.write(f"{told}\n".encode())
            self._pipe.flush()  # and not closed, by which it knows that this process is there

    @property
    def _pipe(self) -> IO[bytes]:
        assert self.process.stdin is not None
        return self.process.stdin

    def end(self) -> None:
        """Wait for its end, but not for ever."""
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._pipe.close()


def _work() -> None:
    """What such a process does."""
    _on_term(_exit)
    told = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    search = Search(**{**told, "project": Path(told["project"])})
    bootstrap_project(search.project)
    try:
        _Study(search).work()
    except (UserError, ClickException) as error:
        log.error("%s", error)
        raise SystemExit(1) from error


def _end_with_parent() -> None:
    # sys.stdin has a lock, on which processes that are forked while it is held would wait for ever
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _exit(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)


def _on_term(handler: Any) -> Any:
    """Set what SIGTERM does, where Python allows it; what it did before."""
    if threading.current_thread() is threading.main_thread():
        return signal.signal(signal.SIGTERM, handler)
    return None


def _line(trial: FrozenTrial, number: int, count: int) -> str:
    what = f"Trial {trial.number} ({number} of {count}), {_named(trial.params)}: "
    if trial.state == TrialState.COMPLETE:
        return what + "BPD {:.3f}, MSE {:.5f}".format(*trial.values)
    state = "pruned" if trial.state == TrialState.PRUNED else "failed"
    return f"{what}{state}, {trial.user_attrs.get('why', DIED)}"


def _named(chosen: Mapping[str, Any]) -> str:
    written = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in chosen.items()}
    return ", ".join(f"{name}={value}" for name, value in written.items())


def _shown(values: Mapping[str, Any], name: str) -> str:
    return str(values[name]) if name in values else "nothing"


if __name__ == "__main__":
    _work()
