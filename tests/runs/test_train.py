"""`submanifold train` and `submanifold runs` in a folder that is no checkout."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from calibrated import png, smooth_images
from submanifold import Predictor
from submanifold.cli import cli
from submanifold.evaluation.defensive import with_defensive_component
from submanifold.inference.inputs import read_images
from submanifold.inference.records import read_records
from submanifold.runs.experiments import CachedRun
from submanifold.runs.score import split_halves
from submanifold.training import train_phases
from submanifold.training.cost import with_steps

pytestmark = pytest.mark.pipeline

SMALL = ["--size=8", "--device=cpu", "--params", "evaluation.samples=16"]
FLOW = ["--params=stage_1.flow.levels=1,stage_1.flow.steps=[1],stage_1.flow.width=8"]
STEPS = ["--params", "density.training.steps=4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with pictures, a text file and a table."""
    path = tmp_path_factory.mktemp("anywhere")
    (path / "pictures").mkdir()
    (path / "notes.txt").write_text("no picture")
    (path / "text.csv").write_text("a,b\n" + "1,x\n2,y\n3,x\n" * 9)
    for number, image in enumerate(smooth_images(200, 0)):
        (path / "pictures" / f"{number}.png").write_bytes(png(image))
    return path


def run(folder, *arguments):
    """Run a command in a folder; restore the state of this process at the end."""
    before, environment = os.getcwd(), dict(os.environ)
    os.chdir(folder)
    try:
        return CliRunner().invoke(cli, [str(each) for each in arguments])
    finally:
        os.chdir(before)
        os.environ.clear()
        os.environ.update(environment)


@pytest.fixture(scope="module")
def trained(folder):
    return run(folder, "train", "pictures", "--method=Glow", "--name=first", *SMALL, *FLOW, *STEPS)


def test_train_works_in_any_folder_and_ends_with_the_commands_to_use_the_model(trained, folder):
    assert trained.exit_code == 0, trained.output
    (record,) = read_records(folder)
    assert record.name == "first"
    assert record.state(folder) == "finished"
    last = trained.output.splitlines()[-10:]
    assert last[0] == f"Report: {folder / record.report}"
    assert (folder / record.report).is_file()
    assert last[1] == f"Model:  {folder / record.model}"
    assert (folder / record.model).is_file()
    assert [line.split()[1:3] for line in last[4:]] == [
        [verb, "first"] for verb in ("score", "score", "project", "encode", "sample", "info")
    ]


def test_a_damaged_model_is_moved_aside_and_written_again(trained, folder):
    (record,) = read_records(folder)
    path, options = folder / record.model, [*SMALL, *FLOW, *STEPS]
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    results = [run(folder, "train", "pictures", "--method=Glow", *options) for _ in range(2)]
    assert f"Error: {path}: expected a whole file" in results[0].output
    assert [result.exit_code for result in results] == [1, 0]
    assert len(path.read_bytes()) == len(content)


def test_own_images_are_ranked_by_models_that_have_not_seen_them(
    trained, folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(folder)
    shutil.copytree(folder / "pictures", tmp_path / "more")
    odd = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8), dtype=np.uint8)
    for number, image in enumerate(odd):
        (tmp_path / "more" / f"odd{number}.png").write_bytes(png(image))
    command = "score", "first", tmp_path / "more", "--own", "--out", tmp_path / "scores.csv"
    first = run(folder, *command)
    assert first.exit_code == 0, first.output
    scores = pd.read_csv(tmp_path / "scores.csv")
    assert scores["picture"][:4].str.contains("odd").sum() == 2
    assert scores["p_value"].is_monotonic_increasing
    assert scores["p_value"].iloc[-1] == 1
    assert "in about 0 min. P-values are ranks, at least 1/202 (0.50%)." in first.output
    assert_scored_by_the_other_half(folder, "first", tmp_path / "more", scores, tmp_path)
    sheet = (tmp_path / "scores.png").read_bytes()
    trained_at = times_of_halves(folder)
    assert run(folder, *command).output == first.output
    assert times_of_halves(folder) == trained_at, "nothing is trained again"
    assert (tmp_path / "scores.png").read_bytes() == sheet
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "scores.csv"), scores)


def times_of_halves(folder):
    files = (folder / "data/06_models").glob("*/own/**/*.safetensors")
    times = {file: file.stat().st_mtime_ns for file in files}
    assert times
    return times


def assert_scored_by_the_other_half(folder, name, pictures, scores, work, by_folder=False):
    """Train the models of the halves as the run was, and compare the densities."""
    (record,) = (record for record in read_records(folder) if record.name == name)
    run = CachedRun(name, record.params, folder)
    settings, steps, data = run.settings, run.load("schedule")["steps"], run.load("hierarchy").data
    phases = {name: with_steps(phase, steps[name]) for name, phase in settings.phases.items()}
    images, names = read_images([pictures], data)[:2]
    folders = [Path(name).parent.name if by_folder else name for name in names]
    log_probs = scores.set_index("picture")["log_prob"]
    for number, half in enumerate(split_halves(np.unique(folders, return_inverse=True)[1], 0)):
        train, valid = images[half.train], images[half.valid]
        cpu = torch.device("cpu")
        model = train_phases(phases, settings.model, train, valid, 0, cpu, work / str(number))
        model = with_defensive_component(model.with_facts(data=data), train, valid, cpu)
        of_bytes = Predictor(model).log_prob(images[half.scored])
        expected = of_bytes + images[0].size * np.log(256)  # of pixels in [0, 1]
        found = log_probs.loc[[names[index] for index in half.scored]]
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_own_images_of_a_group_train_or_validate_or_are_scored(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    lines = []
    for number, image in enumerate(smooth_images(400, 1)):
        group = number // 2
        (folder / "people" / str(group)).mkdir(parents=True, exist_ok=True)
        (folder / "people" / str(group) / f"{number}.png").write_bytes(png(image))
        lines.append(f"{group}/{number}.png {group}\n")
    (folder / "people.txt").write_text("".join(lines))
    options = "--method=Glow", "--name=people", *SMALL, *FLOW, *STEPS
    result = run(folder, "train", "people", *options, "--params=data.groups=people.txt")
    assert result.exit_code == 0, result.output
    pictures, out = folder / "people", tmp_path / "people.csv"
    result = run(folder, "score", "people", pictures, "--own", "--out", out)
    assert result.exit_code == 0, result.output
    scores = pd.read_csv(out)
    assert_scored_by_the_other_half(folder, "people", pictures, scores, tmp_path, by_folder=True)
    (folder / "data/runs/people.json").unlink()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fdr=10%"], "--own and --fdr: expected one of them. Omit the other."),
        (["--alpha=10%"], "--own and --alpha: expected one of them"),
        ([], "INPUTS: expected at least 200 with --own, got 1."),
    ],
)
def test_own_images_need_many_and_no_rate(trained, folder, options, message):
    result = run(folder, "score", "first", "pictures/0.png", "--own", *options)
    assert result.exit_code == 1
    assert result.output.startswith(f"Error: {message}")


def test_an_audit_reads_the_data_of_the_run(trained, folder):
    first, *table = run(folder, "info", "first", "--audit").output.splitlines()
    assert first == "Training and validation data of the run"
    (held_out,) = (line for line in table if line.startswith("held-out"))
    assert held_out.split()[1] in ("pass", "warning", "fail")


def test_printed_commands_work_on_a_new_image(trained, folder):
    (folder / "new.jpg").write_bytes(png(smooth_images(1, 5)[0]))
    for line in trained.output.splitlines()[-6:]:
        command = line.partition("  #")[0].replace("new/", "new.jpg")
        result = run(folder, *command.split()[1:])
        assert result.exit_code == 0, result.output


def test_scored_training_images_are_a_warning(trained, folder, caplog):
    for inputs, warns in (("new.jpg", False), ("pictures", True), ("copy", True)):
        if inputs == "copy":
            shutil.copytree(folder / "pictures", folder / "copy")
        caplog.clear()
        assert run(folder, "score", "first", inputs).exit_code == 0
        assert ("got about 80% training images" in caplog.text) == warns


def test_runs_lists_the_run_and_its_figures(trained, folder):
    (record,) = read_records(folder)
    metrics = json.loads((folder / record.metrics).read_text())
    header, _, row = run(folder, "runs").output.splitlines()
    assert header.split()[:6] == ["name", "state", "started", "dataset", "method", "d"]
    assert row.startswith("first")
    assert f"{metrics['bits_per_dim']['value']:.3f}" in row
    assert str(folder / record.model) in run(folder, "runs", "first").output


def test_an_equal_command_computes_nothing(trained, folder):
    (record,) = read_records(folder)
    written = (folder / record.report).stat().st_mtime_ns
    result = run(folder, "train", "pictures", "--method=Glow", *SMALL, *FLOW, *STEPS)
    assert result.exit_code == 0, result.output
    assert "submanifold score first" in result.output
    assert (folder / record.report).stat().st_mtime_ns == written


def mistakes(folder):
    train = ("train", "pictures")
    return {
        "dataset": (("train", "mnits"), "Did you mean mnist?"),
        "option and setting": ((*train, "--seed=1", "--params=seed=2"), "seed: expected one value"),
        "path": (("train", "pictrues/"), "DATA: expected an existing folder or zip"),
        "no user": (("train", "~nosuchuser/x"), "DATA: expected an existing folder or zip"),
        "no path": (("train", ""), "DATA: expected an existing folder or zip"),
        "method": (
            (*train, "--method=H-MN"),
            "got H-MN. Did you mean H-MM? Change it with --method=<name>.",
        ),
        "unknown setting": (
            (*train, "--params", "densiti.training.steps=3"),
            "Did you mean density?",
        ),
        "not a picture": (("train", "notes.txt"), "notes.txt"),
        "dim": ((*train, "--method=Glow", "--dim=4"), "--dim: expected none with method=Glow"),
        "size": ((*train, "--size=33"), "expected image sides divisible by 8, got 33x33"),
        "name taken": ((*train, "--name=first", "--method=Glow"), "name: expected a name that no"),
        "steps and minutes": (
            (*train, "--minutes=1", "--params", "density.training.steps=3"),
            "training.minutes: expected no steps with it, got density.training.steps",
        ),
        "params": ((*train, "--params", "seed"), "expected <setting>=<value>, got seed"),
        "strict": (("train", "text.csv", "--strict"), "got 2 categories: x, y in b. Correct them"),
        "command": (("trian", "pictures"), "Did you mean 'train'?"),
    }


@pytest.mark.parametrize("name", sorted(mistakes(None)))
def test_a_mistake_ends_in_one_line_before_anything_is_computed(trained, folder, name, monkeypatch):
    arguments, message = mistakes(folder)[name]
    monkeypatch.setattr("sys.argv", ["submanifold", *arguments])
    result = run(folder, *arguments)
    assert result.exit_code in (1, 2)
    last = result.output.splitlines()[-1]
    assert last.startswith("Error: ")
    assert message in last
    assert "Traceback" not in result.output
    assert [each.name for each in read_records(folder)] == ["first"]


def test_a_raw_table_trains_by_one_command(folder, caplog):
    caplog.set_level("INFO")
    rng, count = np.random.default_rng(0), 200
    table = pd.DataFrame(
        {
            "user id": range(count),
            "age": rng.normal(40, 9, count),
            "note": "x",
            "city": rng.choice(["Bern", "Rome"], count),
            "b": rng.normal(size=count),
            "day": pd.date_range("2020", periods=count),
        }
    )
    table["remark"] = [f"{number}, or so" for number in range(count)]
    table["income"] = [f"{value:,}" for value in rng.integers(10_000, 99_000, count)]
    table["size, cm=x.5"] = rng.integers(3, 8, count)
    table.loc[[3, 9], ["age", "city"]] = None
    table.to_csv(folder / "messy.csv", index=False)
    steps = (f"--params={phase}.training.steps=2" for phase in ("density", "reconstruction"))
    kind = '--params=data.columns={"size, cm=x.5": category}'
    options = ["train", "messy.csv", "--name=messy", "--id=user id", kind, *steps]
    refused = run(folder, *options)
    assert refused.exit_code == 1
    assert "got text of 200 different values in remark; text of numbers with" in refused.output
    assert "data.columns.remark=ignore" in refused.output
    options += ["--params=data.columns.remark=ignore", "--params=data.drop=income"]
    assert run(folder, *options, "--params=evaluation.samples=9").exit_code == 0
    assert "size, cm=x.5: 5 categories: " in caplog.text
    assert run(folder, "score", "messy", "messy.csv", "--out=messy-scores.csv").exit_code == 0
    assert pd.read_csv(folder / "messy-scores.csv")["user id"].tolist() == [*range(count)]
    assert "unknown to the model" not in caplog.text
    record = folder / "data/runs/messy.json"
    report = (folder / json.loads(record.read_text())["report"]).read_text()
    assert "% missing" in report
    scores = pd.read_csv(folder / "messy-scores.csv")
    assert scores["log_prob_mask"].idxmin() in (3, 9)
    record.unlink()


def test_a_time_budget_is_measured_once_and_a_repeated_run_keeps_its_steps(folder):
    def train(*options):
        flow = [*FLOW, "--params", "charts=1", "--params", "evaluation.samples=16"]
        given = ["--minutes=0.1", "--method=PR-D", "--dim=4", "--size=8", "--device=cpu"]
        return run(folder, "train", "pictures", "--name=timed", *given, *flow, *options)

    def schedule():
        files = (folder / "data/06_models").glob("folder-schedule-*/schedule.json")
        contents = (json.loads(file.read_text()) for file in files)
        return [content["steps"] for content in contents if content["minutes"] == 0.1]

    assert train().exit_code == 0
    (steps,) = schedule()
    assert train("--params", "evaluation.dequantizations=3").exit_code == 0
    assert schedule() == [steps]
    (timed,) = (each for each in read_records(folder) if each.name == "timed")
    assert timed.params["training"] == {"minutes": 0.1}
    (history,) = (folder / "data/06_models").glob("folder-stage_1-*/history.json")
    trained = json.loads(history.read_text())["steps"]
    assert 1 <= trained <= steps["stage_1"], "fewer on a busy machine"
    assert "a time budget of 0.1 minutes" in (folder / timed.report).read_text()
    assert train("--params", "stage_1.training.steps=5").exit_code == 1
    (folder / "data/runs/timed.json").unlink()
