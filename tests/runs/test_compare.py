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
        metrics = {
            "bits_per_dim": BPD[name],
            "projection_psnr": {"value": 20.0 + number},
            "dims": [192, 20 + number],
            "manifold_nll": 1.5,
        }
        histories = {"density": {"steps": 1200}, "rotation": {}, "code_flow": {"steps": 3}}
        (tmp_path / name / "histories.json").write_text(json.dumps(histories))
        (tmp_path / name / "metrics").write_text(json.dumps(metrics))
    (tmp_path / "second" / "truth.json").write_text('{"divergence": 0.5}')
    before = mlflow.get_tracking_uri()
    yield tmp_path
    mlflow.set_tracking_uri(before)


def run(*arguments):
    return CliRunner().invoke(cli, ["compare", *arguments])


def test_metrics_have_intervals_and_directions_and_are_an_artifact_of_the_newest_run(folder):
    client = mlflow.MlflowClient(f"sqlite:///{folder}/data/mlflow.db")
    experiment = client.create_experiment("submanifold", str(folder / "data/mlartifacts"))
    ids = {}
    for name in BPD:
        tags = {"keys.model": name}
        part = client.create_run(experiment, tags={**tags, "submanifold.part": "true"})
        ids[name] = client.create_run(experiment, tags=tags, run_name=name).info.run_id
        client.log_metric(part.info.run_id, "sharpness", 0.25 if name == "first" else 12340.0)
        client.log_metric(ids[name], "core/BPD", 3.0)
        client.log_metric(ids[name], "detail/train.loss", 7.0)
        for parameter, value in (("seed", 5 + len(name)), ("data.size", 32)):
            client.log_param(ids[name], parameter, value)
    client.log_metric(ids["second"], "core/colors", 3.5)
    result = run("second", "first")
    assert result.exit_code == 0, result.output
    head, _, *rows = [line.split("  ") for line in result.output.splitlines()]
    rows = {row[0]: [text.strip() for text in row[1:] if text] for row in [head, *rows]}
    assert rows["metric"] == ["better", "second", "first"]
    assert rows["dataset"] == ["photos", "photos"]
    assert rows["NLL on the manifold"] == ["1.5000", "1.5000"], "neither direction is better"
    assert rows["d"] == ["21", "20"]
    assert rows["steps"] == ["1,203", "1,203"]
    assert rows["size"] == ["32", "32"]
    assert rows["seed"] == ["11", "10"]
    assert rows["sharpness"] == ["12,340", "0.25"]
    assert rows["core/colors"] == ["3.5", "–"]
    assert "core/BPD" not in rows
    assert "detail/train.loss" not in rows
    assert rows["BPD"] == ["lower", "3.250", "3.50 [3.40, 3.60]"]
    assert rows["PSNR, default projection, dB (subset)"] == ["higher", "21.00", "20.00"]
    assert rows["KL from the truth (nats)"] == ["lower", "0.5000", "–"]
    file = folder / "data/08_reporting/comparison.csv"
    assert result.output.endswith(f"\n{file}\n")
    assert not (folder / "comparison.csv").exists()
    table = pd.read_csv(file).set_index(["metric", "run"])
    assert table.loc[("bits_per_dim", "first"), ["value", "low", "high"]].tolist() == [
        3.5,
        3.4,
        3.6,
    ]
    assert table.loc[("projection_psnr", "second"), "better"] == "higher"
    assert table.loc[("sharpness", "second"), "value"] == 12340
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
