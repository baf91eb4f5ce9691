"""What the property tests draw, hierarchies above all, and how they compare numbers."""

import math

import torch
from hypothesis import strategies as st

from submanifold.data import dequantize
from submanifold.flows import Affine, Glow, RealNVP, make_conditional
from submanifold.models import Hierarchy, Stage

DTYPES = (torch.float32, torch.float64)
SMALL_FLOWS = {
    "glow": {"levels": 2, "steps": 1, "width": 4},
    "soft_glow": {"levels": 2, "steps": 1, "width": 4},
    "realnvp": {"couplings": 2},
    "soft_realnvp": {"couplings": 2},
    "gaussianization": {"layers": 1},
    "tabular": {"couplings": 2, "hidden": 8, "bins": 4},
    "zuko": {"transforms": 1, "hidden": 8},
    "conformal": {"layers": 1},
    "trumpet": {"steps": 1, "width": 4},
    "autoencoder": {"width": 4},
}
OF_EVENTS = {  # methods of models, given events and their context
    "forward": lambda model, x, c=None: model(x, c),
    "log_prob": lambda model, x, c=None: model.log_prob(x, c),
    "bits_per_dim": lambda model, x, c=None: model.bits_per_dim(x, context=c),
    "encode": lambda model, x, c=None: model.encode(x, context=c),
    "nearest code": lambda model, x, c=None: model.encode(x, "nearest", context=c),
    "project": lambda model, x, c=None: model.project(x, context=c),
    "nearest projection": lambda model, x, c=None: model.project(x, nearest=True, context=c),
    "encoder projection": lambda model, x, c=None: model.encoder_projection(x, c),
}


def perturb(module, scale=0.2):
    """Move every weight from its start, by little enough to keep all maps well conditioned."""
    with torch.no_grad():
        for p in module.parameters():
            p.add_(scale / max(1, p[:1].numel()) ** 0.5 * torch.randn_like(p))
    return module


def initialized_glow(images, dim, **settings):
    """A Glow after data-dependent initialization from uint8 images (n, channels, height, width)."""
    torch.manual_seed(0)
    model = Hierarchy([Stage(Glow(images.shape[1:], levels=2, width=8, **settings), dim)])
    with torch.no_grad():
        model(dequantize(torch.from_numpy(images)))
    return model.eval()


def affine(matrix):
    """The flow z = A x of a matrix A (D, D)."""
    flow = Affine(len(matrix))
    with torch.no_grad():
        flow.weight.copy_(matrix)
    return flow


def linear_gaussian(a, b, scale_tril):
    """A flow of x = A c + b + L e, e ~ N(0, I), given columns c: A (D, k), b (D,), L (D, D)."""
    dim, columns = a.shape
    flow = make_conditional(Affine(dim), columns=columns).double()
    hidden, _, last = flow.embedding.net
    identity, whiten = torch.eye(columns).double(), torch.linalg.inv(scale_tril)
    with torch.no_grad():
        for each in (*flow.parameters(),):
            each.zero_()
        # the embedding is (c, 1): silu(a) - silu(-a) = a
        hidden.weight[: 2 * columns] = torch.cat([identity, -identity])
        last.weight[:columns, : 2 * columns] = torch.cat([identity, -identity], 1)
        last.bias[columns] = 1.0
        for each in last.parameters():
            each.mul_(flow.embedding.size**0.5)
        flow.weight.copy_(whiten)
        flow.of_context.weight[dim:, : columns + 1] = -whiten @ torch.cat([a, b[:, None]], 1)
    return flow


def assert_close(actual, expected):
    """Equal to within the :func:`tolerance` of the precision of the actual numbers."""
    expected = expected.to(actual.dtype)
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance(expected))


def tolerance(expected):
    """1024 roundings of the largest number: 2e-13 of it, or 1e-4 in single precision."""
    return 1024 * torch.finfo(expected.dtype).eps * (1 + expected.abs().max().item())


def assert_finite_gradients(flow, z, log_det, back):
    """Every parameter has a finite gradient by latents, log-determinants and inverses."""
    (z.square().sum() - log_det.nan_to_num().sum() + back.sin().sum()).backward()
    for p in flow.parameters():
        assert p.grad is not None
        assert p.grad.isfinite().all()


@st.composite
def glows(draw):
    channels, height, width = (draw(st.sampled_from(two)) for two in [(1, 3), (4, 8), (4, 8)])
    most_levels = 3 if height == width == 8 else 2
    levels, steps, hidden = (draw(st.integers(1, most)) for most in (most_levels, 3, 5))
    counts = [steps, *(1 for _ in range(levels - 1))] if draw(st.booleans()) else steps
    return Glow((channels, height, width), levels, counts, hidden)


def realnvps(dim):
    hidden = st.sampled_from([None, 5])
    return st.builds(RealNVP, st.just(dim), st.integers(1, 6), hidden, mixing=st.booleans())


@st.composite
def hierarchies(draw, dtypes=DTYPES, most_stages=4):
    """(hierarchy, x): an image's or a vector's flow outermost, each dimension at most the last."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    stages = []
    dim = draw(st.integers(1, 12) | st.just(0))  # 0 for an image
    for _ in range(draw(st.integers(1, most_stages))):
        flow = draw(st.one_of(realnvps(dim), st.builds(Affine, st.just(dim))) if dim else glows())
        size = math.prod(flow.event_shape)
        dim = draw(st.one_of(st.just(size), st.integers(1, size)))
        stages.append(Stage(flow, dim, draw(st.floats(0.1, 3))))
    hierarchy, dtype = Hierarchy(stages), draw(st.sampled_from(dtypes))
    x = torch.randn(draw(st.integers(1, 5)), *hierarchy.event_shape, dtype=dtype)
    return perturb(hierarchy).to(dtype), x
