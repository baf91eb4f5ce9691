"""Names that examples in docstrings use without importing them."""

import os

import pytest
import torch

import submanifold
from submanifold import data, flows, losses, models


@pytest.fixture(autouse=True, scope="session")
def empty_folder(tmp_path_factory):
    """Leave the checkout, whose data/ and conf/local differ between users."""
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("current"))
    yield
    os.chdir(before)


@pytest.fixture(autouse=True, scope="session")
def names_in_examples(doctest_namespace):
    """Torch, and the public names of the library."""
    doctest_namespace["torch"] = torch
    for module in (submanifold, data, flows, losses, models):
        public = {name: each for name, each in vars(module).items() if not name.startswith("_")}
        doctest_namespace.update(public)
