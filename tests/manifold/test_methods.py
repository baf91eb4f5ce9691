import pytest
import torch

from submanifold.errors import UserError
from submanifold.flows import Affine, Glow, RealNVP
from submanifold.manifold import StageSettings, build_hierarchy
from submanifold.validation import read_settings

GLOW = {"type": "glow", "levels": 2, "steps": 1, "width": 4}
REALNVP = {"type": "realnvp", "couplings": 2}


def raw(flow=REALNVP, **changes):
    return {
        "flow": flow,
        "dim": 4,
        "penalty": "mse",
        "penalty_weight": 2.0,
        "penalty_space": "latent",
        "delta": 0.1,
        "likelihood_weight": 0.5,
        **changes,
    }


def read(*args, **changes):
    return read_settings(StageSettings, raw(*args, **changes), "stage_2")


def test_settings_build_the_hierarchy_that_they_describe():
    stages = [read(GLOW, dim=20), read(dim=8), read({"type": "affine"}, dim=3)]
    hierarchy = build_hierarchy(stages, (3, 4, 4))
    assert [type(stage.flow) for stage in hierarchy.stages] == [Glow, RealNVP, Affine]
    assert [stage.dim for stage in hierarchy.stages] == [20, 8, 3]
    assert hierarchy.stages[0].flow.config == {
        "shape": [3, 4, 4], "levels": 2, "steps": 1, "width": 4,
    }  # fmt: skip
    assert hierarchy.stages[1].flow.config == {
        "dim": 20, "couplings": 2, "hidden": None, "mixing": False,
    }  # fmt: skip
    assert hierarchy.project(torch.rand(2, 3, 4, 4)).shape == (2, 3, 4, 4)


def test_settings_give_the_objective_that_they_describe():
    objective = read(penalty="huber").objective()
    assert (objective.penalty, objective.penalty_weight, objective.delta) == ("huber", 2.0, 0.1)
    assert objective.likelihood_weight == 0.5
    assert objective.outer is None


def test_a_stage_without_a_dimension_keeps_all_coordinates():
    hierarchy = build_hierarchy([read(GLOW, dim=None), read(dim=7)], (3, 4, 4))
    assert [stage.dim for stage in hierarchy.stages] == [48, 7]


def test_the_image_penalty_takes_the_outer_stages_and_freezes_them():
    outer = build_hierarchy([read(GLOW, dim=20)], (3, 4, 4)).stages
    assert read().objective(outer).outer is None
    assert read(penalty_space="image").objective().outer is None
    objective = read(penalty_space="image").objective(outer)
    assert objective.outer.dim == 20
    assert not any(p.requires_grad for p in objective.outer.parameters())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"flow": {"type": "spline"}}, r"stage_2\.flow\.type=spline .*'glow', 'realnvp', 'affine'"),
        ({"flow": {"couplings": 2}}, r"stage_2\.flow\.type is missing.*'glow', 'realnvp'"),
        ({"penalty": "l1"}, r"stage_2\.penalty=l1 .*'mse', 'huber' or 'none'"),
        ({"penalty_space": "pixel"}, r"stage_2\.penalty_space=pixel .*'latent' or 'image'"),
        ({"dimm": 3}, r"stage_2\.dimm is not a setting; known: flow, dim, penalty,"),
        (
            {"flow": {**GLOW, "widht": 8}},
            r"stage_2\.flow\.widht is not a setting; known: type, levels, steps, width",
        ),
        ({"flow": {**GLOW, "levels": 0}}, r"stage_2\.flow\.levels=0 .*greater than 0"),
        ({"flow": {"type": "glow", "levels": 2, "steps": 1}}, r"stage_2\.flow\.width is missing"),
        ({"dim": 0}, r"stage_2\.dim=0 .*greater than 0"),
        ({"dim": 2.5}, r"stage_2\.dim=2\.5 "),
        ({"penalty_weight": -1}, r"stage_2\.penalty_weight=-1 .*greater than or equal to 0"),
        ({"delta": 0, "dim": "x"}, r"stage_2\.dim=x .*; stage_2\.delta=0 "),
    ],
)
def test_a_setting_that_cannot_work_is_named_with_what_is_allowed(changes, said):
    with pytest.raises(UserError, match=said) as caught:
        read_settings(StageSettings, raw(**changes), "stage_2")
    assert "--params=stage_2.<name>=<value>" in str(caught.value)


def test_a_dimension_too_large_names_its_stage():
    with pytest.raises(UserError, match=r"^stage_2: .*dimension 21 in a space of 20 .*1 to 20"):
        build_hierarchy([read(GLOW, dim=20), read(dim=21)], (3, 4, 4))
    with pytest.raises(UserError, match=r"^stage_1: .*1 to 48"):
        build_hierarchy([read(GLOW, dim=49)], (3, 4, 4))


def test_a_flow_that_does_not_fit_its_input_names_its_stage_and_the_ones_that_would():
    with pytest.raises(UserError, match=r"^stage_2: A glow acts on images.*\(20,\).*realnvp"):
        build_hierarchy([read(GLOW, dim=20), read(GLOW, dim=4)], (3, 4, 4))
    for flow in (REALNVP, {"type": "affine"}):
        with pytest.raises(UserError, match=r"^stage_1: A \w+ acts on vectors.*\(3, 4, 4\).*glow"):
            build_hierarchy([read(flow)], (3, 4, 4))
    with pytest.raises(UserError, match=r"^stage_1: .*divisible by 4"):
        build_hierarchy([read(GLOW)], (3, 6, 6))


def test_a_hierarchy_without_stages_is_refused():
    with pytest.raises(UserError, match="at least one stage"):
        build_hierarchy([], (4,))
