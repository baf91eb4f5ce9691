import pytest
import torch

from submanifold.common.errors import UserError
from submanifold.common.settings import read_settings
from submanifold.flows import Affine, Glow, RealNVP
from submanifold.models import Hierarchy, ModelSettings, StageSettings

GLOW = {"type": "glow", "levels": 2, "steps": 1, "width": 4}
REALNVP = {"type": "realnvp", "couplings": 2}


def raw(flow=REALNVP, **changes):
    return {"flow": flow, "dim": 4, **changes}


def read(*args, **changes):
    return read_settings(StageSettings, raw(*args, **changes), "stage_2")


def build_hierarchy(stages, event_shape):
    return Hierarchy(ModelSettings(stages=stages).build(event_shape))


def test_settings_build_a_hierarchy():
    stages = [read(GLOW, dim=20), read(dim=8), read({"type": "affine"}, dim=3)]
    hierarchy = build_hierarchy(stages, (3, 4, 4))
    assert [type(stage.flow) for stage in hierarchy.stages] == [Glow, RealNVP, Affine]
    assert [stage.dim for stage in hierarchy.stages] == [20, 8, 3]
    assert hierarchy.stages[0].flow.config == {
        "shape": [3, 4, 4], "levels": 2, "steps": 1, "width": 4, "whiten": True,
    }  # fmt: skip
    assert hierarchy.stages[1].flow.config == {
        "dim": 20, "couplings": 2, "hidden": None, "mixing": False,
    }  # fmt: skip
    assert hierarchy.project(torch.rand(2, 3, 4, 4)).shape == (2, 3, 4, 4)


def test_a_dimension_of_none_keeps_all_coordinates():
    hierarchy = build_hierarchy([read(GLOW, dim=None), read(dim=7)], (3, 4, 4))
    assert [stage.dim for stage in hierarchy.stages] == [48, 7]


def test_then_appends_flows():
    (stage,) = build_hierarchy(
        [read(GLOW, dim=7, then=[{"type": "affine"}, REALNVP])], (3, 4, 4)
    ).stages
    assert [type(flow) for flow in stage.flows] == [Glow, Affine, RealNVP]
    z, log_det = stage.flow(torch.rand(2, 3, 4, 4))
    assert (z.shape, log_det.shape) == ((2, 48), (2,))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"flow": {"type": "spline"}},
            r"stage_2\.flow\.type=spline .*'glow', 'jet', 'realnvp', 'affine'",
        ),
        ({"flow": {"couplings": 2}}, r"stage_2\.flow\.type is missing.*'glow', 'jet', 'realnvp'"),
        ({"dimm": 3}, r"stage_2\.dimm is not a setting; known: flow, then, dim,"),
        (
            {"flow": {**GLOW, "widht": 8}},
            r"stage_2\.flow\.widht is not a setting; known: type, levels, steps, width, whiten",
        ),
        ({"flow": {**GLOW, "levels": 0}}, r"stage_2\.flow\.levels=0 .*greater than 0"),
        (
            {"then": [{"type": "affin"}]},
            r"stage_2\.then\.type=affin .*'glow', 'jet', 'realnvp', 'affine'",
        ),
        ({"off_manifold_scale": 0}, r"stage_2\.off_manifold_scale=0 .*greater than 0"),
        ({"dim": 0}, r"stage_2\.dim=0 .*greater than 0"),
        ({"dim": 2.5}, r"stage_2\.dim=2\.5 "),
        ({"off_manifold_scale": 0, "dim": "x"}, r"dim=x .*; stage_2\.off_manifold_scale=0 "),
    ],
)
def test_a_setting_that_cannot_work_is_named_with_what_is_allowed(changes, said):
    with pytest.raises(UserError, match=said) as caught:
        read_settings(StageSettings, raw(**changes), "stage_2")
    assert "--params=stage_2.<name>=<value>" in str(caught.value)


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
