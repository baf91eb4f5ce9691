"""False alarms and detections of a trained image model if brightness, blur or compression change.

    python -m benchmarks.nuisance MODEL PREPARED OTHER

MODEL is the file of a run and PREPARED its folder of data/03_primary, whose test images are read
again from their files, changed, cropped and resized. OTHER is a folder or zip of anomalous images,
which are changed in the same way. Prints the table of docs/evidence/selection.md: with the run's
calibration, and after a calibration on one half of the changed test images on the other half. (!)
marks rates of false alarms outside the 95% range of the promised one.
"""

import argparse
import io
from collections.abc import Iterator
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter

from benchmarks.results import markdown, with_interval
from submanifold.common.files import read_json
from submanifold.data.images import crop_and_resize
from submanifold.data.sources.stores import open_store
from submanifold.evaluation.calibration import COMBINATION, Calibration
from submanifold.evaluation.intervals import false_alarm_range, proportion_interval
from submanifold.evaluation.scores import QUICK, score
from submanifold.models import Model

RATES, OTHERS = (0.01, 0.05, 0.1), 200
CHANGES = [
    ("none", 0),
    *product(["brightness"], (0.9, 0.7, 1.3)),
    *product(["blur"], (0.5, 1.0, 2.0)),
    *product(["jpeg"], (75, 50, 20)),
]


def change(image: Image.Image, kind: str, strength: float) -> Image.Image:
    """Change an image by a factor, a radius in pixels, or a quality."""
    if kind == "brightness":
        return ImageEnhance.Brightness(image).enhance(strength)
    if kind == "blur":
        return image.filter(ImageFilter.GaussianBlur(strength))
    if kind == "jpeg":
        image.save(content := io.BytesIO(), "JPEG", quality=strength)
        return Image.open(content).convert("RGB")
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("model", "prepared", "other"):
        parser.add_argument(name, type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = Model.load(options.model, "cpu")
    keys = ("size", "channels", "crop", "margin")
    resize = partial(crop_and_resize, **{key: model.data[key] for key in keys})
    kept = {image.tobytes() for image in np.load(options.prepared / "test.npy")}
    manifest: Any = read_json(options.prepared / "manifest.json")
    tests = [image for image in read(manifest["path"]) if resize(image).tobytes() in kept]
    others = [*islice(read(options.other), OTHERS)]
    print(len(tests), "test images,", model.calibration["count"], "validation images", flush=True)
    rows = []
    for kind, strength in CHANGES:
        images = np.stack([resize(change(image, kind, strength)) for image in tests + others])
        name = f"{kind} {strength or ''}"
        rows.append({"change": name, **compare(model, images, len(tests))})
        print(rows[-1], flush=True)
    print(markdown(rows))


def read(path: Path | str) -> Iterator[Image.Image]:
    """Read the images of a folder or zip in random order."""
    store = open_store(Path(path))
    for name in np.random.default_rng(0).permutation(store.names):
        yield Image.open(io.BytesIO(store.image(name))).convert("RGB")


def compare(model: Model, images: np.ndarray, tests: int) -> dict[str, str]:
    """Write the flagged fractions before and after a calibration; the first are test images."""
    scores, half = score(model, images), tests // 2
    before, columns = Calibration.from_dict(model.calibration), {}
    after = Calibration.fit({name: values[:half] for name, values in scores.items()}, QUICK)
    for when, calibration, first in (("before", before, 0), ("after", after, half)):
        p = calibration.p_values(COMBINATION, calibration.complete(scores)[COMBINATION])
        for rate in RATES:
            low, high = false_alarm_range(rate, tests - first, calibration.count)
            alarms = proportion_interval(p[first:tests] <= rate)
            mark = "" if low <= alarms["value"] <= high else " (!)"
            columns[f"false alarms at {rate:.0%}, {when}"] = with_interval(alarms) + mark
        columns[f"detected at 5%, {when}"] = with_interval(proportion_interval(p[tests:] <= 0.05))
    return columns


if __name__ == "__main__":
    main()
