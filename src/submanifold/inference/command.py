"""Commands that apply a trained model to images or tables.

They import NumPy and torch when they run.
"""

import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from submanifold.common.errors import UserError
from submanifold.common.files import printable
from submanifold.common.imports import without_garbage_collection
from submanifold.inference.outputs import (
    FOLDER,
    TABLES,
    check_not_input,
    check_output,
    output,
    unused,
    write_table,
)
from submanifold.inference.records import model_path

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from submanifold.inference.image_files import ImageFiles
    from submanifold.inference.predictor import Predictor
    from submanifold.inference.table_files import TableFiles

    Inputs: TypeAlias = ImageFiles | TableFiles

log = logging.getLogger(__name__)

MAX_SHEET = 32
"""Number of most and of least anomalous images on a sheet."""
MAX_PNG = 10_000
"""Number of images in a PNG file."""
IMAGE_BATCH, ROW_BATCH = 128, 4096
MAX_STEM = 50
"""Characters of an image's name in the name of the file of its projection."""
ORDER = "anomaly_score"
"""A column of scores that the file does not have."""


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
label_option = click.option("--label", type=int, metavar="LABEL", help="Label of all inputs or "
                            "samples, for a model that is conditional on it.")  # fmt: skip
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


def input_options(command: Any) -> Any:
    """Add the arguments and options of commands that read images or tables."""
    for decorator in (
        click.option(
            "--batch-size",
            type=click.IntRange(1, 4096),
            help=f"[default: {IMAGE_BATCH} images or {ROW_BATCH} rows]",
        ),
        device_option,
        label_option,
        click.option("--exact", is_flag=True, help="Search the nearest projection (slower)."),
        click.argument("inputs", nargs=-1, required=True, type=click.Path()),
        model_argument,
    ):
        command = decorator(command)
    return command


@click.command()
@input_options
@out_option("scores.csv", TABLES, "CSV or Parquet file of the scores.")
@out_option(None, (".png",), "PNG file of the most and the least anomalous images.", "--sheet")
@click.option("--alpha", callback=_rate, metavar="RATE", help="False-positive rate: images or rows "
              "with a p-value of at most RATE, such as 1%, are out-of-distribution.")  # fmt: skip
def score(
    model: str, inputs: tuple[str, ...], out: Path, sheet: Path | None, alpha: float | None,
    exact: bool, label: int | None, device: str, batch_size: int | None,
) -> None:  # fmt: skip
    """Write the densities, distances from the manifold, and p-values of INPUTS.

    The p-value is the fraction of held-out training-like images or rows that score at least as
    high. The log-density of rows is in the units of the table.
    """
    file, predictor = _load(model, device, batch_size=batch_size)
    import pandas as pd

    from submanifold.evaluation.intervals import false_alarm_range
    from submanifold.inference.training_events import hash_events, training_share

    calibration = predictor.calibrated(alpha)
    if sheet is not None and predictor.is_table:
        raise UserError("--sheet: expected none for a model of a table. Omit it.")
    files = _find(predictor, inputs, [file], out, sheet)
    unlisted, kept, hashes = len(files.skipped), [], []

    def hash_batch(events: Any) -> None:
        hashes.append(hash_events(predictor.model, events))

    on_events = hash_batch if calibration.training else None

    def compute(batch: Any) -> pd.DataFrame:
        scores = predictor.score(batch, exact, alpha=alpha, label=label, on_events=on_events)
        kept.append(scores[["p_value", ORDER]])
        return scores.drop(columns=ORDER)

    numbers = _write_rows(predictor, files, out, "scoring", compute)
    _echo_skipped(unlisted + len(files) - len(numbers))
    if (share := training_share(calibration.training, hashes)) > 0.1:
        log.warning("INPUTS: expected new %s, got about %.0f%% training %s, whose p-values are too "
                    "large. Score others.", files.unit, 100 * share, files.unit)  # fmt: skip
    table = pd.concat(kept).set_axis(numbers).sort_values(ORDER, ascending=False, kind="stable")
    click.echo(f" p-value  {files.label}, the most anomalous first")
    for number in table.index[:5]:
        click.echo(f"{table['p_value'][number]:8.4f}  {files.names[number]}")
    if alpha is not None:
        count, flagged = len(table), int((table["p_value"] <= alpha).sum())
        low, high = false_alarm_range(alpha, count, calibration.groups)
        click.echo(
            f"{flagged} of {count} {files.unit} are flagged (p-value at most {alpha:g}); "
            f"if all were like the training {files.unit}, {count * low:.0f} to {count * high:.0f} "
            "would be in 95% of cases."
        )
    if sheet is not None:
        _write_sheet(sheet, files, [*table.index])
    _echo(out)


@click.command()
@input_options
@out_option(
    None,
    (".npz", *TABLES),
    "File of the arrays names, u and v, or CSV or Parquet file of the columns u0, ..., v0, ...  "
    "[default: codes.npz; for rows codes.csv]",
)
def encode(
    model: str, inputs: tuple[str, ...], out: Path | None, exact: bool, label: int | None,
    device: str, batch_size: int | None,
) -> None:  # fmt: skip
    """Write the coordinates of INPUTS on the manifold (u) and off the manifold (v)."""
    file, predictor = _load(model, device, batch_size=batch_size)
    from submanifold.inference.predictor import code_frame

    def compute(batch: Any) -> Any:
        return predictor.encode(batch, "nearest" if exact else "encoder", label=label)

    out = _choose(out, predictor, "codes.csv", "codes.npz")
    files = _find(predictor, inputs, [file], out)
    if out.suffix.lower() in TABLES:
        _write_rows(predictor, files, out, "encoding", lambda batch: code_frame(*compute(batch)))
        _echo_skipped(len(files.skipped))
        return _echo(out)
    size = 8 * predictor.model.event_dim  # float32; concatenation copies
    names, u, v = _collect(predictor, files, "encoding", compute, size)
    return _write(out, {"names": names, "u": u, "v": v})


@click.command()
@input_options
@dim_option
@out_option(
    None,
    (".npz", FOLDER, *TABLES),
    "Folder of PNG files, or .npz file of originals and projections; for rows, CSV or Parquet file "
    "of projections.  [default: projections; for rows projections.csv]",
)
def project(
    model: str, inputs: tuple[str, ...], out: Path | None, exact: bool, dim: int | None,
    label: int | None, device: str, batch_size: int | None,
) -> None:  # fmt: skip
    """Project INPUTS onto the manifold.

    Writes originals, projections and differences of images, or projections of rows in the units of
    the table.
    """
    file, predictor = _load(model, device, dim, batch_size)
    import numpy as np

    def compute(batch: Any) -> Any:
        projections, mse = predictor.project(batch, exact, label=label)
        if not predictor.is_table:
            return batch, projections, mse
        errors.append(mse)
        return projections.assign(**{unused("mse", projections): mse})

    errors: Any = []
    out = _choose(out, predictor, "projections.csv", "projections", "a folder or an .npz file")
    files = _find(predictor, inputs, [file], out)
    if predictor.is_table:
        _write_rows(predictor, files, out, "projecting", compute)
        mean = np.concatenate(errors).mean()
        click.echo(f"mean squared error {mean:.6f}, standardized columns")
        return _echo(out)
    size = 4 * predictor.event_bytes  # originals and projections; concatenation copies
    names, pixels, projections, errors = _collect(predictor, files, "projecting", compute, size)
    click.echo(f"mean squared error {errors.mean():.6f}, pixels in [0, 1]")
    if out.suffix != FOLDER:
        arrays = {"originals": pixels, "projections": projections, "mse": errors}
        return _write(out, {"names": names, **arrays})
    with output("--out", out) as folder:
        for number, (name, *pair) in enumerate(zip(names, pixels, projections, strict=True)):
            difference = np.clip(pair[0].astype(int) - pair[1] + 128, 0, 255).astype(np.uint8)
            (folder / _picture(number, name)).write_bytes(_png(np.stack([*pair, difference]), 3))
    return _echo(out)


@click.command()
@model_argument
@click.argument("table", nargs=-1, type=click.Path())
@click.option("-n", "count", type=int, help="Number of samples.  [default: 64; for each row of "
              "TABLE 1]")  # fmt: skip
@click.option("--temperature", type=float, default=1.0, show_default=True, help="0 to 10.")
@click.option("--seed", type=int, default=0, show_default=True)
@dim_option
@label_option
@out_option(
    None,
    (".png", ".npz", *TABLES),
    "PNG file of all samples, or .npz file of the array samples; for rows, CSV or Parquet file.  "
    "[default: samples.png; for rows samples.csv]",
)
@device_option
def sample(
    model: str, table: tuple[str, ...], count: int | None, temperature: float, dim: int | None,
    label: int | None, seed: int, out: Path | None, device: str,
) -> None:  # fmt: skip
    """Draw samples from the manifold.

    A model that is conditional on columns needs a TABLE with them, and draws samples for each of
    its rows. Other models need none.
    """
    file, predictor = _load(model, device, dim)
    if table and predictor.condition is None:
        raise UserError(
            "TABLE: expected none for a model that is not conditional on columns, got "
            f"{printable(table[0])}. Omit it."
        )
    count = (64 if predictor.condition is None else 1) if count is None else count
    out = _choose(out, predictor, "samples.csv", "samples.png", "a .png or .npz file")
    check_not_input("--out", out, [file])
    if out.suffix.lower() == ".png" and (count > MAX_PNG or not predictor.is_image):
        raise UserError(
            f"--out={printable(str(out))}: expected at most {MAX_PNG:,} images in a PNG file, got "
            f"{count:,} samples of shape {predictor.model.event_shape}. Use an .npz file."
        )
    files = None
    if table:
        from submanifold.inference.table_files import TableFiles

        files = TableFiles(table, predictor, only_condition=True)
        check_not_input("--out", out, files.files)
        files.check_readable(len(files))
    condition = None if files is None else files.frame
    samples = predictor.sample(count, temperature, seed, label=label, condition=condition)
    if not predictor.is_table:
        return _write(out, {"samples": samples})
    if files is not None:
        samples = _with_names(samples, files, samples.index)
    with output("--out", out) as partial:
        write_table(partial, [samples], out.suffix.lower())
    return _echo(out)


@click.command()
@model_argument
@click.argument("pictures", nargs=-1, required=True, type=click.Path())
@click.option("--task", required=True, help="denoise:0.1 (standard deviation of the noise), "
              "inpaint:mask.png (black pixels are missing) or inpaint:12 (a square hole), "
              "superresolve:4 (factor), deblur:1.5 (standard deviation of the kernel, pixels), or "
              "sense:600 (number of random measurements).")  # fmt: skip
@click.option("--noise", type=float, help="Standard deviation of the noise of the observations, "
              "pixels in [0, 1].  [default: 0.01, or that of denoise]")  # fmt: skip
@click.option("--simulate", is_flag=True, help="PICTURES are clean: make the observations from "
              "them, and measure the errors.")  # fmt: skip
@click.option("--iterations", type=click.IntRange(3), help="Iterations of the sampler.  "
              "[default: 30]")  # fmt: skip
@dim_option
@label_option
@out_option("restorations", (FOLDER,), "Folder of PNG files and restorations.csv.")
@device_option
def restore(
    model: str, pictures: tuple[str, ...], task: str, noise: float | None, simulate: bool,
    iterations: int | None, dim: int | None, label: int | None, out: Path, device: str,
) -> None:  # fmt: skip
    """Restore PICTURES: denoise, inpaint, superresolve or deblur them, with the model as the prior.

    PICTURES are the observations, in the size of the model's images, or smaller by the factor of
    superresolve. With --simulate they are clean images of any size.

    Writes the restorations (posterior means), and maps of their errors (four times the posterior
    standard deviations).
    """
    file, predictor = _load(model, device)
    import pandas as pd
    import torch
    from PIL import Image

    from submanifold.evaluation.reconstruction import psnr
    from submanifold.evaluation.samples import stored
    from submanifold.inference.image_files import ImageFiles
    from submanifold.inverse.operators import Inpaint, Sense, Superresolve, parse
    from submanifold.inverse.restoration import CHAINS, ITERATIONS, LEVEL, coverage

    if not predictor.is_image or "size" not in predictor.model.data:
        raise UserError("MODEL: expected a model of images, got another one. Use another model.")
    problem = parse(task, predictor.model.event_shape, noise)
    iterations = iterations or ITERATIONS
    if not simulate and isinstance(problem.operator, Sense):
        raise UserError(
            f"--task={task}: expected --simulate, because random measurements are not pictures. "
            "Add --simulate."
        )
    form = predictor.model.data
    if not simulate:  # pictures in the size of the observations
        channels, side, _ = predictor.model.event_shape
        factor = problem.operator.factor if isinstance(problem.operator, Superresolve) else 1
        form = {"size": side // factor, "channels": channels, "crop": "square"}
    files = ImageFiles(pictures, form, resize=simulate)
    check_not_input("--out", out, [file, *files.files])
    names, pixels = files.read(4 * (CHAINS * iterations + 4) * predictor.model.event_dim)
    x = (torch.from_numpy(pixels).float() + 0.5) / 256
    if simulate:
        y = problem.observe(x, torch.Generator().manual_seed(1))
    else:
        y = problem.operator(x) if isinstance(problem.operator, Inpaint) else x
    restored = predictor.restore(
        y, problem.operator, problem.noise, dim=dim, iterations=iterations, label=label
    )
    _echo_skipped(len(files.skipped))
    residual = (problem.operator(restored.image) - y).flatten(1).square().mean(1).sqrt()
    table = pd.DataFrame({
        "picture": names,
        "std": restored.std.flatten(1).square().mean(1).sqrt(),
        "residual": residual / problem.noise,
        "acceptance": restored.acceptance,
        "r_hat": restored.r_hat,
    })  # fmt: skip
    if simulate:
        errors = (restored.image - x).square().flatten(1).mean(1).double().numpy()
        table = table.assign(psnr=psnr(errors), coverage=coverage(restored, x))
    with output("--out", out) as folder:
        for end, images in (("", restored.image), ("-std", 4 * restored.std)):
            for number, (name, image) in enumerate(zip(names, stored(images - 0.5), strict=True)):
                picture = Image.fromarray(image.transpose(1, 2, 0).squeeze())
                picture.save(folder / _picture(number, name, end))
        table.to_csv(folder / "restorations.csv", index=False)
    if simulate:
        click.echo(f"PSNR {table['psnr'].mean():.2f} dB; {table['coverage'].mean():.1%} of the "
                   f"pixels are inside the posterior's intervals of {LEVEL:.0%}")  # fmt: skip
    _echo(out)


@click.command()
@model_argument
def info(model: str) -> None:
    """Print the architecture, the data and the calibration of a model as JSON."""
    loaded = _load(model, "cpu")[1].model
    calibration = {"calibrated_on": loaded.calibration.get("count"),
                   "calibration_groups": loaded.calibration.get("groups")}  # fmt: skip
    click.echo(json.dumps({**loaded.describe(), **calibration}, indent=2))


COMMANDS = [score, encode, project, sample, restore, info]


def _load(
    name: str, device: str, dim: int | None = None, batch_size: int | None = None
) -> "tuple[Path, Predictor]":
    """Return the file of a model, and its predictor."""
    path = model_path(name)
    with without_garbage_collection():
        from submanifold.common.device import choose_device
        from submanifold.common.threads import use_threads
        from submanifold.inference.predictor import Predictor
        from submanifold.models import Model

    click.get_current_context().with_resource(use_threads("auto"))
    model: Any = Model.load(path, choose_device(device))
    if dim is not None and not hasattr(model, "at_dim"):
        raise UserError(f"--dim: expected none for a {model.kind}, got {dim}. Omit it.")
    model = model if dim is None else model.at_dim(dim)
    usual = IMAGE_BATCH if len(model.event_shape) == 3 else ROW_BATCH
    return path, Predictor(model, batch_size or usual)


def _find(
    predictor: "Predictor", paths: Sequence[str], inputs: list[Path], out: Path,
    sheet: Path | None = None,
) -> "Inputs":  # fmt: skip
    """Find images or rows; raise a UserError if an output would replace one or another input."""
    files: Inputs
    if predictor.is_table:
        from submanifold.inference.table_files import TableFiles

        files = TableFiles(paths, predictor)
    elif "size" in predictor.model.data:
        from submanifold.inference.image_files import ImageFiles

        files = ImageFiles(paths, predictor.model.data)
    else:
        raise UserError(
            "model: expected a model of images or of a table, got one of points. Use the "
            "hierarchy.safetensors of a run on images or on a table."
        )
    check_not_input("--out", out, [*inputs, *files.files])
    if sheet is not None:
        check_not_input("--sheet", sheet, [*inputs, *files.files])
    return files


def _compute(
    predictor: "Predictor", files: "Inputs", verb: str,
    function: Callable[[Any], Any],
) -> Iterator[tuple[Sequence[int], Any]]:  # fmt: skip
    """Yield the numbers of the images or rows of each batch, and a function of the batch."""
    from submanifold.common.progress import ProgressBar, hidden_progress
    from submanifold.common.threads import ThreadTuner

    tuner, count = ThreadTuner(predictor.device), 0
    with ProgressBar(verb, files.unit, len(files)) as progress:
        for numbers, batch in files.batches(predictor.size):
            with tuner.unit(len(batch)), hidden_progress():
                result = function(batch)
            yield numbers, result
            progress.update(len(batch))
            count += len(batch)
    files.check_readable(count)


def _write_rows(
    predictor: "Predictor", files: "Inputs", out: Path, verb: str,
    function: "Callable[[Any], pd.DataFrame]",
) -> list[int]:  # fmt: skip
    """Write a function of each batch to a CSV or Parquet file, after the names; return numbers."""
    read: list[int] = []

    def frames() -> "Iterator[pd.DataFrame]":
        for numbers, frame in _compute(predictor, files, verb, function):
            read.extend(numbers)
            yield _with_names(frame, files, numbers)

    with output("--out", out) as partial:
        write_table(partial, frames(), out.suffix.lower())
    return read


def _with_names(frame: "pd.DataFrame", files: "Inputs", numbers: Sequence[int]) -> "pd.DataFrame":
    frame.insert(0, unused(files.label, frame), [files.names[number] for number in numbers])
    return frame


def _collect(
    predictor: "Predictor", files: "Inputs", verb: str,
    function: Callable[[Any], Any], bytes_per_event: int,
) -> "tuple[np.ndarray, ...]":  # fmt: skip
    """Return names, and the arrays that a function returns for each batch."""
    import numpy as np

    from submanifold.common.processes import check_memory

    check_memory(files.unit, len(files), bytes_per_event)
    numbers, results = zip(*_compute(predictor, files, verb, function), strict=True)
    _echo_skipped(len(files.skipped))
    names = [files.names[number] for batch in numbers for number in batch]
    return np.array(names), *map(np.concatenate, zip(*results, strict=True))


def _choose(
    out: Path | None, predictor: "Predictor", rows: str, others: str, formats: str = ""
) -> Path:
    """Return the path of an output, by default one of two names, if its format fits the model."""
    if out is None:
        out = Path(rows if predictor.is_table else others)
        check_output("--out", out, (out.suffix,))
    if formats and predictor.is_table != (out.suffix.lower() in TABLES):
        expected = f"{formats} for images or points"
        if predictor.is_table:
            expected = "a .csv or .parquet file for rows"
        raise UserError(
            f"--out={printable(str(out))}: expected {expected}, got {out.suffix or 'a folder'}. "
            "Use another path."
        )
    return out


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


def _write_sheet(path: Path, files: Any, order: Sequence[int]) -> None:
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


def _picture(number: int, name: str, end: str = "") -> str:
    """Return the name of the file of a picture."""
    return f"{number:05d}-{Path(name).stem[:MAX_STEM]}{end}.png"


def _echo(path: Path) -> None:
    click.echo(printable(str(path)))
