import io
import json
import os
import zipfile

import numpy as np
import pandas as pd
import pytest
import scipy
import torch
from click.testing import CliRunner
from PIL import Image

from submanifold.data import dequantize
from submanifold.evaluation.scores import QUICK, Calibration, score
from submanifold.flows import Glow
from submanifold.manifold import Hierarchy, Model, Stage
from submanifold.uses.command import main
from submanifold.uses.scoring import between

DATA = {"size": 8, "channels": 3, "crop": "square", "margin": 0, "value_range": [-0.5, 0.5]}


def smooth(count, seed):
    """Pictures that are darker above than below, a little."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(60, 180, 8)[:, None] * np.ones(8)
    noise = rng.normal(0, 3, (count, 3, 8, 8)) + rng.normal(0, 15, (count, 3, 1, 1))
    return (ramp + noise).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    """A Glow set to such pictures, and calibrated on others of them."""
    torch.manual_seed(0)
    glow = Glow((3, 8, 8), levels=2, steps=2, width=8, whiten=True)
    model = Hierarchy([Stage(glow, 16)])
    model.stages[0].add_rotation()
    with torch.no_grad():
        model(dequantize(torch.from_numpy(smooth(256, 0))))
    model.eval()
    model.data = DATA
    model.calibration = Calibration.fit(score(model, smooth(200, 1)), QUICK).to_dict()
    path = tmp_path_factory.mktemp("model") / "hierarchy.safetensors"
    model.save(path)
    return path


def encoded(image):
    buffer = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def pictures(tmp_path):
    """A folder of four usual pictures and one that is no picture; a zip with a strange one."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, image in enumerate(smooth(4, 2)):
        (folder / f"{number}.png").write_bytes(encoded(image))
    (folder / "broken.png").write_bytes(b"no picture")
    noise = np.random.default_rng(3).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    with zipfile.ZipFile(tmp_path / "strange.zip", "w") as archive:
        archive.writestr("inside/noise.png", encoded(noise))
    return folder, tmp_path / "strange.zip"


def run(*arguments):
    result = CliRunner().invoke(main, [str(each) for each in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_the_strange_picture_is_found_and_the_broken_one_named(model_file, pictures, tmp_path):
    out, sheet = tmp_path / "new" / "scores.csv", tmp_path / "sheet.png"
    result = run("score", model_file, *pictures, "--at-most", "1%", "--out", out, "--sheet", sheet)
    assert result.exit_code == 0, result.output
    assert "1 of 5 are outliers at 0.01" in result.output
    assert "1 could not be read" in result.output
    table = pd.read_csv(out).set_index("picture")
    assert len(table) == 5
    assert table.index[table["outlier"]].tolist() == [f"{pictures[1]}:inside/noise.png"]
    assert table["probability"].between(0, 1).all()
    assert Image.open(sheet).size[0] > 8


def test_what_is_no_file_is_passed_over_and_named(model_file, pictures, tmp_path, caplog):
    os.mkfifo(pictures[0] / "inside.png")
    os.mkfifo(tmp_path / "beside.png")
    result = run("encode", model_file, *pictures, tmp_path / "beside.png", "--out", tmp_path / "a")
    assert result.exit_code == 0, result.output
    assert "3 could not be read" in result.output
    assert f"{pictures[0]}/inside.png is passed over (not a file)" in caplog.text
    assert f"{tmp_path}/beside.png is passed over (ValueError: not a file)" in caplog.text


def test_scores_are_those_of_the_model(model_file, pictures, tmp_path):
    out = tmp_path / "scores.csv"
    run("score", model_file, pictures[0], "--out", out, "--nearest")
    table, model = pd.read_csv(out), Model.load(model_file)
    run("encode", model_file, pictures[0], "--out", tmp_path / "codes.npz")
    for part, codes in (("on", "u"), ("off", "v")):
        expected = scipy.stats.norm.logpdf(np.load(tmp_path / "codes.npz")[codes]).sum(1)
        np.testing.assert_allclose(table[f"log_prob_{part}_manifold"], expected, rtol=1e-5)
    bits = 8 - table["log_prob"] / (192 * np.log(2))
    np.testing.assert_allclose(table["bits_per_dim"], bits, rtol=1e-6)
    assert (table["nearest_mse"] <= table["encoder_mse"] * (1 + 1e-5)).all()
    assert model.calibration["count"] == 200


def test_encode_writes_what_decodes_to_the_pictures(model_file, pictures, tmp_path):
    run("encode", model_file, pictures[0], "--out", tmp_path / "codes.npz")
    codes = np.load(tmp_path / "codes.npz")
    assert codes["u"].shape == (4, 16)
    assert codes["v"].shape == (4, 176)
    with torch.no_grad():
        x = Model.load(model_file).decode(torch.tensor(codes["u"]), torch.tensor(codes["v"]))
    pixels = ((x.numpy() + 0.5) * 256).clip(0, 255).astype(int)
    assert np.abs(pixels - smooth(4, 2)).max() <= 1


def test_project_writes_pictures_or_arrays(model_file, pictures, tmp_path):
    run("project", model_file, pictures[0], "--out", tmp_path / "folder", "--dim", 40)
    assert len(list((tmp_path / "folder").glob("*.png"))) == 4
    run("project", model_file, pictures[0], "--out", tmp_path / "p.npz", "--nearest")
    arrays = np.load(tmp_path / "p.npz")
    np.testing.assert_array_equal(arrays["originals"], smooth(4, 2))
    assert arrays["projections"].shape == (4, 3, 8, 8)


def test_samples_depend_on_the_seed_alone(model_file, tmp_path):
    arrays = []
    for number, seed in enumerate((0, 0, 1)):
        out = tmp_path / f"{number}.npz"
        run("sample", model_file, "-n", 5, "--seed", seed, "--out", out)
        arrays.append(np.load(out)["samples"])
    np.testing.assert_array_equal(arrays[0], arrays[1])
    assert (arrays[0] != arrays[2]).any()
    run("sample", model_file, "-n", 5, "--out", tmp_path / "x.png")
    assert Image.open(tmp_path / "x.png").size[0] > 5 * 8


def test_a_path_ends_at_the_projections_of_both_pictures(model_file, pictures, tmp_path):
    ends = [pictures[0] / "0.png", pictures[0] / "1.png"]
    run("interpolate", model_file, *ends, "--steps", 5, "--out", tmp_path / "path.npz")
    run("project", model_file, *ends, "--out", tmp_path / "p.npz")
    path, ends = np.load(tmp_path / "path.npz")["path"], np.load(tmp_path / "p.npz")["projections"]
    assert len(path) == 5
    for found, wanted in ((path[0], ends[0]), (path[-1], ends[1])):
        assert np.abs(found.astype(int) - wanted).max() <= 1


@pytest.mark.parametrize("factor", [1.0, 3.0, -1.0])
def test_the_density_changes_evenly_along_a_path(factor):
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(20, generator=generator, dtype=torch.float64)
    b = torch.randn(20, generator=generator, dtype=torch.float64)
    b = factor * b * a.norm() / b.norm()
    squares = between(a, b, 7).square().sum(1)
    torch.testing.assert_close(squares.diff(), squares.diff().mean().expand(6), rtol=0, atol=1e-9)
    torch.testing.assert_close(between(a, b, 7)[[0, -1]], torch.stack([a, b]))


def test_a_path_between_the_same_points_stays_there():
    a = torch.ones(3, dtype=torch.float64)
    torch.testing.assert_close(between(a, a, 4), a.expand(4, 3))


def test_info_says_what_the_model_is(model_file):
    about = json.loads(run("info", model_file.parent).output)
    assert about["data"] == DATA
    assert (about["calibrated_on"], about["calibration_groups"]) == (200, 200)


@pytest.mark.parametrize(("arguments", "message"), [
    (["score", "{model}", "nowhere"], "does not exist"),
    (["score", "nowhere", "{pictures}"], "There is no model at"),
    (["score", "{model}", "{model}"], "is no picture"),
    (["score", "{model}", "{pictures}/broken.png"], "None of the pictures can be read"),
    (["score", "{model}", "{empty}"], "There are no pictures in"),
    (["score", "{model}", "{pictures}", "--at-most", "150%"], "is no probability"),
    (["sample", "{model}", "--dim", "1000"], "Allowed: 1 to 192"),
    (["interpolate", "{model}", "{pictures}", "{pictures}"], "one picture each"),
    (["sample", "{model}", "--device", "moon"], "device=moon cannot be used"),
    (["score", "{model}", "{pictures}", "--at-most", "0.1%"],
     "at least 1/201 (0.498%), the smallest p-value of a calibration on 200 images, got 0.100%"),
    (["score", "{uncalibrated}", "nowhere"], "written by an earlier version, or by a phase"),
    (["score", "{few}", "nowhere", "--at-most", "5%"], "carries no calibration, and its scores no "
     "p-values. There were 3 images."),
    (["score", "{of_dim}", "nowhere"], "the dimension that was trained, 16, and not of 5. Score"),
    (["score", "{dataless}", "{pictures}"], "does not say what images"),
])  # fmt: skip
def test_mistakes_end_in_one_message(model_file, pictures, tmp_path, arguments, message):
    others = {
        "uncalibrated": {"calibration": {}},
        "few": {"calibration": {"why": "There were 3 images."}},
        "dataless": {"data": {}},
    }
    places = {"model": model_file, "pictures": pictures[0], "empty": tmp_path / "empty"}
    for name, changes in others.items():
        model = Model.load(model_file)
        for attribute, value in changes.items():
            setattr(model, attribute, value)
        places[name] = tmp_path / f"{name}.safetensors"
        model.save(places[name])
    places["of_dim"] = tmp_path / "of_dim.safetensors"
    Model.load(model_file).at_dim(5).save(places["of_dim"])
    places["empty"].mkdir()
    result = run(*(each.format(**places) for each in arguments))
    assert result.exit_code != 0
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output
