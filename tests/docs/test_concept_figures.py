"""The script that draws the figures of the concepts pages runs, with a short training."""

import runpy
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

pytestmark = pytest.mark.docs

SCRIPT = Path(__file__).parents[2] / "docs/figures.py"


def test_every_figure_is_drawn():
    script = runpy.run_path(str(SCRIPT))
    model = script["train"](steps=2)
    points = torch.randn(50, 2)
    for name in ("coordinates", "projections", "densities"):
        assert isinstance(script[name](model, points), Figure)
        assert (script["FOLDER"] / f"{name}.png").is_file()
    assert isinstance(script["stages"](), Figure)
