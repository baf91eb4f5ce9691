"""The command ``submanifold``: a trained model and one's own pictures, without Kedro."""

import json
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from submanifold.common.errors import UserError
from submanifold.common.files import printable
from submanifold.inference.outputs import FOLDER, check_not_input, check_output, output

if TYPE_CHECKING:
    import numpy as np

    from submanifold.models import Model

SHOWN = 32
STEM = 50
"""Characters of a picture's name in the name of its projection's file."""


class Escaping(click.Group):
    """Shows a user's mistake, or a file that the system refuses, as one line."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # as of "submanifold info | head"; click ends quietly
            raise
        except click.UsageError as error:
            raise click.UsageError(printable(error.format_message()), error.ctx) from error
        except (UserError, OSError) as error:
            raise click.ClickException(printable(str(error))) from error


@click.group(cls=Escaping, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Use a trained model on pictures: MODEL is the hierarchy.safetensors of a run, or its folder.

    PICTURES are files, folders with all that lies below them, and zips. They are cropped and
    resized as those that the model was trained on; what cannot be read is passed over and named.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")


def _share(ctx: click.Context, param: click.Parameter, text: str | None) -> float | None:
    """Read 1% or 0.01."""
    if text is None:
        return None
    match = re.fullmatch(r"([0-9.]+)\s*(%?)", text.strip())
    try:
        value = float(match[1]) / (100 if match[2] else 1) if match else -1.0
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise click.BadParameter(f"{text} is no probability; write it as 1% or 0.01.")
    return value


model_argument = click.argument("model", type=click.Path(path_type=Path))
pictures_argument = click.argument("pictures", nargs=-1, required=True, type=click.Path())
device_option = click.option("--device", default="auto", show_default=True,
                             help="auto, cpu, cuda or cuda:<n>.")  # fmt: skip
batch_option = click.option("--batch-size", type=click.IntRange(1, 4096), default=64,
                            show_default=True)  # fmt: skip
nearest_option = click.option("--nearest", is_flag=True,
                              help="Search towards the nearest point; takes longer.")  # fmt: skip
seed_option = click.option("--seed", type=int, default=0, show_default=True)
dim_option = click.option("--dim", type=int, help="Use only the first N coordinates.")


def out_option(default: str, text: str) -> Any:
    """Where the result goes."""
    return click.option("--out", type=click.Path(path_type=Path), default=Path(default),
                        show_default=True, help=text)  # fmt: skip


@main.command()
@model_argument
@pictures_argument
@out_option("scores.csv", "The table.")
@click.option("--sheet", type=click.Path(path_type=Path),
              help="A PNG of the strangest pictures above the most usual ones.")  # fmt: skip
@click.option("--alpha", callback=_share, help="Outliers are those less probable, such as 1%.")
@nearest_option
@device_option
@batch_option
def score(
    model: Path, pictures: tuple[str, ...], out: Path, sheet: Path | None, alpha: float | None,
    nearest: bool, device: str, batch_size: int,
) -> None:  # fmt: skip
    """Write densities, distances, and how probable each picture is under the training data."""
    outputs = {"--out": out}
    check_output("--out", out, (".csv",))
    if sheet is not None:
        outputs["--sheet"] = sheet
        check_output("--sheet", sheet, (".png",))
    from submanifold.inference.scoring import check_calibration, score_pictures, scores_table

    loaded = _load(model, device)
    check_calibration(loaded, alpha)
    names, images = _read(loaded, model, pictures, batch_size, outputs)
    scores = score_pictures(loaded, images, nearest, batch_size)
    table = scores_table(names, scores, alpha)
    with output("--out", out) as partial:
        table.to_csv(partial, index=False)
    order = scores["strangeness"].sort_values(ascending=False, kind="stable").index
    for index in order[: min(5, len(order))]:
        click.echo(f"{table['p_value'][index]:8.4f}  {names[index]}")
    if alpha is not None:
        click.echo(f"{int(table['ood'].sum())} of {len(table)} are ood at {alpha:g}.")
    if sheet is not None:
        _write_sheet(sheet, images, order.to_numpy())
    _echo(out)


@main.command()
@model_argument
@pictures_argument
@out_option("codes.npz", "Arrays names, u and v.")
@nearest_option
@device_option
@batch_option
def encode(
    model: Path, pictures: tuple[str, ...], out: Path, nearest: bool, device: str, batch_size: int
) -> None:
    """Write the coordinates of pictures on the manifold, u, and off it, v."""
    check_output("--out", out, (".npz",))
    import numpy as np

    from submanifold.inference.scoring import encode_pictures

    loaded = _load(model, device)
    each = 8 * loaded.event_dim  # as floats, which are copied once
    names, images = _read(loaded, model, pictures, batch_size, {"--out": out}, each)
    u, v = encode_pictures(loaded, images, nearest, batch_size)
    _write_arrays(out, {"names": np.array(names), "u": u, "v": v})
    _echo(out)


@main.command()
@model_argument
@pictures_argument
@out_option("projections", "A folder for PNGs; or an .npz of originals and projections.")
@nearest_option
@dim_option
@device_option
@batch_option
def project(
    model: Path, pictures: tuple[str, ...], out: Path, nearest: bool, dim: int | None, device: str,
    batch_size: int,
) -> None:  # fmt: skip
    """Project pictures onto the manifold: the original, its projection and the difference."""
    check_output("--out", out, (".npz", FOLDER))
    import numpy as np

    from submanifold.inference.scoring import project_pictures

    loaded = _at_dim(_load(model, device), dim)
    each = 2 * loaded.event_dim  # the projections, which are copied once
    names, images = _read(loaded, model, pictures, batch_size, {"--out": out}, each)
    projections, errors = project_pictures(loaded, images, nearest, batch_size)
    if out.suffix == FOLDER:
        with output("--out", out) as folder:
            for number, (name, *both) in enumerate(zip(names, images, projections, strict=True)):
                difference = np.clip(both[0].astype(int) - both[1] + 128, 0, 255).astype(np.uint8)
                file = folder / f"{number:05d}-{Path(name).stem[:STEM]}.png"
                file.write_bytes(_png(np.stack([*both, difference]), columns=3))
    else:
        arrays = {"originals": images, "projections": projections, "mse": errors}
        _write_arrays(out, {"names": np.array(names), **arrays})
    click.echo(f"mean squared error {errors.mean():.6f} on [0, 1]")
    _echo(out)


@main.command()
@model_argument
@click.option("-n", "count", type=int, default=64, show_default=True)
@click.option("--temperature", type=float, default=1.0, show_default=True, help="0 to 10.")
@dim_option
@seed_option
@out_option("samples.png", "A PNG of all; or an .npz of the array samples.")
@device_option
def sample(
    model: Path, count: int, temperature: float, dim: int | None, seed: int, out: Path, device: str
) -> None:
    """Draw samples from the manifold."""
    check_output("--out", out, (".png", ".npz"))
    from submanifold.inference.scoring import check_sampling, sample_pictures

    check_sampling(count, temperature, seed)
    loaded = _at_dim(_load(model, device), dim)
    check_not_input("--out", out, [_file_of(model)])
    _check_drawable(out, loaded, "count", count)
    _write_images(out, sample_pictures(loaded, count, temperature, seed), "samples")


@main.command()
@model_argument
@click.argument("a", type=click.Path())
@click.argument("b", type=click.Path())
@click.option("--steps", type=click.IntRange(2), default=9, show_default=True)
@out_option("path.png", "A PNG of the way; or an .npz of the array path.")
@dim_option
@device_option
def interpolate(
    model: Path, a: str, b: str, steps: int, out: Path, dim: int | None, device: str
) -> None:
    """Go from picture A to B on the manifold, the density changing evenly along the way."""
    check_output("--out", out, (".png", ".npz"))
    from submanifold.inference.scoring import interpolate_pictures

    loaded = _at_dim(_load(model, device), dim)
    _check_drawable(out, loaded, "steps", steps)
    _, images = _read(loaded, model, (a, b), 2, {"--out": out})
    if len(images) != 2:
        raise UserError("A and B have to be one picture each.")
    _write_images(out, interpolate_pictures(loaded, images, steps), "path")


@main.command()
@model_argument
def info(model: Path) -> None:
    """Say what a model is, and what it was trained on."""
    loaded = _load(model, "cpu")
    calibration = loaded.calibration
    about = {**loaded.describe(), "calibrated_on": calibration.get("count"),
             "calibration_groups": calibration.get("groups")}  # fmt: skip
    click.echo(json.dumps(about, indent=2))


def _file_of(path: Path) -> Path:
    return path / "hierarchy.safetensors" if path.is_dir() else path


def _load(path: Path, device: str) -> "Model":
    from submanifold.common.device import choose_device
    from submanifold.models import Model

    return Model.load(_file_of(path), choose_device(device))


def _at_dim(model: "Model", dim: int | None) -> "Model":
    if dim is None:
        return model
    at_dim = getattr(model, "at_dim", None)
    if at_dim is None:
        raise UserError(f"--dim={dim}, but a {model.kind} has one dimension. Leave it out.")
    return at_dim(dim)


def _read(
    model: "Model", file: Path, places: tuple[str, ...], batch_size: int, outputs: dict[str, Path],
    each: int = 0,
) -> tuple[list[str], "np.ndarray"]:  # fmt: skip
    """Read pictures, none of which an output may replace; see :meth:`Pictures.all`."""
    from submanifold.inference.pictures import Pictures

    found = Pictures(places, model.data)
    for option, path in outputs.items():
        check_not_input(option, path, [_file_of(file), *found.files])
    names, images = found.all(batch_size, each)
    if found.skipped:
        click.echo(f"{len(found.skipped)} could not be read and were passed over.", err=True)
    return names, images


def _echo(path: Path) -> None:
    click.echo(printable(str(path)))


def _check_drawable(path: Path, model: "Model", name: str, count: int) -> None:
    """Check that samples can be drawn in a picture, if the path is one's.

    Raises:
        UserError: They are points, or they do not fit in memory.
    """
    from submanifold.common.processes import check_memory
    from submanifold.plots.images import sheet_bytes

    shape = model.event_shape
    if path.suffix.lower() != ".png":
        return
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise UserError(
            f"--out={printable(str(path))}: expected a file that ends in .npz, as samples of shape "
            f"{tuple(shape)} are no pictures, got .png."
        )
    check_memory(name, count, sheet_bytes(shape[2]))


def _write_arrays(path: Path, arrays: dict[str, "np.ndarray"]) -> None:
    import numpy as np

    with output("--out", path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def _write_images(path: Path, images: "np.ndarray", name: str) -> None:
    if path.suffix.lower() == ".npz":
        _write_arrays(path, {name: images})
    else:
        png = _png(images, columns=min(len(images), 9 if name == "path" else 8))
        with output("--out", path) as partial:
            partial.write_bytes(png)
    _echo(path)


def _png(images: "np.ndarray", columns: int) -> bytes:
    from submanifold.plots.images import as_png, sample_sheet

    return as_png(sample_sheet(images, columns=columns))


def _write_sheet(path: Path, images: "np.ndarray", order: "np.ndarray") -> None:
    import numpy as np

    shown = max(1, min(SHOWN, len(order) // 2))
    strangest, usual = images[order[:shown]], images[order[::-1][:shown]]
    gap = np.full((-shown % 8, *images.shape[1:]), 255, np.uint8)
    line = np.full((8, *images.shape[1:]), 255, np.uint8)
    png = _png(np.concatenate([strangest, gap, line, usual]), columns=8)
    with output("--sheet", path) as partial:
        partial.write_bytes(png)
