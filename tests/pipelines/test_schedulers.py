"""Runs that a scheduler starts, task by task."""

import os
import subprocess
import sys
import types

import pytest
from click import ClickException
from kedro.io import MemoryDataset

from submanifold.cli import _check_parameters

AROUND = {"prepare_data", "fit_baselines", "finish", "draw_samples", "evaluate", "make_table",
          "write_report"}  # fmt: skip


@pytest.mark.parametrize(("params", "phases"), [
    ({"method": "H-MM"}, 2),
    ({"method": "nested"}, 4),
    ({"method": "PR-D"}, 1),
    ({"method": "H-MM", "dataset": "circle"}, 2),
])  # fmt: skip
def test_each_phase_is_a_task_and_all_that_passes_between_tasks_is_on_disk(project, params, phases):
    from kedro.framework.project import pipelines

    with project.session(**params) as session:
        catalog = session.load_context().catalog
        pipeline = pipelines["hierarchical"]
    groups = {group.name: group for group in pipeline.group_nodes_by("namespace")}
    around = AROUND | ({"compare_with_truth"} if "dataset" in params else set())
    assert groups.keys() == around | {f"phase_{n}" for n in range(1, phases + 1)}
    for n in range(2, phases + 1):
        assert f"phase_{n - 1}" in groups[f"phase_{n}"].dependencies
    passed = pipeline.all_inputs() & pipeline.all_outputs()
    assert passed
    assert not [name for name in passed if isinstance(catalog.get(name), MemoryDataset | None)]


class Task:
    """Stands for Airflow's BashOperator, where there is no Airflow."""

    made: dict = {}  # noqa: RUF012

    def __init__(self, task_id, **settings):
        self.before, self.settings = set(), settings
        self.made[task_id] = self

    def __rrshift__(self, before):
        self.before |= {name for name, task in self.made.items() if task in before}


class Dag:
    """Stands for Airflow's DAG."""

    def __init__(self, **settings):
        self.settings = settings

    def __enter__(self):
        Dag.last = self

    def __exit__(self, *error):
        pass


def test_a_dag_has_a_task_for_each_phase_that_runs_it(new_project, monkeypatch):
    pytest.importorskip("kedro_airflow")
    project = new_project()
    code, output = project.kedro(
        *("airflow", "create", "--env=test", "--pipelines=hierarchical", "--group-by=namespace"),
        *("--jinja-file=conf/airflow.j2", "--target-dir=dags", "--params=schedule=0 6 * * *"),
    )
    assert code == 0, output
    bash = types.SimpleNamespace(BashOperator=Task)
    sdk = types.SimpleNamespace(DAG=Dag, Param=lambda default, **about: default)
    monkeypatch.setitem(sys.modules, "airflow.sdk", sdk)
    for name in ("airflow", "airflow.providers", "airflow.providers.standard"):
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace())
    monkeypatch.setitem(sys.modules, "airflow.providers.standard.operators", bash)
    monkeypatch.setitem(sys.modules, "airflow.providers.standard.operators.bash", bash)
    monkeypatch.setattr(Task, "made", {})
    (file,) = (project.path / "dags").iterdir()
    exec(compile(file.read_text(), str(file), "exec"), {})
    assert Dag.last.settings["dag_id"] == "submanifold-test-hierarchical"
    assert Dag.last.settings["schedule"] == "0 6 * * *"
    assert Task.made.keys() == AROUND | {"phase_1", "phase_2"}
    task = Task.made["phase_2"]
    assert task.before == {"prepare_data", "phase_1"}
    assert task.settings["cwd"] == str(project.path)

    # the command as bash reads it, with what Airflow puts in the environment
    said = task.settings["bash_command"].replace(
        f'"{project.path}/.venv/bin/kedro"', "printf '%s\n'"
    )
    done = subprocess.run(
        ["bash", "-c", said], capture_output=True, text=True, check=True,
        env={**os.environ, "PARAMS": 'method=H-MM,data.path=a "b"'},
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        "run", "--env=test", "--pipelines=hierarchical", "--namespaces=phase_2",
        "--only-missing-outputs", '--params=method=H-MM,data.path=a "b"',
    ]  # fmt: skip


def test_the_commands_of_a_job_are_one_run_of_mlflows(new_project, monkeypatch):
    project = new_project()
    monkeypatch.setenv("SUBMANIFOLD_JOB", "nightly/2026-01-01T00:00:00+00:00")
    first = project.run(until="x_train")
    client, run_id = project.mlflow_client, first.mlflow.info.run_id
    # as a command leaves it that was killed, in a process that is gone by now
    client.set_tag(run_id, "submanifold.pid", "999999999")
    client.update_run(run_id, "RUNNING")
    again = project.run(until="phase_1.model", device="auto")
    assert (again.mlflow.info.run_id, again.mlflow.info.status) == (run_id, "FINISHED")
    assert again.steps == {"phase_1": 12}
    assert again.mlflow.data.params["device"] == "cpu", "as the job has begun"
    assert len(project.mlflow_runs()) == 1

    other = project.run(until="x_train", seed=1).mlflow.info.run_id
    monkeypatch.setenv("SUBMANIFOLD_JOB", "nightly/2026-01-02T00:00:00+00:00")
    next_day = project.run(until="x_train").mlflow.info.run_id
    assert len({run_id, other, next_day}) == len(project.mlflow_runs()) == 3

    monkeypatch.setenv("SUBMANIFOLD_JOB", "tonight's")
    with pytest.raises(ClickException, match="SUBMANIFOLD_JOB=tonight's cannot be a job's name"):
        project.run(until="x_train")


def test_the_parameters_are_checked_in_the_environment_that_kedro_env_names(project, monkeypatch):
    monkeypatch.chdir(project.path)
    command = {"env": None, "conf_source": None, "params": {"phase_2": {"training": {"steps": 5}}}}
    with pytest.raises(ClickException, match=r"phase_2\.training is not a setting"):
        _check_parameters(command)  # by default, phase 2 is a rotation
    monkeypatch.setenv("KEDRO_ENV", "test")
    _check_parameters(command)
