import copy
import itertools

import numpy as np
import pytest
import torch
from resumable import MODEL, phase, smooth_images

from strategies import affine, perturb
from submanifold.common.errors import UserError
from submanifold.data.batches import Batches
from submanifold.evaluation.baselines import PCA
from submanifold.flows import Affine, Glow, RealNVP, Rotation
from submanifold.flows.orthogonal import tail_sums
from submanifold.geometry.linearization import jvp
from submanifold.models import Hierarchy, Stage
from submanifold.training.phases import PhaseRun, rotate_phase, train_phase
from submanifold.training.rotation import RotationSettings, fit_rotation

IMAGES = smooth_images(120)
CPU = torch.device("cpu")


def linear_gaussian(dim, n, seed=0, leading=None):
    """Normal data with rotated principal axes, and a flow that whitens them."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(dim, dim, generator=generator)).Q
    scales = torch.logspace(0.5, -1, dim)
    x = torch.randn(n, dim, generator=generator) * scales @ axes.T
    other = torch.linalg.qr(torch.randn(dim, dim, generator=generator)).Q
    return x, Hierarchy([Stage(affine(other @ (axes / scales).T), leading or dim // 2)])


def glow(dim=40, seed=0):
    torch.manual_seed(seed)
    return perturb(Hierarchy([Stage(Glow((3, 8, 8), levels=2, steps=2, width=8), dim)]))


def with_rotation(model, is_dense):
    """Add the identity as a rotation to the last stage, of all axes or of the leading 2 d."""
    stage = model.stages[-1]
    stage.flows.append(Rotation(stage.latent_dim, None if is_dense else 2 * stage.dim))
    return model


@torch.no_grad()
def error(model, dim, x):
    return (x - model.at_dim(dim).encoder_projection(x)).square().mean().item()


def test_rotating_a_flow_of_linear_gaussian_data_is_pca():
    x, model = linear_gaussian(6, 20000)
    found = fit_rotation(model, Batches(x.numpy(), 100), probes=40000)
    pca = PCA.fit(x.numpy())
    expected, _ = pca.error_curve([x])
    for d in range(1, 6):
        assert error(model, d, x) == pytest.approx(expected[d].item(), rel=0.01)
    for d, predicted in zip(found["dims"], found["mse"], strict=True):
        assert predicted == pytest.approx(expected[d].item(), rel=0.05, abs=1e-9)
    assert torch.allclose(model.stages[0].rotation.eigenvalues, pca.variances.float(), rtol=0.05)


@pytest.mark.parametrize("is_dense", [True, False], ids=["all axes", "leading axes"])
def test_a_second_rotation_composes_with_the_first(is_dense):
    x, model = linear_gaussian(6, 5000, leading=1)
    model = with_rotation(model, is_dense)
    expected, _ = PCA.fit(x.numpy()).error_curve([x])
    assert error(model, 1, x) > 1.2 * expected[1].item(), "before, the axes are others"
    for seed in (0, 1):
        fit_rotation(model, Batches(x.numpy(), 100, seed), probes=10000)
        for d in (1, 2):
            assert error(model, d, x) == pytest.approx(expected[d].item(), rel=0.02)


class Spiky(Affine):
    """A linear flow with a nearly singular decoder at a few events."""

    def inverse(self, z, context=None):
        x = super().inverse(z, context)
        return torch.where(z[:, :1] > 1.7, 1e3 * x.flip(1), x)


def test_probes_at_nearly_singular_events_choose_no_axis():
    x, plain = linear_gaussian(6, 5000)
    spiky = Spiky(6)
    spiky.load_state_dict(plain.stages[0].flows[0].state_dict())
    model = Hierarchy([Stage(spiky, 3)])
    for hierarchy in (plain, model):
        fitted = fit_rotation(hierarchy, Batches(x.numpy(), 100), probes=8000)
    assert 0.92 < fitted["probes"] / 8000 < 0.98
    eigenvalues, expected = (h.stages[0].rotation.eigenvalues for h in (model, plain))
    torch.testing.assert_close(eigenvalues, expected, rtol=0.2, atol=1e-3)


@torch.no_grad()
def energies(model, x):
    """The diagonal of E[J^T J]: a Jacobian-vector product for each latent of each event."""
    stage = model.stages[0]
    z = stage.transform(x)[0]
    at = z.repeat_interleave(z.shape[1], 0)
    columns = jvp(stage.inverse, at, torch.eye(z.shape[1]).repeat(len(z), 1)).flatten(1)
    return columns.square().sum(1).view(len(z), -1).mean(0)


@pytest.mark.parametrize(
    ("is_dense", "bands"),
    [(True, [(0, 10), (10, 50), (50, 130), (130, 192)]), (False, [(0, 10), (10, 192)])],
    ids=["all axes", "leading axes"],
)
def test_eigenvalues_are_unbiased_contributions_of_latents(is_dense, bands):
    """The eigenvalues of the probes that chose the axes are 1.5, 1.3, 0.8 and 0.4 times as much."""
    model = with_rotation(glow(10), is_dense)
    found = fit_rotation(model, Batches(IMAGES, 16), 512)
    eigenvalues, expected = (
        model.stages[0].rotation.eigenvalues,
        energies(model, torch.from_numpy(IMAGES[:10])),
    )
    for band in bands:
        within = slice(*band)
        assert eigenvalues[within].sum().item() == pytest.approx(
            expected[within].sum().item(), rel=0.15
        )
    assert found["mse"] == pytest.approx(
        [tail_sums(eigenvalues)[d].item() / 192 for d in found["dims"]]
    )


def test_leading_axes_have_the_largest_eigenvalues_and_others_the_mean():
    x, model = linear_gaussian(30, 5000, leading=3)
    model = with_rotation(model, is_dense=False)
    found = fit_rotation(model, Batches(x.numpy(), 100), probes=6000)
    variances = PCA.fit(x.numpy()).variances.float()
    eigenvalues = model.stages[0].rotation.eigenvalues
    assert error(model, 3, x) == pytest.approx(variances[3:].sum().item() / 30, rel=0.01)
    assert torch.allclose(eigenvalues[:6], variances[:6], rtol=0.2)
    assert eigenvalues[6:].unique().tolist() == pytest.approx(
        [variances[6:].mean().item()], rel=0.05
    )
    assert found["mse"][-1] == pytest.approx(variances[6:].sum().item() / 30, rel=0.05)


def test_u_and_v_are_rotated_separately_if_their_scales_differ():
    torch.manual_seed(0)
    model = perturb(Hierarchy([Stage(Glow((3, 8, 8), 2, 2, 8), 40, off_manifold_scale=0.1)]))
    x = torch.from_numpy(IMAGES)
    before, projected = model.bits_per_dim(x), model.encoder_projection(x)
    fit_rotation(model, Batches(IMAGES, 16))
    assert (model.bits_per_dim(x) - before).abs().max() < 1e-5
    assert torch.allclose(model.encoder_projection(x), projected, atol=1e-4)
    matrix = model.stages[0].rotation.matrix
    assert matrix[:40, 40:].abs().max() == 0 == matrix[40:, :40].abs().max()


class Overflowing(RealNVP):
    """A flow whose decoder overflows in some of its calls: all of them, or two of three."""

    def __init__(self, dim: int, every: int = 1):
        super().__init__(dim, couplings=2)
        self.every, self.calls = every, 0

    def inverse(self, z, context=None):
        self.calls += 1
        return super().inverse(z, context) * (1.0 if self.calls % self.every else torch.inf)


def test_probes_that_are_not_finite_are_left_out_or_one_message():
    rows = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    with pytest.raises(UserError, match=r"rotation: expected finite derivatives .*, got none"):
        fit_rotation(Hierarchy([Stage(Overflowing(4), 2)]), Batches(rows, 16), 640)
    model = Hierarchy([Stage(Overflowing(4, every=3), 2)])
    assert fit_rotation(model, Batches(rows, 16), 640)["probes"] <= 640 - 192
    assert model.stages[0].rotation.eigenvalues.isfinite().all()


class KilledError(Exception):
    pass


class Dying(Batches):
    def at(self, step, generator=None):
        if step == 20:
            raise KilledError
        return super().at(step, generator)


@pytest.fixture
def slow_clock(monkeypatch):
    """A clock by which half a minute passes between any two looks at it."""
    clock = itertools.count(step=31.0)
    monkeypatch.setattr("time.monotonic", lambda: next(clock))


@pytest.mark.usefixtures("slow_clock")
@pytest.mark.parametrize("is_dense", [True, False], ids=["all axes", "leading axes"])
def test_a_killed_fit_resumes_bit_for_bit(is_dense, tmp_path):
    expected = with_rotation(glow(), is_dense)
    found = fit_rotation(expected, Batches(IMAGES, 16), 2000)
    model = with_rotation(glow(), is_dense)
    with pytest.raises(KilledError):
        fit_rotation(model, Dying(IMAGES, 16), 2000, folder=tmp_path)
    seen = []

    class Counting(Batches):
        def at(self, step, generator=None):
            seen.append(step)
            return super().at(step, generator)

    model = with_rotation(glow(), is_dense)
    again = fit_rotation(model, Counting(IMAGES, 16), 2000, folder=tmp_path)
    assert seen[0] == 20
    times = {"seconds": 0}
    assert again | times == found | times
    state = expected.state_dict()
    assert all(torch.equal(each, state[name]) for name, each in model.state_dict().items())
    # the result is kept
    kept = with_rotation(glow(), is_dense)
    assert fit_rotation(kept, Dying(IMAGES, 16), 2000, folder=tmp_path) == again
    assert all(torch.equal(each, state[name]) for name, each in kept.state_dict().items())


@pytest.mark.usefixtures("slow_clock")
@pytest.mark.parametrize("is_finished", [False, True], ids=["killed", "finished"])
@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"model": glow(seed=1)}, "architecture or initial weights"),
        ({"images": IMAGES[::-1].copy()}, "data"),
        ({"seed": 1}, "seed"),
        ({"probes": 1000}, "probes"),
    ],
    ids=["model", "data", "seed", "probes"],
)
def test_a_checkpoint_of_another_rotation_is_refused(arguments, name, is_finished, tmp_path):
    def fit(kind, model=None, images=IMAGES, seed=0, probes=2000):
        model = model or glow()
        return fit_rotation(model, kind(images, 16, seed), probes, folder=tmp_path)

    if is_finished:
        fit(Batches)
    else:
        with pytest.raises(KilledError):
            fit(Dying)
    with pytest.raises(UserError, match=rf"rotation\.safetensors: .* with other {name}"):
        fit(Batches, **arguments)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phase_1")
    how = phase(1, weight=0)
    run = PhaseRun("phase_1", 7, CPU, folder)
    return train_phase(how, MODEL, None, IMAGES[20:], IMAGES[:20], run)[0]


def test_a_second_stage_trains_in_the_metric_of_the_first(trained, tmp_path):
    settings = RotationSettings(rotate=1, probes=1000)
    model, _ = rotate_phase(settings, trained, IMAGES[20:], PhaseRun("phase_2", 7, CPU, tmp_path))
    with torch.no_grad():
        u = model.encode(torch.from_numpy(IMAGES))[0].numpy()
    second = phase(2, weight=10.0, space="metric")
    run = PhaseRun("2", 7, CPU, tmp_path / "2")
    full, history = train_phase(second, MODEL, model, u[20:], u[:20], run)
    assert history["terms"] == ["likelihood", "reconstruction"]
    settings = RotationSettings(rotate=2, probes=1000)
    final, history = rotate_phase(settings, full, u[20:], PhaseRun("3", 7, CPU, tmp_path / "3"))
    x = torch.from_numpy(IMAGES)
    assert final.stages[1].rotation is not None
    assert final.eigenvalues.shape == (6,)
    assert (final.bits_per_dim(x) - full.bits_per_dim(x)).abs().max() < 1e-5
    assert history["rotation"]["mse"][-1] == 0


def test_probes_depend_on_the_seed_and_on_the_phase(trained, tmp_path):
    def rotate(model, seed, folder):
        settings = RotationSettings(rotate=1, probes=256)
        run = PhaseRun(folder, seed, CPU, tmp_path / folder)
        return rotate_phase(settings, model, IMAGES[20:], run)[0]

    first, again = rotate(trained, 7, "first"), rotate(trained, 7, "again")
    other_seed, other_phase = rotate(trained, 8, "seed"), copy.deepcopy(trained)
    other_phase = other_phase.with_facts(notes={"phases": 2 * trained.notes["phases"]})
    other_phase = rotate(other_phase, 7, "phase")
    eigenvalues = first.stages[0].rotation.eigenvalues
    assert torch.equal(again.stages[0].rotation.eigenvalues, eigenvalues)
    for model in (other_seed, other_phase):
        assert not torch.allclose(model.stages[0].rotation.eigenvalues, eigenvalues, rtol=0.01)
