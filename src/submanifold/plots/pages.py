"""Self-contained HTML pages from Jinja templates."""

import base64
from typing import TYPE_CHECKING, Any

import jinja2

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image


def render(template: str, **values: Any) -> str:
    """Render a template of this package, such as ``report.html``.

    The filter ``picture`` converts a figure or an image to a data URL.
    """
    loader, strict = jinja2.PackageLoader("submanifold.plots", "templates"), jinja2.StrictUndefined
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=strict)
    environment.filters["picture"] = _data_url
    return environment.get_template(template).render(values)


def _data_url(picture: "Figure | Image") -> str:
    from submanifold.plots.images import as_png  # matplotlib is slow to import

    return f"data:image/png;base64,{base64.b64encode(as_png(picture)).decode()}"
