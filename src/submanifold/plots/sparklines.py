"""Small curves inside of tables, as SVG."""

import math
from collections.abc import Sequence

from markupsafe import Markup

WIDTH, HEIGHT, MARGIN = 110, 30, 2


def sparkline(points: Sequence[tuple[float, float]], label: str) -> Markup:
    """Draw a curve of positive values on logarithmic axes, in the color of the text.

    Args:
        points: Pairs (x, y) in the order of x.
        label: Description for screen readers and tooltips.
    """
    if len(points) < 2:
        return Markup("")
    columns = [[math.log(value) for value in each] for each in zip(*points, strict=True)]
    ends = WIDTH, HEIGHT
    scaled = []
    for values, end in zip(columns, ends, strict=True):
        low, width = min(values), max(max(values) - min(values), 1e-12)
        scaled.append([MARGIN + (value - low) / width * (end - 2 * MARGIN) for value in values])
    path = " ".join(f"{x:.1f},{HEIGHT - y:.1f}" for x, y in zip(*scaled, strict=True))
    return Markup(
        '<svg class="sparkline" role="img" width="{0}" height="{1}" viewBox="0 0 {0} {1}">'
        "<title>{2}</title>"
        '<polyline points="{3}" fill="none" stroke="currentColor" stroke-width="1.5"/></svg>'
    ).format(WIDTH, HEIGHT, label, path)
