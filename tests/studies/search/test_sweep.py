import json

import pytest
from click import ClickException
from click.testing import CliRunner

from submanifold import cli
from submanifold.studies.search.sweep import sweep

PARAMS = {"method": "PR-D", "device": "cpu"}


@pytest.fixture(scope="module")
def swept(new_project):
    project = new_project()
    with project.session():
        page = sweep("stage_1.dim", [12, 24], PARAMS, project.path, "test")
    return project, page


def sweep_table(project, **params):
    return project.catalog(sweep="stage_1.dim", **PARAMS | params).load("sweep_table")


def test_a_sweep_runs_each_value_and_plots_them(swept):
    project, page = swept
    table = sweep_table(project)
    assert list(table["value"]) == list(table["dim"]) == [12, 24]
    for value, row in zip((12, 24), table.to_dict("records"), strict=True):
        catalog = project.catalog(stage_1={"dim": value}, **PARAMS)
        metrics = catalog.load("metrics")
        assert row["bpd"] == pytest.approx(metrics["bits_per_dim"]["value"])
        assert row["mse_low"] == pytest.approx(metrics["mse"]["low"])
        run = project.mlflow_client.get_run(row["run"])
        assert run.data.tags["submanifold.sweep.photos-PR-D-stage_1.dim"] == "true"
    assert page.name == "photos-PR-D-stage_1.dim.html"
    assert "plotly" in page.read_text()
    figure = json.loads(page.with_suffix(".json").read_text())
    assert figure["data"]


def test_a_continued_sweep_runs_only_new_values(swept):
    project, _ = swept
    before = [run.info.run_id for run in project.mlflow_runs()]
    with project.session():
        sweep("stage_1.dim", [24, 48], PARAMS, project.path, "test")
    new = [run for run in project.mlflow_runs() if run.info.run_id not in before]
    assert [run.info.run_name.partition("PR-D")[1:] for run in new] == [("PR-D", "-3"), ("", "")]
    assert new[-1].info.run_name == "photos-sweep"
    assert list(sweep_table(project)["value"]) == [12, 24, 48]


def test_sweeps_of_other_files_are_separate(project):
    rows = "x,y\n" + "".join(f"{n},{n * n}\n" for n in range(99))
    paths = [project.path / name for name in ("a.csv", "b.csv")]
    for path in paths:
        path.write_text(rows)
    given = {"sweep": "stage_1.dim", "dataset": "table"}
    files = [project.catalog(**given, data={"path": str(path)})["sweep_table"]._filepath
             for path in paths]  # fmt: skip
    assert files[0] != files[1]


@pytest.mark.parametrize(("arguments", "message"), [
    (["stage_1.delt", "1"], "stage_1.delt is not a setting"),
    (["stage_1.dim", "12", "999"], "999"),
    (["phase_1.reconstruction.delta", "0"], "delta"),
    (["stage_1.dim", "12", "[1"], "'[1' cannot be read as YAML"),
    (["stage_1.dim", "12", "{a: 1}"], "'{a: 1}' is not one value"),
])  # fmt: skip
def test_mistakes_in_a_sweep_are_reported_before_any_run(project, monkeypatch, arguments, message):
    monkeypatch.chdir(project.path)
    given = ["sweep", *arguments, "--env=test", "--params=method=PR-D,device=cpu"]
    with project.session(), pytest.raises((ClickException, SystemExit)) as caught:
        CliRunner().invoke(cli.cli, given, standalone_mode=False, catch_exceptions=False)
    assert message in str(caught.value)
    assert not (project.path / "data/06_models").exists()


def test_a_missing_sweep_is_an_error(project):
    with pytest.raises(
        ClickException, match=r"expected a sweep of stage_1.dim for H-MM on photos, got none"
    ):
        project.run("sweep", sweep="stage_1.dim")
