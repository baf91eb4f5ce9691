from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pandas as pd
import pytest
from click import ClickException
from click.testing import CliRunner
from omegaconf import OmegaConf

from submanifold import cli
from submanifold.common.errors import UserError
from submanifold.studies import reproduce
from submanifold.studies.experiments import CachedRun, run_all
from submanifold.studies.pages import write
from submanifold.studies.reproduce import TARGETS

# the paper's methods, on the data and in the sizes of the test environment
SMALL = {"dataset": "photos", "stage_1.dim": 24, "stage_2.dim": 12, "device": "cpu"}
PARAMS = "--params=" + ",".join(f"{name}={value}" for name, value in SMALL.items())


def make(project, *names, seeds=1, **params):
    with project.session():
        planned = reproduce.plan(names, project.path, "test", seeds, SMALL | params)
        return planned, reproduce.reproduce(planned, project.path, "test")


@pytest.fixture(scope="module")
def table_4(new_project):
    project = new_project()
    return project, *make(project, "table-4")


def test_a_table_is_written_as_csv_markdown_and_html(table_4):
    project, planned, (page,) = table_4
    folder = project.path / "data/08_reporting/paper/test/table-4"
    assert page == folder / "table-4.html"
    results = pd.read_csv(folder / "table-4.csv").set_index(["method", "metric"])
    for method, (run,) in planned["table-4"].items():
        bpd = run.load("metrics")["bits_per_dim"]["value"]
        assert results.loc[(method, "bpd"), "value"] == pytest.approx(bpd)
        assert results.loc[(method, "bpd"), "n_test"] == 64
    text = (folder / "table-4.md").read_text()
    assert "62.72" in text, "the paper's FID"
    assert "stage_1.flow.width" in text, "a setting that differs from the paper's"
    assert "H-MH*" in page.read_text()


def test_methods_with_the_same_first_stage_share_its_training(table_4):
    project, planned, _ = table_4
    one, other, control = (
        planned["table-4"][method][0].configuration.artifact_keys
        for method in ("H-MM*", "H-MH*", "Glow")
    )
    assert one["stage_1"] == other["stage_1"]
    assert one["stage_2"] != other["stage_2"]
    models = project.path / "data/06_models"
    folders = [*models.glob("photos-stage_1-*"), *models.glob("photos-density-*")]
    assert {folder.name for folder in folders} == {one["stage_1"], control["density"]}


def test_finished_runs_are_not_repeated(table_4):
    project, planned, (page,) = table_4
    before = len(project.mlflow_runs())
    page.unlink()
    assert make(project, "table-4")[1] == [page]
    assert page.exists()
    with project.session():
        assert set(reproduce.state(planned)["state"]) == {"finished"}
    *others, run = project.mlflow_runs()
    assert len(others) == before, "one more, that of the table"
    assert (run.info.run_name, run.info.status) == ("table-4", "FINISHED")
    names = {each.path for each in project.mlflow_client.list_artifacts(run.info.run_id)}
    assert names == {"table-4.md", "table-4.csv", "table-4.html"}


def test_runs_that_need_a_model_only_are_not_evaluated(new_project):
    project = new_project()
    with project.session():
        trained = CachedRun("trained", {}, project.path, "test", evaluated=False)
        for name, value in {**SMALL, "method": "PR-D"}.items():
            trained = trained.changed(name, value)
        run_all([trained])
        assert trained.is_finished
        assert not trained.catalog.exists("metrics")
        evaluated = replace(trained, evaluated=True)
        assert not evaluated.is_finished
        for runs in ([trained, evaluated], [evaluated, trained]):
            assert list(reproduce.unique(runs).values()) == [evaluated]


@pytest.mark.parametrize(
    ("options", "text"),
    [([], "no recorded time: add --time"), (["--time"], "and from a few steps timed now")],
)
def test_a_dry_run_lists_states_and_times_trainings_on_request(table_4, monkeypatch, options, text):
    project, _, _ = table_4
    monkeypatch.chdir(project.path)
    arguments = ["reproduce", "table-4", "figure-6", "--env=test", "--dry-run", PARAMS, *options]
    with project.session():
        result = CliRunner().invoke(cli.cli, arguments)
    assert result.exit_code == 0, result.output
    lines = {line.partition(",")[0]: line for line in result.output.splitlines()}
    assert "finished" in lines["lsun_bedroom-H-MM-star-2000-1000"]
    assert "to train" in lines["celeba-EE-M-500-100"]
    assert ("unknown" in lines["celeba-EE-M-500-100"]) == (not options)
    assert text in result.output


def test_a_dry_run_reads_the_configuration_files_once(project, monkeypatch):
    """Parsing them for each of 371 experiments would take minutes."""
    read = []
    load = OmegaConf.load
    monkeypatch.setattr(OmegaConf, "load", lambda file: read.append(file) or load(file))
    with project.session():
        table = reproduce.state(reproduce.plan(["table-1", "table-2"], project.path, "test"))
    assert len(table) > 10
    assert len(read) < 10


def test_a_dry_run_shows_the_error_of_runs_with_missing_data(project):
    with project.session():
        planned = reproduce.plan(["table-1", "table-3"], project.path, "test")
        states = reproduce.state(planned).set_index("experiment")["state"]
        assert reproduce.finished(planned, project.path) == {}
    rooms = states.index.str.startswith("lsun_bedroom")
    assert states[rooms].str.contains("path").all()
    assert set(states[~rooms]) == {"to download and train"}


def test_unfinished_runs_can_be_left_out(table_4, monkeypatch):
    project, planned, _ = table_4
    with project.session():
        more = reproduce.plan(["table-4", "figure-6"], project.path, "test", 3, SMALL)
        left = reproduce.finished(more, project.path)
        monkeypatch.chdir(project.path)
        given = ["reproduce", "figure-6", "--env=test", "--finished-only", PARAMS]
        result = CliRunner().invoke(cli.cli, given)
    assert left.keys() == {"table-4"}
    assert left["table-4"]["H-MM*"][0].key == planned["table-4"]["H-MM*"][0].key
    assert len(left["table-4"]["H-MM*"]) < 3
    assert result.exit_code == 1
    assert "figure-6" in result.output


def test_finished_only_shows_recorded_results(new_project):
    project = new_project()
    record = project.path / TARGETS["related"].record
    record.parent.mkdir(parents=True)
    columns = {"data": "circle", "row": "two charts", "seed": 0, "low": 1.0, "high": 2.0}
    pd.DataFrame([
        {**columns, "measure": name, "value": 1.5}
        for name in ("divergence", "nearest_distance", "data_distance", "seconds")
    ]).to_csv(record, index=False)  # fmt: skip
    with project.session():
        planned = reproduce.finished(
            reproduce.plan(["related"], project.path, "test"), project.path
        )
        (page,) = reproduce.reproduce(planned, project.path, "test")
    assert "1.50 [1.00, 2.00]" in page.with_suffix(".md").read_text()


def test_a_figure_of_samples_has_a_panel_for_each_temperature(table_4):
    project, _, _ = table_4
    _, (page,) = make(project, "figure-9")
    assert {path.name for path in page.parent.iterdir()} == {
        "figure-9.md", "figure-9.html", "figure-9.png", "figure-9.pdf",
        "figure-9-2.png", "figure-9-2.pdf",
    }  # fmt: skip
    assert page.read_text().count("data:image/png;base64") == 2


def test_several_seeds_are_averaged_and_take_as_long_as_the_first(table_4, monkeypatch):
    project, _, _ = table_4
    monkeypatch.setattr(reproduce, "phase_cost", None)
    with project.session():
        planned = reproduce.plan(["table-4"], project.path, "test", 2, SMALL)
        states = reproduce.state(planned, timed=True)
        assert (states.loc[states["state"] == "to train", "hours"] > 0).all()
        assert not states["unknown"].any()
        planned["table-4"] = {"H-MM*": planned["table-4"]["H-MM*"]}
        reproduce.reproduce(planned, project.path, "test")
    folder = project.path / "data/08_reporting/paper/test/table-4"
    results = pd.read_csv(folder / "table-4.csv").set_index(["method", "metric"])
    values = [run.load("metrics")["mse"]["value"] for run in planned["table-4"]["H-MM*"]]
    assert results.loc[("H-MM*", "mse"), "value"] == pytest.approx(sum(values) / 2)
    assert set(results.query("method != 'training images'")["seeds"]) == {2}


def test_invalid_parameters_are_reported_before_any_run(project):
    with project.session():
        with pytest.raises(UserError, match=r"expected table-1, .* or all, got table-9"):
            reproduce.plan(["table-9"], project.path)
        changes = SMALL | {"stage_1.dim": 999}
        planned = reproduce.plan(["table-4"], project.path, "test", params=changes)
        with pytest.raises(UserError, match="999"):
            reproduce.reproduce(planned, project.path, "test")
        with pytest.raises(UserError, match=r"expected one of .*celeba-H-MM-1000-500.*celeba-H-XX"):
            CachedRun.from_config("celeba-H-XX", project.path)
    assert not (project.path / "data/06_models").exists()


def test_failed_runs_do_not_stop_the_others_and_a_common_reason_is_printed_once(caplog):
    ran = []

    def run(name):
        ran.append(name)
        if name != "third":
            raise ClickException("no CelebA" if name == "second" else "it diverged")

    runs = [
        SimpleNamespace(name=name, settings=None, is_finished=False, run=partial(run, name))
        for name in ("first", "second", "third", "fourth")
    ]
    expected = "first, fourth: it diverged\nsecond: no CelebA\n3 of 4 runs failed. The others are"
    with pytest.raises(ClickException, match=expected):
        run_all(runs)
    assert ran == ["first", "second", "third", "fourth"]
    assert "diverged" not in caplog.text


def test_a_changed_run_leaves_the_original_unchanged(tmp_path):
    first = CachedRun("one", {"stage_1": {"dim": 5}}, tmp_path)
    second = first.changed("stage_1.dim", 7).changed("data.size", 16)
    assert first.params == {"stage_1": {"dim": 5}}
    assert second.params == {"stage_1": {"dim": 7}, "data": {"size": 16}}
    assert second.name == "one, stage_1.dim 7, data.size 16"


def test_figure_1_needs_no_run(tmp_path):
    page = write("figure-1", "", TARGETS["figure-1"].make({}), tmp_path)
    assert "data:image/png;base64" in page.read_text()
