"""The Python code of the pages runs, with a small model in place of a trained one."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from submanifold import Hierarchy, Stage
from submanifold.data.tables import Preprocessor
from submanifold.evaluation.calibration import calibrate
from submanifold.flows import Glow, RealNVP
from submanifold.models import Model
from submanifold.sklearn import ManifoldFlow

pytestmark = pytest.mark.docs

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^ *```python\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
TESTED_ELSEWHERE = {"docs/tutorials/python.md", "docs/how-to/deploy.md"}
FRAGMENTS = {"docs/how-to/extend.md"}
"""Pages on which only blocks that are whole files run."""
PAGES = sorted(
    page
    for path in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]
    if BLOCK.search(path.read_text())
    and (page := str(path.relative_to(ROOT))) not in TESTED_ELSEWHERE
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = Hierarchy([Stage(Glow((3, 32, 32), levels=2, steps=1, width=4), dim=4)])
    model.data = {"size": 32, "channels": 3, "crop": "square", "margin": 0,
                  "value_range": [-0.5, 0.5], "bits": 8}  # fmt: skip
    return model.eval()


def model_of_a_table():
    """A calibrated model of the columns in docs/how-to/tables.md."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"height": rng.normal(170, 9, 100), "children": rng.integers(0, 4, 100)})
    preprocessor = Preprocessor.fit(table)
    model = Hierarchy([Stage(RealNVP(2), dim=1)]).eval()
    model.data = {"table": preprocessor.to_dict(), "label": None}
    model.calibration = calibrate(model, preprocessor.transform(table), torch.device("cpu"))
    return model


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
        if page not in FRAGMENTS or block.startswith(('"""', 'r"""')):
            exec(compile(block, page, "exec"), scope)
