"""Interactive plots of bits per dimension against squared error, for sweeps and studies."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

RED = "#d62728"
ERROR = {"title_text": "mean squared error", "type": "log", "exponentformat": "power"}
BITS = "bits per dimension"


def sweep_figure(
    table: pd.DataFrame, parameter: str, pca: Sequence[float] | None = None
) -> go.Figure:
    """Plot bits per dimension against squared error for the values of a parameter.

    If the dimension of the manifold varies, a second panel plots the error against it.

    Args:
        table: One model per row: value (of the parameter), dim (of the manifold), bpd, bpd_low,
            bpd_high, mse, mse_low, mse_high (95% intervals), and optionally seed.
        parameter: Name of the parameter.
        pca: Squared error of PCA with the dimension of each row.
    """
    table = table.assign(pca=np.nan if pca is None else list(pca)).sort_values("value")
    for name in ("bpd", "mse"):
        table[f"{name}_above"] = table[f"{name}_high"] - table[name]
        table[f"{name}_below"] = table[name] - table[f"{name}_low"]
    table["label"] = [f"{v:g}" if isinstance(v, float) else str(v) for v in table["value"]]
    shades = np.linspace(0, 0.88, table["label"].nunique()).tolist()
    by_dim = table.groupby("dim", as_index=False)["pca"].mean()
    panels = [("mse", "bpd"), ("dim", "mse")][: min(2, len(by_dim))]
    figure = make_subplots(1, len(panels), horizontal_spacing=0.12)
    for column, (x, y) in enumerate(panels, 1):
        bars = {"error_x": "mse_above", "error_x_minus": "mse_below"} if x == "mse" else {}
        scatter = px.scatter(
            table, x=x, y=y, **bars, error_y=f"{y}_above", error_y_minus=f"{y}_below",
            color="label", color_discrete_sequence=sample_colorscale("Viridis", shades),
            hover_data=[name for name in ("seed", "dim", "bpd", "mse") if name in table],
        )  # fmt: skip
        scatter.update_traces(showlegend=column == 1, marker_size=9)
        figure.add_traces(scatter.data, rows=1, cols=column)
    line: dict[str, Any] = {"name": "PCA", "mode": "lines", "line": {"color": RED, "dash": "dash"}}
    figure.update_xaxes(ERROR, col=1)
    figure.update_yaxes(title_text=BITS, col=1)
    if len(panels) == 2:
        figure.add_scatter(x=by_dim["dim"], y=by_dim["pca"], row=1, col=2, **line)
        dims = by_dim["dim"].tolist()
        figure.update_xaxes(
            title_text="dimension of the manifold", type="log", tickvals=dims, col=2
        )
        figure.update_yaxes(ERROR, col=2)
    else:
        bits = table["bpd"].replace([np.inf, -np.inf], np.nan)
        figure.add_scatter(x=[*by_dim["pca"]] * 2, y=[bits.min(), bits.max()], row=1, col=1, **line)
    _style(figure, "Error bars: 95% intervals", width=240 + 400 * len(panels))
    return figure.update_layout(legend_title_text=parameter)


def study_figure(table: pd.DataFrame, parameters: Sequence[str]) -> go.Figure:
    """Plot bits per dimension against squared error of trials, with the Pareto front.

    Args:
        table: One trial per row: trial (number), state, front (whether it is Pareto-optimal), bpd,
            mse, test_bpd, test_mse, and the parameters.
        parameters: Names of the parameters.
    """
    done = table[table["state"] == "complete"].sort_values(["mse", "bpd"])
    is_optimal = done["front"].astype(bool)
    axes = {"x": "mse", "y": "bpd", "hover_data": ["trial", "test_bpd", "test_mse", *parameters]}
    figure = px.scatter(done[~is_optimal], **axes)
    figure.update_traces(name=f"other trials ({(~is_optimal).sum()})", marker_color="#8aa0b8")
    # steps, because values between two trials are not attained
    front = px.line(done[is_optimal], line_shape="hv", markers=True, **axes)
    front.update_traces(name=f"Pareto front ({is_optimal.sum()})", line_color=RED)
    figure.add_traces(front.data).update_traces(showlegend=True, marker_size=9)
    counts = table["state"].value_counts()
    missing = [f"{counts[state]} {state}" for state in ("pruned", "failed") if state in counts]
    _style(figure, f"Not shown: {', '.join(missing)}" if missing else "")
    return figure.update_xaxes(ERROR).update_yaxes(title_text=BITS)


def as_html(figure: go.Figure) -> str:
    """Return a plot as a part of a page, with its own copy of plotly."""
    config = {"displaylogo": False, "responsive": True}
    return figure.to_html(full_html=False, include_plotlyjs=True, config=config)


def _style(figure: go.Figure, title: str, **size: int) -> None:
    figure.update_layout(
        template="simple_white",
        height=460,
        title={"text": title, "x": 0, "font_size": 12},
        legend={"orientation": "h", "y": -0.25},
        **size,
    )
    figure.update_xaxes(showgrid=True).update_yaxes(showgrid=True)
