import copy
import json
import math
import os
import socket
import subprocess
import tempfile
from itertools import chain
from pathlib import Path
from statistics import NormalDist

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from strategies import assert_close, hierarchies, perturb, slogdet
from submanifold.common.errors import UserError
from submanifold.data.batches import dequantize
from submanifold.flows import Affine, Flow, Glow, MaskedAffineCoupling, RealNVP
from submanifold.models import Hierarchy, Model, Stage
from submanifold.training.checkpoint import EMA, load_checkpoint, read_checkpoint, save_checkpoint

many = settings(max_examples=60, deadline=None, derandomize=True)
some = settings(many, max_examples=25)


def flat(hierarchy, x):
    """All the stages' flows by hand: u, then every v, the innermost first."""
    off = []
    for stage in hierarchy.stages:
        z, _ = stage.flow(x)
        x, v = z[:, : stage.dim], z[:, stage.dim :]
        off.insert(0, v)
    return torch.cat([x, *off], 1)


def scales(hierarchy):
    """Standard deviation of each number of :func:`flat`."""
    off = [[s.off_manifold_scale] * (s.event_dim - s.dim) for s in reversed(hierarchy.stages)]
    return torch.tensor([*[1.0] * hierarchy.dim, *chain(*off)], dtype=torch.float64)


@many
@given(hierarchies(dtypes=[torch.float64]))
def test_the_density_is_that_of_the_flat_composition(case):
    hierarchy, x = case
    u, v, log_prob = hierarchy(x)
    z = flat(hierarchy, x)
    assert torch.equal(torch.cat([u, v], 1), z)
    assert u.shape[1] == hierarchy.dim
    normal = norm.logpdf(z.detach().numpy(), scale=scales(hierarchy).numpy()).sum(1)
    log_det = slogdet(lambda x: flat(hierarchy, x), x)
    assert_close(log_prob, log_det + torch.from_numpy(normal))


@many
@given(hierarchies())
def test_encoding_and_decoding_undo_each_other(case):
    hierarchy, x = case
    u, v = hierarchy.encode(x)
    assert u.dtype == v.dtype == x.dtype
    assert_close(hierarchy.decode(u, v), x)
    z = torch.randn(len(x), hierarchy.event_dim, dtype=x.dtype)
    u, v = z[:, : hierarchy.dim], z[:, hierarchy.dim :]
    assert_close(torch.cat(hierarchy.encode(hierarchy.decode(u, v)), 1), z)
    on_manifold = torch.cat([u, torch.zeros_like(v)], 1)
    assert_close(torch.cat(hierarchy.encode(hierarchy.decode(u)), 1), on_manifold)


@many
@given(hierarchies())
def test_a_projection_keeps_u_and_projected_again_stays(case):
    hierarchy, x = case
    once = hierarchy.project(x)
    u, v = hierarchy.encode(x)
    assert_close(torch.cat(hierarchy.encode(once), 1), torch.cat([u, torch.zeros_like(v)], 1))
    assert_close(hierarchy.project(once), once)
    assert torch.equal(hierarchy.rejection_map(x), x - once)


@many
@given(hierarchies())
def test_an_event_does_not_feel_the_others_in_its_batch(case):
    hierarchy, x = case
    u, v, log_prob = hierarchy(x)
    back = hierarchy.decode(u)
    for i in range(len(x)):
        own_u, own_v, own_log_prob = hierarchy(x[i : i + 1])
        assert_close(torch.cat([own_u, own_v], 1)[0], torch.cat([u, v], 1)[i])
        assert_close(own_log_prob[0], log_prob[i])
        assert_close(hierarchy.decode(u[i : i + 1])[0], back[i])


@many
@given(hierarchies(dtypes=[torch.float32]))
def test_single_and_double_precision_agree_on_the_density(case):
    hierarchy, x = case
    single = hierarchy.log_prob(x)
    u, v, double = copy.deepcopy(hierarchy).double()(x.double())
    # of each of the D numbers, a few roundings of its log-det and its normaliser, each about 1, and
    # of its normal's exponent
    roundings = hierarchy.event_dim + (torch.cat([u, v], 1) / scales(hierarchy)).square().sum(1)
    assert single.dtype == torch.float32
    assert ((single - double).abs() < 16 * torch.finfo(torch.float32).eps * roundings).all()


@many
@given(hierarchies(dtypes=[torch.float32]))
def test_under_autocast_the_nets_alone_are_others_and_all_else_inverts_them(case):
    hierarchy, x = case
    said = {}
    for module in hierarchy.modules():
        net = getattr(module, "net", None) or getattr(module, "prior", None)
        if net is not None:
            # what a net said in encoding it says again in decoding: there its input differs by a
            # rounding error, which would now and then be another number in bfloat16
            masked = isinstance(module, MaskedAffineCoupling)  # multiplies a part of its last layer
            layer = net[-2] if masked else net
            layer.register_forward_hook(lambda net, _x, out: said.setdefault(net, out))
    with torch.autocast("cpu", torch.bfloat16):
        u, v, log_prob = hierarchy(x)
        back = hierarchy.decode(u, v)
        assert all(out.dtype == torch.bfloat16 for out in said.values())
        event = x
        for stage in hierarchy.stages:
            event, _, log_det = stage(event)
            assert log_det.dtype == torch.float32
    assert u.dtype == v.dtype == log_prob.dtype == back.dtype == torch.float32
    assert_close(back, x)


@some
@given(hierarchies(), st.floats(0, 2), st.integers(0, 2**31))
def test_samples_are_normal_draws_of_the_generator_times_the_temperature(case, temperature, seed):
    hierarchy, x = case
    samples = hierarchy.sample(6, temperature, torch.Generator().manual_seed(seed))
    assert samples.shape == (6, *hierarchy.event_shape)
    assert samples.dtype == x.dtype
    assert not samples.requires_grad
    u, v = hierarchy.encode(samples)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(6, hierarchy.dim, generator=generator, dtype=x.dtype)
    expected = torch.cat([temperature * drawn, torch.zeros_like(v)], 1)
    assert_close(torch.cat([u, v], 1), expected)


@some
@given(hierarchies())
def test_a_saved_hierarchy_loads_as_itself(case):
    hierarchy, x = case
    hierarchy.notes = {"step": 3, "loss": 1.25, "nested": {"a": [1, None, "b"]}}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "deep" / "flow.safetensors"
        hierarchy.save(path)
        again = Hierarchy.load(path)
        assert os.listdir(path.parent) == ["flow.safetensors"]
    assert again.describe() == hierarchy.describe()
    assert not again.training
    for (name, p), (other, q) in zip(
        again.named_parameters(), hierarchy.named_parameters(), strict=True
    ):
        assert name == other
        assert p.dtype == x.dtype
        assert torch.equal(p, q)
    assert torch.equal(again.log_prob(x), hierarchy.log_prob(x))
    u = hierarchy.encode(x)[0]
    assert torch.equal(again.decode(u), hierarchy.decode(u))


def in_training(hierarchy):
    fused = next(hierarchy.parameters()).dtype == torch.float32
    return hierarchy, EMA(hierarchy, 0.9), [torch.optim.Adam(hierarchy.parameters(), fused=fused)]


def advance(hierarchy, ema, optimizers, steps, x):
    for step in steps:
        (-hierarchy.log_prob(x).mean()).backward()
        optimizers[0].step()
        optimizers[0].zero_grad()
        ema.update(step)


@some
@given(hierarchies(), st.integers(0, 3))
def test_a_training_goes_on_from_its_checkpoint_and_its_average_as_if_never_left(case, steps):
    hierarchy, x = case
    other = perturb(copy.deepcopy(hierarchy))
    whole, restored = in_training(hierarchy), in_training(other)
    advance(*whole, range(steps), x)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "flow.safetensors"
        save_checkpoint(path, *whole, {"step": steps}, {})
        assert load_checkpoint(read_checkpoint(path), *restored) == ({"step": steps}, {})
        # as validation does: swap the average in, keep it, swap it out
        before = hierarchy.log_prob(x)
        whole[1].swap()
        averaged = hierarchy.log_prob(x)
        assert torch.equal(averaged, before) == (steps == 0)
        hierarchy.save(path)
        whole[1].swap()
        assert torch.equal(Hierarchy.load(path).log_prob(x), averaged)
    assert torch.equal(hierarchy.log_prob(x), before)
    for each in (whole, restored):
        advance(*each, range(steps, steps + 2), x)
    assert all(map(torch.equal, other.parameters(), hierarchy.parameters()))
    assert all(map(torch.equal, restored[1].average, whole[1].average))


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
    with pytest.raises(UserError, match=r"number 2 .*\(5,\).*number 1 leaves 4 "):
        Hierarchy([Stage(RealNVP(8), 4), Stage(RealNVP(5), 2)])
    with pytest.raises(UserError, match="number 3"):
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


def nested():
    """A perturbed hierarchy 48 -> 20 -> 8 -> 3 in double precision."""
    torch.manual_seed(0)
    flows = Glow((3, 4, 4), 2, 2, 4), RealNVP(20), RealNVP(8, 3)
    return perturb(Hierarchy(list(map(Stage, flows, (20, 8, 3))))).double()


def test_a_part_left_behind_by_a_killed_save_does_no_harm(tmp_path):
    path = tmp_path / "flow.safetensors"
    ended = subprocess.Popen(["true"])
    ended.wait()
    name = f".flow.{socket.gethostname()}-{ended.pid}-1.safetensors"
    (tmp_path / name).write_bytes(b"half a file")
    with pytest.raises(UserError, match="no model at"):
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

    monkeypatch.setattr("submanifold.models.model.save_file", torn)
    with pytest.raises(OSError, match="disk full"):
        perturb(nested()).save(path)
    assert path.read_bytes() == before


def test_a_description_counts_parameters_and_is_json():
    hierarchy = Hierarchy([Stage(Affine(4), 2)])
    described = json.loads(json.dumps(hierarchy.describe()))
    assert described["parameters"] == 4 + 4 + 16
    assert described["model"] == "hierarchy"
    assert described["stages"][0]["bijections"] == [{"type": "affine", "dim": 4}]


def test_a_file_says_what_its_stages_and_its_data_are(tmp_path):
    torch.manual_seed(0)
    stage = perturb(Stage([Glow((3, 4, 4), 1, 1, 4), Affine(48)], 7, off_manifold_scale=0.5))
    hierarchy = Hierarchy([stage])
    hierarchy.data = {"size": 4, "channels": 3, "crop": "square", "value_range": [-0.5, 0.5]}
    hierarchy.save(tmp_path / "model")
    loaded = Model.load(tmp_path / "model")
    assert isinstance(loaded, Hierarchy)
    assert loaded.data == hierarchy.data
    assert loaded.config == json.loads(json.dumps(hierarchy.config))
    x = torch.rand(2, 3, 4, 4) - 0.5
    assert torch.equal(loaded.log_prob(x), hierarchy.log_prob(x))


def test_another_kind_of_model_has_its_own_class_and_the_same_file(tmp_path):
    class Gaussian(Model):
        """A normal density with a scale."""

        kind = "gaussian"

        def __init__(self, size):
            super().__init__()
            self.event_shape, self.dim = (size,), 1
            self.scale = torch.nn.Parameter(torch.ones(()))

        @property
        def config(self):
            return {"size": self.event_shape[0]}

        @classmethod
        def from_config(cls, config):
            return cls(config["size"])

        def forward(self, x):
            log_prob = norm.logpdf(x, scale=self.scale.item()).sum(1)
            return x[:, :1], x[:, 1:], torch.from_numpy(log_prob)

        def decode(self, u, v=None):
            return torch.cat([u, torch.zeros(len(u), 2) if v is None else v], 1)

    try:
        Gaussian(3).save(tmp_path / "model")
        assert isinstance(Model.load(tmp_path / "model"), Gaussian)
        assert Model.load(tmp_path / "model").project(torch.ones(2, 3)).sum() == 2
        with pytest.raises(UserError, match="holds a gaussian, not a hierarchy"):
            Hierarchy.load(tmp_path / "model")
    finally:
        del Model.kinds["gaussian"]
