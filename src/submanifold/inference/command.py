"""Commands that apply a trained model to images. They import NumPy and torch when they run."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from submanifold.common.errors import UserError
from submanifold.common.files import printable
from submanifold.common.imports import without_garbage_collection
from submanifold.inference.outputs import FOLDER, check_not_input, check_output, output
from submanifold.inference.records import model_path

if TYPE_CHECKING:
    import numpy as np

    from submanifold.inference.image_files import ImageFiles
    from submanifold.models import Model

MAX_SHEET = 32
"""Number of most and of least anomalous images on a sheet."""
MAX_PNG = 10_000
"""Number of images in a PNG file."""
MAX_STEM = 50
"""Characters of an image's name in the name of the file of its projection."""


def _rate(ctx: click.Context, param: click.Parameter, text: str | None) -> float | None:
    """Parse a false-positive rate such as 1% or 0.01."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d*\.?\d+)\s*(%?)", text.strip(), re.ASCII)
    value = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    if not 0 < value < 1:
        raise click.BadParameter(
            f"expected a rate between 0 and 1, such as 1% or 0.01, got {text}."
        )
    return value


model_argument = click.argument("model")
device_option = click.option("--device", default="auto", show_default=True,
                             help="auto, cpu, cuda or cuda:<n>.")  # fmt: skip
dim_option = click.option("--dim", type=int, metavar="N", help="Use only the first N coordinates.")


def out_option(default: str | None, suffixes: tuple[str, ...], text: str,
               name: str = "--out") -> Callable[[Any], Any]:  # fmt: skip
    """Add the path of an output, which is checked before the command runs."""

    def check(ctx: click.Context, param: click.Parameter, path: Path | None) -> Path | None:
        if path is not None:
            check_output(name, path, suffixes)
        return path

    return click.option(name, type=click.Path(path_type=Path), default=default, help=text,
                        show_default=True, callback=check)  # fmt: skip


def image_options(command: Any) -> Any:
    """Add the arguments and options of commands that read images."""
    for decorator in (
        click.option("--batch-size", type=click.IntRange(1, 4096), default=128, show_default=True),
        device_option,
        click.option("--exact", is_flag=True, help="Search the nearest projection (slower)."),
        click.argument("images", nargs=-1, required=True, type=click.Path()),
        model_argument,
    ):
        command = decorator(command)
    return command


@click.command()
@image_options
@out_option("scores.csv", (".csv",), "CSV file of the scores.")
@out_option(None, (".png",), "PNG file of the most and the least anomalous images.", "--sheet")
@click.option("--alpha", callback=_rate, metavar="RATE", help="False-positive rate: images with a "
              "p-value of at most RATE, such as 1%, are out-of-distribution.")  # fmt: skip
@click.option("--resume", is_flag=True, help="Continue an interrupted command after the last "
              "batch in its file <out>.part.")  # fmt: skip
def score(
    model: str, images: tuple[str, ...], out: Path, sheet: Path | None, alpha: float | None,
    resume: bool, exact: bool, device: str, batch_size: int,
) -> None:  # fmt: skip
    """Write the densities, distances from the manifold, and p-values of IMAGES.

    The p-value is the fraction of held-out training-like images that score at least as high.
    """
    file = model_path(model)
    loaded = _load(file, device)
    from submanifold.inference.score_file import ScoreFile, score_files
    from submanifold.inference.scoring import load_calibration

    load_calibration(loaded, alpha)
    files = _find(loaded, file, images, {"--out": out, "--sheet": sheet})
    stat = file.stat()
    settings = {"model": [str(file.resolve()), stat.st_size, stat.st_mtime_ns], "alpha": alpha,
                "exact": exact, "batch_size": batch_size}  # fmt: skip
    unlisted = len(files.skipped)
    table = ScoreFile(out, files, settings, resume)
    score_files(loaded, files, table, alpha, exact, batch_size)
    _echo_skipped(unlisted + len(files) - len(table.numbers))
    order = sorted(range(len(table.scores)), key=lambda row: -table.scores[row])
    click.echo(" p-value  picture, the most anomalous first")
    for row in order[:5]:
        click.echo(f"{table.p_values[row]:8.4f}  {files.names[table.numbers[row]]}")
    if alpha is not None:
        count = len(table.p_values)
        flagged = sum(p_value <= alpha for p_value in table.p_values)
        click.echo(
            f"{flagged} of {count} images are flagged (p-value at most {alpha:g}); "
            f"about {alpha * count:.0f} would be if all were like the training images."
        )
    if sheet is not None:
        _write_sheet(sheet, files, [table.numbers[row] for row in order])
    _echo(out)


@click.command()
@image_options
@out_option("codes.npz", (".npz",), "File of the arrays names, u and v.")
def encode(
    model: str, images: tuple[str, ...], out: Path, exact: bool, device: str, batch_size: int
) -> None:
    """Write the coordinates of IMAGES on the manifold (u) and off the manifold (v)."""
    file = model_path(model)
    loaded = _load(file, device)
    import numpy as np

    from submanifold.inference.scoring import encode_events

    codes = 8 * loaded.event_dim  # float32; concatenation copies
    names, pixels = _read(loaded, file, images, {"--out": out}, codes)
    u, v = encode_events(loaded, pixels, exact, batch_size)
    _write(out, {"names": np.array(names), "u": u, "v": v})


@click.command()
@image_options
@dim_option
@out_option(
    "projections",
    (".npz", FOLDER),
    "Folder of PNG files, or .npz file of originals and projections.",
)
def project(
    model: str, images: tuple[str, ...], out: Path, exact: bool, dim: int | None, device: str,
    batch_size: int,
) -> None:  # fmt: skip
    """Project IMAGES onto the manifold: write originals, projections and differences."""
    file = model_path(model)
    loaded = _load(file, device, dim)
    import numpy as np

    from submanifold.inference.scoring import project_events

    names, pixels = _read(loaded, file, images, {"--out": out}, 2 * loaded.event_dim)
    projections, errors = project_events(loaded, pixels, exact, batch_size)
    click.echo(f"mean squared error {errors.mean():.6f}, pixels in [0, 1]")
    if out.suffix != FOLDER:
        arrays = {"originals": pixels, "projections": projections, "mse": errors}
        return _write(out, {"names": np.array(names), **arrays})
    with output("--out", out) as folder:
        for number, (name, *pair) in enumerate(zip(names, pixels, projections, strict=True)):
            difference = np.clip(pair[0].astype(int) - pair[1] + 128, 0, 255).astype(np.uint8)
            file = folder / f"{number:05d}-{Path(name).stem[:MAX_STEM]}.png"
            file.write_bytes(_png(np.stack([*pair, difference]), columns=3))
    _echo(out)
    return None


@click.command()
@model_argument
@click.option("-n", "count", type=int, default=64, show_default=True, help="Number of samples.")
@click.option("--temperature", type=float, default=1.0, show_default=True, help="0 to 10.")
@click.option("--seed", type=int, default=0, show_default=True)
@dim_option
@out_option(
    "samples.png", (".png", ".npz"), "PNG file of all samples, or .npz file of the array samples."
)
@device_option
def sample(
    model: str, count: int, temperature: float, dim: int | None, seed: int, out: Path, device: str
) -> None:
    """Draw samples from the manifold."""
    file = model_path(model)
    loaded = _load(file, device, dim)
    from submanifold.inference.scoring import sample_events

    check_not_input("--out", out, [file])
    if out.suffix.lower() == ".png" and (count > MAX_PNG or len(loaded.event_shape) != 3):
        raise UserError(
            f"--out={printable(str(out))}: expected at most {MAX_PNG:,} images in a PNG file, got "
            f"{count:,} samples of shape {tuple(loaded.event_shape)}. Use an .npz file."
        )
    _write(out, {"samples": sample_events(loaded, count, temperature, seed)})


@click.command()
@model_argument
@click.argument("a", type=click.Path())
@click.argument("b", type=click.Path())
@click.option("--steps", type=click.IntRange(2, MAX_PNG), default=9, show_default=True,
              help="Number of images, including both ends.")  # fmt: skip
@out_option("path.png", (".png", ".npz"), "PNG file of the path, or .npz file of the array path.")
@dim_option
@device_option
def interpolate(
    model: str, a: str, b: str, steps: int, out: Path, dim: int | None, device: str
) -> None:
    """Interpolate between images A and B on the manifold; the log-density changes linearly."""
    file = model_path(model)
    loaded = _load(file, device, dim)
    from submanifold.inference.scoring import interpolate_events

    _, pixels = _read(loaded, file, (a, b), {"--out": out})
    if len(pixels) != 2:
        raise UserError(f"A, B: expected one image each, got {len(pixels)} images.")
    _write(out, {"path": interpolate_events(loaded, pixels, steps)}, columns=9)


@click.command()
@model_argument
def info(model: str) -> None:
    """Print the architecture, the data and the calibration of a model as JSON."""
    file = model_path(model)
    loaded = _load(file, "cpu")
    calibration = {"calibrated_on": loaded.calibration.get("count"),
                   "calibration_groups": loaded.calibration.get("groups")}  # fmt: skip
    click.echo(json.dumps({**loaded.describe(), **calibration}, indent=2))


COMMANDS = [score, encode, project, sample, interpolate, info]


def _load(path: Path, device: str, dim: int | None = None) -> "Model":
    with without_garbage_collection():
        from submanifold.common.device import choose_device
        from submanifold.common.threads import use_threads
        from submanifold.inference import scoring  # noqa: F401  # for the command
        from submanifold.models import Model

    use_threads("auto")
    model: Any = Model.load(path, choose_device(device))
    if dim is not None and not hasattr(model, "at_dim"):
        raise UserError(f"--dim: expected none for a {model.kind}, got {dim}. Omit it.")
    return model if dim is None else model.at_dim(dim)


def _find(
    model: "Model", file: Path, paths: tuple[str, ...], outputs: Mapping[str, Path | None]
) -> "ImageFiles":
    """Find images; raise a UserError if an output would replace one of them or the model."""
    from submanifold.inference.image_files import ImageFiles

    files = ImageFiles(paths, model.data)
    for option, path in outputs.items():
        if path is not None:
            check_not_input(option, path, [file, *files.files])
    return files


def _read(
    model: "Model", file: Path, paths: tuple[str, ...], outputs: Mapping[str, Path | None],
    bytes_per_image: int = 0,
) -> "tuple[list[str], np.ndarray]":  # fmt: skip
    """Read the images that :func:`_find` finds."""
    files = _find(model, file, paths, outputs)
    names, pixels = files.read(bytes_per_image)
    _echo_skipped(len(files.skipped))
    return names, pixels


def _echo_skipped(count: int) -> None:
    if count:
        click.echo(f"Skipped {count} unreadable images.", err=True)


def _write(path: Path, arrays: "dict[str, np.ndarray]", columns: int = 8) -> None:
    """Write arrays to an .npz file, or the images of a single array to a PNG file."""
    import numpy as np

    with output("--out", path) as partial, partial.open("wb") as file:
        if path.suffix.lower() == ".png":
            (images,) = arrays.values()
            file.write(_png(images, columns))
        else:
            np.savez(file, **arrays)  # type: ignore[arg-type]
    _echo(path)


def _write_sheet(path: Path, files: "ImageFiles", order: list[int]) -> None:
    """Draw the first and the last images of an order of numbers."""
    import numpy as np

    count = max(1, min(MAX_SHEET, len(order) // 2))
    blank = np.full((-count % 8 + 8, *files.shape), 255, np.uint8)
    first, last = (
        np.stack([image for _, image in files.decoded(numbers)])
        for numbers in (order[:count], order[::-1][:count])
    )
    with output("--sheet", path) as partial:
        partial.write_bytes(_png(np.concatenate([first, blank, last]), columns=8))


def _png(images: "np.ndarray", columns: int) -> bytes:
    from submanifold.plots.images import as_png, sample_sheet

    return as_png(sample_sheet(images, columns))


def _echo(path: Path) -> None:
    click.echo(printable(str(path)))
