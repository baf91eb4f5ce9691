import numpy as np
import pytest
import torch
from resumable import MODEL, phase, smooth_images

from strategies import perturb
from submanifold.data.batches import Batches
from submanifold.evaluation.baselines import PCA
from submanifold.flows import Affine, Glow
from submanifold.flows.orthogonal import tail_sums
from submanifold.geometry.linearization import jvp
from submanifold.models import Hierarchy, Stage
from submanifold.training import rotation
from submanifold.training.phases import rotate_phase, train_phase
from submanifold.training.rotation import (
    RotationSettings,
    fit_rotation,
    principal_axes,
)

IMAGES = smooth_images(120)
CPU = torch.device("cpu")


def linear_gaussian(dim, n, seed=0, leading=None):
    """Normal data with rotated principal axes, and a flow that whitens them."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(dim, dim, generator=generator)).Q
    scales = torch.logspace(0.5, -1, dim)
    x = torch.randn(n, dim, generator=generator) * scales @ axes.T
    other = torch.linalg.qr(torch.randn(dim, dim, generator=generator)).Q
    flow = Affine(dim)
    with torch.no_grad():
        flow.weight.copy_(other @ (axes / scales).T)
    return x, Hierarchy([Stage(flow, leading or dim // 2)])


def glow(dim=40):
    torch.manual_seed(0)
    return perturb(Hierarchy([Stage(Glow((3, 8, 8), levels=2, steps=2, width=8), dim)]))


@torch.no_grad()
def error(model, dim, x):
    return (x - model.at_dim(dim).encoder_projection(x)).square().mean().item()


def test_rotating_a_flow_of_linear_gaussian_data_is_pca():
    x, model = linear_gaussian(6, 20000)
    found = fit_rotation(model, Batches(x.numpy(), 100), probes=40000)
    pca = PCA.fit([x])
    expected, _ = pca.error_curve([x])
    for d in range(1, 6):
        assert error(model, d, x) == pytest.approx(expected[d].item(), rel=0.01)
    for d, predicted in zip(found["dims"], found["mse"], strict=True):
        assert predicted == pytest.approx(expected[d].item(), rel=0.05, abs=1e-9)
    assert torch.allclose(model.stages[0].rotation.eigenvalues, pca.variances.float(), rtol=0.05)


@torch.no_grad()
def energies(model, x):
    """The diagonal of E[J^T J]: a Jacobian-vector product for each latent of each event."""
    flow = model.stages[0].flow
    z = flow(x)[0]
    at = z.repeat_interleave(z.shape[1], 0)
    columns = jvp(flow.inverse, at, torch.eye(z.shape[1]).repeat(len(z), 1)).flatten(1)
    return columns.square().sum(1).view(len(z), -1).mean(0)


@pytest.mark.parametrize(
    ("largest_matrix", "bands"),
    [(12288, [(0, 10), (10, 50), (50, 130), (130, 192)]), (100, [(0, 10), (10, 192)])],
    ids=["all axes", "leading axes"],
)
def test_eigenvalues_are_unbiased_contributions_of_latents(largest_matrix, bands, monkeypatch):
    """The eigenvalues of the probes that chose the axes are 1.5, 1.3, 0.8 and 0.4 times as much."""
    monkeypatch.setattr("submanifold.models.stage.LARGEST_MATRIX", largest_matrix)
    model = glow(10)
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


def test_leading_axes_have_the_largest_eigenvalues_and_others_the_mean(monkeypatch):
    monkeypatch.setattr("submanifold.models.stage.LARGEST_MATRIX", 29)
    x, model = linear_gaussian(30, 5000, leading=3)
    found = fit_rotation(model, Batches(x.numpy(), 100), probes=6000)
    variances = PCA.fit([x]).variances.float()
    eigenvalues = model.stages[0].rotation.eigenvalues
    assert error(model, 3, x) == pytest.approx(variances[3:].sum().item() / 30, rel=0.01)
    assert torch.allclose(eigenvalues[:6], variances[:6], rtol=0.2)
    assert eigenvalues[6:].unique().tolist() == pytest.approx(
        [variances[6:].mean().item()], rel=0.05
    )
    assert found["mse"][-1] == pytest.approx(variances[6:].sum().item() / 30, rel=0.05)


def excess_error(axes, covariance, d):
    """Error of omitting the latents after d, relative to that of the best axes, minus 1."""
    kept = (axes[:, :d] * (covariance @ axes[:, :d])).sum()
    smallest = torch.linalg.eigvalsh(covariance)[:-d].sum()
    return ((covariance.trace() - kept) / smallest - 1).item()


def probes_of(covariance, n, seed=1):
    generator = torch.Generator().manual_seed(seed)
    root = torch.linalg.cholesky(covariance)
    return torch.randn(n, len(covariance), generator=generator) @ root.T


def covariances(dim=200):
    """A nearly diagonal covariance, as after an earlier rotation, behind a random one and as is."""
    torch.manual_seed(0)
    scales, noise = torch.logspace(0, -1, dim), 0.15 * torch.randn(dim, dim) / dim**0.5
    near = scales[:, None] * (torch.eye(dim) + noise + noise.T) * scales
    frame = torch.linalg.qr(torch.randn(dim, dim)).Q
    return frame @ near @ frame.T, near


def test_axes_need_fewer_probes_than_those_of_the_sample_covariance():
    far, near = covariances()
    for d in (10, 30, 60):
        plain = torch.linalg.eigh(probes_of(far, 400).T @ probes_of(far, 400)).eigenvectors.flip(1)
        cold = excess_error(principal_axes(probes_of(far, 400)), far, d)
        warm = excess_error(principal_axes(probes_of(near, 400)), near, d)
        assert cold < 1.02 * excess_error(plain, far, d)
        assert warm < 0.6 * cold
        assert warm < excess_error(principal_axes(probes_of(far, 800)), far, d)
        assert excess_error(principal_axes(probes_of(far, 40000)), far, d) < 0.01


@pytest.mark.parametrize("kind", ["far", "near"])
def test_subspace_iteration_finds_the_leading_axes(kind):
    covariance = covariances()[kind == "near"]
    probes = probes_of(covariance, 2000)
    every, leading = principal_axes(probes), principal_axes(probes.bfloat16(), 40)
    assert torch.allclose(leading.T @ leading, torch.eye(40), atol=1e-5)
    for d in (5, 20):
        expected = excess_error(every, covariance, d)
        assert excess_error(leading, covariance, d) == pytest.approx(expected, abs=0.006)


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


def test_probes_of_nearly_singular_decoders_are_left_out():
    x, model = linear_gaussian(6, 4000)
    clean = fit_rotation(model, Batches(x.numpy(), 100), probes=8000)
    _, model = linear_gaussian(6, 4000)
    flow = model.stages[0].flow
    inverse = flow.inverse

    def singular(z):
        return inverse(z) * torch.where(torch.arange(len(z)) % 25 == 0, 1e4, 1.0)[:, None]

    flow.inverse = singular
    found = fit_rotation(model, Batches(x.numpy(), 100), probes=8000)
    flow.inverse = inverse
    assert found["left_out"] == pytest.approx(8000 / 25, rel=0.01)
    assert found["mse"] == pytest.approx(clean["mse"], rel=0.1)


class KilledError(Exception):
    pass


class Dying(Batches):
    def at(self, step):
        if step == 20:
            raise KilledError
        return super().at(step)


@pytest.mark.parametrize("largest_matrix", [12288, 100], ids=["all axes", "leading axes"])
def test_a_killed_fit_resumes_bit_for_bit(largest_matrix, tmp_path, monkeypatch):
    monkeypatch.setattr("submanifold.models.stage.LARGEST_MATRIX", largest_matrix)
    expected = glow()
    found = fit_rotation(expected, Batches(IMAGES, 16), 2000)
    monkeypatch.setattr(rotation, "SAVE_EVERY", 0.0)
    model = glow()
    with pytest.raises(KilledError):
        fit_rotation(model, Dying(IMAGES, 16), 2000, folder=tmp_path)
    seen = []

    class Counting(Batches):
        def at(self, step):
            seen.append(step)
            return super().at(step)

    model = glow()
    again = fit_rotation(model, Counting(IMAGES, 16), 2000, folder=tmp_path)
    assert seen[0] == 20
    times = dict.fromkeys(("seconds", "decomposition_seconds"), 0)
    assert again | times == found | times
    state = expected.state_dict()
    assert all(torch.equal(each, state[name]) for name, each in model.state_dict().items())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rounds", [1, 2, 7])
@pytest.mark.parametrize("largest_matrix", [12288, 100], ids=["all axes", "leading axes"])
def test_few_rounds_have_finite_errors(largest_matrix, rounds, monkeypatch):
    monkeypatch.setattr("submanifold.models.stage.LARGEST_MATRIX", largest_matrix)
    found = fit_rotation(glow(), Batches(IMAGES, 16), 64 * rounds)
    assert np.isfinite(found["mse"]).all()
    assert found["mse"][0] > 0


def test_a_damaged_file_of_progress_is_ignored(tmp_path):
    (tmp_path / "rotation.safetensors").write_bytes(b"half")
    model, expected = glow(), glow()
    fit_rotation(model, Batches(IMAGES, 16), 500, folder=tmp_path)
    fit_rotation(expected, Batches(IMAGES, 16), 500)
    assert torch.equal(model.stages[0].rotation.matrix, expected.stages[0].rotation.matrix)


def test_a_second_rotation_replaces_the_first():
    model = glow()
    fit_rotation(model, Batches(IMAGES, 16), 3000)
    first = [error(model, d, torch.from_numpy(IMAGES)) for d in (20, 60)]
    fit_rotation(model, Batches(IMAGES, 16, seed=5), 3000)
    assert [type(each).__name__ for each in model.stages[0].flows] == ["Glow", "Rotation"]
    second = [error(model, d, torch.from_numpy(IMAGES)) for d in (20, 60)]
    assert second == pytest.approx(first, rel=0.1)


def test_a_fit_keeps_requires_grad():
    model = glow()
    model.requires_grad_(True)
    next(iter(model.parameters())).requires_grad_(False)
    fit_rotation(model, Batches(IMAGES, 16), 200)
    flags = [weight.requires_grad for weight in model.parameters()]
    assert flags == [False] + [True] * (len(flags) - 1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phase_1")
    how = phase(1, weight=0)
    return train_phase(how, MODEL, None, IMAGES[20:], IMAGES[:20], 7, CPU, folder, "phase_1")[0]


def rotated(trained, folder, **changes):
    settings = RotationSettings(rotate=1, **changes)
    return rotate_phase(settings, trained, IMAGES[20:], 7, CPU, folder, "phase_2")


def test_a_rotation_phase_returns_a_rotated_copy_and_a_history(trained, tmp_path):
    model, history = rotated(trained, tmp_path, probes=1000)
    assert trained.stages[0].rotation is None
    assert model.stages[0].rotation is not None
    assert [each["stages"] for each in model.notes["phases"]] == [[1], [1]]
    assert history["name"] == "phase_2"
    assert history["train"] == []
    assert history["rotation"]["probes"] + history["rotation"]["left_out"] >= 1000


def test_a_second_stage_trains_in_the_metric_of_the_first(trained, tmp_path):
    model, _ = rotated(trained, tmp_path, probes=1000)
    with torch.no_grad():
        u = model.encode(torch.from_numpy(IMAGES))[0].numpy()
    second = phase(2, weight=10.0, space="metric")
    full, history = train_phase(second, MODEL, model, u[20:], u[:20], 7, CPU, tmp_path / "2", "2")
    assert history["terms"] == ["likelihood", "reconstruction"]
    settings = RotationSettings(rotate=2, probes=1000)
    final, history = rotate_phase(settings, full, u[20:], 7, CPU, tmp_path / "3", "3")
    x = torch.from_numpy(IMAGES)
    assert final.stages[1].rotation is not None
    assert final.eigenvalues.shape == (6,)
    assert (final.bits_per_dim(x) - full.bits_per_dim(x)).abs().max() < 1e-5
    assert history["rotation"]["mse"][-1] == 0
