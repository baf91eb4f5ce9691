"""Random uses of ``submanifold``: each succeeds or reports one error, and leaves no partial file.

``SUBMANIFOLD_FUZZ_EXAMPLES=10000 pytest -n 0 tests/inference/test_fuzz.py`` tries more.
"""

import contextlib
import io
import json
import os
import shutil
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from calibrated import calibrated_model
from submanifold.cli import cli
from submanifold.common import processes
from submanifold.flows import RealNVP
from submanifold.models import Hierarchy, Stage

EXAMPLES = int(os.environ.get("SUBMANIFOLD_FUZZ_EXAMPLES", "150"))
SUFFIXES = ("png", "png", "jpg", "bmp", "gif", "webp", "tiff", "PNG", "txt", "zip", "")
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")
MODES = ("1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "I;16", "I", "F", "YCbCr")
LETTERS = (
    "a",
    "b",
    " ",
    "=",
    "-",
    "+",
    "@",
    "'",
    '"',
    "%s",
    "{}",
    "~",
    "..",
    ".",
    "\n",
    "\r",
    "\x1b[2J",
    "\u202e",
    "\udcff",
    "é",
    "e\u0301",
    "猫",
    "🙂",
    "\\",
    "*",
    ":",
    "#",
    "png",
    "x" * 120,
)
VALUES = (
    "0",
    "1",
    "2",
    "3",
    "-1",
    "1.5",
    "nan",
    "inf",
    "1e400",
    "",
    "x",
    "1_0",
    "٣",
    "1%",
    "50 %",
    "150%",
    "9" * 20,
    "1e-320",
    "0x10",
    "16",
    "192",
    "193",
)
DEVICES = ("cpu", "cpu", "cpu", "auto", "cuda:99", "meta", "moon", "", "cpu:1", "\udcff")
OPTIONS = {
    "score": ("--alpha", "--nearest", "--device"),
    "encode": ("--nearest", "--device"),
    "project": ("--nearest", "--device", "--dim"),
    "sample": ("-n", "--temperature", "--seed", "--dim", "--device"),
    "info": (),
}
INPUTS = {"sample": (0, 0), "info": (0, 0)}

names = st.builds(
    lambda letters, suffix: (
        f"{''.join(letters)}.{suffix}".replace("/", "_") if suffix else f"_{''.join(letters)}"
    ),
    st.lists(st.sampled_from(LETTERS), min_size=1, max_size=4),
    st.sampled_from(SUFFIXES),
)


@st.composite
def damaged(draw, content):
    """Replace, remove or insert bytes somewhere."""
    start = draw(st.integers(0, len(content)))
    end = draw(st.integers(start, min(len(content), start + 100)))
    return content[:start] + draw(st.binary(max_size=20)) + content[end:]


@st.composite
def encoded_images(draw):
    size = draw(st.sampled_from((1, 2, 7, 8, 9, 31, 300))), draw(st.sampled_from((1, 2, 8, 64)))
    pixels = np.random.default_rng(draw(st.integers(0, 9))).integers(0, 256, (*size, 3), np.uint8)
    image, mode = Image.fromarray(pixels), draw(st.sampled_from(MODES))
    buffer = io.BytesIO()
    try:
        image = image.convert("I") if mode.startswith("I") else image
        image.convert(mode).save(buffer, draw(st.sampled_from(FORMATS)))
    except (OSError, ValueError, KeyError):  # the format does not support the mode
        Image.fromarray(pixels).save(buffer, "PNG")
    content = buffer.getvalue()
    return draw(st.one_of(st.just(content), st.just(content), damaged(content), st.binary()))


@st.composite
def zips(draw):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in draw(st.lists(names, max_size=3, unique=True)):
            folder = draw(st.sampled_from(("", "a/", "../", "/", "C:\\")))
            name = (folder + name).encode("utf-8", "replace").decode()
            archive.writestr(name, draw(encoded_images()))
    return draw(st.one_of(st.just(buffer.getvalue()), damaged(buffer.getvalue())))


@st.composite
def edited_headers(draw, content):
    """Change a value in the header of a safetensors file."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    key = draw(st.sampled_from(sorted(header["__metadata__"])))
    text = header["__metadata__"][key]
    values = ("", "null", "[]", "{}", "0", "1e999", '"x"', text[: len(text) // 2], text.upper())
    header["__metadata__"][key] = draw(st.sampled_from(values))
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + content[8 + size :]


def create_path(draw, path, models, depth=0):
    """Create an image, a zip, a folder, a model, a link, a pipe, or nothing."""
    kind = draw(st.sampled_from(("image",) * 8 + ("zip", "folder", "model", "link", "pipe", "no")))
    if kind == "image":
        path.write_bytes(draw(encoded_images()))
    elif kind == "zip":
        path = path.with_name("images.zip")
        path.write_bytes(draw(zips()))
    elif kind == "folder" and depth < 2:
        path.mkdir(exist_ok=True)
        for name in draw(st.lists(names, max_size=3)):
            with contextlib.suppress(OSError):  # the name exists, or is too long
                create_path(draw, path / name, models, depth + 1)
    elif kind == "model":
        path.write_bytes(models[0])
    elif kind == "link":
        path.symlink_to(draw(st.sampled_from(("nowhere", path.name, ".."))))
    elif kind == "pipe":
        os.mkfifo(path)
    return path


@st.composite
def uses(draw, models):
    """Create files in the working directory, and return the arguments of a command."""
    command = draw(st.sampled_from([*OPTIONS]))
    content = draw(st.sampled_from((*models, *[models[0]] * 5)))
    content = draw(
        st.one_of(*[st.just(content)] * 4, damaged(content), edited_headers(content), st.binary())
    )
    given = [Path("model.safetensors")]
    given[0].write_bytes(content)
    for number in range(draw(st.integers(*INPUTS.get(command, (1, 3))))):
        name = draw(names)
        with contextlib.suppress(OSError):
            given.append(create_path(draw, Path(f"{number}{name}"), models))
    options = []
    if command != "info":
        suffix = draw(st.sampled_from((".csv", ".npz", ".png", "", ".jpg")))
        outs = ("out", "new/deep/out", "a" * 250, "b" * 300, "/dev/null", f"{given[-1]}/out")
        path = draw(st.sampled_from(outs))
        options += ["--out", draw(st.sampled_from((f"{path}{suffix}", "out", ".", given[-1])))]
    if command == "score" and draw(st.booleans()):
        options += ["--sheet", draw(st.sampled_from(("sheet.png", "new/s.png", given[-1])))]
    for option in OPTIONS[command]:
        if draw(st.integers(0, 4)) == 0:
            values = DEVICES if option == "--device" else VALUES
            options += [option, *([] if option == "--nearest" else [draw(st.sampled_from(values))])]
    return [str(each) for each in (command, *options, "--", *given)]


def snapshot():
    """Return the content of each path below the working directory; links are not followed."""
    found = {}
    for folder, folders, files in os.walk("."):
        for path in (Path(folder, name) for name in folders + files):
            is_file = path.is_file() and not path.is_symlink()
            found[path] = path.read_bytes() if is_file else path.lstat().st_mode
    return found


def check_complete(path):
    if path.suffix == ".csv":
        names = pd.read_csv(path)["picture"]
        assert len(names)
        assert not names.str.match(r"[=+@\-\t\r]").any()
    elif path.suffix == ".npz":
        assert all(len(array) for array in np.load(path).values())
    elif path.is_file():
        Image.open(path).load()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Files of a calibrated model, an uncalibrated one, and a model of points."""
    path, found = tmp_path_factory.mktemp("models") / "model.safetensors", []
    calibrated = calibrated_model()
    uncalibrated = calibrated.with_facts(calibration={})
    torch.manual_seed(0)
    for model in (calibrated, uncalibrated, Hierarchy([Stage(RealNVP(3, 2, 8), 2)])):
        model.save(path)
        found.append(path.read_bytes())
    return found


@pytest.fixture
def folder(monkeypatch):
    monkeypatch.setattr(processes, "free_memory", lambda: 4 * 10**6)  # keeps examples small
    with tempfile.TemporaryDirectory() as path:
        monkeypatch.chdir(path)
        yield Path(path)
        monkeypatch.undo()


@pytest.mark.filterwarnings("ignore:Duplicate name")
@given(data=st.data())
@settings(max_examples=EXAMPLES, deadline=60_000, suppress_health_check=list(HealthCheck))
def test_every_use_succeeds_or_reports_one_error(models, folder, data):
    os.chdir(folder)
    shutil.rmtree(folder / "here", ignore_errors=True)
    (folder / "here").mkdir()  # links to ".." lead out of it
    os.chdir(folder / "here")
    arguments = data.draw(uses(models))
    before = snapshot()
    result = CliRunner().invoke(cli, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    after = snapshot()
    assert {path: after.get(path) for path in before} == before, "changed an input"
    created = after.keys() - before.keys()
    if result.exit_code == 0:
        assert not any(part.startswith(".") for path in created for part in path.parts)
        for path in created:
            check_complete(path)
    else:
        lines = result.stderr.splitlines()
        assert lines[-1].startswith("Error: ")
        assert sum(line.startswith("Error: ") for line in lines) == 1
        assert not [path for path in created if path.is_file()]
