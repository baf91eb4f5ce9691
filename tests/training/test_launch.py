"""Several processes, machines and parts compute what one computes."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import resumable
import torch
import torch.distributed as dist

from submanifold.common import distributed
from submanifold.common.errors import UserError
from submanifold.config.schema import LaunchSettings
from submanifold.data.batches import Batches
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
    arguments = (of or phase(**changes), resumable.MODEL, None, *images(tmp_path), 3, CPU, folder)
    return call(how, train_phase, *arguments, folder=folder, on_log=on_log)


def assert_alike(one, other, rtol=1e-3, atol=1e-3):
    for p, q in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(p, q, rtol=rtol, atol=atol)


def assert_same_losses(one, other):
    for kind in ("train", "valid"):
        for mine, theirs in zip(one[kind], other[kind], strict=True):
            for key in mine.keys() - {"rows_per_second"}:
                within = {"gradient_norm": 1e-3}.get(key, 1e-5)
                if key != "inverse_error":  # which is rounding itself
                    assert mine[key] == pytest.approx(theirs[key], rel=within), (kind, key)


def test_alone_there_is_nothing_to_share():
    rows = torch.arange(6.0)
    assert (distributed.size(), distributed.rank()) == (1, 0)
    assert torch.equal(distributed.share(rows), rows)
    assert torch.equal(distributed.gather(rows), rows)
    assert torch.equal(distributed.drawn(torch.arange, 4), torch.arange(4))
    distributed.average([rows])
    assert torch.equal(rows, torch.arange(6.0))


@pytest.mark.parametrize("count", [1, 5, 64])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_shares_have_every_row_once(count, size, monkeypatch):
    monkeypatch.setattr(distributed, "size", lambda: size)
    rows, shares = torch.arange(count), []
    for number in range(size):
        monkeypatch.setattr(distributed, "rank", lambda number=number: number)
        shares.append(distributed.share(rows))
    assert torch.equal(torch.cat(shares), rows)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """One training by one process, and by two in parts: models, histories, what was logged."""
    folder = tmp_path_factory.mktemp("launch")
    logged = {"one": [], "two": []}

    def log(name):
        return lambda *row: logged[name].append(row)

    one = train(ALONE, folder, "one", log("one"))
    parts = LaunchSettings(processes=2, parts=2)
    two = train(parts, folder, "two", log("two"), recompute=True)
    return folder, one, two, logged


def test_two_processes_have_the_loss_curve_of_one(both):
    _, (one, alone), (two, shared), _ = both
    assert_same_losses(shared, alone)
    assert_alike(two, one)


def test_one_of_them_logs_and_writes(both):
    folder, _, _, logged = both
    assert [row[:2] for row in logged["two"]] == [row[:2] for row in logged["one"]]
    assert {path.name for path in (folder / "two").iterdir()} == {"last.safetensors"}


def with_target(**changes):
    """A weight that dual ascent finds, which every part of a batch takes part in."""
    penalty = {"penalty": "mse", "weight": 10.0, "target": {"mse": 0.01}}
    return PhaseSettings(
        stages=(1,), training=resumable.settings(precision="float32", steps=12, **changes),
        reconstruction=penalty,
    )  # fmt: skip


@pytest.mark.parametrize("of", [phase, with_target])
def test_parts_of_a_batch_have_the_loss_curve_of_the_whole(tmp_path, of):
    one, alone = train(ALONE, tmp_path, "whole", of=of())
    parts, history = train(LaunchSettings(parts=4), tmp_path, "parts", of=of())
    assert_same_losses(history, alone)
    assert_alike(parts, one)


@pytest.mark.slow
def test_bfloat16_works_in_processes_and_parts(tmp_path):
    _, alone = train(ALONE, tmp_path, "one", precision="bfloat16")
    how = LaunchSettings(processes=2, parts=2)
    _, history = train(how, tmp_path, "other", precision="bfloat16")
    for mine, theirs in zip(history["train"], alone["train"], strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=2e-2)


def test_two_processes_rotate_encode_and_measure_what_one_does(tmp_path, both, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(resumable.__file__).parent))  # of the processes
    _, (one, _), _, _ = both
    rows, others = images(tmp_path)
    alone, shared = (
        call(how, resumable.use, one, rows, others, CPU, tmp_path / name, folder=tmp_path)
        for name, how in {"one": ALONE, "two": TWO}.items()
    )
    assert shared["encoded"].shape == (61, 24)
    np.testing.assert_allclose(shared["encoded"], alone["encoded"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(shared["eigenvalues"], alone["eigenvalues"], rtol=1e-3, atol=1e-4)
    for name in ("bits_per_dim", "bits_per_dim_noisy", "mse", "nearest_mse"):
        mine, theirs = (each["measured"][name] for each in (shared, alone))
        assert mine["n"] == theirs["n"] == len(others)
        assert mine["value"] == pytest.approx(theirs["value"], rel=1e-4), name
    known, expected = shared["calibrated"], alone["calibrated"]
    assert known["median"] == pytest.approx(expected["median"], rel=1e-5)
    assert known["count"] == expected["count"]


def test_a_training_goes_on_with_another_number_of_processes(tmp_path, both):
    _, (one, _), _, _ = both

    def stop(name, step, row):
        if step == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(ALONE, tmp_path, "changed", stop)
    two, history = train(TWO, tmp_path, "changed")
    assert history["steps_trained"] == 6
    assert_alike(two, one)


@pytest.mark.slow
def test_another_machine_joins_and_both_train_what_one_does(tmp_path, both):
    _, (one, alone), _, _ = both
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    as_project(tmp_path)
    script = f"""
from pathlib import Path
from submanifold.runs.launch import join
join({address!r}, Path({str(tmp_path)!r}))
"""
    other = subprocess.Popen([sys.executable, "-c", script])
    try:
        how = LaunchSettings(machines=2, address=address)
        two, history = train(how, tmp_path, "machines")
        assert_same_losses(history, alone)
        assert_alike(two, one)
        rows, _ = images(tmp_path)  # a second job
        path = tmp_path / "u.npy"
        encoded = call(how, encode_rows, one, rows, 7, CPU, path, folder=tmp_path)
        assert encoded.shape == (64, 24)
        launch.board(how, tmp_path).end()
        assert other.wait(timeout=30) == 0
    finally:
        other.kill()
        launch.board.cache_clear()


def as_project(path):
    shutil.copy(Path(__file__).parents[2] / "pyproject.toml", path)


def test_a_machine_says_when_the_run_that_it_joined_is_gone(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    script = f"""
from pathlib import Path
from submanifold.common.errors import UserError
from submanifold.runs.launch import join
try:
    join({address!r}, Path({str(tmp_path)!r}))
except UserError as error:
    print(error)
"""
    first = f"""
import time
from pathlib import Path
from submanifold.runs.launch import JOINED, Board
from submanifold.config.schema import LaunchSettings
board = Board(LaunchSettings(machines=2, address={address!r}), Path({str(tmp_path)!r}))
while board.store.add(JOINED, 0) < 1:
    time.sleep(0.1)
print("joined", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", first], stdout=subprocess.PIPE) as run:
        other = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        assert run.stdout.readline() == b"joined\n"
        run.kill()
    said, _ = other.communicate(timeout=30)
    assert f"The run at {address} is gone" in said


@pytest.mark.parametrize("address", ["here", "here:", ":29400", "here:port"])
def test_what_is_no_address_is_refused(address, tmp_path):
    with pytest.raises(UserError, match="Allowed: <host>:<port>"):
        join(address, tmp_path)


def posted(job_of, tmp_path, forge):
    """Join a store in which a job stands that is not of this project."""
    place = tmp_path / "job"
    place.mkdir()
    (place / "job.json").write_text(json.dumps({"function": job_of, "arguments": []}))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    store = dist.TCPStore("localhost", port, is_master=True, wait_for_workers=False)
    store.set("job 1", forge(place))
    join(f"localhost:{port}", tmp_path)


def signed(project, place):
    return launch._sign(launch._secret(project), 1, str(place)) + str(place)


@pytest.mark.parametrize(
    "forge",
    [
        lambda place: f"{place}",
        lambda place: "0" * 64 + f"{place}",
        lambda place: launch._sign(b"another secret", 1, str(place)) + str(place),
    ],
    ids=["unsigned", "zeros", "another secret"],
)
def test_a_job_without_the_projects_signature_is_refused(tmp_path, monkeypatch, forge):
    monkeypatch.setattr(launch, "_launch", lambda *_: pytest.fail("it was called"))
    with pytest.raises(UserError, match=r"signature|not there"):
        posted("os:system", tmp_path, forge)


def test_the_secret_is_for_its_owner_alone(tmp_path):
    assert launch._secret(tmp_path) == launch._secret(tmp_path) != b""
    assert (tmp_path / launch.SECRET).stat().st_mode & 0o777 == 0o600


def test_a_machine_that_joins_calls_functions_of_the_package_only(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "_launch", lambda *_: pytest.fail("it was called"))
    with pytest.raises(UserError, match=r"function=os:system: expected a function of submanifold"):
        posted("os:system", tmp_path, lambda place: signed(tmp_path, place))


def test_processes_of_one_machine_are_reached_by_the_loopback_interface_alone():
    with launch._store(LaunchSettings(processes=2)) as address:
        port = int(address.rpartition(":")[2])
        rows = [
            line.split()
            for name in ("tcp", "tcp6")
            for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
        ]
    _condition_on_noise = [
        row[1] for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "0A"
    ]
    assert _condition_on_noise == [f"0100007F:{port:04X}"]  # 127.0.0.1


def test_folders_of_killed_launches_are_removed(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left, mine, foreign = (
        tmp_path / f"{launch._PREFIX}{ended.pid}-abc",
        tmp_path / f"{launch._PREFIX}{os.getpid()}-abc",
        tmp_path / f".processes-elsewhere-{ended.pid}-abc",
    )
    for each in left, mine, foreign:
        each.mkdir()
    launch._remove_left(tmp_path)
    assert [left.exists(), mine.exists(), foreign.exists()] == [False, True, True]


def test_a_port_that_is_taken_is_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        how = LaunchSettings(machines=2, address=f"localhost:{taken.getsockname()[1]}")
        with pytest.raises(UserError, match=r"launch.address=.* cannot be listened at"):
            launch.Board(how, tmp_path)


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "parts", lambda: 3)
    with pytest.raises(UserError, match=r"16 rows cannot be shared by 1 processes in 3 parts"):
        train(ALONE, tmp_path, "three")


def test_a_training_that_fails_says_why(tmp_path):
    with pytest.raises(UserError, match=r"Lower training.learning_rate"):
        train(TWO, tmp_path, "wild", learning_rate=1e30, clip=None)


def test_a_process_that_dies_ends_all_with_a_message_and_loses_nothing(tmp_path, monkeypatch):
    killed = []

    def kill(name, step, row):
        if "valid.loss" in row and not killed:
            children = os.popen(f"ps -o pid= --ppid {os.getpid()}").read().split()
            workers = [int(pid) for pid in children if is_worker(pid)]
            killed.append(workers[-1])
            os.kill(killed[0], signal.SIGKILL)

    def is_worker(pid):
        try:
            return b"submanifold.runs.launch" in Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False

    monkeypatch.setattr(launch, "LOOK", 0.01)
    with pytest.raises(UserError, match="give the command again to go on"):
        train(TWO, tmp_path, "dies", kill, validate_every=6, steps=5000)
    assert killed
    assert (tmp_path / "dies" / "last.safetensors").exists()


def test_what_the_callback_raises_ends_all(tmp_path, monkeypatch):
    def stop(name, step, row):
        if "valid.loss" in row:
            raise ZeroDivisionError

    monkeypatch.setattr(launch, "LOOK", 0.01)
    with pytest.raises(ZeroDivisionError):
        train(TWO, tmp_path, "stopped", stop, validate_every=6, steps=5000)
    assert list((tmp_path / "stopped").glob("*.safetensors"))  # the last, or the one before


def test_what_is_passed_comes_back_as_it_was(tmp_path):
    rows, _ = images(tmp_path)
    values = {"rows": rows, 3: (1, [None, 0.1, Path("/a"), CPU]), "how": phase(), "part": rows[3:9]}
    found = launch._unpack(launch._pack(values, tmp_path))
    assert found["how"] == values["how"]
    assert found[3] == (1, [None, 0.1, Path("/a"), CPU])
    assert np.array_equal(found["rows"], rows)
    assert np.array_equal(found["part"], rows[3:9])
    assert next(iter(Batches(found["rows"], 4))).shape == (4, 3, 8, 8)
