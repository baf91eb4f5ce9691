"""The Python code of the pages and of their figures runs, with small models and trainings."""

import re
import runpy
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from calibrated import table_model
from submanifold import Hierarchy, Stage
from submanifold.flows import Glow, RealNVP
from submanifold.models import Model
from submanifold.sklearn import ManifoldFlow

pytestmark = pytest.mark.docs

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^ *```python\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
SHOWN = re.compile(r"^```(python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TESTED_OTHERWISE = {
    "docs/tutorials/python.md",
    "docs/how-to/add-a-node.md",
}
FRAGMENTS = {"docs/how-to/extend.md"}
"""Pages on which only blocks that are whole files or programs run."""
PAGES = sorted(
    page
    for path in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]
    if BLOCK.search(path.read_text())
    and (page := str(path.relative_to(ROOT))) not in TESTED_OTHERWISE
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = Hierarchy([Stage(Glow((3, 32, 32), levels=2, steps=1, width=4), dim=4)])
    data = {
        "size": 32,
        "channels": 3,
        "crop": "square",
        "margin": 0,
        "value_range": [-0.5, 0.5],
        "bits": 8,
    }
    return model.with_facts(data=data).eval()


def model_of_a_table():
    """A calibrated model of the columns in docs/how-to/tables.md."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"height": rng.normal(170, 9, 100), "children": rng.integers(0, 4, 100)})
    return table_model(RealNVP(2), 1, table, table)


def few_steps(fit):
    """Train an estimator for a few steps."""

    def wrapped(self, X, y=None):  # noqa: N803
        self.minutes, self.steps = None, 6
        return fit(self, X, y)

    return wrapped


@pytest.mark.parametrize("page", PAGES)
def test_blocks_run(page, model, tmp_path, monkeypatch):
    if page == "docs/how-to/tables.md":
        model = model_of_a_table()
    monkeypatch.chdir(tmp_path)
    load = Model.load  # the files that a page writes exist
    monkeypatch.setattr(
        Model, "load", lambda path, *device: load(path, *device) if Path(path).exists() else model
    )
    monkeypatch.setattr(ManifoldFlow, "fit", few_steps(ManifoldFlow.fit))
    rng = np.random.default_rng(0)
    for path in ["new.jpg", *(f"other-normal-pictures/{number}.png" for number in range(24))]:
        Path(path).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(path)
    Path("scores.csv").write_text("picture,p_value\na.png,0.5\nb.png,0.01\n")
    scope = {"model": model, "x": torch.rand(2, 3, 32, 32) - 0.5}
    for block in BLOCK.findall((ROOT / page).read_text()):
        if page not in FRAGMENTS or block.startswith(('"""', "import ")):
            exec(compile(block, page, "exec"), scope)


def test_the_tutorial_prints_what_it_shows_up_to_numbers(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/tutorials/python.md").read_text()
    for usual, short in (
        (r"\bsteps(=|\": )\d{3}", r"steps\g<1>4"),
        (r"load_digits\(\)\.images", "load_digits().images[:300]"),
        (r"\[1300, 1550\]", "[200, 250]"),
    ):
        page = re.sub(usual, short, page)
    shown, scope = [], {"__name__": "__main__"}
    for language, text in SHOWN.findall(page):
        if language == "python":
            exec(compile(text, "python.md", "exec"), scope)
        else:
            shown.append(text)
    assert shape("".join(shown)) == shape(capsys.readouterr().out)
    assert (tmp_path / "samples.png").exists()


def shape(text):
    """Lines with numbers as #, and lists of numbers as one."""
    text = re.sub(r"#(, #)+\]", "#]", re.sub(r"\d+(\.\d+)?", "#", text))
    return [" ".join(line.split()) for line in text.splitlines() if line]


def test_the_figures_of_the_concepts_are_drawn():
    script = runpy.run_path(str(ROOT / "docs/figures.py"))
    model, points = script["train"](steps=2), torch.randn(50, 2)
    for name in ("coordinates", "projections", "densities"):
        assert isinstance(script[name](model, points), Figure)
        assert (script["FOLDER"] / f"{name}.png").is_file()
    for name in ("stages", "data_flow", "layers"):
        assert isinstance(script[name](), Figure)


def test_the_figure_of_the_layers_is_that_of_the_import_contract():
    script = runpy.run_path(str(ROOT / "docs/figures.py"))
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    rows = contract["contracts"][0]["layers"]
    assert [name for name, *_ in script["LAYERS"]] == ["cli", *rows[rows.index("studies") :]]
