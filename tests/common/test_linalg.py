import pytest
import torch

from submanifold.common.linalg import conjugate_gradients


@pytest.mark.parametrize("tolerance", [1e-3, 1e-10])
def test_conjugate_gradients_solve_each_system_of_a_batch(tolerance):
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(4, 9, 6, generator=generator).double()
    b = torch.randn(4, 6, generator=generator).double()
    b[1] = 0
    x = conjugate_gradients(
        lambda p: (matrices @ p[:, :, None])[:, :, 0],
        lambda w: (matrices.mT @ w[:, :, None])[:, :, 0],
        b,
        100,
        tolerance,
    )
    residual = (matrices.mT @ matrices @ x[:, :, None])[:, :, 0] - b
    assert (residual.norm(dim=1) <= tolerance * b.norm(dim=1) + 1e-9).all()
