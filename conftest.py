"""What examples in docstrings may use without importing it."""

import pytest
import torch

import submanifold
from submanifold import data, flows
from submanifold import models as manifold
from submanifold.losses import objective


@pytest.fixture(autouse=True, scope="session")
def names_in_examples(doctest_namespace):
    """Torch, and all that the library has in public."""
    doctest_namespace["torch"] = torch
    for room in (submanifold, data, flows, manifold, objective):
        public = {name: each for name, each in vars(room).items() if not name.startswith("_")}
        doctest_namespace.update(public)
