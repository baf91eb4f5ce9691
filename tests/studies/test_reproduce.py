from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pandas as pd
import pytest
from click import ClickException
from click.testing import CliRunner
from omegaconf import OmegaConf

from submanifold import cli
from submanifold.common import files
from submanifold.common.errors import UserError
from submanifold.plots.images import as_png
from submanifold.studies import write
from submanifold.studies.experiments import Experiment, run_all
from submanifold.studies.targets import TARGETS, Content

# the paper's cells on the photographs and in the sizes of the test environment
SMALL = {"dataset": "photos", "stage_1.dim": 24, "stage_2.dim": 12, "device": "cpu"}


def make(project, *names, seeds=1, **params):
    with project.session():
        planned = write.plan(names, project.path, "test", seeds, SMALL | params)
        return planned, write.reproduce(planned, project.path, "test")


@pytest.fixture(scope="module")
def table_4(new_project):
    project = new_project()
    return project, *make(project, "table-4")


def test_a_table_is_made_with_all_its_runs_and_written_in_three_ways(table_4):
    project, planned, (page,) = table_4
    folder = project.path / "data/08_reporting/paper/test/table-4"
    assert page == folder / "table-4.html"
    results = pd.read_csv(folder / "table-4.csv").set_index(["method", "metric"])
    for method, (experiment,) in planned["table-4"].items():
        metrics = experiment.load("metrics")
        assert results.loc[(method, "bpd"), "value"] == pytest.approx(
            metrics["bits_per_dim"]["value"]
        )
        assert results.loc[(method, "bpd"), "n_test"] == 64
    text = (folder / "table-4.md").read_text()
    assert "# Table 4. The likelihood's weight halved" in text
    assert "H-MM*" in text
    assert "62.72" in text  # the paper's FID
    assert "stage_1.flow.width" in text  # a setting that is not the paper's
    assert "64 test images" in text
    assert "H-MH*" in page.read_text()


def test_methods_with_the_same_first_stage_share_it(table_4):
    project, planned, _ = table_4
    one, other = (planned["table-4"][method][0] for method in ("H-MM*", "H-MH*"))
    assert one.trainings["phase_1.history"] == other.trainings["phase_1.history"]
    assert one.trainings["phase_2.history"] != other.trainings["phase_2.history"]
    (control,) = planned["table-4"]["Glow"]  # plain likelihood is another first phase
    keys = {one.trainings["phase_1.history"], control.trainings["phase_1.history"]}
    folders = (project.path / "data/06_models").glob("photos-phase_1-*")
    assert {folder.name for folder in folders} == keys


def test_what_needs_a_model_alone_is_trained_and_not_evaluated(new_project):
    project = new_project()
    changes = SMALL | {"method": "PR-D"}
    with project.session():
        trained = Experiment("trained", {}, project.path, "test", evaluated=False)
        for name, value in changes.items():
            trained = trained.changed(name, value)
        run_all([trained])
        assert trained.is_finished
        assert not trained.catalog.exists("metrics")
        whole = replace(trained, evaluated=True)
        assert not whole.is_finished
        assert whole.key == trained.key
        for runs in ([trained, whole], [whole, trained]):  # evaluated, if one target wants it
            planned = {str(number): {"": [run]} for number, run in enumerate(runs)}
            assert list(write.unique(planned).values()) == [whole]


def test_the_table_is_an_artifact_of_a_run_of_its_name(table_4):
    project, _, _ = table_4
    run = project.mlflow_runs()[-1]
    assert run.info.run_name == "table-4"
    assert run.info.status == "FINISHED"
    client = project.mlflow_client
    names = {each.path for each in client.list_artifacts(run.info.run_id)}
    assert names == {"table-4.md", "table-4.csv", "table-4.html"}


def test_made_again_nothing_is_run_again(table_4):
    project, planned, (page,) = table_4
    before = len(project.mlflow_runs())
    page.unlink()
    _, again = make(project, "table-4")
    assert again == [page]
    assert page.exists()
    assert len(project.mlflow_runs()) == before + 1  # the table's own
    with project.session():
        assert set(write.state(planned)["state"]) == {"finished"}


@pytest.mark.parametrize(
    ("options", "said"),
    [([], "no recorded time: add --time"), (["--time"], "and from a few steps timed now")],
)
def test_a_dry_run_lists_what_is_finished_and_times_on_request(table_4, monkeypatch, options, said):
    project, _, _ = table_4
    monkeypatch.chdir(project.path)
    params = ",".join(f"{name}={value}" for name, value in SMALL.items())
    with project.session():
        result = CliRunner().invoke(
            cli.cli,
            ["reproduce", "table-4", "figure-6", "--env=test", "--dry-run", f"--params={params}",
             *options],
        )  # fmt: skip
    assert result.exit_code == 0, result.output
    lines = {line.partition(",")[0]: line for line in result.output.splitlines()}
    assert "finished" in lines["lsun_bedroom-H-MM-star-2000-1000"]
    assert "to train" in lines["celeba-EE-M-500-100"]
    assert ("unknown" in lines["celeba-EE-M-500-100"]) == (not options)
    assert said in result.output


def test_a_dry_run_of_what_was_trained_from_another_seed_times_nothing(table_4, monkeypatch):
    project, _, _ = table_4

    def never(*_):
        raise AssertionError("timed")

    monkeypatch.setattr(write, "training_seconds", never)
    with project.session():
        planned = write.plan(["table-4"], project.path, "test", 4, SMALL)
        table = write.state(planned)
    fourth = table[table["experiment"].str.endswith("seed 3")]
    assert set(fourth["state"]) == {"to train"}
    assert (fourth["hours"] > 0).all()
    assert not table["unknown"].any()


def test_every_dry_run_reads_the_configuration_once(project, monkeypatch):
    """371 experiments took minutes, nearly all of it for parsing the same files again."""
    read = []
    load = OmegaConf.load
    monkeypatch.setattr(OmegaConf, "load", lambda file: read.append(file) or load(file))
    with project.session():
        table = write.state(write.plan(["table-1", "table-2"], project.path, "test"))
    assert len(table) > 10
    assert len(read) < 10


def test_a_dry_run_lists_what_cannot_be_run_with_the_reason(project):
    with project.session():
        table = write.state(write.plan(["table-1", "table-3"], project.path, "test"))
    rooms = table[table["experiment"].str.startswith("lsun_bedroom")]
    assert rooms["state"].str.contains("with source=lsun_bedroom, got none").all()
    others = table[~table["experiment"].str.startswith("lsun_bedroom")]
    assert not others.empty
    assert set(others["state"]) == {"to train"}


def test_only_what_is_finished_is_asked_for_where_some_data_are_nowhere(project):
    with project.session():
        assert write.finished(write.plan(["table-3"], project.path, "test")) == {}


def test_what_is_not_finished_can_be_left_out(table_4):
    project, planned, _ = table_4
    with project.session():
        more = write.plan(["table-4", "figure-6"], project.path, "test", 3, SMALL)
        left = write.finished(more)
    assert left.keys() == {"table-4"}
    assert [run.key for run in left["table-4"]["H-MM*"]][:1] == [planned["table-4"]["H-MM*"][0].key]
    assert len(left["table-4"]["H-MM*"]) < 3


def test_where_nothing_is_finished_it_is_said_so(project, monkeypatch):
    monkeypatch.chdir(project.path)
    with project.session():
        given = ["reproduce", "table-4", "figure-6", "--env=test", "--finished-only"]
        given.append("--params=" + ",".join(f"{name}={value}" for name, value in SMALL.items()))
        result = CliRunner().invoke(cli.cli, given)
    assert result.exit_code == 1
    assert "Nothing that table-4, figure-6 needs is finished" in result.output
    assert not (project.path / "data/08_reporting/paper").exists()


def test_a_page_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    content = Content(notes=["first"])
    page = write.write("table-1", "A title", content, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(partial, path, keep=False):
        raise OSError("No space left on device")

    monkeypatch.setattr(files, "sync_and_rename", full)
    content.notes = ["second"]
    with pytest.raises(OSError, match="No space"):
        write.write("table-1", "A title", content, tmp_path)
    assert page.exists()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_figure_of_samples_has_a_panel_for_each_method(table_4):
    project, _, _ = table_4
    _, (page,) = make(project, "figure-9")
    assert {path.name for path in page.parent.iterdir()} == {
        "figure-9.md", "figure-9.html", "figure-9.png", "figure-9.pdf",
        "figure-9-2.png", "figure-9-2.pdf",
    }  # fmt: skip
    assert page.read_text().count("data:image/png;base64") == 2


def test_more_seeds_give_an_interval_over_them(table_4):
    project, _, _ = table_4
    with project.session():
        planned = write.plan(["table-4"], project.path, "test", 2, SMALL)
        assert [len(runs) for runs in planned["table-4"].values()] == [2, 2, 2]
        planned["table-4"] = {"H-MM*": planned["table-4"]["H-MM*"]}  # as --finished-only would
        write.reproduce(planned, project.path, "test")
    folder = project.path / "data/08_reporting/paper/test/table-4"
    results = pd.read_csv(folder / "table-4.csv").set_index(["method", "metric"])
    values = [
        experiment.load("metrics")["mse"]["value"] for experiment in planned["table-4"]["H-MM*"]
    ]
    assert results.loc[("H-MM*", "mse"), "value"] == pytest.approx(sum(values) / 2)
    assert set(results.query("method != 'training images'")["seeds"]) == {2}
    assert "Student's t" in (folder / "table-4.md").read_text()


def test_an_unknown_table_is_named_with_those_that_are_known(project):
    with pytest.raises(UserError, match=r"table-9 cannot be reproduced. Known: table-1, .*, all"):
        write.plan(["table-9"], project.path)


def test_a_mistake_in_one_run_is_told_before_any_is_run(project):
    with project.session():
        planned = write.plan(["table-4"], project.path, "test", params=SMALL | {"stage_1.dim": 999})
        with pytest.raises(ClickException, match="999"):
            write.reproduce(planned, project.path, "test")
    assert not (project.path / "data/06_models").exists()


def test_a_run_that_fails_leaves_the_others_to_be_run():
    ran = []

    def run(name):
        if name == "second":
            raise ClickException("it diverged")
        ran.append(name)

    experiments = [
        SimpleNamespace(name=name, parameters={}, is_finished=False, run=partial(run, name))
        for name in ("first", "second", "third")
    ]
    with pytest.raises(ClickException, match="second: it diverged\n1 of 3 runs failed"):
        run_all(experiments)
    assert ran == ["first", "third"]


def test_all_covers_every_table_and_figure_of_the_paper():
    figures = {f"figure-{number}" for number in (1, 3, 4, 5, 6, 7, 8, 9, 10)}
    tables = {f"table-{number}" for number in range(1, 6)}
    assert set(TARGETS) == {*tables, *figures, "findings", "beyond", "ood", "related"}


def test_figure_1_needs_no_run(tmp_path):
    content = TARGETS["figure-1"].make({})
    (figure,) = content.figures.values()
    assert as_png(figure)[:4] == b"\x89PNG"
