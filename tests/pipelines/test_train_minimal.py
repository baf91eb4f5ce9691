"""The example that trains without Kedro."""

import importlib.util

import numpy as np
import pytest
from PIL import Image

from conftest import REPOSITORY
from submanifold.config.resolve import default_method
from submanifold.models import Model
from submanifold.training import RotationSettings, rotation

pytestmark = pytest.mark.docs

STEPS, PROBES = {"density": 14, "reconstruction": 5, "code_flow": 1}, 20


def short_method(dataset, dim):
    model, phases = default_method(dataset, dim)
    for name, steps in STEPS.items():
        training = phases[name].training.model_copy(update={"steps": steps})
        phases[name] = phases[name].model_copy(update={"training": training})
    return model, phases | {"rotation": RotationSettings(rotate=1, probes=PROBES)}


def test_the_minimal_training_has_the_figures_of_the_command(project, tmp_path, monkeypatch):
    monkeypatch.setattr(rotation, "PROBES_PER_AXIS", 1)
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for number in range(100):
        pixels = rng.integers(0, 256, (5, 5, 3), np.uint8)
        image = Image.fromarray(pixels).resize((12, 12))
        image.save(tmp_path / "pictures" / f"{number}.png")
    path = REPOSITORY / "examples" / "train_minimal.py"
    specification = importlib.util.spec_from_file_location("train_minimal", path)
    example = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(example)
    monkeypatch.setattr(example, "default_method", short_method)
    figures = example.main(str(tmp_path / "pictures"), tmp_path, size=8, dim=50)
    steps = {name: {"training": {"steps": count}} for name, count in STEPS.items()}
    run = project.run(
        env="base",
        until="metrics",
        threads=1,
        dataset="folder",
        data={"path": str(tmp_path / "pictures"), "size": 8},
        stage_1={"dim": 50},
        rotation={"probes": PROBES},
        evaluation={"samples": 2},
        **steps,
    )
    metrics = run.load("metrics")
    assert figures == {name: pytest.approx(metrics[name]["value"], rel=1e-6) for name in figures}
    saved, expected = Model.load(tmp_path / "model.safetensors"), run.load("hierarchy")
    assert saved.state_dict().keys() == expected.state_dict().keys()
