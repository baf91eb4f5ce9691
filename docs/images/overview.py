"""Draw docs/images/overview.png of a model of digits and one of faces.

    python docs/images/overview.py <model> <data> <model> <data>

A model is a file such as data/06_models/<run>/hierarchy.safetensors, and its data a folder such as
data/03_primary/<data>: first those of digits, then those of faces. The columns are test images at
equal distances in the data set. The rows are the originals, their nearest projections onto the
manifold and their PCA projections of as many dimensions, and samples.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont
from sklearn.decomposition import PCA

from submanifold import Hierarchy
from submanifold.data import dequantize

OUTPUT = Path(__file__).with_suffix(".png")
DIMS, COLUMNS, TEMPERATURE = (32, 100), 8, 0.7
LABEL, SIDE, GAP, BETWEEN = 190, 96, 3, 24  # pixels


def as_pixels(x: torch.Tensor) -> np.ndarray:
    """Map floats in [-0.5, 0.5) to uint8 images, (count, height, width, channels)."""
    return ((x + 0.5) * 255).round().clip(0, 255).to(torch.uint8).movedim(1, 3).numpy()


@torch.no_grad()
def rows_of(
    model: Hierarchy, train: np.ndarray, test: np.ndarray, dim: int
) -> dict[str, np.ndarray]:
    """Compute the rows of a model, and print the errors of the projections of its test images."""
    chosen = test[np.linspace(0, len(test) - 1, COLUMNS).round().astype(int)]
    x = dequantize(torch.from_numpy(chosen), torch.Generator().manual_seed(0))
    pca = PCA(dim, svd_solver="randomized", random_state=0)
    pca.fit(train.reshape(len(train), -1) / 256 - 0.5)
    flat = pca.inverse_transform(pca.transform(x.flatten(1).numpy()))
    of_pca = torch.from_numpy(flat).view(x.shape).float()
    nearest = model.at_dim(dim).project(x, nearest=True)
    errors = [(projected - x).square().mean().item() for projected in (nearest, of_pca)]
    print(f"d = {dim}: squared errors {errors[0]:.5f}, PCA {errors[1]:.5f}")
    samples = model.sample(COLUMNS, TEMPERATURE, torch.Generator().manual_seed(0))
    names = ("test images", "on the manifold", "PCA", "samples")
    return dict(zip(names, map(as_pixels, (x, nearest, of_pca, samples)), strict=True))


def draw(blocks: list[dict[str, np.ndarray]], titles: list[str]) -> Image.Image:
    """Draw blocks of rows of images side by side, with titles above and labels before them."""
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 20)
    side, top = SIDE + GAP, 34
    width = LABEL + len(blocks) * COLUMNS * side + (len(blocks) - 1) * BETWEEN
    picture = Image.new("RGB", (width, top + len(blocks[0]) * side - GAP), "white")
    pen = ImageDraw.Draw(picture)
    for number, (block, title) in enumerate(zip(blocks, titles, strict=True)):
        left = LABEL + number * (COLUMNS * side + BETWEEN)
        pen.text((left, 4), title, "black", font)
        for row, (label, images) in enumerate(block.items()):
            if number == 0:
                middle = LABEL - 14, top + row * side + SIDE // 2
                pen.text(middle, label, "black", font, anchor="rm")
            for column, pixels in enumerate(images):
                image = Image.fromarray(pixels.squeeze()).convert("RGB")
                large = image.resize((SIDE, SIDE), Image.Resampling.NEAREST)
                picture.paste(large, (left + column * side, top + row * side))
    return picture


def main(*paths: str) -> None:
    """Draw the models of digits and of faces."""
    blocks = []
    for model, data, dim in zip(paths[::2], paths[1::2], DIMS, strict=True):
        train, test = (np.load(Path(data) / f"{part}.npy") for part in ("train", "test"))
        blocks.append(rows_of(Hierarchy.load(model), train, test, dim))
    titles = ["digits, d = 32", "faces (CelebA), d = 100"]
    draw(blocks, titles).save(OUTPUT, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
