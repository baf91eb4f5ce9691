"""Functions that several processes call as one (:mod:`submanifold.team`), on one machine or more.

torch's elastic launcher starts the processes and watches over them. What they are told and what
comes of it are files in a folder that all machines see, so that nothing is unpickled.
"""

import atexit
import contextlib
import functools
import importlib
import json
import logging
import os
import signal
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
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.utils.distributed import get_free_port
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from submanifold import team
from submanifold.errors import UserError
from submanifold.experiment.experiment import LaunchSettings
from submanifold.files import read_json, write_json
from submanifold.manifold.model import Model
from submanifold.processes import cores, end_with
from submanifold.training.trainer import Row
from submanifold.validation import Settings

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
LOOK = 0.5  # seconds between looks for new rows, and for a new job
PATIENCE = timedelta(days=1)  # for other machines, which a scheduler may start later
JOINED, ENDED = "joined", "ended"

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
        function: Of this package; its processes share rows by :mod:`submanifold.team`.
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
        with team.in_parts(launch.parts):
            return function(*arguments, **logged)
    devices = [each for each in arguments if isinstance(each, torch.device)]
    on_gpus = devices[0].type == "cuda"
    if on_gpus and torch.cuda.device_count() < launch.processes:
        raise UserError(
            f"launch.processes={launch.processes}, but there are {torch.cuda.device_count()} GPUs. "
            "Allowed: one for each process. Change it with --params=launch.processes=<number>."
        )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.absolute(), prefix=".processes-") as name:
        place = Path(name)
        job = {
            "function": f"{function.__module__}:{function.__qualname__}",
            "arguments": [_pack(each, place) for each in arguments],
            "on_gpus": on_gpus, "logs": on_log is not None,
            "processes": launch.processes, "machines": launch.machines, "parts": launch.parts,
            "address": launch.address or f"localhost:{get_free_port()}",
        }  # fmt: skip
        write_json(place / "job.json", job)
        if launch.machines > 1:
            board(launch).post(place)
        with _rows_passed_on(place / "rows.jsonl", on_log) as ended:
            try:
                _launch(place, job, machine=0)
            except SystemExit:
                if ended:
                    raise ended[0] from None
                raise
        return _unpack(read_json(place / "result.json"))


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
    """What the first machine tells the others: a store of torch's on its address.

    Args:
        launch: The address, and how many machines there are.
    """

    def __init__(self, launch: LaunchSettings) -> None:
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
        self.jobs += 1
        self.store.set(f"job {self.jobs}", str(place))

    def end(self) -> None:
        """Let the others go."""
        with contextlib.suppress(dist.DistError, RuntimeError):
            self.store.set(f"job {self.jobs + 1}", "")
            deadline = time.monotonic() + 10 * LOOK
            while self.store.add(ENDED, 0) < self.store.add(JOINED, 0) and (
                time.monotonic() < deadline
            ):
                time.sleep(LOOK / 5)


@functools.cache
def board(launch: LaunchSettings) -> Board:
    """The board of this process's run."""
    return Board(launch)


def join(address: str) -> None:
    """Compute for the run of another machine, until it has ended.

    Args:
        address: Its ``launch.address``.

    Raises:
        UserError: The address is none, or the run is gone.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"{address} is no address. Allowed: <host>:<port>, as launch.address says.")
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
            place = Path(store.get(f"job {number}").decode())
            if place == Path():
                store.add(ENDED, 1)
                return
            job = read_json(place / "job.json")
            if job is None:
                raise UserError(f"{place} is not there: all machines need the same file system.")
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
    end_with(parent)
    place = Path(name)
    job: dict[str, Any] = read_json(place / "job.json")
    local = int(os.environ["LOCAL_RANK"])
    if job["on_gpus"]:
        torch.cuda.set_device(local)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, cores() // int(os.environ["LOCAL_WORLD_SIZE"])))
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    dist.init_process_group(
        "nccl" if job["on_gpus"] else "gloo",
        store=dist.PrefixStore(f"{name}/processes", dist.TCPStore(*address, is_master=False)),
        rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]),
    )  # fmt: skip
    if team.rank() > 0:
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


def _call(place: Path, job: dict[str, Any], local: int) -> None:
    module, _, function = job["function"].partition(":")
    arguments = [_unpack(each) for each in job["arguments"]]
    if job["on_gpus"]:
        arguments = [torch.device("cuda", local) if isinstance(each, torch.device) else each
                     for each in arguments]  # fmt: skip
    logged: dict[str, Any] = {"on_log": None} if job["logs"] else {}
    if job["logs"] and team.rank() == 0:
        rows = open(place / "rows.jsonl", "a")  # noqa: SIM115  until the process ends

        def on_log(name: str, step: int, row: Row) -> None:
            rows.write(json.dumps([name, step, row]) + "\n")
            rows.flush()

        logged = {"on_log": on_log}
    with team.in_parts(job["parts"]):
        result = getattr(importlib.import_module(module), function)(*arguments, **logged)
    if team.rank() == 0:
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
        return {"settings": [type(value).__module__, type(value).__name__,
                             value.model_dump(mode="json")]}  # fmt: skip
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
        module, name, values = content
        return getattr(importlib.import_module(module), name)(**values)
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
