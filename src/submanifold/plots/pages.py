"""Self-contained HTML pages from Jinja templates."""

import base64
from typing import TYPE_CHECKING, Any

import jinja2

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image


def render(template: str, **values: Any) -> str:
    """Render a template of this package, such as ``report.html``.

    Values are escaped, and a missing value raises an error. The filter ``picture`` converts a
    figure, an image or the bytes of a PNG file to a data URL.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("submanifold.plots", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["picture"] = _data_url
    return environment.get_template(template).render(values)


def _data_url(picture: "Figure | Image | bytes") -> str:
    from submanifold.plots.images import as_png  # matplotlib is slow to import

    png = picture if isinstance(picture, bytes) else as_png(picture)
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
