"""Draw docs/images/overview.png of a trained run on images.

    python docs/images/overview.py data/06_models/<run>/hierarchy.safetensors data/03_primary/<data>

The columns are test images at equal distances in the data set. The rows are the originals, their
nearest projections onto the manifold and their PCA projections at several dimensions, and samples.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from submanifold import Hierarchy
from submanifold.data import dequantize
from submanifold.evaluation.baselines import PCA, pca_batches

OUTPUT = Path(__file__).with_suffix(".png")
DIMS, COLUMNS, SAMPLES, TEMPERATURE = (10, 100, 500), 11, 22, 0.7
LABEL, SCALE, GAP = 180, 3, 3  # pixels


def as_pixels(x: torch.Tensor) -> np.ndarray:
    """Map floats in [-0.5, 0.5) to uint8 images, (count, height, width, channels)."""
    return ((x + 0.5) * 255).round().clip(0, 255).to(torch.uint8).movedim(1, 3).numpy()


@torch.no_grad()
def main(model_file: str, data: str) -> None:
    """Compute the rows, and draw them."""
    model = Hierarchy.load(model_file)
    test, train = (np.load(Path(data) / f"{part}.npy", mmap_mode="c") for part in ("test", "train"))
    chosen = test[np.linspace(0, len(test) - 1, COLUMNS).round().astype(int)]
    x = dequantize(torch.from_numpy(chosen), torch.Generator().manual_seed(0))
    pca = PCA.fit(pca_batches(train))
    rows = {"test images": as_pixels(x)}
    for dim in DIMS:
        for name, projected in (
            (f"d = {dim}, ours", model.at_dim(dim).project(x, nearest=True)),
            (f"d = {dim}, PCA", pca.project(x, dim)),
        ):
            psnr = -10 * (projected - x).clamp(-0.5, 0.5).square().mean().log10().item()
            rows[f"{name}\n{psnr:.1f} dB"] = as_pixels(projected)
    generator = torch.Generator().manual_seed(0)
    samples = as_pixels(model.sample(SAMPLES, TEMPERATURE, generator))
    for start in range(0, SAMPLES, COLUMNS):
        rows["samples" if start == 0 else " "] = samples[start : start + COLUMNS]
    draw(rows).save(OUTPUT, optimize=True)


def draw(rows: dict[str, np.ndarray]) -> Image.Image:
    """Draw rows of images behind their labels."""
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 20)
    side = SCALE * next(iter(rows.values())).shape[1] + GAP
    picture = Image.new("RGB", (LABEL + COLUMNS * side, len(rows) * side - GAP), "white")
    pen = ImageDraw.Draw(picture)
    for row, (label, images) in enumerate(rows.items()):
        middle = LABEL - 14, row * side + (side - GAP) // 2
        pen.text(middle, label, "black", font, anchor="rm", align="right")
        for column, pixels in enumerate(images):
            image = Image.fromarray(pixels.squeeze()).convert("RGB")
            large = image.resize((side - GAP, side - GAP), Image.Resampling.NEAREST)
            picture.paste(large, (LABEL + column * side, row * side))
    return picture


if __name__ == "__main__":
    main(*sys.argv[1:])
