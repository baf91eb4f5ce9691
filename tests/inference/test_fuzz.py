"""Random uses of ``submanifold``: each ends well or in one line, and leaves no part of a file.

A case is a function of its number alone. The suite runs those that fit in SUBMANIFOLD_FUZZ_SECONDS;
``python tests/uses/test_fuzz.py <seconds> <first case>`` runs more of them and goes on after a
failure; ``python tests/uses/test_fuzz.py 0 <case>`` repeats one.
"""

import contextlib
import io
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from submanifold.common import processes
from submanifold.data import dequantize
from submanifold.evaluation.scores import QUICK, Calibration, score
from submanifold.flows import Glow, RealNVP
from submanifold.inference.command import main
from submanifold.models import Hierarchy, Stage

SECONDS = float(os.environ.get("SUBMANIFOLD_FUZZ_SECONDS", "10"))
SLOWEST = 60.0
MEMORY = 4 * 10**6  # that there is for a case, so that none takes long
ENDINGS = ("png", "jpg", "jpeg", "bmp", "gif", "webp", "tif", "tiff", "PNG", "txt", "zip", "")
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")
MODES = ("1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "I;16", "I", "F", "YCbCr")
SIZES = (1, 2, 3, 7, 8, 9, 16, 31, 64, 300)
LETTERS = ("a", "b", " ", "=", "-", "+", "@", "'", '"', "%s", "{}", "~", "..", ".", "\n", "\r",
           "\t", "\x1b[2J", "\u202e", "\udcff", "\udc80", "é", "e\u0301", "猫", "🙂", "\\", "*",
           ":", "#", "png", "npz", "x" * 120)  # fmt: skip
NUMBERS = (
    "0",
    "1",
    "2",
    "3",
    "-1",
    "1.5",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "",
    " ",
    "x",
    "1_0",
    "٣",
    "1%",
    "50%",
    "150%",
    "99999999999999999999",
    "1e-320",
    "0x10",
    "16",
    "192",
    "193",
    "-0",
)
GOOD = {"-n": ("1", "2", "9", "100"), "--temperature": ("0", "0.5", "1"), "--seed": ("0", "-1"),
        "--steps": ("2", "3", "20"), "--batch-size": ("1", "2", "99"), "--dim": ("1", "16", "100"),
        "--alpha": ("1%", "0.5", "50 %")}  # fmt: skip
DEVICES = ("cpu", "cpu", "cpu", "auto", "cuda:99", "meta", "moon", "", "cpu:1", "mps", "\udcff")


def tiny_models():
    """Files' bytes of a calibrated model of pictures, one without calibration, one of points."""
    torch.manual_seed(0)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 3, 8, 8), dtype=np.uint8)
    images = Hierarchy([Stage(Glow((3, 8, 8), levels=1, steps=1, width=4, whiten=False), 16)])
    with torch.no_grad():
        images(dequantize(torch.from_numpy(pixels)))
    images.eval()
    images.data = {"size": 8, "channels": 3, "crop": "square", "margin": 0}
    found = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        for model in (images, Hierarchy([Stage(RealNVP(3, 2, 8), 2)])):
            model.save(path)
            found.append(path.read_bytes())
        images.calibration = Calibration.fit(score(images, pixels), QUICK).to_dict()
        images.save(path)

        return [path.read_bytes(), *found]


class Case:
    """One use of the command, in the current folder, by the number that seeds it."""

    def __init__(self, number, models):
        self.random, self.models = random.Random(number), models

    def some(self, values):
        return self.random.choice(values)

    def chance(self, percent):
        return self.random.random() < percent / 100

    # ---- bytes

    def noise(self):
        return self.random.randbytes(self.some((0, 1, 10, 1000)))

    def damaged(self, content):
        """Bytes changed, cut, repeated or added somewhere."""
        content = bytearray(content)
        for _ in range(self.some((1, 1, 2, 10))):
            at = self.random.randrange(len(content) + 1)
            # headers are at the start, and in a zip at the end
            at = min(at, self.random.randrange(64)) if self.chance(40) else at
            at = len(content) - min(at, 64) if self.chance(20) else at
            at = max(at, 0)
            match self.some(("change", "cut", "insert", "drop", "zero", "ones")):
                case "change" if at < len(content):
                    content[at] = self.random.randrange(256)
                case "cut":
                    del content[at:]
                case "insert":
                    content[at:at] = self.noise()
                case "drop":
                    del content[at : at + self.some((1, 4, 100))]
                case "zero":
                    content[at : at + 4] = bytes(4)
                case "ones":
                    content[at : at + 4] = b"\xff" * 4
        return bytes(content)

    def picture(self):
        """An encoded picture, most often a good one."""
        mode, form = self.some(MODES), self.some(FORMATS)
        size = self.some(SIZES), self.some(SIZES)
        buffer = io.BytesIO()
        try:
            noise = Image.frombytes("RGB", size, self.random.randbytes(3 * size[0] * size[1]))
            image = (
                noise.convert("I").convert(mode) if mode.startswith("I") else noise.convert(mode)
            )
            image.save(buffer, form)
        except (OSError, ValueError, KeyError):  # a mode that the format has not
            noise.save(buffer, "PNG")
        content = buffer.getvalue()
        if self.chance(20):
            return self.damaged(content)
        return self.noise() if self.chance(4) else content

    def model(self):
        """The file of a model, most often of a good one."""
        content = self.some((*self.models, *[self.models[0]] * 7))
        if self.chance(85):
            return content
        return self.some(
            (self.noise, lambda: self.damaged(content), lambda: self.edited(content))
        )()

    def edited(self, content):
        """The file of a model whose header has other values."""
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        key = self.some(sorted(header["__metadata__"]))
        text = header["__metadata__"][key]
        header["__metadata__"][key] = self.some((
            "", "null", "[]", "{}", "0", "1e999", '"x"', text[: len(text) // 2], text.upper(),
        ))  # fmt: skip
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + content[8 + size :]

    # ---- files

    def name(self, ending=None):
        """A name of a file: of at most 255 bytes most often."""
        name = "".join(self.some(LETTERS) for _ in range(self.some((1, 1, 2, 3, 5))))
        ending = self.some(ENDINGS) if ending is None else ending
        name = (f"{name}.{ending}" if ending else name).replace("/", "_")
        return name if name not in (".", "..") else "dots"

    def path(self, folder):
        """A path of a file that is not there."""
        for _ in range(20):
            path = folder / self.name(self.some((None, "png")))
            with contextlib.suppress(OSError):
                if not os.path.lexists(path):
                    path.touch()
                    path.unlink()
                    return path
        return folder / f"{self.random.random()}.png"

    def place(self, folder, depth=0):
        """Pictures, or something else, at a path."""
        path = self.path(folder)
        what = self.some(("picture",) * 12 + ("zip", "zip", "folder", "folder", "other", "missing"))
        if what == "picture":
            path.write_bytes(self.picture())
        elif what == "zip":
            path = path.with_name(f"{self.random.random()}.zip")
            path.write_bytes(self.zip())
        elif what == "folder" and depth < 3:
            path.mkdir()
            for _ in range(self.some((0, 1, 2, 5))):
                self.place(path, depth + 1)
        elif what == "other":
            match self.some(("pipe", "link", "loop", "up", "model")):
                case "pipe":
                    os.mkfifo(path)
                case "link":
                    path.symlink_to("nowhere")
                case "loop":
                    path.symlink_to(path.name)
                case "up":
                    path.symlink_to("..")
                case "model":
                    path.write_bytes(self.models[0])
        return path

    def zip(self):
        buffer = io.BytesIO()
        method = self.some((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
        with zipfile.ZipFile(buffer, "w", method) as archive:
            for _ in range(self.some((0, 1, 3))):
                name = self.some(("", "a/", "../", "/", "C:\\")) + self.name(
                    self.some((None, "png"))
                )
                name = name.encode("utf-8", "replace").decode()
                archive.writestr(name, self.picture())
        return self.damaged(buffer.getvalue()) if self.chance(40) else buffer.getvalue()

    # ---- the command line

    def arguments(self):
        """Make the files of a case in the current folder, and the arguments."""
        here = Path()
        command = self.some(("score", "encode", "project", "sample", "interpolate", "info"))
        model = self.path(here)
        model.write_bytes(self.model())
        if self.chance(5):
            model = self.place(here)
        places = {"interpolate": 2, "sample": 0, "info": 0}.get(command, self.some((1, 1, 2, 3)))
        given = [model, *(self.place(here) for _ in range(places))]
        if self.chance(5):
            given.append(self.place(here))
        options = []
        if command != "info" and self.chance(80):
            options += ["--out", self.out(command, given)]
        for option, commands, values in (
            ("--sheet", ("score",), [self.out("sample", given), "sheet.png"]),
            ("--alpha", ("score",), NUMBERS), ("--nearest", ("score", "encode", "project"), None),
            ("--dim", ("project", "sample", "interpolate"), NUMBERS), ("-n", ("sample",), NUMBERS),
            ("--temperature", ("sample",), NUMBERS), ("--seed", ("sample",), NUMBERS),
            ("--steps", ("interpolate",), NUMBERS),
            ("--batch-size", ("score", "encode", "project"), NUMBERS),
            ("--device", ("score", "encode", "project", "sample", "interpolate"), DEVICES),
        ):  # fmt: skip
            if command in commands and self.chance(20):
                values = self.some((values, GOOD.get(option, values)))
                options += [option] if values is None else [option, self.some(values)]
        if self.chance(2):
            options.append(self.some(("--what", "-", "--", "--out", "-x")))
        return [str(each) for each in (command, *options, "--", *given)]

    def out(self, command, given):
        """Where the result goes: most often to a new file of a kind that is written."""
        endings = {"score": ["csv"], "encode": ["npz"], "project": ["npz", ""]}
        ending = self.some(
            (*endings.get(command, ["npz", "png"]) * 5, "csv", "npz", "png", "", "jpg")
        )
        good = Path(self.some(("", "", "new", "new/deep"))) / (f"out.{ending}" if ending else "out")
        return good if self.chance(85) else self.some((
            Path(self.name(ending)), Path("a" * 250 + f".{ending}"),
            Path("b" * 300 + f".{ending}"), self.some(given), self.some(given) / good, Path(),
            Path("/dev/null"), Path("/"), Path("new") / ("c" * 256) / "out.npz",
        ))  # fmt: skip


def snapshot(folder):
    """What is in a folder: contents by path, links and pipes not followed."""
    found = {}
    for above, folders, files in os.walk(os.fsencode(folder)):
        for name in folders + files:
            path = os.path.join(above, name)
            is_file = os.path.isfile(path) and not os.path.islink(path)
            found[path] = (
                Path(os.fsdecode(path)).read_bytes() if is_file else os.lstat(path).st_mode
            )
    return found


def check_complete(path):
    """Read an output, or what is in a folder of them, to its end."""
    path = Path(os.fsdecode(path))
    if path.suffix.lower() == ".csv":
        table = pd.read_csv(path, encoding="utf-8")
        assert len(table)
        assert not table["picture"].str.match(r"[=+@\-\t\r]").any()
    elif path.suffix.lower() == ".npz":
        for name, array in np.load(path).items():
            assert len(array), name
    elif path.is_file():
        Image.open(path).load()


def run_case(number, models):
    """Run a case in an empty current folder; raise AssertionError if it does not end well."""
    arguments = Case(number, models).arguments()
    before = snapshot(".")
    began = time.monotonic()
    result = CliRunner().invoke(main, arguments)
    seconds = time.monotonic() - began
    about = f"case {number}: {arguments}\n{result.output}"
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        about += "".join(traceback.format_exception(result.exception))
        raise AssertionError(about)
    assert "Traceback" not in result.output, about
    assert result.exit_code in (0, 1, 2), about
    assert seconds < SLOWEST, f"{seconds:.0f} s, {about}"
    after = snapshot(".")
    assert {path: after.get(path) for path in before} == before, f"changed an input, {about}"
    new = after.keys() - before.keys()
    if result.exit_code == 0:
        assert not any(b"/." in path.removeprefix(b"./") for path in new), f"{new}, {about}"
        try:
            for path in new:
                check_complete(path)
        except Exception as error:
            raise AssertionError(f"{error!r}, {about}") from error
    else:
        lines = result.stderr.splitlines()
        assert lines[-1].startswith("Error: "), about
        assert sum(line.startswith("Error: ") for line in lines) == 1, about
        assert not new, f"{new}, {about}"
    return arguments[0], result.exit_code


@contextlib.contextmanager
def empty_folder():
    before, folder = Path.cwd(), tempfile.mkdtemp()
    here = Path(folder) / "here"  # links to ".." lead out of it
    here.mkdir()
    os.chdir(here)
    try:
        yield
    finally:
        os.chdir(before)
        shutil.rmtree(os.fsencode(folder))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_random_uses_end_well_or_in_one_line(monkeypatch):
    monkeypatch.setattr(processes, "free_memory", lambda: MEMORY)
    models, began, number = tiny_models(), time.monotonic(), 0
    while time.monotonic() - began < SECONDS:
        with empty_folder():
            run_case(number, models)
        number += 1


def run_many(seconds, first):
    """Run cases for some seconds, and count how they ended."""
    torch.set_num_threads(1)
    processes.free_memory = lambda: MEMORY
    models, began, counts, failed = tiny_models(), time.monotonic(), {}, 0
    number = first
    while number == first or time.monotonic() - began < seconds:
        try:
            with empty_folder():
                ended = run_case(number, models)
        except AssertionError as error:
            failed += 1
            ended = "failed"
            print(error, flush=True)
        counts[ended] = counts.get(ended, 0) + 1
        number += 1
    print(f"cases {first} to {number - 1}: {failed} failed; {counts}", flush=True)


if __name__ == "__main__":
    run_many(float(sys.argv[1]), int(sys.argv[2]))
