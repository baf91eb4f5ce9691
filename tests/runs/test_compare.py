"""`submanifold compare` prints and writes the metrics of finished runs."""

import json

import mlflow
import pandas as pd
import pytest
from click.testing import CliRunner

from submanifold.cli import cli
from submanifold.inference.records import RunRecord, write_record

BPD = {"first": {"value": 3.5, "low": 3.4, "high": 3.6}, "second": {"value": 3.25}}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(BPD):
        files = {kind: f"{name}/{kind}" for kind in ("model", "metrics", "report")}
        record = RunRecord("", name, "photos", "Glow", f"2026-01-0{number + 1}", **files)
        write_record(tmp_path, record, name)
        (tmp_path / name).mkdir()
        (tmp_path / name / "report").touch()
        metrics = {"bits_per_dim": BPD[name], "projection_psnr": {"value": 20.0 + number}}
        (tmp_path / name / "metrics").write_text(json.dumps(metrics))
    (tmp_path / "second" / "truth.json").write_text('{"divergence": 0.5}')
    before = mlflow.get_tracking_uri()
    yield tmp_path
    mlflow.set_tracking_uri(before)


def run(*arguments):
    return CliRunner().invoke(cli, ["compare", *arguments])


def test_metrics_have_intervals_and_directions_and_are_an_artifact_of_the_newest_run(folder):
    client = mlflow.MlflowClient(f"sqlite:///{folder}/data/mlflow.db")
    experiment = client.create_experiment("submanifold", str(folder / "artifacts"))
    ids = {name: client.create_run(experiment, run_name=name).info.run_id for name in BPD}
    result = run("second", "first")
    assert result.exit_code == 0, result.output
    head, _, *rows = [line.split("  ") for line in result.output.splitlines()]
    rows = {row[0]: [text.strip() for text in row[1:] if text] for row in [head, *rows]}
    assert rows["metric"] == ["better", "second", "first"]
    assert rows["dataset"] == ["photos", "photos"]
    assert rows["BPD"] == ["lower", "3.250", "3.50 [3.40, 3.60]"]
    assert rows["PSNR, default projection, dB (subset)"] == ["higher", "21.00", "20.00"]
    assert rows["KL from the truth (nats)"] == ["lower", "0.5000", "–"]
    table = pd.read_csv(folder / "comparison.csv").set_index(["metric", "run"])
    assert table.loc[("bits_per_dim", "first"), ["value", "low", "high"]].tolist() == [
        3.5,
        3.4,
        3.6,
    ]
    assert table.loc[("projection_psnr", "second"), "better"] == "higher"
    logged = {name: [file.path for file in client.list_artifacts(ids[name])] for name in ids}
    assert logged == {"first": [], "second": ["comparison.csv"]}


def test_an_unfinished_run_is_a_mistake(folder):
    (folder / "first" / "report").unlink()
    (folder / "first").joinpath("model").touch()
    result = run("second", "first")
    assert result.exit_code == 1
    assert "RUN: expected the names of finished runs, got first, which is trained." in result.output
    assert "Did you mean second?" in run("secnod", "first").output
    assert not (folder / "comparison.csv").exists()
