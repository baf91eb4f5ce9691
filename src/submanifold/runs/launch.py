"""Calls a function in several processes, on one machine or more (torch.distributed).

Arguments and results are JSON and array files in a folder that all machines can read; nothing is
unpickled from it. A machine that joins (:func:`join`) calls only functions of this package, in jobs
that are signed with a secret in the project's folder. The processes of one machine use its loopback
interface. Several machines communicate unencrypted, as all of torch.distributed: use a trusted
network.
"""

import functools
import hmac
import importlib
import itertools
import json
import logging
import os
import secrets
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import multiprocessing
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from submanifold.common.errors import UserError
from submanifold.common.files import atomic_write, is_alive, locked, read_json, write_json
from submanifold.common.processes import cores, terminate_with_parent
from submanifold.common.settings import Settings
from submanifold.common.threads import threads_setting, use_threads
from submanifold.config.schema import LaunchSettings
from submanifold.models import Model
from submanifold.training.phases import Log

log = logging.getLogger(__name__)

POLL = 0.2  # seconds between checks for ended processes, log rows and jobs
JOIN_TIMEOUT = timedelta(days=1)  # a scheduler may start the machines at different times
JOINED = "joined"
SECRET = Path("data/.join-secret")
PACKAGE = "submanifold"
FOLDER = f".processes-{socket.gethostname()}-"


def call(
    launch: LaunchSettings,
    function: Callable[..., Any],
    *arguments: Any,
    folder: Path,
    on_log: Log | None = None,
) -> Any:
    """Call a function in every process and return the result of the first.

    Args:
        launch: Number of processes and machines. A single process is the current one.
        function: A function of a module; its processes divide the work by
            :mod:`submanifold.common.distributed`.
        *arguments: Models, arrays, settings, paths, devices, and JSON values. Tuples become lists.
        folder: Folder for temporary files, on a file system that all machines share.
        on_log: Called with the rows that the first process logs; passed to the function under this
            name. An exception raised in it ends the processes.

    Raises:
        UserError: The function raised it, there are too few GPUs, or a process died.
    """
    if launch.processes * launch.machines == 1:
        return function(*arguments, **({} if on_log is None else {"on_log": on_log}))
    on_gpus = any(isinstance(each, torch.device) and each.type == "cuda" for each in arguments)
    if on_gpus and torch.cuda.device_count() < launch.processes:
        raise UserError(
            f"launch.processes: expected at most {torch.cuda.device_count()}, the number of GPUs, "
            f"got {launch.processes}. Change it with --params=launch.processes=<number>."
        )
    folder.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(folder)
    prefix = f"{FOLDER}{os.getpid()}-"
    with tempfile.TemporaryDirectory(dir=folder.absolute(), prefix=prefix) as name:
        place = Path(name)
        job = {
            "function": f"{function.__module__}:{function.__qualname__}", "arguments": arguments,
            "threads": threads_setting(), "on_gpus": on_gpus, "logs": on_log is not None,
            **launch.model_dump(include={"processes", "machines", "address"}),
        }  # fmt: skip
        (place / "job.json").write_text(_to_json(job, place))
        if launch.machines > 1:
            data = next(each for each in folder.absolute().parents if each.name == "data")
            job_board(launch, data.parent).post(place)
        _run_processes(place, launch.processes, 0, on_log)
        return _from_json(place / "result.json")


def _remove_abandoned(folder: Path) -> None:
    """Remove the temporary folders of killed processes of this machine."""
    for path in folder.glob(f"{FOLDER}*"):
        if not is_alive(int(path.name.removeprefix(FOLDER).partition("-")[0])):
            shutil.rmtree(path, ignore_errors=True)


def _run_processes(place: Path, processes: int, machine: int, on_log: Log | None = None) -> None:
    context = multiprocessing.get_context("spawn")
    rows = context.SimpleQueue()
    arguments = (str(place), machine, os.getpid(), rows)
    running = multiprocessing.start_processes(
        _work, arguments, processes, join=False, daemon=True, start_method="spawn"
    )
    try:
        ended = False
        while not ended:
            ended = running.join(timeout=POLL)
            while not rows.empty():
                row = rows.get()
                if on_log is not None:
                    on_log(*row)
    except (ProcessExitedException, ProcessRaisedException) as error:
        if (message := read_json(place / "error.json")) is not None:
            raise UserError(message) from error
        if isinstance(error, ProcessRaisedException):
            log.error("%s", error)
        raise UserError(
            f"Process {error.error_index} of {processes} failed. The training is saved up to the "
            "last checkpoint: repeat the command to continue, or lower launch.processes."
        ) from error
    finally:
        for process in running.processes:
            process.terminate()
        for process in running.processes:
            process.join(30)
            process.kill()


def _work(local_rank: int, name: str, machine: int, parent: int, rows: SimpleQueue) -> None:
    terminate_with_parent(parent)
    place = Path(name)
    job = _from_json(place / "job.json")
    rank, size = machine * job["processes"] + local_rank, job["machines"] * job["processes"]
    if job["on_gpus"]:
        torch.cuda.set_device(local_rank)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, cores() // job["processes"]))
    store: dist.Store
    if job["machines"] == 1:
        store = dist.FileStore(str(place / "store"), size)
        loopback = next(name for _, name in socket.if_nameindex() if name in ("lo", "lo0"))
        for library in ("GLOO", "NCCL"):
            os.environ.setdefault(f"{library}_SOCKET_IFNAME", loopback)
    else:
        store = dist.PrefixStore(place.name, _connect(job["address"]))
    dist.init_process_group(
        "nccl" if job["on_gpus"] else "gloo", store=store, rank=rank, world_size=size
    )
    if rank > 0:
        logging.disable()
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  no progress bar
    else:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = [
        torch.device("cuda", local_rank) if isinstance(each, torch.device) and job["on_gpus"]
        else each for each in job["arguments"]
    ]  # fmt: skip
    logs = {"on_log": (lambda *row: rows.put(row)) if rank == 0 else None} if job["logs"] else {}
    try:
        with use_threads(job["threads"]):
            result = _import(job["function"])(*arguments, **logs)
        if rank == 0:
            (place / "result.json").write_text(_to_json(result, place))
    except UserError as error:
        write_json(place / "error.json", str(error))
        raise SystemExit(1) from error
    finally:
        dist.destroy_process_group()


# ---- several machines


class JobBoard:
    """Announces the jobs of a run to the machines that join it, in a TCPStore at its address.

    Args:
        launch: Address and number of machines.
        project: The project, whose secret signs the jobs.
    """

    def __init__(self, launch: LaunchSettings, project: Path) -> None:
        self.secret, self.jobs = _secret(project), 0
        self.address, self.others = str(launch.address), launch.machines - 1
        try:
            self.store = _connect(self.address, is_master=True)
        except (dist.DistError, RuntimeError) as error:
            raise UserError(
                f"launch.address: expected a host name of this machine and a free port, got "
                f"{self.address} ({error}). Change it with --params=launch.address=<host>:<port>."
            ) from error

    def post(self, place: Path) -> None:
        """Announce a job when all machines have joined."""
        logged = -60.0
        while (joined := self.store.add(JOINED, 0)) < self.others:
            if time.monotonic() - logged >= 60:
                logged = time.monotonic()
                log.info("Waiting for %d of %d other machines: run `kedro join %s` on each",
                         self.others - joined, self.others, self.address)  # fmt: skip
            time.sleep(POLL)
        self.jobs += 1
        self.store.set(f"job {self.jobs}", _sign(self.secret, self.jobs, place) + str(place))


@functools.cache
def job_board(launch: LaunchSettings, project: Path) -> JobBoard:
    """Return the board of this process's run."""
    return JobBoard(launch, project)


def join(address: str, project: Path) -> None:
    """Compute for a run on another machine until it ends.

    Args:
        address: The run's ``launch.address``.
        project: The project, on a file system that both machines share.

    Raises:
        UserError: The address is invalid, or a job is not one of the project.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"ADDRESS: expected <host>:<port>, as in launch.address, got {address}.")
    secret = _secret(project)
    log.info("Waiting for the run at %s", address)
    store = _connect(address, timeout=JOIN_TIMEOUT)
    machine = store.add(JOINED, 1)
    log.info("Joined the run at %s as machine %d", address, machine)
    for number in itertools.count(1):
        try:
            while not store.check([f"job {number}"]):
                time.sleep(POLL)
            announced = store.get(f"job {number}").decode(errors="replace")
        except (dist.DistError, RuntimeError):
            log.info("The run at %s has ended", address)
            return
        place = _verified(announced, secret, number, project)
        job: dict[str, Any] = read_json(place / "job.json")
        module, _, name = job["function"].partition(":")
        if module.partition(".")[0] != PACKAGE:
            raise UserError(f"function: expected one of {PACKAGE}, got {job['function']}.")
        log.info("%s", name)
        try:
            _run_processes(place, job["processes"], machine)
        except UserError as error:
            log.error("%s", error)  # the first machine ends the run or announces another job


def _connect(address: str, is_master: bool = False, **options: Any) -> dist.TCPStore:
    host, _, port = address.rpartition(":")
    return dist.TCPStore(host, int(port), is_master=is_master, wait_for_workers=False, **options)


def _secret(project: Path) -> bytes:
    """Read the secret of a project; create it if it is missing."""
    path = project / SECRET
    with locked(path.parent, "the secret"):
        if not path.exists():
            with atomic_write(path) as partial:
                partial.touch(mode=0o600)
                partial.write_text(secrets.token_hex())
        return path.read_bytes()


def _sign(secret: bytes, number: int, place: Path) -> str:
    """Return the HMAC of a job's number, folder and content, as 64 hexadecimal digits."""
    job = (place / "job.json").read_bytes()
    return hmac.digest(secret, f"{number}\n{place}\n".encode() + job, "sha256").hex()


def _verified(announced: str, secret: bytes, number: int, project: Path) -> Path:
    """Return the folder of a job whose signature is valid."""
    signature, place = announced[:64], Path(announced[64:])
    if not (place / "job.json").is_file():
        raise UserError(f"{place} does not exist: all machines need the same file system.")
    if not hmac.compare_digest(signature.encode(), _sign(secret, number, place).encode()):
        raise UserError(
            f"{place}: expected a job signed by the project in {project}, got another signature. "
            f"Run `kedro join` in the project of the run: both machines read its {SECRET}."
        )
    return place


# ---- arguments and results as files


def _to_json(value: Any, place: Path) -> str:
    """Return a value as JSON; models and arrays are saved to files in ``place``."""

    def encode(value: Any) -> tuple[str, Any]:
        number = len(list(place.iterdir()))
        if isinstance(value, Model):
            path = place / f"{number}.safetensors"
            value.save(path)
            return "model", str(path)
        if isinstance(value, np.ndarray):
            return "array", str(_array_file(value, place / f"{number}.npy"))
        if isinstance(value, Settings):
            kind = type(value)
            name = f"{kind.__module__}:{kind.__name__}"
            return "settings", [name, value.model_dump(mode="json")]
        if isinstance(value, Path):
            return "path", str(value.absolute())
        if isinstance(value, torch.device):
            return "device", str(value)
        raise TypeError(f"{type(value)} cannot be passed to another process")

    return json.dumps(value, default=lambda each: {"__type__": encode(each)})


def _from_json(path: Path) -> Any:
    """Return the value that :func:`_to_json` wrote."""
    decode: dict[str, Callable[[Any], Any]] = {
        "model": lambda file: Model.load(Path(file)),
        "array": lambda file: np.load(file, mmap_mode="c"),
        "settings": lambda content: _import(content[0])(**content[1]),
        "path": Path,
        "device": torch.device,
    }

    def hook(value: dict[str, Any]) -> Any:
        kind, content = value.get("__type__", (None, value))
        return decode[kind](content) if kind else content

    return json.loads(path.read_text(), object_hook=hook)


def _array_file(array: np.ndarray, path: Path) -> Path:
    """Return the ``.npy`` file that an array is a map of; save any other array to ``path``."""
    if isinstance(array, np.memmap) and str(array.filename).endswith(".npy"):
        mapped = Path(str(array.filename)).absolute()
        if np.load(mapped, mmap_mode="r").shape == array.shape:  # rather than a slice of it
            return mapped
    np.save(path, array)
    return path


def _import(name: str) -> Any:
    module, _, name = name.partition(":")
    return getattr(importlib.import_module(module), name)
