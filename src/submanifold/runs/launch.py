"""Call a function in several processes on one machine or more.

torch's elastic launcher starts and supervises the processes. Arguments and results are files in a
folder that all machines see, so that nothing is unpickled. A machine that joins calls functions of
this package only, of jobs that are signed with a secret in the project's folder. The processes of
one machine talk over its loopback interface. Those of several machines talk without encryption, as
all of torch.distributed: use a network that you trust.
"""

import atexit
import contextlib
import functools
import hmac
import importlib
import json
import logging
import os
import re
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from kedro.utils import find_kedro_project
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from submanifold.common import distributed
from submanifold.common.errors import UserError
from submanifold.common.files import atomic_write, is_alive, read_json, write_json
from submanifold.common.processes import cores, terminate_with_parent
from submanifold.common.settings import Settings
from submanifold.config.schema import LaunchSettings
from submanifold.models.model import Model
from submanifold.training.trainer import Row

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
LOOK = 0.5  # seconds between looks for new rows, and for a new job
PATIENCE = timedelta(days=1)  # for other machines, which a scheduler may start later
JOINED, ENDED = "joined", "ended"
SECRET = Path("data/.join-secret")
PACKAGE = "submanifold"

Log = Callable[[str, int, Row], None]


def call(
    launch: LaunchSettings,
    function: Callable[..., Any],
    *arguments: Any,
    folder: Path,
    on_log: Log | None = None,
) -> Any:
    """Call a function in every process, and return what the first returns.

    Args:
        launch: How many processes, and in how many parts each computes its share of a training
            batch. One process is this one.
        function: Of this package; its processes share rows by
        :mod:`submanifold.common.distributed`.
        *arguments: Its own: models, arrays, settings, paths, devices, and what is JSON-able. One of
            the devices says where all compute.
        folder: Where files are passed, which all machines see.
        on_log: Called with the rows that the first process logs; the function takes it as
            ``on_log``. What it raises ends all.

    Raises:
        UserError: The function's own, there are fewer GPUs, or a process died.
    """
    logged = {} if on_log is None else {"on_log": on_log}
    if launch.processes * launch.machines == 1:
        with distributed.in_parts(launch.grad_accumulation_steps):
            return function(*arguments, **logged)
    devices = [each for each in arguments if isinstance(each, torch.device)]
    on_gpus = devices[0].type == "cuda"
    if on_gpus and torch.cuda.device_count() < launch.processes:
        raise UserError(
            f"launch.processes={launch.processes}, but there are {torch.cuda.device_count()} GPUs. "
            "Allowed: one for each process. Change it with --params=launch.processes=<number>."
        )
    folder.mkdir(parents=True, exist_ok=True)
    _remove_left(folder)
    prefix = f"{_PREFIX}{os.getpid()}-"
    with (
        _store(launch) as address,
        tempfile.TemporaryDirectory(dir=folder.absolute(), prefix=prefix) as name,
    ):
        place = Path(name)
        job = {
            "function": f"{function.__module__}:{function.__qualname__}",
            "arguments": [_pack(each, place) for each in arguments],
            "on_gpus": on_gpus, "logs": on_log is not None,
            "processes": launch.processes, "machines": launch.machines,
            "grad_accumulation_steps": launch.grad_accumulation_steps,
            "address": address,
        }  # fmt: skip
        write_json(place / "job.json", job)
        if launch.machines > 1:
            job_board(launch, project_of(folder)).post(place)
        with _rows_passed_on(place / "rows.jsonl", on_log) as ended:
            try:
                _launch(place, job, machine=0)
            except SystemExit:
                if ended:
                    raise ended[0] from None
                raise
        return _unpack(read_json(place / "result.json"))


_PREFIX = f".processes-{socket.gethostname()}-"


def _remove_left(folder: Path) -> None:
    """Remove what killed launches of this machine have left in a folder."""
    for path in folder.glob(f"{_PREFIX}*"):
        owner = re.match(r"\d+", path.name.removeprefix(_PREFIX))
        if owner and not is_alive(int(owner[0])):
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _store(launch: LaunchSettings) -> Iterator[str]:
    """Give the address of the launcher's store, on the loopback interface unless one is set.

    The launcher's own store is a part of it (``multi_tenant``) and would listen on all interfaces.
    """
    if launch.address is not None:
        yield launch.address
        return
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    host, port = listener.getsockname()
    store = dist.TCPStore(host, port, is_master=True, wait_for_workers=False, multi_tenant=True,
                          master_listen_fd=listener.detach())  # fmt: skip
    yield f"{host}:{port}"
    del store  # which listens as long as it is there


def project_of(folder: Path) -> Path:
    """Find the project that a folder belongs to.

    Raises:
        UserError: It belongs to none.
    """
    project = find_kedro_project(folder.absolute())
    if project is None:
        raise UserError(f"{folder}: expected a folder in a Kedro project, which machines share.")
    return Path(project)


def _launch(place: Path, job: dict[str, Any], machine: int) -> None:
    """Start this machine's processes, and wait until they have ended."""
    config = LaunchConfig(
        min_nodes=job["machines"], max_nodes=job["machines"], nproc_per_node=job["processes"],
        max_restarts=0, monitor_interval=0.2, rdzv_backend="static", run_id=place.name,
        rdzv_endpoint=job["address"], rdzv_configs={"rank": machine, "timeout": 900},
    )  # fmt: skip
    in_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in SIGNALS} if in_main else {}
    try:
        elastic_launch(config, sys.executable)("-m", __name__, str(place), str(os.getpid()))
    except ChildFailedError as error:
        told = read_json(place / "mistake.json")
        if told is not None:
            raise UserError(told) from error
        first = error.get_first_failure()[1]
        raise UserError(
            f"Process {first.local_rank} of {job['processes']} ended with exit code "
            f"{first.exitcode}. What was trained up to the last checkpoint is kept: give the "
            "command again to go on, or set launch.processes lower."
        ) from error
    except SignalException as error:
        raise SystemExit(128 + error.sigval) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Board:
    """The first machine's jobs for the others, in a store of torch's on its address.

    Args:
        launch: The address, and how many machines there are.
        project: The project, whose secret signs the jobs.
    """

    def __init__(self, launch: LaunchSettings, project: Path) -> None:
        self.secret = _secret(project)
        self.address, self.others, self.jobs = launch.address, launch.machines - 1, 0
        host, _, port = str(launch.address).rpartition(":")
        try:
            self.store = dist.TCPStore(  # of which the launcher's own is a part
                host, int(port), is_master=True, wait_for_workers=False, multi_tenant=True
            )
        except (dist.DistNetworkError, RuntimeError) as error:
            raise UserError(
                f"launch.address={launch.address} cannot be listened at: {error}. Allowed: a name "
                "of this machine and a free port. Change it with --params=launch.address=<host>:"
                "<port>."
            ) from error
        atexit.register(self.end)

    def post(self, place: Path) -> None:
        """Tell all others of a job, once they are there."""
        told = 0.0
        while (joined := self.store.add(JOINED, 0)) < self.others:
            if time.monotonic() - told > 60:
                told = time.monotonic()
                log.info("Waiting for %d of %d other machines: give `kedro join %s` on each",
                         self.others - joined, self.others, self.address)  # fmt: skip
            time.sleep(LOOK)
        self._set(str(place))

    def _set(self, place: str) -> None:
        self.jobs += 1
        self.store.set(f"job {self.jobs}", _sign(self.secret, self.jobs, place) + place)

    def end(self) -> None:
        """Let the others go."""
        with contextlib.suppress(dist.DistError, RuntimeError):
            self._set("")
            deadline = time.monotonic() + 10 * LOOK
            while self.store.add(ENDED, 0) < self.store.add(JOINED, 0) and (
                time.monotonic() < deadline
            ):
                time.sleep(LOOK / 5)


@functools.cache
def job_board(launch: LaunchSettings, project: Path) -> Board:
    """The board of this process's run."""
    return Board(launch, project)


def _secret(project: Path) -> bytes:
    """Read the secret that machines share by their file system; the first of them writes it."""
    path = project / SECRET
    if not path.exists():
        with atomic_write(path, keep=True) as partial:
            partial.touch(mode=0o600)
            partial.write_text(secrets.token_hex())
    return path.read_bytes()


def _sign(secret: bytes, number: int, place: str) -> str:
    """Sign a job's number, folder and file, as 64 hexadecimal digits."""
    job = (Path(place) / "job.json").read_bytes() if place else b""
    return hmac.digest(secret, f"{number}\n{place}\n".encode() + job, "sha256").hex()


def join(address: str, project: Path) -> None:
    """Compute for the run of another machine, until it has ended.

    Args:
        address: Its ``launch.address``.
        project: The project, in the same place as that machine's.

    Raises:
        UserError: The address is not one, the run is gone, or a job is not of the same project.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"{address} is no address. Allowed: <host>:<port>, as launch.address says.")
    secret = _secret(project)
    gone = f"The run at {address} is gone. Give its command again, and then this one."
    log.info("Waiting for the run at %s", address)
    try:
        store = dist.TCPStore(host, int(port), is_master=False, timeout=PATIENCE)
        machine = store.add(JOINED, 1)
        log.info("Joined the run at %s as machine %d", address, machine)
        number = 1
        while True:
            while not store.check([f"job {number}"]):
                time.sleep(LOOK)
            said = store.get(f"job {number}").decode(errors="replace")
            signature, name = said[:64], said[64:]
            place = Path(name)
            if name and not (place / "job.json").is_file():
                raise UserError(f"{place} is not there: all machines need the same file system.")
            if not hmac.compare_digest(signature, _sign(secret, number, name)):
                raise UserError(
                    f"{address}: expected jobs of the project in {project}, got one without its "
                    "signature. Give `kedro join` in the project of the run, whose "
                    f"{SECRET} both machines read."
                )
            if not name:
                store.add(ENDED, 1)
                return
            job: dict[str, Any] = read_json(place / "job.json")
            check_function(job["function"])
            log.info("%s", job["function"].rpartition(":")[2])
            try:
                _launch(place, job, machine)
            except UserError as error:
                log.error("%s", error)  # the first machine ends the run, or gives another job
            number += 1
    except (dist.DistError, RuntimeError) as error:
        raise UserError(gone) from error


def _work(name: str, parent: int) -> None:
    """What each process does."""
    terminate_with_parent(parent)
    place = Path(name)
    job: dict[str, Any] = read_json(place / "job.json")
    local = int(os.environ["LOCAL_RANK"])
    if job["on_gpus"]:
        torch.cuda.set_device(local)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, cores() // int(os.environ["LOCAL_WORLD_SIZE"])))
    if job["machines"] == 1:
        for library in ("GLOO", "NCCL"):
            os.environ.setdefault(f"{library}_SOCKET_IFNAME", _loopback())
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    dist.init_process_group(
        "nccl" if job["on_gpus"] else "gloo",
        store=dist.PrefixStore(f"{name}/processes", dist.TCPStore(*address, is_master=False)),
        rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]),
    )  # fmt: skip
    if distributed.rank() > 0:
        logging.disable()
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  progress is the first's
    else:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        _call(place, job, local)
    except UserError as error:
        write_json(place / "mistake.json", str(error))
        raise SystemExit(1) from error
    finally:
        dist.destroy_process_group()


def _loopback() -> str:
    """Name the loopback interface."""
    return next(name for _, name in socket.if_nameindex() if name in ("lo", "lo0"))


def _named(name: str) -> Any:
    """Find a function, or a class of settings, by ``module:name``."""
    module, _, name = name.partition(":")
    return getattr(importlib.import_module(module), name)


def check_function(name: str) -> None:
    """Check that a machine that joins may call a function: it is one of this package.

    Raises:
        UserError: It is not.
    """
    if name.partition(":")[0].partition(".")[0] != PACKAGE:
        raise UserError(f"function={name}: expected a function of {PACKAGE}. Nothing was called.")


def _call(place: Path, job: dict[str, Any], local: int) -> None:
    function = _named(job["function"])
    arguments = [_unpack(each) for each in job["arguments"]]
    if job["on_gpus"]:
        arguments = [torch.device("cuda", local) if isinstance(each, torch.device) else each
                     for each in arguments]  # fmt: skip
    logged: dict[str, Any] = {"on_log": None} if job["logs"] else {}
    if job["logs"] and distributed.rank() == 0:
        rows = open(place / "rows.jsonl", "a")  # noqa: SIM115  until the process ends

        def on_log(name: str, step: int, row: Row) -> None:
            rows.write(json.dumps([name, step, row]) + "\n")
            rows.flush()

        logged = {"on_log": on_log}
    with distributed.in_parts(job["parts"]):
        result = function(*arguments, **logged)
    if distributed.rank() == 0:
        write_json(place / "result.json", _pack(result, place))


def _pack(value: Any, place: Path) -> Any:
    """Make a value JSON-able; models and arrays are files."""
    if isinstance(value, Model):
        file = _free(place, ".safetensors")
        value.save(file)
        return {"model": str(file)}
    if isinstance(value, np.ndarray):
        return {"array": _as_file(value, place)}
    if isinstance(value, Settings):
        kind = type(value)
        return {"settings": [f"{kind.__module__}:{kind.__name__}", value.model_dump(mode="json")]}
    if isinstance(value, Path):
        return {"path": str(value.absolute())}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if isinstance(value, dict):
        return {"dict": [[key, _pack(each, place)] for key, each in value.items()]}
    if isinstance(value, tuple | list):
        return {type(value).__name__: [_pack(each, place) for each in value]}
    return value


def _unpack(packed: Any) -> Any:
    """Make the value that :func:`_pack` was given."""
    if not isinstance(packed, dict):
        return packed
    ((kind, content),) = packed.items()
    if kind == "settings":
        name, values = content
        return _named(name)(**values)
    made: dict[str, Callable[[Any], Any]] = {
        "model": lambda file: Model.load(Path(file)),
        "array": lambda file: np.load(file, mmap_mode="c"),
        "path": Path,
        "device": torch.device,
        "dict": lambda pairs: {key: _unpack(each) for key, each in pairs},
        "tuple": lambda each: tuple(map(_unpack, each)),
        "list": lambda each: list(map(_unpack, each)),
    }
    return made[kind](content)


def _as_file(array: np.ndarray, place: Path) -> str:
    """The file that an array is a map of, or one that it is written to."""
    if isinstance(array, np.memmap) and str(array.filename).endswith(".npy"):
        path = Path(str(array.filename)).absolute()
        if np.load(path, mmap_mode="r").shape == array.shape:  # or it is a part of the file
            return str(path)
    file = _free(place, ".npy")
    np.save(file, array)
    return str(file)


def _free(place: Path, ending: str) -> Path:
    return place / f"{len(list(place.iterdir()))}{ending}"


@contextlib.contextmanager
def _rows_passed_on(path: Path, on_log: Log | None) -> Iterator[list[BaseException]]:
    """Hand the rows that the first process writes to a callback of this one, as they come.

    What it raises is in the list that this gives, and a SIGTERM ends the launch.
    """
    raised: list[BaseException] = []
    if on_log is None:
        yield raised
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
        try:
            while not ended.wait(LOOK):
                pass_on()
        except BaseException as error:
            raised.append(error)
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield raised
    finally:
        ended.set()
        thread.join()
        if not raised:
            pass_on()


if __name__ == "__main__":
    _work(sys.argv[1], int(sys.argv[2]))
