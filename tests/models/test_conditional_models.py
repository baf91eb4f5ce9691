"""Conditional models: each method given a context, refusals, files and the Bayes classifier."""

import pytest
import torch

from strategies import OF_EVENTS, affine, assert_close, perturb
from submanifold.common.errors import UserError
from submanifold.flows import (
    Context,
    RealNVP,
    SoftRealNVP,
    make_conditional,
    with_noise_scale,
)
from submanifold.flows.conditional import ConditionalLayer, ContextAffine
from submanifold.geometry.nearest import nearest_point
from submanifold.models import Hierarchy, ModelSettings, Stage, classify, manifold_density
from submanifold.models.classifier import class_log_probs

SMALL = {"type": "glow", "levels": 2, "steps": 1, "width": 4}
STAGES = {
    "image": ((3, 8, 8), [{"flow": SMALL, "dim": 4}]),
    "two stages": (
        (3, 8, 8),
        [{"flow": SMALL, "dim": 9}, {"flow": {"type": "realnvp", "couplings": 2}, "dim": 4}],
    ),
    "code flow": (
        (6,),
        [
            {"flow": {"type": "realnvp", "couplings": 2}, "dim": 3},
            {"flow": {"type": "realnvp", "couplings": 2}, "dim": 3},
        ],
    ),
    "table": ((6,), [{"flow": {"type": "tabular", "couplings": 2, "hidden": 8}, "dim": 3}]),
    "noisy": (
        (6,),
        [
            {"flow": {"type": "affine"}, "dim": 4},
            {"flow": {"type": "realnvp", "couplings": 2}, "dim": 3, "noise": 0.1},
        ],
    ),
    "injection": ((3, 8, 8), [{"flow": {"type": "autoencoder", "width": 4}, "dim": 4}]),
}
METHODS = {
    **OF_EVENTS,
    "on_manifold": lambda m, x, c: manifold_density(m, x, context=c),
    "decode": lambda m, x, c: m.decode(torch.ones(len(x), m.dim), context=c),
    "sample": lambda m, x, c: m.sample(len(x), 0.0, context=c),
}


def build(name, **context):
    torch.manual_seed(0)
    shape, stages = STAGES[name]
    settings = ModelSettings.model_validate({"stages": stages})
    return perturb(settings.extend(None, shape, context=context or {"classes": 3})[0]).eval()


def tensors(found):
    return [found] if isinstance(found, torch.Tensor) else [*found]


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("method", METHODS)
def test_each_event_has_its_own_context(name, method):
    model, run = build(name), METHODS[method]
    x, labels = torch.rand(3, *model.event_shape) - 0.5, torch.tensor([2, 0, 1])
    if not model.has_density and method in ("log_prob", "bits_per_dim"):
        with pytest.raises(UserError, match="expected a model with a density"):
            run(model, x, labels)
        return
    found = tensors(run(model, x, labels))
    for n in range(3):
        alone = tensors(run(model, x[n : n + 1], labels[n : n + 1]))
        for each, other in zip(found, alone, strict=True):
            # searches of projections multiply rounding errors
            torch.testing.assert_close(each[n : n + 1], other, rtol=0.02, atol=0.02, equal_nan=True)
    for wrong in (None, labels[:1], labels[:2], torch.arange(6) % 3):
        with pytest.raises(UserError, match="context: expected one row for each of 3 events"):
            run(model, x, wrong)


def test_slices_and_parts_share_the_context():
    hierarchy = build("code flow")
    hierarchy.stages[0].add_rotation()
    labels, x = torch.tensor([0, 1, 2]), torch.randn(3, 6)
    model = hierarchy.at_dim(2)
    u, v = model.encode(x, context=labels)
    assert_close(model.decode(u, v, labels), x)
    assert_close(model.log_prob(x, labels), hierarchy.log_prob(x, labels))
    assert model.sample(3, context=labels).shape == (3, 6)
    assert Hierarchy(hierarchy.stages[:1]).encode(x, context=labels)[0].shape == (3, 3)


@pytest.mark.parametrize("kind", ["classes", "noise scale"])
def test_doubtful_projections_keep_their_contexts(kind):
    """Of some events, whose steps are too long for these eigenvalues and end behind the start."""
    model, context = build("table"), Context(torch.arange(8) % 3)
    if kind == "noise scale":
        model, context = perturb(Hierarchy([Stage(SoftRealNVP(6), 3)])), None
        context = Context(noise_scale=torch.rand(8))
    x = 3 * torch.randn(8, 6)
    u = model(x, context)[0]
    found = nearest_point(model.decode, x, u, 4, torch.full((3,), 0.01), context=context)
    errors = (x - found.image).square().sum(1)
    encoder_errors = (x - model.decode(u, context=context)).square().sum(1)
    assert (errors <= encoder_errors + 1e-5).all()
    assert_close(model.decode(found.u, context=context), found.image)


def test_an_unconditional_model_refuses_a_context():
    model = Hierarchy([Stage(RealNVP(4), 2)])
    assert "context" not in str(model.describe())
    with pytest.raises(UserError, match="expected none for an unconditional model"):
        model.log_prob(torch.randn(2, 4), torch.tensor([0, 1]))


def test_a_model_without_a_noise_scale_refuses_one():
    for context in ({"classes": 3}, {"columns": 2}):
        model = build("code flow", **context)
        columns = torch.tensor([0, 1]) if "classes" in context else torch.randn(2, 2)
        with pytest.raises(UserError, match=r"^context\.noise_scale: expected none for this model"):
            model.log_prob(torch.randn(2, 6), with_noise_scale(columns, torch.rand(2)))
    assert build("table").log_prob(
        torch.randn(2, 6), with_noise_scale(torch.tensor([0, 1]), torch.rand(2))
    ).shape == (2,)


@pytest.mark.parametrize("columns", [0, 2])
@pytest.mark.parametrize("value", [-0.01, 1.01, 50.0, float("nan")])
def test_noise_scales_are_between_0_and_1(columns, value):
    flow = SoftRealNVP(6, couplings=2, hidden=8)
    model = Hierarchy([Stage(make_conditional(flow, columns=columns) if columns else flow, 3)])
    x, values = torch.randn(3, 6), torch.rand(3, columns) if columns else None
    context = Context(values, torch.rand(3))
    assert model.log_prob(x, context).isfinite().all()
    context.noise_scale[1] = value
    for method in ("log_prob", "encode", "decode", "project"):
        event = torch.randn(3, 3) if method == "decode" else x
        with pytest.raises(UserError, match=r"context\.noise_scale: expected 0 to 1, got"):
            getattr(model, method)(event, context=context)


def test_stages_without_a_noise_scale_ignore_that_of_others():
    model = perturb(Hierarchy([Stage(RealNVP(4), 3), Stage(SoftRealNVP(3), 3)]))
    x, scale = torch.randn(5, 4), Context(noise_scale=torch.linspace(0, 1, 5))
    u, v = model.encode(x, context=scale)
    assert_close(model.decode(u, v, scale), x)
    outer = Hierarchy(model.stages[:1]).encode(x)[0]
    assert_close(Hierarchy(model.stages[1:]).encode(outer, context=scale)[0], u)
    first = Hierarchy(model.stages[:1])
    for is_nearest in (False, True):
        assert_close(model.project(x, is_nearest, scale), first.project(x, is_nearest))


def two_gaussians():
    """N((0, 0), I) and N((2, 0), I)."""
    flow = make_conditional(affine(torch.eye(2)), classes=2)
    with torch.no_grad():
        flow.of_context.weight[2, 1] = -2  # the shift of the first coordinate
    return Hierarchy([Stage(flow, dim=1)])


def test_the_bayes_classifier_of_two_gaussians_is_logistic():
    model, x = two_gaussians(), torch.randn(50, 2)
    for prior in (None, torch.tensor([0.8, 0.2])):
        log_odds = 2 * x[:, 0] - 2 + (0 if prior is None else (prior[1] / prior[0]).log())
        expected = torch.sigmoid(log_odds)
        torch.testing.assert_close(classify(model, x, prior)[:, 1], expected)


@pytest.mark.parametrize("name", ["two stages", "code flow", "noisy", "table"])
def test_densities_of_all_classes_take_one_pass_of_the_flow(name):
    model = build(name)
    x = torch.rand(4, *model.event_shape) - 0.5
    expected = [model.log_prob(x, torch.full((4,), label)) for label in range(3)]
    passes = []
    if name == "two stages":
        model.stages[0].flows[0].levels[0].register_forward_hook(lambda *_: passes.append(0))
    torch.testing.assert_close(class_log_probs(model, x), torch.stack(expected, 1))
    assert len(passes) == (name == "two stages")


def test_only_models_of_classes_classify():
    for model in (Hierarchy([Stage(RealNVP(6), 2)]), build("table", columns=2)):
        with pytest.raises(UserError, match="expected one that is conditional on a class"):
            classify(model, torch.randn(2, 6))


def test_gradients_reach_the_weights_of_the_classes_in_a_batch():
    model = build("two stages")
    log_prob = model.log_prob(torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 1, 0]))
    (-log_prob.mean()).backward()
    kinds = ConditionalLayer, ContextAffine
    layers = [each for each in model.modules() if isinstance(each, kinds)]
    assert len(layers) == 3
    for layer in layers:
        assert layer.weight.grad[:, :2].abs().sum() > 0
        assert layer.weight.grad[:, 2].abs().sum() == 0
