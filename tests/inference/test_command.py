import csv
import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy
import torch
from click.testing import CliRunner
from PIL import Image

from submanifold.common.errors import UserError
from submanifold.data import dequantize
from submanifold.evaluation.scores import QUICK, Calibration, score
from submanifold.flows import Glow, RealNVP
from submanifold.inference.command import main
from submanifold.inference.scoring import (
    between,
    encode_pictures,
    project_pictures,
    sample_pictures,
    score_pictures,
)
from submanifold.models import Hierarchy, Model, Stage

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
    result = run("score", model_file, *pictures, "--alpha", "1%", "--out", out, "--sheet", sheet)
    assert result.exit_code == 0, result.output
    assert "1 of 5 are ood at 0.01" in result.output
    assert "1 could not be read" in result.output
    table = pd.read_csv(out).set_index("picture")
    assert len(table) == 5
    assert table.index[table["ood"]].tolist() == [f"{pictures[1]}:inside/noise.png"]
    assert table["p_value"].between(0, 1).all()
    assert Image.open(sheet).size[0] > 8


def test_what_is_no_file_is_passed_over_and_named(model_file, pictures, tmp_path, caplog):
    os.mkfifo(pictures[0] / "inside.png")
    os.mkfifo(tmp_path / "beside.png")
    result = run(
        "encode", model_file, *pictures, tmp_path / "beside.png", "--out", tmp_path / "a.npz"
    )
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
    (["score", "{model}", "{pictures}", "--alpha", "150%"], "is no probability"),
    (["sample", "{model}", "--dim", "1000"], "Allowed: 1 to 192"),
    (["interpolate", "{model}", "{pictures}", "{pictures}"], "one picture each"),
    (["sample", "{model}", "--device", "moon"], "device=moon cannot be used"),
    (["score", "{model}", "{pictures}", "--alpha", "0.1%"],
     "at least 1/201 (0.498%), the smallest p-value of a calibration on 200 images, got 0.100%"),
    (["score", "{uncalibrated}", "nowhere"], "written by an earlier version, or by a phase"),
    (["score", "{few}", "nowhere", "--alpha", "5%"], "carries no calibration, and its scores no "
     "p-values. There were 3 images."),
    (["score", "{of_dim}", "nowhere"], "the dimension that was trained, 16, and not of 5. Score"),
    (["encode", "{dataless}", "{pictures}"], "does not say what images"),
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


# ---- names of files

NAMES = {
    "not UTF-8": (os.fsdecode(b"caf\xe9.png"), r"caf\udce9"),
    "255 bytes": ("x" * 251 + ".png", "x" * 251),
    "255 bytes of UTF-8": ("ü" * 125 + ".png", "ü" * 125),
    "a line break": ("a\nb.png", r"a\nb"),
    "control characters": ("a\x1b[31m\r\t\u202eb.png", r"a\x1b[31m\r\t\u202eb"),
    "a formula": ("=1+cmd|' C calc'!A0.png", r"\x3d1+cmd|' C calc'!A0"),
    "a sum": ("+1.png", r"\x2b1"),
}


@pytest.mark.parametrize("name", NAMES)
def test_names_of_files_are_escaped_in_all_that_is_written(model_file, tmp_path, monkeypatch, name):
    """Names are relative: what a table's cell begins with is what the file's name begins with."""
    monkeypatch.chdir(tmp_path)
    given, shown = NAMES[name]
    Path(given).write_bytes(encoded(smooth(1, 2)[0]))
    Path(f"b{given[1:]}").write_bytes(b"no picture")
    places = ["--", model_file, given, f"b{given[1:]}"]
    result = run("score", "--sheet", "s.png", *places)
    assert result.exit_code == 0, result.output
    with open("scores.csv", encoding="utf-8", newline="") as file:
        assert [row[0] for row in csv.reader(file)] == ["picture", f"{shown}.png"]
    assert f"  {shown}.png\n" in result.output
    for command in "encode", "project":
        result = run(command, "--out", "arrays.npz", *places)
        assert result.exit_code == 0, result.output
        assert np.load("arrays.npz")["names"].tolist() == [f"{shown}.png"]
    assert run("project", "--out", "folder", *places).exit_code == 0
    assert os.listdir("folder") == [f"00000-{shown[:50]}.png"]


def test_names_in_messages_are_escaped(model_file, tmp_path):
    """Folder, file and output of names that no terminal can show."""
    place = tmp_path / os.fsdecode(b"new\nline\xff")
    place.mkdir()
    (place / "broken.png").write_bytes(b"no picture")
    assert r"new\nline\udcff/broken.png (" in run("score", model_file, place).stderr
    assert r"new\nline\udcff does not exist" in run("score", model_file, place / place.name).stderr
    assert r"new\nline" in run("info", "new\nline").stderr
    assert r"unexpected extra argument (new\nline)" in run("info", "a", "new\nline").stderr
    out = place / "samples.npz"
    assert r"new\nline\udcff/samples.npz" in run("sample", model_file, "--out", out).stdout


# ---- outputs

TABLES = {
    "score": "{out}.csv", "encode": "{out}.npz", "project": "{out}.npz", "sample": "{out}.npz",
    "interpolate": "{out}.npz",
}  # fmt: skip
INPUTS = {"score": 1, "encode": 1, "project": 1, "sample": 0, "interpolate": 2}
OUTPUTS = [
    *TABLES.items(), ("sample", "{out}.png"), ("interpolate", "{out}.png"), ("project", "{out}"),
]  # fmt: skip


def refused(result, *texts):
    """Whether a command has ended in one line, which holds some texts."""
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    for text in texts:
        assert text in result.stderr


def arguments(command, model, picture):
    return [command, model, *[picture] * INPUTS[command]]


@pytest.mark.parametrize(("command", "out"), OUTPUTS)
@pytest.mark.parametrize(("place", "message"), [
    ("folder", "expected a {kind}, got a {other}"),
    ("file.txt/new", "file.txt is no folder"),
    ("missing/" + "x" * 300, "expected names of at most 255 bytes"),
    ("x" * 300, "File name too long"),
    ("/dev/full/new", "/dev/full is no folder"),
])  # fmt: skip
def test_outputs_are_checked_before_the_model_is_read(tmp_path, command, out, place, message):
    path = out.format(out=tmp_path / place)
    kind = "file" if Path(path).suffix else "folder"
    other = "folder" if Path(path).suffix else "file"
    for name in ("file.txt", *(["folder"] if kind == "folder" else [])):
        (tmp_path / name).touch()
    if kind == "file":
        Path(out.format(out=tmp_path / "folder")).mkdir()
    before = sorted(tmp_path.rglob("*"))
    result = run(*arguments(command, "nowhere", "nowhere"), "--out", path)
    refused(result, f"--out={tmp_path / place}"[:40], message.format(kind=kind, other=other))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("command", "out"), OUTPUTS)
def test_what_may_only_be_read_is_not_written(tmp_path, read_only, command, out):
    read_only(tmp_path)
    path = out.format(out=tmp_path / "missing" / "new")
    refused(
        run(*arguments(command, "nowhere", "nowhere"), "--out", path), f"{tmp_path} is read-only"
    )


@pytest.mark.parametrize(("command", "out"), [
    ("encode", "codes.csv"), ("encode", "codes"), ("score", "scores.npz"), ("score", "scores"),
    ("sample", "samples.jpg"), ("sample", "samples"), ("interpolate", "path"),
    ("project", "projections.png"), ("project", "projections.tar.gz"),
])  # fmt: skip
def test_an_output_has_one_of_the_suffixes_that_are_written(tmp_path, command, out):
    result = run(*arguments(command, "nowhere", "nowhere"), "--out", tmp_path / out)
    refused(result, f"--out={tmp_path / out}: expected a file that ends in ")


def test_a_sheet_is_checked_before_the_model_is_read(tmp_path):
    refused(run("score", "nowhere", "nowhere", "--sheet", tmp_path), "--sheet=", "ends in .png")
    refused(run("score", "nowhere", "nowhere", "--out", tmp_path / "a.csv", "--sheet", "/dev/full"))


def test_projections_go_to_a_new_or_an_empty_folder(model_file, pictures, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert run("project", model_file, pictures[0], "--out", ".").exit_code == 0
    found = sorted(os.listdir())
    assert found == [f"0000{number}-{number}.png" for number in range(4)]
    refused(run("project", model_file, pictures[0], "--out", "."), "--out=.: expected a new or")
    assert sorted(os.listdir()) == found


@pytest.mark.parametrize(("command", "option", "name"), [
    ("score", "--sheet", "picture.png"), ("interpolate", "--out", "picture.png"),
    ("score", "--sheet", "link.png"), ("score", "--sheet", "model.png"),
    ("sample", "--out", "model.png"), ("encode", "--out", "model.npz"),
])  # fmt: skip
def test_inputs_and_models_are_not_overwritten(
    model_file, tmp_path, monkeypatch, command, option, name
):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("folder/picture.png").write_bytes(encoded(smooth(1, 2)[0]))
    Path("folder/link.png").symlink_to("picture.png")
    Path("folder/model.png").write_bytes(model_file.read_bytes())
    os.link("folder/model.png", "folder/model.npz")
    before = {path: path.read_bytes() for path in Path("folder").iterdir()}
    picture = "folder" if command == "score" else "folder/picture.png"
    result = run(*arguments(command, "folder/model.png", picture), option, f"folder/{name}")
    refused(result, f"{option}=folder/{name}: expected another file than the inputs, got folder/")
    assert {path: path.read_bytes() for path in Path("folder").iterdir()} == before


@pytest.mark.parametrize(("command", "out"), OUTPUTS)
def test_a_disk_that_gets_full_is_one_line_and_leaves_nothing(
    model_file, pictures, small_disk, command, out
):  # fmt: skip
    picture = pictures[0] / "0.png"
    with open(small_disk / "rest", "wb", buffering=0) as file:
        file.write(bytes(2**21 - 2 * 4096))
    asked = arguments(command, model_file, picture) + {
        "score": [picture] * 100, "encode": [picture] * 100, "project": [picture] * 100,
        "sample": ["-n", 200], "interpolate": ["--steps", 200],
    }[command]  # fmt: skip
    path = out.format(out=small_disk / "new" / "it")
    refused(run(*asked, "--out", path), f"--out={path} cannot be written (No space left on device)")
    assert [path.name for path in small_disk.rglob("*") if path.is_file()] == ["rest"]
    with open(small_disk / "rest", "ab", buffering=0) as file:
        file.write(bytes(4096 * 4))
    refused(run(*arguments(command, "nowhere", picture), "--out", path), "its disk is full")


# ---- what is asked for


@pytest.mark.parametrize(("asked", "name"), [
    (["sample", "{model}", "-n", "1000000000"], "count"),
    (["sample", "{model}", "-n", "1000000000", "--out", "{out}.npz"], "count"),
    (["sample", "{model}", "-n", "9" * 50], "count"),
    (["interpolate", "{model}", "{picture}", "{picture}", "--steps", "1000000000"], "steps"),
    (["interpolate", "{model}", "{picture}", "{picture}", "--steps", "1000000000",
      "--out", "{out}.npz"], "steps"),
])  # fmt: skip
def test_what_does_not_fit_in_memory_is_refused(model_file, pictures, tmp_path, asked, name):
    places = {"model": model_file, "picture": pictures[0] / "0.png", "out": tmp_path / "out"}
    refused(run(*(each.format(**places) for each in asked)), f"{name}: expected at most", " GB of ")


@pytest.mark.parametrize("command", ["score", "encode", "project"])
def test_pictures_that_do_not_fit_in_memory_are_refused(
    model_file, pictures, tmp_path, monkeypatch, command
):  # fmt: skip
    monkeypatch.setattr("submanifold.common.processes.free_memory", lambda: 500)
    out = TABLES[command].format(out=tmp_path / "out")
    refused(run(command, model_file, pictures[0], "--out", out), "pictures: expected at most", "5")


@pytest.mark.parametrize(("option", "value", "message"), [
    ("--seed", 10**23, "seed: expected an integer from -2^63 to 2^63 - 1, got 1000000000000"),
    ("--temperature", "nan", "temperature: expected 0 to 10, got nan"),
    ("--temperature", "inf", "temperature: expected 0 to 10, got inf"),
    ("--temperature", "-1", "temperature: expected 0 to 10, got -1.0"),
    ("-n", "0", "count: expected 1 or more, got 0"),
])  # fmt: skip
def test_samples_are_checked_before_the_model_is_read(tmp_path, option, value, message):
    out = ["--out", tmp_path / "samples.png"]
    refused(run("sample", "nowhere", *out, option, value), message)


def test_points_are_no_pictures(tmp_path):
    model = Hierarchy([Stage(RealNVP(3, 2, 8), 2)])
    model.save(tmp_path / "points.safetensors")
    result = run("sample", tmp_path / "points.safetensors", "--out", tmp_path / "x.png")
    refused(result, "x.png: expected a file that ends in .npz, as samples of shape (3,) are no")
    result = run("sample", tmp_path / "points.safetensors", "--out", tmp_path / "x.npz", "-n", 9)
    assert result.exit_code == 0, result.output
    assert np.load(tmp_path / "x.npz")["samples"].shape == (9, 3)


@pytest.mark.parametrize("use", [score_pictures, encode_pictures, project_pictures])
@pytest.mark.parametrize(("images", "got"), [
    (np.zeros((0, 3, 8, 8), np.uint8), r"got uint8 of shape \(0, 3, 8, 8\)"),
    (np.zeros((2, 1, 8, 8), np.uint8), r"got uint8 of shape \(2, 1, 8, 8\)"),
    (np.zeros((2, 3, 8, 8)), "got float64 of shape"),
])  # fmt: skip
def test_images_that_do_not_fit_the_model_are_refused(model_file, use, images, got):
    with pytest.raises(UserError, match=r"images: expected uint8 of shape \(N, 3, 8, 8\) .*" + got):
        use(Model.load(model_file), images)


def test_sampling_checks_its_values(model_file):
    with pytest.raises(UserError, match="temperature: expected 0 to 10, got nan"):
        sample_pictures(Model.load(model_file), 1, float("nan"), 0)
