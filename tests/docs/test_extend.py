"""The files of two pages, written into a checkout, pass the contracts and train."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

pytestmark = pytest.mark.docs

ROOT = Path(__file__).parents[2]
PAGES = ("docs/how-to/extend.md", "docs/how-to/add-a-node.md")
TEXT = "\n".join((ROOT / page).read_text() for page in PAGES)
FILE = re.compile(r"`([\w/]+\.py)`:\n\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```(python|yaml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^    ((?:pytest|kedro run) .*?)(?: +#.*)?$", re.MULTILINE)
PARTS = (
    ".telemetry",
    "CHANGELOG.md",
    "CITATION.cff",
    "CONTRIBUTING.md",
    "LICENSE",
    "README.md",
    "benchmarks",
    "conf",
    "conftest.py",
    "docs",
    "examples",
    "notebooks",
    "pyproject.toml",
    "src",
    "tests",
)
SMALL = {"method=mine": "stage_1.dim=24,training.steps=2", "my_arrays": "data.size=8"}
"""What makes commands fit the small images of conf/test."""


def block(start):
    """The block of code that starts with a text."""
    (found,) = (code for _, code in BLOCK.findall(TEXT) if code.lstrip().startswith(start))
    return found


def insert(path, mark, text):
    """Insert a text behind the line that matches a pattern."""
    pattern = re.compile(f"{mark}.*\n", re.MULTILINE)
    changed, count = pattern.subn(lambda line: line[0] + text, path.read_text(), count=1)
    assert count == 1
    path.write_text(changed)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A checkout with all files and entries of the page, and the data of its commands."""
    folder = tmp_path_factory.mktemp("checkout")
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, folder / part)
    package, local = folder / "src/submanifold", folder / "conf/local"
    for path, code in FILE.findall(TEXT):
        (package / path.removeprefix("src/submanifold/")).write_text(code)
    for registry, mark, entry in (
        ("flows/registry.py", "^FLOWS", '"sinh": SinhFlow'),
        ("flows/registry.py", "^FLOWS", '"interleaved": InterleavedFlow'),
        ("data/sources/__init__.py", "^SOURCES", '"array": ARRAY'),
    ):
        assert f"`{entry}`" in TEXT
        insert(package / registry, mark, f"    {entry},\n")
    field, score = "sparsity: Sparsity = Sparsity()", 'scores["length_v"] = v.norm(dim=1)'
    metric = 'summary["median_error"] = median_interval(counted)'
    described = '"length_v": "length of the coordinates off the manifold"'
    assert all(f"`{code}`" in TEXT for code in (field, score, described, metric))
    insert(package / "losses/loss.py", "^    manifold_likelihood", f"    {field}\n")
    insert(package / "evaluation/reconstruction.py", "^    summary = ", f"    {metric}\n")
    scores = package / "evaluation/scores.py"
    insert(scores, "^SCORES", f"    {described},\n")
    insert(scores, r"^        scores\[\"off_manifold", f"        {score}\n")
    for path, name in (
        ("flows/registry.py", "flows.sinh_arcsinh import SinhFlow"),
        ("flows/registry.py", "flows.interleaved import InterleavedFlow"),
        ("data/sources/__init__.py", "data.sources.array import ARRAY"),
        ("evaluation/reconstruction.py", "evaluation.intervals import median_interval"),
        ("losses/loss.py", "losses.sparsity import Sparsity"),
    ):
        insert(package / path, r"^from submanifold\..* import \w+", f"from submanifold.{name}\n")
    insert(folder / "tests/data/test_sources.py", "^    match name:", block('case "array"'))
    (package / "evaluation/metrics.yml").open("a").write(block("median_error"))
    (folder / "docs/concepts/metrics.md").open("a").write("`median_error` `length_v`")
    registry = package / "pipeline_registry.py"
    insert(registry, "^    return {", block('"sharpness"'))
    insert(registry, "^from submanifold.config", "from submanifold.pipelines import sharpness\n")
    shutil.rmtree(local)
    local.mkdir()
    small = yaml.safe_load((ROOT / "conf/test/parameters.yml").read_text())
    del small["method"]
    for name in ("methods", "datasets"):
        small[name] |= yaml.safe_load(block(f"{name}:"))[name]
    (local / "catalog.yml").write_text(block("sharpness:"))
    (local / "parameters.yml").write_text(yaml.safe_dump(small, sort_keys=False))
    rng = np.random.default_rng(0)
    np.save(folder / "pictures.npy", rng.integers(0, 256, (300, 40, 40, 3), np.uint8))
    (folder / "defects").mkdir()
    for number in range(70):
        pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "defects" / f"{number}.png")
    return folder


def run(checkout, *command):
    """Run a command in the checkout, with its own package."""
    environment = {**os.environ, "PYTHONPATH": f"{checkout / 'src'}:{checkout / 'tests'}"}
    environment.pop("KEDRO_LOGGING_CONFIG", None)
    environment.pop("MLFLOW_TRACKING_URI", None)
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]


@pytest.mark.parametrize("text", COMMAND.findall(TEXT))
def test_commands_run(checkout, text):
    program, *arguments = shlex.split(text)
    if program == "kedro":
        arguments[-1] = arguments[-1].replace("training.minutes=1", "training.batch_size=8")
        arguments[-1] += "".join(f",{more}" for name, more in SMALL.items() if name in text)
    run(checkout, program, *arguments)
    if "--pipeline=ood" in text:
        (page,) = (checkout / "data/08_reporting").glob("*/ood.html")
        assert "length_v" in page.read_text()
