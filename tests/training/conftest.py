import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Small matrices are faster so, and sums come in the same order as in a child process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
