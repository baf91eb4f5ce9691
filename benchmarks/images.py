"""The images that the benchmarks of quality learn: CelebA, Fashion-MNIST and photographs."""

import argparse
import gzip
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from submanifold.data.prepare import prepare
from submanifold.data.settings import ImageSettings

NAMES = ("celeba", "fashion-mnist", "photos")
HELD_OUT = 2000  # images of Fashion-MNIST, whose other splits are larger than they need be


class Images(NamedTuple):
    """The splits of a data set, uint8 (N, channels, 32, 32)."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray


def add_options(parser: argparse.ArgumentParser) -> None:
    """Let the user say where the data sets are."""
    parser.add_argument("--data", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--celeba", help="img_align_celeba.zip, or its folder")
    parser.add_argument("--fashion-mnist", help="the folder of its IDX files")
    where = Path("data/08_reporting/quality")
    kept = "where results are kept; what is there is not made again"
    parser.add_argument("--folder", type=Path, default=where, help=kept)


def load(name: str, options: argparse.Namespace) -> Images:
    """Load a data set.

    Raises:
        SystemExit: The user has not said where it is.
    """
    if name == "fashion-mnist":
        return _fashion_mnist(_given(options.fashion_mnist, "--fashion-mnist"))
    settings: dict[str, str] = {"source": "photos"}
    if name == "celeba":
        path = _given(options.celeba, "--celeba")
        settings = {"source": "celeba", "path": path, "split": "official"}
    folder = options.folder / "arrays" / name
    train, valid, test, _ = prepare(
        ImageSettings.model_validate(settings), folder, Path(tempfile.gettempdir())
    )
    return Images(train, valid, test)


def _given(path: str | None, option: str) -> str:
    if path is None:
        raise SystemExit(f"{option} PATH is missing; or leave this data set out with --data.")
    return path


def _fashion_mnist(folder: str) -> Images:
    """Read the IDX files; 28x28 pixels get a black margin of two."""
    parts = []
    for part in ("train", "t10k"):
        found = sorted(Path(folder).glob(f"{part}-images*idx3-ubyte*"))
        if not found:
            raise SystemExit(f"--fashion-mnist: {folder} has no {part}-images-idx3-ubyte file.")
        with (gzip.open if found[0].suffix == ".gz" else open)(found[0], "rb") as file:
            pixels = np.frombuffer(file.read(), np.uint8, offset=16)
        margin = [(0, 0), (0, 0), (2, 2), (2, 2)]
        parts.append(np.pad(pixels.reshape(-1, 1, 28, 28), margin))
    train, test = parts
    return Images(train[:-HELD_OUT], train[-HELD_OUT:], test[:HELD_OUT])
