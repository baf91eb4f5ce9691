"""Self-contained HTML pages from Jinja templates."""

import base64
from typing import Any

import jinja2


def render(template: str, **values: Any) -> str:
    """Render a template of this package, such as ``report.html``.

    Values are escaped, and a missing value raises an error. The filter ``picture`` converts the
    bytes of a PNG file to a data URL.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("submanifold.plots", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["picture"] = _data_url
    return environment.get_template(template).render(values)


def _data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
