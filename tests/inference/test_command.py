import csv
import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from calibrated import calibrated_model, png, smooth_images
from commands import run
from submanifold import Predictor
from submanifold.common.errors import UserError
from submanifold.data.events import Events
from submanifold.evaluation.discoveries import false_discovery_bound
from submanifold.flows import RealNVP
from submanifold.inference.outputs import output
from submanifold.inference.records import RunRecord, write_record
from submanifold.inference.training_events import hash_events
from submanifold.models import Hierarchy, Model, Stage


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "hierarchy.safetensors"
    calibrated_model().save(path)
    return path


def noise_image():
    return np.random.default_rng(3).integers(0, 256, (3, 8, 8), dtype=np.uint8)


@pytest.fixture
def images(tmp_path):
    """A folder of four smooth images and a broken one; a zip with an image of noise."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number, image in enumerate(smooth_images(4, 2)):
        (folder / f"{number}.png").write_bytes(png(image))
    (folder / "broken.png").write_bytes(b"not an image")
    with zipfile.ZipFile(tmp_path / "noise.zip", "w") as archive:
        archive.writestr("inside/noise.png", png(noise_image()))
    return folder, tmp_path / "noise.zip"


def assert_rejected(result, *texts):
    """Check that a command failed with a single line that contains some texts."""
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    for text in texts:
        assert text in result.stderr


def test_a_path_of_an_option_may_begin_with_the_home_folder(model_file, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    shutil.copy(model_file, tmp_path / "home")
    result = run("sample", "~/hierarchy.safetensors", "-n", 1, "--out=~/new.png")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "home" / "new.png").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_score_finds_the_anomalous_image_and_skips_unreadable_files(
    model_file, images, tmp_path, caplog
):
    out, sheet = tmp_path / "new" / "scores.csv", tmp_path / "sheet.png"
    os.mkfifo(images[0] / "pipe.png")
    result = run("score", model_file, *images, "--alpha", "1%", "--out", out, "--sheet", sheet)
    assert result.exit_code == 0, result.output
    scores = Predictor.load(model_file).score(smooth_images(4, 2))["anomaly_score"]
    order = np.argsort(-scores.to_numpy())
    names = [f"{images[1]}:inside/noise.png", *(f"{images[0]}/{number}.png" for number in order)]
    shown = result.output.split("the most anomalous first\n")[1].splitlines()[:5]
    assert [line.split()[1] for line in shown] == names
    assert "1 of 5 images are flagged (p-value at most 0.01)" in result.output
    assert "if all were like the training images, 0 to 1 would be in 95% of cases" in result.output
    assert "Skipped 2 unreadable images" in caplog.text
    for path in (images[0] / "broken.png", images[0] / "pipe.png"):
        assert f"skipped {path} (" in caplog.text
    table = pd.read_csv(out).set_index("picture")
    assert table.index[table["ood"]].tolist() == [f"{images[1]}:inside/noise.png"]
    assert table["p_value"].between(0, 1).all()
    assert table["anomaly_score"].idxmax() == f"{images[1]}:inside/noise.png"
    pictures = [*smooth_images(4, 2), noise_image()]
    drawn = np.asarray(Image.open(sheet))[::8, ::8].transpose(2, 0, 1)
    # the two most anomalous images, a blank row, and the two least anomalous ones
    places = ((4, 0, 0), (order[0], 0, 9), (order[-1], 18, 0), (order[-2], 18, 9))
    for number, row, column in places:
        place = drawn[:, row : row + 8, column : column + 8]
        np.testing.assert_array_equal(place, pictures[number])


def test_project_writes_images_or_arrays(model_file, images, tmp_path):
    run("project", model_file, images[0], "--out", tmp_path / "folder", "--dim", 40)
    files = sorted(os.listdir(tmp_path / "folder"))
    assert files == [f"0000{number}-{number}.png" for number in range(4)]
    run("project", model_file, images[0], "--out", tmp_path / "p.npz", "--nearest")
    arrays = np.load(tmp_path / "p.npz")
    np.testing.assert_array_equal(arrays["originals"], smooth_images(4, 2))
    assert arrays["projections"].shape == (4, 3, 8, 8)
    result = run("project", model_file, images[0], "--out", tmp_path / "folder")
    assert_rejected(result, "expected an empty folder")
    assert sorted(os.listdir(tmp_path / "folder")) == files


def test_samples_depend_only_on_the_seed(model_file, tmp_path):
    arrays = []
    for number, seed in enumerate((0, 0, 1)):
        out = tmp_path / f"{number}.npz"
        run("sample", model_file, "-n", 5, "--seed", seed, "--out", out)
        arrays.append(np.load(out)["samples"])
    np.testing.assert_array_equal(arrays[0], arrays[1])
    assert (arrays[0] != arrays[2]).any()
    run("sample", model_file, "-n", 5, "--out", tmp_path / "x.png")
    assert Image.open(tmp_path / "x.png").size[0] > 5 * 8


def test_info_describes_the_model(model_file):
    about = json.loads(run("info", model_file.parent, "--json").output)
    assert about["data"]["size"] == 8
    assert (about["calibrated_on"], about["calibration_groups"]) == (200, 200)
    texts = dict(line.split(maxsplit=1) for line in run("info", model_file).output.splitlines())
    assert texts["model"] == f"hierarchy, {about['parameters']:,} weights"
    assert texts["stage"].split(maxsplit=1)[1] == "glow > rotation, d = 16"
    assert texts["data"].startswith("size 8, channels 3")
    assert texts["calibration"] == "200 images; the smallest p-value is 0.498%"
    first, *table = run("info", model_file, "--audit").output.splitlines()
    assert first == "Samples on the manifold"
    assert any(line.split()[:2] == ["log-determinant", "pass"] for line in table)


def test_runs_shows_the_files_of_a_run_under_their_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    about = {"dataset": "photos", "method": "Glow", "started": "2020-02-03T04:05:06"}
    files = {name: f"data/{name}.file" for name in ("model", "metrics", "report")}
    write_record(tmp_path, RunRecord("first", "key", **about, **files), "first")
    rows = [line.split() for line in run("runs", "first").output.splitlines()]
    paths = {name: f"{tmp_path}/{path}" for name, path in files.items()}
    assert dict(rows) == {"state": "interrupted", **about, **paths}


def test_a_false_discovery_rate_flags_more_than_the_smallest_p_values(model_file, tmp_path):
    folder = tmp_path / "new"
    folder.mkdir()
    for number, image in enumerate(smooth_images(40, 2)):
        if number < 10:
            image[:, ::2, number % 4 :] += 60
        (folder / f"{number:02d}.png").write_bytes(png(image))
    out = tmp_path / "scores.csv"
    result = run("score", model_file, folder, "--fdr=20%", "--out", out)
    assert result.exit_code == 0, result.output
    table = pd.read_csv(out)
    p = np.sort(table["p_value"])
    last = np.flatnonzero(p <= 0.2 * np.arange(1, 41) / 40).max()  # Benjamini and Hochberg (1995)
    assert table["ood"].equals(table["p_value"] <= p[last])
    assert table["ood"].sum() >= 10
    assert f"{last + 1} of 40 images are flagged; on average at most 20% of" in result.output
    bound = false_discovery_bound(table["p_value"].to_numpy(), 0.2, 200)
    assert f"At most {bound} of the flagged are like the training images, with" in result.output
    assert "Fewer than 1 of 40 cannot be flagged with a calibration on 200 images" in result.output
    assert Predictor.load(model_file).select(table["p_value"], 0.2).tolist() == [*table["ood"]]
    result = run("score", model_file, folder, "--fdr=1%", "--out", out)
    assert "0 of 40 images are flagged; on average at most 1% of the flagged" in result.output
    # all p-values of the flagged are at least 1/201, which is below 1% of 20/40
    assert "Fewer than 20 of 40 cannot be flagged" in result.output
    # 1/(3999 + 1) is 1% of 1/40
    assert "To flag 1, it takes a calibration on 3,999 images" in result.output
    assert "train with --params=data.counts.valid=3999, or run `submanif" in result.output
    assert "If some of these 200 images are anomalies" not in result.output
    for number in range(10):
        (folder / f"{number:02d}.png").unlink()
    result = run("score", model_file, folder, "--fdr=20%", "--out", out)
    assert "0 of 30 images are flagged" in result.output
    assert "If some of these 200 images are anomalies, they hide others" in result.output
    assert "data.counts.valid" not in result.output, "1/201 is below 20% of 1/30"


def test_calibrate_makes_p_values_of_other_images_uniform(model_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    brighter, before = smooth_images(100, 5) + 40, model_file.read_bytes()
    for name, images in {"own": brighter[:60], "new": brighter[60:]}.items():
        (tmp_path / name).mkdir()
        for number, image in enumerate(images):
            (tmp_path / name / f"{number}.png").write_bytes(png(image))
    model = Model.load(model_file)
    calibration = {**model.calibration, "training": [1, 2, 3]}  # hashes of other images
    model.with_facts(calibration=calibration).save("model.safetensors")
    result = run("calibrate", "model.safetensors", "own")
    assert result.exit_code == 0, result.output
    assert result.output.endswith(
        "calibrated on 60 images; the smallest p-value is 1.639%\ncalibrated.safetensors\n"
    )
    assert Predictor.load(model_file).score(brighter[60:])["p_value"].median() < 0.1
    assert Predictor.load("calibrated.safetensors").score(brighter[60:])["p_value"].median() > 0.3
    assert Model.load("calibrated.safetensors").calibration["training"] == [1, 2, 3]
    assert model_file.read_bytes() == before
    calibration["training"] = hash_events(model, Events(brighter[:60])).tolist()
    model.with_facts(calibration=calibration).save("model.safetensors")
    result = run("calibrate", "model.safetensors", "own")
    assert_rejected(result, "was not trained on, got about 100% of these")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["score", "{model}", "nowhere"], "no such file or folder"),
        (["score", "nowhere", "{images}"], "nowhere"),
        (["score", "{model}", "{model}"], "expected a folder, a zip, or a file with"),
        (["score", "{model}", "{images}/broken.png"], "No image could be read"),
        (["score", "{model}", "{empty}"], "expected files with one of"),
        (["score", "{model}", "{images}", "--alpha", "150%"], "expected a rate between 0 and 1"),
        (
            ["score", "{model}", "{images}", "--alpha", "0.1%"],
            "expected at least 1/201 (0.498%), the smallest p-value of a calibration on 200 images",
        ),
        (
            ["score", "{model}", "{images}", "--fdr", "0.1%"],
            "fdr: expected at least 1/201 (0.498%)",
        ),
        (
            ["score", "{model}", "{images}", "--fdr=5%", "--alpha=5%"],
            "--alpha and --fdr: expected one",
        ),
        (
            ["score", "{model}", "{images}", "--explain"],
            "--explain: expected none for a model of im",
        ),
        (
            ["calibrate", "{model}", "{images}"],
            "INPUTS: expected at least 20 images, got 4. Add more",
        ),
        (["calibrate", "{model}", "{images}", "--out={model}"], "expected a path other than"),
        (["score", "{uncalibrated}", "nowhere"], "model: expected a calibration of p-values"),
        (["score", "{few}", "nowhere"], "calibration of p-values, got none. There were 3 images."),
        (["score", "{of_dim}", "nowhere"], "The calibration is for dimension 16, not 5"),
        (["encode", "{dataless}", "{images}"], "expected a model of images"),
        (["sample", "{model}", "--dim", "1000"], "192"),
        (["sample", "{model}", "--device", "moon"], "device"),
        (["sample", "{model}", "--seed", "1" + "0" * 23], "is not in the range 0<=x<=4294967295"),
        (["sample", "{model}", "--temperature", "nan"], "temperature: expected 0 to 10, got nan"),
        (["sample", "{model}", "-n", "20000"], "expected at most 10,000 images in a PNG file"),
        (
            ["sample", "{model}", "-n", "9" * 50, "--out", "{empty}/a.npz"],
            "count: expected 1 to 10,000,000",
        ),
    ],
)
def test_mistakes_are_reported_in_one_message(
    model_file, images, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    changes = {
        "uncalibrated": {"calibration": {}},
        "few": {"calibration": {"why": "There were 3 images."}},
        "dataless": {"data": {}},
    }
    places = {"model": model_file, "images": images[0], "empty": tmp_path / "empty"}
    for name, attributes in changes.items():
        model = Model.load(model_file)
        places[name] = tmp_path / f"{name}.safetensors"
        model.with_facts(**attributes).save(places[name])
    places["of_dim"] = tmp_path / "of_dim.safetensors"
    Model.load(model_file).at_dim(5).save(places["of_dim"])
    places["empty"].mkdir()
    result = run(*(each.format(**places) for each in arguments))
    assert result.exit_code != 0
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_two_commands_do_not_mix_their_files_in_a_folder(tmp_path):
    out = tmp_path / "projections"

    def write(name, meanwhile=lambda: None):
        with output("--out", out) as folder:
            (folder / name).touch()
            meanwhile()

    with pytest.raises(UserError, match=r"^--out=.*projections: expected an empty folder"):
        write("slow.png", lambda: write("fast.png"))
    assert os.listdir(out) == ["fast.png"]


# ---- file names

NAMES = {
    "not UTF-8": (os.fsdecode(b"caf\xe9.png"), r"caf\udce9"),
    "255 bytes of UTF-8": ("ü" * 125 + ".png", "ü" * 125),
    "control characters": ("a\x1b[31m\r\t\n\u202eb.png", r"a\x1b[31m\r\t\n\u202eb"),
    "formula": ("=1+cmd|' C calc'!A0.png", r"\x3d1+cmd|' C calc'!A0"),
}


@pytest.mark.parametrize("name", NAMES)
def test_file_names_are_escaped_in_all_outputs(model_file, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    given, shown = NAMES[name]
    Path(given).write_bytes(png(smooth_images(1, 2)[0]))
    Path(f"b{given[1:]}").write_bytes(b"not an image")
    paths = ["--", model_file, given, f"b{given[1:]}"]
    result = run("score", *paths)
    assert result.exit_code == 0, result.output
    with open("scores.csv", encoding="utf-8", newline="") as file:
        assert [row[0] for row in csv.reader(file)] == ["picture", f"{shown}.png"]
    assert f"  {shown}.png\n" in result.output
    run("encode", *paths)
    assert np.load("codes.npz")["names"].tolist() == [f"{shown}.png"]
    run("project", *paths)
    assert os.listdir("projections") == [f"00000-{shown[:50]}.png"]


def test_names_in_messages_are_escaped(model_file, tmp_path):
    assert r"new\nline" in run("info", "new\nline").stderr
    assert r"unexpected extra argument (new\nline)" in run("info", "a", "new\nline").stderr
    folder = tmp_path / os.fsdecode(b"\n\xff")
    assert r"\n\udcff/file.txt" in run("sample", model_file, "--out", folder / "file.txt").stderr


# ---- outputs

OUTPUTS = [
    ("score", "{out}.csv"),
    ("encode", "{out}.npz"),
    ("project", "{out}.npz"),
    ("project", "{out}"),
    ("sample", "{out}.npz"),
    ("sample", "{out}.png"),
]
INPUTS = {"score": 1, "encode": 1, "project": 1, "sample": 0}


def arguments(command, model="nowhere", image="nowhere"):
    return [command, model, *[image] * INPUTS[command]]


@pytest.mark.parametrize(("command", "out"), OUTPUTS)
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("other", "got something else"),
        ("file.txt/new", "Not a directory"),
        ("x" * 300, "File name too long"),
        ("read_only/new", "Read-only file system"),
    ],
)
def test_outputs_are_checked_before_the_inputs_are_read(
    model_file, tmp_path, read_only, command, out, name, message
):
    (tmp_path / "file.txt").touch()
    (tmp_path / "read_only").mkdir()
    read_only(tmp_path / "read_only")
    path = Path(out.format(out=tmp_path / name))
    if name == "other":
        path.mkdir() if path.suffix else path.touch()
    before = sorted(tmp_path.rglob("*"))
    assert_rejected(run(*arguments(command, model_file), "--out", path), "--out=", message)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("out", [".", "/"])
def test_scores_are_not_written_to_a_folder(model_file, out):
    assert_rejected(run("score", model_file, "nowhere", "--out", out), "--out=", "got no suffix")


@pytest.mark.parametrize(
    ("command", "out"),
    [
        ("encode", "codes.png"),
        ("score", "scores"),
        ("sample", "samples.jpg"),
        ("project", "projections.tar.gz"),
    ],
)
def test_outputs_have_a_supported_suffix(model_file, tmp_path, command, out):
    result = run(*arguments(command, model_file), "--out", tmp_path / out)
    assert_rejected(
        result, f"--out={tmp_path / out}: expected ", f", got {Path(out).suffix or 'no suf'}"
    )


@pytest.mark.parametrize(
    ("command", "option", "name"),
    [
        ("score", "--sheet", "image.png"),
        ("score", "--sheet", "link.png"),
        ("sample", "--out", "model.png"),
        ("encode", "--out", "model.npz"),
    ],
)
def test_inputs_and_models_are_not_overwritten(
    model_file, tmp_path, monkeypatch, command, option, name
):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("folder/image.png").write_bytes(png(smooth_images(1, 2)[0]))
    Path("folder/link.png").symlink_to("image.png")
    Path("folder/model.png").write_bytes(model_file.read_bytes())
    os.link("folder/model.png", "folder/model.npz")
    before = {path: path.read_bytes() for path in Path("folder").iterdir()}
    image = "folder" if command == "score" else "folder/image.png"
    result = run(*arguments(command, "folder/model.png", image), option, f"folder/{name}")
    assert_rejected(result, f"{option}=folder/{name}: expected a path other than the inputs, got ")
    assert {path: path.read_bytes() for path in Path("folder").iterdir()} == before


@pytest.mark.parametrize(("command", "out"), OUTPUTS)
def test_a_full_disk_is_reported_and_leaves_no_partial_file(
    model_file, images, small_disk, command, out
):
    image = images[0] / "0.png"
    (small_disk / "rest").write_bytes(bytes(2**21 - 2 * 4096))
    more = ["-n", 200] if command == "sample" else [image] * 100
    path = out.format(out=small_disk / "new" / "it")
    result = run(*arguments(command, model_file, image), *more, "--out", path)
    assert_rejected(result, "No space left on device")
    assert [path.name for path in small_disk.rglob("*") if path.is_file()] == ["rest"]


def test_samples_of_points_are_written_as_arrays_only(tmp_path):
    file = tmp_path / "points.safetensors"
    Hierarchy([Stage(RealNVP(3, 2, 8), 2)]).save(file)
    result = run("sample", file, "--out", tmp_path / "x.png")
    assert_rejected(result, "64 samples of shape (3,). Use an .npz file.")
    run("sample", file, "--out", tmp_path / "x.npz", "-n", 9)
    assert np.load(tmp_path / "x.npz")["samples"].shape == (9, 3)
