import pytest
import torch

from submanifold.common.errors import UserError
from submanifold.common.settings import read_settings
from submanifold.flows import Affine, Glow, RealNVP
from submanifold.models import Hierarchy, ModelSettings, StageSettings

GLOW = {"type": "glow", "levels": 2, "steps": 1, "width": 4}
REALNVP = {"type": "realnvp", "couplings": 2}


def read(flow=REALNVP, **changes):
    return read_settings(StageSettings, {"flow": flow, "dim": 4, **changes}, "stage_2")


def build_hierarchy(stages, event_shape):
    return Hierarchy(ModelSettings(stages=stages).build(event_shape))


def test_settings_build_a_hierarchy():
    stages = [read(GLOW, dim=20), read(dim=8), read({"type": "affine"}, dim=3)]
    hierarchy = build_hierarchy(stages, (3, 4, 4))
    assert [type(stage.flows[0]) for stage in hierarchy.stages] == [Glow, RealNVP, Affine]
    assert hierarchy.dims == [48, 20, 8, 3]
    assert hierarchy.stages[1].flows[0].arguments["couplings"] == 2
    assert hierarchy.project(torch.rand(2, 3, 4, 4)).shape == (2, 3, 4, 4)


def test_few_events_limit_dimensions():
    limited = ModelSettings(stages=[read(GLOW, dim=None), read(dim=200), read(dim=9)]).limited(120)
    assert [stage.dim for stage in limited.stages] == [None, 119, 9]


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"flow": {"type": "spline"}}, r"stage_2\.flow\.type.*spline"),
        ({"flow": {**GLOW, "widht": 8}}, r"stage_2\.flow\.widht.*width"),
        ({"flow": [REALNVP, {"type": "affin"}]}, r"stage_2\.flow\.type.*affine"),
        ({"off_manifold_scale": 0, "dim": 2.5}, r"dim.*stage_2\.off_manifold_scale.*0"),
    ],
)
def test_invalid_settings_are_named(changes, names):
    with pytest.raises(UserError, match=names):
        read(**{"flow": REALNVP, **changes})


def test_errors_name_the_stage_and_the_setting():
    with pytest.raises(UserError, match=r"^stage_2\.dim: expected 1 to 20, .*, got 21"):
        build_hierarchy([read(GLOW, dim=20), read(dim=21)], (3, 4, 4))
    with pytest.raises(UserError, match=r"^stage_1\.dim: expected 1 to 48"):
        build_hierarchy([read(GLOW, dim=49)], (3, 4, 4))
    with pytest.raises(UserError, match=r"^stage_2\.flow\.type"):
        build_hierarchy([read(GLOW, dim=20), read(GLOW, dim=4)], (3, 4, 4))
    with pytest.raises(UserError, match=r"^stage_1\.flow\.type.* glow"):
        build_hierarchy([read(REALNVP)], (3, 4, 4))
    with pytest.raises(UserError, match=r"^stage_1\.flow\.levels.*divisible by 4"):
        build_hierarchy([read(GLOW)], (3, 6, 6))
