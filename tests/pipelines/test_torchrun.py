"""Several processes, which torchrun starts."""

import os
import signal
import socket
from pathlib import Path

import pytest

from conftest import wait_for

pytestmark = pytest.mark.fault

PARAMS = "--params=device=cpu,method=nested,training.precision=float32"
NESTED = {"method": "nested", "training": {"precision": "float32"}}  # not the machine's own


def start(project, *options, params=PARAMS):
    command = ("-m", "submanifold", "run", "--pipeline=hierarchical", "--env=test", params)
    return project.start(*options, *command, module="torch.distributed.run")


def finish(*processes):
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes), outputs
    return outputs


@pytest.fixture(scope="module")
def one(new_project):
    """One process that adds the same parts of the gradients.

    Those of initialized modules are rounding errors at the first step, and Adam amplifies them.
    """
    training = NESTED["training"] | {"grad_accumulation_steps": 2}
    return new_project().run(**NESTED | {"training": training})


def assert_same_figures(project, one):
    metrics, expected = project.catalog(**NESTED).load("metrics"), one.load("metrics")
    # the bits are those of the training; axes of nearly equal eigenvalues amplify rounding errors
    for name, tolerance in (("bits_per_dim", 1e-6), ("mse", 1e-3)):
        assert metrics[name]["value"] == pytest.approx(expected[name]["value"], rel=tolerance)


def test_two_ranks_have_the_figures_of_one(new_project, one):
    project = new_project()
    [output] = finish(start(project, "--nproc-per-node=2"))
    assert_same_figures(project, one)
    assert output.count("Completed node: density.train_density") == 1, "only the first rank logs"
    assert len(project.mlflow_runs()) == 1
    # cache keys do not depend on the number of ranks
    assert project.run(**NESTED, only_missing_outputs=True).mlflow is None


def test_two_machines_meet_at_a_rendezvous(new_project, one):
    project = new_project()
    with socket.socket() as server:
        server.bind(("", 0))
        port = server.getsockname()[1]
    rendezvous = ("--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}")
    options = ("--nnodes=2", "--nproc-per-node=1", *rendezvous)
    finish(start(project, *options), start(project, *options))
    assert_same_figures(project, one)


def test_a_rank_that_dies_ends_all_and_the_repeated_command_resumes(new_project):
    project = new_project()
    long = PARAMS + ",density.training.steps=600,density.training.validate_every=20"
    process = start(project, "--nproc-per-node=2", params=long)
    wait_for(project.last_step, process)
    ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(ranks[-1]), signal.SIGKILL)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "SIGKILL" in output or "exitcode: -9" in output
    checkpoint = next((project.path / "data").rglob("last.safetensors")).parent
    finish(start(project, "--nproc-per-node=2", params=long))
    history = next(project.path.glob(f"data/06_models/{checkpoint.name}/history.json")).read_text()
    assert '"steps_trained": 600' not in history, "it goes on from the checkpoint"
