import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.fft import dctn

from strategies import assert_close
from submanifold.flows import Jet
from submanifold.flows.jet import attend


def small(shape=(3, 8, 8), patch=4, couplings=5, blocks=1, width=8, heads=2):
    torch.manual_seed(0)
    return Jet(shape, patch, couplings, blocks, width, heads)


def test_default_sizes_are_those_of_the_paper():
    net = Jet((3, 64, 64), couplings=1).layers.bijections[1].net
    blocks = 2 * (12 * 512**2 + 13 * 512)
    ends = 9 * 48 * 512 + 512 + 256 * 512 + 2 * 512 + 512 * 96 + 96
    assert sum(p.numel() for p in net.parameters()) == blocks + ends


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 12, 20), (3, 64, 64)])
def test_untrained_flow_is_the_scaled_dct_of_each_patch(shape):
    x = torch.randn(2, *shape, dtype=torch.float64)
    flow = small(shape, couplings=2).double()
    z, log_det = flow(x)
    channels, height, width = shape
    patches = x.view(2, channels, height // 4, 4, width // 4, 4).permute(0, 1, 3, 5, 2, 4)
    spectrum = dctn(patches.numpy(), axes=(1, 2, 3), norm="ortho")
    c, i, j = np.meshgrid(*map(np.arange, (channels, 4, 4)), indexing="ij")
    scale = 10 / 4 * (1 + c) * (0.25 + np.hypot(i, j))
    expected = torch.from_numpy(spectrum * scale[:, :, :, None, None]).flatten(1, 3)
    order = scale.ravel().argsort(kind="stable")
    torch.testing.assert_close(z, expected[:, order].flatten(1), rtol=1e-6, atol=1e-6)
    known = torch.full((2,), np.log(scale).sum() * height * width / 16, dtype=torch.float64)
    torch.testing.assert_close(log_det, known, rtol=1e-6, atol=0)


def test_attention_equals_torch_attention():
    q, k, v = (torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    found, expected = attend(q, k, v), F.scaled_dot_product_attention(q, k, v)
    assert_close(found, expected)
    by = torch.randn_like(found)
    gradients = [torch.autograd.grad(result, (q, k, v), by) for result in (found, expected)]
    for gradient, exact in zip(*gradients, strict=True):
        assert_close(gradient, exact)
