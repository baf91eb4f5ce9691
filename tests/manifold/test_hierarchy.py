import json
import math
import os
from statistics import NormalDist

import pytest
import torch
from safetensors.torch import save_file
from torch.autograd.functional import jacobian

from submanifold.data.dequantize import dequantize
from submanifold.errors import UserError
from submanifold.flows import Affine, Flow, Glow, RealNVP
from submanifold.manifold import Hierarchy, Stage


def perturb(module, scale=0.1):
    with torch.no_grad():
        for p in module.parameters():
            p.add_(scale * torch.randn_like(p))
    return module


def nested(scales=(1.0, 1.0, 1.0)):
    """A perturbed hierarchy 48 -> 20 -> 8 -> 3 in double precision."""
    torch.manual_seed(0)
    flows = Glow((3, 4, 4), 2, 2, 4), RealNVP(20), RealNVP(8, 3)
    stages = [Stage(f, d, s) for f, d, s in zip(flows, (20, 8, 3), scales, strict=True)]
    return perturb(Hierarchy(stages)).double()


def images(n=4):
    torch.manual_seed(1)
    return torch.rand(n, 3, 4, 4, dtype=torch.float64) - 0.5


@pytest.mark.parametrize("scales", [(1.0, 1.0, 1.0), (0.3, 1.0, 2.0)])
def test_the_density_is_that_of_the_flat_composition(scales):
    hierarchy, x = nested(scales), images()

    def flat(event):
        u, v = hierarchy.encode(event[None])
        return torch.cat([u, v], 1)[0]

    # (u, v): 3 on the manifold, then 5 left by stage 3, 12 by stage 2, 28 by stage 1
    sigma = [1.0] * 3 + [scales[2]] * 5 + [scales[1]] * 12 + [scales[0]] * 28
    prior = torch.distributions.Normal(0, torch.tensor(sigma, dtype=torch.float64))
    for event, log_prob in zip(x, hierarchy.log_prob(x), strict=True):
        log_det = torch.linalg.slogdet(jacobian(flat, event).reshape(48, 48)).logabsdet
        normal = prior.log_prob(flat(event)).sum()
        assert log_prob.item() == pytest.approx((normal + log_det).item(), abs=1e-6)


def test_encoding_inverts_decoding_and_projections_stay():
    hierarchy, x = nested(), images()
    u = torch.randn(5, 3, dtype=torch.float64)
    back, off = hierarchy.encode(hierarchy.decode(u))
    torch.testing.assert_close(back, u, rtol=0, atol=1e-8)
    assert off.shape == (5, 45)
    assert off.abs().max() < 1e-8
    torch.testing.assert_close(hierarchy.decode(*hierarchy.encode(x)), x, rtol=0, atol=1e-8)
    once = hierarchy.project(x)
    assert (once - x).abs().max() > 1e-3
    torch.testing.assert_close(hierarchy.project(once), once, rtol=0, atol=1e-8)
    assert torch.equal(hierarchy.rejection_map(x), x - once)


def test_a_two_dimensional_density_integrates_to_one():
    torch.manual_seed(0)
    stages = [Stage(RealNVP(2, 6, 8), 1, 0.7), Stage(RealNVP(1, 2, 4), 1)]
    hierarchy = perturb(Hierarchy(stages), 0.3).double()
    axis = torch.arange(-15, 15, 0.04, dtype=torch.float64)
    with torch.no_grad():
        density = hierarchy.log_prob(torch.cartesian_prod(axis, axis)).exp()
    assert density.sum() * 0.04**2 == pytest.approx(1, abs=1e-3)
    cells = density.view(len(axis), -1)
    assert torch.cat([cells[0], cells[-1], cells[:, 0], cells[:, -1]]).max() < 1e-7


def test_a_fresh_second_stage_leaves_the_bits_per_dim_as_they_were():
    torch.manual_seed(0)
    first = perturb(Stage(Glow((3, 4, 4), 2, 2, 4), 20))
    x = torch.rand(5, 3, 4, 4) - 0.5
    one, two = Hierarchy([first]), Hierarchy([first, Stage(RealNVP(20), 6)])
    torch.testing.assert_close(two.bits_per_dim(x), one.bits_per_dim(x), rtol=0, atol=1e-6)
    assert torch.equal(two.encode(x)[0], one.encode(x)[0][:, :6])


def test_stages_that_do_not_follow_on_each_other_are_refused():
    with pytest.raises(UserError, match=r"Stage 2 .*\(5,\).*stage 1 leaves 4 .*stage_1\.dim"):
        Hierarchy([Stage(RealNVP(8), 4), Stage(RealNVP(5), 2)])
    with pytest.raises(UserError, match="Stage 3"):
        Hierarchy([Stage(RealNVP(8), 4), Stage(RealNVP(4), 4), Stage(RealNVP(8), 2)])


class Identity(Flow):
    """Flattens, or maps the uniform density on [-0.5, 0.5) to the normal one."""

    def __init__(self, shape, uniform=False):
        super().__init__()
        self.event_shape, self.uniform = shape, uniform

    def forward(self, x):
        z = x.flatten(1)
        if not self.uniform:
            return z, x.new_zeros(len(x))
        z = math.sqrt(2) * torch.erfinv(2 * z)
        return z, (0.5 * z.square() + 0.5 * math.log(2 * math.pi)).sum(1)


@pytest.mark.parametrize(("bits", "expected"), [(8, 9.38586), (5, 6.38586)])
def test_bits_per_dim_of_random_bytes_have_their_known_values(bits, expected):
    pixels = torch.randint(
        0, 256, (2000, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(3)
    )
    x = dequantize(pixels, torch.Generator().manual_seed(4), bits)
    assert expected == pytest.approx(
        bits + (0.5 * math.log(2 * math.pi) + 0.5 / 12) / math.log(2), abs=1e-5
    )
    under_identity = Hierarchy([Stage(Identity((3, 8, 8)), 192)]).bits_per_dim(x, bits)
    # the variance of x^2 / (2 log 2) for a uniform x, over all the numbers drawn
    error = math.sqrt((1 / 80 - 1 / 144) / x.numel()) / (2 * math.log(2))
    assert under_identity.mean().item() == pytest.approx(expected, abs=4 * error + 1e-5)

    matching = Hierarchy([Stage(Identity((3, 8, 8), uniform=True), 100)])
    torch.testing.assert_close(
        matching.bits_per_dim(x.double(), bits),
        torch.full((2000,), float(bits), dtype=torch.float64),
        rtol=0,
        atol=1e-9,
    )
    z = matching.encode(x.double()[:1])[0][0, 0]
    assert z == pytest.approx(NormalDist().inv_cdf(x[0, 0, 0, 0].item() + 0.5), abs=1e-9)


def test_images_count_eight_bits_by_default_and_vectors_none():
    x = torch.zeros(1, 3, 2, 2)
    images = Hierarchy([Stage(Identity((3, 2, 2)), 12)])
    vectors = Hierarchy([Stage(Identity((12,)), 12)])
    zero = 0.5 * math.log2(2 * math.pi)
    assert images.bits_per_dim(x).item() == pytest.approx(8 + zero, rel=1e-6)
    assert vectors.bits_per_dim(x.flatten(1)).item() == pytest.approx(zero, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_saved_hierarchy_loads_as_itself(tmp_path, dtype):
    hierarchy = nested((0.5, 1.0, 2.0)).to(dtype)
    hierarchy.notes = {"step": 3, "loss": 1.25, "nested": {"a": [1, None, "b"]}}
    hierarchy.save(tmp_path / "deep" / "flow.safetensors")
    again = Hierarchy.load(tmp_path / "deep" / "flow.safetensors")
    assert again.describe() == hierarchy.describe()
    assert not again.training
    for (name, p), (other, q) in zip(
        again.named_parameters(), hierarchy.named_parameters(), strict=True
    ):
        assert name == other
        assert p.dtype == dtype
        assert torch.equal(p, q)
    x = images().to(dtype)
    assert torch.equal(again.log_prob(x), hierarchy.log_prob(x))
    assert os.listdir(tmp_path / "deep") == ["flow.safetensors"]


def test_a_part_left_behind_by_a_killed_save_does_no_harm(tmp_path):
    path = tmp_path / "flow.safetensors"
    (tmp_path / "flow.safetensors.part").write_bytes(b"half a file")
    with pytest.raises(UserError, match="no flow at"):
        Hierarchy.load(path)
    nested().save(path)
    assert Hierarchy.load(path).dim == 3
    assert os.listdir(tmp_path) == ["flow.safetensors"]


def test_a_save_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "flow.safetensors"
    nested().save(path)
    before = path.read_bytes()

    def torn(tensors, filename, metadata):
        filename.write_bytes(before[:100])
        raise OSError("disk full")

    monkeypatch.setattr("submanifold.manifold.hierarchy.save_file", torn)
    with pytest.raises(OSError, match="disk full"):
        perturb(nested()).save(path)
    assert path.read_bytes() == before


def test_what_is_not_a_flow_is_refused_by_name(tmp_path):
    path = tmp_path / "flow.safetensors"
    nested().save(path)
    whole = path.read_bytes()
    stage = {"flow": "affine", "config": {"dim": 2}, "dim": 1, "off_manifold_scale": 1.0}
    weight = {"weight": torch.zeros(2)}

    def header(stages, notes="{}"):
        return {"stages": stages, "notes": notes}

    save_file(weight, tmp_path / "plain")
    save_file(weight, tmp_path / "garbled", header("no json"))
    save_file({}, tmp_path / "hollow", header(json.dumps([stage])))
    save_file(weight, tmp_path / "no_stages", header("[]"))
    save_file(weight, tmp_path / "no_list", header("[1]"))
    save_file(weight, tmp_path / "weightless", header(json.dumps([stage])))
    save_file(weight, tmp_path / "unknown", header(json.dumps([{**stage, "flow": "spline"}])))
    save_file(weight, tmp_path / "misfit", header(json.dumps([{**stage, "dim": 3}])))
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "noise").write_bytes(os.urandom(1000))
    (tmp_path / "torn").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "folder").mkdir()
    names = [p.name for p in tmp_path.iterdir() if p != path]
    assert len(names) == 12
    for name in [*names, "missing"]:
        with pytest.raises(UserError, match=rf"{tmp_path}/{name}\b.*Give a file"):
            Hierarchy.load(tmp_path / name)


def test_samples_lie_on_the_manifold_and_depend_on_the_generator_alone():
    hierarchy = nested()

    def draw(seed, temperature=1.0):
        return hierarchy.sample(6, temperature, torch.Generator().manual_seed(seed))

    samples = draw(0)
    assert samples.shape == (6, 3, 4, 4)
    assert not samples.requires_grad
    assert torch.equal(samples, draw(0))
    assert not torch.equal(samples, draw(1))
    torch.testing.assert_close(hierarchy.project(samples), samples, rtol=0, atol=1e-8)
    torch.testing.assert_close(
        hierarchy.encode(draw(0, 0.5))[0], 0.5 * hierarchy.encode(samples)[0], rtol=0, atol=1e-8
    )


def test_temperature_zero_gives_the_decoded_origin():
    hierarchy = nested()
    origin = hierarchy.decode(torch.zeros(2, 3, dtype=torch.float64))
    assert torch.equal(hierarchy.sample(2, temperature=0), origin)


def test_a_description_counts_parameters_and_is_json():
    hierarchy = Hierarchy([Stage(Affine(4), 2)])
    described = json.loads(json.dumps(hierarchy.describe()))
    assert described["parameters"] == 4 + 4 + 16
    assert described["stages"][0]["flow"] == "affine"
