import re
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pandas as pd
import pytest
from click import ClickException

from submanifold.common.errors import UserError
from submanifold.runs.experiments import CachedRun, run_all
from submanifold.studies import reproduce

pytestmark = pytest.mark.pipeline

# the paper's methods, on the data and in the sizes of the test environment
SMALL = {"dataset": "photos", "stage_1.dim": 24, "stage_2.dim": 12, "device": "cpu"}


def make(project, *names, seeds=1, only=None, **params):
    with project.session():
        planned = reproduce.plan(names, project.path, "test", seeds, SMALL | params)
        if only is not None:
            planned = {name: {only: runs[only]} for name, runs in planned.items()}
        options = f" --seeds={seeds}"
        return planned, reproduce.reproduce(planned, project.path, "test", options)


@pytest.fixture(scope="module")
def table_4(new_project):
    project = new_project()
    return project, *make(project, "table-4")


def test_a_table_is_written_as_csv_and_markdown(table_4):
    project, planned, (page,) = table_4
    folder = project.path / "data/08_reporting/paper/test/table-4"
    assert page == folder / "table-4.md"
    results = pd.read_csv(folder / "table-4.csv").set_index(["method", "metric"])
    for method, (run,) in planned["table-4"].items():
        bpd = run.load("metrics")["bits_per_dim"]["value"]
        assert results.loc[(method, "bpd"), "value"] == pytest.approx(bpd)
        assert results.loc[(method, "bpd"), "n_test"] == 64
    text = page.read_text()
    assert "62.72" in text, "the paper's FID"
    assert "H-MH*" in text
    assert "`submanifold reproduce table-4 --seeds=1`" in text
    assert "they were trained in 0.0 hours." in text
    assert re.search(r"H-MH\* +\| 192 → 24 → 12", text)
    assert re.search(r"The paper's dimensions: .*H-MH\* 3072 → 2000 → 1000", text)
    (some,) = make(project, "table-4", only="H-MH*")[1]
    assert "Not trained: H-MM*" in some.read_text()


def test_finished_runs_are_not_repeated(table_4):
    project, planned, (page,) = table_4
    page.unlink()
    assert make(project, "table-4")[1] == [page]
    assert page.exists()
    with project.session():
        assert {*reproduce.state(planned).values()} == {"finished"}


def test_runs_that_need_a_model_only_are_not_evaluated(new_project):
    project = new_project()
    with project.session():
        trained = CachedRun("trained", {}, project.path, "test", evaluated=False)
        trained = trained.with_params({**SMALL, "method": "PR-D"})
        run_all([trained])
        assert trained.is_finished
        assert not trained.catalog.exists("metrics")
        evaluated = replace(trained, evaluated=True)
        assert not evaluated.is_finished
        for runs in ([trained, evaluated], [evaluated, trained]):
            assert list(reproduce.unique(runs).values()) == [evaluated]


def test_a_dry_run_shows_the_error_of_runs_with_missing_data(project):
    with project.session():
        planned = reproduce.plan(["table-1", "table-3"], project.path, "test")
        states = pd.Series(reproduce.state(planned))
        assert reproduce.finished(planned) == {}
    rooms = states.index.str.startswith("table-3")
    assert states[rooms].str.contains("path").all()
    assert set(states[~rooms]) == {"to run"}


def test_a_dry_run_lists_a_missing_input_once(project):
    with project.session():
        planned = reproduce.plan(["table-3", "figure-8", "table-2"], project.path, "test")
        *lines, total = reproduce.overview(planned)
    (missing,) = (line for line in lines if "path" in line)
    assert missing.count("DNF") == 1, "table 3 and figure 8 need the same run"
    assert sum(line.endswith("to run") for line in lines) == 7, "table 2 and Glow"
    assert total.startswith("0 of 13 runs are finished.")
    assert "hours" not in total


def test_a_dry_run_estimates_the_time_from_finished_runs(table_4):
    project, planned, _ = table_4
    with project.session():
        more = reproduce.plan(["table-4"], project.path, "test", 2, SMALL)
        *_, total = reproduce.overview(more)
        *_, done = reproduce.overview(planned)
    assert total.startswith("5 of 10 runs are finished. The others take about 0.0 hours")
    assert done == "5 of 5 runs are finished."


def test_a_method_without_finished_runs_takes_the_mean_time():
    seconds = {"PR-D": [100.0, 200.0], "PR-M": [300.0]}
    assert reproduce.estimate(seconds, ["PR-D", "PR-D", "DNF"]) == 150 + 150 + 200
    assert reproduce.estimate(seconds, []) == 0
    assert reproduce.estimate({}, ["PR-D"]) is None


def test_invalid_parameters_are_reported_before_any_run(project):
    with project.session():
        with pytest.raises(UserError, match=r"^TARGETS: expected .*table-1.* others, got table-9"):
            reproduce.plan(["table-9"], project.path)
        for name, seeds in (("method", 1), ("seed", 2)):
            with pytest.raises(
                UserError, match=f"^--params: expected .* not differ, got {name}. Omit"
            ):
                reproduce.plan(["table-4"], project.path, seeds=seeds, params={name: 1})
        changes = SMALL | {"stage_1.dim": 999}
        planned = reproduce.plan(["table-4"], project.path, "test", params=changes)
        with pytest.raises(UserError, match="999"):
            reproduce.reproduce(planned, project.path, "test")
    assert not (project.path / "data/06_models").exists()


def test_failed_runs_do_not_stop_the_others(caplog):
    ran = []

    def run(name):
        ran.append(name)
        if name != "third":
            raise ClickException("no CelebA" if name == "second" else "it diverged")

    runs = [
        SimpleNamespace(name=name, settings=None, is_finished=False, run=partial(run, name))
        for name in ("first", "second", "third", "fourth")
    ]
    with pytest.raises(ClickException, match="3 of 4 runs failed: first, second, fourth"):
        run_all(runs)
    assert ran == ["first", "second", "third", "fourth"]
    assert "second: no CelebA" in caplog.text
