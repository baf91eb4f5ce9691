"""Durations of an exported model, beside the model's own.

    python -m benchmarks.export RUN

RUN is a run of images. Prints the table of docs/how-to/export.md: seconds of one and of 256 images.
"""

import io
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np
import onnx
import onnxruntime
import torch
from PIL import Image

from benchmarks.results import markdown
from benchmarks.timing import interleave
from submanifold import Predictor
from submanifold.inference.export import export
from submanifold.inference.records import model_path

COUNTS = 1, 256


def png_bits(image: np.ndarray) -> int:
    buffer = io.BytesIO()
    pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    Image.fromarray(pixels).save(buffer, "png", optimize=True)
    return 8 * buffer.tell()


@click.command()
@click.argument("run")
@click.option("--rounds", default=5, show_default=True)
def main(run: str, rounds: int) -> None:
    predictor = Predictor.load(model_path(run), "cpu")
    images, threads = predictor.sample(max(COUNTS)), torch.get_num_threads()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    with TemporaryDirectory() as folder:
        path, start = Path(folder, "model.onnx"), time.perf_counter()
        export(predictor, path)
        seconds, size = time.perf_counter() - start, path.stat().st_size / 2**20
        inputs = [entry.name for entry in onnxruntime.InferenceSession(path).get_inputs()]
        small = Path(folder, "small.onnx")
        onnx.utils.extract_model(path, small, inputs, ["p_value"])
        full, short = (onnxruntime.InferenceSession(file, options) for file in (path, small))
    click.echo(f"Exported in {seconds:.0f} s, {size:.0f} MiB; {threads} threads")

    def score(session: onnxruntime.InferenceSession, x: np.ndarray) -> object:
        bits = np.array([png_bits(image) for image in x])
        return session.run(None, {"images": x, "alpha": np.array(0.05), "png_bits": bits})

    rows: dict[str, dict[str, str]] = {}
    for count in COUNTS:
        x = images[:count]
        tasks = {
            "onnxruntime, p_value": lambda x=x: score(short, x),
            "onnxruntime, all outputs": lambda x=x: score(full, x),
            "Predictor, score": lambda x=x: predictor.score(x),
            "Predictor, score, encode, project": lambda x=x: [
                predictor.score(x),
                predictor.encode(x),
                predictor.project(x),
            ],
        }
        timings = interleave(tasks, rounds, torch.device("cpu"))
        for name, t in timings.items():
            text = f"{t.median:.3f} [{t.low:.3f}, {t.high:.3f}]"
            rows.setdefault(name, {"seconds": name})[f"{count} images"] = text
    click.echo(markdown([*rows.values()]))


if __name__ == "__main__":
    main()
