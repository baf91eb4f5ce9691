"""What manifolds of each dimension miss."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure


def dimension_curves(
    curve: Mapping[str, Any], dim: int, first_order: Mapping[str, Any] | None = None
) -> Figure:
    """Draw the squared error of projections by the dimension of the manifold, beside PCA's.

    Args:
        curve: What :func:`submanifold.evaluation.curve.error_curve` returned.
        dim: The model's own dimension, which is marked.
        first_order: What :func:`submanifold.training.rotation.fit_rotation` returned.
    """
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    lines: list[tuple[str, Any, Any, dict[str, Any]]] = [
        ("encoder's projection", curve["dims"], curve["mse"], {"marker": "."}),
        ("nearest point", curve["nearest_dims"], curve["nearest_mse"], {"marker": "o"}),
        ("PCA", curve["dims"], curve["pca_mse"], {"color": "0.4", "linestyle": "--"}),
    ]
    if first_order is not None:
        look = {"color": "C0", "linestyle": ":", "linewidth": 1}
        lines.append(("to first order", first_order["dims"], first_order["mse"], look))
    for label, dims, errors, look in lines:
        points = [(d, e) for d, e in zip(dims, errors, strict=True) if e is not None and e > 0]
        if points:
            (line,) = axes.plot(*zip(*points, strict=True))
            line.set(label=label, **look)
    axes.axvline(dim, color="0.6", linestyle=":", linewidth=1)
    largest = max(curve["dims"])
    floor = min((e for d, e in zip(curve["dims"], curve["mse"], strict=True) if d < largest),
                default=1e-6)  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="dimension of the manifold",
             ylabel="mean squared error, pixels on [0, 1]")  # fmt: skip
    axes.set_ylim(bottom=max(floor / 10, 1e-7))
    axes.grid(alpha=0.25, which="both")
    axes.legend()
    return figure


def frontier(points: Mapping[str, tuple[float, float, float]]) -> Figure:
    """Draw bits per dimension against squared error, of the encoder and of the nearest point.

    Args:
        points: By name: bits per dimension, and the two errors, joined by a line. Where bits are
            NaN, a line across.
    """
    figure = Figure(figsize=(8.5, 5.5), layout="constrained")
    axes = figure.subplots()
    for number, (name, (bits, encoder, nearest)) in enumerate(points.items()):
        color = f"C{number % 10}"
        if bits != bits:  # NaN
            axes.axvline(encoder, color="0.4", linestyle="--", linewidth=1, label=name)
            continue
        axes.plot([encoder, nearest], [bits, bits], color=color, linewidth=0.8)
        axes.plot(encoder, bits, "s" if number < 10 else "D", color=color, label=name)
        axes.plot(nearest, bits, "s" if number < 10 else "D", color=color, markerfacecolor="white")
    axes.set(xscale="log", xlabel="mean squared error (filled: encoder; open: nearest point)",
             ylabel="bits per dimension")  # fmt: skip
    axes.grid(alpha=0.25, which="both")
    axes.legend(fontsize=8)
    return figure
