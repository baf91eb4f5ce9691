"""Several processes, machines and accumulated gradients compute what one process computes."""

import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import resumable
import torch
import torch.distributed as dist

from submanifold.common.errors import UserError
from submanifold.config.schema import LaunchSettings
from submanifold.runs import launch
from submanifold.runs.launch import call, join
from submanifold.training.phases import PhaseSettings, encode_rows, train_phase

CPU = torch.device("cpu")
ALONE, TWO = LaunchSettings(), LaunchSettings(processes=2)


def phase(**changes):
    settings = resumable.settings(**{"precision": "float32", "steps": 12, **changes})
    return PhaseSettings(
        stages=(1,), input_noise=0.01, training=settings,
        reconstruction={"penalty": "mse", "weight": 10.0, "random_dim": 2.0},
    )  # fmt: skip


def images(tmp_path):
    """A map of a file, and an array that is none."""
    rows = np.random.default_rng(0).integers(0, 256, (84, 3, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "train.npy", rows[:64])
    return np.load(tmp_path / "train.npy", mmap_mode="c"), rows[64:]


def train(how, tmp_path, name, on_log=None, of=None, **changes):
    folder = tmp_path / name
    arguments = (of or phase(**changes), resumable.MODEL, None, *images(tmp_path), 3, CPU, folder,
                 "phase_1", how.grad_accumulation_steps)  # fmt: skip
    return call(how, train_phase, *arguments, folder=folder, on_log=on_log)


def assert_close(one, other, rtol=1e-3, atol=1e-3):
    for p, q in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(p, q, rtol=rtol, atol=atol)


def assert_same_losses(one, other):
    for kind in ("train", "valid"):
        for mine, theirs in zip(one[kind], other[kind], strict=True):
            for key in mine.keys() - {"rows_per_second"}:
                within = {"gradient_norm": 1e-3}.get(key, 1e-5)
                if key != "inverse_error":  # which is rounding itself
                    assert mine[key] == pytest.approx(theirs[key], rel=within), (kind, key)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """One training by one process, and by two in parts: models, histories, what was logged."""
    folder = tmp_path_factory.mktemp("launch")
    logged = {"one": [], "two": []}

    def log(name):
        return lambda *row: logged[name].append(row)

    one = train(ALONE, folder, "one", log("one"))
    parts = LaunchSettings(processes=2, grad_accumulation_steps=2)
    two = train(parts, folder, "two", log("two"), activation_checkpointing=True)
    return folder, one, two, logged


def test_two_processes_reproduce_the_loss_curve_of_one(both):
    _, (one, alone), (two, shared), _ = both
    assert_same_losses(shared, alone)
    assert_close(two, one)


def test_only_the_first_process_logs_and_writes(both):
    folder, _, _, logged = both
    assert [row[:2] for row in logged["two"]] == [row[:2] for row in logged["one"]]
    assert {path.name for path in (folder / "two").iterdir()} == {"last.safetensors"}


def test_gradient_accumulation_reproduces_the_loss_curve(tmp_path):
    one, alone = train(ALONE, tmp_path, "one")
    parts, history = train(LaunchSettings(grad_accumulation_steps=4), tmp_path, "parts")
    assert_same_losses(history, alone)
    assert_close(parts, one)


@pytest.mark.slow
def test_bfloat16_works_with_processes_and_accumulation(tmp_path):
    _, alone = train(ALONE, tmp_path, "one", precision="bfloat16")
    how = LaunchSettings(processes=2, grad_accumulation_steps=2)
    _, history = train(how, tmp_path, "other", precision="bfloat16")
    for mine, theirs in zip(history["train"], alone["train"], strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=2e-2)


def test_two_processes_rotate_encode_and_measure_as_one(tmp_path, both, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(resumable.__file__).parent))  # of the processes
    _, (one, _), _, _ = both
    rows, others = images(tmp_path)
    alone, shared = (
        call(how, resumable.use, one, rows, others, CPU, tmp_path / name, folder=tmp_path)
        for name, how in {"one": ALONE, "two": TWO}.items()
    )
    assert shared["encoded"].shape == (61, 24)
    np.testing.assert_allclose(shared["encoded"], alone["encoded"], rtol=1e-4, atol=1e-4)
    # of equal probes; axes with nearly equal eigenvalues depend on rounding
    mine, theirs = (each["eigenvalues"].cumsum() for each in (shared, alone))
    assert mine[-1] == pytest.approx(theirs[-1], rel=1e-4)
    np.testing.assert_allclose(mine[47::48], theirs[47::48], rtol=0.05)
    for name in ("bits_per_dim", "bits_per_dim_noisy", "mse", "nearest_mse"):
        mine, theirs = (each["measured"][name] for each in (shared, alone))
        assert mine["n"] == theirs["n"] == len(others)
        assert mine["value"] == pytest.approx(theirs["value"], rel=1e-4), name
    known, expected = shared["calibrated"], alone["calibrated"]
    assert known["median"] == pytest.approx(expected["median"], rel=1e-5)
    assert known["count"] == expected["count"]


def test_training_continues_with_another_number_of_processes(tmp_path, both):
    _, (one, _), _, _ = both

    def stop(name, step, row):
        if step == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(ALONE, tmp_path, "changed", stop)
    two, history = train(TWO, tmp_path, "changed")
    assert history["steps_trained"] == 6
    assert_close(two, one)


JOIN = """
from pathlib import Path
from submanifold.runs.launch import join
join({!r}, Path("{}"))
"""


def free_address():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


@pytest.mark.slow
def test_two_machines_train_the_model_of_one(tmp_path, both):
    _, (one, alone), _, _ = both
    address = free_address()
    shutil.copy(Path(__file__).parents[2] / "pyproject.toml", tmp_path)
    other = subprocess.Popen([sys.executable, "-c", JOIN.format(address, tmp_path)])
    try:
        how = LaunchSettings(machines=2, address=address)
        two, history = train(how, tmp_path, "machines")
        assert_same_losses(history, alone)
        assert_close(two, one)
        rows, _ = images(tmp_path)  # a second job
        path = tmp_path / "u.npy"
        encoded = call(how, encode_rows, one, rows, 7, CPU, path, folder=tmp_path)
        assert encoded.shape == (64, 24)
        launch.job_board.cache_clear()  # closes the store
        assert other.wait(timeout=30) == 0
    finally:
        other.kill()


def test_join_ends_when_the_run_ends(tmp_path):
    address = free_address()
    run = f"""
import time
from pathlib import Path
from submanifold.runs.launch import JOINED, JobBoard
from submanifold.config.schema import LaunchSettings
board = JobBoard(LaunchSettings(machines=2, address={address!r}), Path({str(tmp_path)!r}))
while board.store.add(JOINED, 0) < 1:
    time.sleep(0.1)
"""
    other = subprocess.Popen([sys.executable, "-c", JOIN.format(address, tmp_path)])
    subprocess.run([sys.executable, "-c", run], check=True, timeout=60)
    assert other.wait(timeout=30) == 0


@pytest.mark.parametrize("address", ["here", "here:", ":29400", "here:port"])
def test_invalid_address_is_rejected(address, tmp_path):
    with pytest.raises(UserError, match="ADDRESS: expected <host>:<port>"):
        join(address, tmp_path)


def join_forged(function, tmp_path, signature):
    """Join a store with a job that the project did not sign."""
    place = tmp_path / "job"
    place.mkdir()
    (place / "job.json").write_text(json.dumps({"function": function, "arguments": []}))
    address = free_address()
    store = dist.TCPStore(
        *address.split(":")[:1], int(address.split(":")[1]), is_master=True, wait_for_workers=False
    )
    store.set("job 1", signature(place) + str(place))
    join(address, tmp_path)


@pytest.mark.parametrize(
    "signature",
    [
        lambda place: "",
        lambda place: "é" * 64,
        lambda place: "0" * 64,
        lambda place: launch._sign(b"another secret", 1, place),
    ],
    ids=["none", "not ASCII", "zeros", "another secret"],
)
def test_job_without_the_projects_signature_is_rejected(tmp_path, monkeypatch, signature):
    monkeypatch.setattr(launch, "_run_processes", lambda *_: pytest.fail("it was called"))
    with pytest.raises(UserError, match=r"signature|does not exist"):
        join_forged("submanifold.runs.launch:join", tmp_path, signature)


def test_secret_is_readable_only_by_its_owner(tmp_path):
    assert launch._secret(tmp_path) == launch._secret(tmp_path) != b""
    assert (tmp_path / launch.SECRET).stat().st_mode & 0o777 == 0o600


def test_joined_machine_calls_only_functions_of_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "_run_processes", lambda *_: pytest.fail("it was called"))
    with pytest.raises(UserError, match=r"expected one of submanifold, got os:system"):
        join_forged("os:system", tmp_path, lambda p: launch._sign(launch._secret(tmp_path), 1, p))


def listening_addresses(device):
    """Return the local addresses on which this process accepts connections."""
    inodes = {
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if Path(f"/proc/self/fd/{fd}").is_symlink()
    }
    rows = [line.split() for name in ("tcp", "tcp6")
            for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]  # fmt: skip
    return [
        row[1].partition(":")[0]
        for row in rows
        if row[3] == "0A" and f"socket:[{row[9]}]" in inodes
    ]


def test_processes_of_one_machine_listen_on_the_loopback_interface_only(tmp_path):
    found = call(TWO, listening_addresses, CPU, folder=tmp_path)
    assert {*found} == {"0100007F"}  # 127.0.0.1


def test_temporary_folders_of_killed_processes_are_removed(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left, mine, foreign = (
        tmp_path / f"{launch.FOLDER}{ended.pid}-abc",
        tmp_path / f"{launch.FOLDER}{os.getpid()}-abc",
        tmp_path / f".processes-elsewhere-{ended.pid}-abc",
    )
    for each in left, mine, foreign:
        each.mkdir()
    launch._remove_abandoned(tmp_path)
    assert [left.exists(), mine.exists(), foreign.exists()] == [False, True, True]


def test_used_port_is_reported(tmp_path):
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        how = LaunchSettings(machines=2, address=f"localhost:{taken.getsockname()[1]}")
        with pytest.raises(UserError, match=r"launch.address: expected .* a free port"):
            launch.JobBoard(how, tmp_path)


def test_batch_that_cannot_be_divided_is_rejected(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"training\.batch_size: expected a multiple of .* = 3"):
        train(LaunchSettings(grad_accumulation_steps=3), tmp_path, "three")


def test_error_of_a_process_is_raised(tmp_path):
    with pytest.raises(UserError, match=r"Lower training.learning_rate"):
        train(TWO, tmp_path, "wild", learning_rate=1e30, clip=None)


def test_dead_process_ends_the_others_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    killed = []

    def kill(name, step, row):
        if "valid.loss" in row and not killed:
            killed.append(multiprocessing.active_children()[-1])
            killed[0].kill()

    monkeypatch.setattr(launch, "POLL", 0.01)
    with pytest.raises(UserError, match="repeat the command to continue"):
        train(TWO, tmp_path, "dies", kill, validate_every=6, steps=5000)
    assert killed
    assert multiprocessing.active_children() == []
    assert (tmp_path / "dies" / "last.safetensors").exists()


def test_exception_of_the_callback_ends_the_processes(tmp_path, monkeypatch):
    def stop(name, step, row):
        if "valid.loss" in row:
            raise ZeroDivisionError

    monkeypatch.setattr(launch, "POLL", 0.01)
    with pytest.raises(ZeroDivisionError):
        train(TWO, tmp_path, "stopped", stop, validate_every=6, steps=5000)
    assert list((tmp_path / "stopped").glob("*.safetensors"))  # the last, or the one before
