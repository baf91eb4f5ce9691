"""Conditional models: each method given a context, refusals, files and the Bayes classifier."""

import pytest
import torch

from strategies import assert_close, perturb
from submanifold.common.errors import UserError
from submanifold.flows import Affine, Glow, RealNVP, conditioning, context_of, make_conditional
from submanifold.flows.conditional import ContextAffine, ContextLayer
from submanifold.geometry import nearest
from submanifold.models import Hierarchy, Model, ModelSettings, Stage, classify, on_manifold
from submanifold.models.classifier import class_log_probs

SMALL = {"type": "glow", "levels": 2, "steps": 1, "width": 4}
STAGES = {
    "image": ((3, 8, 8), [{"flow": SMALL, "dim": 4}]),
    "two stages": ((3, 8, 8), [{"flow": SMALL, "dim": 9},
                               {"flow": {"type": "realnvp", "couplings": 2}, "dim": 4}]),
    "code flow": ((6,), [{"flow": {"type": "realnvp", "couplings": 2}, "dim": 3},
                         {"flow": {"type": "realnvp", "couplings": 2}, "dim": 3}]),
    "table": ((6,), [{"flow": {"type": "tabular", "couplings": 2, "hidden": 8}, "dim": 3}]),
    "noisy": ((6,), [{"flow": {"type": "affine"}, "dim": 4},
                     {"flow": {"type": "realnvp", "couplings": 2}, "dim": 3, "noise": 0.1}]),
    "injection": ((3, 8, 8), [{"flow": {"type": "autoencoder", "width": 4}, "dim": 4}]),
}  # fmt: skip
METHODS = {
    "forward": lambda m, x, c: m(x, c),
    "log_prob": lambda m, x, c: m.log_prob(x, c),
    "bits_per_dim": lambda m, x, c: m.bits_per_dim(x, context=c),
    "encode": lambda m, x, c: m.encode(x, context=c),
    "nearest code": lambda m, x, c: m.encode(x, exact=True, context=c),
    "project": lambda m, x, c: m.project(x, context=c),
    "nearest projection": lambda m, x, c: m.project(x, exact=True, context=c),
    "encoder projection": lambda m, x, c: m.encoder_projection(x, c),
    "rejection_map": lambda m, x, c: m.rejection_map(x, c),
    "on_manifold": lambda m, x, c: on_manifold(m, x, context=c),
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
    with conditioning(model, labels):
        for each, other in zip(found, tensors(run(model, x, None)), strict=True):
            torch.testing.assert_close(each, other, equal_nan=True)
    for n in range(3):
        alone = tensors(run(model, x[n : n + 1], labels[n : n + 1]))
        for each, other in zip(found, alone, strict=True):
            # searches of projections multiply rounding errors
            torch.testing.assert_close(each[n : n + 1], other, rtol=0.02, atol=0.02, equal_nan=True)
    with pytest.raises(UserError, match="context: expected one row for each event"):
        run(model, x, None)


def test_slices_and_parts_share_the_context():
    hierarchy = build("code flow")
    hierarchy.stages[0].add_rotation()
    labels, x = torch.tensor([0, 1, 2]), torch.randn(3, 6)
    model = hierarchy.at_dim(2)
    u, v = model.encode(x, context=labels)
    assert_close(model.decode(u, v, labels), x)
    assert_close(model.log_prob(x, labels), hierarchy.log_prob(x, labels))
    assert model.sample(3, context=labels).shape == (3, 6)
    assert hierarchy.part(1, 1).encode(x, context=labels)[0].shape == (3, 3)


def test_doubtful_projections_keep_their_contexts(monkeypatch):
    """Events whose last step is worse than the one before are decoded a second time."""
    monkeypatch.setattr(nearest, "FIRST_LENGTH", 1e3)
    monkeypatch.setattr(nearest, "GROWTH", (1e3, 1e3))
    model = build("table")
    x, labels = 3 * torch.randn(8, 6), torch.arange(8) % 3
    with conditioning(model, labels):
        u = model(x)[0]
        found = nearest.nearest_point(
            model.decode, x, u, 4, eigenvalues=torch.ones(3), whole_batch=True
        )
        errors = (x - found.image).square().sum(1)
        assert (errors <= (x - model.decode(u)).square().sum(1) + 1e-5).all()
        assert_close(model.decode(found.u), found.image)


def test_files_keep_the_context(tmp_path):
    model = build("two stages")
    model.save(tmp_path / "model")
    loaded = Model.load(tmp_path / "model")
    assert context_of(loaded) == {"classes": 3}
    x, labels = torch.rand(3, 3, 8, 8), torch.arange(3)
    assert torch.equal(loaded.log_prob(x, labels), model.log_prob(x, labels))


def test_an_unconditional_model_refuses_a_context():
    model = Hierarchy([Stage(RealNVP(4), 2)])
    assert "context" not in str(model.config)
    with pytest.raises(UserError, match="expected none for an unconditional model"):
        model.log_prob(torch.randn(2, 4), torch.tensor([0, 1]))


def test_charts_cannot_be_conditional():
    settings = ModelSettings.model_validate(
        {"stages": [{"flow": {"type": "affine"}, "dim": 1}], "charts": 2}
    )
    with pytest.raises(UserError, match="charts: expected 1 for a conditional model, got 2"):
        settings.extend(None, (3,), context={"classes": 2})


def two_gaussians():
    """N((0, 0), I) and N((2, 0), I)."""
    flow = make_conditional(Affine(2), classes=2)
    with torch.no_grad():
        flow.weight.copy_(torch.eye(2))
        flow.of_context.weight[2, 1] = -2  # the shift of the first coordinate
    return Hierarchy([Stage(flow, dim=1)])


def test_the_bayes_classifier_of_two_gaussians_is_logistic():
    model, x = two_gaussians(), torch.randn(50, 2)
    for prior in (None, torch.tensor([0.8, 0.2])):
        log_odds = 2 * x[:, 0] - 2 + (0 if prior is None else (prior[1] / prior[0]).log())
        expected = torch.sigmoid(log_odds)
        torch.testing.assert_close(classify(model, x, prior)[:, 1], expected)


@pytest.fixture
def passes(monkeypatch):
    """List that grows with every pass through a Glow."""
    calls, latents = [], Glow.latents
    monkeypatch.setattr(Glow, "latents", lambda flow, x: calls.append(0) or latents(flow, x))
    return calls


def test_densities_of_all_classes_take_one_pass_of_the_flow(passes):
    model = build("two stages")
    for _ in range(2):  # events of one call are not taken for those of another
        x = torch.rand(4, 3, 8, 8) - 0.5
        expected = [model.log_prob(x, torch.tensor([label])) for label in range(3)]
        passes.clear()
        assert torch.equal(class_log_probs(model, x), torch.stack(expected, 1))
        assert len(passes) == 1
    assert model.stages[0].flow.shared is None


def test_only_models_of_classes_classify():
    for model in (Hierarchy([Stage(RealNVP(6), 2)]), build("table", columns=2)):
        with pytest.raises(UserError, match="expected one that is conditional on a class"):
            classify(model, torch.randn(2, 6))


def test_gradients_reach_the_weights_of_the_classes_in_a_batch():
    model = build("two stages")
    log_prob = model.log_prob(torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 1, 0]))
    (-log_prob.mean()).backward()
    layers = [each for each in model.modules() if isinstance(each, ContextLayer | ContextAffine)]
    assert len(layers) == 3
    for layer in layers:
        assert layer.weight.grad[:, :2].abs().sum() > 0
        assert layer.weight.grad[:, 2].abs().sum() == 0
