"""Exported models score like the predictor, in a process without torch."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from calibrated import calibrated_model, conditional_table_model, smooth_images, table_model
from calibrated import table_rows as rows
from commands import run, succeed
from submanifold import Predictor
from submanifold.common.errors import UserError
from submanifold.evaluation.scores import png_bits
from submanifold.flows import RealNVP, Tabular
from submanifold.inference import export as exports
from submanifold.inference import predictor as predictors
from submanifold.models import Hierarchy, Stage

PAGE = Path(__file__).parents[2] / "docs/how-to/export.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ALPHA = np.array(0.3)
WITHOUT_TORCH = """
import sys
sys.modules["torch"] = sys.modules["submanifold"] = None
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession("model.onnx")
names = [output.name for output in session.get_outputs()]
exec(sys.argv[1], page := {})
np.savez("outputs.npz", *session.run(None, dict(np.load("inputs.npz"))), names=names,
         about=session.get_modelmeta().custom_metadata_map["submanifold"], page=page["p_value"])
"""


def images():
    x = smooth_images(20, 2)
    inputs = {"images": x, "alpha": ALPHA, "png_bits": png_bits(x).astype(np.int64)}
    return calibrated_model(), x, inputs


def table():
    torch.manual_seed(0)
    train, x = rows(500, 0).assign(unit=1.5), rows(20, 2).assign(unit=1.5)
    train["grade"], x["grade"] = (np.array([0.1, 0.5, 2.0])[t.age % 3] for t in (train, x))
    x.loc[3, "city"] = "Oslo"  # unknown
    model = table_model(Tabular(5, couplings=1, hidden=4, bins=4), 2, train, train[:100])
    model.stages[0].add_rotation()
    names = {"Bern": 0.0, "Rome": 1.0, "Oslo": -1.0}
    if Predictor(model).columns.columns[3].names[0] == "Rome":
        names |= {"Bern": 1.0, "Rome": 0.0}
    numbers = x.assign(city=x.city.map(names)).to_numpy(float)
    return model, x, {"rows": numbers, "alpha": ALPHA}


def check(model, x, outputs, monkeypatch):
    predictor = Predictor(model)
    if predictor.is_image:  # whose noise has another rule
        read, _ = exports._images(model.event_dim)
        monkeypatch.setattr(predictors, "as_input", lambda e: read(torch.from_numpy(e))[0])
    scores, (projections, _) = predictor.score(x, alpha=float(ALPHA)), predictor.project(x)
    for name in ("log_prob", "anomaly_score", "p_value"):
        np.testing.assert_allclose(outputs[name], scores[name], rtol=1e-3, err_msg=name)
    np.testing.assert_array_equal(outputs["is_ood"], scores["ood"])
    assert 0 < scores["ood"].sum() < len(x)
    np.testing.assert_allclose(outputs["u"], predictor.encode(x)[0], rtol=1e-3, atol=1e-4)
    if predictor.is_table:
        is_rome = projections["city"] == predictor.columns.columns[3].names[1]
        projections = projections.assign(city=is_rome.astype(float)).to_numpy(float)
    atol = 1 if predictor.is_image else 1e-4
    np.testing.assert_allclose(
        outputs["projection"].astype(float), projections.astype(float), rtol=3e-3, atol=atol
    )


@pytest.mark.pipeline  # a minute each
@pytest.mark.parametrize("build", [images, table])
def test_onnx_models_score_like_the_predictor_without_torch(build, tmp_path, monkeypatch):
    pytest.importorskip("onnxscript", reason="needs the extra export")
    pytest.importorskip("onnxruntime", reason="needs the extra export")
    model, x, inputs = build()
    model.save(tmp_path / "hierarchy.safetensors")
    path = tmp_path / "model.onnx"
    assert "model.onnx" in succeed("export", tmp_path / "hierarchy.safetensors", path)
    np.savez(tmp_path / "inputs.npz", **inputs)
    if build is images:
        Image.fromarray(x[0].transpose(1, 2, 0)).save(tmp_path / "new.png")
    else:
        x.assign(city=inputs["rows"][:, 3]).to_csv(tmp_path / "new.csv", index=False)
    block = BLOCK.findall(PAGE.read_text())[build is table]
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH, block], check=True, cwd=tmp_path)
    loaded = np.load(tmp_path / "outputs.npz")
    outputs = {name: loaded[f"arr_{n}"] for n, name in enumerate(loaded["names"])}
    check(model, x, outputs, monkeypatch)
    page = loaded["page"]
    np.testing.assert_allclose(page, outputs["p_value"][: len(page)], rtol=1e-6)
    about = json.loads(str(loaded["about"]))
    assert about["size"] == 8 if build is images else [*about["columns"]] == [*x]


@pytest.mark.pipeline
def test_pt2_files_score_like_the_predictor(tmp_path, monkeypatch):
    model, x, inputs = table()
    exports.export(Predictor(model), tmp_path / "model.pt2")
    module = torch.export.load(tmp_path / "model.pt2").module()
    values = [value.numpy() for value in module(*map(torch.from_numpy, inputs.values()))]
    check(model, x, dict(zip(exports.OUTPUTS, values, strict=True)), monkeypatch)


class Unusual(Tabular):
    def forward(self, x, context=None):
        return x * float(x.sum() > 0), x.sum(1)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: Hierarchy([Stage(Tabular(2), 1)]), "expected a calibration"),
        (conditional_table_model, "got one with a condition"),
        (
            lambda: table_model(Unusual(4), 2, rows(50, 0), rows(50, 1)),
            "a model that torch can export",
        ),
    ],
)
def test_what_cannot_be_exported_is_one_message(model, message, tmp_path):
    with pytest.raises(UserError, match=message):
        exports.export(Predictor(model()), tmp_path / "model.pt2")
    assert not [*tmp_path.iterdir()]


def test_a_missing_extra_and_another_suffix_are_one_message(tmp_path, monkeypatch):
    path = tmp_path / "hierarchy.safetensors"
    calibrated_model().save(path)
    assert "expected .onnx or .pt2, got .h5" in run("export", path, "model.h5").output
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert "'submanifold[export]'" in run("export", path, tmp_path / "model.onnx").output


def test_missing_values_are_scored_and_projected_like_by_the_predictor():
    torch.manual_seed(0)
    train, x = (rows(count, seed) for count, seed in ((500, 0), (40, 2)))
    for frame in (train, x):
        gaps = np.random.default_rng(len(frame)).random((len(frame), 3)) < 0.2
        frame[["weight", "age", "city"]] = frame[["weight", "age", "city"]].mask(gaps)
    model = table_model(Tabular(6, couplings=2, hidden=4, bins=4), 3, train, train[:100])
    model.calibration["missing_offsets"] = [0.7, -0.4, 0.2]
    predictor = Predictor(model)
    city = predictor.columns.varying[5]
    assert city.missing == "category"
    codes = {name: number for number, name in enumerate(city.names)}
    numbers = torch.tensor(x.assign(city=x.city.map(codes)).to_numpy(float))
    with torch.no_grad():
        outputs = exports.scorer(predictor)(numbers, torch.tensor(0.3))
    log_prob, score, p, _, u, projected = outputs
    scores, (projections, _) = predictor.score(x), predictor.project(x)
    np.testing.assert_allclose(log_prob, scores["log_prob"], rtol=1e-3)
    np.testing.assert_allclose(score, scores["anomaly_score"], rtol=1e-3)
    np.testing.assert_allclose(p, scores["p_value"], rtol=1e-3)
    np.testing.assert_allclose(u, predictor.encode(x)[0], rtol=1e-3, atol=1e-4)
    expected = projections.assign(city=projections.city.map(codes)).to_numpy(float)
    assert np.isnan(expected).any(0).sum() > 1
    np.testing.assert_allclose(projected, expected, rtol=3e-3, atol=1e-4)


def test_extreme_and_equal_values_are_scored_like_by_the_predictor():
    """Scores far beyond the range of the calibration, and p-values that equal alpha."""
    torch.manual_seed(0)
    train, held_out = (rows(300, seed)[["weight", "income"]] for seed in range(2))
    model = table_model(RealNVP(2, couplings=2, hidden=4), 1, train, held_out)  # of four scores
    x = pd.concat([train.mean() + factor * train.std() for factor in range(-9, 10)], axis=1).T
    predictor, events = Predictor(model), torch.tensor(x.to_numpy())
    score = exports.scorer(predictor)
    _, combination, p, *_ = score(events, torch.tensor(0.05))
    np.testing.assert_allclose(combination, predictor.score(x)["anomaly_score"], rtol=1e-3)
    for alpha in p.unique():
        assert torch.equal(score(events, alpha)[3], p <= alpha)
