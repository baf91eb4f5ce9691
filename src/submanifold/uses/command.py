"""The command ``submanifold``: a trained model and one's own pictures, without Kedro."""

import functools
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from submanifold.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from submanifold.manifold import Model

SHOWN = 32


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Use a trained model on pictures: MODEL is the hierarchy.safetensors of a run, or its folder.

    PICTURES are files, folders with all that lies below them, and zips. They are cropped and
    resized as those that the model was trained on; what cannot be read is passed over and named.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")


def _command(function: Callable[..., None]) -> Callable[..., None]:
    """Show a user's mistake as one message."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except UserError as error:
            raise click.ClickException(str(error)) from error

    return main.command()(run)


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
batch_option = click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True)
nearest_option = click.option("--nearest", is_flag=True, help="The nearest point; takes longer.")
seed_option = click.option("--seed", type=int, default=0, show_default=True)
dim_option = click.option("--dim", type=int, help="So many leading coordinates alone.")


def out_option(default: str, text: str) -> Any:
    """Where the result goes."""
    return click.option("--out", type=click.Path(path_type=Path), default=Path(default),
                        show_default=True, help=text)  # fmt: skip


@_command
@model_argument
@pictures_argument
@out_option("scores.csv", "The table.")
@click.option("--sheet", type=click.Path(path_type=Path),
              help="A PNG of the strangest pictures above the most usual ones.")  # fmt: skip
@click.option("--at-most", callback=_share, help="Outliers are those less probable, such as 1%.")
@nearest_option
@device_option
@batch_option
def score(
    model: Path, pictures: tuple[str, ...], out: Path, sheet: Path | None, at_most: float | None,
    nearest: bool, device: str, batch_size: int,
) -> None:  # fmt: skip
    """Write densities, distances, and how probable each picture is under the training data."""
    from submanifold.uses.scoring import check_calibration, score_pictures, scores_table

    loaded = _load(model, device)
    check_calibration(loaded, at_most)
    names, images = _read(loaded, pictures, batch_size)
    scores = score_pictures(loaded, images, nearest, batch_size)
    table = scores_table(names, scores, at_most)
    _parent(out)
    table.to_csv(out, index=False)
    order = scores["strangeness"].sort_values(ascending=False, kind="stable").index
    for index in order[: min(5, len(order))]:
        click.echo(f"{table['probability'][index]:8.4f}  {names[index]}")
    if at_most is not None:
        click.echo(f"{int(table['outlier'].sum())} of {len(table)} are outliers at {at_most:g}.")
    if sheet is not None:
        _write_sheet(sheet, images, order.to_numpy())
    click.echo(out)


@_command
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
    import numpy as np

    from submanifold.uses.scoring import encode_pictures

    loaded = _load(model, device)
    names, images = _read(loaded, pictures, batch_size)
    u, v = encode_pictures(loaded, images, nearest, batch_size)
    _parent(out)
    np.savez(out, names=np.array(names), u=u, v=v)
    click.echo(out)


@_command
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
    import numpy as np

    from submanifold.uses.scoring import project_pictures

    loaded = _at_dim(_load(model, device), dim)
    names, images = _read(loaded, pictures, batch_size)
    projections, errors = project_pictures(loaded, images, nearest, batch_size)
    if out.suffix == ".npz":
        _parent(out)
        np.savez(out, names=np.array(names), originals=images, projections=projections, mse=errors)
    else:
        difference = np.clip(images.astype(int) - projections + 128, 0, 255).astype(np.uint8)
        for number, name in enumerate(names):
            three = np.stack([each[number] for each in (images, projections, difference)])
            _write_png(out / f"{number:05d}-{Path(name).stem}.png", three, columns=3)
    click.echo(f"mean squared error {errors.mean():.6f} on [0, 1]; {out}")


@_command
@model_argument
@click.option("-n", "count", type=click.IntRange(1), default=64, show_default=True)
@click.option("--temperature", type=click.FloatRange(0, 10), default=1.0, show_default=True)
@dim_option
@seed_option
@out_option("samples.png", "A PNG of all; or an .npz of the array samples.")
@device_option
def sample(
    model: Path, count: int, temperature: float, dim: int | None, seed: int, out: Path, device: str
) -> None:
    """Draw samples from the manifold."""
    from submanifold.uses.scoring import sample_pictures

    loaded = _at_dim(_load(model, device), dim)
    _write_images(out, sample_pictures(loaded, count, temperature, seed), "samples")


@_command
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
    from submanifold.uses.scoring import interpolate_pictures

    loaded = _at_dim(_load(model, device), dim)
    _, images = _read(loaded, (a, b), 2)
    if len(images) != 2:
        raise UserError("A and B have to be one picture each.")
    _write_images(out, interpolate_pictures(loaded, images, steps), "path")


@_command
@model_argument
def info(model: Path) -> None:
    """Say what a model is, and what it was trained on."""
    loaded = _load(model, "cpu")
    calibration = loaded.calibration
    about = {**loaded.describe(), "calibrated_on": calibration.get("count"),
             "calibration_groups": calibration.get("groups")}  # fmt: skip
    click.echo(json.dumps(about, indent=2))


def _load(path: Path, device: str) -> "Model":
    from submanifold.device import choose_device
    from submanifold.manifold import Model

    inside = path / "hierarchy.safetensors"
    return Model.load(inside if path.is_dir() else path, choose_device(device))


def _at_dim(model: "Model", dim: int | None) -> "Model":
    if dim is None:
        return model
    at_dim = getattr(model, "at_dim", None)
    if at_dim is None:
        raise UserError(f"--dim={dim}, but a {model.kind} has one dimension. Leave it out.")
    return at_dim(dim)


def _read(
    model: "Model", places: tuple[str, ...], batch_size: int
) -> tuple[list[str], "np.ndarray"]:
    from submanifold.uses.pictures import Pictures

    found = Pictures(places, model.data)
    names, images = found.all(batch_size)
    if found.skipped:
        click.echo(f"{len(found.skipped)} could not be read and were passed over.", err=True)
    return names, images


def _parent(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)


def _write_images(path: Path, images: "np.ndarray", name: str) -> None:
    import numpy as np

    _parent(path)
    if path.suffix == ".npz":
        arrays: dict[str, Any] = {name: images}
        np.savez(path, **arrays)
    else:
        _write_png(path, images, columns=min(len(images), 9 if name == "path" else 8))
    click.echo(path)


def _write_png(path: Path, images: "np.ndarray", columns: int) -> None:
    from submanifold.figures.images import as_png, sample_sheet

    _parent(path)
    path.write_bytes(as_png(sample_sheet(images, columns=columns)))


def _write_sheet(path: Path, images: "np.ndarray", order: "np.ndarray") -> None:
    import numpy as np

    shown = max(1, min(SHOWN, len(order) // 2))
    strangest, usual = images[order[:shown]], images[order[::-1][:shown]]
    gap = np.full((-shown % 8, *images.shape[1:]), 255, np.uint8)
    line = np.full((8, *images.shape[1:]), 255, np.uint8)
    _write_png(path, np.concatenate([strangest, gap, line, usual]), columns=8)
