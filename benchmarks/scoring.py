"""Rows a second of ``submanifold score`` on JPEG files, relative to the model on decoded arrays.

    python -m benchmarks.scoring                        # 10,000 files, one thread
    python -m benchmarks.scoring --threads 2 --count 2000

The files are random crops of the dataset ``photos`` in a temporary folder. The model is the default
one at 32 pixels, initialized from data but not trained, which does not change the time. All sides
take turns on parts of the images; the table has medians over the parts, in wall and processor time.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from submanifold.config.loader import LOADER_ARGS, ExperimentConfigLoader
from submanifold.config.project import PACKAGED_CONF
from submanifold.data.batches import fixed_batches
from submanifold.data.sources.photos import read_photos
from submanifold.evaluation.calibration import calibrate
from submanifold.flows import initialize
from submanifold.inference.image_files import ImageFiles
from submanifold.inference.score_file import ScoreFile, score_files
from submanifold.inference.scoring import score_events
from submanifold.models import Hierarchy

SIDES = (96, 160)  # pixels of a file
PARTS = 10
CALIBRATION = 200
BATCH_SIZES = (16, 32, 64, 128, 256, 512)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--batch-sizes", action="store_true", help="compare sizes of batches")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(folder, options.count)
        model = make_model(folder)
        if options.batch_sizes:
            times = compare_batch_sizes(model, folder)
        else:
            times = compare(model, folder, options.batch_size)
    print_table(times, options.count // PARTS)


def write_files(folder: Path, count: int) -> None:
    """Write random crops of the photographs, in a folder for each part."""
    rng, photos = np.random.default_rng(0), list(read_photos(3).values())
    for number in range(count):
        photo = photos[number % len(photos)]
        side = rng.integers(*SIDES)
        top, left = (rng.integers(extent - side) for extent in photo.shape[:2])
        part = folder / f"{number * PARTS // count}"
        part.mkdir(exist_ok=True)
        crop = Image.fromarray(photo[top : top + side, left : left + side])
        crop.save(part / f"{number:05d}.jpg", quality=90)


def make_model(folder: Path) -> Hierarchy:
    """Build the default model, and calibrate it on some of the images."""
    experiment = ExperimentConfigLoader(str(PACKAGED_CONF), **LOADER_ARGS).experiment
    model = Hierarchy(experiment.model.build(experiment.data.event_shape))
    model.stages[0].add_rotation()
    model.data = experiment.data.facts
    _, images = ImageFiles([folder / "0"], model.data).read()
    (x,) = fixed_batches(images[:CALIBRATION], CALIBRATION)
    with torch.no_grad():
        initialize(model, x)
    model.calibration = calibrate(model.eval(), images[:CALIBRATION], torch.device("cpu"))
    return model


Task = Callable[[np.ndarray, Path], object]


def compare(model: Hierarchy, folder: Path, batch_size: int) -> dict[str, list[tuple[float, ...]]]:
    """Time the model alone, the scores of decoded images, and the command, on each part."""

    def log_prob(images: np.ndarray, part: Path) -> None:
        with torch.no_grad():
            for x in fixed_batches(images, batch_size):
                model.log_prob(x)

    def command(images: np.ndarray, part: Path) -> None:
        files = ImageFiles([part], model.data)
        table = ScoreFile(folder / "scores.csv", files, {"batch_size": batch_size}, resume=False)
        score_files(model, files, table, 0.05, False, batch_size)

    tasks: dict[str, Task] = {
        "`log_prob` of decoded images": log_prob,
        "`score_events` of decoded images": lambda images, part: score_events(
            model, images, batch_size=batch_size
        ),
        "`submanifold score` of files": command,
    }
    return interleave(model, folder, tasks)


def compare_batch_sizes(model: Hierarchy, folder: Path) -> dict[str, list[tuple[float, ...]]]:
    """Time the scores of decoded images for several sizes of batches."""
    tasks: dict[str, Task] = {
        f"batches of {size}": lambda images, part, size=size: score_events(  # type: ignore[misc]
            model, images, batch_size=size
        )
        for size in BATCH_SIZES
    }
    return interleave(model, folder, tasks)


def interleave(
    model: Hierarchy, folder: Path, tasks: dict[str, Task]
) -> dict[str, list[tuple[float, ...]]]:
    """Time all tasks on each part in turn: seconds of wall time and of processor time."""
    times: dict[str, list[tuple[float, ...]]] = {name: [] for name in tasks}
    for number, (part, images) in enumerate(parts(model, folder)):
        for name, task in tasks.items():
            if number == 0:
                task(images[:512], part)  # warm up
            started, own = time.perf_counter(), os.times()
            task(images, part)
            now = os.times()
            processor = now.user + now.system - own.user - own.system
            times[name].append((time.perf_counter() - started, processor))
    return times


def parts(model: Hierarchy, folder: Path) -> Iterator[tuple[Path, np.ndarray]]:
    """Yield the folder of each part and its decoded images."""
    for number in range(PARTS):
        part = folder / f"{number}"
        yield part, ImageFiles([part], model.data).read()[1]


def print_table(times: dict[str, list[tuple[float, ...]]], rows: int) -> None:
    """Print rows a second, and times relative to the first side in the same part."""
    first = next(iter(times.values()))
    print("| | rows/s | ms of processor per row | wall time, relative | processor, relative |")
    print("| --- | --- | --- | --- | --- |")
    for name, each in times.items():
        wall, processor = (statistics.median(values) for values in zip(*each, strict=True))
        ratios = (
            statistics.median(mine[k] / base[k] for mine, base in zip(each, first, strict=True))
            for k in range(2)
        )
        relative = " | ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"| {name} | {rows / wall:.0f} | {1000 * processor / rows:.2f} | {relative} |")


if __name__ == "__main__":
    main()
