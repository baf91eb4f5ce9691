"""A phase trained by several processes of one machine, which torch's elastic launcher starts."""

import contextlib
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from submanifold import team
from submanifold.errors import UserError
from submanifold.files import read_json, write_json
from submanifold.manifold import Hierarchy, ModelSettings
from submanifold.manifold.model import Model
from submanifold.training.phases import PhaseSettings, train_phase
from submanifold.training.trainer import Row

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
LOOK = 0.5  # seconds between looks for new rows, and after a parent that is gone

Log = Callable[[str, int, Row], None]


class _Job(NamedTuple):
    """What the processes are told, as files and numbers."""

    place: Path
    phase: dict[str, Any]
    model: dict[str, Any]
    arrays: tuple[str, str]
    has_before: bool
    seed: int
    device: str
    folder: Path
    parent: int


def train_by_processes(
    count: int,
    phase: Any,
    model: ModelSettings,
    before: Hierarchy | None,
    train: np.ndarray,
    valid: np.ndarray,
    seed: int,
    device: torch.device,
    folder: Path,
    on_log: Log | None = None,
) -> tuple[Hierarchy, dict[str, Any]]:
    """Train a phase as :func:`train_phase` does, by several processes.

    Each computes the gradient of its rows of every batch, and all step with the mean of these, so
    that losses are those of one process within rounding. A training goes on from its checkpoint
    with any number of processes.

    Raises:
        UserError: The batch cannot be shared by so many, there are fewer GPUs, a process died, or
            the training failed.
    """
    if phase.training.batch_size % count:
        raise UserError(
            f"launch.processes={count} cannot share a batch of {phase.training.batch_size}: choose "
            "a training.batch_size that is a multiple of it, or other processes."
        )
    if device.type == "cuda" and torch.cuda.device_count() < count:
        raise UserError(
            f"launch.processes={count}, but there are {torch.cuda.device_count()} GPUs. Allowed: "
            "one for each process. Change it with --params=launch.processes=<number>."
        )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".processes-") as name:
        place = Path(name)
        if before is not None:
            before.save(place / "before.safetensors")
        arrays = tuple(_as_file(each, place / f"{number}.npy")
                       for number, each in enumerate((train, valid)))  # fmt: skip
        job = _Job(
            place, phase.model_dump(mode="json"), model.model_dump(mode="json"), arrays,  # type: ignore[arg-type]
            before is not None, seed, device.type, folder, os.getpid(),
        )  # fmt: skip
        with _rows_passed_on(place / "rows.jsonl", on_log):
            _launch(count, job)
        return Hierarchy.load(place / "model.safetensors"), read_json(place / "history.json")


def _launch(count: int, job: _Job) -> None:
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=count, max_restarts=0, monitor_interval=0.2,
        rdzv_backend="c10d", rdzv_endpoint="localhost:0", run_id=job.place.name,
    )  # fmt: skip
    in_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in SIGNALS} if in_main else {}
    try:
        elastic_launch(config, _work)(job)
    except ChildFailedError as error:
        told = read_json(job.place / "mistake.json")
        if told is not None:
            raise UserError(told) from error
        first = error.get_first_failure()[1]
        raise UserError(
            f"Process {first.local_rank} of {count} ended with exit code {first.exitcode}. What "
            "was trained up to the last checkpoint is kept: give the command again to go on, or "
            "set launch.processes lower."
        ) from error
    except SignalException as error:
        raise SystemExit(128 + error.sigval) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _as_file(array: np.ndarray, path: Path) -> str:
    """The file that an array is a map of, or one that it is written to."""
    if isinstance(array, np.memmap) and str(array.filename).endswith(".npy"):
        return str(array.filename)
    np.save(path, array)
    return str(path)


@contextlib.contextmanager
def _rows_passed_on(path: Path, on_log: Log | None) -> Iterator[None]:
    """Hand the rows that the first process writes to a callback of this one, as they come."""
    if on_log is None:
        yield
        return
    ended, read = threading.Event(), 0

    def pass_on() -> None:
        nonlocal read
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]
        for line in whole[read:]:
            on_log(*json.loads(line))
        read = len(whole)

    def follow() -> None:
        while not ended.wait(LOOK):
            pass_on()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        pass_on()


def _work(job: _Job) -> None:
    """What each process does."""
    _end_with(job.parent)
    local = int(os.environ["LOCAL_RANK"])
    device = torch.device(job.device, local) if job.device == "cuda" else torch.device(job.device)
    if job.device == "cuda":
        torch.cuda.set_device(device)
    else:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        torch.set_num_threads(max(1, cores // int(os.environ["LOCAL_WORLD_SIZE"])))
    dist.init_process_group("nccl" if job.device == "cuda" else "gloo")
    if team.rank() > 0:
        logging.disable()
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  progress is the first's
    else:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        _train(job, device)
    except UserError as error:
        write_json(job.place / "mistake.json", str(error))
        raise SystemExit(1) from error
    finally:
        dist.destroy_process_group()


def _train(job: _Job, device: torch.device) -> None:
    before = Model.load(job.place / "before.safetensors") if job.has_before else None
    train, valid = (np.load(path, mmap_mode="c") for path in job.arrays)
    on_log = None
    if team.rank() == 0:
        rows = open(job.place / "rows.jsonl", "a")  # noqa: SIM115  until the process ends

        def on_log(name: str, step: int, row: Row) -> None:
            rows.write(json.dumps([name, step, row]) + "\n")
            rows.flush()

    trained, history = train_phase(
        PhaseSettings(**job.phase), ModelSettings(**job.model), before, train, valid, job.seed,  # type: ignore[arg-type]
        device, job.folder, on_log,
    )  # fmt: skip
    if team.rank() == 0:
        trained.save(job.place / "model.safetensors")
        write_json(job.place / "history.json", history)


def _end_with(parent: int) -> None:
    """End when the process that started all is killed: nobody would have what comes of it."""

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()
